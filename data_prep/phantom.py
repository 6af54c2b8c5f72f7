"""Phantoms: unpaired CT-like and MR-like anatomies in the raw layouts of BTCV, CHAOS and MM-WHS (SPEC §5).

The same preparation code as for real scans runs on them, glitches included. An anatomy is a list of deformed
ellipsoids in patient millimetres (RAS), painted one over the other; each scan samples it on its own grid, so that
affine, ImagePositionPatient and anatomical sides are true by construction. Numbers (shapes, intensities, noise) are
our choice: they look like the real sets at first sight and are no measurement of them.

    python -m data_prep.phantom --task=abdomen --cases=ct:6,mr:6 --seed=0 --out=DIR
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from absl import flags, logging
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from ummkd_tf import cli
from ummkd_tf.errors import InputError
from ummkd_tf.volumes import Affine, Grid, to_sitk

VERSION = 1  # of the generator: raise it whenever the same seed gives other bytes
MANIFEST = "phantom.json"

BTCV_IDS = tuple(f"{n:04d}" for n in (*range(1, 11), *range(21, 41)))
CHAOS_IDS = tuple(str(n) for n in (1, 2, 3, 5, 8, 10, 13, 15, 19, 20, 21, 22, 31, 32, 33, 34, 36, 37, 38, 39))
MMWHS_IDS = tuple(str(n) for n in range(1001, 1021))

BTCV_LABELS = {
    "spleen": 1,
    "right_kidney": 2,
    "left_kidney": 3,
    "gallbladder": 4,
    "liver": 6,
    "stomach": 7,
    "aorta": 8,
    "inferior_vena_cava": 9,
}
CHAOS_GREYS = {"liver": 63, "right_kidney": 126, "left_kidney": 189, "spleen": 252}
MMWHS_LABELS = {
    "lv_myocardium": 205,
    "left_atrium": 420,
    "left_ventricle": 500,
    "right_atrium": 550,
    "right_ventricle": 600,
    "ascending_aorta": 820,
    "pulmonary_artery": 850,
}


@dataclass(frozen=True)
class ChaosScan:
    """One of CHAOS's MR scans.

    Attributes:
        slice_range_mm: Range of the slice distance.
        step: Step of the file numbers.
        images: Subfolder of `DICOM_anon`, sequence and first file number of each image. The PNGs carry the names of
            the first image's files.
    """

    slice_range_mm: tuple[float, float]
    step: int
    images: tuple[tuple[str, str, int], ...]


CHAOS_SCANS = {
    "T2SPIR": ChaosScan((6.0, 8.0), 1, (("", "t2spir", 1),)),
    "T1DUAL": ChaosScan((5.5, 7.0), 2, (("InPhase", "t1_in", 2), ("OutPhase", "t1_out", 1))),
}

# The cases that carry a known glitch of the real sets: task, modality, case id.
GLITCHES = {
    "label_header_noise": ("abdomen", "ct", "0002"),  # the label's affine differs by a relative 1e-6
    "wrong_slice_thickness": ("abdomen", "mr", "2"),  # SliceThickness is not the distance of the slices
    "label_421": ("cardiac", "mr", "1001"),  # a few voxels of 420 are 421
}
_SLICE_THICKNESS_ERROR = 1.6  # as in CHAOS: slices 2.0 mm apart with a SliceThickness of 3.2
_NUM_421 = 5

_EVERYWHERE = 1e4  # mm; a semi-axis this long makes a cylinder
_SLAB_VOXELS = 1 << 21  # painted at a time, so that memory stays small for 512 × 512 × 250 voxels
_PSF_SIGMA = 0.425  # sigma of a Gaussian whose full width at half maximum is 1


# --- the template anatomies ------------------------------------------------------------------------------------------

Point = tuple[float, float, float]


@dataclass(frozen=True)
class Organ:
    """An ellipsoid of the template anatomy.

    Attributes:
        tissue: Row of the task's signal table.
        center_mm: Centre, patient frame (RAS).
        semi_axes_mm: Semi-axes; the third lies along `axis`.
        axis: Direction of the third semi-axis.
        vary: How much of the usual case-to-case variation (shift, turn, size, bumps) applies.
        cap: The ellipsoid ends in a plane across `axis`, at this fraction of the third semi-axis.
        group: Organs of one group vary together; by default each varies on its own.
        chance: Probability that a case has the organ.
    """

    tissue: str
    center_mm: Point
    semi_axes_mm: Point
    axis: Point = (0.0, 0.0, 1.0)
    vary: float = 1.0
    cap: float = math.inf
    group: str = ""
    chance: float = 1.0


@dataclass(frozen=True)
class Template:
    """A task's anatomy before it is varied.

    Attributes:
        name: The task.
        signals: Tissue → sequence → mean intensity; "ct" in HU, the others as a fraction of the scan's gain.
            The first tissue is what fills the room around the patient.
        classes: Tissues the task segments.
        window_hu: CT range whose inverse is the anti-correlated MR.
        organs: Painted in this order, later over earlier.
        center_mm: Middle of every field of view, patient frame.
        metal_mm: Sources of streaks, patient frame (x, y).
    """

    name: str
    signals: Mapping[str, Mapping[str, float]]
    classes: tuple[str, ...]
    window_hu: tuple[float, float]
    organs: tuple[Organ, ...]
    center_mm: Point
    metal_mm: tuple[tuple[float, float], ...]

    def values(self, sequence: str, *, anticorrelated_mr: bool = False) -> NDArray[np.float32]:
        """Mean intensity by tissue number."""
        rows = list(self.signals.values())
        if not anticorrelated_mr or sequence == "ct":
            return np.array([row[sequence] for row in rows], np.float32)
        low, high = self.window_hu
        hu = np.clip([row["ct"] for row in rows], low, high)
        inverse = 0.95 - 0.85 * (hu - low) / (high - low)
        inverse[0] = 0.0  # air around the patient gives no signal in any MR
        return inverse.astype(np.float32)

    def shared_intensities(self, sequence: str, *, anticorrelated_mr: bool = False) -> list[list[str]]:
        """Segmented structures of equal mean intensity, which only shape and position tell apart."""
        by_tissue = dict(zip(self.signals, self.values(sequence, anticorrelated_mr=anticorrelated_mr), strict=True))
        groups: dict[float, list[str]] = {}
        for name in self.classes:
            groups.setdefault(float(by_tissue[name]), []).append(name)
        return [names for names in groups.values() if len(names) > 1]


def _signals(sequences: Sequence[str], rows: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    return {tissue: dict(zip(sequences, row, strict=True)) for tissue, row in rows.items()}


def _both_sides(tissue: str, center_mm: Point, semi_axes_mm: Point, vary: float = 1.0) -> tuple[Organ, Organ]:
    x, y, z = center_mm
    return (
        Organ(tissue, (x, y, z), semi_axes_mm, vary=vary),
        Organ(tissue, (-x, y, z), semi_axes_mm, vary=vary),
    )


def _ribs(width_mm: float, depth_mm: float, levels_mm: Sequence[float]) -> tuple[Organ, ...]:
    angles = np.deg2rad((-60, -25, 10, 40))
    return tuple(
        rib
        for z in levels_mm
        for angle in angles
        for rib in _both_sides(
            "bone",
            (width_mm * math.cos(angle), depth_mm * math.sin(angle), z + 12 * math.sin(angle)),
            (6.0, 6.0, 8.0),
            vary=0.5,
        )
    )


def _bowel() -> tuple[Organ, ...]:
    """Loops in front of the kidneys and below the liver, some with gas: the distractors of the abdomen."""
    loops = [(x, y, z) for z in (-85.0, -50.0) for y in (45.0, 15.0) for x in (-75.0, -25.0, 25.0, 75.0)]
    return tuple(
        Organ(
            "bowel_gas" if n % 5 == 0 else "bowel",
            loop,
            (24.0, 17.0, 22.0),
            axis=(1.0, 0.3, 0.2),
            vary=2.0,
            chance=0.8,
        )
        for n, loop in enumerate(loops)
    )


ABDOMEN = Template(
    name="abdomen",
    signals=_signals(
        ("ct", "t2spir", "t1_in", "t1_out"),
        {
            "air": (-1000, 0.00, 0.00, 0.00),
            "table": (-650, 0.00, 0.00, 0.00),
            "fat": (-100, 0.15, 0.90, 0.66),
            "muscle": (55, 0.22, 0.40, 0.38),
            "bone": (330, 0.22, 0.30, 0.18),
            "spinal_canal": (25, 0.90, 0.15, 0.15),
            "lung": (-830, 0.04, 0.05, 0.05),
            "bowel": (30, 0.45, 0.34, 0.32),
            "bowel_gas": (-600, 0.03, 0.03, 0.03),
            "stomach": (40, 0.56, 0.27, 0.26),
            "gallbladder": (10, 0.98, 0.20, 0.20),
            "aorta": (165, 0.06, 0.12, 0.12),
            "inferior_vena_cava": (140, 0.09, 0.16, 0.16),
            "liver": (115, 0.33, 0.56, 0.44),
            "spleen": (115, 0.64, 0.46, 0.45),  # in CT as the liver, on purpose
            "right_kidney": (175, 0.78, 0.43, 0.42),
            "left_kidney": (175, 0.78, 0.43, 0.42),
        },
    ),
    classes=("liver", "right_kidney", "left_kidney", "spleen"),
    window_hu=(-125.0, 275.0),
    organs=(
        Organ("fat", (0, 0, 0), (158, 110, _EVERYWHERE), vary=0.3),
        Organ("muscle", (0, -3, 0), (142, 96, _EVERYWHERE), vary=0.3),
        Organ("fat", (0, 8, 0), (127, 80, _EVERYWHERE), vary=0.3),
        *_ribs(135, 88, (-45, -5, 35, 75)),
        *_both_sides("lung", (70, -10, 155), (58, 68, 78)),
        *_both_sides("muscle", (35, -58, 0), (15, 18, _EVERYWHERE), vary=0.5),
        Organ("bone", (0, -56, 0), (23, 18, _EVERYWHERE), vary=0.3, group="spine"),
        Organ("bone", (0, -92, 0), (5, 16, _EVERYWHERE), vary=0.3, group="spine"),
        Organ("spinal_canal", (0, -80, 0), (10, 8, _EVERYWHERE), vary=0.3, group="spine"),
        Organ("aorta", (-9, -28, 0), (10.5, 10.5, _EVERYWHERE), vary=0.5),
        Organ("inferior_vena_cava", (20, -27, 0), (13, 10, _EVERYWHERE), vary=0.5),
        *_bowel(),
        Organ("stomach", (-48, 30, 42), (40, 32, 46), axis=(-0.5, -0.2, 1)),
        Organ("spleen", (-95, -28, 48), (22, 38, 48), axis=(0.15, -0.25, 1)),
        Organ("liver", (62, 10, 40), (66, 62, 66), axis=(0.2, 0.0, 1), group="liver"),
        Organ("liver", (5, 38, 58), (52, 28, 30), axis=(0.2, 0.1, 1), group="liver"),
        Organ("gallbladder", (48, 42, -14), (13, 14, 24), axis=(0.1, 0.5, 1), chance=0.8),
        Organ("right_kidney", (60, -42, -20), (25, 27, 52), axis=(-0.22, -0.2, 1)),
        Organ("left_kidney", (-60, -42, -6), (25, 27, 52), axis=(0.22, -0.2, 1)),
    ),
    center_mm=(0, 0, 10),
    metal_mm=((16, -72), (-16, -72)),  # a pedicle screw on either side
)
_TABLE = Organ("table", (0, -135, 0), (230, 7, _EVERYWHERE), vary=0)  # CT only

_LV_AXIS = (0.62, -0.50, 0.60)  # apex → base
CARDIAC = Template(
    name="cardiac",
    signals=_signals(
        ("ct", "mr"),
        {
            "air": (-1000, 0.00),
            "fat": (-90, 0.52),
            "muscle": (55, 0.24),
            "lung": (-830, 0.06),
            "bone": (420, 0.18),
            "liver": (95, 0.42),
            "lv_myocardium": (110, 0.34),
            "left_atrium": (360, 0.76),
            "left_ventricle": (360, 0.86),  # in CT as the atrium, on purpose
            "right_atrium": (190, 0.70),
            "right_ventricle": (175, 0.80),
            "pulmonary_artery": (270, 0.83),
            "ascending_aorta": (320, 0.92),
            "descending_aorta": (320, 0.92),  # as the ascending one, but background
        },
    ),
    classes=("lv_myocardium", "left_atrium", "left_ventricle", "ascending_aorta"),
    window_hu=(-150.0, 450.0),
    organs=(
        Organ("fat", (0, -8, 0), (165, 118, _EVERYWHERE), vary=0.3),
        Organ("muscle", (0, -10, 0), (152, 106, _EVERYWHERE), vary=0.3),
        Organ("fat", (0, -6, 0), (136, 92, _EVERYWHERE), vary=0.3),
        Organ("lung", (76, -12, 40), (56, 82, 190), vary=0.5),
        Organ("lung", (-80, -16, 40), (52, 80, 190), vary=0.5),
        *_ribs(142, 98, (-60, -25, 10, 45, 80)),
        Organ("liver", (48, 5, -118), (86, 78, 62)),
        Organ("bone", (0, -84, 0), (20, 17, _EVERYWHERE), vary=0.3),
        Organ("bone", (0, 88, 0), (20, 6, _EVERYWHERE), vary=0.3),
        Organ("descending_aorta", (-24, -60, 0), (11.5, 11.5, _EVERYWHERE), vary=0.5),
        Organ("fat", (-8, 6, -4), (62, 56, 66), axis=_LV_AXIS),  # pericardium
        Organ("right_atrium", (44, 8, 2), (24, 26, 31)),
        Organ("right_ventricle", (2, 34, -18), (34, 24, 40), axis=(0.6, -0.1, 0.7)),
        Organ("pulmonary_artery", (-14, 30, 40), (12.5, 12.5, 34), axis=(-0.1, -0.4, 0.9)),
        Organ("left_atrium", (6, -33, 17), (33, 22, 26)),
        Organ("lv_myocardium", (-28, 8, -14), (33, 33, 52), axis=_LV_AXIS, cap=0.70, group="lv"),
        Organ("left_ventricle", (-28, 8, -14), (22.5, 22.5, 41), axis=_LV_AXIS, cap=0.88, group="lv"),
        Organ("ascending_aorta", (7, 6, 46), (15, 15, 40), axis=(0.15, 0.1, 1)),
    ),
    center_mm=(0, 2, 12),
    metal_mm=((20, 20), (-30, -10)),  # pacemaker leads
)


# --- one patient -----------------------------------------------------------------------------------------------------


def _digest(*parts: object) -> int:
    """128 bits that depend on the parts alone."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:16], "big")


