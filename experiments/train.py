"""Trains one of the paper's seven settings.

    python -m experiments.train --task=abdomen --setting=ours --data_dir=data/abdomen --run_dir=runs/ours
    python -m experiments.train --setting=x_shaped --describe

The same command continues a run that was stopped. Look at it with `tensorboard --logdir runs`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from absl import flags

from experiments.recipes import PRESETS, RECIPES, Recipe
from ummkd_tf.common.cli import run, start_tensorflow
from ummkd_tf.common.errors import InputError
from ummkd_tf.data.dataset import Dataset
from ummkd_tf.data.opening import open_dataset
from ummkd_tf.settings import SETTINGS
from ummkd_tf.tasks import NETWORKS, TASKS, Task, check_same_task, get_task

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "task",
    None,
    f"What is segmented: {', '.join(TASKS)}, or a task file. By default what the data were prepared for; given, it is "
    "only a check, or what --describe describes.",
)
flags.DEFINE_enum("setting", "ours", list(SETTINGS), "Which layers are separate, and whether knowledge is distilled.")
flags.DEFINE_string(
    "data_dir", None, "Folder with prepared data (dataset.json or released.json), see data_prep/README.md."
)
flags.DEFINE_string("run_dir", None, "Folder of this run: run.json, history, TensorBoard events, checkpoints.")
flags.DEFINE_enum("recipe", "paper", list(RECIPES), "Learning rate, L2 and batch as in the paper or the released code.")
flags.DEFINE_enum(
    "preset",
    "paper",
    list(PRESETS),
    "Size of the run: "
    + "; ".join(f"{name} = 1/{p.factor} of the task's rows and columns, width {p.width}" for name, p in PRESETS.items())
    + ".",
)
flags.DEFINE_enum("network", None, list(NETWORKS), "Network; by default the task's.")
flags.DEFINE_enum("decoder", "paper", ["paper", "released"], "Decoder of unet3d: Table II's counts, or the upload's.")
flags.DEFINE_enum("normalization", "batch", ["batch", "instance", "layer", "group"], "Normalization (Table V).")
flags.DEFINE_enum("initialization", None, ["released", "glorot"], "How kernels start; by default the preset's.")
flags.DEFINE_integer("seed", 0, "Seed of initial weights, batches and dropout.")
flags.DEFINE_integer("steps", None, "Optimizer steps; by default the preset's or the recipe's.", lower_bound=1)
flags.DEFINE_float(
    "learning_rate", None, "Initial learning rate; by default the preset's or the recipe's.", lower_bound=0
)
flags.DEFINE_integer(
    "batch_size", None, "Examples per modality; by default the preset's or the recipe's.", lower_bound=1
)
flags.DEFINE_float("alpha", 0.5, "Weight of the distillation loss in Eq. 5.", lower_bound=0)
flags.DEFINE_float("temperature", 2.0, "Temperature of Eq. 3.", lower_bound=1e-6)
flags.DEFINE_enum(
    "absent", "uniform", ["uniform", "skip"], "A class that a batch lacks: uniform (released) or skipped."
)
flags.DEFINE_enum(
    "selection", "best", ["best", "last"], "Checkpoint that evaluation uses: best validation Dice, or last."
)
flags.DEFINE_integer("validate_every", None, "Steps between validations; by default the preset's.", lower_bound=1)
flags.DEFINE_integer("checkpoint_every", 100, "Steps between checkpoints.", lower_bound=1)
flags.DEFINE_integer("log_every", 10, "Steps between log lines.", lower_bound=1)
flags.DEFINE_float(
    "max_hours", None, "Stop cleanly after this time, for batch queues; run again to continue.", lower_bound=0
)
flags.DEFINE_integer("threads", 1, "Threads that prepare batches; the batches do not depend on it.", lower_bound=1)
flags.DEFINE_enum(
    "precision",
    "float32",
    ["float32", "mixed_bfloat16", "mixed_float16"],
    "Numbers that convolutions and activations hold; weights, statistics and losses are float32 always.",
)
flags.DEFINE_bool("deterministic", False, "Bit-identical results on one machine; slower.")
flags.DEFINE_enum(
    "knowledge_on",
    "none",
    ["none", "validation", "test"],
    "Part whose q matrices and distillation loss are recorded along training, with each validation (Fig. 7, Fig. 8).",
)
flags.DEFINE_bool(
    "accept_changes", False, "Continue a run although flags differ from the recorded ones; the change is recorded."
)
flags.DEFINE_bool("describe", False, "Print which stages are shared and the parameter count, then stop. Needs no data.")


def resolve(network: str, task: Task) -> dict[str, Any]:
    """The flags that decide a run's result, with recipe and preset filled in."""
    preset = PRESETS[FLAGS.preset]
    recipe: Recipe = RECIPES[FLAGS.recipe][network]

    def chosen(name: str) -> Any:
        candidates = (getattr(FLAGS, name), getattr(preset, name), getattr(recipe, name))
        return next(value for value in candidates if value is not None)

    return {
        "task": task.name,
        "setting": FLAGS.setting,
        "recipe": FLAGS.recipe,
        "preset": FLAGS.preset,
        "size": task.size[0] // preset.factor,
        "steps": chosen("steps"),
        "learning_rate": chosen("learning_rate"),
        "decay_every": recipe.decay_every,
        "batch_size": chosen("batch_size"),
        "alpha": FLAGS.alpha,
        "temperature": FLAGS.temperature,
        "absent": FLAGS.absent,
        "l2_on": recipe.l2_on,
        "l2_weight": recipe.l2_weight,
        "selection": FLAGS.selection,
        "validate_every": FLAGS.validate_every or preset.validate_every,
        "norm_batches": preset.norm_batches,
        "seed": FLAGS.seed,
        "precision": FLAGS.precision,
        "deterministic": FLAGS.deterministic,
    }


