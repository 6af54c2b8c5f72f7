"""One function for each table: which runs it takes and what its cells are."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from experiments.plans import NORMALIZATIONS, TARGETS, RunSpec
from experiments.results.captions import (
    MEANS,
    OWN_MEANS,
    case_numbers,
    counts,
    incomplete,
    provenance,
    runs_missing,
    title,
)
from experiments.results.paper import compared
from experiments.results.records import Record, Runs, modalities_of, seeds_and_folds, unplanned
from experiments.results.significance import compare, holm, unit_values
from experiments.results.table import (
    MODALITIES,
    Cell,
    Row,
    RowGroup,
    Table,
    class_title,
    modality_title,
    number_cell,
    p_text,
    parameter_text,
    task_title,
)
from ummkd_tf.common.errors import InputError
from ummkd_tf.evaluation.metrics import summarize
from ummkd_tf.evaluation.summary import MEASURES, POOLED, summarize_cases
from ummkd_tf.runs.folder import config_of
from ummkd_tf.settings import SETTINGS
from ummkd_tf.tasks import TASKS, Task, differences

# Blocks of Tables I and II, and the paper's block that each is compared with.
BLOCKS = MappingProxyType(
    {"dice": "dice", POOLED: "distance", "hausdorff_mm": None, "hausdorff95_mm": None, "average_mm": None}
)
# Rows of Tables III, IV and VI: title, metric, key in paper_numbers.json. The pooled surface distance of a single case
# equals its average one (ASSD).
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
    plan = [(MEASURES[metric].title, metric, paper, rows) for metric, paper in BLOCKS.items()]
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
            f"{MEASURES[metric].title}, data {name}",
            metric,
            None,
            [(SETTINGS[s.setting].title, s.setting, s) for s in TARGETS[target].specs if s.data == name],
        )
        for metric in ("dice", POOLED)
        for name in data
    ]
    return _case_table(target, runs, plan)


def own_tables(records: Iterable[Record]) -> list[Table]:
    """Runs that are not the paper's, a row each and below them means over folds and seeds; a table for each task and
    modalities.

    Args:
        records: Runs; those planned for the paper's tables, not finished or not evaluated are ignored.
    """
    groups: list[list[Record]] = []
    for record in unplanned(r for r in records if r.finished and r.evaluation):
        fitting = (
            g for g in groups if g[0].modalities == record.modalities and not differences(g[0].task, record.task)
        )
        group = next(fitting, None)
        if group is None:
            groups.append([record])
        else:
            group.append(record)
    return [_own_table(f"own{number}", group) for number, group in enumerate(groups, start=1)]


def _own_table(name: str, records: Sequence[Record]) -> Table:
    def layout(used: Mapping[str, Sequence[Record]]) -> Table:
        rows = [
            (f"{text} ({SETTINGS[found[0].run['setting']['name']].title})", text, text) for text, found in used.items()
        ]
        plan = [(MEASURES[metric].title, metric, None, rows) for metric in BLOCKS]
        return _layout(name, f"Own runs, task {records[0].task.name}", records[0].task, used, plan, parameters=True)

    table = layout({record.name: [record] for record in records})
    repeated = _repeated(records)
    groups = [group for group in repeated if _tests_each_case_once(group)]
    for group in repeated:
        if group not in groups:
            names = ", ".join(record.name for record in group)
            why = "with one seed, they test a case twice, or with another seed other cases"
            table = replace(table, notes=(*table.notes, f"No mean of {names}: {why}."))
    if not groups:
        return table
    means = layout({_mean_title(group): group for group in groups})
    blocks = [replace(a, rows=(*a.rows, *b.rows)) for a, b in zip(table.blocks, means.blocks, strict=True)]
    return replace(table, blocks=tuple(blocks), notes=(*table.notes, OWN_MEANS))


def _repeated(records: Iterable[Record]) -> list[list[Record]]:
    """Groups of two or more runs that differ in fold and seed alone."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        run, evaluation = record.run, record.evaluation or {}
        protocol = [evaluation.get(key) for key in ("selection", "overlap", "largest_component")]
        settings = replace(config_of(run), seed=0).to_dict()
        alike = json.dumps([run.get("source"), run.get("scans"), protocol, settings, run["model"]], sort_keys=True)
        groups.setdefault(alike, []).append(record)
    return [group for group in groups.values() if len(group) > 1]


