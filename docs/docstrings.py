"""Docstrings as the site shows them: Keras's section "Call arguments" as a list, "Example" as code."""

from __future__ import annotations

import re
from typing import Any

import griffe

_SECTION = re.compile(r"^(Call arguments|Example):\n((?:(?: {4}.*)?(?:\n|\Z))+)", re.MULTILINE)


def _shown(match: re.Match[str]) -> str:
    title, body = match[1], match[2].rstrip()
    if title == "Call arguments":
        return f"{title}:\n" + re.sub(r"^ {4}(\w+): ", r"    - **`\1`**: ", body, flags=re.MULTILINE) + "\n\n"
    if ">>>" in body:
        return f"Examples:\n{body}\n\n"
    return f"{title}:\n    ```python\n{body}\n    ```\n\n"


class Docstrings(griffe.Extension):
    """Hook of mkdocstrings, see mkdocs.yml."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Griffe hook."""
        if obj.docstring:
            obj.docstring.value = _SECTION.sub(_shown, obj.docstring.value)
