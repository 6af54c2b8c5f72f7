"""Part `cases`: memory and time of training against the number of cases, with a bounded cache.

    python -m experiments.benchmark --parts=cases
    python -m experiments.benchmark.cases --data_dir=DATA --network=dilated2d --batch_size=1 --size=256 --width=16

The second form is one training in a process of its own. It prints a JSON object a line: first how long opening took,
then an answer to each line read: "draw N" prepares N batches and nothing else, "step N" makes N training steps.
"""

from __future__ import annotations

import itertools
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import h5py
import numpy as np
from absl import flags

from experiments.benchmark.results import Aim, Measurement, Part
from experiments.benchmark.steps import Program, Size
from experiments.benchmark.timing import interleaved
from experiments.benchmark.worker import peak_bytes
from ummkd_tf.common.cli import run, start_tensorflow
from ummkd_tf.data.cache import Cache
from ummkd_tf.data.cases import write_case
from ummkd_tf.data.dataset import Dataset, write_dataset
from ummkd_tf.data.index import FACTORS, content_of, write_index
from ummkd_tf.data.sampling import UnpairedSampler, check_classes
from ummkd_tf.model.architectures import NETWORKS
from ummkd_tf.scans.geometry import Grid
from ummkd_tf.scans.preprocessing import Prepared
from ummkd_tf.tasks import TASKS

TASK = TASKS["abdomen"]
GIB = 2**30

FLAGS = flags.FLAGS


@dataclass(frozen=True)
class Amounts:
    """How much is measured.

    Attributes:
        cases: Numbers of cases, half of them of each modality; the first is the small set.
        depth: Slices of a case.
        cache_gb: As `experiments.train --cache_gb`.
        sizes: Trainings.
        warm_up: Batches that are drawn before anything is measured.
        steps: In each round.
    """

    cases: Sequence[int] = (16, 2000)
    depth: int = 16
    cache_gb: float = 1.0
    sizes: Sequence[Size] = (Size("dilated2d", 1, 256, 16), Size("unet3d", 2, 128, 8))
    warm_up: int = 600  # more than 1 GB of both
    steps: int = 3


FULL = Amounts()
QUICK = Amounts((8, 12), 8, 0.004, (Size("dilated2d", 1, 64, 4),), 5, 1)


