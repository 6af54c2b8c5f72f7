"""Dice and surface distances of each case and class, of a trained run or of another program's label maps.

    python -m experiments.evaluate --run_dir=runs/ours
    python -m experiments.evaluate --run_dir=runs/ours --outlier=<case>    for Table VI, see --hold_out_cases
    python -m experiments.evaluate --model=model --csv=new_cases.csv --out=new_hospital    scans not used before
    python -m experiments.evaluate --segmentations=labels --data_dir=data --out=other    another program's label maps

Writes <run_dir>/evaluation_<part>[_original].json (with --outlier, the part is "outlier") with every number, and prints
the table. The next evaluation of the part replaces the file; --tag=plain writes evaluation_<part>_plain.json beside it.

With --model, an exported model, every case of the CSV (case,modality,image,label, as ummkd prepare takes it) or of
the prepared data in --data_dir (of the authors' released records, the test volumes) is evaluated, and the file lies in
--out. Cases that the model has seen are refused.

--segmentations is a folder with a label map of each case of the part, <case>.nii.gz or alike, on the grid of its scan.
It is evaluated as a run is, the file lies in --out, and ummkd compare shows it beside a run.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from absl import flags
from numpy.typing import NDArray

from data_prep.pipeline import prepare_unsplit
from data_prep.sources import csv_list
from data_prep.sources.table import has_phantoms
from data_prep.workers import Workers
from experiments.segmentations import find_label_maps, label_map_on, read_label_map
from ummkd_tf.common.cli import run, start_tensorflow
from ummkd_tf.common.documents import MALFORMED, read_json
from ummkd_tf.common.errors import InputError
from ummkd_tf.common.files import write_json
from ummkd_tf.common.notes import note, note_aside
from ummkd_tf.common.progress import progress
from ummkd_tf.data.cases import Case, reduced
from ummkd_tf.data.opening import open_dataset
from ummkd_tf.evaluation.overlap import check_overlap
from ummkd_tf.evaluation.summary import summarize_cases
from ummkd_tf.output.pictures import overlay_figure, save_figure
from ummkd_tf.output.text_tables import counts_line, evaluation_table
from ummkd_tf.output.viewer import SliceViewer
from ummkd_tf.runs.config import Selection
from ummkd_tf.runs.environment import available_cores, environment
from ummkd_tf.runs.folder import AROUND_REFERENCE, RUN, check_prepared_alike, commits_of, config_of, evaluation_name
from ummkd_tf.runs.loading import load_run, open_run_data
from ummkd_tf.scans.geometry import Grid
from ummkd_tf.tasks import check_same_task

if TYPE_CHECKING:
    from ummkd_tf.data.dataset import Dataset
    from ummkd_tf.model.segmenter import UnpairedModel
    from ummkd_tf.tasks import Task

FLAGS = flags.FLAGS
flags.DEFINE_string("run_dir", None, "Folder of a trained run.")
flags.DEFINE_string("model", None, "Exported model (ummkd export) to evaluate on scans not used before.")
flags.DEFINE_string(
    "segmentations",
    None,
    "Folder with another program's label map of each case of the part, <case>.nii.gz or alike, to evaluate.",
)
flags.DEFINE_string("csv", None, "With --model: CSV file of labelled scans: case,modality,image,label[,split,patient].")
flags.DEFINE_string(
    "label_map", None, "With --csv or --segmentations: JSON from label value to class, as ummkd prepare takes it."
)
flags.DEFINE_string("out", None, "With --model or --segmentations: folder for the result.")
flags.DEFINE_string("data_dir", None, "Prepared data; by default what the run was trained on.")
flags.DEFINE_enum("part", "test", ["train", "validation", "test"], "Part of the split to evaluate.")
flags.DEFINE_string(
    "outlier", None, "Evaluate this case alone instead of a part; never one that was trained or validated on."
)
flags.DEFINE_enum("selection", None, list(get_args(Selection)), "Checkpoint; by default what the run was started with.")
flags.DEFINE_enum("grid", "prepared", ["prepared", "original"], "The task's grid (the paper's way) or each scan's own.")
flags.DEFINE_string(
    "tag", "", "Name for this way of evaluating, e.g. plain: part of the file's name, so that no other is replaced."
)
flags.DEFINE_string("pictures", None, "Folder for one overlay picture per case: prediction solid, reference dashed.")
flags.DEFINE_string("viewer", None, "Page (.html) to go through the slices of all cases with prediction and reference.")
flags.DEFINE_float(
    "overlap", 0.0, "Share of a 3D chunk that the next one sees again, 0 to 0.875; the authors' protocol has 0."
)
flags.DEFINE_bool(
    "largest_component", False, "Keep the largest connected part of each class alone; the authors' protocol does not."
)

_WINDOW = {
    "body": "around the body, one window a scan",
    "image_center": "around the image's middle, one window a scan",
    "label_centroid": f"{AROUND_REFERENCE}; a scan without one gets it in two passes (ummkd predict)",
}


_NOT_RECORDED = "it is not recorded which scans it was trained on; whether these are new to it is for you to know"

Segmenter = Callable[[Case], Callable[[Grid], NDArray]]
"""Takes a case and gives a function, which gives the case's class map on any grid."""


