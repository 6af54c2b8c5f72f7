"""The paper's tables from recorded runs: Markdown, CSV or LaTeX, with the paper's numbers beside on request.

    python -m experiments.tables --runs_dir=runs/paper --table=2 --compare
    python -m experiments.tables --runs_dir=runs/paper --table=5 --format=latex

Only run.json, evaluation_*.json and knowledge.jsonl are read. How the numbers come about:

- A class's cell is mean ± standard deviation over test cases (population, as everywhere here). The folds of a
  cross-validation join, so that each case counts once. With several seeds the mean is the mean of the seeds' means and
  ± the root mean square of the seeds' deviations: it stays the spread between cases. The standard deviation of the
  seeds' means stands in blocks of its own.
- A modality's mean is the mean of its classes' means, and the overall mean that of both modalities' means. The paper's
  own cells obey both to rounding, one misprint apart (a test holds them to it).
- The paper's "Hausdorff distance" cannot be a maximum per case averaged over cases; its cells fit a distance pooled
  over all surface voxels. That assumption is the block the paper's distances are compared with; HD, HD95 and ASSD
  follow it.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from absl import flags

from experiments.plans import NORMALIZATIONS, TARGETS, RunSpec
from experiments.records import Record, load_records, select
from ummkd_tf.cli import run
from ummkd_tf.errors import InputError
from ummkd_tf.evaluation import METRICS, POOLED, POOLED_TITLE, summarize_cases
from ummkd_tf.reporting import markdown
from ummkd_tf.settings import SETTINGS
from ummkd_tf.tasks import TASKS, Task

UNDEFINED = "–"  # run, but without a value: every case lacks the class
MODALITIES = MappingProxyType({"ct": "CT", "mr": "MRI"})
TASK_TITLES = MappingProxyType({"cardiac": "Cardiac", "abdomen": "Abdominal"})
SHORT = MappingProxyType(
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
PARAMETERS: Mapping[str, Callable[[int], str]] = MappingProxyType(
    {"cardiac": lambda n: f"{n / 1e6:.2f}M", "abdomen": lambda n: f"{n / 1e3:.0f}K"}
)
MEASURES = MappingProxyType({**METRICS, POOLED: (POOLED_TITLE, 1.0, 2)})
# Blocks of Tables I and II, and the paper's block that each is compared with.
BLOCKS = MappingProxyType(
    {"dice": "dice", POOLED: "distance", "hausdorff_mm": None, "hausdorff95_mm": None, "average_mm": None}
)
# Rows of Tables III, IV and VI: title, metric, key in paper_numbers.json. The pooled surface distance of a single case
# is its average one.
CASE_ROWS = (
    ("Dice coefficient", "dice", "dice"),
    ("Surface distance (paper-comparable)", "average_mm", "distance"),
    ("Hausdorff distance (maximum)", "hausdorff_mm", "maximum"),
)
TABLES = tuple(name for name, target in TARGETS.items() if not target.is_figure)

_MEANS = (
    "Mean ± population standard deviation over test cases; a modality's mean is the mean of its classes' means, the "
    "overall mean that of both modalities' means."
)


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
class Block:
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
    blocks: tuple[Block, ...]
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


# --- building --------------------------------------------------------------------------------------------------------


def build(
    target: str,
    records: Iterable[Record],
    *,
    seeds: Sequence[int] | None = None,
    folds: Sequence[int] | None = None,
    compare: bool = False,
) -> Table:
    """The table of a target from recorded runs.

    Args:
        target: One of `TABLES`.
        records: Runs; those the target does not need are ignored.
        seeds: Seeds that belong in it; default: all that are there.
        folds: Folds that belong in it; default: all that are there.
        compare: Add the paper's value and the difference below each row the paper has.

    Raises:
        InputError: No such table.
    """
    if target not in TABLES:
        raise InputError(f"no table {target!r}: expected one of {', '.join(TABLES)}")
    finished = [record for record in records if record.finished]
    runs = _Runs(finished, *_seeds_and_folds(finished, target, seeds, folds))
    table = _BUILDERS[target](target, runs)
    return _compared(table) if compare else table


class _Runs:
    """The runs a table is made from."""

    def __init__(self, records: Sequence[Record], seeds: Sequence[int], folds: Sequence[int]) -> None:
        self.records, self.seeds, self.folds = records, seeds, folds

    def planned(self, spec: RunSpec) -> list[RunSpec]:
        return [replace(spec, seed=seed, fold=fold) for seed in self.seeds for fold in self.folds]

    def of(self, spec: RunSpec, kind: str = "evaluation") -> list[Record]:
        """What there is of a spec with all its seeds and folds, if evaluated in that way."""
        return [r for r in select(self.records, self.planned(spec)) if getattr(r, kind)]


def _seeds_and_folds(
    records: Iterable[Record], target: str, seeds: Sequence[int] | None, folds: Sequence[int] | None
) -> tuple[Sequence[int], Sequence[int]]:
    stems = {spec.name.rpartition("-seed")[0] for spec in TARGETS[target].specs}
    found = [
        (int(match[2]), int(match[3]))
        for record in records
        if (match := re.fullmatch(r"(.+)-seed(\d+)-fold(\d+)", record.name)) and match[1] in stems
    ]
    there = [sorted({numbers[i] for numbers in found}) or [0] for i in (0, 1)]
    return (there[0] if seeds is None else seeds), (there[1] if folds is None else folds)


def _results(target: str, runs: _Runs) -> Table:
    """Tables I and II."""
    specs = TARGETS[target].specs
    rows: list[_PlannedRow] = [(SETTINGS[s.setting].title, s.setting, s) for s in specs]
    if target == "table1":
        rows.insert(0, ("Payer et al. [38]", "payer", None))
    plan = [(MEASURES[metric][0], metric, paper, rows) for metric, paper in BLOCKS.items()]
    return _case_table(target, runs, plan, parameters=True)


def _normalizations(target: str, runs: _Runs) -> Table:
    """Table V."""
    plan = [
        (
            f"{norm.capitalize()} normalization",
            "dice",
            norm,
            [(SETTINGS[s.setting].title, s.setting, s) for s in TARGETS[target].specs if s.normalization == norm],
        )
        for norm in NORMALIZATIONS
    ]
    return _case_table(target, runs, plan)


def _claim(target: str, runs: _Runs) -> Table:
    """The settings on the unusual MR, and on the usual one."""
    data = dict.fromkeys(spec.data for spec in TARGETS[target].specs)
    plan = [
        (
            f"{MEASURES[metric][0]}, data {name}",
            metric,
            None,
            [(SETTINGS[s.setting].title, s.setting, s) for s in TARGETS[target].specs if s.data == name],
        )
        for metric in ("dice", POOLED)
        for name in data
    ]
    return _case_table(target, runs, plan)


_PlannedRow = tuple[str, str, RunSpec | None]
_PlannedBlock = tuple[str, str, str | None, Sequence[_PlannedRow]]  # title, metric, paper's block, rows


def _case_table(target: str, runs: _Runs, plan: Sequence[_PlannedBlock], *, parameters: bool = False) -> Table:
    """Rows of settings; columns of CT's and MR's classes and means."""
    task = TASKS[TARGETS[target].specs[0].task]
    columns = [column for _ in MODALITIES for column in (*(SHORT[c] for c in task.table_classes), "Mean")]
    groups = [(f"{TASK_TITLES[task.name]} {title}", len(task.table_classes) + 1) for title in MODALITIES.values()]
    used = {s: runs.of(s) for _, _, _, rows in plan for _, _, s in rows if s}
    summaries = {spec: _summaries(found, task) for spec, found in used.items()}

    def cells(spec: RunSpec | None, metric: str) -> tuple[Cell, ...]:
        numbers = _cells(summaries[spec] if spec else [], task, metric)
        return (_parameter_cell(used[spec] if spec else [], task), *numbers) if parameters else numbers

    blocks = [
        Block(title, tuple(Row(name, key, cells(spec, metric), MEASURES[metric][2]) for name, key, spec in rows), paper)
        for title, metric, paper, rows in plan
    ]
    if len(runs.seeds) > 1:
        blocks += [_over_seeds(block, len(runs.seeds)) for block in blocks]
    return Table(
        name=target,
        title=_title(target),
        groups=((("Param", 1),) if parameters else ()) + (*groups, ("Overall", 1)),
        columns=(("Scale",) if parameters else ()) + (*columns, "Mean"),
        blocks=tuple(blocks),
        provenance=provenance([record for found in used.values() for record in found]),
        notes=(_MEANS, *counts(used), *_incomplete(used, runs)),
    )


def _summaries(records: Iterable[Record], task: Task) -> list[dict[str, dict[str, Any]]]:
    """`evaluation.summarize_cases` of every seed, over the cases of all its folds."""
    by_seed: dict[int, dict[str, Any]] = {}
    for record in records:
        by_seed.setdefault(record.run["seed"], {}).update(_cases(record))
    return [summarize_cases(cases, task, tuple(MODALITIES)) for cases in by_seed.values()]


def _cells(summaries: Sequence[Mapping[str, Any]], task: Task, metric: str) -> tuple[Cell, ...]:
    def cell(entry: Callable[[Mapping[str, Any]], Any]) -> Cell:
        entries = [entry(summary[metric]) for summary in summaries]
        if entries and isinstance(entries[0], Mapping):
            return number_cell([e["mean"] for e in entries], metric, [e["std"] for e in entries])
        return number_cell(entries, metric)

    names = (*task.table_classes, "mean")
    by_modality = [cell(lambda s, m=m, n=n: s[m][n]) for m in MODALITIES for n in names]  # type: ignore[misc]
    return (*by_modality, cell(lambda s: s["overall"]))


def number_cell(means: Sequence[float], metric: str, stds: Sequence[float] | None = None) -> Cell:
    """Cell of one number per seed: their mean ± the root mean square of their deviations over cases."""
    if not means:
        return Cell()
    _, factor, decimals = MEASURES[metric]
    value = factor * math.fsum(means) / len(means)
    if math.isnan(value):
        return Cell(UNDEFINED)
    seed_std = math.sqrt(math.fsum((factor * m - value) ** 2 for m in means) / len(means)) if len(means) > 1 else None
    if stds is None:
        return Cell(f"{value:.{decimals}f}", value, None, seed_std)
    std = factor * math.sqrt(math.fsum(s**2 for s in stds) / len(stds))
    return Cell(f"{value:.{decimals}f}±{std:.{decimals}f}", value, std, seed_std)


def _parameter_cell(records: Sequence[Record], task: Task) -> Cell:
    count = next((r.evaluation["parameters"] for r in records if r.evaluation), None)
    return Cell() if count is None else Cell(PARAMETERS[task.name](count), count)


def _over_seeds(block: Block, number: int) -> Block:
    def cell(of: Cell, decimals: int) -> Cell:
        return Cell() if of.seed_std is None else Cell(f"{of.seed_std:.{decimals}f}", of.seed_std)

    rows = tuple(replace(row, cells=tuple(cell(c, row.decimals) for c in row.cells)) for row in block.rows)
    return Block(f"{block.title}: standard deviation over {number} seeds", rows)


def _tests(target: str, runs: _Runs) -> Table:
    """Tables III and IV."""
    from experiments.statistics import compare, holm, unit_values

    used = {spec: runs.of(spec) for spec in TARGETS[target].specs}
    by_setting = {spec.setting: found for spec, found in used.items()}
    ours = by_setting.pop("ours")
    tests: dict[str, dict[str, list[float]]] = {"t_test": {}, "holm": {}, "wilcoxon": {}, "pairs": {}}
    for _, metric, _ in CASE_ROWS:
        reference = unit_values(ours, metric)
        comparisons = [compare(reference, unit_values(found, metric)) for found in by_setting.values()]
        for name in ("t_test", "wilcoxon", "pairs"):
            tests[name][metric] = [getattr(c, name) for c in comparisons]
        tests["holm"][metric] = holm(tests["t_test"][metric])

    def block(title: str, name: str, paper: str | None = None) -> Block:
        cell = _count_cell if name == "pairs" else _p_cell
        rows = [Row(text, key, tuple(cell(v) for v in tests[name][metric]), 3) for text, metric, key in CASE_ROWS]
        return Block(title, tuple(rows), paper)

    return Table(
        name=target,
        title=_title(target),
        groups=(("", len(by_setting)),),
        columns=tuple(SETTINGS[name].title for name in by_setting),
        blocks=(
            block("p, two-sided paired t-test", "t_test", "p"),
            block("p, the same, Holm-corrected over the row", "holm"),
            block("p, Wilcoxon signed-rank", "wilcoxon"),
            block("n, pairs", "pairs"),
        ),
        provenance=provenance([record for found in used.values() for record in found]),
        notes=(
            "Unit: one structure of one test case, CT and MR together, averaged over seeds; pairs are the units that "
            "both settings have. "
            "The paper's distance is compared with the average surface distance of each case and structure.",
            *counts(used),
            *_incomplete(used, runs),
        ),
        stub="Metrics",
    )


def _p_cell(p: float) -> Cell:
    return Cell() if math.isnan(p) else Cell(p_text(p), p)


def _count_cell(count: float) -> Cell:
    return Cell(str(count), count) if count else Cell()


def p_text(p: float) -> str:
    """A p-value as the paper prints it: 0.015, or 6e-4."""
    if p >= 0.001 or p == 0:
        return f"{p:.3f}" if p else "0"
    mantissa, exponent = f"{p:.0e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def _outlier(target: str, runs: _Runs) -> Table:
    """Table VI: of the outlier case, the mean over its organs."""
    specs = TARGETS[target].specs
    used = {spec: runs.of(spec, "outlier") for spec in specs}
    cases = {case_id for found in used.values() for r in found for case_id in (r.outlier or {})["cases"]}
    rows = tuple(
        Row(title, key, tuple(_outlier_cell(found, metric) for found in used.values()), MEASURES[metric][2])
        for title, metric, key in CASE_ROWS
    )
    return Table(
        name=target,
        title=_title(target),
        groups=(("", len(specs)),),
        columns=tuple(SETTINGS[spec.setting].title for spec in specs),
        blocks=(Block(f"Outlier {', '.join(sorted(cases))}".strip(), rows, "outlier"),),
        provenance=provenance([record for found in used.values() for record in found], "outlier"),
        notes=(
            "Mean over the four organs and over the runs; Dice in %, distances in mm.",
            *counts(used, "outlier"),
            *_incomplete(used, runs),
        ),
        stub="Metrics",
    )


def _outlier_cell(records: Sequence[Record], metric: str) -> Cell:
    means = []
    for record in records:
        assert record.outlier is not None
        task = TASKS[record.run["task"]]
        (case,) = record.outlier["cases"].values()
        values = [case["classes"][name][metric] for name in task.table_classes]
        kept = [v for v in values if v is not None]
        means.append(math.fsum(kept) / len(kept) if kept else math.nan)
    return number_cell(means, metric)


# Parts of knowledge.jsonl: before the first step, every later one, and the last.
_MOMENTS = MappingProxyType({"start": slice(1), "mean after": slice(1, None), "end": slice(-1, None)})


def _alignment(target: str, runs: _Runs) -> Table:
    """What Fig. 7 and Fig. 8 claim, as numbers."""
    specs = TARGETS[target].specs
    used = {spec: runs.of(spec, "knowledge") for spec in specs}
    rows = tuple(Row(_alpha_title(spec), f"{spec.alpha:g}", _alignment_cells(used[spec])) for spec in specs)
    return Table(
        name=target,
        title=_title(target),
        groups=(("KD loss (Eq. 4)", len(_MOMENTS)), ("Mean difference of q", len(_MOMENTS))),
        columns=tuple(_MOMENTS) * 2,
        blocks=(Block("On test cases", rows),),
        provenance=provenance([record for found in used.values() for record in found]),
        notes=(
            "Mean over runs; of q, the mean absolute difference of CT's and MR's entries; mean after: over all steps "
            "recorded after the start.",
            *_verdict(rows),
            *_incomplete(used, runs),
        ),
    )


def _alpha_title(spec: RunSpec) -> str:
    return f"α = {spec.alpha:g} ({SETTINGS[spec.setting].title})"


def _alignment_cells(records: Sequence[Record]) -> tuple[Cell, ...]:
    def cell(value: Callable[[Mapping[str, Any]], float], moment: slice) -> Cell:
        values = [value(line) for record in records for line in record.knowledge[moment]]
        mean = math.fsum(values) / len(values) if values else math.nan
        return Cell() if math.isnan(mean) else Cell(f"{mean:.4f}", mean)

    return tuple(cell(value, moment) for value in (_kd_loss, _difference) for moment in _MOMENTS.values())


def _verdict(rows: Iterable[Row]) -> list[str]:
    """Whether the paper's claim holds: with KD, the matrices end nearer to each other than without."""
    ends = {row.key: row.cells[-1].value for row in rows}
    without = ends.pop("0")
    told = [
        f"α = {alpha} {'smaller' if end < without else 'not smaller'}"
        for alpha, end in ends.items()
        if end is not None and without is not None
    ]
    return [f"Difference of q at the end, beside that without KD: {', '.join(told)}."] if told else []


