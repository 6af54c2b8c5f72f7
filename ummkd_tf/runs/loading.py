"""The trained model of a run, and what segments scans with the models of several."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ummkd_tf.common.errors import InputError
from ummkd_tf.data.opening import open_dataset
from ummkd_tf.runs.folder import RUN, check_preparation, check_same_scans, config_of, read_run, task_of
from ummkd_tf.tasks import check_same_task, differences

if TYPE_CHECKING:
    from ummkd_tf.data.dataset import Dataset
    from ummkd_tf.evaluation.scan_prediction import ScanPredictor
    from ummkd_tf.model.segmenter import UnpairedModel


def load_run(run_dir: str | Path, selection: str | None = None) -> tuple[UnpairedModel, dict[str, Any], int]:
    """A trained model, its `run.json`, and the optimizer steps of the checkpoint used.

    Args:
        run_dir: The run's folder.
        selection: "best" (validation mean Dice) or "last"; None for what the run was started with.

    Raises:
        InputError: No run, no checkpoint, or a checkpoint that does not fit.
    """
    # Here, to start without TensorFlow.
    from ummkd_tf.model.any_network import model_of
    from ummkd_tf.runs.checkpoints import CheckpointFolder, restore

    record = read_run(run_dir)
    path = CheckpointFolder(Path(run_dir)).selected(selection or record["flags"]["selection"])
    try:
        model = model_of(record["model"])
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise InputError(
            f"describes no model ({error})", where=Path(run_dir) / RUN, fix="restore it from a copy"
        ) from error
    return model, record, restore(path, model, with_optimizer=False).step


def open_run_data(record: Mapping[str, Any], data_dir: str | Path | None = None) -> Dataset:
    """The data set that a run was trained on.

    Args:
        record: The run's `run.json`.
        data_dir: Where the data are; None: where they were for the training.

    Raises:
        InputError: None there, or one of another split, another task or other scans.
    """
    dataset = open_dataset(data_dir or record["data_dir"])
    if dataset.split_checksum != record["split_sha256"]:
        raise InputError(
            f"another split ({dataset.split_name}) than the run was trained with ({record['split_name']})",
            where=dataset.directory,
            fix="test cases may have been trained on; give the run's own data",
        )
    check_same_task(
        dataset.task, task_of(record), dataset.directory, "give the run's own data, or prepare them for its task"
    )
    check_same_scans(record, dataset)
    return dataset


def read_agreeing_runs(run_dirs: Sequence[str | Path]) -> list[dict[str, Any]]:
    """The records of runs whose predictions can be averaged.

    Raises:
        InputError: As `read_run` and `check_preparation`; a run that is given twice; or one that differs from the
            first in task, modalities or image size.
    """
    places = [Path(run_dir).resolve() for run_dir in run_dirs]
    twice = next((run_dir for run_dir, place in zip(run_dirs, places, strict=True) if places.count(place) > 1), None)
    if twice is not None:
        raise InputError("is given twice", where=twice, fix="a run counts once in a mean; leave one out")
    records = [read_run(run_dir) for run_dir in run_dirs]
    first = records[0]
    for run_dir, record in zip(run_dirs, records, strict=True):
        check_preparation(record, run_dir)
        different = differences(task_of(first), task_of(record))
        here, there = _inputs(first), _inputs(record)
        different += [f"{name} {there[name]} instead of {here[name]}" for name in here if there[name] != here[name]]
        if different:
            raise InputError(
                f"does not go with {run_dirs[0]}: {'; '.join(different)}",
                where=run_dir,
                fix="only runs of one task, the same modalities and the same image size can be averaged",
            )
    return records


def _inputs(record: Mapping[str, Any]) -> dict[str, object]:
    """What a run's model takes, by name, beside what its task says."""
    return {"modalities": ", ".join(record["model"]["modalities"]), "size": record["flags"]["size"]}


def _seen(run_dir: str | Path) -> Iterator[tuple[str, str]]:
    """The checksum of each scan that a run was trained on or chosen by, and its part in words."""
    record = read_run(run_dir)
    checksums = record.get("scans", {})
    for part in ("train", "validation"):
        for case_id in record.get("cases", {}).get(part, ()):
            if case_id in checksums:
                yield checksums[case_id], f"the {part} part of {run_dir} ({case_id})"


def load_scan_predictor(
    run_dirs: Sequence[str | Path],
    selection: str | None = None,
    *,
    overlap: float = 0.0,
    largest_component: bool = False,
) -> ScanPredictor:
    """What segments scans with a run, or with the mean of several runs' probabilities (seeds or folds).

    Args:
        run_dirs: Folders of runs that agree, at least one.
        selection: As for `load_run`.
        overlap: As for `ScanPredictor`.
        largest_component: As for `ScanPredictor`.

    Raises:
        InputError: As `read_agreeing_runs` and `load_run`.
    """
    # Here, to start without TensorFlow.
    from ummkd_tf.evaluation.inference import Ensemble, Predictor
    from ummkd_tf.evaluation.scan_prediction import ScanPredictor
    from ummkd_tf.runs.checkpoints import weights_checksum

    record = read_agreeing_runs(run_dirs)[0]
    loaded = [load_run(run_dir, selection) for run_dir in run_dirs]
    predictors = [Predictor(model) for model, _, _ in loaded]
    titles = dict.fromkeys(f"{model.setting.title}, step {step}" for model, _, step in loaded)
    return ScanPredictor(
        predictors[0] if len(predictors) == 1 else Ensemble(predictors),
        task_of(record),
        record["model"]["modalities"],
        config_of(record).factor(task_of(record)),
        overlap=overlap,
        largest_component=largest_component,
        intensities=record.get("intensities"),
        weights_sha256=[weights_checksum(model) for model, _, _ in loaded],
        seen=dict(pair for run_dir in run_dirs for pair in _seen(run_dir)),
        title="; ".join(titles) + (f" (mean of {len(loaded)} runs)" if len(loaded) > 1 else ""),
    )
