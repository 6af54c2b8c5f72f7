"""Runs README's commands in order in an empty folder, on phantoms: `python tests/readme.py FOLDER`.

Uses the `ummkd` found on PATH. What is long in README is made short: fewer phantoms, few training steps.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from own_scans import write_own_data

README = Path(__file__).parents[1] / "README.md"
SHORTER = {
    "phantom": ["--cases=ct:5,mr:5", "--size=64"],
    "prepare": ["--workers=2"],
    "train": ["--preset=tiny", "--steps=4", "--validate_every=4"],
}


def commands() -> list[list[str]]:
    """README's `ummkd` commands."""
    blocks = re.findall(r"^```\n(.*?)^```", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]
    return [words for words in lines if words[:1] == ["ummkd"]]


def main() -> None:
    """Program."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True)  # an existing one could hide that a command writes nothing
    write_own_data(folder, ("ct", "mr"))
    shutil.copy(folder / "ct_0_image.nii.gz", folder / "scan.nii.gz")
    (folder / "names.json").write_text(json.dumps({"1": "right organ", "2": "left organ"}), encoding="utf-8")
    for words in commands():
        words += SHORTER.get(words[1], [])
        print("$", shlex.join(words), flush=True)
        subprocess.run(words, cwd=folder, check=True)
    # Somebody else has the exported folder alone.
    shutil.move(folder / "model", folder / "elsewhere")
    for gone in ("runs", "data", "organs.json"):
        shutil.move(folder / gone, folder / f"{gone}.gone")
    other = "--model=elsewhere --modality=ct --input=scan.nii.gz --output=again.nii.gz"
    subprocess.run(["ummkd", "predict", *other.split()], cwd=folder, check=True)
    assert (folder / "again.nii.gz").read_bytes() == (folder / "labels.nii.gz").read_bytes()
    for written in ("demo/labels.nii.gz", "demo/labels.png", "data.gone/qc/index.html", "labels.nii.gz"):
        assert (folder / written).stat().st_size, written


if __name__ == "__main__":
    main()
