"""A table before it is rendered: blocks of rows of cells."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from ummkd_tf.evaluation.summary import MEASURES

UNDEFINED = "–"  # run, but without a value: every case lacks the class
MODALITIES = MappingProxyType({"ct": "CT", "mr": "MRI"})  # the paper's
_TASK_TITLES = MappingProxyType({"cardiac": "Cardiac", "abdomen": "Abdominal"})
_SHORT = MappingProxyType(
    {
        "lv_myocardium": "LVM",
        "left_atrium": "LAC",
        "left_ventricle": "LVC",
        "ascending_aorta": "AA",
        "liver": "Liver",
        "spleen": "Spleen",
        "right_kidney": "R-kdy",
        "left_kidney": "L-kdy",
    }
)
_PARAMETERS: Mapping[str, Callable[[int], str]] = MappingProxyType(
    {"cardiac": lambda n: f"{n / 1e6:.2f}M", "abdomen": lambda n: f"{n / 1e3:.0f}K"}
)


def modality_title(name: str) -> str:
    """A modality as tables write it: the paper's way, or else by its name."""
    return MODALITIES.get(name, name)


def task_title(name: str) -> str:
    """A task as tables write it."""
    return _TASK_TITLES.get(name, name)


def class_title(name: str) -> str:
    """A class as tables write it: the paper's abbreviation, or else its name."""
    return _SHORT.get(name, name.replace("_", " "))


def parameter_text(task: str, count: int) -> str:
    """A number of parameters as the paper rounds it; in full for other tasks."""
    return _PARAMETERS.get(task, "{:,}".format)(count)


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        text: As printed; "" where nothing was run.
        value: The number, in the unit printed.
        std: Standard deviation over cases.
        seed_std: Standard deviation over seeds; None for one seed.
    """

    text: str = ""
    value: float | None = None
    std: float | None = None
    seed_std: float | None = None


@dataclass(frozen=True)
class Row:
    """A row; `key` names it in paper_numbers.json, `decimals` are those of its numbers."""

    title: str
    key: str
    cells: tuple[Cell, ...]
    decimals: int = 1


@dataclass(frozen=True)
class RowGroup:
    """Rows below a title of their own; `paper` is the block of paper_numbers.json they are compared with."""

    title: str
    rows: tuple[Row, ...]
    paper: str | None = None


@dataclass(frozen=True)
class Table:
    """A table, not yet laid out.

    Attributes:
        name: Target.
        title: What it shows.
        groups: Columns that share a heading: (heading, number of columns).
        columns: Headings of the columns after the first, which names the row.
        blocks: The rows.
        provenance: Data, preset, steps, seeds, n, commit.
        notes: How the numbers came about, and what is missing.
        stub: Heading of the first column, as in the paper.
    """

    name: str
    title: str
    groups: tuple[tuple[str, int], ...]
    columns: tuple[str, ...]
    blocks: tuple[RowGroup, ...]
    provenance: str
    notes: tuple[str, ...]
    stub: str = "Methods"

    @property
    def caption(self) -> str:
        """Title, provenance and notes."""
        return " ".join([f"{self.title}.", self.provenance, *self.notes])

    @property
    def headings(self) -> list[str]:
        """Column headings with their group's."""
        groups = [heading for heading, span in self.groups for _ in range(span)]
        return [f"{group} {column}".strip() for group, column in zip(groups, self.columns, strict=True)]


def number_cell(means: Sequence[float], metric: str, stds: Sequence[float] | None = None) -> Cell:
    """Cell of one number per seed: their mean ± the root mean square of their deviations over cases.

    A seed has none (NaN) where prediction and reference lack the class in every case. The cell then says of how many
    seeds it is.
    """
    if not means:
        return Cell()
    there = [seed for seed, mean in enumerate(means) if not math.isnan(mean)]
    if not there:
        return Cell(UNDEFINED)
    _, _, factor, decimals = MEASURES[metric]
    n = len(there)
    value = factor * math.fsum(means[seed] for seed in there) / n
    seed_std = math.sqrt(math.fsum((factor * means[seed] - value) ** 2 for seed in there) / n) if n > 1 else None
    of_seeds = "" if n == len(means) else f" ({n} of {len(means)} seeds)"
    if stds is None:
        return Cell(f"{value:.{decimals}f}{of_seeds}", value, None, seed_std)
    std = factor * math.sqrt(math.fsum(stds[seed] ** 2 for seed in there) / n)
    return Cell(f"{value:.{decimals}f}±{std:.{decimals}f}{of_seeds}", value, std, seed_std)


def p_text(p: float) -> str:
    """A p-value as the paper prints it: 0.015, or 6e-4."""
    if p >= 0.001 or p == 0:
        return f"{p:.3f}" if p else "0"
    mantissa, exponent = f"{p:.0e}".split("e")
    return f"{mantissa}e{int(exponent)}"