def write_many(directory: Path, count: int, depth: int) -> None:
    """A data set of `count` cases, which are copies of four: organs as blocks in noise, packed to about a third."""
    split: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    grid = Grid(np.diag([*TASK.spacing_mm, 1.0]), (*TASK.size, depth))
    modality_of, index = {}, {}
    for modality, first in itertools.product(("ct", "mr"), range(2)):
        random = np.random.default_rng([first, modality == "mr"])
        label = np.zeros(grid.shape, np.uint8)
        for c in range(1, TASK.num_classes):
            row, column = random.integers(0, TASK.size[0] - 64, 2)
            label[row : row + 64, column : column + 64, 1:-1] = c
        image = (np.round(16 * random.standard_normal(grid.shape)) / 16 + label).astype(np.float32)
        prepared = Prepared(image, label, grid, grid, label)
        written: Path | None = None
        for number in range(first, count // 2, 2):
            case_id = f"{modality}_{number:04d}"
            path = directory / "cases" / f"{case_id}.h5"
            if written is None:
                write_case(path, prepared, case_id=case_id, modality=modality, task=TASK, source={case_id: "none"})
                written, content = path, content_of(path, FACTORS)
            else:
                shutil.copyfile(written, path)
                with h5py.File(path, "r+") as file:
                    file.attrs["case_id"] = np.bytes_(case_id.encode())
            modality_of[case_id] = modality
            index[case_id] = replace(content, num_bytes=path.stat().st_size)
            split["validation" if number == 0 else "test" if number == 1 else "train"].append(case_id)
    write_dataset(directory, task=TASK, case_modality=modality_of, split=split, split_name="benchmark")
    write_index(directory, index)


def measure(amounts: Amounts, rounds: int) -> Part:
    """Opening, first batch, batches alone, steps and memory, for each number of cases."""
    rows: list[Measurement] = []
    with tempfile.TemporaryDirectory() as name:
        folders = {count: Path(name) / str(count) for count in amounts.cases}
        for count, folder in folders.items():
            write_many(folder, count, amounts.depth)
        for size in amounts.sizes:
            rows += _rows(size, folders, amounts, rounds)
    cached = {count: count * amounts.depth * TASK.size[0] * TASK.size[1] * 5 / 1e9 for count in amounts.cases}
    notes = [
        f"Cases of {TASK.size[0]}×{TASK.size[1]}×{amounts.depth}, half CT and half MR; all of them in memory at full "
        f"size: {'; '.join(f'{count} cases {size:.2g} GB' for count, size in cached.items())}. "
        f"--cache_gb={amounts.cache_gb:g}.",
        "Seconds are those of a training step, its batches prepared by one thread as in training. Cold: the first "
        f"batch after opening, files in the system's own cache. Warm: after {amounts.warm_up} batches. Input: batches "
        "drawn and nothing else.",
    ]
    return Part("cases", "Memory and time against number of cases", rows, aims(rows, amounts), notes)


def _rows(size: Size, folders: dict[int, Path], amounts: Amounts, rounds: int) -> list[Measurement]:
    programs: dict[str, Program] = {}
    with ExitStack() as running:
        for count, folder in folders.items():
            arguments = {**vars(size), "data_dir": folder, "cache_gb": amounts.cache_gb}
            program = Program(f"{size.title}, {count} cases", "cases", arguments)
            programs[_contender(count)] = running.enter_context(program)
        for program in programs.values():
            program.ask(f"draw {amounts.warm_up}")

        def steps(program: Program) -> Callable[[], float]:
            return lambda: program.ask(f"step {amounts.steps}") / amounts.steps

        for program in programs.values():
            steps(program)()  # it traces
        timings = interleaved({name: steps(program) for name, program in programs.items()}, rounds)
        draws = interleaved({name: partial(program.ask, "draw 30") for name, program in programs.items()}, rounds)
        rows = []
        for name, program in programs.items():
            step, draw = timings[name], draws[name].median / 30
            values = {
                "opened s": program.started["open_seconds"],
                "first batch s": program.started["first_batch_seconds"],
                "input ms": 1000 * draw,
                "input × warm": step.median / draw,
                "input × cold": step.median / program.started["first_batch_seconds"],
                "peak GiB": program.last["peak_bytes"] / GIB,
            }
            rows.append(Measurement(size.title, name, step, values))
        return rows


def _contender(count: int) -> str:
    return f"{count} cases"


def aims(rows: Sequence[Measurement], amounts: Amounts) -> list[Aim]:
    """What must hold for the largest number of cases, beside the smallest."""
    small, large = (_contender(count) for count in (amounts.cases[0], amounts.cases[-1]))
    by_name = {(row.case, row.contender): row for row in rows}
    pairs = {row.case: (by_name[row.case, small], by_name[row.case, large]) for row in rows}

    def aim(text: str, measured: Callable[[Measurement, Measurement], float], holds: Callable[[float], bool]) -> Aim:
        found = {case: measured(*pair) for case, pair in pairs.items()}
        numbers = "; ".join(f"{case}: {value:.3g}" for case, value in found.items())
        return Aim(text, numbers, all(map(holds, found.values())))

    def slower(a: Measurement, b: Measurement) -> float:
        return b.timing.median / a.timing.median

    return [
        aim(f"{large} open in under a second", lambda _, b: b.values["opened s"], lambda s: s < 1),
        aim(
            f"{large} take at most 1.5 GB more memory than {small} (GB)",
            lambda a, b: (b.values["peak GiB"] - a.values["peak GiB"]) * GIB / 1e9,
            lambda more: more <= 1.5,
        ),
        aim(f"a step with {large} at most 1.2 times as slow, once warm", slower, lambda ratio: ratio <= 1.2),
        aim("input at least 20× the step's demand, warm", lambda a, _: a.values["input × warm"], lambda r: r >= 20),
        aim("input at least 3× the step's demand, cold", lambda _, b: b.values["input × cold"], lambda r: r >= 3),
    ]


def main(_: list[str]) -> None:
    start_tensorflow()
    # Here, because these import TensorFlow, which start_tensorflow has to do first.
    import keras

    from ummkd_tf.evaluation.inference import Predictor
    from ummkd_tf.evaluation.validation import validation_score
    from ummkd_tf.model.segmenter import UnpairedSegmenter
    from ummkd_tf.runs.devices import Devices, without_graph_optimizer

    started = time.perf_counter()
    dataset = Dataset.load(FLAGS.data_dir)
    factor, cache = TASK.size[0] // FLAGS.size, Cache(1e9 * FLAGS.cache_gb)
    rank = NETWORKS[FLAGS.network].rank
    examples = {m: dataset.examples(m, rank, factor, cache) for m in dataset.modalities}
    check_classes(examples, TASK.class_names)
    opened = time.perf_counter()
    sampler = UnpairedSampler(examples, FLAGS.batch_size, seed=0)
    sampler.batch(0)
    _answer(open_seconds=opened - started, first_batch_seconds=time.perf_counter() - opened)
    keras.utils.set_random_seed(0)
    model = UnpairedSegmenter(FLAGS.network, "ours", dataset.modalities, TASK.num_classes, FLAGS.width)
    model.compile(model.operations.adam(1e-4, epsilon=1e-8))
    optimize = Devices().step_function(model)
    validate = validation_score(dataset, Predictor(model), factor, cache=cache)
    position = 0
    for line in sys.stdin:
        kind, count = line.split()
        stop, started = position + int(count), time.perf_counter()
        for batch in sampler.batches(position, stop):
            if kind == "step":
                with without_graph_optimizer(model):
                    float(optimize(batch, False)[0]["loss"])
        seconds, position = time.perf_counter() - started, stop
        if validate and kind == "step":  # once and not timed: its cases are memory too
            validate()
            validate = None
        _answer(seconds=seconds, peak_bytes=peak_bytes(), cached_bytes=cache.used)


def _answer(**values: float) -> None:
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    flags.DEFINE_string("data_dir", None, "Prepared data of the abdomen.", required=True)
    flags.DEFINE_float("cache_gb", 1.0, "As of experiments.train.")
    flags.DEFINE_enum("network", "dilated2d", ["dilated2d", "unet3d"], "Network.")
    flags.DEFINE_integer("batch_size", 1, "Examples per modality.", lower_bound=1)
    flags.DEFINE_integer("size", 256, "Rows and columns.", lower_bound=8)
    flags.DEFINE_integer("width", 16, "Base width w.", lower_bound=1)
    run(main)
