"""Runs what the paper's tables and figures need, and renders them.

    python -m experiments.reproduce --targets=table2,fig5 --abdomen_data=data/abdomen --runs_dir=runs --out_dir=results
    python -m experiments.reproduce --cardiac_data=data/cardiac --abdomen_data=data/abdomen --dry_run

Finished runs are reused, interrupted ones continue, missing ones are trained and evaluated. It can be stopped or killed
at any time; the same command goes on from there. Each run's output is in <runs_dir>/logs/<run>.log.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal, get_args

from absl import flags

from experiments import figures, slurm
from experiments.benchmark.results import OURS
from experiments.benchmark.steps import Size, Worker
from experiments.execution import run_all
from experiments.number_lists import define_whole_numbers
from experiments.plans import DATA, TARGETS, RunSpec, runs_for
from experiments.recipes import PRESETS, RECIPES, TEMPERATURE, Recipe, recipe_for
from experiments.results import builders, rendering
from experiments.results.records import EVALUATION, OUTLIER, Record, load_records, read_json, select
from ummkd_tf.common.cli import run
from ummkd_tf.common.errors import InputError
from ummkd_tf.common.files import write_whole
from ummkd_tf.common.progress import progress
from ummkd_tf.data.dataset import DATASET, RELEASED
from ummkd_tf.data.sampling import LABELLED_SHARE
from ummkd_tf.runs.config import Precision
from ummkd_tf.runs.folder import RUN, config_of, is_of_selected, newest_step, read_run
from ummkd_tf.runs.loading import open_run_data
from ummkd_tf.settings import SETTINGS
from ummkd_tf.tasks import TASKS

DATA_FILES = (DATASET, RELEASED)  # one of them makes a folder a prepared data set
ENOUGH_SECONDS = 10.0  # of steps that are measured for an estimate
ENOUGH_STEPS = 50  # of a stopped run that an estimate is taken from


@dataclass(frozen=True)
class ReproduceOptions:
    """What the flags say about all runs.

    Attributes:
        data: Prepared data by name of `plans.DATA`; "{fold}" in a path stands for the fold.
        runs_dir: Folder of the runs.
        preset: Of `recipes.PRESETS`.
        recipe: Of `recipes.RECIPES`.
        steps: Length of training, or None for the preset's.
        validate_every: Steps between validations, or None for the preset's.
        precision: Of convolutions and activations; "auto": what suits the machine, as `experiments.train` chooses.
        cache_gb: Of `experiments.train`, for each run; None for its default.
        threads: Likewise.
        xla: Likewise.
        outlier: Case id of Table VI's outlier, or None.
        overlap: Share of a 3D chunk that the next one sees again, in evaluation.
        largest_component: Whether evaluation keeps the largest connected part of each class alone.
    """

    data: Mapping[str, str]
    runs_dir: Path
    preset: str = "paper"
    recipe: str = "paper"
    steps: int | None = None
    validate_every: int | None = None
    precision: Precision | Literal["auto"] = "float32"
    cache_gb: float | None = None
    threads: int | None = None
    xla: bool | None = None
    outlier: str | None = None
    overlap: float = 0.0
    largest_component: bool = False

    def data_dir(self, spec: RunSpec) -> Path:
        """Prepared data of a run."""
        return Path(self.data[spec.data].replace("{fold}", str(spec.fold)))


@dataclass(frozen=True)
class ReproductionRun:
    """One run, and the files that it must have in the end."""

    spec: RunSpec
    options: ReproduceOptions
    with_outlier: bool = False

    @property
    def name(self) -> str:
        """Of the run."""
        return self.spec.name

    @property
    def run_dir(self) -> Path:
        """The run's folder."""
        return self.options.runs_dir / self.name

    @property
    def log(self) -> Path:
        """Where its output goes."""
        return self.options.runs_dir / "logs" / f"{self.name}.log"

    @property
    def length(self) -> int:
        """Training steps."""
        return self.options.steps or self._recipe.steps

    @property
    def _recipe(self) -> Recipe:
        return recipe_for(self.options.recipe, TASKS[self.spec.task].network, self.options.preset)

    def command(self, action: str) -> list[str]:
        """The command that does one of the actions in `missing`."""
        python = [sys.executable, "-m"]
        if action == "train":
            names = ("steps", "validate_every", "precision", "cache_gb", "threads", "xla")
            more = {name: getattr(self.options, name) for name in names}
            return [
                *python,
                "experiments.train",
                *self.spec.flags(),
                f"--data_dir={self.options.data_dir(self.spec)}",
                f"--run_dir={self.run_dir}",
                f"--preset={self.options.preset}",
                f"--recipe={self.options.recipe}",
                *(f"--{name}={value}" for name, value in more.items() if value is not None),
            ]
        beyond = [f"--{name}={value}" for name, value in self._beyond_protocol.items() if value]
        outlier = [f"--outlier={self.options.outlier}"] if action == "evaluate outlier" else []
        places = [f"--run_dir={self.run_dir}", f"--data_dir={self.options.data_dir(self.spec)}"]
        return [*python, "experiments.evaluate", *places, *beyond, *outlier]

    @property
    def _beyond_protocol(self) -> dict[str, float | bool]:
        """Options of evaluation that go beyond the paper's protocol."""
        return {"overlap": self.options.overlap, "largest_component": self.options.largest_component}

    def missing(self) -> list[str]:
        """Actions not done: "train", "evaluate", "evaluate outlier".

        Raises:
            InputError: The folder holds another run than the one wanted, or one of other data.
        """
        evaluations = {"evaluate": EVALUATION} | ({"evaluate outlier": OUTLIER} if self.with_outlier else {})
        record = read_run(self.run_dir) if (self.run_dir / RUN).is_file() else None
        if record:
            self._check(record)
        if record is None or record["status"] != "finished":
            return ["train", *evaluations]
        return [action for action, name in evaluations.items() if not self._is_current(self.run_dir / name, record)]

    def _is_current(self, evaluation: Path, record: Mapping[str, Any]) -> bool:
        """Whether an evaluation is there, and of the run's checkpoint, data and options."""
        # An evaluation is as good as its checkpoint and its data: `experiments.evaluate` refuses data of another split.
        sources = [*self.run_dir.glob("checkpoints/*.npz"), *map(self.options.data_dir(self.spec).joinpath, DATA_FILES)]
        newest = max((path.stat().st_mtime for path in sources if path.is_file()), default=0.0)
        if not evaluation.is_file() or evaluation.stat().st_mtime < newest:
            return False
        content = read_json(evaluation) or {}
        return (
            all((content.get(name) or 0) == value for name, value in self._beyond_protocol.items())
            and is_of_selected(content, record)
            and (evaluation.name != OUTLIER or self.options.outlier in content.get("cases", {}))
        )

    def _check(self, record: Mapping[str, Any]) -> None:
        wanted = {
            **{n: getattr(self._recipe, n) for n in ("learning_rate", "batch_size", "norm_batches", "schedule")},
            **{n: getattr(self._recipe, n) for n in ("augmentation", "labelled_patches", "absent")},
            "labelled_share": LABELLED_SHARE,
            "temperature": TEMPERATURE,
            "ema": 0.0,
            "selection": "best",
            "preset": self.options.preset,
            "recipe": self.options.recipe,
            "steps": self.length,
            "validate_every": self.options.validate_every or PRESETS[self.options.preset].validate_every,
            "setting": self.spec.setting,
            "seed": self.spec.seed,
            "normalization": self.spec.normalization,
        }
        if self.options.precision != "auto":
            wanted["precision"] = self.options.precision
        if SETTINGS[self.spec.setting].distill:  # in the others it is recorded and has no effect
            wanted["alpha"] = self.spec.alpha
        found = {
            **config_of(record).to_dict(),
            "normalization": record["model"].get("normalization"),
        }
        different = [f"{name} is {found.get(name)}, wanted {v}" for name, v in wanted.items() if found.get(name) != v]
        if different:
            raise InputError(
                f"holds another run ({'; '.join(different)})",
                where=self.run_dir,
                fix="expected the planned one; give the flags it was made with, or another --runs_dir",
            )
        data_dir = self.options.data_dir(self.spec)
        if data_dir.resolve() != Path(record["data_dir"]).resolve():
            open_run_data(record, data_dir)  # which may have moved


