"""Pictures of label maps over their scan, in the organ colours of the paper's Fig. 4 and Fig. 5.

Figures are built from `matplotlib.figure.Figure` directly: no display, no pyplot, no state left behind.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.patheffects as effects
import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from scipy import ndimage

from ummkd_tf.common.errors import InputError, one_line
from ummkd_tf.common.files import replacing
from ummkd_tf.tasks import Task

_OPPOSITE = dict(zip("RLAPSI", "LRPAIS", strict=True))
# Pairs of directions, and the plane across each. Of a plane's two directions, the later one here is vertical.
_PLANE_NAMES = {"RL": "sagittal", "AP": "coronal", "SI": "axial"}
_WIDTH_INCHES = 12.0
# No date in the file, so that the same figure gives the same bytes.
_METADATA: Mapping[str, Mapping[str, Any]] = {
    ".png": {},
    ".pdf": {"CreationDate": None},
    ".svg": {"Date": None},
}
# Lighter than the line it surrounds, since the paper's blue is hard to see on black.
_HALO = effects.withStroke(linewidth=2.4, foreground="white", alpha=0.55)
_DARK_EDGE = effects.withStroke(linewidth=2.6, foreground="black")


@dataclass(frozen=True)
class Plane:
    """How one plane through a volume is shown: as a radiologist looks at it.

    Superior (else anterior) is up; the patient's left (else posterior) is on the right.

    Attributes:
        name: "axial", "coronal" or "sagittal".
        through: Array axis that the plane stands across.
        down: Array axis shown from top to bottom.
        right: Array axis shown from left to right.
        flip_down: Whether `down` is shown in reverse, so that it ends at `bottom`.
        flip_right: Whether `right` is shown in reverse, so that it ends at the picture's right.
        edges: Patient direction (R/L, A/P, S/I) at the picture's top, bottom, left and right edge.
    """

    name: str
    through: int
    down: int
    right: int
    flip_down: bool
    flip_right: bool
    edges: tuple[str, str, str, str]

    def cut(self, volume: NDArray, index: int) -> NDArray:
        """The picture `[top to bottom, left to right]` at an index of the axis `through`."""
        picture = volume.take(index, axis=self.through)
        if self.down > self.right:
            picture = picture.T
        return picture[:: -1 if self.flip_down else 1, :: -1 if self.flip_right else 1]

    def aspect(self, spacing_mm: Sequence[float]) -> float:
        """Height of a voxel divided by its width; `spacing_mm` of the array axes."""
        return spacing_mm[self.down] / spacing_mm[self.right]


def planes(axes: str) -> tuple[Plane, Plane, Plane]:
    """The three planes of a volume with the given axes (e.g. "PLS"): rows × columns first."""
    first, second, third = (_plane(axes, through) for through in (2, 0, 1))
    return first, second, third


def _plane(axes: str, through: int) -> Plane:
    shown = [axis for axis in range(3) if axis != through]
    right, down = sorted(shown, key=lambda axis: list(_PLANE_NAMES).index(_pair(axes[axis])))
    bottom = "I" if axes[down] in "SI" else "P"
    edge = "L" if axes[right] in "RL" else "P"
    return Plane(
        name=_PLANE_NAMES[_pair(axes[through])],
        through=through,
        down=down,
        right=right,
        flip_down=axes[down] != bottom,
        flip_right=axes[right] != edge,
        edges=(_OPPOSITE[bottom], bottom, _OPPOSITE[edge], edge),
    )


def _pair(letter: str) -> str:
    return next(pair for pair in _PLANE_NAMES if letter in pair)


def overlay_figure(
    image: NDArray[np.float32],
    label: NDArray,
    *,
    task: Task,
    spacing_mm: Sequence[float],
    reference: NDArray | None = None,
    title: str | None = None,
) -> Figure:
    """A scan in three planes with each organ's contour.

    Each plane goes through the slice with the most foreground, where every class counts relative to its largest
    slice: a small organ is then not left out for a large one. A class also carries its number, for readers who do not
    tell the colours apart.

    Args:
        image: Any intensities [rows, columns, slices] on axes as `task.axes`.
        label: Class map 0..C-1 of the same shape (the prediction, when there is a reference).
        task: Names, colours and axes.
        spacing_mm: Of rows, columns and slices.
        reference: Class map to compare with, drawn dashed.
        title: Shown literally above the planes.

    Raises:
        InputError: Shapes differ, or a label is no class of the task.
    """
    maps = {"label": label} if reference is None else {"prediction": label, "reference": reference}
    for what, classes in maps.items():
        check_classes(what, classes, image, task)
    shown = planes(task.axes)
    extents = [(image.shape[p.down] * spacing_mm[p.down], image.shape[p.right] * spacing_mm[p.right]) for p in shown]
    widths = [width for _, width in extents]
    height = _WIDTH_INCHES * max(height for height, _ in extents) / sum(widths)
    figure = Figure(figsize=(_WIDTH_INCHES, height + 0.9), layout="constrained")
    low, high = gray_range(image, *maps.values())
    for axes, plane in zip(figure.subplots(1, 3, width_ratios=widths), shown, strict=True):
        index = busiest_slice(list(maps.values()), plane.through, task.num_classes)
        aspect = plane.aspect(spacing_mm)
        _cut_with_contours(axes, plane, index, image, list(maps.values()), task, vmin=low, vmax=high, aspect=aspect)
        axes.set_title(f"{plane.name}, {index + 1} of {image.shape[plane.through]}", fontsize=10)
    _legend(figure, task, compared=reference is not None)
    if title is not None:
        figure.suptitle(one_line(title), parse_math=False, fontsize=12)
    return figure


def batch_figure(images: Mapping[str, NDArray], labels: Mapping[str, NDArray], task: Task) -> Figure:
    """A training batch as the network gets it: of each example the slice with the most foreground, and its contours.

    Args:
        images: Modality → [batch, rows, columns, 3] or [batch, rows, columns, slices, 1].
        labels: Modality → class maps [batch, rows, columns(, slices)].
        task: Names, colours, axes and spacing.
    """
    plane = planes(task.axes)[0]
    aspect = plane.aspect(task.spacing_mm)
    columns = max(len(batch) for batch in images.values())
    figure = Figure(figsize=(3 * columns, 3 * len(images) + 0.5), layout="constrained")
    for row, modality in zip(figure.subplots(len(images), columns, squeeze=False), images, strict=True):
        for axes, image, label in zip(row, images[modality], labels[modality], strict=False):
            # 2D: the middle one of three slices has the label.
            scan, classes = (image[..., 1:2], label[..., np.newaxis]) if label.ndim == 2 else (image[..., 0], label)
            index = busiest_slice([classes], plane.through, task.num_classes)
            _cut_with_contours(axes, plane, index, scan, [classes], task, aspect=aspect)
            axes.set_title(modality, fontsize=10)
    _legend(figure, task, compared=False)
    return figure


def rgb(color: str) -> tuple[int, int, int]:
    """Red, green and blue of a colour as matplotlib names it, 0 to 255."""
    red, green, blue = (round(255 * part) for part in to_rgb(color))
    return red, green, blue


def gray_range(image: NDArray[np.float32], *maps: NDArray) -> tuple[float, float]:
    """Intensities to show as black and white: the 1st to the 99th percentile, and no organ's beyond them.

    Args:
        image: Any intensities.
        maps: Class maps of the same shape; small organs may be brighter than 99 % of a scan.
    """
    parts = [image, *(image[classes > 0] for classes in maps if classes.any())]
    return min(float(np.percentile(p, 1)) for p in parts), max(float(np.percentile(p, 99)) for p in parts)


def validation_figure(cases: Mapping[str, tuple[NDArray[np.float32], NDArray, NDArray]], task: Task) -> Figure:
    """Of each case the slice whose reference has the most foreground: prediction solid, reference dashed.

    Args:
        cases: Case id → image, prediction and reference, each [rows, columns, slices].
        task: Names, colours, axes and spacing.
    """
    plane = planes(task.axes)[0]
    figure = Figure(figsize=(4 * len(cases), 4.3), layout="constrained")
    for axes, (case_id, (image, predicted, reference)) in zip(
        figure.subplots(1, len(cases), squeeze=False)[0], cases.items(), strict=True
    ):
        index = busiest_slice([reference], plane.through, task.num_classes)
        aspect = plane.aspect(task.spacing_mm)
        _cut_with_contours(axes, plane, index, image, [predicted, reference], task, aspect=aspect)
        text = f"{case_id}, {plane.name}, {index + 1} of {image.shape[plane.through]}"
        axes.set_title(text, fontsize=10, parse_math=False)
    _legend(figure, task, compared=True)
    return figure


def _cut_with_contours(
    axes: Axes, plane: Plane, index: int, image: NDArray, maps: Sequence[NDArray], task: Task, **shown: Any
) -> None:
    """One plane of a scan; the first class map solid with its classes' numbers, a second dashed."""
    axes.imshow(plane.cut(image, index), cmap="gray", **shown)
    for c, name in enumerate(task.class_names[1:], start=1):
        color = task.class_colors[name]
        draw_contour(axes, plane.cut(maps[0], index) == c, color, number=c)
        for reference in maps[1:]:
            draw_contour(axes, plane.cut(reference, index) == c, color, dashed=True)
    _edge_letters(axes, plane)
    axes.set_axis_off()


