"""Part `step`: one training step of setting `ours` here, in PyTorch, and in a plain TensorFlow transcription."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from experiments.benchmark.batches import DEPTH, NUM_CLASSES
from experiments.benchmark.flops import training_flops
from experiments.benchmark.results import OURS, OURS_BFLOAT16, Aim, Measurement, Part, ratio_aim
from experiments.benchmark.timing import interleaved, matmul_gflops
from ummkd_tf.common.cli import start_tensorflow
from ummkd_tf.common.errors import InputError
from ummkd_tf.model.architectures import NETWORKS

ROOT = Path(__file__).parents[2]
RIVALS = {"pytorch": "torch", "plain": "tensorflow"}  # name, package that it needs
INSTALL = "pip install -e .[benchmark]"


@dataclass(frozen=True)
class Size:
    """What a step is asked to do; `batch_size` examples of each of two modalities."""

    network: str
    batch_size: int
    size: int
    width: int

    @property
    def title(self) -> str:
        """E.g. "dilated2d 4+4, 256², width 16"."""
        depth = f"×{DEPTH}" if self.space[2:] else ""
        return f"{self.network} {self.batch_size}+{self.batch_size}, {self.size}²{depth}, width {self.width}"

    @property
    def space(self) -> tuple[int, ...]:
        """Input size along each spatial axis."""
        return (self.size, self.size) if NETWORKS[self.network].rank == 2 else (self.size, self.size, DEPTH)

    @property
    def gflop(self) -> float:
        """Of one training step's convolutions."""
        network = NETWORKS[self.network]
        return training_flops(network, self.width, NUM_CLASSES, self.space, 2 * self.batch_size) / 1e9


FULL = (
    Size("dilated2d", 1, 256, 16),
    Size("dilated2d", 4, 256, 16),
    Size("unet3d", 1, 256, 16),
    Size("dilated2d", 2, 128, 8),
    Size("unet3d", 2, 128, 8),
)
QUICK = (Size("dilated2d", 1, 64, 4), Size("unet3d", 1, 64, 4))


