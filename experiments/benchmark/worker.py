"""One contender's training step in a process of its own, one step for each line read.

    python -m experiments.benchmark.worker --contender=ours --network=unet3d --batch_size=1 --size=64 --width=4

Prints one JSON object a line: first {"first_step_seconds", "loaded_bytes"}, then {"seconds", "loss", "peak_bytes",
"gpu_bytes"} for each step.
"""

from __future__ import annotations

import time

STARTED = time.perf_counter()  # before anything is loaded

import importlib  # noqa: E402
import json  # noqa: E402
import resource  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable  # noqa: E402
from functools import partial  # noqa: E402
from pathlib import Path  # noqa: E402

from absl import flags  # noqa: E402

from experiments.benchmark.batches import NUM_CLASSES, random_batch  # noqa: E402
from experiments.benchmark.results import OURS, OURS_BFLOAT16  # noqa: E402
from ummkd_tf.common.cli import run, start_tensorflow  # noqa: E402

Step = Callable[[], float]

FLAGS = flags.FLAGS


def _load_ours(precision: str = "float32", *, xla: bool = False, fast: bool | None = None) -> Callable[..., Step]:
    """Setting `ours` on random images and labels, stepping as `training.train` does.

    Args:
        precision: Keras's dtype policy, as `experiments.train --precision`.
        xla: Compile the step with XLA.
        fast: As for `UnpairedSegmenter`.

    Returns:
        Makes the step; its arguments are this program's flags.
    """
    start_tensorflow()
    # Here, to start without TensorFlow.
    import keras
    import tensorflow as tf

    from ummkd_tf.model.segmenter import UnpairedSegmenter
    from ummkd_tf.runs.devices import without_graph_optimizer

    def make_step(network: str, batch_size: int, size: int, width: int, modalities: int = 2) -> Step:
        keras.utils.set_random_seed(0)
        keras.config.set_dtype_policy(precision)
        names = ("ct", "mr", *(f"other_{i}" for i in range(modalities)))[:modalities]
        model = UnpairedSegmenter(network, "ours", names, NUM_CLASSES, width, fast=fast)
        model.compile(model.operations.adam(1e-4, epsilon=1e-8))
        images, labels = tf.nest.map_structure(tf.constant, random_batch(network, batch_size, size, names))
        optimize = tf.function(model.optimize, autograph=False, jit_compile=xla)

        def step() -> float:
            with without_graph_optimizer(model):
                return float(optimize(images, labels)["loss"])

        return step

    return make_step


def _load_rival(module: str, **options: bool) -> Callable[..., Step]:
    make_step = importlib.import_module(f"experiments.benchmark.rivals.{module}").make_step
    return partial(make_step, **options) if options else make_step


# Each loads its libraries and returns what makes the step.
CONTENDERS: dict[str, Callable[[], Callable[..., Step]]] = {
    OURS: _load_ours,
    OURS_BFLOAT16: partial(_load_ours, "mixed_bfloat16"),
    "ours, XLA": partial(_load_ours, xla=True),
    "ours, bfloat16, XLA": partial(_load_ours, "mixed_bfloat16", xla=True),
    "ours, fast": partial(_load_ours, fast=True),
    "pytorch": partial(_load_rival, "pytorch"),
    "pytorch, AMP": partial(_load_rival, "pytorch", amp=True),
    "pytorch, AMP, compiled": partial(_load_rival, "pytorch", amp=True, compiled=True),
    "plain": partial(_load_rival, "tensorflow_transcription"),
}


def peak_bytes() -> int:
    """Largest resident memory of this process so far."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage's maximum also holds the memory of the process that started this one
        lines = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def gpu_bytes() -> int:
    """Largest memory of tensors on the first GPU so far; 0 where the contender uses none."""
    tensorflow, torch = sys.modules.get("tensorflow"), sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if tensorflow is not None and tensorflow.config.list_physical_devices("GPU"):
        return tensorflow.config.experimental.get_memory_info("GPU:0")["peak"]
    return 0


def _answer(**values: float) -> None:
    print(json.dumps(values), flush=True)


def main(_: list[str]) -> None:
    size = {"network": FLAGS.network, "batch_size": FLAGS.batch_size, "size": FLAGS.size, "width": FLAGS.width}
    more = {"modalities": FLAGS.modalities} if FLAGS.modalities != 2 else {}
    make_step = CONTENDERS[FLAGS.contender]()
    loaded_bytes = peak_bytes()
    step = make_step(**size, **more)
    step()
    _answer(first_step_seconds=time.perf_counter() - STARTED, loaded_bytes=loaded_bytes)
    for _line in sys.stdin:
        started = time.perf_counter()
        loss = step()
        _answer(seconds=time.perf_counter() - started, loss=loss, peak_bytes=peak_bytes(), gpu_bytes=gpu_bytes())


if __name__ == "__main__":
    flags.DEFINE_enum("contender", OURS, list(CONTENDERS), "Whose training step.")
    flags.DEFINE_enum("network", "unet3d", ["dilated2d", "unet3d"], "Network.")
    flags.DEFINE_integer("batch_size", 1, "Examples per modality.", lower_bound=1)
    flags.DEFINE_integer("size", 64, "Rows and columns.", lower_bound=8)
    flags.DEFINE_integer("width", 4, "Base width w.", lower_bound=1)
    flags.DEFINE_integer("modalities", 2, "Number of modalities; another than two for ours only.", lower_bound=1)
    run(main)
