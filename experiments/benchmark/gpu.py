"""Part `gpu`: training step, memory and inference on a GPU, beside PyTorch."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from experiments.benchmark.results import OURS, OURS_BFLOAT16, Measurement, Part
from experiments.benchmark.steps import INSTALL, Size, Worker
from experiments.benchmark.timing import interleaved
from ummkd_tf.common.errors import InputError
from ummkd_tf.runs.environment import device, has_gpu

PLAIN = (OURS, OURS_BFLOAT16, "ours, fast", "pytorch", "pytorch, AMP")
COMPILED = ("ours, XLA", "ours, bfloat16, XLA", "pytorch, AMP, compiled")

FULL = (Size("dilated2d", 8, 256, 16), Size("unet3d", 2, 256, 16))


def measure(sizes: Sequence[Size], rounds: int, *, compiled: bool = True) -> Part:
    """Steps of all contenders in turns, and inference; nothing where no GPU is visible.

    Args:
        sizes: Of the steps.
        rounds: How often.
        compiled: Those of `COMPILED`, too; they take minutes to start.
    """
    title = "GPU"
    os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"  # else the first process takes all memory
    if not has_gpu():
        return Part("gpu", title, notes=["No GPU is visible: nothing was measured."])
    notes = [
        f"On {device()}. PyTorch with channels-last memory. GiB: the largest memory of tensors on the GPU. "
        "Seconds to the first step: all contenders of a size start at once. "
        "ours, fast: with the operations of `ummkd_tf/fast/`, which are for CPUs and stay off here."
    ]
    names = [*PLAIN, *(COMPILED if compiled else ())]
    if not importlib.util.find_spec("torch"):
        names = [name for name in names if not name.startswith("pytorch")]
        notes.append(f"pytorch is left out: torch is not installed; {INSTALL}")
    rows: list[Measurement] = []
    for size in sizes:
        workers: dict[str, Worker] = {}
        with ThreadPoolExecutor(len(names)) as pool:
            starting = {name: pool.submit(Worker, name, size) for name in names}
        with ExitStack() as running:
            for name, start in starting.items():
                try:
                    workers[name] = running.enter_context(start.result())
                except InputError as error:
                    notes.append(f"left out: {error}")
            timings = interleaved({name: worker.step for name, worker in workers.items()}, rounds + 2)
            for name, worker in workers.items():
                values = {"GPU GiB": worker.last["gpu_bytes"] / 2**30, "GFLOP/s": size.gflop / timings[name].median}
                values["s to first step"] = worker.first_step_seconds
                rows.append(Measurement(size.title, name, timings[name], values))
    from experiments.benchmark import inference  # here, to start without TensorFlow

    largest = max(size.size for size in sizes)
    of_volumes = inference.measure(largest, 200 if largest >= 256 else 16, sizes[0].width, rounds)
    return Part("gpu", title, [*rows, *of_volumes.rows], notes=[*notes, *of_volumes.notes])
