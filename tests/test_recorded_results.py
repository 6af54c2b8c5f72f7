"""The recorded runs in docs/results are what the committed tables print, to the letter."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.results import builders, rendering
from experiments.results.records import load_records

RESULTS = Path(__file__).parents[1] / "docs" / "results"


@pytest.mark.parametrize(("target", "compare"), [("table2", True), ("table4", False)])
def test_committed_tables_are_those_of_the_recorded_runs(target, compare):
    """As `make recorded` prints them."""
    table = builders.build(target, load_records(RESULTS / "table2"), compare=compare)
    assert (RESULTS / f"{target}.md").read_text(encoding="utf-8") == rendering.to_markdown(table)
    # Neither is the paper's, and who reads the table alone must see it.
    assert "recipe practice; precision mixed_bfloat16; 1500 steps" in table.caption


def test_the_dice_in_the_text_are_the_table_s():
    rows = (RESULTS / "table2.md").read_text(encoding="utf-8").split("\n\n")[1].splitlines()
    text = (RESULTS.parent / "results.md").read_text(encoding="utf-8")
    assert len(rows) > 2 + 7
    for row in rows:
        assert row in text


def test_recorded_runs_name_no_folder_of_the_machine_they_ran_on():
    for path in (RESULTS / "table2").glob("*/*.json*"):
        assert '"/' not in path.read_text(encoding="utf-8").replace('"/physical_device:', ""), path