@dataclass(frozen=True)
class Case:
    """A case's name; every random draw and UID of it is a function of these four."""

    seed: int
    task: str
    modality: str
    case_id: str

    def rng(self, purpose: str) -> np.random.Generator:
        """A stream of its own for each purpose, so that e.g. the size of the grid leaves the anatomy alone."""
        return np.random.default_rng(_digest(self.seed, self.task, self.modality, self.case_id, purpose))

    def has(self, glitch: str) -> bool:
        """Whether the case carries a glitch."""
        return GLITCHES[glitch] == (self.task, self.modality, self.case_id)

    def uid(self, *parts: object) -> str:
        """A DICOM UID of the UUID-derived root 2.25."""
        return f"2.25.{_digest(self.seed, self.task, self.modality, self.case_id, 'uid', *parts)}"


def _ramp(weights: NDArray[np.float64], shape: Sequence[int]) -> NDArray[np.float32]:
    """w0·i + w1·j + w2·k + w3 over a grid of indices."""
    i, j, k = (w * np.arange(n) for w, n in zip(weights, shape, strict=False))
    plane = (i[:, None] + (j[None, :] + weights[3])).astype(np.float32)
    return plane[:, :, None] + k.astype(np.float32)


def _bounded_normal(rng: np.random.Generator, scale: float, size: int) -> NDArray[np.float64]:
    return np.clip(rng.standard_normal(size), -2, 2) * scale


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
        return np.sin(_ramp(weights, shape))


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
        for part, affine in _slabs(grid.shape, self.patient_affine(grid)):
            slab = tissues[:, :, part]
            points = [
                _ramp(affine[n], slab.shape) + np.float32(self.warp_mm) * self.warp.sample(n, affine, slab.shape)
                for n in range(3)
            ]
            for solid in self.solids:
                box = solid.box(affine, slab.shape, margin_mm=2 * self.warp_mm)
                solid.paint(slab, points, box)
        return tissues


