"""Part `evaluation`: all metrics of one case with four organs, against MedPy and DeepMind's surface-distance."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from experiments.benchmark.results import OURS, Aim, Measurement, Part, ratio_aim
from experiments.benchmark.timing import interleaved, timed
from ummkd_tf.evaluation.metrics import ClassMetrics, case_metrics

ORGANS = ("first", "second", "third", "fourth")
MEDPY, DEEPMIND = "MedPy", "surface-distance"
PACKAGES = {MEDPY: "medpy", DEEPMIND: "surface_distance"}
TOLERANCE_MM = 1e-9
# (centre, half-axes) of each organ, as shares of the volume
_ORGANS = (
    ((0.45, 0.33, 0.50), (0.19, 0.17, 0.30)),
    ((0.60, 0.60, 0.40), (0.08, 0.07, 0.16)),
    ((0.60, 0.80, 0.42), (0.07, 0.07, 0.18)),
    ((0.35, 0.76, 0.60), (0.10, 0.09, 0.15)),
)


def phantom(shape: Sequence[int]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """(prediction, reference): four organs with uneven borders, and a prediction that is a little off."""
    random = np.random.default_rng(0)
    axes = np.meshgrid(*((np.arange(n) + 0.5) / n for n in shape), indexing="ij", sparse=True)
    maps = []
    for shift in (0.012, 0.0):
        noise = ndimage.zoom(random.standard_normal([max(2, n // 16) for n in shape]), 16, order=1)
        noise = np.pad(noise, [(0, max(0, n - m)) for n, m in zip(shape, noise.shape, strict=True)], mode="edge")
        noise = noise[tuple(slice(n) for n in shape)]
        label = np.zeros(shape, np.uint8)
        for number, (center, half) in enumerate(_ORGANS, start=1):
            radius = sum(((x - c - shift) / h) ** 2 for x, c, h in zip(axes, center, half, strict=True))
            label[radius + 0.1 * noise < 1] = number
        maps.append(label)
    return maps[0], maps[1]


def measure(shape: Sequence[int], spacing_mm: Sequence[float], rounds: int) -> Part:
    """Times, and whether the distances agree.

    Args:
        shape: Of the volume.
        spacing_mm: Voxel size along each axis.
        rounds: How often.
    """
    prediction, reference = phantom(shape)
    spacing = tuple(spacing_mm)
    runs: dict[str, Callable[[], object]] = {
        OURS: lambda: case_metrics(prediction, reference, spacing, ORGANS),
        MEDPY: lambda: medpy_metrics(prediction, reference, spacing),
        DEEPMIND: lambda: deepmind_metrics(prediction, reference, spacing),
    }
    missing = [name for name, package in PACKAGES.items() if importlib.util.find_spec(package) is None]
    for name in missing:
        del runs[name]
    timings = interleaved({name: timed(run) for name, run in runs.items()}, rounds)
    case = "×".join(map(str, shape)) + f", {len(ORGANS)} organs"
    rows = [Measurement(case, name, timing) for name, timing in timings.items()]
    notes = [f"{name} is left out: not installed; pip install -e .[benchmark]" for name in missing]
    notes.append(
        "Ours and surface-distance give Dice, HD, HD95, ASSD and surface Dice; MedPy has no surface Dice. Surfaces of "
        "surface-distance are patches between voxels and not voxels, so that its distances differ by definition."
    )
    aims = [
        ratio_aim(
            "metrics at least 5× as fast as MedPy",
            {case: (timings[MEDPY].median, timings[OURS].median)} if MEDPY in timings else {},
            5.0,
        )
    ]
    if MEDPY in timings:
        aims.append(agreement(prediction, reference, spacing))
    return Part("evaluation", "Evaluation", rows, aims, notes)


def agreement(prediction: NDArray[np.uint8], reference: NDArray[np.uint8], spacing_mm: Sequence[float]) -> Aim:
    """Whether HD, HD95 and ASSD equal MedPy's to `TOLERANCE_MM`, and Dice too."""
    ours = case_metrics(prediction, reference, spacing_mm, ORGANS)
    theirs = medpy_metrics(prediction, reference, spacing_mm)
    keys: Sequence[str] = ("dice", "hausdorff_mm", "hausdorff95_mm", "average_mm")

    def difference(key: str) -> float:
        def value(metrics: ClassMetrics) -> float:
            return float(dict(metrics)[key])  # type: ignore[arg-type]

        return max(abs(value(ours[organ]) - theirs[organ][key]) for organ in ORGANS)

    differences = {key: difference(key) for key in keys}
    measured = "largest difference " + ", ".join(f"{key} {value:.1g}" for key, value in differences.items())
    text = f"distances and Dice equal MedPy's to {TOLERANCE_MM:g}"
    return Aim(text, measured, max(differences.values()) <= TOLERANCE_MM)


def medpy_metrics(
    prediction: NDArray[np.uint8], reference: NDArray[np.uint8], spacing_mm: Sequence[float]
) -> dict[str, dict[str, float]]:
    """As a script with MedPy does it: organ by organ, metric by metric."""
    from medpy.metric import binary  # here, because it is optional

    result = {}
    for number, organ in enumerate(ORGANS, start=1):
        masks = prediction == number, reference == number
        result[organ] = {
            "dice": binary.dc(*masks),
            "hausdorff_mm": binary.hd(*masks, voxelspacing=spacing_mm),
            "hausdorff95_mm": binary.hd95(*masks, voxelspacing=spacing_mm),
            "average_mm": binary.assd(*masks, voxelspacing=spacing_mm),
        }
    return result


def deepmind_metrics(
    prediction: NDArray[np.uint8], reference: NDArray[np.uint8], spacing_mm: Sequence[float]
) -> dict[str, tuple[float, ...]]:
    """As its README does it: surface distances once for each organ, then every metric from them."""
    import surface_distance as sd  # here, because it is optional

    result = {}
    for number, organ in enumerate(ORGANS, start=1):
        masks = reference == number, prediction == number
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # it uses old names of SciPy
            distances = sd.compute_surface_distances(*masks, spacing_mm)
        result[organ] = (
            sd.compute_dice_coefficient(*masks),
            sd.compute_robust_hausdorff(distances, 100),
            sd.compute_robust_hausdorff(distances, 95),
            *sd.compute_average_surface_distance(distances),
            sd.compute_surface_dice_at_tolerance(distances, min(spacing_mm)),
        )
    return result
