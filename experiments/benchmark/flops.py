"""Floating-point operations of a network's convolutions, counted from its table.

A multiplication and an addition are two operations. The direct convolution is counted, border positions in full. An
implementation that needs fewer operations (Winograd) can therefore exceed the machine's peak. Normalization,
activations and losses are left out: they are below one per cent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ummkd_tf.model.architectures import Block, Network


def convolutions(network: Network, width: int, num_classes: int, space: Sequence[int]) -> list[tuple[str, int]]:
    """(stage, operations) of every convolution in one forward pass over one example.

    Args:
        network: Row of the network table.
        width: Base width w.
        num_classes: C.
        space: Size of the input along each spatial axis.
    """
    counts: list[tuple[str, int]] = []
    size, channels = list(space), network.input_channels
    channels_of: dict[str, int] = {}
    for row in network.stages:
        if row.pool:
            size = [-(-side // 2) for side in size]
        for number, layer in enumerate(row.layers):
            units = [layer.unit] * 2 if isinstance(layer, Block) else [layer]
            for unit in units:
                filters = unit.filters.count(width, num_classes)
                # In a transposed convolution every input position meets the whole kernel, otherwise every output one.
                counts.append((row.name, 2 * math.prod(size) * math.prod(unit.kernel_size) * channels * filters))
                size = [2 * side for side in size] if unit.up else size
                channels = filters
            if number == 0 and row.skip:
                channels += channels_of[row.skip]
        if row.phase_shift:
            size = [side * row.phase_shift for side in size]
            channels //= row.phase_shift**network.rank
        channels_of[row.name] = channels
    return counts


def forward_flops(network: Network, width: int, num_classes: int, space: Sequence[int]) -> int:
    """Operations of one forward pass over one example."""
    return sum(count for _, count in convolutions(network, width, num_classes, space))


def training_flops(network: Network, width: int, num_classes: int, space: Sequence[int], examples: int) -> int:
    """Operations of a training step: forward, gradient of the kernels, and gradient of the inputs but for the image's.

    Args:
        network: Row of the network table.
        width: Base width w.
        num_classes: C.
        space: Size of the input along each spatial axis.
        examples: Of all modalities together.
    """
    counts = [count for _, count in convolutions(network, width, num_classes, space)]
    return examples * (3 * sum(counts) - counts[0])
