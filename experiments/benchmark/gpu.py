"""Part `gpu`: training step, memory and inference on a GPU, beside PyTorch."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from experiments.benchmark.results import OURS, Measurement, Part
from experiments.benchmark.steps import INSTALL, Size, Worker
from experiments.benchmark.timing import interleaved
from ummkd_tf.common.errors import InputError
from ummkd_tf.runs.environment import device, has_gpu

OURS_WAYS = (OURS, "ours, bfloat16", "ours, XLA", "ours, bfloat16, XLA", "ours, fast")
PYTORCH_WAYS = ("pytorch", "pytorch, AMP", "pytorch, AMP, compiled")

FULL = (Size("dilated2d", 8, 256, 16), Size("unet3d", 2, 256, 16))


def measure(sizes: Sequence[Size], rounds: int) -> Part:
    """Steps of all contenders in turns, and inference; nothing where no GPU is visible.

    Args:
        sizes: Of the steps.
        rounds: How often.
    """
    title = "GPU"
    if not has_gpu():
        return Part("gpu", title, notes=["No GPU is visible: nothing was measured."])
    notes = [
        f"On {device()}. PyTorch with channels-last memory. GiB: the largest memory of tensors on the GPU. "
        "ours, fast: with the operations of `ummkd_tf/fast/`, which are for CPUs and stay off here."
    ]
    names = list(OURS_WAYS)
    if importlib.util.find_spec("torch"):
        names += PYTORCH_WAYS
    else:
        notes.append(f"pytorch is left out: torch is not installed; {INSTALL}")
    rows: list[Measurement] = []
    for size in sizes:
        for name in names:
            # One at a time: together they would not fit into the memory of a GPU.
            try:
                with Worker(name, size) as worker:
                    timing = interleaved({name: worker.step}, rounds + 2)[name]
                    gib = worker.last["gpu_bytes"] / 2**30
                    values = {"GPU GiB": gib, "GFLOP/s": size.gflop / timing.median}
                    values["s to first step"] = worker.first_step_seconds
                    rows.append(Measurement(size.title, name, timing, values))
            except InputError as error:
                notes.append(f"left out: {error}")
    from experiments.benchmark import inference  # here, to start without TensorFlow

    largest = max(size.size for size in sizes)
    of_volumes = inference.measure(largest, 200 if largest >= 256 else 16, sizes[0].width, rounds)
    return Part("gpu", title, [*rows, *of_volumes.rows], notes=[*notes, *of_volumes.notes])
