"""The training loop: steps, logs, validation, checkpoints, exact resume."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from types import FrameType
from typing import Any

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from ummkd_tf.common.errors import InputError, Stopped
from ummkd_tf.common.files import write_json
from ummkd_tf.common.progress import progress as progress_bar
from ummkd_tf.data.sampling import UnpairedSampler
from ummkd_tf.model.segmenter import UnpairedModel
from ummkd_tf.runs.checkpoints import CheckpointFolder, Progress
from ummkd_tf.runs.devices import Devices
from ummkd_tf.runs.environment import has_gpu
from ummkd_tf.runs.history import HISTORY, KNOWLEDGE, JsonLines

_TIMED = 5  # steps that the estimate of the run's time is taken from
_LONG = 24  # hours on a CPU after which it is a warning
NOT_FINITE = "not_finite.json"


def train(
    model: UnpairedModel,
    sampler: UnpairedSampler,
    run_dir: Path,
    *,
    steps: int,
    validate: Callable[[], dict[str, float]] | None,
    validate_every: int,
    checkpoint_every: int,
    norm_batches: int = 0,
    log_every: int = 10,
    keep_checkpoints: int = 2,
    max_hours: float | None = None,
    num_threads: int = 1,
    knowledge: Callable[[], dict[str, Any]] | None = None,
    validated: Callable[[int], object] | None = None,
    devices: Devices | None = None,
) -> Progress:
    """Trains to `steps` optimizer steps, from the newest checkpoint in `run_dir` or from the start.

    The loop drives `model.optimize`, the same step that `fit` drives. Each logged step is a line of
    `history.jsonl` and a TensorBoard scalar.

    Args:
        model: Compiled model.
        sampler: Batch of a step.
        run_dir: The run's folder.
        steps: Total number of optimizer steps.
        validate: Gives validation scores; "dice" selects the best checkpoint, or where modalities share nothing
            "<modality>_dice" the weights of each. None: no validation, and no best one.
        validate_every: Steps between validations; the last step is always validated.
        checkpoint_every: Steps between checkpoints.
        norm_batches: How many of the last batches `UnpairedModel.estimate_statistics` takes before each
            validation, or at its steps where there is none; 0 keeps the running statistics.
        log_every: Steps between log lines.
        keep_checkpoints: How many of the newest to keep.
        max_hours: Stop cleanly after this time.
        num_threads: Threads that prepare batches ahead.
        knowledge: Gives what a line of `knowledge.jsonl` holds: before the first step, and with each validation.
        validated: Called with the step behind each validation, while TensorBoard's events are open.
        devices: Where the model was made; None: one device. Only their chief validates and writes.

    Raises:
        Stopped: A signal, or the time is up; the state is saved.
        InputError: A loss is not finite; the state before that step and the batch's examples are saved. Or the run
            directory cannot be used.
    """
    started = time.monotonic()
    devices = devices or Devices()
    if not devices.chief:
        validate = knowledge = None
    folder = CheckpointFolder(run_dir, keep_checkpoints)
    progress = folder.restore_newest(model)
    devices.check_same("checkpoints", progress.step, f"{run_dir} must be one folder that all workers share")
    if progress.step >= steps:
        return progress

    def log(step: int, values: Mapping[str, float]) -> None:
        if history is None:
            return
        history.write(step, values)
        for name, value in values.items():
            tf.summary.scalar(summary_tag(name, model.modalities), value, step=step)

    ends: list[float] = []  # when each of the first steps was done
    step_function = devices.step_function(model)
    asked = False  # whether this process wants to stop, which others hear with the next step
    with (
        JsonLines(run_dir / HISTORY, progress.step) if devices.chief else contextlib.nullcontext() as history,
        JsonLines(run_dir / KNOWLEDGE, progress.step) if knowledge else contextlib.nullcontext() as confusions,
        _events(run_dir / "tensorboard", progress.step) if devices.chief else contextlib.nullcontext(),
        _stop_signal() as stop,
        progress_bar(
            total=steps, initial=progress.step, unit="step", desc="train", mininterval=1.0, disable=not devices.chief
        ) as bar,
    ):
        if knowledge and confusions and progress.step == 0:
            confusions.write(0, knowledge())
        for images, labels in sampler.batches(progress.step, steps, num_threads, devices.part):
            step = progress.step + 1
            logging = step % log_every == 0 or step == steps
            rate = float(_own_optimizer(model).learning_rate) if logging else 0.0  # after the step it is the next one's
            terms, stop_all = step_function((images, labels), asked)
            # Reading all terms takes 25 µs of a step; many steps in one TensorFlow call were no faster.
            values = {name: float(value) for name, value in terms.items()}
            broken = {name: str(value) for name, value in values.items() if not np.isfinite(value)}
            if broken:
                names = ", ".join(sorted(broken))
                if devices.chief:
                    folder.save(model, progress)
                    origins = sampler.origins(step - 1)
                    write_json(run_dir / NOT_FINITE, {"step": step, "not_finite": broken, "batch": origins})
                raise InputError(
                    f"step {step}: {names} not finite: the state before it is saved and the batch's "
                    f"examples are in {run_dir / NOT_FINITE}; check them, or lower --learning_rate"
                )
            progress = replace(progress, step=step)
            if len(ends) <= _TIMED:
                ends.append(time.monotonic())
                if devices.chief and len(ends) > _TIMED and (text := time_left(ends, steps - step)):
                    tqdm.write(text)
            if logging:
                log(step, values)
                tf.summary.scalar("learning_rate", rate, step=step)
                bar.set_postfix(loss=f"{values['loss']:.3f}", refresh=False)
            bar.update()
            validating = step % validate_every == 0 or step == steps
            with _averaged_weights(model) if validating else contextlib.nullcontext():
                if validating and norm_batches:
                    recent = range(max(0, step - norm_batches), step)
                    model.estimate_statistics(_tensors(sampler.batch(s)[0]) for s in recent)
                if validate and validating:
                    scores = validate()
                    log(step, {f"validation_{name}": value for name, value in scores.items()})
                    if validated:
                        validated(step)
                    tqdm.write(f"step {step}: validation Dice {100 * scores['dice']:.1f} %")
                    if better := _better(model, scores, progress):
                        best_of = {**progress.best_of, **better}
                        mean = fmean(best_of.values())
                        progress = replace(progress, best_dice=mean, best_step=step, best_of=best_of)
                        folder.save_best(model, progress, tuple(better))
                if knowledge and confusions and validating:
                    confusions.write(step, knowledge())
            reason = stop() or _time_is_up(started, max_hours)
            if devices.several_workers:  # all of them leave after the same step
                asked, reason = reason is not None, (reason or ("stopped by another worker", 0)) if stop_all else None
            if devices.chief and (step % checkpoint_every == 0 or step == steps or reason):
                folder.save(model, progress)
            if reason and step < steps:
                message, code = reason
                raise Stopped(f"{message} at step {step}; the same command continues from here", code)
    return progress


def _better(model: UnpairedModel, scores: Mapping[str, float], progress: Progress) -> dict[str, float]:
    """The modalities that this validation is the best so far for, each with its score.

    The score is the mean Dice. Where modalities share no variable, it is each one's own Dice, as if they were trained
    one by one; a modality without any class in the validation part then takes the mean of the others.
    """
    own = [{id(v) for v in model.variables_of((m,))} for m in model.modalities]
    share_nothing = sum(map(len, own)) == len(set.union(*own))
    better = {}
    for modality in model.modalities:
        score = scores.get(f"{modality}_dice", math.nan) if share_nothing else math.nan
        score = scores["dice"] if math.isnan(score) else score
        # Checkpoints of earlier versions have the mean alone.
        before = progress.best_of.get(modality, -1.0 if progress.best_dice is None else progress.best_dice)
        if score > before:  # never where it is NaN, because no modality has a class
            better[modality] = score
    return better


def summary_tag(name: str, modalities: Sequence[str]) -> str:
    """The name of a history's value in TensorBoard, which groups by the first part: "ct_dice_loss" is loss/ct/dice."""
    group, rest = ("validation", name.removeprefix("validation_")) if name.startswith("validation_") else ("", name)
    group = group or ("loss" if name.endswith(("loss", "cross_entropy")) else "step")
    modality = next((m for m in modalities if rest.startswith(f"{m}_")), None)
    term = rest.removeprefix(f"{modality}_").removesuffix("_loss")
    return "/".join(part for part in (group, modality, "total" if term == "loss" else term) if part)


