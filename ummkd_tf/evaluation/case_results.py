"""Evaluation of whole cases and its summary (Tables I and II; docs/reproduction.md#evaluation)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ummkd_tf.data.cases import Case
from ummkd_tf.data.dataset import Dataset
from ummkd_tf.evaluation.inference import Predictor, largest_components
from ummkd_tf.evaluation.metrics import case_metrics
from ummkd_tf.model import losses
from ummkd_tf.scans.geometry import Grid, Volume, resample, straightened
from ummkd_tf.scans.preprocessing import restore

_LOG = logging.getLogger(__name__)


def knowledge_of_cases(predictor: Predictor, cases: Iterable[Case], temperature: float = 2.0) -> dict[str, Any]:
    """Eq. 2–4 over whole cases: how each modality confuses the classes (Fig. 7, Fig. 8).

    Log-probabilities stand for the logits: they differ by the same amount in all classes, which the softmax of Eq. 3
    does not see.

    Returns:
        {"kd_loss": Eq. 4, "q": modality → [C, C] list, rows q_c}.
    """
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


def classes_on(probabilities: NDArray[np.float32], prepared: Grid, grid: Grid) -> NDArray:
    """Class map on a scan's prepared grid, or on another grid, from class probabilities on the prepared one."""
    return probabilities.argmax(-1) if grid is prepared else restore(probabilities, prepared, grid)


def evaluate(
    segment: Callable[[Case, Grid], NDArray],
    dataset: Dataset,
    case_ids: Sequence[str],
    *,
    original_grid: bool = False,
    largest_component: bool = False,
    progress: Callable[[Sequence[str]], Iterable[str]] = iter,
) -> dict[str, dict[str, Any]]:
    """Metrics of every case.

    Args:
        segment: Case, grid → class map on that grid: the case's own, or one over its `original`. See `classes_on`.
        dataset: The data set.
        case_ids: Cases to evaluate.
        original_grid: Evaluate on the scans' own grids instead of the prepared one. On a tilted scan, the upright grid
            that covers it stands for its own (and a note says so), since surface distances need perpendicular axes.
        largest_component: Keep the largest connected part of each predicted class alone; the authors' protocol
            does not.
        progress: Wraps the loop over cases, e.g. with a progress bar.

    Returns:
        Case id → {"modality", "spacing_mm", "classes": class name → `metrics.ClassMetrics`}.
    """
    results = {}
    for case_id in progress(case_ids):
        case = dataset.case(case_id, original_label=original_grid)
        if original_grid:
            assert case.original_label is not None
            reference, grid = case.original_label, case.original
            if grid.is_tilted:
                _LOG.warning("%s: the scan's slices are tilted; it is evaluated on an upright grid over it", case_id)
                grid = straightened(case.original)
                reference = resample(Volume(reference, case.original.affine), grid, "nearest")
        else:
            reference, grid = case.label, case.grid
        predicted = segment(case, grid)
        if largest_component:
            predicted = largest_components(predicted)
        results[case_id] = {
            "modality": case.modality,
            "spacing_mm": grid.spacing_mm,
            "classes": case_metrics(predicted, reference, grid.spacing_mm, dataset.task.class_names[1:]),
        }
    return results
