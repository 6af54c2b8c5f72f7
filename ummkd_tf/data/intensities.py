"""What a modality's prepared images look like, so that prediction can warn of a scan that looks otherwise.

Of each training image, percentiles of its intensities are kept, scaled so that 0 is the darkest and 1 the brightest
value that the task's range keeps. For CT this is a linear scale of Hounsfield units; for MR it does not depend on the
scanner's scale.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ummkd_tf.data.dataset import Dataset

PERCENTILES = tuple(range(5, 100, 5))
MIN_CASES = 3  # of each modality: fewer do not tell how much they differ
MAX_CASES = 50  # of each modality: more tell nothing new, and each has to be read
# Our choices, measured on BTCV and CHAOS (docs/reproduction.md#intensities).
_MARGIN = 1.5  # times the distance of the training case that is furthest from the others
_LEAST = 0.05  # of the intensity range; a smaller distance can be noise, or come from too few training cases


def profile(image: NDArray[np.float32]) -> NDArray[np.floating]:
    """Percentiles of an image of any shape, as values from its darkest, 0, to its brightest, 1: [len(PERCENTILES)]."""
    low, high = float(image.min()), float(image.max())
    return (np.percentile(image, PERCENTILES) - low) / ((high - low) or 1.0)


def training_intensities(dataset: Dataset) -> dict[str, dict[str, Any]]:
    """By modality: the training cases' median profile, and the largest distance of one from the median of the others.

    Left out are the authors' records, whose images are patches, and a modality with fewer than three cases.

    Raises:
        InputError: A case that cannot be read.
    """
    result: dict[str, dict[str, Any]] = {}
    for m in dataset.modalities if dataset.unit == "cases" else ():
        ids = dataset.ids("train", m)
        if len(ids) > MAX_CASES:
            ids = [ids[n * len(ids) // MAX_CASES] for n in range(MAX_CASES)]
        if len(ids) >= MIN_CASES:
            profiles = np.array([profile(dataset.case(case_id).image) for case_id in ids])
            others = (np.median(np.delete(profiles, n, axis=0), axis=0) for n in range(len(profiles)))
            spread = max(_distance(one, median) for one, median in zip(profiles, others, strict=True))
            median = np.median(profiles, axis=0)
            result[m] = {"cases": len(ids), "profile": median.round(4).tolist(), "spread": round(spread, 4)}
    return result


def check_intensities(content: Any) -> None:
    """Checks what a file holds of `training_intensities`.

    Raises:
        ValueError, TypeError, …: Not the content of `training_intensities`; readers of such files turn the error into
        one line.
    """
    for m, known in content.items():
        values = [*known["profile"], known["spread"]]
        if len(values) != len(PERCENTILES) + 1 or not all(map(math.isfinite, values)):
            raise ValueError(f"damaged intensities of {m}")


def unlike(image: NDArray[np.float32], known: Mapping[str, Any] | None) -> bool:
    """Whether a prepared image's intensities are unlike those of its modality in training; False where none are known.

    Args:
        image: A prepared image, as `Prepared.image`.
        known: Of its modality, as `training_intensities`.
    """
    if not known:
        return False
    return _distance(profile(image), known["profile"]) > max(_MARGIN * known["spread"], _LEAST)


def _distance(one: Any, other: Any) -> float:
    """Largest difference between two profiles at any percentile."""
    return float(np.abs(np.asarray(one) - np.asarray(other)).max())