def _own_optimizer(model: UnpairedModel) -> Any:
    """The optimizer that the model was compiled with, without the loss scaling that float16 puts around it."""
    optimizer: Any = model.optimizer
    return getattr(optimizer, "inner_optimizer", optimizer)


def time_left(ends: Sequence[float], steps: int) -> str | None:
    """How long the steps that are left will take, where that is more than an hour.

    Args:
        ends: Seconds at which the first steps were done; the time before the first is left out, because that step
            traces the graph.
        steps: How many are left.
    """
    pace = float(np.median(np.diff(ends)))
    hours = pace * steps / 3600
    if hours < 1:
        return None
    about = f"{hours:.0f} hours" if hours >= 1.5 else "an hour"
    text = f"{pace:.3g} s a step: {steps} more take about {about}, and validation comes on top"
    if hours < _LONG or has_gpu():
        return text
    return f"warning: no GPU: {text}; --preset=small and tiny are the sizes for a CPU"


@contextlib.contextmanager
def _averaged_weights(model: UnpairedModel) -> Iterator[None]:
    """Inside the block, the weights are the moving averages of an optimizer that has `use_ema`; after it, they are as
    before."""
    if not _own_optimizer(model).use_ema:
        yield
        return
    variables = model.variables_of(model.modalities)
    before = [(v, v.numpy()) for v in variables]
    model.optimizer.finalize_variable_values([v for v in variables if v.trainable])
    try:
        yield
    finally:
        for v, value in before:
            v.assign(value)