def _slabs(shape: Sequence[int], affine: Affine) -> Iterator[tuple[slice, Affine]]:
    """Ranges of the last axis with few enough voxels, each with its own affine."""
    step = max(1, _SLAB_VOXELS // (shape[0] * shape[1]))
    for start in range(0, shape[2], step):
        moved = affine.copy()
        moved[:3, 3] += start * affine[:3, 2]
        yield slice(start, start + step), moved


def draw_anatomy(template: Template, case: Case) -> Anatomy:
    """A patient: the template with other size, pose, organ shapes and place, by the case's name alone."""
    rng = case.rng("anatomy")
    stretch = rng.uniform(0.92, 1.08) * rng.uniform(0.97, 1.03, 3)
    turn = Rotation.from_rotvec(_bounded_normal(rng, 2.5, 3), degrees=True).as_matrix()
    place = np.eye(4)
    place[:3, :3] = turn * stretch
    place[:3, 3] = rng.uniform((-30, -30, -300), (30, 30, 300))
    warp = Waves.draw(rng, (100.0, 200.0))

    numbers = {tissue: n for n, tissue in enumerate(template.signals)}
    organs = (*template.organs, _TABLE) if case.modality == "ct" and "table" in numbers else template.organs
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
            shift_mm=_bounded_normal(rng, 3.0, 3),
            turn_deg=_bounded_normal(rng, 5.0, 3),
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


# --- scanners --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Options:
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
    anatomy: Anatomy, tissues: NDArray[np.uint8], grid: Grid, case: Case, options: Options
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
        for part, affine in _slabs(grid.shape, anatomy.patient_affine(grid)):
            x, y, z = (_ramp(affine[n], image[:, :, part].shape) for n in range(3))
            angle = np.arctan2(y - np.float32(metal_y), x - np.float32(metal_x))
            distance = np.hypot(y - np.float32(metal_y), x - np.float32(metal_x))
            rays = np.zeros_like(angle)
            for count, phase, turn in zip(counts, phases, turning, strict=True):
                rays += np.cos(np.float32(count) * angle + np.float32(turn) * z + np.float32(phase))
            rays *= np.abs(rays) / waves  # sharper than a sine
            image[:, :, part] += np.float32(110) * rays * np.exp(-distance / np.float32(120))
            image[:, :, part][distance < 4] = 3000


def mr_image(
    anatomy: Anatomy, tissues: NDArray[np.uint8], grid: Grid, case: Case, options: Options, *, scan: str, sequence: str
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


def _grid(
    anatomy: Anatomy, axes: Sequence[int], signs: Sequence[int], spacing_mm: Sequence[float], shape: Sequence[int]
) -> Grid:
    """A grid around the middle of the field of view; index axis n runs along world axis `axes[n]`, `signs[n]`."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for n in range(3):
        affine[axes[n], n] = signs[n] * spacing_mm[n]
    center = anatomy.world_from_patient @ (*anatomy.template.center_mm, 1)
    # Thousandths of a millimetre fit a DICOM decimal string.
    affine[:3, 3] = np.round(center[:3] - affine[:3, :3] @ (np.asarray(shape) - 1) / 2, 3)
    i, j, k = (int(n) for n in shape)
    return Grid(affine, (i, j, k))


def _scale(anatomy: Anatomy) -> NDArray[np.float64]:
    return np.linalg.norm(anatomy.world_from_patient[:3, :3], axis=0)


def _abdomen_grid(anatomy: Anatomy, rng: np.random.Generator, size: int, slice_mm: float, signs: Sequence[int]) -> Grid:
    """Transverse slices that hold the whole body; 1.2–1.7 mm pixels at size 256."""
    width = 2 * anatomy.template.organs[0].semi_axes_mm[0]
    pixel = round(width * _scale(anatomy)[0] * rng.uniform(1.1, 1.2) / size, 4)
    slices = math.ceil(230 * _scale(anatomy)[2] / slice_mm)
    return _grid(anatomy, (0, 1, 2), signs, (pixel, pixel, slice_mm), (size, size, slices))


def btcv_grid(anatomy: Anatomy, case: Case, size: int) -> Grid:
    """Axes L, A, S as BTCV's; slices 3 mm apart, 5 mm in every fourth case."""
    slice_mm = 5.0 if int(case.case_id) % 4 == 3 else 3.0
    return _abdomen_grid(anatomy, case.rng("grid"), size, slice_mm, signs=(-1, 1, 1))


def chaos_grid(anatomy: Anatomy, case: Case, size: int, scan: str) -> Grid:
    """Axes L, P, S (DICOM's identity orientation); each scan has its own spacing."""
    rng = case.rng(f"{scan}/grid")
    slice_mm = round(rng.uniform(*CHAOS_SCANS[scan].slice_range_mm), 1)
    return _abdomen_grid(anatomy, rng, size, slice_mm, signs=(-1, -1, 1))


def mmwhs_grid(anatomy: Anatomy, case: Case, size: int) -> Grid:
    """A box around the heart (CT) or through the chest (MR); axis order, directions and spacing by case."""
    rng = case.rng("grid")
    # 7 and 48 (orders × directions) have no common divisor: the ids of a modality never share an orientation.
    orders = ((0, 1, 2), (0, 2, 1), (1, 2, 0), (1, 0, 2), (2, 0, 1), (2, 1, 0))
    turn = 7 * int(case.case_id) + (case.modality == "mr")
    order, flips = orders[turn % 6], turn // 6 % 8
    signs = [-1 if flips >> n & 1 else 1 for n in range(3)]
    field_mm = rng.uniform(190, 215) if case.modality == "ct" else rng.uniform(270, 330)
    pixel = round(field_mm / size, 4)
    slice_mm = round(pixel * rng.uniform(1.1, 1.5), 4)
    slices = math.ceil(170 * _scale(anatomy).max() / slice_mm)
    return _grid(anatomy, order, signs, (pixel, pixel, slice_mm), (size, size, slices))


def _labels(template: Template, values: Mapping[str, int], tissues: NDArray[np.uint8]) -> NDArray[np.int16]:
    """Label map in a data set's own values; every other tissue is 0."""
    return np.array([values.get(tissue, 0) for tissue in template.signals], np.int16)[tissues]


# --- files -----------------------------------------------------------------------------------------------------------


def _write_nifti(path: Path, array: NDArray, affine: Affine) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(array, affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    image.header.set_xyzt_units("mm")
    # A gzip header carries a time unless told not to.
    path.write_bytes(gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))


def _write_sitk(path: Path, image: sitk.Image) -> None:
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.SetFileName(str(path))
    try:
        writer.Execute(image)
    except RuntimeError as error:  # also on a full disk, with a text that says something else
        raise OSError(f"SimpleITK could not write {path.name}; is the disk full?") from error


@dataclass(frozen=True)
class _DicomSeries:
    case: Case
    name: str
    files: tuple[str, ...]
    descending: bool  # file order against z order
    thickness_mm: float

    def write(self, folder: Path, image: NDArray[np.int16], grid: Grid) -> None:
        """One file a slice, `image` [i, j, k]; `grid` has its first two axes along +L and +P."""
        folder.mkdir(parents=True)
        for position, (name, k) in enumerate(self._slices(grid), start=1):
            affine = grid.affine.copy()
            affine[:3, 3] = grid.world((0, 0, k))
            picture = to_sitk(image[:, :, k : k + 1].astype(np.uint16), affine)
            for tag, value in self._tags(picture, position).items():
                picture.SetMetaData(tag, value)
            _write_sitk(folder / f"{name}.dcm", picture)

    def write_ground(self, folder: Path, label: NDArray[np.int16], grid: Grid) -> None:
        """One 8-bit grey PNG a slice, under the slice's name."""
        folder.mkdir(parents=True)
        for name, k in self._slices(grid):
            _write_sitk(folder / f"{name}.png", sitk.GetImageFromArray(label[:, :, k].T.astype(np.uint8)))

    def _slices(self, grid: Grid) -> Iterator[tuple[str, int]]:
        ks = range(grid.shape[2])
        return zip(self.files, reversed(ks) if self.descending else ks, strict=True)

    def _tags(self, picture: sitk.Image, position: int) -> dict[str, str]:
        spacing = picture.GetSpacing()
        return {
            "0008|0016": "1.2.840.10008.5.1.4.1.1.4",  # MR Image Storage
            "0008|0018": self.case.uid(self.name, position),
            "0008|0020": "20180101",  # GDCM would put today's date
            "0008|0030": "120000",
            "0008|0060": "MR",
            "0008|103e": self.name,
            "0010|0010": f"PHANTOM^{self.case.case_id}",
            "0010|0020": f"PHANTOM_{self.case.case_id}",
            "0018|0050": f"{self.thickness_mm:.4f}",
            "0018|0088": f"{spacing[2]:.4f}",
            "0020|000d": self.case.uid("study"),
            "0020|000e": self.case.uid("series", self.name),
            "0020|0013": str(position),
            "0020|0032": "\\".join(f"{x:.3f}" for x in picture.GetOrigin()),
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0020|0052": self.case.uid("frame"),
            "0028|0030": f"{spacing[1]:.4f}\\{spacing[0]:.4f}",
            # Said here because GDCM adds them by itself, but only once the process has read a DICOM file.
            "0028|1052": "0",
            "0028|1053": "1",
            "0028|1054": "US",
        }


def _write_btcv(folder: Path, case: Case, options: Options) -> None:
    anatomy = draw_anatomy(ABDOMEN, case)
    grid = btcv_grid(anatomy, case, options.size)
    tissues = anatomy.tissue_map(grid)
    label = _labels(ABDOMEN, BTCV_LABELS, tissues).astype(np.uint8)
    noise = 1e-6 if case.has("label_header_noise") else 0.0
    image = ct_image(anatomy, tissues, grid, case, options)
    _write_nifti(folder / f"btcv/img/img{case.case_id}.nii.gz", image, grid.affine)
    _write_nifti(folder / f"btcv/label/label{case.case_id}.nii.gz", label, grid.affine * (1 + noise))


def _write_chaos(folder: Path, case: Case, options: Options) -> None:
    anatomy = draw_anatomy(ABDOMEN, case)
    for scan, layout in CHAOS_SCANS.items() if options.t1 else [("T2SPIR", CHAOS_SCANS["T2SPIR"])]:
        grid = chaos_grid(anatomy, case, options.size, scan)
        tissues = anatomy.tissue_map(grid)
        thickness_mm = grid.spacing_mm[2] * (_SLICE_THICKNESS_ERROR if case.has("wrong_slice_thickness") else 1.0)
        home = folder / "chaos/Train_Sets/MR" / case.case_id / scan
        for n, (subfolder, sequence, first) in enumerate(layout.images):
            files = tuple(f"IMG-0004-{first + layout.step * k:05d}" for k in range(grid.shape[2]))
            descending = int(case.case_id) % 2 == 0
            series = _DicomSeries(case, sequence, files, descending, thickness_mm)
            image = mr_image(anatomy, tissues, grid, case, options, scan=scan, sequence=sequence)
            series.write(home / "DICOM_anon" / subfolder, image, grid)
            if n == 0:
                series.write_ground(home / "Ground", _labels(ABDOMEN, CHAOS_GREYS, tissues), grid)


def _write_mmwhs(folder: Path, case: Case, options: Options) -> None:
    anatomy = draw_anatomy(CARDIAC, case)
    grid = mmwhs_grid(anatomy, case, options.size)
    tissues = anatomy.tissue_map(grid)
    label = _labels(CARDIAC, MMWHS_LABELS, tissues)
    if case.modality == "ct":
        image = ct_image(anatomy, tissues, grid, case, options)
    else:
        image = mr_image(anatomy, tissues, grid, case, options, scan="scan", sequence="mr")
        if case.has("label_421"):
            atrium = np.flatnonzero(label == MMWHS_LABELS["left_atrium"])
            label.flat[atrium[len(atrium) // 2 :][:_NUM_421]] += 1
    stem = f"{case.modality}_train/{case.modality}_train_{case.case_id}"
    _write_nifti(folder / f"{stem}_image.nii.gz", image, grid.affine)
    _write_nifti(folder / f"{stem}_label.nii.gz", label, grid.affine)


# --- whole sets ------------------------------------------------------------------------------------------------------


def write_abdomen(
    out_dir: str | Path,
    *,
    num_ct: int,
    num_mr: int,
    seed: int,
    size: int = 128,
    t1: bool = False,
    anticorrelated_mr: bool = False,
    low_resolution_mr: float = 1.0,
    outlier_ct: bool = False,
    overwrite: bool = False,
) -> None:
    """Writes BTCV-like CT to `out_dir/btcv` and CHAOS-like MR to `out_dir/chaos/Train_Sets/MR`.

    The set appears whole or not at all. The same arguments give the same bytes (with the same library versions and
    processor type); a case depends on `seed`, its modality and its id only, not on how many there are. In CT, liver
    and spleen have the same mean intensity.

    Args:
        out_dir: Folder to make.
        num_ct: CT cases: the first ones of `BTCV_IDS`.
        num_mr: MR cases: the first ones of `CHAOS_IDS`.
        seed: Not negative.
        size: Rows and columns of a slice; 256 gives the 1.2–1.7 mm of the real sets. The slice distance is theirs
            (3 or 5 mm in CT, 6–8 mm in MR) at any size.
        t1: Write CHAOS's T1DUAL beside T2SPIR.
        anticorrelated_mr: MR means are CT's turned upside down (paper Sec. V).
        low_resolution_mr: Width of the MR's point spread in pixels; 1 is sharp (paper Sec. V).
        outlier_ct: One CT more, with streaks around metal (Table VI); `phantom.json` names it.
        overwrite: Replace an earlier phantom in `out_dir`.

    Raises:
        InputError: An argument out of its range, `out_dir` not empty, or not writable.
    """
    _write_set(
        Path(out_dir).resolve(),
        ABDOMEN,
        {"ct": (num_ct, BTCV_IDS, _write_btcv), "mr": (num_mr, CHAOS_IDS, _write_chaos)},
        seed=seed,
        options=Options(size, t1, anticorrelated_mr, low_resolution_mr),
        outlier_ct=outlier_ct,
        overwrite=overwrite,
    )


def write_cardiac(
    out_dir: str | Path,
    *,
    num_ct: int,
    num_mr: int,
    seed: int,
    size: int = 128,
    anticorrelated_mr: bool = False,
    low_resolution_mr: float = 1.0,
    outlier_ct: bool = False,
    overwrite: bool = False,
) -> None:
    """Writes MM-WHS-like scans to `out_dir/ct_train` and `out_dir/mr_train`, in any axis order and direction.

    As `write_abdomen`. In CT, left atrium and left ventricle have the same mean intensity; the ascending aorta has
    that of the (unlabelled) descending one in both modalities.

    Args:
        out_dir: Folder to make.
        num_ct: CT cases: the first ones of `MMWHS_IDS`.
        num_mr: MR cases: the first ones of `MMWHS_IDS`; 1001 has a few voxels of label 421.
        seed: Not negative.
        size: Pixels of the first two axes over about 200 mm (CT) or 300 mm (MR); 512 is a real CT's. The third axis
            follows, with voxels up to 1.5 times as long.
        anticorrelated_mr: As in `write_abdomen`.
        low_resolution_mr: As in `write_abdomen`.
        outlier_ct: As in `write_abdomen`.
        overwrite: Replace an earlier phantom in `out_dir`.

    Raises:
        InputError: An argument out of its range, `out_dir` not empty, or not writable.
    """
    _write_set(
        Path(out_dir).resolve(),
        CARDIAC,
        {"ct": (num_ct, MMWHS_IDS, _write_mmwhs), "mr": (num_mr, MMWHS_IDS, _write_mmwhs)},
        seed=seed,
        options=Options(size, False, anticorrelated_mr, low_resolution_mr),
        outlier_ct=outlier_ct,
        overwrite=overwrite,
    )


_CaseWriter = Callable[[Path, Case, Options], None]


def _write_set(
    out_dir: Path,
    template: Template,
    plan: Mapping[str, tuple[int, Sequence[str], _CaseWriter]],
    *,
    seed: int,
    options: Options,
    outlier_ct: bool,
    overwrite: bool,
) -> None:
    _check_numbers(seed, options)
    cases = {
        modality: _take_ids(ids, number, modality, extra=outlier_ct and modality == "ct")
        for modality, (number, ids, _) in plan.items()
    }
    outlier = cases["ct"][-1] if outlier_ct else None
    _check_out_dir(out_dir, overwrite)
    manifest = _manifest(template, cases, outlier, seed, options)
    try:
        out_dir.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out_dir.name}-", dir=out_dir.parent) as workspace:
            whole = Path(workspace, "new")
            whole.mkdir()
            for modality, (_, _, write) in plan.items():
                for case_id in cases[modality]:
                    streaks = modality == "ct" and case_id == outlier
                    write(whole, Case(seed, template.name, modality, case_id), replace(options, streaks=streaks))
                    logging.info("phantom %s %s case %s", template.name, modality, case_id)
            (whole / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
            if out_dir.exists():
                out_dir.rename(Path(workspace, "old"))
            whole.rename(out_dir)
    except OSError as error:
        raise InputError(
            f"{out_dir}: phantom not written ({error.strerror or error}): the folder is as before"
        ) from error


def _check_numbers(seed: int, options: Options) -> None:
    if seed < 0:
        raise InputError(f"seed {seed}: expected 0 or more")
    if not 16 <= options.size <= 512:
        raise InputError(f"size {options.size}: expected 16 to 512 pixels")
    if not 1 <= options.low_resolution_mr <= 32:
        raise InputError(f"low_resolution_mr {options.low_resolution_mr:g}: expected 1 (sharp) to 32 pixels")


def _take_ids(ids: Sequence[str], number: int, modality: str, extra: bool) -> list[str]:
    if not 0 <= number <= len(ids) - extra:
        outlier = " beside the outlier" if extra else ""
        raise InputError(f"{number} {modality} cases: expected 0 to {len(ids) - extra}{outlier}, as the real set has")
    return list(ids[: number + extra])


def _check_out_dir(out_dir: Path, overwrite: bool) -> None:
    """Refuses to mix with, or to delete, what is there."""
    if out_dir.exists() and not out_dir.is_dir():
        raise InputError(f"{out_dir}: is a file: expected a folder to make; give another --out")
    if not out_dir.is_dir() or not any(out_dir.iterdir()):
        return
    if not overwrite:
        raise InputError(f"{out_dir}: not empty: expected a new or empty folder; give another --out or --overwrite")
    if not (out_dir / MANIFEST).is_file():
        raise InputError(f"{out_dir}: holds no {MANIFEST}, so it is not a phantom's to replace; give another --out")


def _manifest(
    template: Template, cases: Mapping[str, list[str]], outlier: str | None, seed: int, options: Options
) -> dict[str, object]:
    sequences = next(iter(template.signals.values()))
    return {
        "generator": "data_prep.phantom",
        "version": VERSION,
        "task": template.name,
        "seed": seed,
        "options": {name: value for name, value in asdict(options).items() if name != "streaks"},
        "cases": cases,
        "outlier_ct": outlier,
        "shared_intensities": {
            sequence: template.shared_intensities(sequence, anticorrelated_mr=options.anticorrelated_mr)
            for sequence in sequences
        },
        "glitches": {
            glitch: {modality: case_id}
            for glitch, (task, modality, case_id) in GLITCHES.items()
            if task == template.name and case_id in cases[modality]
        },
    }


# --- program ---------------------------------------------------------------------------------------------------------


def parse_cases(text: str) -> dict[str, int]:
    """Reads "ct:6,mr:6".

    Raises:
        InputError: Another form, another modality, or one twice.
    """
    pairs = [part.partition(":")[::2] for part in text.split(",")]
    counts = {modality.strip(): int(number) for modality, number in pairs if number.strip().isdecimal()}
    if len(counts) != len(pairs) or not counts.keys() <= {"ct", "mr"}:
        raise InputError(f"--cases={text}: expected ct:NUMBER,mr:NUMBER, e.g. ct:6,mr:6")
    return counts


def _define_flags() -> None:
    flags.DEFINE_enum("task", "abdomen", ["abdomen", "cardiac"], "Which anatomy: BTCV + CHAOS, or MM-WHS.")
    flags.DEFINE_string("out", None, "Folder to make.", required=True)
    flags.DEFINE_string("cases", "ct:6,mr:6", "Number of cases by modality.")
    flags.DEFINE_integer("seed", 0, "The same seed gives the same bytes.")
    flags.DEFINE_integer("size", 128, "Pixels of a row; real: 256 (abdomen), 512 (cardiac).")
    flags.DEFINE_bool("t1", False, "Abdomen: write CHAOS's T1DUAL too.")
    flags.DEFINE_bool("anticorrelated_mr", False, "MR intensities are CT's turned upside down.")
    flags.DEFINE_float("low_resolution_mr", 1.0, "Width of the MR's point spread in pixels.")
    flags.DEFINE_bool("outlier_ct", False, "One CT more, with streaks; phantom.json names it.")
    flags.DEFINE_bool("overwrite", False, "Replace an earlier phantom.")


def main(argv: list[str]) -> None:
    """Writes the set the flags ask for."""
    del argv
    values = flags.FLAGS
    counts = parse_cases(values.cases)
    arguments: dict[str, Any] = {
        "num_ct": counts.get("ct", 0),
        "num_mr": counts.get("mr", 0),
        **{
            name: values[name].value
            for name in ("seed", "size", "anticorrelated_mr", "low_resolution_mr", "outlier_ct", "overwrite")
        },
    }
    if values.task == "abdomen":
        write_abdomen(values.out, t1=values.t1, **arguments)
    elif values.t1:
        raise InputError("--t1: CHAOS's second sequence belongs to --task=abdomen; leave it out")
    else:
        write_cardiac(values.out, **arguments)
    print(f"{values.task} phantom: {values.out} ({values.cases}, seed {values.seed})")


if __name__ == "__main__":
    _define_flags()
    cli.run(main)
