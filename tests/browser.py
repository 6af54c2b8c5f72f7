"""Opens a page in Chromium, where there is one."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


def in_browser(page: str, width: int, folder: Path) -> Any:
    """What a script in a page tells as JSON in the title of the page around it.

    A frame, because a browser's window cannot be as narrow as a phone.
    """
    assert BROWSER is not None
    style = f"border: 0; width: {width}px; height: 900px"
    framed = f'<title></title><iframe style="{style}" srcdoc="{html.escape(page)}"></iframe>'
    copy = folder / "copy.html"
    copy.write_text(framed, encoding="utf-8")
    quiet = ("gpu", "quic", "background-networking", "component-update", "sync")
    command = [BROWSER, "--headless", "--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in quiet)]
    command += [f"--user-data-dir={folder / 'profile'}", "--window-size=1400,1000", "--dump-dom", copy.as_uri()]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=120, check=True)
    title = re.search("<title>(.*?)</title>", done.stdout, re.DOTALL)
    assert title is not None
    return json.loads(html.unescape(title[1]))
