"""Part `scaling`: how cost grows with the work; a plot each, with its slope in the log-log plane."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from experiments.benchmark.evaluation import ORGANS, phantom
from experiments.benchmark.preparation import prepare_hearts, write_heart
from experiments.benchmark.results import OURS, Measurement, Part
from experiments.benchmark.steps import Size, Worker
from experiments.benchmark.timing import Timing, interleaved, timed
from ummkd_tf.evaluation.metrics import case_metrics
from ummkd_tf.output.pictures import save_figure

Curves = dict[str, dict[float, Timing]]
"""Line → amount of work → seconds."""

_STYLE: Any = {
    "font.size": 7,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "pdf.fonttype": 42,
    "legend.frameon": False,
}
_COLORS, _MARKERS = ("#0072B2", "#D55E00", "#009E73"), ("o", "s", "^")


@dataclass(frozen=True)
class Amounts:
    """How much work each curve goes through."""

    batch: Sequence[int] = (1, 2, 4, 8)
    width: Sequence[int] = (4, 8, 16, 32)
    size: Sequence[int] = (64, 96, 128, 192, 256)
    modalities: Sequence[int] = (1, 2, 3, 4)
    volume: Sequence[int] = (64, 96, 128, 192, 256)  # rows and columns of an evaluated case; 5/8 of it slices
    cases: Sequence[int] = (1, 2, 4)
    scan: int = 512  # rows and columns of a scan that is prepared


FULL = Amounts()
QUICK = Amounts((1, 2), (4, 8), (32, 64), (1, 2), (32, 48, 64), (1, 2), 64)
BASES = (Size("dilated2d", 1, 128, 8), Size("unet3d", 1, 128, 8))
QUICK_BASES = (Size("dilated2d", 1, 32, 4), Size("unet3d", 1, 32, 4))


def slope(curve: Mapping[float, Timing]) -> float:
    """Exponent k of seconds ∝ work^k, by least squares in the log-log plane; NaN for less than two points."""
    if len(curve) < 2:
        return float("nan")
    seconds = [timing.median for timing in curve.values()]
    return float(np.polyfit(np.log(list(curve)), np.log(seconds), 1)[0])


def measure(amounts: Amounts, bases: Sequence[Size], rounds: int, out_dir: Path) -> Part:
    """All curves; writes `scaling_<name>.png` and `.pdf`."""
    plots: dict[str, tuple[str, str, Curves]] = {}
    for name, axis, values in (
        ("batch_size", "examples per modality", amounts.batch),
        ("width", "width w", amounts.width),
        ("size", "rows and columns", amounts.size),
        ("modalities", "modalities", amounts.modalities),
    ):
        curves = {base.network: _steps(base, name, values, rounds) for base in bases}
        plots[name] = ("training step", axis, curves)
    plots["evaluation"] = ("evaluation of a case", "voxels", {"four organs": _evaluation(amounts.volume, rounds)})
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder)
        write_heart(raw, max(amounts.cases), amounts.scan)
        cores = os.cpu_count() or 1
        plots["preparation_cases"] = (
            "preparation",
            "cases",
            {
                f"{workers} worker{'s' if workers > 1 else ''}": _preparation(raw, amounts.cases, [workers], rounds)
                for workers in {1, cores}
            },
        )
        plots["preparation_workers"] = (
            "preparation",
            "workers",
            {f"{max(amounts.cases)} cases": _preparation(raw, [max(amounts.cases)], range(1, cores + 1), rounds)},
        )
    rows: list[Measurement] = []
    pictures = {}
    for name, (what, axis, curves) in plots.items():
        figure = draw(f"{what} against {axis}", axis, curves)
        for suffix in (".png", ".pdf"):
            save_figure(figure, out_dir / f"scaling_{name}{suffix}", dpi=200)
        slopes = "; ".join(f"{line}: slope {slope(curve):.2f}" for line, curve in curves.items())
        pictures[f"scaling_{name}.png"] = f"Seconds of {what} against {axis}. {slopes}"
        for line, curve in curves.items():
            case = f"{what} against {axis}, {line}"
            exponent = slope(curve)
            rows += [
                Measurement(f"{case}: {work:g}", OURS, timing, {"slope": exponent}) for work, timing in curve.items()
            ]
    base = "; ".join(size.title for size in bases)
    notes = [
        f"Slope: exponent of seconds ∝ work^slope over the whole curve. Steps vary one number of {base}.",
        "Each picture is there as PDF too.",
    ]
    return Part("scaling", "Cost as work grows", rows, notes=notes, pictures=pictures)


def _steps(base: Size, name: str, values: Sequence[int], rounds: int) -> dict[float, Timing]:
    workers: dict[int, Worker] = {}
    with ExitStack() as running:
        for value in values:
            if name == "modalities":
                worker = Worker(OURS, base, value)
            else:
                worker = Worker(OURS, Size(**{**vars(base), name: value}))
            workers[value] = running.enter_context(worker)
        timings = interleaved({str(value): worker.step for value, worker in workers.items()}, rounds)
    return {value: timings[str(value)] for value in values}


def _evaluation(sizes: Sequence[int], rounds: int) -> dict[float, Timing]:
    runs: dict[str, Callable[[], float]] = {}
    for size in sizes:
        maps = phantom((size, size, size * 5 // 8))
        runs[str(maps[0].size)] = timed(partial(case_metrics, *maps, (1.0, 1.0, 1.0), ORGANS))
    return {int(voxels): timing for voxels, timing in interleaved(runs, rounds).items()}


def _preparation(raw: Path, cases: Sequence[int], workers: Sequence[int], rounds: int) -> dict[float, Timing]:
    """Against cases, or against workers where there are several."""
    runs: dict[str, Callable[[], float]] = {
        str(w if len(workers) > 1 else c): partial(prepare_hearts, raw, w, c) for c in cases for w in workers
    }
    return {int(amount): timing for amount, timing in interleaved(runs, rounds).items()}


def ticks(low: float, high: float) -> list[float]:
    """Round numbers for a logarithmic axis: powers of ten, or as many more as give three."""
    found: list[float] = []
    for digits in ((1,), (1, 2, 5), range(1, 10)):
        exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
        found = [digit * 10.0**exponent for exponent in exponents for digit in digits]
        found = [tick for tick in found if low <= tick <= high]
        if len(found) >= 3:
            break
    return found


def draw(title: str, axis: str, curves: Curves) -> Figure:
    """Medians with their range, both axes logarithmic; the legend states each slope."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(3.5, 2.6), layout="constrained")
        axes = figure.subplots()
        for (line, curve), color, marker in zip(curves.items(), _COLORS, _MARKERS, strict=False):
            work = list(curve)
            medians = np.array([timing.median for timing in curve.values()])
            low = medians - [min(timing.seconds) for timing in curve.values()]
            high = [max(timing.seconds) for timing in curve.values()] - medians
            axes.errorbar(
                work, medians, [low, high], color=color, marker=marker, markersize=3, capsize=2,
                label=f"{line}, slope {slope(curve):.2f}",
            )  # fmt: skip
        axes.set(xscale="log", yscale="log", xlabel=axis, ylabel="seconds", title=title)
        points = sorted({w for curve in curves.values() for w in curve})
        axes.set_xticks(points, [f"{w:.2g}" if w >= 1e4 else f"{w:g}" for w in points])
        seconds = ticks(*axes.get_ylim())
        axes.set_yticks(seconds, [f"{s:g}" for s in seconds])
        axes.minorticks_off()
        axes.grid(True, which="major", linewidth=0.3)
        axes.legend()
    return figure
