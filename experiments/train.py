"""Trains one of the paper's seven settings.

    python -m experiments.train --task=abdomen --setting=ours --data_dir=data/abdomen --run_dir=runs/ours
    python -m experiments.train --setting=x_shaped --describe --diagram=net.svg

The same command continues a run that was stopped. Look at it with `tensorboard --logdir runs`.
"""

from __future__ import annotations

import inspect
import runpy
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any, get_args

from absl import flags

from experiments.number_lists import LARGEST_SEED
from experiments.recipes import ALPHA, PRESETS, RECIPES, TEMPERATURE, Recipe, recipe_for
from ummkd_tf.common.cli import run, start_tensorflow
from ummkd_tf.common.errors import InputError
from ummkd_tf.data.augmentation import AUGMENTATIONS
from ummkd_tf.data.opening import open_dataset
from ummkd_tf.data.sampling import LABELLED_SHARE, LabelledPatches, UnpairedSampler
from ummkd_tf.model.architectures import NETWORKS, Initialization, Network, Normalization
from ummkd_tf.model.networks import DECODERS, check_network, network_to_dict
from ummkd_tf.output.pictures import batch_figure, save_figure
from ummkd_tf.runs.config import Freeze, KnowledgeOn, Precision, RunConfig, Schedule, Selection, Strategy
from ummkd_tf.runs.folder import RUN, check_run, config_of, read_run
from ummkd_tf.settings import SETTINGS, AbsentClass
from ummkd_tf.tasks import TASKS, Task, check_same_task, get_task

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "task",
    None,
    f"What is segmented: {', '.join(TASKS)}, or a task file. By default what the data were prepared for; given, it is "
    "only a check, or what --describe describes.",
)
flags.DEFINE_enum("setting", "ours", list(SETTINGS), "Which layers are separate, and whether knowledge is distilled.")
flags.DEFINE_string(
    "data_dir",
    None,
    "Folder with prepared data (dataset.json or released.json), see docs/data.md. Required, except with --describe.",
)
flags.DEFINE_string(
    "run_dir",
    None,
    "Folder of this run: run.json, history, TensorBoard events, checkpoints. Required, except with --describe.",
)
flags.DEFINE_enum(
    "recipe", "paper", list(RECIPES), "Training as in the paper or the released code, or for the best model."
)
flags.DEFINE_enum(
    "preset",
    "paper",
    list(PRESETS),
    "Size of the run: "
    + "; ".join(f"{name} = 1/{p.factor} of the task's rows and columns, width {p.width}" for name, p in PRESETS.items())
    + ". Those with fewer rows also set, whatever the recipe: "
    + "; ".join(
        f"{name} {p.steps} steps, rate {p.learning_rate:g}, {p.batch_size} examples of each modality, "
        f"{p.initialization} kernels, {p.norm_batches} norm_batches"
        for name, p in PRESETS.items()
        if p.steps
    )
    + ".",
)
flags.DEFINE_string(
    "network",
    None,
    f"Network: {', '.join(NETWORKS)}, or my_net.py:build, a function of yours that returns a table of stages or a "
    "Keras model (docs/extending.md); by default the task's.",
)
flags.DEFINE_string(
    "init_from", None, "Start from this exported model; modalities that it lacks get normalization layers of their own."
)
flags.DEFINE_enum(
    "freeze", "none", list(get_args(Freeze)), "With --init_from: train everything, or normalization layers alone."
)
flags.DEFINE_enum("decoder", "paper", list(DECODERS), "Decoder of unet3d: Table II's counts, or the upload's.")
flags.DEFINE_enum("normalization", "batch", list(get_args(Normalization)), "Normalization (Table V).")
flags.DEFINE_enum(
    "initialization",
    None,
    list(get_args(Initialization)),
    "How kernels start; by default the preset's, else the recipe's.",
)
flags.DEFINE_integer(
    "seed", 0, "Seed of initial weights, batches and dropout.", lower_bound=0, upper_bound=LARGEST_SEED
)
flags.DEFINE_integer("steps", None, "Optimizer steps; by default the preset's, else the recipe's.", lower_bound=1)
flags.DEFINE_float(
    "learning_rate", None, "Initial learning rate; by default the preset's, else the recipe's.", lower_bound=0
)
flags.DEFINE_enum(
    "schedule",
    None,
    get_args(Schedule),
    "How the learning rate falls: by 5 % at times, or to zero over the run.",
)
flags.DEFINE_float(
    "ema",
    0.0,
    "Moving average of weights with this decay, e.g. 0.99, to validate and as the best checkpoint; 0: none.",
    lower_bound=0,
    upper_bound=0.9999,  # 1 would keep the weights of the first step
)
flags.DEFINE_float(
    "labelled_share",
    LABELLED_SHARE,
    "3D network: share of patches around the labelled slices; the others are the chunks of testing.",
    lower_bound=0,
    upper_bound=1,
)
flags.DEFINE_enum(
    "labelled_patches",
    None,
    get_args(LabelledPatches),
    "3D network: whether the patches around the labelled slices lie inside them as a whole, as the authors draw, or "
    "with their centre; by default the recipe's.",
)
flags.DEFINE_enum(
    "augmentation",
    None,
    list(AUGMENTATIONS),
    "Random rotation, scaling, shift and intensity of training examples; by default the recipe's.",
)
flags.DEFINE_integer(
    "preview_batches", 0, "Draw the first batches, as the network gets them, into <run_dir>/preview.", lower_bound=0
)
flags.DEFINE_integer(
    "batch_size", None, "Examples per modality; by default the preset's, else the recipe's.", lower_bound=1
)
flags.DEFINE_integer(
    "global_batch",
    None,
    "Examples of a step, all modalities and devices together, instead of --batch_size.",
    lower_bound=1,
)
flags.DEFINE_enum(
    "strategy",
    "default",
    list(get_args(Strategy)),
    "One device; all GPUs of this machine; or the machines of TF_CONFIG. The result is the same.",
)
flags.DEFINE_bool(
    "local_batch_norm",
    False,
    "With several devices: batch normalization over each one's own examples; faster, but the result depends on their "
    "number.",
)
flags.DEFINE_float("alpha", ALPHA, "α of Eq. 5, which adds α/2 times the distillation loss.", lower_bound=0)
flags.DEFINE_float("temperature", TEMPERATURE, "Temperature of Eq. 3.", lower_bound=1e-6)
flags.DEFINE_enum(
    "absent",
    None,
    list(get_args(AbsentClass)),
    "A class that a batch lacks: uniform (released), skipped, or a running mean of the batches before; by default the "
    "recipe's.",
)
flags.DEFINE_enum(
    "selection", "best", list(get_args(Selection)), "Checkpoint that evaluation uses: best validation Dice, or last."
)
flags.DEFINE_integer("validate_every", None, "Steps between validations; by default the preset's.", lower_bound=1)
flags.DEFINE_integer(
    "norm_batches",
    None,
    "Training batches from which batch normalization's statistics are estimated anew before each validation; 0 keeps "
    "the running ones; by default the preset's, else the recipe's.",
    lower_bound=0,
)
flags.DEFINE_integer("checkpoint_every", 100, "Steps between checkpoints.", lower_bound=1)
flags.DEFINE_integer(
    "keep_checkpoints", 2, "How many of the newest checkpoints to keep, beside the best.", lower_bound=1
)
flags.DEFINE_integer("log_every", 10, "Steps between log lines.", lower_bound=1)
flags.DEFINE_float(
    "max_hours", None, "Stop cleanly after this time, for batch queues; run again to continue.", lower_bound=0
)
flags.DEFINE_integer(
    "threads",
    None,
    "Threads that prepare batches, which do not depend on it; by default 1, and for a GPU up to 8.",
    lower_bound=1,
)
flags.DEFINE_float(
    "cache_gb",
    None,
    "GB of images and class maps kept in memory; what does not fit is read from disk when it is drawn, and the batches "
    "are the same. By default half of the free memory: say less where several runs share a machine.",
    lower_bound=0,
)
flags.DEFINE_enum(
    "precision",
    "float32",
    [*get_args(Precision), "auto"],
    "Numbers that convolutions and activations hold; weights, statistics and losses are float32 always. auto: "
    "mixed_bfloat16 where this machine is faster with it and a study on real scans found the Dice unchanged "
    "(docs/study.md), else float32; a run that is continued keeps its own.",
)
flags.DEFINE_bool(
    "xla",
    False,
    "Compile the training step with XLA, on one device. For a GPU: in 3D two to three times as fast after the first "
    "step, which takes a minute (docs/performance.md). On a CPU it is slower.",
)
flags.DEFINE_bool("deterministic", False, "Bit-identical results on one machine; slower.")
flags.DEFINE_enum(
    "knowledge_on",
    "none",
    list(get_args(KnowledgeOn)),
    "Part whose q matrices and distillation loss are recorded along training, with each validation (Fig. 7, Fig. 8).",
)
flags.DEFINE_bool(
    "accept_changes", False, "Continue a run although flags differ from the recorded ones; the change is recorded."
)
flags.DEFINE_bool("describe", False, "Print which stages are shared and the parameter count, then stop. Needs no data.")

