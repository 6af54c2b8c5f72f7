"""A training run on disk: `run.json`, and the model it describes.

<run_dir>/run.json                 what was run: setting row, every flag, versions, commit, seed, split, seconds
<run_dir>/history.jsonl            losses and validation scores
<run_dir>/tensorboard/             the same for TensorBoard
<run_dir>/checkpoints/             step-*.npz (newest), best.npz
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ummkd_tf.cases import Dataset
from ummkd_tf.errors import InputError
from ummkd_tf.settings import SETTINGS
from ummkd_tf.volumes import replacing

if TYPE_CHECKING:
    from ummkd_tf.segmenter import UnpairedSegmenter

RUN = "run.json"
_PACKAGES = ("tensorflow", "keras", "numpy", "scipy", "nibabel", "SimpleITK", "h5py")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON whole or not at all; NaN becomes null, since JSON has none."""
    with replacing(path) as temporary:
        temporary.write_text(
            json.dumps(_without_nan(content), indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8"
        )


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and value != value else value


def read_run(run_dir: str | Path) -> dict[str, Any]:
    """Content of `run.json`.

    Raises:
        InputError: Missing or unreadable.
    """
    path = Path(run_dir) / RUN
    if not path.is_file():
        raise InputError(f"{path}: no run here: expected a folder that experiments.train has written; check --run_dir")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: damaged ({error}): restore it from a copy or train again") from error


def start_run(run_dir: Path, *, flags: Mapping[str, Any], model: Mapping[str, Any], dataset: Dataset) -> dict[str, Any]:
    """Writes the first `run.json` of a run, or checks that the run in this folder is the same one.

    Args:
        run_dir: The run's folder.
        flags: Every setting that decides the result.
        model: Arguments of `UnpairedSegmenter`.
        dataset: The data set.

    Returns:
        The record, to be given to `finish_session`.

    Raises:
        InputError: The folder holds a run with other flags or another split.
    """
    decisive = {
        "flags": json.loads(json.dumps(dict(flags))),
        "model": json.loads(json.dumps(dict(model))),
        "split_sha256": dataset.split_checksum,
    }
    if (run_dir / RUN).exists():
        record = read_run(run_dir)
        differences = [
            f"{key} is {new.get(key)!r}, was {old.get(key)!r}"
            for old, new in (
                (record["flags"], decisive["flags"]),
                (record["model"], decisive["model"]),
                ({"split": record["split_sha256"]}, {"split": decisive["split_sha256"]}),
            )
            for key in sorted({*old, *new})
            if old.get(key) != new.get(key)
        ]
        if differences:
            raise InputError(
                f"{run_dir}: holds a run with other settings ({'; '.join(differences)}): "
                "use its settings to continue it, or another --run_dir"
            )
        return record
    record = {
        **decisive,
        "setting": asdict(SETTINGS[model["setting"]]),
        "task": dataset.task.name,
        "data_dir": str(dataset.directory.resolve()),
        "split_name": dataset.split_name,
        "cases": {part: dataset.ids(part) for part in dataset.split},
        "seed": flags["seed"],
        "environment": environment(),
        "command": sys.argv,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "status": "running",
        "seconds": 0.0,
    }
    write_json(run_dir / RUN, record)
    return record


def finish_session(run_dir: Path, record: Mapping[str, Any], **changes: Any) -> None:
    """Updates `run.json` at the end of a session, e.g. status, seconds and progress."""
    write_json(run_dir / RUN, {**record, **changes})


def environment() -> dict[str, Any]:
    """Versions, commit, machine and device of this process."""
    import tensorflow as tf

    return {
        "versions": {"python": platform.python_version(), **{p: metadata.version(p) for p in _PACKAGES}},
        "commit": commit(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "devices": [d.name for d in tf.config.list_physical_devices()],
    }


def commit() -> str:
    """Commit of the source tree, with "+changes" where it has uncommitted ones; "unknown" outside a checkout."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=here, capture_output=True, encoding="utf-8", check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def load_model(run_dir: str | Path, selection: str | None = None) -> tuple[UnpairedSegmenter, dict[str, Any], int]:
    """A trained model, its `run.json`, and the optimizer steps of the checkpoint used.

    Args:
        run_dir: The run's folder.
        selection: "best" (validation mean Dice) or "last"; None for what the run was started with.

    Raises:
        InputError: No run, no checkpoint, or a checkpoint that does not fit.
    """
    from ummkd_tf.checkpoints import CheckpointFolder, restore
    from ummkd_tf.segmenter import UnpairedSegmenter

    record = read_run(run_dir)
    path = CheckpointFolder(Path(run_dir) / "checkpoints").selected(selection or record["flags"]["selection"])
    try:
        model = UnpairedSegmenter(**record["model"])
    except (TypeError, ValueError, KeyError) as error:
        raise InputError(f"{Path(run_dir) / RUN}: describes no model ({error}): restore it from a copy") from error
    return model, record, restore(path, model, with_optimizer=False).step
