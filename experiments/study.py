"""What makes the training work: one change at a time, compared on the validation part of one data set.

    python -m experiments.study --data_dir=data/fold0 --runs_dir=runs/study --dry_run
    python -m experiments.study --data_dir=data/fold0 --runs_dir=runs/study --only=absent,ema-0.99 --jobs=2

Runs are done in the table's order. Finished ones are kept, interrupted ones continue, so it can be stopped or killed at
any time. What is there is printed in the end, as a table.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import get_args

import numpy as np
from absl import flags

from experiments.execution import run_all
from experiments.number_lists import define_whole_numbers
from experiments.recipes import PRESETS
from ummkd_tf.common.cli import run
from ummkd_tf.common.errors import InputError
from ummkd_tf.data.opening import open_dataset
from ummkd_tf.output.text_tables import markdown
from ummkd_tf.runs.config import Precision
from ummkd_tf.runs.folder import RUN, read_run
from ummkd_tf.runs.history import HISTORY, read_history
from ummkd_tf.runs.loading import open_run_data

COMMON = {
    "setting": "ours",
    "recipe": "practice",
    "steps": 1500,
    "validate_every": 150,
    "precision": "mixed_bfloat16",
    "absent": "uniform",
}
"""As in Table II on real scans (docs/study.md#the-protocol-of-table-ii)."""

QUESTIONS: Mapping[str, Mapping[str, Mapping[str, object]]] = MappingProxyType(
    {
        "absent": {
            **{f"ours-{absent}": {"absent": absent} for absent in ("uniform", "skip", "memory")},
            "chilopod": {"setting": "chilopod"},
            "joint": {"setting": "joint"},
        },
        "augmentation": {f"augmentation-{name}": {"augmentation": name} for name in ("none", "affine", "strong")},
        "schedule": {"staircase": {"schedule": "staircase"}},
        "rate": {f"rate-{rate:g}": {"learning_rate": rate} for rate in (5e-4, 1e-3, 4e-3)},
        "averaging": {f"ema-{decay:g}": {"ema": decay} for decay in (0.99, 0.997)},
        "length": {"steps-4500": {"steps": 4500, "validate_every": 300}},
        "batch": {"batch-4": {"batch_size": 4}, "chilopod-batch-4": {"setting": "chilopod", "batch_size": 4}},
        "patches": {f"labelled-{share:g}": {"labelled_share": share} for share in (0.0, 1.0)}
        | {f"{setting}-inside": {"setting": setting, "labelled_patches": "inside"} for setting in ("ours", "chilopod")},
        "precision": {"float32": {"precision": "float32"}},
    }
)
"""Question → run → flags of `experiments.train` that differ from `COMMON`."""

MANY_SEEDS = ("absent",)  # questions of small differences; the others are asked with the first seed only


@dataclass(frozen=True)
class StudyRun:
    """One run; what `execution.run_all` needs to know of it."""

    name: str
    flags: Mapping[str, object]
    runs_dir: Path

    @property
    def run_dir(self) -> Path:
        """The run's folder."""
        return self.runs_dir / self.name

    @property
    def log(self) -> Path:
        """Where its output goes."""
        return self.runs_dir / "logs" / f"{self.name}.log"

    @property
    def length(self) -> int:
        """Training steps."""
        steps = self.flags["steps"]
        assert isinstance(steps, int)
        return steps

    def command(self, action: str) -> list[str]:
        """Trains it, or goes on."""
        given = {**self.flags, "run_dir": self.run_dir}
        return [sys.executable, "-m", f"experiments.{action}", *(f"--{name}={value}" for name, value in given.items())]

    def missing(self) -> list[str]:
        """["train"], or nothing where it is finished.

        Raises:
            InputError: The folder holds a run with other flags or of other data.
        """
        if not (self.run_dir / RUN).is_file():
            return ["train"]
        record = read_run(self.run_dir)
        found = record["flags"]
        changed = [n for n in self.flags.keys() & found if found[n] != self.flags[n]]
        if changed:
            raise InputError(
                f"differs in {', '.join(sorted(changed))}",
                where=self.run_dir,
                fix="expected the planned run; give another --runs_dir",
            )
        open_run_data(record, str(self.flags["data_dir"]))
        return [] if record["status"] == "finished" else ["train"]

    def row(self, modalities: Sequence[str]) -> list[str]:
        """Cells of `columns`; dashes where there is no validation yet."""
        lines = read_history(self.run_dir / HISTORY)
        scores = [line for line in lines if "validation_dice" in line]
        if not scores:
            return [self.name] + ["–"] * (len(columns(modalities)) - 1)
        best = max(scores, key=lambda line: line["validation_dice"])
        dice = [f"{100 * best[f'validation_{part}dice']:.1f}" for part in ("", *(f"{m}_" for m in modalities))]
        last = np.mean([100 * line["validation_dice"] for line in scores[-3:]])
        alone = np.mean([100 * (line["alone"] > 0) for line in lines if "alone" in line])
        seconds = read_run(self.run_dir)["seconds"]
        steps = (scores[-1]["step"], best["step"])
        return [self.name, *map(str, steps), *dice, f"{last:.1f}", f"{alone:.0f}", f"{seconds:.0f}"]


def columns(modalities: Sequence[str]) -> list[str]:
    """Of the table of runs."""
    means = ["Dice", *map(str.upper, modalities)]
    return ["run", "steps", "best at", *means, "last three", "steps with a class alone, %", "seconds"]


def plan(wanted: Collection[str], seeds: Sequence[int], runs_dir: Path, **more: object) -> list[StudyRun]:
    """Runs of some questions or with some names, with `more` flags: all of the first seed first.

    Raises:
        InputError: No such question and no such run.
    """
    known = [*QUESTIONS, *itertools.chain.from_iterable(QUESTIONS.values())]
    if unknown := [name for name in wanted if name not in known]:
        raise InputError(f"--only={','.join(unknown)}: not known: expected some of {', '.join(known)}")
    return [
        StudyRun(f"{name}-seed{seed}", {**COMMON, **more, **different, "seed": seed}, runs_dir)
        for seed in seeds
        for question, runs in QUESTIONS.items()
        if seed == seeds[0] or question in MANY_SEEDS
        for name, different in runs.items()
        if question in wanted or name in wanted
    ]


def main(_: list[str]) -> int:
    values = flags.FLAGS
    more = {"preset": values.preset, "precision": values.precision, "data_dir": values.data_dir}
    runs = plan(values.only or list(QUESTIONS), values.seeds, Path(values.runs_dir), **more)
    modalities = open_dataset(values.data_dir).modalities
    outcome = run_all(() if values.dry_run else runs, values.jobs)
    print(markdown(columns(modalities), [study_run.row(modalities) for study_run in runs]))
    return 1 if outcome.failed else 0


if __name__ == "__main__":
    flags.DEFINE_string("data_dir", None, "Prepared data, one fold.", required=True)
    flags.DEFINE_string("runs_dir", "runs/study", "Folder of the runs, one subfolder each.")
    flags.DEFINE_enum("preset", "small", list(PRESETS), "Size of the runs.")
    precision = str(COMMON["precision"])
    flags.DEFINE_enum("precision", precision, list(get_args(Precision)), "Of all runs but the one that is float32.")
    flags.DEFINE_list("only", None, f"Some of {', '.join(QUESTIONS)}, or of their runs, e.g. ema-0.99; default: all.")
    define_whole_numbers("seeds", "0,1,2", f"Seeds; only {', '.join(MANY_SEEDS)} takes more than the first.")
    flags.DEFINE_integer("jobs", 1, "Runs at a time, each on its share of the CPU cores.", lower_bound=1)
    flags.DEFINE_bool("dry_run", False, "Run nothing; print what is there.")
    run(main)