flags.DEFINE_string("diagram", None, "With --describe: draw the network into this file, .svg, .pdf or .png.")


def chosen_network(text: str, num_classes: int) -> tuple[Network, str | dict[str, Any]]:
    """The network that --network names, and how a run stores it.

    Raises:
        InputError: Unknown, or a file that gives none.
    """
    if text in NETWORKS:
        return NETWORKS[text], text
    file, _, function = text.rpartition(":")
    if not file.endswith(".py") or not Path(file).is_file():
        raise InputError(
            f"--network={text}: expected {', '.join(NETWORKS)}, or a Python file and function, my_net.py:build"
        )
    start_tensorflow()  # without its banners: the file may import Keras
    # Here, to start without TensorFlow where no file is given.
    import keras

    from ummkd_tf.model.any_network import network_of_keras, stand_in

    keras.utils.clear_session(free_memory=False)  # the same names of layers whenever the run is continued
    build = runpy.run_path(file).get(function)
    if not callable(build):
        raise InputError(f"--network={text}: no function {function} in {file}; check its name")
    network = build(num_classes) if inspect.signature(build).parameters else build()
    try:
        if isinstance(network, keras.Model):
            table = stand_in(network)
            if (table.rank, table.input_channels) not in ((2, 3), (3, 1)) or network.output_shape[-1] != num_classes:
                raise ValueError(
                    f"{network.input_shape} → {network.output_shape}: expected images [batch, rows, columns, 3] (three "
                    f"slices) or [batch, rows, columns, slices, 1], and {num_classes} channels out"
                )
            frozen = [layer.name for layer in network.layers if layer.weights and not layer.trainable]
            if frozen and not FLAGS.init_from:
                raise ValueError(
                    f"{frozen[0]} is not trainable, and a run draws all weights anew: expected trainable layers; "
                    "ummkd_tf.per_modality in Python keeps a model's weights"
                )
            return table, network_of_keras(network)
        if isinstance(network, Network):
            check_network(network)
            return network, network_to_dict(network)
    except ValueError as error:
        raise InputError(f"--network={text}: {error}") from error
    raise InputError(
        f"--network={text}: {function} gives {type(network).__name__}: expected a function that returns a Network or a "
        "keras.Model"
    )


