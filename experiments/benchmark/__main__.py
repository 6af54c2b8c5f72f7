"""Times everything beside what one would use instead, and says which aims are met.

    python -m experiments.benchmark --out_dir=results/benchmark
    python -m experiments.benchmark --quick --parts=step,evaluation

Contenders take turns, and medians are compared. Writes `benchmark.json`, `benchmark.md` and the plots of how cost
grows. Use a machine that does nothing else: the page states its load at the start. `pip install -e .[benchmark]` brings
the rivals; what is not installed is left out, and the page says so.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from absl import flags

from experiments.benchmark import cases, evaluation, gpu, inputs, preparation, scaling, startup, steps
from experiments.benchmark.results import Part, as_json, page
from ummkd_tf.common import processor
from ummkd_tf.common.cli import run, start_tensorflow
from ummkd_tf.common.errors import InputError
from ummkd_tf.common.files import write_json, write_whole
from ummkd_tf.runs.environment import commit, total_memory

PARTS = ("step", "inference", "input", "evaluation", "preparation", "startup", "scaling", "cases", "gpu")
PACKAGES = ("tensorflow", "keras", "numpy", "scipy", "h5py", "SimpleITK", "torch", "MedPy", "surface-distance")

FLAGS = flags.FLAGS
flags.DEFINE_list("parts", list(PARTS), f"Parts to run: {', '.join(PARTS)}.")
flags.DEFINE_integer("rounds", 5, "How often every contender runs.", lower_bound=1)
flags.DEFINE_string("out_dir", "results/benchmark", "Where benchmark.json, benchmark.md and the plots go.")
flags.DEFINE_bool("gpu_compiled", True, "Part gpu also with XLA and torch.compile, which take minutes to start.")
flags.DEFINE_bool("quick", False, "Tiny sizes: shows that everything runs; its numbers say nothing.")


def machine() -> dict[str, Any]:
    """Processor, cores, memory in GiB, load and system."""
    return {
        "processor": processor.description(),
        "cores": os.cpu_count(),
        "memory GiB": round(total_memory() / 2**30, 1),
        "load at start": " ".join(f"{load:.2f}" for load in os.getloadavg()),
        "system": platform.platform(),
    }


def versions() -> dict[str, str]:
    """Of Python and of all packages that are compared."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def facts() -> dict[str, Any]:
    """What a reader needs to know about a run."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "rounds": FLAGS.rounds,
        "sizes": "tiny, only to show that it runs" if FLAGS.quick else "full",
        "machine": machine(),
        "versions": versions(),
    }


def measures(quick: bool, rounds: int, out_dir: Path, done: dict[str, Part]) -> dict[str, Callable[[], Part]]:
    """What measures each part.

    Args:
        quick: Tiny sizes.
        rounds: How often.
        out_dir: For plots.
        done: Parts measured before.
    """

    def step() -> Part:
        return steps.measure(steps.QUICK if quick else steps.FULL, rounds)

    def infer() -> Part:
        # Here, because it imports TensorFlow, which start_tensorflow has to do first.
        from experiments.benchmark import inference

        return inference.measure(*((32, 16, 4) if quick else (256, 200, 16)), rounds)

    def feed() -> Part:
        sizes = (16, 1, 10) if quick else (160, 3, 100)
        return inputs.measure(*sizes, rounds, done.get("step"))

    def evaluate() -> Part:
        return evaluation.measure((48, 48, 30) if quick else (256, 256, 160), (1.0, 1.0, 1.0), rounds)

    def prepare() -> Part:
        return preparation.measure(64 if quick else 512, rounds)

    def start_up() -> Part:
        return startup.measure(rounds)

    def scale() -> Part:
        if quick:
            return scaling.measure(scaling.QUICK, scaling.QUICK_BASES, rounds, out_dir)
        return scaling.measure(scaling.FULL, scaling.BASES, rounds, out_dir)

    def many_cases() -> Part:
        return cases.measure(cases.QUICK if quick else cases.FULL, rounds)

    def on_gpu() -> Part:
        return gpu.measure(steps.QUICK if quick else gpu.FULL, rounds, compiled=FLAGS.gpu_compiled)

    return dict(zip(PARTS, (step, infer, feed, evaluate, prepare, start_up, scale, many_cases, on_gpu), strict=True))


def main(_: list[str]) -> None:
    wanted = list(FLAGS.parts)
    unknown = sorted(set(wanted) - set(PARTS))
    if unknown:
        raise InputError(f"--parts: unknown {', '.join(unknown)}: expected some of {', '.join(PARTS)}")
    out_dir = Path(FLAGS.out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    if {"step", "inference", "scaling", "gpu"} & set(wanted):
        start_tensorflow()  # before a part imports it
    about = facts()
    done: dict[str, Part] = {}
    for name, measure in measures(FLAGS.quick, FLAGS.rounds, out_dir, done).items():
        if name not in wanted:
            continue
        started = time.monotonic()
        done[name] = measure()
        print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)
        # After every part, so that what was measured stays when a later one is stopped.
        write_json(out_dir / "benchmark.json", {**about, "parts": [as_json(part) for part in done.values()]})
        write_whole(out_dir / "benchmark.md", page(list(done.values()), about))
    print(page(list(done.values()), about))
    print(f"written: {out_dir / 'benchmark.json'}, {out_dir / 'benchmark.md'}")


if __name__ == "__main__":
    run(main)
