"""A training run on disk: `run.json`, and the model it describes.

<run_dir>/run.json                 what was run: setting row, every flag, versions, commit, seed, split, seconds
<run_dir>/history.jsonl            losses and validation scores
<run_dir>/knowledge.jsonl          q of Eq. 3 and the distillation loss along training, where asked for
<run_dir>/tensorboard/             the same for TensorBoard
<run_dir>/checkpoints/             step-*.npz (newest), best.npz
<run_dir>/lock                     held by the process that trains
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ummkd_tf.common.documents import MALFORMED, read_json
from ummkd_tf.common.errors import InputError, Stopped, listed
from ummkd_tf.common.files import UNFINISHED, write_json
from ummkd_tf.data.intensities import check_intensities
from ummkd_tf.runs.config import RunConfig, changed_settings
from ummkd_tf.runs.environment import environment
from ummkd_tf.scans import preprocessing
from ummkd_tf.settings import SETTINGS
from ummkd_tf.tasks import Task, check_same_task, stored_task

if TYPE_CHECKING:
    from ummkd_tf.data.dataset import Dataset


RUN = "run.json"
LOCK = "lock"
CHECKPOINTS = "checkpoints"
# What every reader of `run.json` relies on.
_FIELDS: dict[str, type | tuple[type, ...]] = {
    "flags": dict,
    "model": dict,
    "model.modalities": list,
    "setting": dict,
    "setting.title": str,
    "task": (dict, str),
    "data_dir": str,
    "split_name": str,
    "split_sha256": str,
    "seed": int,
    "environment": dict,
    "environment.commit": str,
    "seconds": (int, float),
    "status": str,
}
# What the oldest runs, or those that are not finished, lack.
_OPTIONAL: dict[str, type] = {
    "source": str,
    "scans": dict,
    "labels": dict,
    "preparation": int,
    "changes": list,
    "continued": list,
    "progress": dict,
}


# Settings that decide which variables a checkpoint has, and what about each of them decides it.
_CHECKPOINT_VARIABLES: Mapping[str, Callable[[RunConfig], object]] = {
    "ema": lambda config: bool(config.ema),
    "absent": lambda config: config.absent == "memory",
    "freeze": lambda config: config.freeze,
    "precision": lambda config: config.precision == "mixed_float16",
}


AROUND_REFERENCE = "around the reference label's centroid"
"""How the "window" of an evaluation begins where the network is shown the place of the organs."""


def evaluation_name(part: str, *, original_grid: bool = False, tag: str = "") -> str:
    """File name of the evaluation of a part ("train", "validation", "test" or "outlier"), or of "new" scans, on the
    prepared or the scans' grid; with a tag, one that is kept beside it.

    Raises:
        InputError: A tag that cannot be part of a file's name, or would give the name of another file.
    """
    if tag and (not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", tag) or tag.partition("_")[0] == "original"):
        raise InputError(
            f"--tag={tag}: expected letters, digits and . _ -, like plain or last; original stands for --grid=original"
        )
    return f"evaluation_{part}{'_original' if original_grid else ''}{f'_{tag}' if tag else ''}.json"


def read_run(run_dir: str | Path) -> dict[str, Any]:
    """Content of `run.json`.

    Raises:
        InputError: Missing or unreadable.
    """
    path = Path(run_dir) / RUN
    if not path.is_file():
        raise InputError(
            "no run here", where=path, fix="expected a folder that ummkd train has written; check --run_dir"
        )
    try:
        record = read_json(path)
        for field, kind in _FIELDS.items():
            outer, _, inner = field.rpartition(".")
            if not isinstance((record[outer] if outer else record).get(inner), kind):
                raise ValueError(f"no {field}")
        for field, kind in _OPTIONAL.items():
            if not isinstance(record.get(field, kind()), kind):
                raise ValueError(f"no {field}")
        commits_of(record)  # raises where a continuation is damaged
        config_of(record).factor(task_of(record))
        check_intensities(record.get("intensities", {}))
    except MALFORMED as error:
        raise InputError(f"damaged ({error})", where=path, fix="restore it from a copy or train again") from error
    return record


def config_of(record: Mapping[str, Any]) -> RunConfig:
    """The settings in a run's record.

    Raises:
        ValueError: As `RunConfig.from_dict`.
    """
    return RunConfig.from_dict(record["flags"])


def task_of(record: Mapping[str, Any]) -> Task:
    """The task a run was trained for, as `run.json` stores it.

    Raises:
        InputError: None is stored.
    """
    return stored_task(record["task"], RUN)


def selected_step(record: Mapping[str, Any], selection: str | None = None) -> int | None:
    """Optimizer steps of the checkpoint that is a run's result; None where its record does not say, as before its end.

    Args:
        record: Content of `run.json`.
        selection: "best" or "last"; None for what the run was started with.
    """
    best = (selection or config_of(record).selection) == "best"
    return record.get("progress", {}).get("best_step" if best else "step")


def is_of_selected(evaluation: Mapping[str, Any], record: Mapping[str, Any], selection: str | None = None) -> bool:
    """Whether an evaluation is of the checkpoint that is a run's result, or can be, where its record does not say.

    The step alone does not tell: with averaged weights, or with a checkpoint for each network, the best and the last
    one of the same step are different models.

    Args:
        evaluation: Content of an evaluation JSON.
        record: Content of `run.json`.
        selection: As `selected_step`.
    """
    selection = selection or config_of(record).selection
    same_step = selected_step(record, selection) in (None, evaluation.get("step"))
    return same_step and evaluation.get("selection", selection) == selection


def checkpoint_files(run_dir: Path) -> list[Path]:
    """The checkpoints of a run by step, the newest first; without the best one."""
    written = [p for p in (run_dir / CHECKPOINTS).glob("step-*.npz") if re.fullmatch(r"step-\d{8,}", p.stem)]
    return sorted(written, key=_step, reverse=True)


def newest_step(run_dir: Path) -> int | None:
    """Step of the newest checkpoint of a run; None where there is none."""
    files = checkpoint_files(run_dir)
    return _step(files[0]) if files else None


def _step(checkpoint: Path) -> int:
    return int(checkpoint.stem.removeprefix("step-"))


@contextlib.contextmanager
def exclusive(run_dir: Path) -> Iterator[None]:
    """Holds a run directory for this process; the operating system releases it when the process ends, however that
    happens.

    What a killed process left half-written is removed.

    Raises:
        InputError: Another process holds it, or it cannot be written to.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock = open(run_dir / LOCK, "a+", encoding="utf-8")  # noqa: SIM115, closed below
    except OSError as error:
        raise InputError(
            f"cannot be used ({error.strerror})", where=run_dir, fix="check --run_dir and permissions"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            raise InputError(
                f"in use by {lock.read().strip() or 'another process'}",
                where=run_dir,
                fix="expected one process for a run; wait for it, stop it, or choose another --run_dir",
            ) from error
        except OSError as error:  # some network file systems have no locks
            raise InputError(
                f"cannot be locked ({error.strerror})",
                where=run_dir,
                fix=(
                    "expected a file system with locks, so that no other process writes to the run; choose"
                    " another --run_dir"
                ),
            ) from error
        for left in run_dir.rglob(f"{UNFINISHED}*"):
            shutil.rmtree(left, ignore_errors=True)
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        lock.flush()
        try:
            yield
        finally:
            lock.truncate(0)


def start_run(
    run_dir: Path,
    *,
    config: RunConfig,
    model: Mapping[str, Any],
    dataset: Dataset,
    accept_changes: bool = False,
) -> dict[str, Any]:
    """Writes the first `run.json` of a run, or checks that the run in this folder is the same one.

    Where it is continued by another commit, with other versions or on another machine, the record says so.

    Args:
        run_dir: The run's folder.
        config: Every setting that decides the result.
        model: Arguments of `model_of`.
        dataset: The data set.
        accept_changes: Continue although settings differ, and record that; never with another model or split.

    Returns:
        The record, to be given to `recorded_session`.

    Raises:
        InputError: As `check_run`.
    """
    record, changed = check_run(run_dir, config=config, model=model, dataset=dataset, accept_changes=accept_changes)
    if record:
        if changed:
            changes = [*record.get("changes", []), {"at": _now(), "changed": changed}]
            record |= {"flags": config.to_dict(), "changes": changes}
        record |= {"data_dir": str(dataset.directory.resolve())}  # the same data, which may have moved
        here, step = environment(), newest_step(run_dir) or 0
        if step < config.steps:
            record.pop("progress", None)  # of an earlier end
            if here != _environments(record)[-1]:
                part = {"at": _now(), "step": step, "environment": here}
                record |= {"continued": [*record.get("continued", []), part]}
        write_json(run_dir / RUN, record)
        return record
    record = {
        "flags": config.to_dict(),
        "model": _as_stored(model),
        "split_sha256": dataset.split_checksum,
        "setting": asdict(SETTINGS[model["setting"]]),
        "task": dataset.task.to_dict(),
        "data_dir": str(dataset.directory.resolve()),
        "source": dataset.source,
        "split_name": dataset.split_name,
        "cases": {part: dataset.ids(part) for part in dataset.split},
        "scans": {case_id: found.image for case_id, found in dataset.checksums.items() if found.image},
        "labels": {case_id: found.label for case_id, found in dataset.checksums.items() if found.label},
        "preparation": dataset.preparation,
        "seed": config.seed,
        "environment": environment(),
        "command": sys.argv,
        "started": _now(),
        "status": "running",
        "seconds": 0.0,
    }
    write_json(run_dir / RUN, record)
    return record


def check_run(
    run_dir: Path, *, config: RunConfig, model: Mapping[str, Any], dataset: Dataset, accept_changes: bool = False
) -> tuple[dict[str, Any] | None, list[str]]:
    """The record of the run in a folder, if there is one, and which settings would change; arguments as `start_run`.

    Needs no TensorFlow, so that a program can refuse at once.

    Raises:
        InputError: The folder holds a run with other flags, another model, another split or other scans, or a part of
            it is gone; or a new run's data were not prepared by this program's steps.
    """
    checkpoints = newest_step(run_dir) is not None
    if checkpoints and not (run_dir / RUN).exists():
        raise InputError(
            f"has checkpoints but no {RUN}, so nobody knows what was run",
            where=run_dir,
            fix=f"restore {RUN} from a copy, or choose another --run_dir",
        )
    if not (run_dir / RUN).exists():
        check_prepared_alike(dataset)
        return None, []
    record = read_run(run_dir)
    if not checkpoints and record.get("status") in ("finished", "stopped"):
        raise InputError(
            f"the run is {record['status']}, but its checkpoints are gone",
            where=run_dir,
            fix="restore them from a copy, or choose another --run_dir to train again",
        )
    check_same_task(task_of(record), dataset.task, run_dir, "train on the run's own data, or choose another --run_dir")
    check_same_scans(record, dataset)
    changed = changed_settings(config_of(record).to_dict(), config.to_dict())
    fixed = changed_settings(record["model"], _as_stored(model))
    if record["split_sha256"] != dataset.split_checksum:
        now, before = f"({dataset.split_checksum[:8]})", f"({record['split_sha256'][:8]})"
        fixed.append(f"split is {dataset.split_name!r} {now}, was {record['split_name']!r} {before}")
    if checkpoints:  # these would not fit; refused here, before anything is written
        old, new = config_of(record), config
        names = [name for name, decides in _CHECKPOINT_VARIABLES.items() if decides(old) != decides(new)]
        fixed += changed_settings(*({name: getattr(settings, name) for name in names} for settings in (old, new)))
    if fixed or (changed and not accept_changes):
        different = "; ".join(dict.fromkeys(fixed + changed))  # some settings are arguments of the model, too
        accept = "; --accept_changes continues all the same, and records that"
        if config.schedule == "polynomial" and config.steps != config_of(record).steps:
            accept += (
                ", but the learning rate, which falls to zero over all steps, jumps: to train longer, rather export "
                "the model and start a new run with --init_from"
            )
        raise InputError(
            f"{run_dir}: holds a run with other settings ({different}): use its settings to continue it, or another "
            "--run_dir" + ("" if fixed else accept)
        )
    return record, changed


def commits_of(record: Mapping[str, Any]) -> list[str]:
    """The commits of the programs that trained a run, in order, each once."""
    return list(dict.fromkeys(found["commit"] for found in _environments(record)))


def _environments(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [record["environment"], *(part["environment"] for part in record.get("continued", []))]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def check_same_scans(record: Mapping[str, Any], dataset: Dataset) -> None:
    """Refuses a data set whose case ids stand for other scans or labels than when a run was started, or prepared
    otherwise.

    Runs and cases that do not say so, because they are older, are not checked.

    Raises:
        InputError: Names the cases, or both versions of the steps.
    """
    now = dataset.checksums
    for what, before, found, why in (
        ("scan", "scans", {c: case.image for c, case in now.items()}, "test cases may have been trained on"),
        ("label map", "labels", {c: case.label for c, case in now.items()}, "results would hang on other labels"),
    ):
        known = record.get(before, {})
        others = [c for c, checksum in found.items() if checksum and known.get(c, checksum) != checksum]
        if others:
            raise InputError(
                f"{listed(others)}: not the same {what} as when the run was started",
                where=dataset.directory,
                fix=f"{why}; give the run's own data, or train again in another --run_dir",
            )
    version = record.get("preparation", dataset.preparation)
    if version != dataset.preparation:
        raise InputError(
            f"prepared by {_steps(dataset.preparation)}, and the run was started on scans of {_steps(version)}",
            where=dataset.directory,
            fix="give the run's own data, or train again in another --run_dir",
        )


def check_prepared_alike(dataset: Dataset) -> None:
    """Refuses a data set that was prepared by other steps than this program's.

    Raises:
        InputError: It was. The authors' released records come prepared, and are never refused.
    """
    if dataset.preparation != preprocessing.VERSION:
        raise InputError(
            f"prepared by {_steps(dataset.preparation)}, and this program has version {preprocessing.VERSION}",
            where=dataset.directory,
            fix="prepare the data again with the same command, so that training and prediction prepare alike",
        )


def check_preparation(record: Mapping[str, Any], where: str | Path) -> None:
    """Refuses to segment scans with a run that has seen scans prepared by other steps than this program's.

    Raises:
        InputError: It has; runs that do not say so, because they are older, are not checked.
    """
    version = record.get("preparation", preprocessing.VERSION)
    if version != preprocessing.VERSION:
        raise InputError(
            f"was trained on scans prepared by {_steps(version)}, and this program has version {preprocessing.VERSION}",
            where=where,
            fix=f"use ummkd_tf {record.get('ummkd_tf', 'of that time')}, or train again",
        )


def _steps(version: int) -> str:
    return f"version {version} of the steps" if version else "steps of an unknown version"


def _as_stored(model: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(dict(model)))


@contextlib.contextmanager
def recorded_session(run_dir: Path, record: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Adds a session's end to `run.json`: status, seconds, and what the block puts into the yielded dict.

    Status "finished", or "stopped" by a signal or the clock, or "failed". A killed process leaves "running".
    """
    started = time.monotonic()
    result: dict[str, Any] = {}

    def write(status: str) -> None:
        seconds = round(record["seconds"] + time.monotonic() - started, 1)
        write_json(run_dir / RUN, {**record, "status": status, "seconds": seconds, **result})

    write("running")
    try:
        yield result
    except Stopped:
        write("stopped")
        raise
    except Exception:
        with contextlib.suppress(InputError):  # on a full disk this fails too: the first error is the message
            write("failed")
        raise
    write("finished")
