"""What code and README cite in the docs is there. (`make docs` checks the links inside the site.)"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = [p for folder in ("ummkd_tf", "experiments", "data_prep", "tests") for p in (ROOT / folder).rglob("*.py")]
CITED = {
    citation: file.relative_to(ROOT).as_posix()
    for file in [*SOURCES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    for citation in re.findall(r"docs/\w+\.md(?:#[\w-]+)?", file.read_text(encoding="utf-8"))
}


def anchors(text: str) -> set[str]:
    """Explicit anchors, and those that GitHub and the site make of headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    explicit = re.findall(r'<a id="([\w-]+)">', text)
    return {*explicit, *(re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings)}


@pytest.mark.parametrize("citation", sorted(CITED))
def test_cited_place_exists(citation):
    name, _, anchor = citation.partition("#")
    assert (ROOT / name).is_file(), f"{citation}, cited in {CITED[citation]}"
    text = (ROOT / name).read_text(encoding="utf-8")
    assert not anchor or anchor in anchors(text), f"{citation}, cited in {CITED[citation]}"


def test_anchors_of_facts_are_unique():
    explicit = re.findall(r'<a id="([\w-]+)">', (ROOT / "docs/reproduction.md").read_text(encoding="utf-8"))
    assert len(explicit) > 20
    assert len(explicit) == len(set(explicit))


def test_every_page_is_in_the_menu():
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        assert page.relative_to(ROOT / "docs").as_posix() in menu