def main(_: list[str]) -> None:
    if sum(map(bool, (FLAGS.run_dir, FLAGS.model, FLAGS.segmentations))) != 1:
        raise InputError(
            "--run_dir, --model, --segmentations: expected one of them: a trained run, a model exported from one, or a "
            "folder of label maps"
        )
    if FLAGS.model and not (FLAGS.out and bool(FLAGS.csv) != bool(FLAGS.data_dir)):
        raise InputError("--model: expected --out, and labelled scans as --csv or as prepared --data_dir")
    if FLAGS.segmentations and (not (FLAGS.out and FLAGS.data_dir) or FLAGS.csv or FLAGS.overlap):
        raise InputError("--segmentations: expected --out and prepared --data_dir; leave --csv and --overlap out")
    if not FLAGS.run_dir and (FLAGS.outlier or FLAGS.selection):
        raise InputError("--outlier, --selection: belong to a run; leave them out without --run_dir")
    if FLAGS.run_dir and (FLAGS.csv or FLAGS.out):
        raise InputError("--csv, --out: scans not used before need a model that knows what it has seen; give --model")
    if FLAGS.label_map and not (FLAGS.csv or FLAGS.segmentations):
        raise InputError("--label_map: says what label files hold; leave it out without --csv or --segmentations")
    check_overlap(FLAGS.overlap)
    _file_name(FLAGS.part)  # refuses a bad --tag before any work
    start_tensorflow()
    if FLAGS.model:
        _evaluate_model()
    elif FLAGS.segmentations:
        _evaluate_segmentations(Path(FLAGS.segmentations))
    else:
        _evaluate_run(Path(FLAGS.run_dir))


def _file_name(part: str) -> str:
    return evaluation_name(part, original_grid=FLAGS.grid == "original", tag=FLAGS.tag)


def _evaluate_run(run_dir: Path) -> None:
    model, record, step = load_run(run_dir, FLAGS.selection)
    dataset = open_run_data(record, FLAGS.data_dir)
    part = "outlier" if FLAGS.outlier else FLAGS.part
    case_ids = _outlier(dataset, FLAGS.outlier, record.get("started_from")) if FLAGS.outlier else dataset.ids(part)
    config = config_of(record)
    about = {
        "run_dir": str(run_dir),
        "setting": record["setting"],
        "preset": config.preset,
        "seed": record["seed"],
        **_of_network(model, dataset.task),
        "step": step,
        "selection": FLAGS.selection or config.selection,
        "part": part,
        "trained_at_commit": " / ".join(commits_of(record)),
    }
    path = run_dir / _file_name(part)
    _evaluate(_by_network(model, dataset, config.factor(dataset.task)), dataset, case_ids, about, path)


def _evaluate_model() -> None:
    # Here, to start without TensorFlow.
    from ummkd_tf.runs.exported import check_not_seen, load_model

    exported, out = load_model(FLAGS.model), Path(FLAGS.out)
    if not exported.training.get("cases"):
        print(f"{FLAGS.model}: {_NOT_RECORDED}")
    with tempfile.TemporaryDirectory() as temporary:
        if FLAGS.csv:
            dataset = _prepared(Path(FLAGS.csv), exported.task, Path(temporary))
        else:
            dataset = open_dataset(FLAGS.data_dir)
            check_prepared_alike(dataset)
            check_same_task(dataset.task, exported.task, dataset.directory, "prepare the scans for the model's task")
        unknown = sorted({*dataset.case_modality.values()} - {*exported.model.modalities})
        if unknown:
            known = ", ".join(exported.model.modalities)
            raise InputError(f"{FLAGS.csv or FLAGS.data_dir}: {', '.join(unknown)} scans, but the model knows {known}")
        case_ids = dataset.scans
        check_not_seen(exported.training, dataset, case_ids, where=FLAGS.csv)
        training = exported.training
        about = {
            "model": str(FLAGS.model),
            "setting": asdict(exported.model.setting),
            **_of_network(exported.model, dataset.task),
            **{key: training.get(key) for key in ("preset", "seed", "step", "selection")},
            "part": "new",
            "trained_at_commit": training.get("commit"),
        }
        path = out / _file_name("new")
        _evaluate(_by_network(exported.model, dataset, exported.factor), dataset, case_ids, about, path)


