"""One anatomy, drawn at random from a template."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from data_prep.phantom.templates import TABLE, Organ, Point, Template
from ummkd_tf.scans.geometry import Affine, Grid

# The cases that carry a known glitch of the real sets: task, modality, case id.
GLITCHES = {
    "label_header_noise": ("abdomen", "ct", "0002"),  # the label's affine differs by a relative 1e-6
    "wrong_slice_thickness": ("abdomen", "mr", "2"),  # SliceThickness is not the distance of the slices
    "label_421": ("cardiac", "mr", "1001"),  # a few voxels of 420 are 421
}
_SLAB_VOXELS = 1 << 21  # painted at a time, so that memory stays small for 512 × 512 × 250 voxels


def _digest(*parts: object) -> int:
    """128 bits that depend on the parts alone."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:16], "big")


@dataclass(frozen=True)
class PhantomCase:
    """A case's name; every random draw and UID of it is a function of these four."""

    seed: int
    task: str
    modality: str
    case_id: str

    def rng(self, purpose: str) -> np.random.Generator:
        """A random stream of its own for each purpose, so that e.g. the size of the grid does not change the
        anatomy."""
        return np.random.default_rng(_digest(self.seed, self.task, self.modality, self.case_id, purpose))

    def has(self, glitch: str) -> bool:
        """Whether the case carries a glitch."""
        return GLITCHES[glitch] == (self.task, self.modality, self.case_id)

    def uid(self, *parts: object) -> str:
        """A DICOM UID of the UUID-derived root 2.25."""
        return f"2.25.{_digest(self.seed, self.task, self.modality, self.case_id, 'uid', *parts)}"


def ramp(weights: NDArray[np.float64], shape: Sequence[int]) -> NDArray[np.float32]:
    """w0·i + w1·j + w2·k + w3 over a grid of indices."""
    i, j, k = (w * np.arange(n) for w, n in zip(weights, shape, strict=False))
    plane = (i[:, None] + (j[None, :] + weights[3])).astype(np.float32)
    return plane[:, :, None] + k.astype(np.float32)


def _bounded_normal(rng: np.random.Generator, scale: float) -> NDArray[np.float64]:
    return np.clip(rng.standard_normal(3), -2, 2) * scale