def _kd_loss(line: Mapping[str, Any]) -> float:
    return line["kd_loss"]


def _difference(line: Mapping[str, Any]) -> float:
    ct, mr = ([value for row in line["q"][m] for value in row] for m in MODALITIES)
    return math.fsum(abs(a - b) for a, b in zip(ct, mr, strict=True)) / len(ct)


_BUILDERS: Mapping[str, Callable[[str, _Runs], Table]] = MappingProxyType(
    {
        "table1": _results,
        "table2": _results,
        "table3": _tests,
        "table4": _tests,
        "table5": _normalizations,
        "table6": _outlier,
        "claim_anticorrelated": _claim,
        "claim_low_resolution": _claim,
        "claim_alignment": _alignment,
    }
)


# --- captions --------------------------------------------------------------------------------------------------------


def _title(target: str) -> str:
    number = target.removeprefix("table")
    roman = {"1": "I", "2": "II", "3": "III", "4": "IV", "5": "V", "6": "VI"}.get(number)
    return (f"Table {roman}. " if roman else "") + TARGETS[target].title


def is_phantom(record: Record) -> bool:
    """Whether a run's data were generated."""
    return record.run.get("source", "").startswith("phantom")


def provenance(records: Sequence[Record], kind: str = "evaluation") -> str:
    """Where the numbers come from; what differs between runs is listed, so that it shows.

    Args:
        records: The runs.
        kind: Which of their evaluations: "evaluation" (of the test part) or "outlier".
    """
    if not records:
        return "Nothing has been run."

    def each(values: Iterable[Any]) -> str:
        return " / ".join(sorted({str(value) for value in values}))

    sources = each(r.run.get("source") or "unknown" for r in records)
    seeds = sorted({r.run["seed"] for r in records})
    tested: dict[str, str] = {}
    for record in records:
        tested |= {case_id: case["modality"] for case_id, case in _cases(record, kind).items()}
    numbers = [f"{list(tested.values()).count(m)} {title}" for m, title in MODALITIES.items()]
    parts = [
        f"{'PHANTOM data' if any(map(is_phantom, records)) else 'Data'}: {sources}",
        f"split {each(r.run['split_name'] for r in records)}",
        f"preset {each(r.run['flags']['preset'] for r in records)}",
        f"{each(r.run['flags']['steps'] for r in records)} steps",
        f"seeds {', '.join(map(str, seeds))}",
        f"n = {' + '.join(numbers)} {'outlier' if kind == 'outlier' else 'test'} cases",
        f"commit {each(r.run['environment']['commit'] for r in records)}",
    ]
    return "; ".join(parts) + "."