def _prepared(csv_file: Path, task: Task, folder: Path) -> Dataset:
    """The CSV's scans, prepared in a folder."""
    found = csv_list.find(csv_file, task, Path(FLAGS.label_map) if FLAGS.label_map else None)
    problems = list(found.problems)
    if not problems:
        with Workers(available_cores()) as pool:
            source = f"{'phantom' if has_phantoms(found.cases) else 'csv'} {csv_file.name}"
            dataset, problems = prepare_unsplit(found.cases, task, folder, source=source, pool=pool, note=note)
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        raise InputError(f"{csv_file}: {len(problems)} problems, see above; nothing was evaluated")
    return dataset


def _of_network(model: UnpairedModel, task: Task) -> dict[str, Any]:
    """What an evaluation says of the network and of how it saw the scans."""
    return {
        "parameters": sum(v.value.shape.num_elements() for v in model.trainable_variables),
        "window": _WINDOW[task.region],
        "overlap": FLAGS.overlap,
    }


def _by_network(model: UnpairedModel, dataset: Dataset, factor: int) -> Segmenter:
    """Segments each case once, whatever the number of grids on which its class map is wanted."""
    # Here, to start without TensorFlow.
    from ummkd_tf.evaluation.case_results import classes_on
    from ummkd_tf.evaluation.inference import Predictor

    predictor = Predictor(model)

    def by_network(case: Case) -> Callable[[Grid], NDArray]:
        dataset.check_size(case.case_id, case.image.shape)
        image = reduced(case, factor).image
        probabilities = predictor.probabilities(image, case.modality, factor, overlap=FLAGS.overlap)
        return lambda grid: classes_on(probabilities, case.grid, grid)

    return by_network


def _evaluate_segmentations(folder: Path) -> None:
    out = Path(FLAGS.out)
    if (out / RUN).exists():
        raise InputError(
            "holds a run, whose evaluation would be replaced", where=out, fix="give another folder to --out"
        )
    dataset = open_dataset(FLAGS.data_dir)
    if FLAGS.grid == "prepared":  # their label maps are resampled as this program prepares references
        check_prepared_alike(dataset)
    case_ids = dataset.ids(FLAGS.part)
    paths = find_label_maps(folder, case_ids)
    classes = csv_list.read_label_map(Path(FLAGS.label_map) if FLAGS.label_map else None, dataset.task)

    def from_file(case: Case) -> Callable[[Grid], NDArray]:
        label = read_label_map(paths[case.case_id], case.original, classes)
        return lambda grid: label_map_on(grid, label, case, dataset.task.num_classes)

    about = {"setting": {"title": folder.resolve().name}, "segmentations": str(folder), "part": FLAGS.part}
    print(f"the program that made {folder}: {_NOT_RECORDED}")
    path = out / _file_name(FLAGS.part)
    _evaluate(from_file, dataset, case_ids, about, path)


