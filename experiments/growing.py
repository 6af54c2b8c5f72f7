"""Growing a model by a modality: with few scans, what helps — normalization layers alone, everything, or from scratch?

    python -m experiments.growing --work_dir=growing

On phantoms (no patients): a model is trained on CT and MR, and exported; then a third modality, MR of the opposite
contrast, is added with 2, 4 and 8 scans. Prints the new modality's test Dice as a table. Finished runs are kept.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from data_prep.phantom.sets import write_abdomen
from data_prep.pipeline import prepare_cases
from data_prep.sources import btcv, chaos
from data_prep.workers import Workers
from experiments.number_lists import define_whole_numbers
from experiments.recipes import ALPHA, PRESETS, TEMPERATURE, recipe_for
from ummkd_tf.common.cli import run, start_tensorflow
from ummkd_tf.common.errors import InputError
from ummkd_tf.common.notes import note
from ummkd_tf.data.dataset import Dataset
from ummkd_tf.output.text_tables import markdown
from ummkd_tf.runs.config import RunConfig
from ummkd_tf.runs.environment import available_cores
from ummkd_tf.runs.folder import commits_of, read_run
from ummkd_tf.runs.loading import load_run
from ummkd_tf.tasks import TASKS

FLAGS = flags.FLAGS
flags.DEFINE_string("work_dir", None, "Folder for phantoms, runs and the first model.", required=True)
flags.DEFINE_integer("steps", 200, "Steps of each run with the new modality.", lower_bound=1)
flags.DEFINE_integer("first_steps", 300, "Steps of the first model.", lower_bound=1)
flags.DEFINE_integer("seed", 0, "Seed of weights and batches.")
define_whole_numbers("scans", "2,4,8", "Training scans of the new modality.")

TASK, PRESET = TASKS["abdomen"], PRESETS["tiny"]
NEW = "mr2"
WAYS: Mapping[str, Mapping[str, Any]] = {
    "norms only": {"freeze": "kernels"},
    # In few steps, scales and shifts cannot go far at the rate that suits kernels.
    "norms only, rate × 10": {"freeze": "kernels", "learning_rate": 2e-2},
    "everything": {},
    "from scratch": {"setting": "individual", "init_from": None},
}
"""How a new modality is learnt → what differs from --init_from with everything trained."""


def write_phantoms(folder: Path) -> None:
    """Prepares 6 CT and 6 MR in `folder/first`, and 14 MR of opposite contrast in `folder/new`, of other patients."""
    write_abdomen(folder / "raw_first", num_ct=6, num_mr=6, seed=0, overwrite=True)
    write_abdomen(folder / "raw_new", num_ct=1, num_mr=14, seed=1, anticorrelated_mr=True, overwrite=True)
    new = [dataclasses.replace(case, modality=NEW) for case in chaos.find(folder / "raw_new").cases]
    first = [*btcv.find(folder / "raw_first").cases, *chaos.find(folder / "raw_first").cases]
    with Workers(available_cores()) as pool:
        for name, cases, validation, test in (("first", first, 1, 1), ("new", new, 2, 4)):
            split = {}
            for modality in dict.fromkeys(case.modality for case in cases):
                ids = [case.case_id for case in cases if case.modality == modality]
                first_test = len(ids) - test
                split[modality] = {
                    "train": ids[: first_test - validation],
                    "validation": ids[first_test - validation : first_test],
                    "test": ids[first_test:],
                }
            problems = prepare_cases(
                cases, TASK, folder / name, split=split, split_name="growing", source="phantom", pool=pool, note=note
            )
            if problems:
                raise InputError(str(problems[0]), where=folder)


def config(steps: int, **changes: Any) -> RunConfig:
    """A run at preset tiny."""
    recipe = recipe_for("practice", "unet3d", "tiny")
    values: dict[str, Any] = {
        "task": TASK.name,
        "setting": "ours",
        "recipe": "practice",
        "preset": "tiny",
        "size": TASK.size[0] // PRESET.factor,
        "steps": steps,
        "learning_rate": recipe.learning_rate,
        "schedule": recipe.schedule,
        "decay_every": recipe.decay_every,
        "labelled_patches": recipe.labelled_patches,
        "augmentation": "none",  # for so few steps, unlike the recipe
        "batch_size": recipe.batch_size,
        "alpha": ALPHA,
        "temperature": TEMPERATURE,
        "absent": recipe.absent,
        "l2_on": recipe.l2_on,
        "l2_weight": recipe.l2_weight,
        "selection": "best",
        "validate_every": PRESET.validate_every,
        "norm_batches": recipe.norm_batches,
        "seed": FLAGS.seed,
    }
    return RunConfig(**(values | changes))


def train(dataset: Dataset, run_dir: Path, settings: RunConfig) -> float:
    """Test Dice of a run on the images the model sees, trained where it is not yet."""
    # Here, to start without TensorFlow.
    from ummkd_tf.evaluation.inference import Predictor
    from ummkd_tf.evaluation.validation import mean_dice
    from ummkd_tf.runs.session import SessionOptions, run_training

    arguments = {
        "network": "unet3d",
        "setting": settings.setting,
        "num_classes": TASK.num_classes,
        "width": PRESET.width,
        "initialization": PRESET.initialization,
    }
    run_training(dataset, run_dir, settings, arguments, SessionOptions(checkpoint_every=settings.steps))
    model, _, _ = load_run(run_dir)
    cases = dataset.stored_cases("test", factor=PRESET.factor)
    return mean_dice(Predictor(model), (case.load() for case in cases))["dice"]


def table(scores: Mapping[str, Sequence[float]], scans: Sequence[int]) -> str:
    """Markdown: a row per way, a column per number of scans."""
    header = [f"{NEW} Dice, %", *(f"{n} scans" for n in scans)]
    return markdown(header, [[way, *(f"{100 * score:.1f}" for score in row)] for way, row in scores.items()])


def main(_: list[str]) -> None:
    start_tensorflow()
    # Here, to start without TensorFlow.
    from ummkd_tf.runs.exported import export_run

    work = Path(FLAGS.work_dir)
    if not (work / "new" / "dataset.json").is_file():
        write_phantoms(work)
    for name in ("raw_first", "raw_new"):
        shutil.rmtree(work / name, ignore_errors=True)
    new = Dataset.load(work / "new")
    most = len(new.ids("train"))
    if wrong := [n for n in FLAGS.scans if not 0 < n <= most]:
        raise InputError(
            f"--scans={','.join(map(str, wrong))}: expected numbers from 1 to {most}, as many as there are to train on"
        )
    run_dirs = [work / "runs" / "first"]
    before = train(Dataset.load(work / "first"), run_dirs[0], config(FLAGS.first_steps))
    if not (work / "model").exists():
        export_run(run_dirs[0], work / "model")
    scores: dict[str, list[float]] = {way: [] for way in WAYS}
    for n in FLAGS.scans:
        part = dataclasses.replace(new, split={**new.split, "train": new.split["train"][:n]})
        for way, changes in WAYS.items():
            settings = config(FLAGS.steps, **{"init_from": str((work / "model").resolve()), **changes})
            run_dirs.append(work / "runs" / f"{re.sub('[^a-z0-9]+', '-', way)}-{n}")
            scores[way].append(train(part, run_dirs[-1], settings))
    # Of the runs, of which some may have been made by an earlier version.
    commits = dict.fromkeys(commit for run_dir in run_dirs for commit in commits_of(read_run(run_dir)))
    print(f"\nfirst model, CT and MR: test Dice {100 * before:.1f} % after {FLAGS.first_steps} steps")
    print(
        f"phantoms, preset tiny, {FLAGS.steps} steps, seed {FLAGS.seed}, commit {' / '.join(commits)}; "
        f"{len(new.ids('test'))} test scans"
    )
    print(f"\n{table(scores, FLAGS.scans)}")


if __name__ == "__main__":
    run(main)