def _cases(record: Record, kind: str = "evaluation") -> Mapping[str, Any]:
    return (getattr(record, kind) or {"cases": {}})["cases"]


def counts(used: Mapping[RunSpec, Sequence[Record]], kind: str = "evaluation") -> list[str]:
    """What was missed or left out, by spec; never silent."""
    texts = []
    for statuses, text in (
        (("missed", "spurious"), "Missed or invented (Dice 0, distance = image diagonal)"),
        (("absent",), "Absent in prediction and reference, left out"),
    ):
        found = []
        for spec, records in used.items():
            names = TASKS[spec.task].table_classes
            cases = [case["classes"] for record in records for case in _cases(record, kind).values()]
            of_classes = [classes[name]["status"] for classes in cases for name in names]
            if number := sum(status in statuses for status in of_classes):
                found.append(f"{_label(spec)} {number} of {len(of_classes)}")
        if found:
            texts.append(f"{text}: {', '.join(found)}.")
    return texts


def _incomplete(used: Mapping[RunSpec, Sequence[Record]], runs: _Runs) -> list[str]:
    planned = len(runs.seeds) * len(runs.folds)
    short = [f"{_label(spec)} {len(found)} of {planned}" for spec, found in used.items() if 0 < len(found) < planned]
    return [f"Incomplete, runs: {', '.join(short)}."] if short else []


