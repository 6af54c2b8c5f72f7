"""The paper's printed numbers, and a table that shows ours beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from experiments.results.table import Cell, Row, RowGroup, Table
from ummkd_tf.output.text_tables import signed
from ummkd_tf.settings import SETTINGS


@cache
def paper_numbers() -> dict[str, Any]:
    """The paper's Tables I–VI as printed: table → {"columns", "blocks": block → row → cells}."""
    return json.loads(Path(__file__).with_name("paper_numbers.json").read_text(encoding="utf-8"))


def compared(table: Table) -> Table:
    """The table with the paper's numbers, and the differences from them, below each row that has some."""
    paper = paper_numbers().get(table.name, {"blocks": {}})["blocks"]
    blocks = [_compared_block(block, paper.get(block.paper, {})) for block in table.blocks]
    return replace(table, blocks=tuple(blocks))


def _compared_block(block: RowGroup, paper: Mapping[str, Sequence[str]]) -> RowGroup:
    rows = []
    for row in block.rows:
        rows.append(row)
        if row.key in paper and len(paper[row.key]) == len(row.cells):  # other modalities have no such numbers
            printed = [Cell(text) if text == "-" else Cell(text, _leading_number(text)) for text in paper[row.key]]
            # Not the row's title, because that may say how many of our runs there are.
            title = SETTINGS[row.key].title if row.key in SETTINGS else row.title
            rows.append(Row(f"{title}, paper", row.key, tuple(printed)))
            if any(cell.value is not None for cell in row.cells):
                differences = [_difference_cell(a, b, row.decimals) for a, b in zip(row.cells, printed, strict=True)]
                rows.append(Row(f"{title}, difference", row.key, tuple(differences)))
    return replace(block, rows=tuple(rows))


def _leading_number(text: str) -> float | None:
    """The mean of "88.5±3.1"; None for a parameter count, which is compared as text."""
    return None if text[-1] in "MK" else float(text.split("±")[0])


def _difference_cell(ours: Cell, printed: Cell, decimals: int) -> Cell:
    if ours.value is None or printed.value is None:
        return Cell()
    difference = ours.value - printed.value
    return Cell(signed(difference, decimals), difference)
