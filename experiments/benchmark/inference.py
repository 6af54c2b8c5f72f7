"""Part `inference`: class probabilities of a 256×256×200 volume and of one 256×256×8 patch."""

from __future__ import annotations

from functools import partial

import numpy as np

from experiments.benchmark.batches import DEPTH, NUM_CLASSES
from experiments.benchmark.flops import forward_flops
from experiments.benchmark.results import OURS, Measurement, Part
from experiments.benchmark.timing import interleaved, timed
from ummkd_tf.data.sampling import chunk_starts
from ummkd_tf.evaluation.inference import Predictor
from ummkd_tf.model.architectures import NETWORKS
from ummkd_tf.model.segmenter import UnpairedSegmenter


def measure(size: int, depth: int, width: int, rounds: int) -> Part:
    """Both networks.

    Args:
        size: Rows and columns.
        depth: Slices of the volume.
        width: Base width w.
        rounds: How often.
    """
    volume = np.random.default_rng(0).standard_normal((size, size, depth), dtype=np.float32)
    cases, gflop = {}, {}
    for name, network in NETWORKS.items():
        predictor = Predictor(UnpairedSegmenter(name, "ours", num_classes=NUM_CLASSES, width=width))
        space = (size, size) if network.rank == 2 else (size, size, DEPTH)
        each = forward_flops(network, width, NUM_CLASSES, space) / 1e9
        for chunks in (1, 2, 3):  # traced before it is timed, at last for any number of them
            predictor.probabilities(volume[:, :, : chunks * DEPTH], "ct")
        for slices in (depth, DEPTH):
            case = f"{name}, {size}²×{slices}, width {width}"
            image = volume[:, :, :slices]
            gflop[case] = each * (slices if network.rank == 2 else len(chunk_starts(slices)))
            cases[case] = timed(partial(predictor.probabilities, image, "ct"))
    timings = interleaved(cases, rounds)
    rows = [
        Measurement(case, OURS, t, {"GFLOP": gflop[case], "GFLOP/s": gflop[case] / t.median})
        for case, t in timings.items()
    ]
    return Part("inference", "Inference", rows, notes=["With `Predictor`, four slices or chunks at a time."])
