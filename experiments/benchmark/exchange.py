"""What several devices exchange in a training step, and what they can gain by it: the table of docs/scaling.md.

    python -m experiments.benchmark.exchange

Computed, not measured: bytes from the networks' tables, times from the rates below.
"""

from __future__ import annotations

import math

from experiments.benchmark.flops import training_flops
from ummkd_tf.common.cli import start_tensorflow
from ummkd_tf.model.architectures import NETWORKS

DEVICES = (1, 2, 4, 8, 16, 32, 64)
EXAMPLES = 4  # of each modality, on each device
RATE = 20e12  # floating-point operations a second that a GPU sustains: assumed
LINKS = {"NVLink, 300 GB/s": (300e9, 20e-6), "100 Gbit/s": (12.5e9, 50e-6), "10 Gbit/s": (1.25e9, 100e-6)}
"""Bytes a second of each device and seconds of each hop: assumed."""
MEASURED = {"dilated2d": 10.6, "unet3d": 4 * 7.40}
"""Seconds on two CPU cores with plain operations (docs/performance.md); 3D was measured with one example of each."""


def efficiency(compute: float, bytes_: float, exchanges: int, devices: int, rate: float, latency: float) -> float:
    """Share of a step's time that is computation, where no exchange overlaps with it.

    Args:
        compute: Seconds that a device computes.
        bytes_: Exchanged in a step; in a ring, each device sends 2 (N - 1) / N of them.
        exchanges: In how many messages one after the other, each up and down a tree, 2 log2 N hops.
        devices: N.
        rate: Bytes a second.
        latency: Seconds of a hop.
    """
    ring = 2 * (devices - 1) / devices * bytes_ / rate
    return compute / (compute + ring + 2 * math.log2(devices) * latency * exchanges)


def main() -> None:
    """Prints the table."""
    start_tensorflow()
    # Here, because it imports TensorFlow.
    from ummkd_tf.model.layers import BatchNorm
    from ummkd_tf.model.segmenter import UnpairedSegmenter

    print(f"| network, device, link | MB a step | exchanges | {' | '.join(map(str, DEVICES))} |")
    print("|---" * (3 + len(DEVICES)) + "|")
    for name, space in (("dilated2d", (256, 256)), ("unet3d", (256, 256, 8))):
        model = UnpairedSegmenter(name, "ours")
        norms = [layer for layer in model._flatten_layers() if isinstance(layer, BatchNorm)]
        gradients = 4 * sum(v.shape.num_elements() for v in model.trainable_variables)
        statistics = 2 * 4 * sum(2 * norm.gamma.shape[0] for norm in norms)  # two sums, and their gradients
        exchanges = 2 * len(norms) + 1
        compute = training_flops(NETWORKS[name], 16, 5, space, 2 * EXAMPLES) / RATE
        rows = [(f"GPU {compute:.2f} s", compute, link) for link in LINKS]
        for device, seconds, link in (*rows, (f"CPU {MEASURED[name]:.1f} s", MEASURED[name], "10 Gbit/s")):
            total = gradients + statistics
            shares = (efficiency(seconds, total, exchanges, devices, *LINKS[link]) for devices in DEVICES)
            cells = [f"{name}, {device}, {link}", f"{total / 1e6:.1f}", str(exchanges), *(f"{s:.0%}" for s in shares)]
            print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
