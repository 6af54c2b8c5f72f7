"""The paper's two segmentation tasks as data (Sec. IV-A): classes, grid and intensity range."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from ummkd_tf.common.errors import InputError


@dataclass(frozen=True)
class Clip:
    """Intensity range kept before the z-score, in the image's own unit or in percentiles of its voxels (0..100)."""

    low: float
    high: float
    unit: Literal["value", "percentile"] = "value"


@dataclass(frozen=True)
class Task:
    """What is segmented, and on which grid.

    Attributes:
        name: Flag value.
        network: The network the paper uses for the task (a key of `model.architectures.NETWORKS`).
        class_names: Class 0 (background) first; the position is the label value.
        table_classes: Foreground classes in the column order of the paper's tables.
        class_colors: The paper's contour colours (captions of Fig. 4 and Fig. 5), by class name.
        axes: Patient direction in which the row, column and slice index of a prepared volume increase
            (R/L, A/P, S/I). Rows and columns span the task's image plane.
        spacing_mm: Voxel spacing of rows, columns and slices.
        size: Rows and columns of a prepared volume.
        roi: What the in-plane window is centred on: the body without black margins, or the labelled heart.
        clip: Intensity range by modality; other modalities use the entry "default".
    """

    name: str
    network: str
    class_names: tuple[str, ...]
    table_classes: tuple[str, ...]
    class_colors: Mapping[str, str]
    axes: str
    spacing_mm: tuple[float, float, float]
    size: tuple[int, int]
    roi: Literal["body", "label_centroid"]
    clip: Mapping[str, Clip]

    @property
    def num_classes(self) -> int:
        """Number of classes, background included."""
        return len(self.class_names)

    def clip_for(self, modality: str) -> Clip:
        """Intensity range for a modality."""
        return self.clip.get(modality, self.clip["default"])


TASKS: Mapping[str, Task] = MappingProxyType(
    {
        task.name: task
        for task in (
            Task(
                name="cardiac",
                network="dilated2d",
                class_names=("background", "lv_myocardium", "left_atrium", "left_ventricle", "ascending_aorta"),
                table_classes=("lv_myocardium", "left_atrium", "left_ventricle", "ascending_aorta"),
                class_colors={
                    "lv_myocardium": "red",
                    "ascending_aorta": "yellow",
                    "left_ventricle": "blue",
                    "left_atrium": "green",
                },
                # Coronal planes [paper]. The direction of each axis is our choice, because neither source gives it:
                # feet down and patient's left on the image's right, as radiologists look at a coronal slice.
                axes="ILP",
                spacing_mm=(1.0, 1.0, 1.0),
                size=(256, 256),
                roi="label_centroid",
                # The group's answer to users: the top 2 % of the histogram is clipped.
                clip={"default": Clip(0.0, 98.0, "percentile")},
            ),
            Task(
                name="abdomen",
                network="unet3d",
                class_names=("background", "liver", "right_kidney", "left_kidney", "spleen"),
                table_classes=("liver", "spleen", "right_kidney", "left_kidney"),
                class_colors={"liver": "red", "spleen": "yellow", "right_kidney": "blue", "left_kidney": "green"},
                # Transverse planes [paper], displayed as in a viewer: anterior up, patient's left on the right.
                axes="PLS",
                spacing_mm=(1.5, 1.5, 8.0),
                size=(256, 256),
                roi="body",
                clip={
                    "ct": Clip(-125.0, 275.0),  # HU; what peers clip BTCV to
                    # Our choice, because neither source says: the task's organs are the bright part of T2-SPIR,
                    # so only the brightest half per cent (fluid) is cut.
                    "default": Clip(0.0, 99.5, "percentile"),
                },
            ),
        )
    }
)


def get_task(name: str) -> Task:
    """Row of the task table.

    Raises:
        InputError: No such task.
    """
    if name not in TASKS:
        raise InputError(f"unknown task {name!r}: expected one of {', '.join(TASKS)}")
    return TASKS[name]
