"""Honest times: contenders take turns, so that whatever else the machine does falls on all of them alike."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Seconds of one contender, a value for each round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """What is compared: unlike the mean it forgives a round that something disturbed."""
        return statistics.median(self.seconds)

    @property
    def deviation(self) -> float:
        """Median absolute deviation from the median."""
        return statistics.median(abs(s - self.median) for s in self.seconds)


def timed(function: Callable[[], object]) -> Callable[[], float]:
    """The same function, which returns how many seconds it took."""

    def call() -> float:
        gc.collect()  # so that garbage of the previous contender is not collected in this one's time
        started = time.perf_counter()
        function()
        return time.perf_counter() - started

    return call


def interleaved(contenders: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, Timing]:
    """Seconds of all contenders; every round runs each once, and every other round backwards.

    Args:
        contenders: Name → what runs it once and returns its seconds, e.g. from `timed`.
        rounds: How often.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name in list(contenders)[:: -1 if number % 2 else 1]:
            seconds[name].append(contenders[name]())
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def matmul_gflops() -> float:
    """Best GFLOP/s of TensorFlow's float32 matrix product over two sizes, each three times."""
    import tensorflow as tf  # here, because most parts are measured without TensorFlow

    best = 0.0
    product = tf.function(lambda a, b: tf.reduce_sum(tf.matmul(a, b)))
    for size in (1024, 2048):
        a, b = tf.random.normal((size, size)), tf.random.normal((size, size))
        float(product(a, b))
        for _ in range(3):
            started = time.perf_counter()
            float(product(a, b))
            best = max(best, 2 * size**3 / (time.perf_counter() - started) / 1e9)
    return best
