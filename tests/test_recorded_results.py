"""The recorded runs in docs/results are what the committed tables print, to the letter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from experiments.results import builders, rendering
from experiments.results.records import load_records

RESULTS = Path(__file__).parents[1] / "docs" / "results"


@pytest.mark.parametrize(("target", "compare"), [("table2", True), ("table4", False)])
def test_committed_tables_are_those_of_the_recorded_runs(target, compare):
    """As `make recorded` prints them."""
    table = builders.build(target, load_records(RESULTS / "table2"), folds=[0], compare=compare)
    assert (RESULTS / f"{target}.md").read_text(encoding="utf-8") == rendering.to_markdown(table)
    # The paper trained otherwise, and the table itself must say so.
    assert "recipe practice; precision mixed_bfloat16; 1500 steps" in table.caption


def summary(folds: Sequence[int]) -> list[str]:
    """Rows of the short tables in docs/results.md: mean Dice of CT, MRI and both, here and in the paper, by setting.

    Of several folds, rows of which one is missing are left out.
    """
    table = rendering.to_markdown(builders.build("table2", load_records(RESULTS / "table2"), folds=folds, compare=True))
    header, _, *rows = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.split("\n\n")[1].splitlines()
    )
    means = [number for number, name in enumerate(header) if name.endswith("Mean")]
    assert len(means) == 3
    means_of = {row[0]: [row[number] for number in means] for row in rows}
    settings = [name for name in means_of if f"{name}, paper" in means_of]
    settings = [name for name in settings if len(folds) == 1 or any(means_of[name])]
    return [f"| {' | '.join([name, *means_of[name], *means_of[f'{name}, paper']])} |" for name in settings]


@pytest.mark.parametrize(("folds", "rows"), [([0], 7), ([0, 1], 3)])
def test_the_means_in_the_text_are_the_table_s(folds, rows):
    text = (RESULTS.parent / "results.md").read_text(encoding="utf-8")
    assert len(summary(folds)) == rows and "\n".join(summary(folds)) in text


def test_recorded_runs_name_no_folder_of_the_machine_they_ran_on():
    for path in (RESULTS / "table2").glob("*/*.json*"):
        assert '"/' not in path.read_text(encoding="utf-8").replace('"/physical_device:', ""), path
