"""Part `startup`: how long programs take until they have said something, as whole processes."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from experiments.benchmark.results import OURS, Aim, Measurement, Part
from experiments.benchmark.timing import interleaved, timed

ROOT = Path(__file__).parents[2]
LIMIT_SECONDS = 1.5
PROGRAMS = ("experiments", "data_prep")


def programs() -> list[str]:
    """Every module that is a program with flags."""
    return [
        f"{folder}.{path.stem}"
        for folder in PROGRAMS
        for path in sorted((ROOT / folder).glob("*.py"))
        if "flags.DEFINE" in (text := path.read_text(encoding="utf-8")) and '__name__ == "__main__"' in text
    ]


def _run(*arguments: str) -> Callable[[], float]:
    def run() -> None:
        done = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, check=False)
        assert done.stdout, f"{' '.join(arguments)} said nothing: {done.stderr.decode()[-300:]}"

    return timed(run)


def measure(rounds: int, names: Sequence[str] | None = None) -> Part:
    """`--help` of every program (or of `names`), a table without runs, and `--describe` of both networks."""
    with tempfile.TemporaryDirectory() as empty:
        quick = {f"{name} --help": _run(name, "--help") for name in names or programs()}
        quick |= {
            f"experiments.tables --table={n}": _run("experiments.tables", f"--table={n}", f"--runs_dir={empty}")
            for n in (1, 6)
        }
        describe = {
            f"experiments.train --describe --task={task}": _run("experiments.train", "--describe", f"--task={task}")
            for task in ("cardiac", "abdomen")
        }
        timings = interleaved({**quick, **describe}, rounds)
    slowest = max(quick, key=lambda case: timings[case].median)
    over = [case for case in quick if timings[case].median >= LIMIT_SECONDS]
    measured = f"slowest: {slowest}, {timings[slowest].median:.2f} s" + (f"; over: {', '.join(over)}" if over else "")
    aim = Aim(f"`--help` and tables start in less than {LIMIT_SECONDS} s", measured, not over)
    return Part("startup", "Start-up", [Measurement(case, OURS, t) for case, t in timings.items()], [aim])
