"""Processes that work on cases."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import TypeVar

import SimpleITK as sitk

from ummkd_tf.common.errors import InputError
from ummkd_tf.common.progress import progress
from ummkd_tf.runs.environment import available_cores

Item = TypeVar("Item")
Result = TypeVar("Result")


class Workers:
    """Processes that work on cases, one core each; started when first needed and kept until the end of the block."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def each(self, function: Callable[[Item], Result], items: Sequence[Item], title: str) -> Iterator[Result]:
        """Results in the order of the items, behind a progress bar.

        Raises:
            InputError: A process was ended from outside.
        """
        bar = partial(progress, total=len(items), desc=title, unit="case", disable=not items)
        if self._count == 1 or len(items) < 2:
            _one_thread()
            yield from bar(map(function, items))
            return
        if not self._pool:
            # Spawned, because a forked process can inherit a lock of a library's thread.
            self._pool = ProcessPoolExecutor(self._count, multiprocessing.get_context("spawn"), _one_thread)
        try:
            yield from bar(self._pool.map(function, items))
        except BrokenProcessPool as error:
            raise InputError(
                f"a worker process was ended during '{title}', by what is not known: finished cases are kept; run "
                "again with --workers=1, which shows at which case"
            ) from error


def _one_thread() -> None:
    """One core a process, so that memory and speed grow with the workers as one expects."""
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)


def default_workers() -> int:
    """Cores this process may use."""
    return available_cores()