def _check_keras_network() -> None:
    """Refuses flags that a Keras model, with layers of its own, would leave without effect."""
    # Here, to start without TensorFlow, which a Keras model has imported by now.
    from ummkd_tf.model.any_network import KERAS_SETTINGS

    if FLAGS.setting not in KERAS_SETTINGS:
        raise InputError(
            f"--setting={FLAGS.setting}: a Keras model has no stages: expected {', '.join(KERAS_SETTINGS)}"
        )
    for name in ("normalization", "initialization", "precision", "strategy", "diagram"):
        if FLAGS[name].value != FLAGS[name].default:
            raise InputError(f"--{name}={FLAGS[name].value}: a Keras model has its own: leave it out")


def _share(global_batch: int, modalities: Sequence[str]) -> int:
    """The number of examples of each modality, of all that a step has."""
    if FLAGS.batch_size is not None or global_batch % len(modalities):
        raise InputError(
            f"--global_batch={global_batch}: expected a multiple of {len(modalities)}, for equal shares of "
            f"{', '.join(modalities)}, and no --batch_size beside it"
        )
    return global_batch // len(modalities)


def _precision(network: Network) -> Precision:
    """The precision that --precision names."""
    if FLAGS.precision != "auto":
        return FLAGS.precision
    if FLAGS.run_dir and (Path(FLAGS.run_dir) / RUN).is_file():
        return config_of(read_run(Path(FLAGS.run_dir))).precision
    start_tensorflow()
    # Here, to start without TensorFlow: only this choice depends on the machine.
    from ummkd_tf.runs.devices import auto_precision

    return auto_precision(network.name)


def _recipe(network: Network) -> Recipe:
    # A network from a file is trained like the paper's network of the same rank.
    return recipe_for(FLAGS.recipe, "dilated2d" if network.rank == 2 else "unet3d", FLAGS.preset)


def _chosen(network: Network, name: str) -> Any:
    """What a flag says, or else the recipe."""
    value = getattr(FLAGS, name)
    return getattr(_recipe(network), name) if value is None else value