def plan(
    targets: Iterable[str],
    seeds: Sequence[int],
    folds: Sequence[int],
    options: ReproduceOptions,
    settings: Collection[str] = tuple(SETTINGS),
) -> list[ReproductionRun]:
    """The runs of some targets in some settings, each once.

    Raises:
        InputError: No such setting; or data that a target needs is not given or not there.
    """
    if unknown := [name for name in settings if name not in SETTINGS]:
        raise InputError(f"--settings={','.join(unknown)}: not known: expected some of {', '.join(SETTINGS)}")
    targets = list(targets)
    tried = {s for name in targets if TARGETS[name].outlier for s in TARGETS[name].runs(seeds, folds)}
    specs = [spec for spec in runs_for(targets, seeds, folds) if spec.setting in settings]
    for spec in specs:
        _check_data(spec, options, folds)
    return [ReproductionRun(spec, options, options.outlier is not None and spec in tried) for spec in specs]


def _check_data(spec: RunSpec, options: ReproduceOptions, folds: Sequence[int]) -> None:
    flag = f"--{spec.data}_data"
    if spec.data not in options.data:
        raise InputError(f"not given, but {spec.name} needs it", where=flag, fix="expected a folder of prepared data")
    if len(folds) > 1 and "{fold}" not in options.data[spec.data]:
        raise InputError(
            f"{flag}={options.data[spec.data]}: one data set for {len(folds)} folds: expected {{fold}} in the path, "
            "e.g. data/abdomen-{fold}, prepared with --split=k_fold and this name as --out"
        )
    folder = options.data_dir(spec)
    if not any((folder / name).is_file() for name in DATA_FILES):
        raise InputError(f"{flag}={folder}: no prepared data set there: run ummkd prepare first, or correct it")