def _label(spec: RunSpec) -> str:
    return spec.name.rpartition("-seed")[0]


# --- the paper's numbers ---------------------------------------------------------------------------------------------


@cache
def paper_numbers() -> dict[str, Any]:
    """The paper's Tables I–VI as printed: table → {"columns", "blocks": block → row → cells}."""
    return json.loads(Path(__file__).with_name("paper_numbers.json").read_text(encoding="utf-8"))


def _compared(table: Table) -> Table:
    paper = paper_numbers().get(table.name, {"blocks": {}})["blocks"]
    blocks = [_compared_block(block, paper.get(block.paper, {})) for block in table.blocks]
    return replace(table, blocks=tuple(blocks))


def _compared_block(block: Block, paper: Mapping[str, Sequence[str]]) -> Block:
    rows = []
    for row in block.rows:
        rows.append(row)
        if row.key in paper:
            printed = [Cell(text) if text == "-" else Cell(text, _leading_number(text)) for text in paper[row.key]]
            rows.append(Row(f"{row.title}, paper", row.key, tuple(printed)))
            if any(cell.value is not None for cell in row.cells):
                differences = [_difference_cell(a, b, row.decimals) for a, b in zip(row.cells, printed, strict=True)]
                rows.append(Row(f"{row.title}, difference", row.key, tuple(differences)))
    return replace(block, rows=tuple(rows))


