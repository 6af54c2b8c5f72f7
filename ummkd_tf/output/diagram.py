"""Diagrams of networks in the manner of the paper's Fig. 1 to 3, from the tables that the layers are made from."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import matplotlib.patheffects as effects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, Patch, Rectangle

from ummkd_tf.model.architectures import Block, Conv, Network, StageRow
from ummkd_tf.model.networks import unit_of
from ummkd_tf.settings import Setting

# Blue and orange first, which colour-blind readers tell apart.
_SHARED, _SEPARATE = "#d9dde2", ("#7fb3e0", "#f0ae6a", "#8fd0b0", "#c9a6e0")
_INK, _GREEN, _BLUE, _KD = "#22282e", "#1b8a3a", "#1f5fc4", "#a01f4f"
_HEIGHT, _GAP = 3.0, 0.85  # of a box at full resolution, and between boxes
_HALO = [effects.withStroke(linewidth=3, foreground="white", alpha=0.8)]


def network_diagram(
    network: Network, setting: Setting, modalities: Sequence[str], *, width: int, num_classes: int
) -> Figure:
    """One box a stage: its height stands for the resolution, its width for the number of layers.

    A box is cut into one stripe per modality where kernels are separate, and so is the bar of norms above it. The green
    and blue lines bound the regions that the "Y"- and "X"-shaped settings keep separate (Fig. 2 and Fig. 3).

    Args:
        network: Its stages, in order.
        setting: Says which stages are separate, and whether knowledge is distilled.
        modalities: Names, in the model's order.
        width: Number of channels w that widths are multiples of.
        num_classes: Number of classes C.
    """
    stages = network.stages
    kernels, norms = (network.regions[r] for r in (setting.separate_kernels, setting.separate_norms))
    levels = _levels(stages)
    lefts, x = {}, 1.2
    for stage in stages:
        lefts[stage.name] = x
        x += _box_width(stage) + _GAP
    end = x - _GAP
    figure = Figure(figsize=(max(0.6 * (end + 3), 11), 4.8), layout="constrained")
    axes = figure.subplots()
    for stage in stages:
        left, height = lefts[stage.name], _box_height(levels[stage.name])
        _stage_box(axes, stage, left, height, len(modalities), stage.name in kernels, stage.name in norms)
        _words(axes, stage, left + _box_width(stage) / 2, height, width, num_classes)
    for stage, after in pairwise(stages):
        right = lefts[stage.name] + _box_width(stage)
        _arrow(axes, (right, 0), (lefts[after.name], 0))
        _change(axes, right + 0.62 * _GAP, stage, after)
    for stage in stages:
        if stage.skip:
            _skip(axes, stage, lefts, levels, stages)
    _arrow(axes, (0.5, 0), (1.2, 0))
    _text(axes, 0.4, 0, f"{' | '.join(modalities)}\n{_input_words(network)}", ha="right")
    _arrow(axes, (end, 0), (end + 0.7, 0))
    _text(axes, end + 0.8, 0, f"logits\n{num_classes} classes", ha="left")
    _lines(axes, network, lefts)
    if setting.distill:
        arrow = {"arrowstyle": "<->", "color": _KD, "linewidth": 1.6}
        axes.annotate("", (end + 0.5, 1.3), (end + 2.1, 1.3), arrowprops=arrow)
        _text(axes, end + 1.3, 1.45, f"KD loss (Eq. 4)\n{' ↔ '.join(modalities)}", color=_KD, va="bottom")
    axes.set(xlim=(-1.6, end + 2.9), ylim=(-_HEIGHT / 2 - 1.0, _HEIGHT / 2 + 1.2))
    axes.set_axis_off()
    axes.set_title("Box: kernels; its height: resolution; its number: channels. Bar above it: norms.", fontsize=9)
    title = f"{setting.title}, {network.name}: w = {width}, C = {num_classes}"
    figure.suptitle(title, parse_math=False, fontsize=13, color=_INK)
    _legend(figure, modalities)
    return figure


def _levels(stages: Sequence[StageRow]) -> dict[str, int]:
    """How often each stage's output is halved against the input; a phase shift doubles it back."""
    level, levels = 0, {}
    for stage in stages:
        level += stage.pool - _is_up(stage)
        levels[stage.name] = level
        level -= stage.phase_shift.bit_length() - 1 if stage.phase_shift else 0
    return levels


def _is_up(stage: StageRow) -> bool:
    return any(isinstance(layer, Conv) and layer.up for layer in stage.layers)


def _box_height(level: int) -> float:
    return _HEIGHT * 0.72**level


def _box_width(stage: StageRow) -> float:
    return 0.7 + 0.35 * sum(2 if isinstance(layer, Block) else 1 for layer in stage.layers)


def _stage_box(
    axes: Axes, stage: StageRow, left: float, height: float, modalities: int, separate: bool, own_norms: bool
) -> None:
    """The stage's kernels, and above them the bar of its norms."""
    across = _box_width(stage)

    def stripes(bottom: float, height: float, own: bool) -> None:
        count = modalities if own else 1
        for n in range(count):
            color = _SEPARATE[n % len(_SEPARATE)] if own else _SHARED
            place = (left, bottom + height * (count - 1 - n) / count)
            axes.add_patch(Rectangle(place, across, height / count, facecolor=color, edgecolor=_INK, linewidth=0.9))

    stripes(-height / 2, height, separate)
    if any(unit_of(layer).order != "conv" for layer in stage.layers):
        stripes(height / 2 + 0.06, 0.3, own_norms)