def _tensors(arrays: dict) -> dict[str, tf.Tensor]:
    return {modality: tf.constant(array) for modality, array in arrays.items()}


def _time_is_up(started: float, max_hours: float | None) -> tuple[str, int] | None:
    if max_hours is not None and time.monotonic() - started > 3600 * max_hours:
        return f"stopped after --max_hours={max_hours:g}", 0
    return None


@contextlib.contextmanager
def _events(folder: Path, step: int) -> Iterator[None]:
    # Events of steps that will be done again stay in older files; TensorBoard shows the newest value of a step.
    writer = tf.summary.create_file_writer(str(folder), filename_suffix=f".from-step-{step}")
    try:
        with writer.as_default():
            yield
    except tf.errors.ResourceExhaustedError as error:
        # On a full disk, TensorBoard's events cannot be written either: what went wrong first is the message.
        first: BaseException | None = error
        while first is not None and not isinstance(first, InputError):
            first = first.__context__
        if first is None:
            raise
        raise first from None
    writer.close()


@contextlib.contextmanager
def _stop_signal() -> Iterator[Callable[[], tuple[str, int] | None]]:
    """Remembers SIGTERM and Ctrl-C; the loop asks after each step and its validation whether one has come."""
    received: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        received.append(number)
        # Not print(), because the handler may interrupt a print().
        os.write(2, f"\n{signal.Signals(number).name}: saving after this step and its validation\n".encode())

    numbers = (signal.SIGTERM, signal.SIGINT)
    try:
        before = {number: signal.signal(number, remember) for number in numbers}
    except ValueError:  # only the main thread can handle signals; another one leaves them to its program
        before = {}
    try:
        yield lambda: (f"stopped by {signal.Signals(received[0]).name}", 128 + received[0]) if received else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