@dataclass(frozen=True)
class Waves:
    """Three plane waves: `sin(vectors[n]·x + phases[n])`; x in mm, vectors [3, 3] in rad/mm."""

    vectors: NDArray[np.float64]
    phases: NDArray[np.float64]

    @staticmethod
    def draw(rng: np.random.Generator, wavelength_mm: tuple[float, float]) -> Waves:
        directions = rng.standard_normal((3, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        lengths = rng.uniform(*wavelength_mm, (3, 1))
        return Waves(2 * np.pi * directions / lengths, rng.uniform(0, 2 * np.pi, 3))

    def sample(self, n: int, affine: Affine, shape: Sequence[int]) -> NDArray[np.float32]:
        """Wave n on the grid whose affine leads to the frame of the vectors."""
        weights = self.vectors[n] @ affine[:3]
        weights[3] += self.phases[n]
        return np.sin(ramp(weights, shape))


@dataclass(frozen=True)
class Solid:
    """An organ of one patient: inside where |u|² < 1 + bumps(u), with u = to_unit · (x − center_mm)."""

    tissue: int
    center_mm: NDArray[np.float64]
    to_unit: NDArray[np.float64]
    cap: float
    bump: float
    frequencies: NDArray[np.float64]
    phases: NDArray[np.float64]

    def box(self, affine: Affine, shape: Sequence[int], margin_mm: float) -> tuple[slice, ...]:
        """Index box on a grid (affine: index → patient mm) that surely holds the solid."""
        to_index = np.linalg.inv(affine)
        center = to_index[:3, :3] @ self.center_mm + to_index[:3, 3]
        reach = math.sqrt(1 + 3 * self.bump) * np.linalg.norm(to_index[:3, :3] @ np.linalg.inv(self.to_unit), axis=1)
        reach += margin_mm * np.linalg.norm(to_index[:3, :3], axis=1)
        first = np.clip(np.ceil(center - reach), 0, shape).astype(int)
        last = np.clip(np.floor(center + reach) + 1, 0, shape).astype(int)
        return tuple(slice(int(a), int(b)) for a, b in zip(first, last, strict=True))

    def paint(self, tissues: NDArray[np.uint8], points: Sequence[NDArray[np.float32]], box: tuple[slice, ...]) -> None:
        """Fills the solid's voxels in a box; `points` are the patient coordinates of all voxels."""
        x, y, z = (p[box] - np.float32(c) for p, c in zip(points, self.center_mm, strict=True))
        u = [row[0] * x + row[1] * y + row[2] * z for row in self.to_unit.astype(np.float32)]
        inside = u[0] ** 2 + u[1] ** 2 + u[2] ** 2
        for n in range(3 if self.bump else 0):
            wave = np.sin(np.float32(self.frequencies[n]) * u[n] + np.float32(self.phases[n]))
            inside -= np.float32(self.bump) * wave
        mask = inside < 1
        if self.cap < math.inf:
            mask &= u[2] < self.cap
        tissues[box][mask] = self.tissue


@dataclass(frozen=True)
class Anatomy:
    """One patient: solids in the patient frame, a smooth warp, and the patient's place in the world (RAS mm)."""

    template: Template
    world_from_patient: Affine
    solids: tuple[Solid, ...]
    warp: Waves
    warp_mm: float

    def patient_affine(self, grid: Grid) -> Affine:
        """Index → patient frame."""
        return np.linalg.inv(self.world_from_patient) @ grid.affine

    def tissue_map(self, grid: Grid) -> NDArray[np.uint8]:
        """Tissue numbers (rows of the signal table) at the voxels of a grid."""
        tissues = np.zeros(grid.shape, np.uint8)
        for part, affine in slabs(grid.shape, self.patient_affine(grid)):
            slab = tissues[:, :, part]
            points = [
                ramp(affine[n], slab.shape) + np.float32(self.warp_mm) * self.warp.sample(n, affine, slab.shape)
                for n in range(3)
            ]
            for solid in self.solids:
                box = solid.box(affine, slab.shape, margin_mm=2 * self.warp_mm)
                solid.paint(slab, points, box)
        return tissues


def slabs(shape: Sequence[int], affine: Affine) -> Iterator[tuple[slice, Affine]]:
    """Ranges of the last axis with few enough voxels, each with its own affine."""
    step = max(1, _SLAB_VOXELS // (shape[0] * shape[1]))
    for start in range(0, shape[2], step):
        moved = affine.copy()
        moved[:3, 3] += start * affine[:3, 2]
        yield slice(start, start + step), moved


def draw_anatomy(template: Template, case: PhantomCase) -> Anatomy:
    """A patient: the template with other size, pose, organ shapes and place, by the case's name alone."""
    rng = case.rng("anatomy")
    stretch = rng.uniform(0.92, 1.08) * rng.uniform(0.97, 1.03, 3)
    turn = Rotation.from_rotvec(_bounded_normal(rng, 2.5), degrees=True).as_matrix()
    place = np.eye(4)
    place[:3, :3] = turn * stretch
    place[:3, 3] = rng.uniform((-30, -30, -300), (30, 30, 300))
    warp = Waves.draw(rng, (100.0, 200.0))

    numbers = {tissue: n for n, tissue in enumerate(template.signals)}
    organs = (*template.organs, TABLE) if case.modality == "ct" and "table" in numbers else template.organs
    variations: dict[str, _Variation] = {}
    solids = []
    for position, organ in enumerate(organs):
        variation = variations.setdefault(organ.group or str(position), _Variation.draw(rng))
        if variation.luck < organ.chance:
            solids.append(variation.apply(organ, numbers[organ.tissue]))
    return Anatomy(template, place, tuple(solids), warp, warp_mm=2.5)


@dataclass(frozen=True)
class _Variation:
    """How one organ (or group of organs) of a case departs from the template, at `vary` = 1."""

    shift_mm: NDArray[np.float64]
    turn_deg: NDArray[np.float64]
    size: NDArray[np.float64]
    frequencies: NDArray[np.float64]
    phases: NDArray[np.float64]
    luck: float

    @staticmethod
    def draw(rng: np.random.Generator) -> _Variation:
        return _Variation(
            shift_mm=_bounded_normal(rng, 3.0),
            turn_deg=_bounded_normal(rng, 5.0),
            size=rng.uniform(-0.08, 0.08) + rng.uniform(-0.06, 0.06, 3),
            frequencies=rng.uniform(2.0, 4.5, 3),
            phases=rng.uniform(0, 2 * np.pi, 3),
            luck=float(rng.uniform()),
        )

    def apply(self, organ: Organ, tissue: int) -> Solid:
        own = Rotation.from_rotvec(organ.vary * self.turn_deg, degrees=True).as_matrix()
        semi_axes = np.asarray(organ.semi_axes_mm) * (1 + organ.vary * self.size)
        return Solid(
            tissue=tissue,
            center_mm=np.asarray(organ.center_mm, float) + organ.vary * self.shift_mm,
            to_unit=(own @ _frame(organ.axis)).T / semi_axes[:, None],
            cap=organ.cap,
            bump=0.06 * min(organ.vary, 1.0),
            frequencies=self.frequencies,
            phases=self.phases,
        )


def _frame(axis: Point) -> NDArray[np.float64]:
    """The smallest rotation that takes z to `axis`."""
    direction = np.asarray(axis, float) / np.linalg.norm(axis)
    across = np.cross((0.0, 0.0, 1.0), direction)
    sine = np.linalg.norm(across)
    if sine == 0:
        return np.eye(3)
    return Rotation.from_rotvec(across / sine * math.atan2(sine, direction[2])).as_matrix()
