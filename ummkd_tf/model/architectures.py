"""The two networks as tables of named stages (Fig. 2 and Fig. 3; docs/reproduction.md#network-2d).

A `Network` is data; `layers.Stage` turns one row into layers. Which stages are shared is not written here: a setting
names a region, and the network says which stages the region covers. Importing this module does not import TensorFlow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal, get_args

from ummkd_tf.settings import Region

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
    """A network of the paper.

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

    def separate_stages(self, region: Region) -> tuple[str, ...]:
        """Names of the stages a region covers."""
        return self.regions[region]


def network_to_dict(network: Network) -> dict[str, Any]:
    """A network as JSON has it; `network_from_dict` undoes it."""
    plain = asdict(replace(network, regions={}, paper_parameters={}))
    return {**plain, "regions": {region: list(names) for region, names in network.regions.items()}}


def network_from_dict(content: Mapping[str, Any]) -> Network:
    """A network from what a run or an exported model stores of one that is not in `NETWORKS`.

    Raises:
        ValueError: No network, or an inconsistent one.
    """

    def conv(c: Mapping[str, Any]) -> Conv:
        return Conv(**{**c, "filters": Filters(**c["filters"]), "kernel_size": tuple(c["kernel_size"])})

    def row(r: Mapping[str, Any]) -> StageRow:
        layers = (Block(conv(layer["unit"])) if "unit" in layer else conv(layer) for layer in r["layers"])
        return StageRow(**{**r, "layers": tuple(layers)})

    try:
        stages = tuple(row(r) for r in content["stages"])
        regions = {region: tuple(names) for region, names in content["regions"].items()}
        network = Network(**{**content, "stages": stages, "regions": regions})
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"a stored network that is none ({error!r})") from error
    check_network(network)
    return network


def check_network(network: Network) -> None:
    """Checks a network of one's own.

    Raises:
        ValueError: Stages or regions that do not fit; names the first problem.
    """
    names = [s.name for s in network.stages]
    where = f"network {network.name!r}"
    if network.rank not in (2, 3) or not names:
        raise ValueError(f"{where}: rank {network.rank}, {len(names)} stages: expected 2 or 3, and at least one stage")
    for number, stage in enumerate(network.stages):
        if names.index(stage.name) != number or not stage.name.isidentifier():
            raise ValueError(f"{where}: stage name {stage.name!r}: expected different plain names")
        if stage.skip is not None and stage.skip not in names[:number]:
            raise ValueError(f"{where}: skip {stage.skip!r} of {stage.name}: expected an earlier stage")
        kernels = [(layer.unit if isinstance(layer, Block) else layer).kernel_size for layer in stage.layers]
        wrong = [kernel for kernel in kernels if len(kernel) != network.rank]
        if wrong or not kernels:
            raise ValueError(f"{where}: kernels {kernels} in {stage.name}: expected layers with {network.rank} sizes")
    for region in get_args(Region):
        unknown = set(network.regions.get(region, ("none",))) - set(names)
        if unknown:
            raise ValueError(f"{where}: region {region!r}: expected stages among {', '.join(names)}")


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
    return MappingProxyType(
        {
            "individual": individual,
            "joint": joint,
            "joint_kd": joint,
            "y_shaped": y_shaped,
            "x_shaped": x_shaped,
            "chilopod": ours,
            "ours": ours,
        }
    )


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

# The released decoder differs from the paper's in two up-convolutions: their kernels and one width.
_RELEASED_UP = {
    "decoder_3": Conv(Filters(per_width=8), (3, 3, 1), "conv-norm-act", up=True),
    "decoder_1": Conv(Filters(per_width=4), (3, 3, 3), "conv-norm-act", up=True),
}

DECODERS = ("paper", "released")


def get_network(name: str | Network | Mapping[str, Any], decoder: str = "paper") -> Network:
    """Row of the network table, with the decoder of Table II ("paper") or of the uploaded code ("released").

    A network of one's own, or what `network_to_dict` made of one, is returned as it is.

    Raises:
        ValueError: Unknown name or decoder, or a decoder for the 2D network, which has none.
    """
    if isinstance(name, Mapping):
        name = network_from_dict(name)
    if isinstance(name, Network):
        if decoder != "paper":
            raise ValueError(f"decoder={decoder!r} belongs to unet3d, not to network {name.name!r}: leave it out")
        return name
    if name not in NETWORKS:
        raise ValueError(f"unknown network {name!r}: expected one of {', '.join(NETWORKS)}")
    if decoder not in DECODERS:
        raise ValueError(f"unknown decoder {decoder!r}: expected one of {', '.join(DECODERS)}")
    network = NETWORKS[name]
    if decoder == "paper":
        return network
    if name != "unet3d":
        raise ValueError(f"network {name!r} has one form only: decoder='released' belongs to unet3d")
    stages = tuple(
        replace(row, layers=(_RELEASED_UP.get(row.name, row.layers[0]), *row.layers[1:])) for row in network.stages
    )
    return replace(network, stages=stages, paper_parameters={})
