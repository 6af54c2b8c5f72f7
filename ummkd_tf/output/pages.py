"""What the project's HTML pages share: each is opened from disk and loads nothing from elsewhere."""

from __future__ import annotations

import html
from collections.abc import Mapping
from importlib import resources


def escaped(value: object) -> str:
    """Text of a value, safe in HTML text and in quoted attributes."""
    return html.escape(str(value), quote=True)


def facts(values: Mapping[str, object]) -> str:
    """A list of names and values."""
    return "<dl>\n" + "\n".join(f"<dt>{escaped(k)}</dt><dd>{escaped(v)}</dd>" for k, v in values.items()) + "\n</dl>"


def document(title: str, body: str, *, kind: str) -> str:
    """A whole page in one file: its style and its scripts come from `assets/`.

    Args:
        title: As text.
        body: As HTML.
        kind: The page's own style and script beside those of all pages: `assets/<kind>.css` and `.js`.
    """
    style, script = ("".join(asset(f"{name}.{suffix}") for name in ("page", kind)) for suffix in ("css", "js"))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escaped(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n{body}\n"
        f"<script>{script}</script>\n</body>\n</html>\n"
    )


def asset(name: str) -> str:
    """A file of `assets/`; "" where there is none."""
    file = resources.files("ummkd_tf.output") / "assets" / name
    return file.read_text(encoding="utf-8") if file.is_file() else ""
