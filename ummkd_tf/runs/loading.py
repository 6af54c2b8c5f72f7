"""The trained model of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ummkd_tf.common.errors import InputError
from ummkd_tf.runs.folder import RUN, read_run

if TYPE_CHECKING:
    from ummkd_tf.model.segmenter import UnpairedSegmenter


def load_model(run_dir: str | Path, selection: str | None = None) -> tuple[UnpairedSegmenter, dict[str, Any], int]:
    """A trained model, its `run.json`, and the optimizer steps of the checkpoint used.

    Args:
        run_dir: The run's folder.
        selection: "best" (validation mean Dice) or "last"; None for what the run was started with.

    Raises:
        InputError: No run, no checkpoint, or a checkpoint that does not fit.
    """
    from ummkd_tf.model.segmenter import UnpairedSegmenter
    from ummkd_tf.runs.checkpoints import CheckpointFolder, restore

    record = read_run(run_dir)
    path = CheckpointFolder(Path(run_dir)).selected(selection or record["flags"]["selection"])
    try:
        model = UnpairedSegmenter(**record["model"])
    except (TypeError, ValueError, KeyError) as error:
        raise InputError(f"{Path(run_dir) / RUN}: describes no model ({error}): restore it from a copy") from error
    return model, record, restore(path, model, with_optimizer=False).step