def _tests_each_case_once(records: Iterable[Record]) -> bool:
    """Whether the runs of each seed test the same cases, each once."""
    folds: dict[int, list[list[str]]] = {}
    for record in records:
        folds.setdefault(record.run["seed"], []).append(sorted(record.cases()))
    first, *others = (sorted(found) for found in folds.values())
    cases = [case_id for fold in first for case_id in fold]
    return len(cases) == len(set(cases)) and all(found == first for found in others)


def _mean_title(records: Sequence[Record]) -> str:
    """E.g. "mean of 3 folds, n = 4 CT + 4 MRI: a, b, c"."""
    seeds = len({record.run["seed"] for record in records})
    numbers = {"fold": len(records) // seeds, "seed": seeds}
    members = " × ".join(f"{number} {name}s" for name, number in numbers.items() if number > 1)
    return f"mean of {members}, {case_numbers(records)}: {', '.join(record.name for record in records)}"


_Key = RunSpec | str  # a planned run, or the name of another one
_PlannedRow = tuple[str, str, _Key | None]
_PlannedBlock = tuple[str, str, str | None, Sequence[_PlannedRow]]  # title, metric, paper's block, rows


def _case_table(target: str, runs: Runs, plan: Sequence[_PlannedBlock], *, parameters: bool = False) -> Table:
    """Rows of settings; columns of CT's and MR's classes and means."""
    specs = dict.fromkeys(key for _, _, _, rows in plan for _, _, key in rows if isinstance(key, RunSpec))
    used: dict[_Key, list[Record]] = {spec: runs.of(spec) for spec in specs}
    task = TASKS[TARGETS[target].specs[0].task]
    # A row over fewer cases or seeds than the others says so itself, because people compare rows.
    marks: dict[_Key | None, str] = {spec: f" ({text})" for spec, text in runs_missing(used, runs).items()}
    plan = [
        (text, metric, of_paper, [(row + marks.get(key, ""), paper, key) for row, paper, key in rows])
        for text, metric, of_paper, rows in plan
    ]
    table = _layout(target, title(target), task, used, plan, parameters=parameters)
    if len(runs.seeds) > 1:
        table = replace(table, blocks=(*table.blocks, *(_over_seeds(b, len(runs.seeds)) for b in table.blocks)))
    return table


def _layout(
    name: str,
    title: str,
    task: Task,
    used: Mapping[Any, Sequence[Record]],
    plan: Sequence[_PlannedBlock],
    *,
    parameters: bool,
) -> Table:
    """Columns of every modality's classes and means; without any run, the paper's modalities."""
    modalities = modalities_of(record for found in used.values() for record in found) or tuple(MODALITIES)
    columns = [column for _ in modalities for column in (*map(class_title, task.table_classes), "Mean")]
    groups = [(f"{task_title(task.name)} {modality_title(m)}", len(task.table_classes) + 1) for m in modalities]
    summaries = {key: _summaries(found, task, modalities) for key, found in used.items()}

    def cells(key: _Key | None, metric: str) -> tuple[Cell, ...]:
        numbers = _cells(summaries[key] if key else [], task, modalities, metric)
        return (_parameter_cell(used[key] if key else [], task), *numbers) if parameters else numbers

    blocks = [
        RowGroup(
            text,
            tuple(Row(row, paper, cells(key, metric), MEASURES[metric].decimals) for row, paper, key in rows),
            of_paper,
        )
        for text, metric, of_paper, rows in plan
    ]
    return Table(
        name=name,
        title=title,
        groups=((("Param", 1),) if parameters else ()) + (*groups, ("Overall", 1)),
        columns=(("Scale",) if parameters else ()) + (*columns, "Mean"),
        blocks=tuple(blocks),
        provenance=provenance([record for found in used.values() for record in found]),
        notes=(MEANS, *counts(used)),
    )


def _summaries(records: Iterable[Record], task: Task, modalities: Sequence[str]) -> list[dict[str, dict[str, Any]]]:
    """`evaluation.summarize_cases` of every seed, over the cases of all its folds."""
    by_seed: dict[int, dict[str, Any]] = {}
    for record in records:
        by_seed.setdefault(record.run["seed"], {}).update(record.cases())
    return [summarize_cases(cases, task, modalities) for cases in by_seed.values()]


def _cells(
    summaries: Sequence[Mapping[str, Any]], task: Task, modalities: Sequence[str], metric: str
) -> tuple[Cell, ...]:
    def cell(entry: Callable[[Mapping[str, Any]], Any]) -> Cell:
        entries = [entry(summary[metric]) for summary in summaries]
        if entries and isinstance(entries[0], Mapping):
            one_case = all(e.get("count") == 1 for e in entries)  # no spread between cases
            return number_cell([e["mean"] for e in entries], metric, None if one_case else [e["std"] for e in entries])
        return number_cell(entries, metric)

    names = (*task.table_classes, "mean")
    by_modality = [cell(lambda s, m=m, n=n: s[m][n]) for m in modalities for n in names]  # type: ignore[misc]
    return (*by_modality, cell(lambda s: s["overall"]))


def _parameter_cell(records: Sequence[Record], task: Task) -> Cell:
    count = next((r.evaluation["parameters"] for r in records if r.evaluation), None)
    return Cell() if count is None else Cell(parameter_text(task.name, count), count)


def _over_seeds(block: RowGroup, number: int) -> RowGroup:
    def cell(of: Cell, decimals: int) -> Cell:
        return Cell() if of.seed_std is None else Cell(f"{of.seed_std:.{decimals}f}", of.seed_std)

    rows = tuple(replace(row, cells=tuple(cell(c, row.decimals) for c in row.cells)) for row in block.rows)
    return RowGroup(f"{block.title}: standard deviation over {number} seeds", rows)


def _tests(target: str, runs: Runs) -> Table:
    """Tables III and IV."""
    used = {spec: runs.of(spec) for spec in TARGETS[target].specs}
    by_setting = {spec.setting: found for spec, found in used.items()}
    ours = by_setting.pop("ours")
    tests: dict[str, dict[str, list[float]]] = {"t_test": {}, "holm": {}, "wilcoxon": {}, "pairs": {}}
    for _, metric, _ in CASE_ROWS:
        reference = unit_values((r.cases() for r in ours), metric)
        comparisons = [
            compare(reference, unit_values((r.cases() for r in found), metric)) for found in by_setting.values()
        ]
        for name in ("t_test", "wilcoxon", "pairs"):
            tests[name][metric] = [getattr(c, name) for c in comparisons]
        tests["holm"][metric] = holm(tests["t_test"][metric])

    def block(title: str, name: str, paper: str | None = None) -> RowGroup:
        cell = _count_cell if name == "pairs" else _p_cell
        rows = [Row(text, key, tuple(cell(v) for v in tests[name][metric]), 3) for text, metric, key in CASE_ROWS]
        return RowGroup(title, tuple(rows), paper)

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
    cases = {case_id for found in used.values() for r in found for case_id in r.cases("outlier")}
    rows = tuple(
        Row(title, key, tuple(_outlier_cell(found, metric) for found in used.values()), MEASURES[metric].decimals)
        for title, metric, key in CASE_ROWS
    )
    return Table(
        name=target,
        title=title(target),
        groups=(("", len(specs)),),
        columns=tuple(SETTINGS[spec.setting].title for spec in specs),
        blocks=(RowGroup(f"Outlier {', '.join(sorted(cases))}".strip(), rows, "outlier"),),
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
        (case,) = record.cases("outlier").values()
        means.append(summarize(case["classes"][name][metric] for name in record.task.table_classes).mean)
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
        blocks=(RowGroup("On test cases", rows),),
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
    found = [
        f"α = {alpha} {'smaller' if end < without else 'not smaller'}"
        for alpha, end in ends.items()
        if end is not None and without is not None
    ]
    return [f"Difference of q at the end, beside that without KD: {', '.join(found)}."] if found else []


def _kd_loss(line: Mapping[str, Any]) -> float:
    return line["kd_loss"]


def _difference(line: Mapping[str, Any]) -> float:
    """Mean over the pairs of modalities."""
    matrices = [[value for row in q for value in row] for q in line["q"].values()]
    pairs = list(itertools.combinations(matrices, 2))
    total = math.fsum(abs(a - b) for pair in pairs for a, b in zip(*pair, strict=True))
    return total / (len(pairs) * len(matrices[0])) if pairs else math.nan


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
