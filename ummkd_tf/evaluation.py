"""Evaluation of whole cases and its summary (SPEC §6, Tables I and II)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ummkd_tf.metrics import case_metrics, dice_coefficient, pooled_surface_distance, summarize
from ummkd_tf.tasks import Task

if TYPE_CHECKING:
    from ummkd_tf.cases import Case, Dataset
    from ummkd_tf.inference import Predictor

METRICS = {
    # key in the JSON: (title, factor for printing, decimals)
    "dice": ("Dice (%)", 100.0, 1),
    "hausdorff_mm": ("Hausdorff distance (mm)", 1.0, 2),
    "hausdorff95_mm": ("95th percentile Hausdorff distance (mm)", 1.0, 2),
    "average_mm": ("Average symmetric surface distance (mm)", 1.0, 2),
    "surface_dice": ("Surface Dice at 1 voxel (%)", 100.0, 1),
}
POOLED = "pooled_mm"
POOLED_TITLE = "Paper-comparable (pooled surface distance, an assumption; mm)"


def mean_dice(predictor: Predictor, cases: Iterable[Case]) -> dict[str, float]:
    """Validation score: mean Dice over cases, then classes, then modalities, on the model's own grid.

    Returns:
        "dice" and "<modality>_dice", 0..1. A class that a case lacks in prediction and reference is left out; NaN where
        nothing is left.
    """
    by_modality: dict[str, list[list[float]]] = {}
    for case in cases:
        probabilities = predictor.probabilities(case.image, case.modality)
        predicted = probabilities.argmax(-1)
        dice = [dice_coefficient(predicted == c, case.label == c) for c in range(1, probabilities.shape[-1])]
        by_modality.setdefault(case.modality, []).append(dice)
    scores = {
        f"{m}_dice": summarize(summarize(column).mean for column in zip(*dice, strict=True)).mean
        for m, dice in by_modality.items()
    }
    return {"dice": summarize(scores.values()).mean, **scores}


def class_knowledge(predictor: Predictor, cases: Iterable[Case], temperature: float = 2.0) -> dict[str, Any]:
    """Eq. 2–4 over whole cases: how each modality confuses the classes (Fig. 7, Fig. 8).

    Log-probabilities stand for the logits: they differ by the same amount in all classes, which the softmax of Eq. 3
    does not see.

    Returns:
        {"kd_loss": Eq. 4, "q": modality → [C, C] list, rows q_c}.
    """
    from ummkd_tf import losses

    sums: dict[str, NDArray] = {}
    counts: dict[str, NDArray] = {}
    num_classes = predictor.model.num_classes
    for case in cases:
        logits = np.log(np.maximum(predictor.probabilities(case.image, case.modality), np.finfo(np.float32).tiny))
        one_hot = np.eye(num_classes)[case.label]
        shape = (num_classes, num_classes)
        sums[case.modality] = sums.get(case.modality, np.zeros(shape)) + np.einsum("xyzc,xyzk->ck", one_hot, logits)
        counts[case.modality] = counts.get(case.modality, 0) + one_hot.sum((0, 1, 2))
    # One voxel per class, which holds the class's mean logits; none where the class is absent.
    means = {m: (s / np.maximum(counts[m], 1)[:, np.newaxis]).astype(np.float32) for m, s in sums.items()}
    present = {m: np.diag(count > 0).astype(np.float32) for m, count in counts.items()}
    return {
        "kd_loss": float(losses.knowledge_distillation_loss(means, present, temperature)),
        "q": {m: losses.class_knowledge(means[m], present[m], temperature).numpy().tolist() for m in means},
    }


def evaluate(
    predict: Callable[[str], NDArray[np.float32]],
    dataset: Dataset,
    case_ids: Sequence[str],
    *,
    original_grid: bool = False,
    progress: Callable[[Sequence[str]], Iterable[str]] = iter,
) -> dict[str, dict[str, Any]]:
    """Metrics of every case.

    Args:
        predict: Case id → class probabilities [rows, columns, slices, classes] on the prepared grid.
        dataset: The data set.
        case_ids: Cases to evaluate.
        original_grid: Evaluate on the scans' own grids instead of the prepared one.
        progress: Wraps the loop over cases, e.g. with a progress bar.

    Returns:
        Case id → {"modality", "spacing_mm", "classes": class name → `metrics.ClassMetrics`}.
    """
    # Here, so that tables, which need the summary alone, start without the libraries that read scans.
    from ummkd_tf.cases import read_original_label
    from ummkd_tf.preprocessing import restore

    results = {}
    for case_id in progress(case_ids):
        case = dataset.case(case_id)
        probabilities = predict(case_id)
        if original_grid:
            predicted: NDArray = restore(probabilities, case.grid, case.original)
            reference, grid = read_original_label(dataset.path(case_id)), case.original
        else:
            predicted, reference, grid = probabilities.argmax(-1), case.label, case.grid
        results[case_id] = {
            "modality": case.modality,
            "spacing_mm": grid.spacing_mm,
            "classes": case_metrics(predicted, reference, grid.spacing_mm, dataset.task.class_names[1:]),
        }
    return results


def summarize_cases(
    results: Mapping[str, Mapping[str, Any]], task: Task, modalities: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Mean ± std over cases for every metric, modality and class, and the means the paper prints.

    "mean" of a modality is the mean of its classes' means; "overall" is the mean of the modalities' means.

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
            by_modality[modality] = {**columns, "mean": float(np.mean([c["mean"] for c in columns.values()]))}
        summary[metric] = {**by_modality, "overall": float(np.mean([m["mean"] for m in by_modality.values()]))}
    return summary
