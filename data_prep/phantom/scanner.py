"""How an anatomy looks in CT and in MR."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from data_prep.phantom.patient import Anatomy, PhantomCase, Waves, ramp, slabs
from ummkd_tf.scans.geometry import Grid

_PSF_SIGMA = 0.425  # sigma of a Gaussian whose full width at half maximum is 1


@dataclass(frozen=True)
class PhantomOptions:
    """How a set (or, with `streaks`, a case) departs from the usual; see `write_abdomen`."""

    size: int = 128
    t1: bool = False
    anticorrelated_mr: bool = False
    low_resolution_mr: float = 1.0
    streaks: bool = False


def _blurred(values: NDArray[np.float32], tissues: NDArray[np.uint8], grid: Grid, width: float) -> NDArray[np.float32]:
    """Tissue means under a point spread `width` smallest voxels wide (full width at half maximum)."""
    spacing = np.asarray(grid.spacing_mm)
    sigma = _PSF_SIGMA * width * spacing.min() / spacing
    return ndimage.gaussian_filter(values[tissues], sigma, mode="nearest", truncate=3.0)


def ct_image(
    anatomy: Anatomy, tissues: NDArray[np.uint8], grid: Grid, case: PhantomCase, options: PhantomOptions
) -> NDArray[np.int16]:
    """A CT in HU [i, j, k]: point spread, contrast phase, Gaussian noise and, on request, streaks (Table VI)."""
    rng = case.rng("image")
    values = anatomy.template.values("ct")
    values = np.where(values > 0, values * rng.uniform(0.93, 1.07), values).astype(np.float32)
    image = _blurred(values, tissues, grid, 1.0)
    image += np.float32(rng.uniform(12, 18)) * rng.standard_normal(grid.shape, np.float32)
    if options.streaks:
        _add_streaks(image, anatomy, grid, case.rng("streaks"))
    return np.clip(np.rint(image), -1024, 3071).astype(np.int16)


def _add_streaks(image: NDArray[np.float32], anatomy: Anatomy, grid: Grid, rng: np.random.Generator) -> None:
    """Dark and bright rays in the transverse plane that turn with height; strongest near the metal."""
    waves = 12
    for metal_x, metal_y in anatomy.template.metal_mm:
        counts = rng.integers(6, 40, waves)
        phases = rng.uniform(0, 2 * np.pi, waves)
        turning = rng.normal(0, 0.08, waves)  # rad/mm
        for part, affine in slabs(grid.shape, anatomy.patient_affine(grid)):
            x, y, z = (ramp(affine[n], image[:, :, part].shape) for n in range(3))
            angle = np.arctan2(y - np.float32(metal_y), x - np.float32(metal_x))
            distance = np.hypot(y - np.float32(metal_y), x - np.float32(metal_x))
            rays = np.zeros_like(angle)
            for count, phase, turn in zip(counts, phases, turning, strict=True):
                rays += np.cos(np.float32(count) * angle + np.float32(turn) * z + np.float32(phase))
            rays *= np.abs(rays) / waves  # sharper than a sine
            image[:, :, part] += np.float32(110) * rays * np.exp(-distance / np.float32(120))
            image[:, :, part][distance < 4] = 3000


def mr_image(
    anatomy: Anatomy,
    tissues: NDArray[np.uint8],
    grid: Grid,
    case: PhantomCase,
    options: PhantomOptions,
    *,
    scan: str,
    sequence: str,
) -> NDArray[np.int16]:
    """A magnitude MR (12 bit) [i, j, k]: gain, contrast, smooth bias field and Rician noise.

    Images of one `scan` share all of these but the noise; `sequence` is a column of the signal table. With low
    resolution the grid and the labels stay as they are, as if the scanner had interpolated a coarse acquisition.
    """
    rng = case.rng(scan)
    gain, contrast = rng.uniform(500, 1800), rng.uniform(0.9, 1.1)
    bias = Waves.draw(rng, (250.0, 500.0))
    values = anatomy.template.values(sequence, anticorrelated_mr=options.anticorrelated_mr) ** contrast
    image = _blurred(values.astype(np.float32), tissues, grid, options.low_resolution_mr)
    image *= np.exp(np.float32(0.15) * sum(bias.sample(n, grid.affine, grid.shape) for n in range(3)))
    noise = case.rng(f"{scan}/{sequence}/noise")
    real = image + np.float32(0.025) * noise.standard_normal(grid.shape, np.float32)
    imaginary = np.float32(0.025) * noise.standard_normal(grid.shape, np.float32)
    return np.clip(np.rint(gain * np.hypot(real, imaginary)), 0, 4095).astype(np.int16)