class Program:
    """A program of this folder in a process of its own, which answers every line it reads with a JSON line.

    Args:
        name: For messages.
        module: Of `experiments.benchmark`.
        arguments: Its flags.

    Raises:
        InputError: The process ended; with its last line.
    """

    def __init__(self, name: str, module: str, arguments: Mapping[str, object]) -> None:
        command = [sys.executable, "-m", f"experiments.benchmark.{module}"]
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115, closed in __exit__
        self._name = name
        self._process = subprocess.Popen(
            [*command, *(f"--{name}={value}" for name, value in arguments.items())],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            encoding="utf-8",
        )
        self.last: dict[str, Any] = {}
        self.started = self.read()

    def ask(self, line: str) -> float:
        """Seconds of what a line asks for; `last` then holds the whole answer."""
        assert self._process.stdin
        print(line, file=self._process.stdin, flush=True)
        self.last = self.read()
        return self.last["seconds"]

    def read(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            last = (self._errors.read().strip().splitlines() or ["no message"])[-1]
            raise InputError(f"ended with code {self._process.returncode}", where=self._name, fix=f"{last}")
        return json.loads(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        try:
            self._process.communicate(timeout=30)  # no more lines: it ends, and TensorFlow removes its temporary files
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
        self._errors.close()


class Worker(Program):
    """A contender's process, see `worker.py`. It has made its first step when this returns.

    Raises:
        InputError: As `Program`.
    """

    def __init__(self, contender: str, size: Size, modalities: int = 2) -> None:
        arguments = {"contender": contender, **vars(size), "modalities": modalities}
        super().__init__(f"{contender}, {size.title}", "worker", arguments)
        self.first_step_seconds: float = self.started["first_step_seconds"]
        self.loaded_bytes: int = self.started["loaded_bytes"]

    def step(self) -> float:
        """Seconds of one step; `last` then holds the whole answer."""
        return self.ask("step")


def contenders() -> tuple[list[str], list[str]]:
    """Those that can run here, ours first; and a line for each that cannot."""
    from ummkd_tf.runs.devices import has_bfloat16_instructions  # here, to start without TensorFlow

    found, missing = [OURS], []
    if has_bfloat16_instructions():
        found.append(OURS_BFLOAT16)
    else:
        missing.append(f"{OURS_BFLOAT16} is left out: this machine has no instructions for it, so a step takes minutes")
    for name, package in RIVALS.items():
        if importlib.util.find_spec(package) is None:
            missing.append(f"{name} is left out: {package} is not installed; {INSTALL}")
        else:
            found.append(name)
    return found, missing


def measure(sizes: Sequence[Size], rounds: int) -> Part:
    """Steps of all contenders in turns, with the peak of the matrix product in the same rounds."""
    start_tensorflow()
    names, notes = contenders()
    rows: list[Measurement] = []
    for size in sizes:
        workers: dict[str, Worker] = {}
        with ExitStack() as running:
            for name in names:
                try:
                    workers[name] = running.enter_context(Worker(name, size))
                except InputError as error:
                    notes.append(f"left out: {error}")
            rows += _rows(size, workers, rounds)
    notes += [
        "GFLOP/s count the direct convolution, so Winograd's way can exceed the peak, which is that of TensorFlow's "
        "float32 matrix product in the same rounds. Memory is that of the whole process; of it libraries: what it had "
        "after loading them, before there was a model. Seconds to the first step start with the process. "
        "bfloat16: `experiments.train --precision=mixed_bfloat16`; the aims are float32's.",
    ]
    largest = max(size.size for size in sizes)  # the paper's
    return Part("step", "Training step", rows, _aims(rows, {s.title for s in sizes if s.size == largest}), notes)


def _rows(size: Size, workers: dict[str, Worker], rounds: int) -> list[Measurement]:
    peaks: list[float] = []

    def matmul() -> float:
        peaks.append(matmul_gflops())
        return 0.0

    runs: dict[str, Callable[[], float]] = {name: worker.step for name, worker in workers.items()}
    timings = interleaved({**runs, "matmul": matmul}, rounds)
    peak = max(peaks)
    return [
        Measurement(
            size.title,
            name,
            timings[name],
            {
                "GFLOP": size.gflop,
                "GFLOP/s": size.gflop / timings[name].median,
                "matmul GFLOP/s": peak,
                "% of peak": 100 * size.gflop / timings[name].median / peak,
                "peak GiB": worker.last["peak_bytes"] / 2**30,
                "of it libraries": worker.loaded_bytes / 2**30,
                "s to first step": worker.first_step_seconds,
            },
        )
        for name, worker in workers.items()
    ]


def _aims(rows: Sequence[Measurement], aimed_at: Container[str]) -> list[Aim]:
    """Aims, in the cases they are set for."""
    by_case: dict[str, dict[str, Measurement]] = {}
    for row in rows:
        if row.case not in aimed_at:
            continue
        by_case.setdefault(row.case, {})[row.contender] = row
    share = {case: (found[OURS].values["% of peak"], 100.0) for case, found in by_case.items() if OURS in found}

    def against(rival: str, value: Callable[[Measurement], float], network: str = "") -> dict[str, tuple[float, float]]:
        both = {c: f for c, f in by_case.items() if {OURS, rival} <= set(f) and c.startswith(network)}
        return {case: (value(found[rival]), value(found[OURS])) for case, found in both.items()}

    def seconds(row: Measurement) -> float:
        return row.timing.median

    def memory(row: Measurement) -> float:
        return row.values["peak GiB"]

    return [
        ratio_aim("step reaches 75 % of the matmul peak (share ≥ 0.75)", share, 0.75),
        ratio_aim("step at least 1.2× as fast as PyTorch", against("pytorch", seconds), 1.2),
        ratio_aim("step at least 1.2× as fast as the plain transcription", against("plain", seconds), 1.2),
        ratio_aim("2D peak memory no more than PyTorch's (ratio ≥ 1)", against("pytorch", memory, "dilated2d"), 1.0),
        ratio_aim(
            "3D peak memory at most 60 % of the plain one's (ratio ≥ 1.67)", against("plain", memory, "unet3d"), 1 / 0.6
        ),
    ]
