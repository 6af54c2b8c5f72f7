"""Processes that work on cases."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any, TypeVar

import SimpleITK as sitk

from ummkd_tf.common.errors import InputError
from ummkd_tf.common.progress import progress

Item = TypeVar("Item")
Result = TypeVar("Result")

_mine: Callable[[int], None]  # in a worker: tells the number of the item it works on


class Workers:
    """Processes that work on cases, one core each; started when first needed and kept until the end of the block."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._pool: ProcessPoolExecutor | None = None
        self._other_children: Sequence[Any] = ()
        self._at_work: Any = None  # pairs (process id, number of the item it works on, from 1; 0 for none)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def each(self, function: Callable[[Item], Result], items: Sequence[Item], title: str) -> Iterator[Result]:
        """Results in the order of the items, behind a progress bar.

        Raises:
            InputError: A process ended in the middle of its work; tells how, and which case it was working on.
        """
        bar = partial(progress, total=len(items), desc=title, unit="case", disable=not items)
        if self._count == 1 or len(items) < 2:
            _one_thread()
            yield from bar(map(function, items))
            return
        if not self._pool:
            # Spawned, because a forked process can inherit a lock of a library's thread.
            context = multiprocessing.get_context("spawn")
            self._at_work = context.Array("q", 2 * self._count)
            self._other_children = multiprocessing.active_children()
            self._pool = ProcessPoolExecutor(self._count, context, _start, (self._at_work,))
        results = self._pool.map(partial(_work, function), range(1, len(items) + 1), items)
        workers = [child for child in multiprocessing.active_children() if child not in self._other_children]
        try:
            yield from bar(results)
        except BrokenProcessPool as error:
            self._pool.shutdown()  # waits until every exit code is known
            exit_codes = {worker.pid or 0: worker.exitcode for worker in workers}
            at_work = {pid: items[n - 1] for pid, n in zip(self._at_work[::2], self._at_work[1::2], strict=True) if n}
            raise _lost(exit_codes, at_work, title) from error


def _lost(exit_codes: Mapping[int, int | None], at_work: Mapping[int, object], title: str) -> InputError:
    """The message on workers that ended, from every worker's exit code (negative: a signal) and item."""
    # When one ends, the pool ends the others with SIGTERM.
    first = {pid: code for pid, code in exit_codes.items() if code not in (0, -signal.SIGTERM, None)} or exit_codes
    named = [at_work[pid] for pid in first if pid is not None and pid in at_work] or list(at_work.values())
    where = ", ".join(str(getattr(item, "case_id", item)) for item in named) or title
    hows = []
    for code in dict.fromkeys(first.values()):
        if code == -signal.SIGKILL:
            hows.append("was killed (signal 9; often the system's out-of-memory killer)")
        elif code is None or code >= 0:
            hows.append(f"ended with exit code {code}")
        else:
            hows.append(f"was ended by signal {-code} ({signal.strsignal(-code)})")
    return InputError(
        f"the worker process {' or '.join(hows) or 'ended'} during '{title}'",
        where=where,
        fix="finished cases are kept; run again, with fewer --workers if memory is short, or without this case",
    )


def _start(at_work: Any) -> None:
    """In a new worker: takes a free place in `at_work`."""
    global _mine
    _one_thread()
    with at_work.get_lock():
        place = next(n for n in range(0, len(at_work), 2) if not at_work[n])
        at_work[place] = os.getpid()
    _mine = partial(at_work.__setitem__, place + 1)


def _work(function: Callable[[Item], Result], number: int, item: Item) -> Result:
    _mine(number)
    try:
        return function(item)
    finally:
        _mine(0)


def _one_thread() -> None:
    """One core a process, so that memory and speed grow with the workers as one expects."""
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
