"""One training run, from a data set to a finished folder: what `experiments.train` does once its flags are read."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from ummkd_tf.common.errors import InputError
from ummkd_tf.data.augmentation import AUGMENTATIONS, NONE
from ummkd_tf.data.cache import Cache
from ummkd_tf.data.cases import file_checksum
from ummkd_tf.data.dataset import Dataset
from ummkd_tf.data.intensities import training_intensities
from ummkd_tf.data.released_dataset import ReleasedDataset
from ummkd_tf.data.sampling import UnpairedSampler, check_classes
from ummkd_tf.evaluation.case_results import knowledge_of_cases
from ummkd_tf.evaluation.inference import Predictor
from ummkd_tf.evaluation.validation import validation_score
from ummkd_tf.model.any_network import model_of
from ummkd_tf.model.layers import BatchNorm
from ummkd_tf.model.segmenter import UnpairedModel, UnpairedSegmenter
from ummkd_tf.runs import training
from ummkd_tf.runs.checkpoints import Progress
from ummkd_tf.runs.config import KnowledgeOn, RunConfig, Strategy
from ummkd_tf.runs.devices import Devices, check_precision, without_graph_optimizer
from ummkd_tf.runs.environment import batch_threads, device, free_memory
from ummkd_tf.runs.exported import check_not_seen, start_from
from ummkd_tf.runs.folder import RUN, config_of, exclusive, newest_step, read_run, recorded_session, start_run
from ummkd_tf.runs.model_folder import WEIGHTS, read_description
from ummkd_tf.runs.tensorboard import ValidationPicture

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SessionOptions:
    """Options that may change when a run is continued, because its result does not depend on them.

    Attributes:
        checkpoint_every: Steps between checkpoints.
        keep_checkpoints: How many of the newest to keep.
        log_every: Steps between log lines.
        max_hours: Stop cleanly after this time.
        threads: Threads that prepare batches; None for as many as suit the device.
        cache_gb: GB (10⁹ bytes) of images and class maps kept in memory; None for half of what is free at the start.
            What does not fit is read from disk when it is needed.
        knowledge_on: Part whose confusion matrices q are recorded with each validation.
        strategy: One device, several of this machine, or several machines.
        xla: Compile the training step with XLA; on one device.
        accept_changes: Continue a run although its settings differ, and record that.
        on_start: Called with the sampler before the first step, e.g. to draw what the network is fed.
    """

    checkpoint_every: int = 100
    keep_checkpoints: int = 2
    log_every: int = 10
    max_hours: float | None = None
    threads: int | None = None
    cache_gb: float | None = None
    knowledge_on: KnowledgeOn = "none"
    strategy: Strategy = "default"
    xla: bool = False
    accept_changes: bool = False
    on_start: Callable[[UnpairedSampler], None] | None = None


def run_training(
    dataset: Dataset, run_dir: Path, config: RunConfig, model_arguments: Mapping[str, Any], options: SessionOptions
) -> Progress:
    """Trains, or continues, one run in its folder.

    Args:
        dataset: Prepared cases or released records.
        run_dir: The run's folder.
        config: Settings that decide the result.
        model_arguments: As for `model_of`, without the modalities, which are the data set's.
        options: Settings that do not.

    Raises:
        InputError: Settings, data or folder that do not fit.
        Stopped: As `training.train`.
    """
    _check(dataset, config, options)
    dataset.check_copies()
    devices = Devices(options.strategy)
    devices.check_batch(config.batch_size)
    if options.xla and devices.replicas > 1:
        raise InputError(f"--xla: works on one device, and --strategy={options.strategy} has {devices.replicas} here")
    if options.xla and config.deterministic:
        raise InputError("--xla: TensorFlow has no deterministic operations for it: leave out --xla or --deterministic")
    settings = (config.to_dict(), model_arguments, dataset.task.name, [dataset.ids(p) for p in ("train", "validation")])
    devices.check_same("flags or data", settings, "start all workers with the same ones")
    keras.utils.set_random_seed(config.seed)
    keras.config.set_dtype_policy(config.precision)
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    # A run that goes on from a checkpoint no longer needs the model that it started from.
    source = Path(config.init_from) if config.init_from else None
    recorded = read_run(run_dir) if source and (run_dir / RUN).is_file() else {}
    checksum = recorded.get("init_from_sha256")
    if source and checksum and (source / WEIGHTS).is_file() and file_checksum(source / WEIGHTS) == checksum:
        config = replace(config, init_from=config_of(recorded).init_from)  # the same model, in whichever folder
    continues = checksum and newest_step(run_dir) is not None
    source_model = read_description(source) if source and not continues else None
    # A model that grows keeps the modalities it has, also those that the new data lack.
    learnt = (source_model or recorded)["model"]["modalities"] if source else ()
    modalities = tuple(dict.fromkeys((*learnt, *dataset.modalities)))
    model_arguments = {**model_arguments, "modalities": modalities}
    with devices.scope():
        model = make_model(config, model_arguments, xla=options.xla)
    if config.local_batch_norm:
        for layer in model._flatten_layers():
            if isinstance(layer, BatchNorm):
                layer.synchronized = False
    if source and source_model:
        start_from(model, source, dataset.task)
        check_not_seen(source_model["training"], dataset, dataset.ids("validation"), ("train",))
        check_not_seen(source_model["training"], dataset, dataset.ids("test"))
    factor = config.factor(dataset.task)
    cache = Cache(free_memory() / 2 if options.cache_gb is None else 1e9 * options.cache_gb)
    sampler = make_sampler(dataset, config, model.network.rank, cache)
    predictor = Predictor(model)
    picture = ValidationPicture(dataset.task)
    validate = validation_score(dataset, predictor, factor, cache=cache, watch=picture.watch)
    if validate is None and config.selection == "best":
        raise InputError(
            "no validation part, so the best checkpoint cannot be chosen",
            where=dataset.directory,
            fix=("expected one in the data set; add the validation lists, or give --selection=last to train without"),
        )
    watched = [] if options.knowledge_on == "none" else dataset.stored_cases(options.knowledge_on, None, factor, cache)

    def knowledge() -> dict[str, Any]:
        return knowledge_of_cases(predictor, (case.load() for case in watched), config.temperature)

    train = partial(
        training.train,
        model,
        sampler,
        run_dir,
        steps=config.steps,
        validate=validate,
        validate_every=config.validate_every,
        norm_batches=config.norm_batches,
        checkpoint_every=options.checkpoint_every,
        keep_checkpoints=options.keep_checkpoints,
        log_every=options.log_every,
        max_hours=options.max_hours,
        num_threads=options.threads or batch_threads(),
        knowledge=knowledge if watched else None,
        devices=devices,
    )
    if not devices.chief:  # the chief writes the run's folder
        with without_graph_optimizer(model):
            return train()
    with exclusive(run_dir), without_graph_optimizer(model):
        record = start_run(
            run_dir, config=config, model=model_arguments, dataset=dataset, accept_changes=options.accept_changes
        )
        print(_announcement(model, dataset, config, devices, run_dir))
        if options.on_start:
            options.on_start(sampler)
        if source and source_model:
            record |= {"started_from": source_model["training"], "init_from_sha256": file_checksum(source / WEIGHTS)}
        with recorded_session(run_dir, record) as session:
            earlier = record.get("started_from", {}).get("intensities", {})
            session["intensities"] = record.get("intensities") or {**earlier, **training_intensities(dataset)}
            progress = train(validated=picture.write)
            session["progress"] = vars(progress)
    return progress


def _announcement(model: UnpairedModel, dataset: Dataset, config: RunConfig, devices: Devices, run_dir: Path) -> str:
    """What is trained, on what and where, in one line."""
    factor = config.factor(dataset.task)
    counts = ", ".join(f"{len(dataset.ids('train', m))} {m}" for m in dataset.modalities)
    rows, columns = (n // factor for n in dataset.task.size)
    high_mm, wide_mm = (factor * mm for mm in dataset.task.spacing_mm[:2])
    return (
        f"{model.setting.title} with {model.network.name}, preset {config.preset} ({rows} × {columns} pixels of "
        f"{high_mm:g} × {wide_mm:g} mm"
        + (f", 1/{factor} of the task's rows and columns" if factor > 1 else "")
        + f"), {config.steps} steps; "
        f"training {dataset.unit}: {counts}; split {dataset.split_name}; run in {run_dir}; on {device()}"
        + (f", {devices.replicas} devices" if devices.replicas > 1 else "")
        + (f", {config.precision}" if config.precision != "float32" else "")
    )


def make_sampler(dataset: Dataset, config: RunConfig, rank: int, cache: Cache) -> UnpairedSampler:
    """The batches of a run.

    Args:
        dataset: Prepared cases or released records.
        config: The run's settings.
        rank: Of the network: 2 or 3.
        cache: Where images and class maps are kept.

    Raises:
        InputError: A modality without training cases, or none of them shows some class.
    """
    examples = {
        modality: dataset.examples(
            modality, rank, config.factor(dataset.task), cache, config.labelled_share, config.labelled_patches
        )
        for modality in dataset.modalities
    }
    check_classes(examples, dataset.task.class_names)
    if isinstance(dataset, ReleasedDataset) and config.augmentation != NONE:
        _LOG.warning(
            "the released records are augmented already, and --augmentation=%s does so again: --recipe=released or "
            "--augmentation=none takes them as they are",
            config.augmentation,
        )
    augmentation = replace(AUGMENTATIONS[config.augmentation], spacing_mm=dataset.task.spacing_mm[:2])
    return UnpairedSampler(examples, config.batch_size, config.seed, augmentation)


def make_model(config: RunConfig, model_arguments: Mapping[str, Any], *, xla: bool = False) -> UnpairedModel:
    """The compiled model of a run; its step with XLA if asked for, which is slower on a CPU (docs/performance.md)."""
    # Deterministic runs keep to TensorFlow's and Keras's own operations: the optimized ones round differently.
    model = model_of(model_arguments, fast=False if config.deterministic else None)
    if config.freeze == "kernels":
        if not isinstance(model, UnpairedSegmenter):
            raise InputError("--freeze=kernels: a Keras model has no kernels by that name; leave --freeze out")
        for v in model.variables:
            if "/conv/" in v.path:
                v.trainable = False
    schedules = keras.optimizers.schedules
    if config.schedule == "staircase":
        rate = schedules.ExponentialDecay(config.learning_rate, config.decay_every, 0.95, staircase=True)
    else:
        rate = schedules.PolynomialDecay(config.learning_rate, config.steps, end_learning_rate=0.0, power=0.9)
    averaging = {"use_ema": True, "ema_momentum": config.ema} if config.ema else {}
    model.compile(
        model.operations.adam(rate, epsilon=1e-8, **averaging),
        kd_weight=config.alpha,
        temperature=config.temperature,
        absent=config.absent,
        l2_on=config.l2_on,
        l2_weight=config.l2_weight,
        jit_compile=xla,
    )
    return model


def _check(dataset: Dataset, config: RunConfig, options: SessionOptions) -> None:
    if config.freeze == "kernels" and not config.init_from:
        raise InputError("--freeze=kernels: would keep random kernels: expected --init_from with a trained model")
    if len(dataset.modalities) == 1 and config.setting != "individual" and not config.init_from:
        raise InputError(
            f"--setting={config.setting}: needs two modalities or more, and {dataset.directory} has only "
            f"{dataset.modalities[0]}: take --setting=individual, or add scans of another modality"
        )
    if (part := options.knowledge_on) != "none":
        found = sorted({dataset.case_modality[c] for c in dataset.ids(part) if c in dataset.case_modality})
        if len(found) < 2:
            raise InputError(
                f"--knowledge_on={part}: compares modalities, and the {part} part of {dataset.directory} has whole "
                f"scans of {' and '.join(found) or 'none'} alone: leave it out"
            )
    if config.ema and config.selection == "last":
        raise InputError("--ema: only the best checkpoint holds averaged weights; give --selection=best, or no --ema")
    check_precision(config.precision)
