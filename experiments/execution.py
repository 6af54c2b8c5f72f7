"""Runs what is missing of several runs: some at a time, each in its own process, with its output in a log."""

from __future__ import annotations

import fcntl
import itertools
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Protocol

from tqdm import tqdm

from ummkd_tf.common.errors import InputError, Stopped
from ummkd_tf.common.progress import progress
from ummkd_tf.runs.folder import LOCK
from ummkd_tf.runs.history import HISTORY, last_step

CAN_DIVIDE = hasattr(os, "sched_setaffinity")  # cores among runs; macOS cannot, so each run may use them all
SECONDS_BETWEEN_LOOKS = 1.0  # at how far runs are, and at the lock of a run that another process holds

Runner = Callable[[Sequence[str], Path], int]
"""Runs a command with its output added to a log file; returns the exit code."""


class PlannedRun(Protocol):
    """A run as this module sees it."""

    @property
    def name(self) -> str: ...
    @property
    def run_dir(self) -> Path: ...
    @property
    def log(self) -> Path: ...
    @property
    def length(self) -> int:
        """Training steps."""
        ...

    def missing(self) -> list[str]:
        """Actions that are not done, e.g. "train"; `InputError` where the folder holds another run."""
        ...

    def command(self, action: str) -> list[str]:
        """The command that does one of them."""
        ...


@dataclass
class Outcome:
    """How the runs went: names of those done, and why others failed."""

    done: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def run_all(runs: Sequence[PlannedRun], jobs: int) -> Outcome:
    """Does what is missing of all runs, `jobs` of them at a time.

    Raises:
        Stopped: SIGTERM or Ctrl-C came; every run is saved.
    """
    if jobs > 1:  # else the first run takes all memory of a GPU
        os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    with Stop() as stop:
        outcome = execute_all(runs, jobs, stop.run, stop)
    if stop.number is not None:
        name = signal.Signals(stop.number).name
        raise Stopped(f"stopped by {name}; every run is saved, the same command continues", 128 + stop.number)
    return outcome


def execute_all(runs: Sequence[PlannedRun], jobs: int, runner: Runner, stop: Stop) -> Outcome:
    """As `run_all`, with any runner; a failed run does not stop the others.

    Each run gets its share of the cores, because two that use all cores disturb each other.
    """
    outcome = Outcome()
    free = shares(sorted(os.sched_getaffinity(0)), jobs) if CAN_DIVIDE else []

    def take_share() -> None:
        if CAN_DIVIDE:
            os.sched_setaffinity(0, free.pop())  # of this thread, and of the commands that it starts

    with (
        ThreadPoolExecutor(jobs, initializer=take_share) as pool,
        progress(
            total=sum(planned.length for planned in runs),
            initial=sum(map(steps_logged, runs)),
            unit="step",
            desc="training",
            smoothing=0,  # validation and evaluation come in between: only the mean pace tells the time that is left
            disable=not runs,
        ) as bar,
    ):
        futures = {pool.submit(execute, planned, runner, stop): planned for planned in runs}
        going_on = set(futures)
        while going_on:
            ended, going_on = wait(going_on, SECONDS_BETWEEN_LOOKS, FIRST_COMPLETED)
            for future in ended:
                name, reason = futures[future].name, future.result()
                if reason is None:
                    outcome.done.append(name)
                elif stop.number is None:
                    outcome.failed[name] = reason
                    bar.total -= futures[future].length - steps_logged(futures[future])
                    tqdm.write(f"FAILED {name}: {reason}", file=sys.stderr)
            bar.set_postfix_str(f"{len(outcome.done)} of {len(runs)} runs done", refresh=False)
            now = sum(r.length if r.name in outcome.done else steps_logged(r) for r in runs)
            bar.initial += min(0, now - bar.n)  # a killed run does the steps after its checkpoint again
            bar.update(now - bar.n)
    return outcome


def steps_logged(planned: PlannedRun) -> int:
    """Steps that a run's history tells of, also while it trains."""
    return min(last_step(planned.run_dir / HISTORY), planned.length)


def shares(cores: Sequence[int], jobs: int) -> list[set[int]]:
    """Divides cores evenly among runs that go on at a time; with fewer cores than runs, each has them all."""
    if jobs > len(cores):
        return [set(cores)] * jobs
    ends = [len(cores) * i // jobs for i in range(jobs + 1)]
    return [set(cores[start:end]) for start, end in itertools.pairwise(ends)]


def execute(planned: PlannedRun, runner: Runner, stop: Stop) -> str | None:
    """Does what is missing of one run; None, or why it failed."""
    try:
        _wait_for_other(planned.run_dir, stop)
        for action in planned.missing():
            if stop.number is not None:
                return "stopped"
            code = runner(planned.command(action), planned.log)
            if code and _is_held(planned.run_dir / LOCK):  # another process began it at the same moment
                return execute(planned, runner, stop)
            if code:
                return f"{action} ended with exit code {code}; last line of {planned.log}: {_last_line(planned.log)}"
        left = planned.missing()
    except Exception as error:  # of whatever kind: the other runs go on
        return str(error) if isinstance(error, (InputError, OSError)) else repr(error)
    return f"not done although every command succeeded: {', '.join(left)}; see {planned.log}" if left else None


def _wait_for_other(run_dir: Path, stop: Stop) -> None:
    """Waits while another process trains this run: a training that a killed reproduction has started goes on."""
    said = False
    while stop.number is None and _is_held(run_dir / LOCK):
        if not said:
            tqdm.write(f"{run_dir}: another process is training it; waiting for its end")
            said = True
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _is_held(lock: Path) -> bool:
    if not lock.is_file():
        return False
    with open(lock, "a", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _last_line(log: Path) -> str:
    if not log.is_file():
        return "(none)"
    text = log.read_text(encoding="utf-8", errors="replace")
    lines = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]
    return lines[-1] if lines else "(none)"


class Stop:
    """SIGTERM and Ctrl-C, passed on to the running commands, which save and leave."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()

    def __enter__(self) -> Stop:
        self._before = {n: signal.signal(n, self._receive) for n in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        for process in tuple(self._processes):
            process.terminate()

    def run(self, command: Sequence[str], log: Path) -> int:
        """A `Runner`."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as stream:
            stream.write(f"\n$ {' '.join(command)}\n".encode())
            stream.flush()
            with self._lock:
                if self.number is not None:
                    return 128 + self.number
                # A process session of its own, so that Ctrl-C reaches the command once: through `Stop`.
                process = subprocess.Popen(command, stdout=stream, stderr=stream, start_new_session=True)
                self._processes.add(process)
            if self.number is not None:
                process.terminate()
            try:
                return process.wait()
            finally:
                self._processes.discard(process)
