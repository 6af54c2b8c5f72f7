"""Metrics of many cases as "mean ± std", and the distance that can be compared with the paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ummkd_tf.evaluation.metrics import pooled_surface_distance, summarize
from ummkd_tf.tasks import Task


class Measure(NamedTuple):
    """How a measure is printed.

    Attributes:
        title: In full.
        short: For narrow columns.
        factor: From the stored number to the printed one.
        decimals: Of the printed one.
    """

    title: str
    short: str
    factor: float
    decimals: int

    def text(self, value: float) -> str:
        """A stored number as printed."""
        return f"{self.factor * value:.{self.decimals}f}"


METRICS = {
    # by its key in the JSON
    "dice": Measure("Dice (%)", "Dice (%)", 100.0, 1),
    "hausdorff_mm": Measure("Hausdorff distance (mm)", "HD (mm)", 1.0, 2),
    "hausdorff95_mm": Measure("95th percentile Hausdorff distance (mm)", "HD95 (mm)", 1.0, 2),
    "average_mm": Measure("Average symmetric surface distance (mm)", "ASSD (mm)", 1.0, 2),
    "surface_dice": Measure("Surface Dice at 1 voxel (%)", "Surface Dice (%)", 100.0, 1),
}
POOLED = "pooled_mm"
MEASURES = {
    **METRICS,
    POOLED: Measure("Paper-comparable (pooled surface distance, an assumption; mm)", "Pooled (mm)", 1.0, 2),
}
"""Those of a case, and the one that only all cases together have."""


def summarize_cases(
    results: Mapping[str, Mapping[str, Any]], task: Task, modalities: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Mean ± std over cases for every metric, modality and class, and the means the paper prints.

    "mean" of a modality is the mean of its classes' means; "overall" is the mean of the modalities' means. A class that
    no case of a modality holds, in reference or prediction, has no mean (NaN): the mean is that of the others.

    Returns:
        Metric → {modality → {class → {mean, std, count, excluded, missed}, "mean" → float}, "overall" → float}.
        "pooled_mm" has the surface distance pooled over all surface voxels of all cases.
    """
    summary: dict[str, dict[str, Any]] = {}
    for metric in (*METRICS, POOLED):
        by_modality: dict[str, Any] = {}
        for modality in modalities:
            cases = [r["classes"] for r in results.values() if r["modality"] == modality]
            columns: dict[str, Any] = {}
            for name in task.table_classes:
                records = [classes[name] for classes in cases]
                missed = sum(record["status"] in ("missed", "spurious") for record in records)
                if metric == POOLED:
                    mean, std, points = pooled_surface_distance(records)
                    columns[name] = {"mean": mean, "std": std, "points": points, "missed": missed}
                else:
                    columns[name] = {**vars(summarize(record[metric] for record in records)), "missed": missed}
            by_modality[modality] = {**columns, "mean": summarize(c["mean"] for c in columns.values()).mean}
        overall = summarize(m["mean"] for m in by_modality.values()).mean
        summary[metric] = {**by_modality, "overall": overall}
    return summary
