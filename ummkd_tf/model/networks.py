"""Finds a network by its name and decoder, and checks, stores and reads networks of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any, get_args

from ummkd_tf.model.architectures import NETWORKS, Block, Conv, Filters, Network, StageRow
from ummkd_tf.settings import Region

# The released decoder differs from the paper's in two up-convolutions: their kernels and one width.
_RELEASED_UP = {
    "decoder_3": Conv(Filters(per_width=8), (3, 3, 1), "conv-norm-act", up=True),
    "decoder_1": Conv(Filters(per_width=4), (3, 3, 3), "conv-norm-act", up=True),
}

DECODERS = ("paper", "released")


def unit_of(layer: Conv | Block) -> Conv:
    """The layer itself, or the convolution that a block has twice."""
    return layer.unit if isinstance(layer, Block) else layer


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


def network_to_dict(network: Network) -> dict[str, Any]:
    """A network as JSON has it; `network_from_dict` undoes it."""
    plain = asdict(replace(network, regions={}, paper_parameters={}))
    return {**plain, "regions": {region: list(names) for region, names in network.regions.items()}}


def network_from_dict(content: Mapping[str, Any]) -> Network:
    """The network that a run or an exported model has stored, because it is not in `NETWORKS`.

    Raises:
        ValueError: The content is damaged or inconsistent.
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
        raise ValueError(f"a stored network cannot be read ({error!r})") from error
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
        kernels = [unit_of(layer).kernel_size for layer in stage.layers]
        wrong = [kernel for kernel in kernels if len(kernel) != network.rank]
        if wrong or not kernels:
            raise ValueError(f"{where}: kernels {kernels} in {stage.name}: expected layers with {network.rank} sizes")
        blocks = [isinstance(layer, Block) for layer in stage.layers]
        if blocks != sorted(blocks):
            raise ValueError(f"{where}: a convolution behind a residual block in {stage.name}: expected blocks last")
        if stage.skip is not None and (len(blocks) < 2 or blocks[0]):
            raise ValueError(
                f"{where}: skip in {stage.name}: expected a convolution and another layer, since it joins between them"
            )
    for region in get_args(Region):
        covered = network.regions.get(region)
        if covered is None or not set(covered) <= set(names):
            raise ValueError(f"{where}: region {region!r} covers {covered}: expected stages among {', '.join(names)}")
