"""The two networks as tables of named stages (Fig. 2 and Fig. 3; docs/reproduction.md#network-2d).

A `Network` is data; `layers.Stage` turns one row into layers. Which stages are shared is not written here: a setting
names a region, and the network says which stages the region covers. Importing this module does not import TensorFlow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from ummkd_tf.settings import SETTINGS, Region

Normalization = Literal["batch", "instance", "layer", "group"]
"""Kinds of Table V."""

Initialization = Literal["released", "glorot"]
"""How kernels start."""

Order = Literal["norm-act-conv", "conv-norm-act", "conv"]
"""In which order a unit normalizes, activates and convolves: that of the 2D network, of the 3D network, or no norm."""


@dataclass(frozen=True)
class Filters:
    """Number of output channels: a multiple of the width or of the number of classes."""

    per_width: int = 0
    per_class: int = 0

    def count(self, width: int, num_classes: int) -> int:
        """Channels at a given width."""
        return self.per_width * width + self.per_class * num_classes


@dataclass(frozen=True)
class Conv:
    """A convolution with its normalization and activation: one `layers.ConvUnit`.

    Attributes:
        filters: Output channels.
        kernel_size: Kernel along each spatial axis.
        order: Of normalization, activation and convolution.
        dilation: Dilation rate.
        up: Transposed convolution with stride 2 along every axis.
        symmetric_pad: Mirror the border instead of padding with zeros.
        use_bias: Adds a bias to the convolution.
        dropout: Whether the network's dropout follows.
    """

    filters: Filters
    kernel_size: tuple[int, ...]
    order: Order
    dilation: int = 1
    up: bool = False
    symmetric_pad: bool = False
    use_bias: bool = False
    dropout: bool = False


@dataclass(frozen=True)
class Block:
    """A residual block of two equal units that starts at the given unit's width."""

    unit: Conv


@dataclass(frozen=True)
class StageRow:
    """One stage: an optional max-pool 2 at its entry, its layers, and what is joined to them.

    Attributes:
        name: Scope, and the name regions refer to.
        layers: In order; residual blocks come last.
        pool: Max-pool by 2 along every spatial axis before the layers.
        skip: Earlier stage whose output is concatenated after the first layer.
        phase_shift: Factor of the phase shift after the last layer.
    """

    name: str
    layers: tuple[Conv | Block, ...]
    pool: bool = False
    skip: str | None = None
    phase_shift: int = 0


@dataclass(frozen=True)
class Network:
    """A network as a table of stages: one of the paper's, or a user's own.

    Attributes:
        name: Flag value.
        input_channels: 3 adjacent slices (2D) or 1 (3D).
        rank: Number of spatial axes.
        stages: In order; the last one gives the logits.
        regions: Stages that each region covers.
        multiple: Every spatial size must be a multiple of this.
        dropout: Share of activations dropped in training.
        paper_parameters: Param column of Table I or II, by setting; at width 16, 5 classes, batch normalization.
    """

    name: str
    input_channels: int
    rank: int
    stages: tuple[StageRow, ...]
    regions: Mapping[Region, tuple[str, ...]]
    multiple: int
    dropout: float
    paper_parameters: Mapping[str, str] = field(default_factory=dict)


def make_regions(names: Sequence[str], green: str, blue: tuple[str, str]) -> Mapping[Region, tuple[str, ...]]:
    """Regions from the first stage after the green line, and the first and last stage between the blue lines."""
    first, last = names.index(blue[0]), names.index(blue[1])
    return MappingProxyType(
        {
            "nowhere": (),
            "before_green_line": tuple(names[: names.index(green)]),
            "outside_blue_lines": tuple(n for i, n in enumerate(names) if not first <= i <= last),
            "everywhere": tuple(names),
        }
    )


def _by_setting(individual: str, joint: str, y_shaped: str, x_shaped: str, ours: str) -> Mapping[str, str]:
    columns = (individual, joint, joint, y_shaped, x_shaped, ours, ours)
    return MappingProxyType(dict(zip(SETTINGS, columns, strict=True)))


def _dilated2d() -> Network:
    """Network-1: pre-activation residual units; widths in multiples of w."""

    def unit(width: int, dilation: int = 1) -> Conv:
        return Conv(Filters(per_width=width), (3, 3), "norm-act-conv", dilation=dilation, dropout=True)

    def blocks(number: int, width: int, dilation: int = 1) -> tuple[Block, ...]:
        return (Block(unit(width, dilation)),) * number

    plain = Conv(Filters(per_width=1), (3, 3), "conv")
    # 64 · 8 · C channels whatever the width, as released: 8 · C after the phase shift.
    wide = Conv(Filters(per_class=64 * 8), (3, 3), "conv-norm-act", symmetric_pad=True)
    logits = Conv(Filters(per_class=1), (5, 5), "conv", symmetric_pad=True)
    stages = (
        StageRow("group_1", (plain, *blocks(1, 1))),
        StageRow("group_2", blocks(1, 2), pool=True),
        StageRow("group_3", blocks(2, 4), pool=True),
        StageRow("group_4", blocks(2, 8), pool=True),
        StageRow("group_5", blocks(2, 16)),
        StageRow("group_6", blocks(2, 16)),
        StageRow("group_7", blocks(2, 32)),
        StageRow("group_8", blocks(2, 32, dilation=2)),
        StageRow("group_9", (unit(32), unit(32))),
        StageRow("group_10", (wide,), phase_shift=8),
        StageRow("output", (logits,)),
    )
    return Network(
        name="dilated2d",
        input_channels=3,
        rank=2,
        stages=stages,
        regions=make_regions([s.name for s in stages], green="group_5", blue=("group_5", "group_7")),
        multiple=8,
        dropout=0.25,
        paper_parameters=_by_setting("78.64M", "39.32M", "39.99M", "65.96M", "39.34M"),
    )


def _unet3d() -> Network:
    """Network-2 with the decoder that gives Table II's counts (inferred from them)."""

    def conv(kernel: tuple[int, int, int], width: int, up: bool = False) -> Conv:
        return Conv(Filters(per_width=width), kernel, "conv-norm-act", up=up)

    cube, flat = (3, 3, 3), (3, 3, 1)
    logits = Conv(Filters(per_class=1), (1, 1, 1), "conv", use_bias=True)
    stages = (
        StageRow("encoder_1", (conv(cube, 1), conv(cube, 2))),
        StageRow("encoder_2", (conv(cube, 2), conv(cube, 4)), pool=True),
        StageRow("encoder_3", (conv(flat, 4), conv(flat, 8)), pool=True),
        StageRow("encoder_4", (conv(flat, 8), conv(flat, 16)), pool=True),
        StageRow("decoder_3", (conv((2, 2, 1), 8, up=True), conv(flat, 8), conv(flat, 8)), skip="encoder_3"),
        StageRow("decoder_2", (conv(flat, 8, up=True), conv(cube, 4), conv(cube, 4)), skip="encoder_2"),
        StageRow("decoder_1", (conv((2, 2, 2), 2, up=True), conv(cube, 2), conv(cube, 2)), skip="encoder_1"),
        StageRow("output", (logits,)),
    )
    return Network(
        name="unet3d",
        input_channels=1,
        rank=3,
        stages=stages,
        regions=make_regions([s.name for s in stages], green="encoder_4", blue=("encoder_4", "encoder_4")),
        multiple=8,
        dropout=0.0,
        paper_parameters=_by_setting("3832K", "1916K", "2124K", "3389K", "1919K"),
    )


NETWORKS: Mapping[str, Network] = MappingProxyType({n.name: n for n in (_dilated2d(), _unet3d())})
