"""Where a run is trained: one device, several of one machine, or several machines (docs/scaling.md).

TensorFlow's strategies do the work. Each replica takes its share of a step's batch; sums are all-reduced
(`model/replicas.py`), so that the result is that of one device with the whole batch.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from ummkd_tf.common.errors import InputError
from ummkd_tf.common.processor import instructions
from ummkd_tf.data.sampling import Batch
from ummkd_tf.model.replicas import replica_sum
from ummkd_tf.model.segmenter import UnpairedModel, UnpairedSegmenter
from ummkd_tf.runs.config import Precision, Strategy
from ummkd_tf.runs.environment import has_gpu

_LOG = logging.getLogger(__name__)

STUDIED_IN_BFLOAT16 = ("unet3d",)
"""Networks that were trained in bfloat16 and in float32 on real scans, with the same Dice (docs/study.md)."""

_GONE = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.FailedPreconditionError,
    tf.errors.InternalError,
    tf.errors.UnknownError,
)


class Devices:
    """The devices that train one run.

    Args:
        name: "default", one device; "mirrored", all GPUs of this machine; "multi_worker", the machines of TF_CONFIG. To
            be made before TensorFlow computes anything.

    Attributes:
        replicas: Number of devices that share a batch.
        chief: Whether this process writes the run's folder.
        part: Number of this process, from 0, and number of processes, which share a batch.

    Raises:
        InputError: "multi_worker" without a TF_CONFIG that TensorFlow accepts.
    """

    def __init__(self, name: Strategy = "default") -> None:
        self.part = _worker() if name == "multi_worker" else (0, 1)
        self.chief = self.part[0] == 0
        self.strategy = tf.distribute.get_strategy()
        if self.several_workers:
            print(f"worker {self.part[0]}: waiting for all {self.part[1]} workers of TF_CONFIG", flush=True)
            logging.getLogger("tensorflow").setLevel(logging.WARNING)  # it would name every tensor that is exchanged
            self.strategy = tf.distribute.MultiWorkerMirroredStrategy()
        elif name != "default":
            kind = "GPU" if has_gpu() else "CPU"
            here = [device.name for device in tf.config.list_logical_devices(kind)]
            if len(here) > 1:
                self.strategy = tf.distribute.MirroredStrategy(here)
        self.replicas = self.strategy.num_replicas_in_sync

    @property
    def several_workers(self) -> bool:
        """Whether other processes train the same run."""
        return self.part[1] > 1

    def scope(self) -> AbstractContextManager[Any]:
        """In which the model is made and compiled."""
        return self.strategy.scope()

    def check_batch(self, batch_size: int) -> None:
        """Refuses a batch that cannot be shared.

        Raises:
            InputError: Such a number of examples per modality.
        """
        if batch_size % self.replicas:
            raise InputError(
                f"{batch_size} examples of each modality a step, on {self.replicas} devices: expected a multiple of "
                f"{self.replicas}, so that every device has equal shares; give another --batch_size or --global_batch"
            )

    def check_same(self, what: str, value: Any, fix: str) -> None:
        """Compares what all workers have, before it makes them compute different things.

        Args:
            what: Name of it.
            value: What can be written as JSON.
            fix: What to do where they differ.

        Raises:
            InputError: They differ, or a worker is gone.
        """
        if not self.several_workers:
            return
        number = zlib.crc32(json.dumps(value, sort_keys=True, default=str).encode())

        def gather() -> tf.Tensor:
            return tf.distribute.get_replica_context().all_gather(tf.constant([number], tf.int64), axis=0)

        with _all_there():
            of_all = self.strategy.experimental_local_results(self.strategy.run(tf.function(gather)))[0].numpy()
        if len(set(of_all.tolist())) > 1:
            raise InputError(f"worker {self.part[0]}: workers have different {what}: {fix}")

    def step_function(self, model: UnpairedModel) -> Callable[[Batch, bool], tuple[dict[str, tf.Tensor], bool]]:
        """The compiled training step.

        Returns:
            A function of this process's part of a batch and of whether this process wants to stop. It returns the terms
            of `optimize` and whether any process wants to stop.
        """
        if self.replicas == 1:
            one = tf.function(model.optimize, autograph=False, jit_compile=bool(model.jit_compile))
            return lambda batch, stop: (
                one(*({m: tf.constant(a) for m, a in arrays.items()} for arrays in batch)),
                stop,
            )

        def optimize(images: Any, labels: Any, stop: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
            # TensorFlow asks for the tensor's device: an argument of a function has none, its identity has.
            return model.optimize(images, labels), replica_sum(tf.identity(stop))

        @tf.function(autograph=False)
        def several(images: Any, labels: Any, stop: Any) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
            results = self.strategy.run(optimize, args=(images, labels, stop))
            # The same on every replica.
            return tf.nest.map_structure(lambda value: self.strategy.experimental_local_results(value)[0], results)

        def step(batch: Batch, stop: bool) -> tuple[dict[str, tf.Tensor], bool]:
            images, labels = (self._shares(arrays) for arrays in batch)
            wish = self.strategy.experimental_distribute_values_from_function(lambda _: tf.constant(float(stop)))
            with _all_there() if self.several_workers else contextlib.nullcontext():
                terms, wishes = several(images, labels, wish)
                return terms, float(wishes) > 0

        return step

    def _shares(self, arrays: dict[str, NDArray[Any]]) -> Any:
        """Equal parts of each modality, one for each replica of this process."""
        here = self.replicas // self.part[1]

        def share(context: tf.distribute.experimental.ValueContext) -> dict[str, tf.Tensor]:
            number = context.replica_id_in_sync_group % here
            return {m: tf.constant(np.split(array, here)[number]) for m, array in arrays.items()}

        return self.strategy.experimental_distribute_values_from_function(share)


def auto_precision(network: str) -> Precision:
    """What `--precision=auto` stands for on this machine.

    Args:
        network: Its name.

    Returns:
        "mixed_bfloat16" for a network of `STUDIED_IN_BFLOAT16` on a machine that is faster with it; else "float32".
    """
    return "mixed_bfloat16" if network in STUDIED_IN_BFLOAT16 and _bfloat16_is_faster() else "float32"


def check_precision(precision: Precision) -> None:
    """Warns of bfloat16 where this machine is slow with it.

    Raises:
        InputError: float16 without a GPU.
    """
    if precision == "mixed_float16" and not has_gpu():
        raise InputError(
            "--precision=mixed_float16: needs a GPU, and TensorFlow sees none (its CPU operations lack float16); "
            "--precision=auto takes what suits the machine"
        )
    if precision == "mixed_bfloat16" and not has_bfloat16_instructions():
        # Measured on an AMD EPYC without AVX512 (Zen 3): 85 s a step, and 3.4 s in float32 (3D, preset small).
        _LOG.warning(
            "--precision=mixed_bfloat16: this machine seems to have no instructions for it; without them, a step can "
            "take 25 times as long as in float32. For a new run, --precision=auto takes what suits the machine"
        )


def has_bfloat16_instructions() -> bool:
    """Whether every GPU, or without one the CPU, has them (NVIDIA's have since compute capability 8.0)."""
    if gpus := tf.config.list_physical_devices("GPU"):
        details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
        return all(detail.get("compute_capability", (0, 0)) >= (8, 0) for detail in details)
    return bool(instructions() & {"avx512_bf16", "amx_bf16"})


def _bfloat16_is_faster() -> bool:
    """Whether a training step is faster in it than in float32; on a CPU, as measured (docs/performance.md).

    AVX512-BF16 pays on AMD's processors. On an Intel Xeon without AMX, whose float32 units are as fast, it does not.
    """
    if has_gpu():
        return has_bfloat16_instructions()
    return "amx_bf16" in instructions() or {"avx512_bf16", "AuthenticAMD"} <= instructions()


@contextlib.contextmanager
def without_graph_optimizer(model: UnpairedModel) -> Iterator[None]:
    """Switches TensorFlow's graph optimizer (Grappler) off inside a `with` block, for this project's networks on a CPU.

    Measured there for training and inference, both networks, float32 and bfloat16: a step is no faster with it, and it
    takes 1 to 3 s before the first step. A user's Keras model keeps it: with it, a step of one took 14 % less time.
    """
    if not isinstance(model, UnpairedSegmenter) or has_gpu():
        yield
        return
    option = "disable_meta_optimizer"
    before = tf.config.optimizer.get_experimental_options().get(option, False)
    tf.config.optimizer.set_experimental_options({option: True})
    try:
        yield
    finally:
        tf.config.optimizer.set_experimental_options({option: before})


@contextlib.contextmanager
def _all_there() -> Iterator[None]:
    """Says in one line that another worker is gone."""
    try:
        yield
    except _GONE as error:
        raise InputError(
            f"another worker is gone ({type(error).__name__}): see what it printed, and start all workers again; the "
            "run goes on from its last checkpoint"
        ) from error


def _worker() -> tuple[int, int]:
    """Number of this worker and of all, from TF_CONFIG."""
    text = os.environ.get("TF_CONFIG", "")
    try:
        config = json.loads(text)
        workers, task = config["cluster"]["worker"], config["task"]
        if (
            set(config["cluster"]) != {"worker"}
            or task["type"] != "worker"
            or not 0 <= int(task["index"]) < len(workers)
        ):
            raise ValueError("not a list of workers and the number of this one")
        return int(task["index"]), len(workers)
    except (ValueError, KeyError, TypeError) as error:
        example = '{"cluster": {"worker": ["host1:12345", "host2:12345"]}, "task": {"type": "worker", "index": 0}}'
        raise InputError(
            f"--strategy=multi_worker: TF_CONFIG is {text!r}: expected for the first of two workers, e.g., {example}"
        ) from error