def _leading_number(text: str) -> float | None:
    """The mean of "88.5±3.1"; None for a parameter count, which is compared as text."""
    return None if text[-1] in "MK" else float(text.split("±")[0])


def _difference_cell(ours: Cell, printed: Cell, decimals: int) -> Cell:
    if ours.value is None or printed.value is None:
        return Cell()
    difference = ours.value - printed.value
    return Cell(f"{difference:+.{decimals}f}", difference)


# --- rendering -------------------------------------------------------------------------------------------------------


def to_markdown(table: Table) -> str:
    """Markdown: title, one table a block, caption."""
    parts = [f"### {table.title}"]
    for block in table.blocks:
        rows = [[row.title, *(cell.text for cell in row.cells)] for row in block.rows]
        parts.append(markdown([block.title, *table.headings], rows))
    return "\n\n".join([*parts, " ".join([table.provenance, *table.notes])]) + "\n"


def to_csv(table: Table) -> str:
    """CSV: a line a row, the block first and the caption last, so that a line says on its own what it is."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["block", table.stub.lower(), *table.headings, "caption"])
    for block in table.blocks:
        for row in block.rows:
            writer.writerow([block.title, row.title, *(cell.text for cell in row.cells), table.caption])
    return stream.getvalue()


_LATEX = MappingProxyType(
    {
        **{c: f"\\{c}" for c in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
        "−": "$-$",
        "–": "--",
        "α": r"$\alpha$",
        "“": "``",
        "”": "''",
        "|": r"\textbar{}",
        "²": "$^2$",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
    }
)


def latex_text(text: str) -> str:
    """Text with LaTeX's special characters written out."""
    return "".join(_LATEX.get(c, c) for c in text)


