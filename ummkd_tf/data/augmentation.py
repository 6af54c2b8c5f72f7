"""Random changes of training examples, as a table: in the plane for image and classes together, then of intensities.

Never a reflection: left and right kidney are different classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

_ELASTIC_GRID = 5
"""Control points of the elastic deformation along a side."""


@dataclass(frozen=True)
class Augmentation:
    """The largest size of each change; 0 turns it off. A size is drawn uniformly between minus and plus this limit.

    Attributes:
        rotation: Degrees in the plane.
        scaling: Share by which the plane is enlarged or reduced.
        shift: Share of a side, along rows and along columns.
        elastic: Share of a side by which each of 5×5 control points moves, with a cubic spline in between.
        intensity_scale: Share by which intensities, which are z-scores, are multiplied.
        intensity_shift: Standard deviations of the scan.
        gamma: Logarithm of the exponent of intensities between their minimum and maximum.
        noise: Standard deviation of Gaussian noise, drawn between 0 and this.
        probability: Of each change.
        spacing_mm: Of rows and columns, so that a rotation shears nothing where they differ.
    """

    rotation: float = 0.0
    scaling: float = 0.0
    shift: float = 0.0
    elastic: float = 0.0
    intensity_scale: float = 0.0
    intensity_shift: float = 0.0
    gamma: float = 0.0
    noise: float = 0.0
    probability: float = 1.0
    spacing_mm: tuple[float, float] = (1.0, 1.0)

    def __call__(
        self, image: NDArray[np.float32], label: NDArray[np.uint8], rng: np.random.Generator
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """A changed copy of one example.

        Args:
            image: [rows, columns, *more]: all slices and channels change alike.
            label: Class map [rows, columns, *more]: of the middle slice, or of every slice.
            rng: Decides everything.
        """

        def drawn(limit: float, *shape: int) -> NDArray[np.float64]:
            # Every change draws its random numbers, also where it is off: so one change does not depend on another's
            # limit.
            values = rng.uniform(-limit, limit, shape)
            return values if rng.random() < self.probability else np.zeros(shape)

        matrix = in_plane_matrix(float(drawn(self.rotation)), float(drawn(self.scaling)), self.spacing_mm)
        shift, elastic = drawn(self.shift, 2), drawn(self.elastic, 2, _ELASTIC_GRID, _ELASTIC_GRID)
        if elastic.any() or shift.any() or np.any(matrix != np.eye(2)):
            places = _places(label.shape[:2], matrix, shift, elastic)
            # Outside the picture is black background, as in the corners of the authors' records. Repeating the edge
            # would stretch an organ that touches it into a stripe.
            image = _linear(image, places, outside=float(image.min()))
            label = _nearest(label, places)

        scale, offset, gamma, noise = (
            float(drawn(limit)) for limit in (self.intensity_scale, self.intensity_shift, self.gamma, self.noise)
        )
        if gamma:
            low, span = image.min(), np.ptp(image) or 1.0
            image = low + span * ((image - low) / span) ** float(np.exp(gamma))
        if scale or offset:
            image = (1.0 + scale) * image + offset
        if noise:
            image = image + abs(noise) * rng.standard_normal(image.shape, np.float32)
        return image.astype(np.float32, copy=False), label


def in_plane_matrix(
    degrees: float, scaling: float, spacing_mm: tuple[float, float] = (1.0, 1.0)
) -> NDArray[np.float64]:
    """Where a voxel of the changed picture comes from, in voxels from the centre: [2, 2], determinant above 0.

    Args:
        degrees: Of a rotation in millimetres.
        scaling: Share by which the plane is enlarged.
        spacing_mm: Of rows and columns.
    """
    angle = np.deg2rad(degrees)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    rows, columns = spacing_mm
    in_voxels = np.array([[1.0, columns / rows], [rows / columns, 1.0]])  # all 1 for equal spacing: the same bits
    return rotation / (1.0 + scaling) * in_voxels


def _places(
    size: tuple[int, ...], matrix: NDArray[np.float64], shift: NDArray[np.float64], elastic: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Row and column from which each voxel of the changed picture comes: [2, rows, columns]."""
    sides = np.array(size)[:, np.newaxis, np.newaxis]
    center = (sides - 1) / 2
    places = np.tensordot(matrix, np.indices(size) - center - sides * shift[:, np.newaxis, np.newaxis], 1) + center
    if elastic.any():
        zoom = [side / _ELASTIC_GRID for side in size]
        places += sides * np.stack([ndimage.zoom(field, zoom, order=3) for field in elastic])
    return places


def _linear(image: NDArray[np.float32], places: NDArray[np.float64], outside: float) -> NDArray[np.float32]:
    """Values of every slice and channel at the same places, interpolated between the four voxels around."""
    planes = image.reshape(*image.shape[:2], -1)
    result = np.empty_like(planes)
    for k in range(planes.shape[2]):
        result[..., k] = ndimage.map_coordinates(planes[..., k], places, order=1, mode="constant", cval=outside)
    return result.reshape(image.shape)


def _nearest(label: NDArray[np.uint8], places: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Classes of all slices in the nearest voxel; background outside.

    `map_coordinates` with order 0 gives the same, one slice after another, and takes nine times as long for eight.
    """
    last = np.reshape(label.shape[:2], (2, 1, 1)) - 1
    inside = np.all((places >= 0) & (places <= last), axis=0)
    rows, columns = np.floor(np.where(inside, places, 0) + 0.5).astype(np.intp)
    classes = label[rows, columns]
    classes[~inside] = 0
    return classes


NONE = "none"

AUGMENTATIONS: Mapping[str, Augmentation] = MappingProxyType(
    {
        NONE: Augmentation(),
        # In place of the authors' augmentation of 2D records, whose numbers are not published: our choice.
        "affine": Augmentation(rotation=15, scaling=0.12, shift=0.06),
        "practice": Augmentation(rotation=15, scaling=0.12, shift=0.06, intensity_scale=0.15, intensity_shift=0.15),
        # A candidate for comparison.
        "strong": Augmentation(
            rotation=20,
            scaling=0.2,
            shift=0.1,
            elastic=0.02,
            intensity_scale=0.25,
            intensity_shift=0.25,
            gamma=0.3,
            noise=0.15,
            probability=0.7,
        ),
    }
)
"""By name, for `--augmentation`; `experiments/recipes.py` says which recipe uses which."""
