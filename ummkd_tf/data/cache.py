"""A bounded memory of what was read from disk."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Hashable

import numpy as np
from numpy.typing import NDArray


class Cache:
    """Arrays by key, up to `capacity` bytes; the least recently used go first. Threads may share it.

    Args:
        capacity: Bytes of the arrays together; no bound by default.
    """

    def __init__(self, capacity: float = math.inf) -> None:
        self.capacity = capacity
        self.used = 0
        self._arrays: OrderedDict[Hashable, NDArray] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def room(self) -> float:
        """Bytes that can be added before anything has to go."""
        return self.capacity - self.used

    def get(self, key: Hashable) -> NDArray | None:
        """The array, now the most recently used; None where the cache does not hold it."""
        with self._lock:
            if key in self._arrays:
                self._arrays.move_to_end(key)
            return self._arrays.get(key)

    def put(self, key: Hashable, array: NDArray) -> None:
        """Keeps an array, which must not be changed afterwards. One that is larger than the cache is not kept."""
        array.flags.writeable = False
        with self._lock:
            if key in self._arrays or array.nbytes > self.capacity:  # two threads can miss the same one
                return
            self._arrays[key] = array
            self.used += array.nbytes
            while self.used > self.capacity:
                self.used -= self._arrays.popitem(last=False)[1].nbytes

    def __len__(self) -> int:
        return len(self._arrays)


def owned(array: NDArray) -> NDArray:
    """The array as a contiguous copy, if it is a view: a view keeps the whole array behind it in memory."""
    return array if array.base is None and array.flags.c_contiguous else np.array(array, order="C")