def to_latex(table: Table) -> str:
    """A LaTeX table for `graphicx`, in the paper's layout: two header rows, then the blocks."""

    def line(cells: Iterable[str]) -> str:
        return " & ".join(cells) + r" \\"

    width = len(table.columns) + 1
    groups = [rf"\multicolumn{{{span}}}{{c}}{{{latex_text(heading)}}}" for heading, span in table.groups]
    columns = [latex_text(column) for column in table.columns]
    grouped = any(heading for heading, _ in table.groups)
    header = [line([table.stub, *groups]), line(["", *columns])] if grouped else [line([table.stub, *columns])]
    body = []
    for block in table.blocks:
        body += [r"\hline", rf"\multicolumn{{{width}}}{{c}}{{{latex_text(block.title)}}} \\", r"\hline"]
        body += [line([latex_text(row.title), *(latex_text(cell.text) for cell in row.cells)]) for row in block.rows]
    return "\n".join(
        [
            r"\begin{table*}",
            rf"\caption{{{latex_text(table.caption)}}}",
            rf"\label{{tab:{table.name.replace('_', '-')}}}",
            r"\resizebox{\textwidth}{!}{%",
            rf"\begin{{tabular}}{{l{'c' * len(table.columns)}}}",
            r"\hline",
            *header,
            *body,
            r"\hline",
            r"\end{tabular}}",
            r"\end{table*}",
            "",
        ]
    )