def check_classes(what: str, classes: NDArray, image: NDArray, task: Task) -> None:
    """Checks that a class map fits its image and its task.

    Raises:
        InputError: Shapes differ, or a label is no class of the task.
    """
    if image.ndim != 3 or classes.shape != image.shape:
        raise InputError(
            f"the {what} has shape {classes.shape} and the image {image.shape}: expected one 3D shape; "
            "give the image's own class map"
        )
    if classes.min() < 0 or classes.max() >= task.num_classes:
        raise InputError(
            f"the {what} has values {classes.min()}..{classes.max()}: expected the classes 0..{task.num_classes - 1} "
            f"of the {task.name} task; map its labels first"
        )


def busiest_slice(maps: Sequence[NDArray], axis: int, num_classes: int) -> int:
    """Index with the most foreground in all maps, each class relative to its largest slice; the middle without any."""
    across = tuple(a for a in range(3) if a != axis)
    score = np.zeros(maps[0].shape[axis])
    for c in range(1, num_classes):
        area = sum((np.count_nonzero(m == c, axis=across) for m in maps), np.zeros_like(score))
        score += area / max(area.max(), 1)
    return int(score.argmax()) if score.any() else len(score) // 2


def draw_contour(
    axes: Axes,
    mask: NDArray[np.bool_],
    color: str,
    *,
    number: int | None = None,
    dashed: bool = False,
    linewidth: float = 1.3,
) -> None:
    """Draws the edge of a mask [top to bottom, left to right], with a halo, and its number inside."""
    if not mask.any():
        return
    limits = axes.get_xlim(), axes.get_ylim()
    padded = np.pad(mask, 1)  # closes the line of an organ that is cut by the picture's edge
    rows, columns = (np.arange(-1, n + 1) for n in mask.shape)
    lines = axes.contour(columns, rows, padded, levels=[0.5], colors=[color], linewidths=linewidth)
    lines.set(path_effects=[_HALO, effects.Normal()])
    if dashed:
        # The dark edge makes the dashes readable where both contours agree.
        lines.set(linestyle=(0, (3, 3)), path_effects=[_DARK_EDGE, effects.Normal()])
    axes.set(xlim=limits[0], ylim=limits[1])
    if number is not None:
        depth = ndimage.distance_transform_edt(padded)
        row, column = np.unravel_index(depth.argmax(), depth.shape)
        axes.text(
            float(column) - 1, float(row) - 1, str(number), color="white", fontsize=6 * linewidth, ha="center",
            va="center", path_effects=[effects.withStroke(linewidth=2 * linewidth, foreground="black")],
        )  # fmt: skip


