"""Where a run is trained: one device, several of one machine, or several machines (docs/scaling.md).

TensorFlow's strategies do the work. Each replica takes its share of a step's batch; sums are all-reduced
(`model/replicas.py`), so that the result is that of one device with the whole batch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from ummkd_tf.common.errors import InputError
from ummkd_tf.data.sampling import Batch
from ummkd_tf.model.segmenter import UnpairedModel

Strategy = Literal["default", "mirrored", "multi_worker"]

_GONE = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.InternalError,
)


class Devices:
    """The devices that train one run.

    Args:
        name: "default", one device; "mirrored", all GPUs of this machine; "multi_worker", the machines of TF_CONFIG. To
            be made before TensorFlow computes anything.

    Attributes:
        replicas: Number of devices that share a batch.
        chief: Whether this process writes the run's folder.

    Raises:
        InputError: "multi_worker" without a TF_CONFIG that TensorFlow accepts.
    """

    def __init__(self, name: Strategy = "default") -> None:
        self._workers = 1
        self.chief = True
        if name == "mirrored":
            kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
            self.strategy = tf.distribute.MirroredStrategy([d.name for d in tf.config.list_logical_devices(kind)])
        elif name == "multi_worker":
            worker, self._workers = _worker()
            self.chief = worker == 0
            self.strategy = tf.distribute.MultiWorkerMirroredStrategy()
        else:
            self.strategy = tf.distribute.get_strategy()
        self.replicas = self.strategy.num_replicas_in_sync

    @property
    def several_workers(self) -> bool:
        """Whether other processes train the same run."""
        return self._workers > 1

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

    def step_function(self, model: UnpairedModel) -> Callable[[Batch, bool], tuple[dict[str, tf.Tensor], bool]]:
        """The compiled training step.

        Returns:
            From a step's whole batch, and whether this process wants to stop, to the terms of `optimize` and whether
            any process wants to.
        """
        if self.replicas == 1 and not self.several_workers:
            one = tf.function(model.optimize, jit_compile=bool(model.jit_compile))
            return lambda batch, stop: (
                one(*({m: tf.constant(a) for m, a in arrays.items()} for arrays in batch)),
                stop,
            )

        def optimize(images: Any, labels: Any, stop: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
            context = tf.distribute.get_replica_context()
            return model.optimize(images, labels), context.all_reduce(tf.distribute.ReduceOp.SUM, stop)

        @tf.function
        def several(images: Any, labels: Any, stop: Any) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
            results = self.strategy.run(optimize, args=(images, labels, stop))
            # The same on every replica.
            return tf.nest.map_structure(lambda value: self.strategy.experimental_local_results(value)[0], results)

        def step(batch: Batch, stop: bool) -> tuple[dict[str, tf.Tensor], bool]:
            images, labels = (self._shares(arrays) for arrays in batch)
            wish = self.strategy.experimental_distribute_values_from_function(lambda _: tf.constant(float(stop)))
            try:
                terms, wishes = several(images, labels, wish)
                return terms, float(wishes) > 0
            except _GONE as error:
                if not self.several_workers:
                    raise
                raise InputError(
                    f"another worker is gone ({error.message.splitlines()[0][:200]}): start all workers again, and the "
                    "run goes on from its last checkpoint"
                ) from error

        return step

    def _shares(self, arrays: dict[str, NDArray[Any]]) -> Any:
        """Equal parts of each modality, one for each replica of this process."""

        def share(context: tf.distribute.experimental.ValueContext) -> dict[str, tf.Tensor]:
            number, count = context.replica_id_in_sync_group, context.num_replicas_in_sync
            return {m: tf.constant(np.split(array, count)[number]) for m, array in arrays.items()}

        return self.strategy.experimental_distribute_values_from_function(share)


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