FORMATS: Mapping[str, tuple[str, Callable[[Table], str]]] = MappingProxyType(
    {"md": (".md", to_markdown), "csv": (".csv", to_csv), "latex": (".tex", to_latex)}
)


# --- program ---------------------------------------------------------------------------------------------------------


def _define_flags() -> None:
    flags.DEFINE_string("runs_dir", "runs", "Folder of runs, as experiments.reproduce writes it.")
    flags.DEFINE_string("table", None, f"1 to 6, or one of {', '.join(TABLES)}.", required=True)
    flags.DEFINE_enum("format", "md", list(FORMATS), "Markdown, CSV or LaTeX.")
    flags.DEFINE_bool("compare", False, "Add the paper's values and the differences.")
    flags.DEFINE_list("seeds", None, "Seeds that belong in it; default: all that are there.")
    flags.DEFINE_list("folds", None, "Folds that belong in it; default: all that are there.")


def whole_numbers(flag: str, texts: Sequence[str] | None) -> list[int] | None:
    """Numbers of a list flag.

    Raises:
        InputError: One is none.
    """
    if texts is None:
        return None
    if not texts or not all(text.strip().isdecimal() for text in texts):
        raise InputError(f"--{flag}={','.join(texts)}: expected whole numbers, e.g. --{flag}=0,1,2")
    return [int(text) for text in texts]


def main(_: list[str]) -> None:
    """Program."""
    values = flags.FLAGS
    name = f"table{values.table}" if values.table.isdecimal() else values.table
    if not Path(values.runs_dir).is_dir():
        raise InputError(f"--runs_dir={values.runs_dir}: no such folder: expected one that experiments.reproduce wrote")
    table = build(
        name,
        load_records(values.runs_dir),
        seeds=whole_numbers("seeds", values.seeds),
        folds=whole_numbers("folds", values.folds),
        compare=values.compare,
    )
    print(FORMATS[values.format][1](table), end="")


if __name__ == "__main__":
    _define_flags()
    run(main)
