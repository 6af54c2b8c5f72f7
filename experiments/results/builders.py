"""One function for each table: which runs it takes and what its cells are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from experiments.plans import NORMALIZATIONS, TARGETS, RunSpec
from experiments.results.captions import MEANS, counts, evaluated_cases, incomplete, provenance, title
from experiments.results.paper import compared
from experiments.results.records import Record, Runs, seeds_and_folds
from experiments.results.significance import compare, holm, unit_values
from experiments.results.table import (
    MEASURES,
    MODALITIES,
    PARAMETERS,
    SHORT,
    TASK_TITLES,
    Block,
    Cell,
    Row,
    Table,
    number_cell,
    p_text,
)
from ummkd_tf.common.errors import InputError
from ummkd_tf.evaluation.summary import POOLED, summarize_cases
from ummkd_tf.settings import SETTINGS
from ummkd_tf.tasks import TASKS, Task

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
    runs = Runs(finished, *seeds_and_folds(finished, target, seeds, folds))
    table = _BUILDERS[target](target, runs)
    return compared(table) if compare else table


def _results(target: str, runs: Runs) -> Table:
    """Tables I and II."""
    specs = TARGETS[target].specs
    rows: list[_PlannedRow] = [(SETTINGS[s.setting].title, s.setting, s) for s in specs]
    if target == "table1":
        rows.insert(0, ("Payer et al. [38]", "payer", None))
    plan = [(MEASURES[metric][0], metric, paper, rows) for metric, paper in BLOCKS.items()]
    return _case_table(target, runs, plan, parameters=True)


def _normalizations(target: str, runs: Runs) -> Table:
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


def _claim(target: str, runs: Runs) -> Table:
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


def _case_table(target: str, runs: Runs, plan: Sequence[_PlannedBlock], *, parameters: bool = False) -> Table:
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
        title=title(target),
        groups=((("Param", 1),) if parameters else ()) + (*groups, ("Overall", 1)),
        columns=(("Scale",) if parameters else ()) + (*columns, "Mean"),
        blocks=tuple(blocks),
        provenance=provenance([record for found in used.values() for record in found]),
        notes=(MEANS, *counts(used), *incomplete(used, runs)),
    )


def _summaries(records: Iterable[Record], task: Task) -> list[dict[str, dict[str, Any]]]:
    """`evaluation.summarize_cases` of every seed, over the cases of all its folds."""
    by_seed: dict[int, dict[str, Any]] = {}
    for record in records:
        by_seed.setdefault(record.run["seed"], {}).update(evaluated_cases(record))
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


def _parameter_cell(records: Sequence[Record], task: Task) -> Cell:
    count = next((r.evaluation["parameters"] for r in records if r.evaluation), None)
    return Cell() if count is None else Cell(PARAMETERS[task.name](count), count)


def _over_seeds(block: Block, number: int) -> Block:
    def cell(of: Cell, decimals: int) -> Cell:
        return Cell() if of.seed_std is None else Cell(f"{of.seed_std:.{decimals}f}", of.seed_std)

    rows = tuple(replace(row, cells=tuple(cell(c, row.decimals) for c in row.cells)) for row in block.rows)
    return Block(f"{block.title}: standard deviation over {number} seeds", rows)


def _tests(target: str, runs: Runs) -> Table:
    """Tables III and IV."""
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
        title=title(target),
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
            *incomplete(used, runs),
        ),
        stub="Metrics",
    )


def _p_cell(p: float) -> Cell:
    return Cell() if math.isnan(p) else Cell(p_text(p), p)


def _count_cell(count: float) -> Cell:
    return Cell(str(count), count) if count else Cell()


def _outlier(target: str, runs: Runs) -> Table:
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
        title=title(target),
        groups=(("", len(specs)),),
        columns=tuple(SETTINGS[spec.setting].title for spec in specs),
        blocks=(Block(f"Outlier {', '.join(sorted(cases))}".strip(), rows, "outlier"),),
        provenance=provenance([record for found in used.values() for record in found], "outlier"),
        notes=(
            "Mean over the four organs and over the runs; Dice in %, distances in mm.",
            *counts(used, "outlier"),
            *incomplete(used, runs),
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


def _alignment(target: str, runs: Runs) -> Table:
    """What Fig. 7 and Fig. 8 claim, as numbers."""
    specs = TARGETS[target].specs
    used = {spec: runs.of(spec, "knowledge") for spec in specs}
    rows = tuple(Row(_alpha_title(spec), f"{spec.alpha:g}", _alignment_cells(used[spec])) for spec in specs)
    return Table(
        name=target,
        title=title(target),
        groups=(("KD loss (Eq. 4)", len(_MOMENTS)), ("Mean difference of q", len(_MOMENTS))),
        columns=tuple(_MOMENTS) * 2,
        blocks=(Block("On test cases", rows),),
        provenance=provenance([record for found in used.values() for record in found]),
        notes=(
            "Mean over runs; of q, the mean absolute difference of CT's and MR's entries; mean after: over all steps "
            "recorded after the start.",
            *_verdict(rows),
            *incomplete(used, runs),
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


_BUILDERS: Mapping[str, Callable[[str, Runs], Table]] = MappingProxyType(
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