def _edge_letters(axes: Axes, plane: Plane) -> None:
    places = ((0.5, 0.99, "center", "top"), (0.5, 0.01, "center", "bottom"),
              (0.01, 0.5, "left", "center"), (0.99, 0.5, "right", "center"))  # fmt: skip
    for letter, (x, y, horizontal, vertical) in zip(plane.edges, places, strict=True):
        axes.text(
            x, y, letter, transform=axes.transAxes, ha=horizontal, va=vertical, color="white", fontsize=11,
            fontweight="bold", path_effects=[_DARK_EDGE], gid="edge",
        )  # fmt: skip


def _legend(figure: Figure, task: Task, compared: bool) -> None:
    """In as many rows as the figure's width makes necessary, by which it gets higher."""
    lines = [
        Line2D([], [], color=task.class_colors[name], linewidth=2.5, label=f"{c} {name.replace('_', ' ')}")
        for c, name in enumerate(task.class_names[1:], start=1)
    ]
    if compared:
        lines.append(Line2D([], [], color="black", label="prediction (solid)"))
        lines.append(Line2D([], [], color="black", linestyle=(0, (3, 3)), label="reference (dashed)"))
    widest = 48 + 6 * max(len(str(line.get_label())) for line in lines)  # points: line and margins, and the letters
    columns = min(len(lines), max(1, int(72 * figure.get_figwidth() / widest)))
    figure.set_figheight(figure.get_figheight() + 0.2 * (math.ceil(len(lines) / columns) - 1))
    legend = figure.legend(handles=lines, loc="outside lower center", ncols=columns, frameon=False, fontsize=10)
    for text in legend.get_texts():
        text.set_parse_math(False)


def save_figure(figure: Figure, path: str | Path, dpi: int = 110) -> None:
    """Writes a figure whole or not at all; the suffix (.png, .pdf or .svg) chooses the format.

    Raises:
        InputError: Another suffix, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix not in _METADATA:
        raise InputError(f"unknown picture format {path.suffix!r}", where=path, fix=f"expected {', '.join(_METADATA)}")
    # Names in an SVG file are random without a salt.
    with replacing(path) as temporary, rc_context({"svg.hashsalt": "ummkd"}):
        figure.savefig(temporary, dpi=dpi, metadata=dict(_METADATA[path.suffix]))
