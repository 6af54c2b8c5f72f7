"""What the project's HTML pages share: each is opened from disk and loads nothing from elsewhere."""

from __future__ import annotations

import html
from collections.abc import Mapping

STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #1c2024; --quiet: #5a6570; --line: #d5dbe1; --head: #f2f5f7;
        --link: #0b57a4; --flag: #fff3d6; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14181c; --ink: #e6e9ec; --quiet: #a5b0ba; --line: #3a444d; --head: #20272d; --link: #8ab8f0;
          --flag: #4d3c0c; }
}
body { margin: 0 auto; max-width: 84rem; padding: 1rem; background: var(--page); color: var(--ink);
       font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0.2rem 0 0.6rem; }
h2 { font-size: 1.2rem; margin: 2rem 0 0.5rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.15rem 1rem; margin: 0; }
dt { color: var(--quiet); }
dd { margin: 0; overflow-wrap: anywhere; }
a { color: var(--link); }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 4px; }
.fit { width: fit-content; max-width: 100%; margin-top: 0.8rem; }
table { border-collapse: separate; border-spacing: 0; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.3rem 0.6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { background: var(--head); font-weight: 600; vertical-align: bottom; }
th.text, td.text { text-align: left; }
tbody:last-child tr:last-child > * { border-bottom: 0; }
.scroll tr > :first-child { position: sticky; left: 0; background: var(--page); max-width: 12rem; overflow: hidden;
  text-overflow: ellipsis; }
.scroll tr > th:first-child { background: var(--head); }
th button { all: unset; cursor: pointer; }
th button:focus-visible { outline: 2px solid var(--link); }
th button::after { content: " \\2195"; color: var(--quiet); }
th[aria-sort=ascending] button::after { content: " \\2191"; color: inherit; }
th[aria-sort=descending] button::after { content: " \\2193"; color: inherit; }
figure { margin: 0; padding: 0.5rem; border: 1px solid var(--line); border-radius: 4px; }
figure img { display: block; width: 100%; height: auto; }
figcaption { font-size: 0.85rem; overflow-wrap: anywhere; }
"""

# Of a table with class "sortable", whose headings hold buttons: a cell sorts by its data-value, or else by its text,
# and one without a value comes last in both directions.
SORT_SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const compare = (a, b) => isNaN(a) || isNaN(b) ? a.localeCompare(b, "en", {numeric: true}) : a - b;
    const order = (a, b) => (a === "") - (b === "") || compare(a, b) * (up ? 1 : -1);
    body.append(...[...body.rows].sort((a, b) => order(key(a), key(b))));
  }));
}
"""


def escaped(value: object) -> str:
    """Text of a value, safe in HTML text and in quoted attributes."""
    return html.escape(str(value), quote=True)


def facts(values: Mapping[str, object]) -> str:
    """A list of names and values."""
    return "<dl>\n" + "\n".join(f"<dt>{escaped(k)}</dt><dd>{escaped(v)}</dd>" for k, v in values.items()) + "\n</dl>"


def document(title: str, body: str, *, style: str = "", script: str = "") -> str:
    """A whole page: `STYLE` and sortable tables, and what is given on top.

    Args:
        title: As text.
        body: As HTML.
        style: More CSS.
        script: More JavaScript.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escaped(title)}</title>\n<style>{STYLE}{style}</style>\n</head>\n<body>\n{body}\n"
        f"<script>{SORT_SCRIPT}{script}</script>\n</body>\n</html>\n"
    )