def main(_: list[str]) -> int:
    asked = get_task(FLAGS.task) if FLAGS.task else None
    dataset = open_dataset(FLAGS.data_dir) if FLAGS.data_dir and not FLAGS.describe else None
    task = dataset.task if dataset else asked or TASKS["abdomen"]
    if asked:
        check_same_task(task, asked, FLAGS.data_dir, f"leave --task={FLAGS.task} out, or prepare the data for it")
    network = FLAGS.network or task.network
    if network != "unet3d" and FLAGS.decoder != "paper":
        raise InputError(f"--decoder={FLAGS.decoder}: belongs to unet3d, but the network is {network}; leave it out")
    model_arguments = {
        "network": network,
        "setting": FLAGS.setting,
        "num_classes": task.num_classes,
        "width": PRESETS[FLAGS.preset].width,
        "normalization": FLAGS.normalization,
        "decoder": FLAGS.decoder,
        "initialization": FLAGS.initialization or PRESETS[FLAGS.preset].initialization,
    }
    if FLAGS.describe:
        start_tensorflow()
        from experiments.describe import describe

        print(describe(model_arguments))
        return 0
    if not dataset or not FLAGS.run_dir:
        raise InputError("--data_dir and --run_dir are needed to train: give both, or use --describe")
    train(dataset, Path(FLAGS.run_dir), model_arguments, resolve(network, task))
    return 0


