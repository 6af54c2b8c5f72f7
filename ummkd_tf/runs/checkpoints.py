"""Checkpoints of a run: everything the next step depends on, in plain NumPy archives.

`step-00000300.npz` holds `model/<variable path>`, `optimizer/<variable path>`, with `absent="memory"` what is
remembered of the classes as `memory/<modality>`, and `meta` (JSON: step and best validation result). Batches and the
learning rate follow from the step. A file is written whole or not at all; each of its arrays carries a CRC, so damage
is noticed, and no pickle is ever loaded.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ummkd_tf.common.documents import MALFORMED, read_npz
from ummkd_tf.common.errors import InputError
from ummkd_tf.common.files import replacing
from ummkd_tf.model.keras_hooks import RANDOM_STATE
from ummkd_tf.model.segmenter import UnpairedModel
from ummkd_tf.runs.folder import CHECKPOINTS, checkpoint_files

BEST = "best.npz"


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        step: Optimizer steps done.
        best_dice: Validation mean Dice of the best checkpoint; None where there is none.
        best_step: The step at which that one was written.
        best_of: The validation score by which each modality's weights were chosen: the mean Dice, or in a setting that
            shares nothing the modality's own.
    """

    step: int = 0
    best_dice: float | None = None
    best_step: int | None = None
    best_of: Mapping[str, float] = field(default_factory=dict)


def weights(model: UnpairedModel) -> dict[str, Any]:
    """Every weight and statistic of a model by its name in a file: what prediction needs."""
    return without_random_states(_model_variables(model))


def weights_checksum(model: UnpairedModel) -> str:
    """sha256 of `weights`: two models that have the same one predict the same."""
    digest = hashlib.sha256()
    for name, variable in sorted(weights(model).items()):
        array = np.asarray(variable)
        digest.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


def without_random_states(by_name: Mapping[str, Any]) -> dict[str, Any]:
    """What a file or model holds, less what Dropout draws from."""
    return {name: value for name, value in by_name.items() if not name.endswith(f"/{RANDOM_STATE}")}


def _model_variables(model: UnpairedModel) -> dict[str, Any]:
    return {f"model/{name}": v for name, v in model.named_variables().items()}


def _variables(model: UnpairedModel) -> dict[str, Any]:
    return {
        **_model_variables(model),
        **{f"memory/{modality}": v for modality, v in model.memory.items()},
        # Without the optimizer's own name, which Keras numbers (adam, adam_1, …) within a process.
        **{f"optimizer/{v.path.split('/', 1)[1]}": v for v in model.optimizer.variables},
    }


def write_checkpoint(
    path: Path, model: UnpairedModel, progress: Progress, instead: Mapping[str, NDArray] = MappingProxyType({})
) -> None:
    """Writes the state of a compiled model; arrays in `instead` replace its own of the same name."""
    arrays = {name: np.asarray(v.value) for name, v in _variables(model).items()} | dict(instead)
    meta = np.frombuffer(json.dumps(vars(progress)).encode(), np.uint8)
    with replacing(path) as temporary:
        np.savez(temporary, allow_pickle=False, meta=meta, **arrays)


def read_checkpoint(path: Path) -> tuple[dict[str, NDArray], Progress]:
    """Arrays by name, and the progress.

    Raises:
        InputError: Missing or damaged file.
    """
    try:
        arrays = read_npz(path)
        progress = Progress(**json.loads(arrays.pop("meta").tobytes()))
    except FileNotFoundError as error:
        raise InputError("no such checkpoint", where=path, fix="train the run first, or check --run_dir") from error
    except MALFORMED as error:
        raise InputError(
            "damaged checkpoint", where=path, fix="restore it from a copy, or use the other --selection"
        ) from error
    return arrays, progress


def restore(path: Path, model: UnpairedModel, *, with_optimizer: bool) -> Progress:
    """Sets a model's variables, and those of its optimizer, from a checkpoint.

    Raises:
        InputError: As `read_checkpoint`, or the checkpoint is of another architecture; or, without the optimizer, which
            is how models are used, has weights that are no numbers.
    """
    return _set(path, model, *read_checkpoint(path), with_optimizer=with_optimizer)