# --- what would be done ----------------------------------------------------------------------------------------------


def seconds_per_step(records: Iterable[Record], task: str, preset: str) -> float | None:
    """Measured over all runs of a task and preset that are finished or were stopped; None without any.

    A run that was stopped after a few steps does not count, because most of its time went into starting. A killed run
    does not count either: its last seconds are not recorded.
    """
    runs = [r for r in records if r.task.name == task and r.run["flags"]["preset"] == preset]
    steps = {r.name: r.run["flags"]["steps"] for r in runs if r.finished}
    steps |= {
        r.name: done for r in runs if r.run["status"] == "stopped" and (done := steps_done(r.run_dir)) >= ENOUGH_STEPS
    }
    seconds = sum(r.run["seconds"] for r in runs if r.name in steps)
    return seconds / sum(steps.values()) if any(steps.values()) else None


def steps_done(run_dir: Path) -> int:
    """Training steps up to the newest checkpoint."""
    return newest_step(run_dir) or 0


def steps_left(planned: ReproductionRun) -> int:
    """Training steps after the newest checkpoint."""
    return max(0, planned.length - steps_done(planned.run_dir))


def measured_step(task: str, preset: str, recipe: str) -> float:
    """Seconds of a training step of Ours on this machine: the median of up to three on noise, behind one that traces.

    Raises:
        InputError: The process that measures ended, e.g. for want of memory.
    """
    chosen, network = PRESETS[preset], TASKS[task].network
    batch_size = recipe_for(recipe, network, preset).batch_size
    print(f"measuring a training step of {task} at preset {preset} …", file=sys.stderr)
    with Worker(OURS, Size(network, batch_size, TASKS[task].size[0] // chosen.factor, chosen.width)) as worker:
        seconds = [worker.step()]
        while len(seconds) < 3 and sum(seconds) < ENOUGH_SECONDS:
            seconds.append(worker.step())
    return median(seconds)


def describe(
    runs: Sequence[ReproductionRun],
    records: Sequence[Record],
    measure: Callable[[str, str, str], float] = measured_step,
) -> str:
    """What `--dry_run` prints: every run, what is missing, and the time training will take.

    Args:
        runs: What is planned.
        records: Runs that are there: what is like them takes as long as they did.
        measure: As `measured_step`, asked once for each task without such a run.
    """
    lines, seconds, measured = [], 0.0, dict[str, float]()
    for planned in runs:
        missing = planned.missing()
        text = ", ".join(missing) or "done"
        if "train" in missing:
            task, options, left = planned.spec.task, planned.options, steps_left(planned)
            pace = seconds_per_step(records, task, options.preset)
            if pace is None:
                if task not in measured:
                    measured[task] = measure(task, options.preset, options.recipe)
                pace = measured[task]
            text += f"; {left} steps, about {duration(left * pace)}"
            seconds += left * pace
        lines.append(f"{planned.name}: {text}")
    todo = sum(not line.endswith(": done") for line in lines)
    lines.append(f"{len(runs)} runs, {len(runs) - todo} done; about {duration(seconds)} of training, one at a time")
    if measured:
        paces = ", ".join(f"{task} {pace:.3g} s" for task, pace in measured.items())
        lines.append(f"measured on a few steps on this machine ({paces}); validation comes on top")
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """In seconds, minutes or hours, whichever reads best."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


# --- rendering -------------------------------------------------------------------------------------------------------


def render(target: str, options: ReproduceOptions, seeds: Sequence[int], folds: Sequence[int], out_dir: Path) -> None:
    """Writes a target's files into `out_dir`; a table is printed too.

    Raises:
        InputError: As `builders.build` and `figures.draw`.
    """
    records = load_records(options.runs_dir)
    if TARGETS[target].is_figure:
        figures.draw(target, select(records, TARGETS[target].runs(seeds, folds)), out_dir)
        return
    table = builders.build(target, records, seeds=seeds, folds=folds)
    compared = builders.build(target, records, seeds=seeds, folds=folds, compare=True)
    texts = {f"{target}{suffix}": to_text(table) for suffix, to_text in rendering.FORMATS.values()}
    for name, text in {**texts, f"{target}_beside_paper.md": rendering.to_markdown(compared)}.items():
        write_whole(out_dir / name, text)
    print(texts[f"{target}.md"])


def main(_: list[str]) -> int:
    """Does and renders what the flags ask for."""
    values = flags.FLAGS
    data = {name: str(path) for name in DATA if (path := values[f"{name}_data"].value)}
    options = ReproduceOptions(
        data=data,
        runs_dir=Path(values.runs_dir),
        preset=values.preset,
        recipe=values.recipe,
        steps=values.steps,
        validate_every=values.validate_every,
        precision=values.precision,
        cache_gb=values.cache_gb,
        threads=values.threads,
        xla=values.xla,
        outlier=values.outlier,
        overlap=values.overlap,
        largest_component=values.largest_component,
    )
    seeds, folds = values.seeds, values.folds
    targets = _targets(values.targets, data)
    runs = plan(targets, seeds, folds, options, values.settings)
    if values.dry_run:
        print(describe(runs, load_records(options.runs_dir)))
        return 0
    if values.executor == "slurm":
        _write_slurm_jobs(runs, Path(values.runs_dir))
        return 0
    if options.outlier is None and any(TARGETS[name].outlier for name in targets):
        print("no --outlier is given: what needs the outlier case stays blank")
    outcome = run_all(runs, values.jobs)
    unrendered = [
        target
        for target in progress(targets, desc="render", unit="target")
        if not _rendered(target, options, seeds, folds)
    ]
    print(f"{len(outcome.done)} of {len(runs)} runs done; results in {values.out_dir}")
    for name, reason in outcome.failed.items():
        print(f"FAILED {name}: {reason}", file=sys.stderr)
    return 1 if outcome.failed or unrendered else 0


def _write_slurm_jobs(runs: Sequence[ReproductionRun], runs_dir: Path) -> None:
    """Writes jobs for what is missing, and says how to submit them."""
    missing = [(planned, planned.missing()) for planned in runs]
    jobs = [(planned.name, [planned.command(action) for action in actions]) for planned, actions in missing if actions]
    # The same command, here: it finds every run done.
    render = [sys.executable, "-m", "experiments.reproduce", *sys.argv[1:], "--executor=local"]
    script = slurm.write_jobs(jobs, render, runs_dir / "slurm", runs_dir / "logs")
    print(f"{len(jobs)} of {len(runs)} runs are jobs, and one job after them renders the results")
    print(f"submit them, with what your cluster asks for: {script} --gres=gpu:1 --time=24:00:00")


def _rendered(target: str, options: ReproduceOptions, seeds: Sequence[int], folds: Sequence[int]) -> bool:
    try:
        render(target, options, seeds, folds, Path(flags.FLAGS.out_dir))
    except InputError as error:
        print(f"FAILED {target}: {error}", file=sys.stderr)
        return False
    return True


def _targets(names: Sequence[str] | None, data: Mapping[str, str]) -> list[str]:
    if names is None:
        if not data:
            raise InputError(f"no data given: expected {' or '.join(f'--{name}_data' for name in DATA)}, or --targets")
        return [name for name, target in TARGETS.items() if {spec.data for spec in target.specs} <= data.keys()]
    unknown = [name for name in names if name not in TARGETS]
    if unknown:
        raise InputError(f"--targets={','.join(unknown)}: not known: expected some of {', '.join(TARGETS)}")
    return list(dict.fromkeys(names))


def _define_flags() -> None:
    flags.DEFINE_list("targets", None, f"Some of {', '.join(TARGETS)}; default: all whose data are given.")
    flags.DEFINE_list("settings", list(SETTINGS), "Run these only; what needs others stays blank.")
    for name in DATA:
        flags.DEFINE_string(f"{name}_data", None, f"Prepared data: {name}; {{fold}} in it stands for the fold.")
    flags.DEFINE_string("runs_dir", "runs", "Folder of the runs, one subfolder each.")
    flags.DEFINE_string("out_dir", "results", "Folder for tables and figures.")
    flags.DEFINE_enum("preset", "paper", list(PRESETS), "Size of the runs, and more: as ummkd train has it.")
    flags.DEFINE_enum("recipe", "paper", list(RECIPES), "As ummkd train has it.")
    flags.DEFINE_integer("steps", None, "Optimizer steps; by default the preset's, else the recipe's.", lower_bound=1)
    flags.DEFINE_integer("validate_every", None, "Steps between validations; default: the preset's.", lower_bound=1)
    flags.DEFINE_enum("precision", "float32", ["auto", *get_args(Precision)], "As ummkd train has it.")
    flags.DEFINE_float(
        "cache_gb", None, "GB of images in memory, for each of the --jobs runs at a time.", lower_bound=0
    )
    flags.DEFINE_integer("threads", None, "Threads that prepare batches, for each run.", lower_bound=1)
    flags.DEFINE_bool("xla", None, "As ummkd train has it; for a GPU.")
    define_whole_numbers("seeds", "0", "Seeds; each gives a run of its own.")
    define_whole_numbers("folds", "0", "Folds; each needs its own prepared data.")
    flags.DEFINE_string("outlier", None, "Table VI's outlier CT, prepared with ummkd prepare --hold_out_cases.")
    flags.DEFINE_float("overlap", 0.0, "Of ummkd evaluate, whose protocol is the paper's without it.")
    flags.DEFINE_bool("largest_component", False, "Of ummkd evaluate, whose protocol is the paper's without it.")
    flags.DEFINE_integer("jobs", 1, "Runs at a time, each on its share of the CPU cores.", lower_bound=1)
    flags.DEFINE_enum(
        "executor", "local", ["local", "slurm"], "Run here, or write <runs_dir>/slurm/submit.sh and a job for each run."
    )
    flags.DEFINE_bool("dry_run", False, "List the runs, what is missing and about how long it takes; do nothing.")


if __name__ == "__main__":
    _define_flags()
    run(main)