def train(dataset: Dataset, run_dir: Path, model_arguments: dict[str, Any], settings: dict[str, Any]) -> None:
    """Trains, or continues, one run."""
    if len(dataset.modalities) == 1 and settings["setting"] != "individual":
        raise InputError(
            f"--setting={settings['setting']}: needs two modalities or more, and {dataset.directory} has only "
            f"{dataset.modalities[0]}: take --setting=individual, or add scans of another modality"
        )
    factor = dataset.task.size[0] // settings["size"]

    start_tensorflow()
    import keras
    import tensorflow as tf

    from ummkd_tf.data.sampling import UnpairedSampler, check_classes
    from ummkd_tf.evaluation.case_results import class_knowledge
    from ummkd_tf.evaluation.inference import Predictor
    from ummkd_tf.evaluation.validation import validation_score
    from ummkd_tf.optimizer import Adam
    from ummkd_tf.runs import training
    from ummkd_tf.runs.folder import exclusive, recorded_session, start_run
    from ummkd_tf.segmenter import UnpairedSegmenter

    keras.utils.set_random_seed(settings["seed"])
    if settings["precision"] == "mixed_float16" and not tf.config.list_physical_devices("GPU"):
        raise InputError(
            "--precision=mixed_float16: needs a GPU, and TensorFlow sees none (its CPU operations lack float16); take "
            "mixed_bfloat16 or float32"
        )
    keras.config.set_dtype_policy(settings["precision"])
    if settings["deterministic"]:
        tf.config.experimental.enable_op_determinism()
    model_arguments = {**model_arguments, "modalities": dataset.modalities}
    # Deterministic runs keep to TensorFlow's and Keras's own operations: the optimized ones round differently.
    deterministic = settings["deterministic"]
    model = UnpairedSegmenter(**model_arguments, fast=False if deterministic else None)
    schedule = keras.optimizers.schedules.ExponentialDecay(
        settings["learning_rate"], settings["decay_every"], 0.95, staircase=True
    )
    adam = keras.optimizers.Adam if deterministic else Adam
    model.compile(
        adam(schedule, epsilon=1e-8),
        kd_weight=settings["alpha"],
        temperature=settings["temperature"],
        absent=settings["absent"],
        l2_on=settings["l2_on"],
        l2_weight=settings["l2_weight"],
        jit_compile=False,  # measured on a CPU: XLA is four times slower in 2D, more than ten times in 3D
    )
    examples = {m: dataset.examples(m, model.network.rank, factor) for m in dataset.modalities}
    check_classes(examples, dataset.task.class_names)
    sampler = UnpairedSampler(examples, settings["batch_size"], settings["seed"])
    predictor = Predictor(model)
    validate = validation_score(dataset, predictor, factor)
    if validate is None and settings["selection"] == "best":
        raise InputError(
            f"{dataset.directory}: no validation part, so the best checkpoint cannot be chosen: expected one in the data set; "
            "add the validation lists, or give --selection=last to train without"
        )
    watched = [] if FLAGS.knowledge_on == "none" else [dataset.case(c, factor) for c in dataset.ids(FLAGS.knowledge_on)]

    def knowledge() -> dict[str, Any]:
        return class_knowledge(predictor, watched, settings["temperature"])

    with exclusive(run_dir):
        record = start_run(
            run_dir, flags=settings, model=model_arguments, dataset=dataset, accept_changes=FLAGS.accept_changes
        )
        counts = ", ".join(f"{len(dataset.ids('train', m))} {m}" for m in dataset.modalities)
        print(
            f"{model.setting.title} with {model.network.name}, preset {settings['preset']}, "
            f"{settings['steps']} steps; training {dataset.unit}: {counts}; split {dataset.split_name}; "
            f"run in {run_dir}"
        )
        with recorded_session(run_dir, record) as session:
            progress = training.train(
                model,
                sampler,
                run_dir,
                steps=settings["steps"],
                validate=validate,
                validate_every=settings["validate_every"],
                norm_batches=settings["norm_batches"],
                checkpoint_every=FLAGS.checkpoint_every,
                log_every=FLAGS.log_every,
                max_hours=FLAGS.max_hours,
                num_threads=FLAGS.threads,
                knowledge=knowledge if watched else None,
            )
            session["progress"] = vars(progress)
    best = (
        f"{100 * progress.best_dice:.1f} % at step {progress.best_step}" if progress.best_dice is not None else "none"
    )
    print(f"finished {progress.step} steps; best validation Dice {best}")
    print(f"next: python -m experiments.evaluate --run_dir={run_dir}")


if __name__ == "__main__":
    run(main)
