"""The score that chooses the best checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ummkd_tf.data.cache import Cache
from ummkd_tf.data.cases import Case
from ummkd_tf.data.dataset import Dataset
from ummkd_tf.data.released_dataset import ReleasedDataset, read_example
from ummkd_tf.evaluation.inference import Predictor
from ummkd_tf.evaluation.metrics import dice_coefficient, summarize

Watch = Callable[[Case, NDArray], object]
"""Looks at a case and its predicted class map [rows, columns, slices], e.g. to draw it."""


def validation_score(
    dataset: Dataset,
    predictor: Predictor,
    factor: int = 1,
    *,
    cache: Cache | None = None,
    watch: Watch | None = None,
) -> Callable[[], dict[str, float]] | None:
    """What computes the score of a data set's validation part: `mean_dice`, or `pooled_dice` of released records.

    Args:
        dataset: Prepared cases or released records.
        predictor: Holds the model.
        factor: In-plane reduction of the model against the task's grid.
        cache: Where cases are kept as far as there is room; else they are read again at each validation.
        watch: Sees every case and its prediction; released records, which are loose slices, are not shown to it.

    Returns:
        The function, or None where there is no validation part.
    """
    names = dataset.task.class_names[1:]
    if isinstance(dataset, ReleasedDataset):
        records = {m: dataset.records("validation", m) for m in dataset.modalities}
        return (lambda: pooled_dice(predictor, records, factor, names)) if all(records.values()) else None
    cases = dataset.stored_cases("validation", factor=factor, cache=cache)
    return lambda: mean_dice(predictor, (case.load() for case in cases), names, watch)


def mean_dice(
    predictor: Predictor, cases: Iterable[Case], class_names: Sequence[str] = (), watch: Watch | None = None
) -> dict[str, float]:
    """Validation score: mean Dice over cases, then classes, then modalities, on the model's own grid.

    Args:
        predictor: Holds the model.
        cases: On the model's grid.
        class_names: Of the foreground, to tell each class's Dice too.
        watch: Sees every case and its prediction.

    Returns:
        "dice", "<modality>_dice" and "<modality>_<class>_dice", 0..1. A class that a case lacks in prediction and
        reference is left out; NaN where nothing is left.
    """
    by_modality: dict[str, list[list[float]]] = {}
    for case in cases:
        probabilities = predictor.probabilities(case.image, case.modality)
        predicted = probabilities.argmax(-1)
        if watch:
            watch(case, predicted)
        dice = [dice_coefficient(predicted == c, case.label == c) for c in range(1, probabilities.shape[-1])]
        by_modality.setdefault(case.modality, []).append(dice)
    by_class = {m: [summarize(column).mean for column in zip(*dice, strict=True)] for m, dice in by_modality.items()}
    return _scores(by_class, class_names)


def _scores(by_class: Mapping[str, Sequence[float]], class_names: Sequence[str]) -> dict[str, float]:
    """Means over classes, then modalities, and what they are made of."""
    means = {f"{m}_dice": summarize(dice).mean for m, dice in by_class.items()}
    each = {f"{m}_{name}_dice": d for m, dice in by_class.items() for name, d in zip(class_names, dice, strict=False)}
    return {"dice": summarize(means.values()).mean, **means, **each}


def pooled_dice(
    predictor: Predictor, records: Mapping[str, Sequence[Path]], factor: int = 1, class_names: Sequence[str] = ()
) -> dict[str, float]:
    """Dice of each class over all pixels of all records, mean over classes, then modalities.

    Our choice, because records are loose slices: most lack most classes, so a mean of slice scores would depend on how
    empty slices count.

    Args:
        predictor: Holds the 2D model.
        records: Record files by modality; together they show at least one class.
        factor: In-plane reduction of the model.
        class_names: Of the foreground, to tell each class's Dice too.

    Returns:
        As `mean_dice`; a class that is in no reference and no prediction is left out.
    """
    model, size = predictor.model, predictor.batch_size
    by_class = {}
    for modality, paths in records.items():
        common = np.zeros(model.num_classes)
        total = np.zeros(model.num_classes)
        for first in range(0, len(paths), size):
            batch = [read_example(path, factor, "background") for path in paths[first : first + size]]
            logits = model.predict_on_batch({modality: np.stack([image for image, _ in batch])})[modality]
            predicted, label = np.argmax(logits, axis=-1), np.stack([label for _, label in batch])
            for c in range(1, model.num_classes):
                common[c] += np.count_nonzero((predicted == c) & (label == c))
                total[c] += np.count_nonzero(predicted == c) + np.count_nonzero(label == c)
        with np.errstate(invalid="ignore"):
            by_class[modality] = (2 * common / total)[1:].tolist()
    return _scores(by_class, class_names)