def _words(axes: Axes, stage: StageRow, x: float, height: float, width: int, num_classes: int) -> None:
    """Below the box: its name, its layers, and its last number of channels."""
    lines = [stage.name.replace("_", " ")]
    for layer, times in _counted(stage.layers):
        unit = unit_of(layer)
        size = "×".join(map(str, unit.kernel_size))
        kind = f"res. block{'s' * (times > 1)} " if isinstance(layer, Block) else "up " if unit.up else "conv "
        lines.append(f"{f'{times} ' if times > 1 else ''}{kind}{size}")
        if unit.dilation > 1:
            lines.append(f"dilation {unit.dilation}")
    channels = unit_of(stage.layers[-1]).filters.count(width, num_classes)
    turned = 90 * (channels > 999)
    _text(axes, x, 0, f"{channels:,}", fontsize=10, fontweight="bold", rotation=turned, path_effects=_HALO)
    _text(axes, x, -height / 2 - 0.12, "\n".join(lines), va="top", fontsize=7.5)


def _counted(layers: Sequence[Conv | Block]) -> list[tuple[Conv | Block, int]]:
    """Layers of the same kind in a row, with their number."""

    def kind(layer: Conv | Block) -> object:
        unit = unit_of(layer)
        return type(layer), unit.kernel_size, unit.dilation, unit.up

    counted: list[tuple[Conv | Block, int]] = []
    for layer in layers:
        if counted and kind(counted[-1][0]) == kind(layer):
            counted[-1] = (layer, counted[-1][1] + 1)
        else:
            counted.append((layer, 1))
    return counted


def _change(axes: Axes, x: float, stage: StageRow, after: StageRow) -> None:
    """What changes the resolution between two stages."""
    words = [
        *([f"phase shift {stage.phase_shift}"] if stage.phase_shift else []),
        *(["max-pool 2"] if after.pool else []),
        *(["up 2"] if _is_up(after) else []),
    ]
    _text(axes, x, 0.12, "\n".join(words), rotation=90, va="bottom", fontsize=7.5)


def _skip(
    axes: Axes, stage: StageRow, lefts: dict[str, float], levels: dict[str, int], stages: Sequence[StageRow]
) -> None:
    """An arc over the boxes, from the stage that is joined to the one that joins it."""
    source = next(s for s in stages if s.name == stage.skip)
    start, stop = (lefts[s.name] + _box_width(s) / 2 for s in (source, stage))
    bottom = _box_height(levels[stage.name]) / 2 + 0.4
    top = bottom + 0.45
    axes.plot([start, start, stop], [bottom, top, top], color=_INK, linewidth=1.1)
    _arrow(axes, (stop, top), (stop, bottom))
    # Before the arrow's corner, where no coloured line runs through it.
    _text(axes, stop - 0.1, top + 0.05, "concatenate", ha="right", va="bottom", fontsize=7.5)


def _lines(axes: Axes, network: Network, lefts: dict[str, float]) -> None:
    """The paper's green line, and its two blue ones: where the regions begin and end."""
    names = [s.name for s in network.stages]
    green = network.regions["before_green_line"]
    outside = network.regions["outside_blue_lines"]
    for region, color, shift in ((green, _GREEN, 0.12), (outside, _BLUE, 0.24)):
        for before, after in pairwise(names):
            if (before in region) != (after in region):
                x = lefts[after] - _GAP + shift
                axes.axvline(x, 0.08, 0.97, color=color, linewidth=2, linestyle=(0, (5, 2)))


def _input_words(network: Network) -> str:
    return "3 slices" if network.rank == 2 else "patch"


def _arrow(axes: Axes, start: tuple[float, float], stop: tuple[float, float]) -> None:
    arrow = FancyArrowPatch(start, stop, arrowstyle="-|>", mutation_scale=12, shrinkA=0, shrinkB=0, color=_INK)
    axes.add_patch(arrow)


def _text(axes: Axes, x: float, y: float, text: str, **options: object) -> None:
    axes.text(x, y, text, **{"ha": "center", "va": "center", "fontsize": 9, "color": _INK, **options})  # type: ignore[arg-type]


def _legend(figure: Figure, modalities: Sequence[str]) -> None:
    handles = [
        Patch(facecolor=_SHARED, edgecolor=_INK, label="shared by all modalities"),
        *(
            Patch(facecolor=_SEPARATE[n % len(_SEPARATE)], edgecolor=_INK, label=f"only {modality}")
            for n, modality in enumerate(modalities)
        ),
        Line2D([], [], color=_GREEN, linestyle=(0, (5, 2)), linewidth=2, label="green line (“Y”-shaped)"),
        Line2D([], [], color=_BLUE, linestyle=(0, (5, 2)), linewidth=2, label="blue lines (“X”-shaped)"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