def _evaluate(segmenter: Segmenter, dataset: Dataset, case_ids: list[str], about: dict[str, Any], path: Path) -> None:
    """Evaluates cases, writes every number to `path` and prints the table."""
    setting, part, step = about["setting"]["title"], about["part"], about.get("step")
    if not case_ids:
        raise InputError(
            f"no case in the {part} part", where=dataset.directory, fix="expected one to evaluate; see --part"
        )
    _tell_what_is_replaced(path, about)
    # Here, to start without TensorFlow.
    from ummkd_tf.evaluation.case_results import evaluate
    from ummkd_tf.evaluation.inference import largest_components

    modalities = [m for m in dataset.modalities if any(dataset.case_modality[c] == m for c in case_ids)]
    pictures = Path(FLAGS.pictures) if FLAGS.pictures else None
    generated = "PHANTOM data: " if dataset.is_phantom else ""
    title = generated + (setting if step is None else f"{setting}, step {step}")
    viewer = SliceViewer(dataset.task, ("prediction", "reference"), cases=len(case_ids)) if FLAGS.viewer else None

    def segment(case: Case, grid: Grid) -> NDArray:
        segmented_on = segmenter(case)
        if pictures or viewer:
            predicted = segmented_on(case.grid)
            show(case, largest_components(predicted) if FLAGS.largest_component else predicted)
        return segmented_on(grid)

    def show(case: Case, predicted: NDArray) -> None:
        if pictures:
            figure = overlay_figure(
                case.image,
                predicted,
                task=dataset.task,
                spacing_mm=case.grid.spacing_mm,
                reference=case.label,
                title=f"{case.case_id} · {case.modality}: {title}",
            )
            save_figure(figure, pictures / f"{case.case_id}.png")
        if viewer:
            spacing_mm, words = case.grid.spacing_mm, case.modality
            viewer.add(case.case_id, case.image, [predicted, case.label], spacing_mm=spacing_mm, words=words)

    cases = evaluate(
        segment,
        dataset,
        case_ids,
        original_grid=FLAGS.grid == "original",
        largest_component=FLAGS.largest_component,
        progress=lambda ids: progress(ids, unit="case", desc="evaluate"),
    )
    checksums = {case_id: found for case_id, found in dataset.checksums.items() if case_id in case_ids}
    result = {
        **about,
        "task": dataset.task.name,
        "grid": FLAGS.grid,
        "largest_component": FLAGS.largest_component,
        **{
            name: os.path.relpath(given, path.parent) for name in ("pictures", "viewer") if (given := FLAGS[name].value)
        },
        "split_name": dataset.split_name,
        "split_sha256": dataset.split_checksum,
        "scans": {case_id: found.image for case_id, found in checksums.items() if found.image},
        "labels": {case_id: found.label for case_id, found in checksums.items() if found.label},
        "environment": environment(),
        "modalities": modalities,
        "cases": cases,
        "summary": summarize_cases(cases, dataset.task, modalities),
    }
    write_json(path, result)
    trained = (
        f"; preset {about['preset']}, step {step} ({about['selection']}), seed {about['seed']}, "
        f"commit {about['trained_at_commit']}"
        if "preset" in about
        else ""
    )
    print(f"\n{generated}{setting} on the {part} part of {dataset.split_name}, {FLAGS.grid} grid{trained}\n")
    print(evaluation_table(result, dataset.task))
    if str(about.get("window")).startswith(AROUND_REFERENCE):
        note_aside(
            f"each scan's window lies {AROUND_REFERENCE}, as in training, so finding the organs is not measured; to "
            "measure that too, evaluate what ummkd predict writes with --segmentations"
        )
    if viewer:
        viewer.write(FLAGS.viewer, f"{title}: {part} part of {dataset.split_name}")
        print(f"\nslices: {FLAGS.viewer}")
    print(f"\n{counts_line(result, dataset.task)}\nevery number: {path}")


def _tell_what_is_replaced(path: Path, about: Mapping[str, Any]) -> None:
    """Tells when other results are there, which these replace: a folder has one file for each part."""
    try:
        earlier = read_json(path)
    except MALFORMED:  # none, or a damaged one
        return
    now = {**about, "largest_component": FLAGS.largest_component}
    names = ("selection", "overlap", "largest_component", "segmentations")
    different = [f"--{name}={earlier.get(name)}" for name in names if earlier.get(name) != now.get(name)]
    if different:
        note_aside(f"{path} was made with {', '.join(different)} and will be replaced; give --tag to keep both")


def _outlier(dataset: Dataset, case_id: str, started_from: Mapping[str, Any] | None) -> list[str]:
    if case_id not in dataset.case_modality:
        raise InputError(
            f"--outlier={case_id}: not in {dataset.directory}: expected one of its cases; "
            "prepare the data with --hold_out_cases naming it"
        )
    for part in ("train", "validation"):
        if case_id in dataset.split[part]:
            raise InputError(
                f"--outlier={case_id}: in the {part} part: expected a case the run has not learnt from; "
                "prepare the data with --hold_out_cases naming it, and train again"
            )
    if started_from:
        # Here, to start without TensorFlow.
        from ummkd_tf.runs.exported import check_not_seen

        check_not_seen(started_from, dataset, [case_id])
    return [case_id]


if __name__ == "__main__":
    run(main)
