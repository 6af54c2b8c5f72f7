"""Text tables from evaluation records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ummkd_tf.evaluation.summary import MEASURES, Measure
from ummkd_tf.tasks import Task

_LEGEND = """\
Mean ± standard deviation over cases. HD: Hausdorff distance; HD95: its 95th percentile; ASSD: average symmetric
surface distance; Surface Dice: within 1 voxel. Pooled: surface distance over the surface points of all cases together,
and ± over these points; the paper's distance seems to be this one."""


def evaluation_table(evaluation: Mapping[str, Any], task: Task) -> str:
    """Markdown table of one run, narrow enough for a terminal, and its legend.

    A column per measure; rows are the classes of each modality and their mean, then the overall mean.

    Args:
        evaluation: Content of an evaluation JSON.
        task: Gives the order of classes.
    """
    columns = []
    for metric, measure in MEASURES.items():
        summary, cells = evaluation["summary"][metric], []
        for m in evaluation["modalities"]:
            cells += [_cell(summary[m][name], measure) for name in task.table_classes]
            cells.append(_number(summary[m]["mean"], measure))
        columns.append([*cells, _number(summary["overall"], measure)])
    classes = [*(name.replace("_", " ") for name in task.table_classes), "mean"]
    titles = [*(f"{m} {name}" for m in evaluation["modalities"] for name in classes), "overall mean"]
    header = ["", *(measure.short for measure in MEASURES.values())]
    return f"{markdown(header, list(zip(titles, *columns, strict=True)))}\n\n{_LEGEND}"


def counts_line(evaluation: Mapping[str, Any], task: Task) -> str:
    """The number of cases of each modality, and everything that was missed, invented or left out."""
    dice = evaluation["summary"]["dice"]
    parts = [
        f"{m}: n = {sum(r['modality'] == m for r in evaluation['cases'].values())}" for m in evaluation["modalities"]
    ]
    for m in evaluation["modalities"]:
        nowhere = [name for name in task.table_classes if not dice[m][name]["count"]]
        if nowhere:
            others = len(task.table_classes) - len(nowhere)
            parts.append(f"{m} mean over the other {others} classes, because no case has {', '.join(nowhere)}")
        for name in task.table_classes:
            entry = dice[m][name]
            if entry["missed"]:
                parts.append(f"{m} {name} missed or invented in {entry['missed']}")
            if entry["excluded"]:
                parts.append(f"{m} {name} absent in {entry['excluded']} (left out)")
    return "; ".join(parts)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned Markdown table; the first column is text, the others are numbers."""
    header, *rows = [[cell.replace("|", r"\|") for cell in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    rule = ["-" * w if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]

    def line(cells: Sequence[str]) -> str:
        aligned = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return "| " + " | ".join(aligned) + " |"

    return "\n".join([line(header), line(rule), *(line(row) for row in rows)])


def signed(value: float, decimals: int) -> str:
    """A difference with its sign; what rounds to nothing is +0.0, never -0.0."""
    return f"{round(value, decimals) + 0.0:+.{decimals}f}"


def _cell(entry: Mapping[str, Any], measure: Measure) -> str:
    mean = _number(entry["mean"], measure)
    # With one case there is no spread between cases. The pooled distance has a spread between surface points, and no
    # count of cases.
    return mean if mean == "–" or entry.get("count") == 1 else f"{mean} ± {_number(entry['std'], measure)}"


def _number(value: float | None, measure: Measure) -> str:
    return "–" if value is None or value != value else measure.text(value)
