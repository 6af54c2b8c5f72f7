"""Text tables from evaluation records, in the shape of the paper's Table I and II."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ummkd_tf.evaluation.summary import MEASURES
from ummkd_tf.tasks import Task


def evaluation_table(evaluation: Mapping[str, Any], task: Task) -> str:
    """Markdown table of one run: a row per metric; per modality the classes and their mean, then the overall mean.

    Args:
        evaluation: Content of an evaluation JSON.
        task: Gives the order of columns.
    """
    modalities = evaluation["modalities"]
    header = ["mean ± std over cases (pooled: over surface points)"]
    for m in modalities:
        header += [f"{m} {name.replace('_', ' ')}" for name in task.table_classes] + [f"{m} mean"]
    rows = []
    for metric, (title, factor, decimals) in MEASURES.items():
        summary = evaluation["summary"][metric]
        row = [title]
        for m in modalities:
            row += [_cell(summary[m][name], factor, decimals) for name in task.table_classes]
            row.append(_number(summary[m]["mean"], factor, decimals))
        rows.append([*row, _number(summary["overall"], factor, decimals)])
    return markdown([*header, "overall"], rows)


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
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    rule = ["-" * w if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]

    def line(cells: Sequence[str]) -> str:
        aligned = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return "| " + " | ".join(aligned) + " |"

    return "\n".join([line(header), line(rule), *(line(row) for row in rows)])


def _cell(entry: Mapping[str, Any], factor: float, decimals: int) -> str:
    if entry["mean"] is None or entry["mean"] != entry["mean"]:
        return "–"
    mean = _number(entry["mean"], factor, decimals)
    # With one case there is no spread between cases. The pooled distance has a spread between surface points, and no
    # count of cases.
    return mean if entry.get("count") == 1 else f"{mean} ± {factor * entry['std']:.{decimals}f}"


def _number(value: float | None, factor: float, decimals: int) -> str:
    return "–" if value is None or value != value else f"{factor * value:.{decimals}f}"
