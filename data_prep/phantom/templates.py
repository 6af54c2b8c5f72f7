"""The organs of the abdomen and of the heart as tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_EVERYWHERE = 1e4  # mm; a semi-axis this long makes a cylinder


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
TABLE = Organ("table", (0, -135, 0), (230, 7, _EVERYWHERE), vary=0)  # CT only

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