def resolve(network: Network, task: Task, modalities: Sequence[str]) -> RunConfig:
    """The flags that decide a run's result, with recipe and preset filled in."""
    preset, recipe, chosen = PRESETS[FLAGS.preset], _recipe(network), partial(_chosen, network)
    return RunConfig(
        task=task.name,
        setting=FLAGS.setting,
        recipe=FLAGS.recipe,
        preset=FLAGS.preset,
        size=task.size[0] // preset.factor,
        steps=chosen("steps"),
        learning_rate=chosen("learning_rate"),
        schedule=chosen("schedule"),
        decay_every=recipe.decay_every,
        batch_size=chosen("batch_size") if FLAGS.global_batch is None else _share(FLAGS.global_batch, modalities),
        labelled_share=FLAGS.labelled_share,
        labelled_patches=chosen("labelled_patches"),
        augmentation=chosen("augmentation"),
        alpha=FLAGS.alpha,
        temperature=FLAGS.temperature,
        absent=chosen("absent"),
        l2_on=recipe.l2_on,
        l2_weight=recipe.l2_weight,
        ema=FLAGS.ema,
        selection=FLAGS.selection,
        validate_every=FLAGS.validate_every or preset.validate_every,
        norm_batches=chosen("norm_batches"),
        seed=FLAGS.seed,
        precision=_precision(network),
        deterministic=FLAGS.deterministic,
        local_batch_norm=FLAGS.local_batch_norm,
        init_from=FLAGS.init_from and str(Path(FLAGS.init_from).resolve()),
        freeze=FLAGS.freeze,
    )


def main(_: list[str]) -> int:
    if FLAGS.diagram and not FLAGS.describe:
        raise InputError("--diagram: is drawn by --describe alone: give both, or leave it out")
    if not FLAGS.describe and not (FLAGS.data_dir and FLAGS.run_dir):
        raise InputError("--data_dir and --run_dir are needed to train: give both, or use --describe")
    asked = get_task(FLAGS.task) if FLAGS.task else None
    dataset = None if FLAGS.describe else open_dataset(FLAGS.data_dir)
    task = dataset.task if dataset else asked or TASKS["abdomen"]
    if asked:
        check_same_task(task, asked, FLAGS.data_dir, f"leave --task={FLAGS.task} out, or prepare the data for it")
    network, stored = chosen_network(FLAGS.network or task.network, task.num_classes)
    if network.name != "unet3d" and FLAGS.decoder != "paper":
        raise InputError(
            f"--decoder={FLAGS.decoder}: belongs to unet3d, but the network is {network.name}; leave it out"
        )
    for flag in (FLAGS["labelled_share"], FLAGS["labelled_patches"]):
        if network.rank == 2 and flag.value != flag.default:
            raise InputError(f"--{flag.name}={flag.value}: {network.name} takes no patches; leave it out")
    model_arguments = {"network": stored, "setting": FLAGS.setting, "num_classes": task.num_classes}
    if network.stages:
        model_arguments |= {
            "width": PRESETS[FLAGS.preset].width,
            "normalization": FLAGS.normalization,
            "decoder": FLAGS.decoder,
            "initialization": _chosen(network, "initialization"),
        }
    else:
        _check_keras_network()
    if dataset is None:
        start_tensorflow()
        # Here, because it imports TensorFlow, without which --help and the checks above start at once.
        from experiments.describe import describe

        print(describe(model_arguments, FLAGS.diagram))
        return 0
    config = resolve(network, task, dataset.modalities)
    if not config.init_from:  # a grown model has more modalities than its data
        with_modalities = {**model_arguments, "modalities": dataset.modalities}
        changes = {"accept_changes": FLAGS.accept_changes}
        check_run(Path(FLAGS.run_dir), config=config, model=with_modalities, dataset=dataset, **changes)
    start_tensorflow()
    # Here, as above.
    from ummkd_tf.runs.session import SessionOptions, run_training

    run_dir = Path(FLAGS.run_dir)

    def draw_batches(sampler: UnpairedSampler) -> None:
        for step in range(FLAGS.preview_batches):
            save_figure(batch_figure(*sampler.batch(step), task), run_dir / "preview" / f"step-{step + 1}.png")

    options = SessionOptions(
        checkpoint_every=FLAGS.checkpoint_every,
        keep_checkpoints=FLAGS.keep_checkpoints,
        log_every=FLAGS.log_every,
        max_hours=FLAGS.max_hours,
        threads=FLAGS.threads,
        cache_gb=FLAGS.cache_gb,
        knowledge_on=FLAGS.knowledge_on,
        strategy=FLAGS.strategy,
        xla=FLAGS.xla,
        accept_changes=FLAGS.accept_changes,
        on_start=draw_batches,
    )
    progress = run_training(dataset, run_dir, config, model_arguments, options)
    best = "none" if progress.best_dice is None else f"{100 * progress.best_dice:.1f} % at step {progress.best_step}"
    print(f"finished {progress.step} steps; best validation Dice {best}")
    print(f"next: ummkd evaluate --run_dir={quote(str(run_dir))}")
    return 0


if __name__ == "__main__":
    run(main)