def _set(
    path: Path, model: UnpairedModel, arrays: dict[str, NDArray], progress: Progress, *, with_optimizer: bool
) -> Progress:
    if with_optimizer:
        variables = _variables(model)
    else:
        variables = weights(model)
        arrays = without_random_states({n: array for n, array in arrays.items() if n.startswith("model/")})
        broken = [name for name, array in arrays.items() if array.dtype.kind == "f" and not np.isfinite(array).all()]
        if broken:
            raise InputError(
                f"{len(broken)} variables with NaN or infinite values, e.g. {broken[0]!r}",
                where=path,
                fix="the run diverged; use the other --selection, or train again with a lower --learning_rate",
            )
    set_variables(path, variables, arrays)
    return progress


def set_variables(path: Path, variables: Mapping[str, Any], arrays: Mapping[str, NDArray]) -> None:
    """Sets variables from the arrays of a file.

    Raises:
        InputError: Not the same names, shapes and types.
    """
    _check(path, variables, arrays)
    for name, variable in variables.items():
        variable.assign(arrays[name])


def _kind(array: Any) -> tuple[tuple[int, ...], np.dtype]:
    return tuple(array.shape), np.asarray(array).dtype


def _check(path: Path, variables: Mapping[str, Any], arrays: Mapping[str, NDArray]) -> None:
    wrong = sorted(set(variables) ^ set(arrays))
    wrong += [name for name in variables if name in arrays and _kind(variables[name].value) != _kind(arrays[name])]
    if wrong:
        raise InputError(
            f"checkpoint of another architecture ({len(wrong)} variables differ, e.g. {wrong[0]!r})",
            where=path,
            fix="use the flags it was trained with",
        )


class CheckpointFolder:
    """The checkpoints of one run: the newest few and the best.

    Args:
        run_dir: The run's folder.
        keep: How many of the newest to keep.
    """

    def __init__(self, run_dir: Path, keep: int = 2) -> None:
        self.run_dir, self.folder, self.keep = run_dir, run_dir / CHECKPOINTS, keep

    def save(self, model: UnpairedModel, progress: Progress) -> None:
        """Writes the newest checkpoint and removes those beyond `keep`."""
        write_checkpoint(self.folder / f"step-{progress.step:08d}.npz", model, progress)
        for old in checkpoint_files(self.run_dir)[self.keep :]:
            old.unlink()

    def save_best(self, model: UnpairedModel, progress: Progress, modalities: Sequence[str]) -> None:
        """Writes the checkpoint that model selection will use; what only other modalities use stays as it is there."""
        used = {id(v) for v in model.variables_of(modalities)}
        others = {name for name, v in _model_variables(model).items() if id(v) not in used}
        try:
            before = read_checkpoint(self.folder / BEST)[0] if others else {}
        except InputError:  # the first one; or a damaged one, which this replaces
            before = {}
        write_checkpoint(self.folder / BEST, model, progress, {n: a for n, a in before.items() if n in others})

    def restore_newest(self, model: UnpairedModel) -> Progress:
        """Continues from the newest readable checkpoint; a fresh start where there is none.

        A best checkpoint of a later step, left by a run that was killed before its next one, stays the best: done
        again, its steps can score a little less (without deterministic operations).

        Raises:
            InputError: There are checkpoints and none is readable, or one is of another architecture.
        """
        damaged: InputError | None = None
        for path in checkpoint_files(self.run_dir):
            try:
                content = read_checkpoint(path)
            except InputError as error:
                logging.getLogger(__name__).warning("%s; trying the one before", error)
                damaged = error
                continue
            return self._with_later_best(_set(path, model, *content, with_optimizer=True))
        if damaged:
            raise damaged
        return self._with_later_best(Progress())

    def _with_later_best(self, progress: Progress) -> Progress:
        try:
            _, best = read_checkpoint(self.folder / BEST)
        except InputError:  # none, or a damaged one, which the next better one replaces
            return progress
        if best.step <= progress.step:
            return progress
        return replace(progress, best_dice=best.best_dice, best_step=best.best_step, best_of=best.best_of)

    def selected(self, selection: str) -> Path:
        """Path of the "best" or the "last" checkpoint.

        Raises:
            InputError: No such checkpoint.
        """
        found = [self.folder / BEST] if selection == "best" else checkpoint_files(self.run_dir)[:1]
        if not found or not found[0].is_file():
            fix = {
                "best": "train the run to its first validation, or choose --selection=last",
                "last": "train the run first, or choose --selection=best",
            }
            raise InputError(f"no {selection} checkpoint", where=self.folder, fix=fix[selection])
        return found[0]
