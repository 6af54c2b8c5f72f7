"""Gradients of the loss's terms along a training: their norms, and the cosines of the angles between them.

    python -m experiments.train --setting=ours … --run_dir=runs/ours --checkpoint_every=300 --keep_checkpoints=100
    python -m experiments.gradients --run_dir=runs/ours --batches=16

For each checkpoint of the run, the gradients of both segmentation losses and of the weighted distillation loss (Eq. 5)
on the run's first batches. For a run without distillation, the paper's alpha is taken.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags
from numpy.typing import NDArray

from experiments.recipes import ALPHA
from ummkd_tf.common.cli import run, start_tensorflow
from ummkd_tf.common.errors import InputError
from ummkd_tf.common.progress import progress
from ummkd_tf.data.cache import Cache
from ummkd_tf.output.text_tables import markdown
from ummkd_tf.runs.environment import free_memory
from ummkd_tf.runs.folder import checkpoint_files, config_of, read_run
from ummkd_tf.runs.loading import open_run_data

if TYPE_CHECKING:
    from ummkd_tf.model.segmenter import UnpairedModel

KD, ALONE = "kd", "alone"


def measure(
    model: UnpairedModel, images: Mapping[str, Any], labels: Mapping[str, Any], alpha: float
) -> dict[str, float]:
    """Gradients of the terms of Eq. 5 with respect to all trainable variables, for one batch of two modalities.

    Args:
        model: Compiled model.
        images: As for calling the model.
        labels: Modality → integer class maps.
        alpha: Weight of the distillation loss, which Eq. 5 halves.

    Returns:
        By name: the norms of the gradients of each modality's segmentation loss and of the distillation loss; the
        cosine of the angle between the modalities' (1: they agree; below 0: they work against each other), and between
        distillation's and the sum of both; and "alone", the number of classes that are in one modality only.
    """
    import tensorflow as tf  # here, to start without TensorFlow

    trainable = [v.value for v in model.variables_of(images) if v.trainable]
    with tf.GradientTape(persistent=True) as tape:
        terms = model.batch_losses(images, labels, training=True)
        parts = {m: terms[f"{m}_segmentation_loss"] for m in images} | {KD: 0.5 * alpha * terms["kd_loss"]}

    def gradient(loss: Any) -> NDArray:
        found = tape.gradient(loss, trainable, unconnected_gradients="zero")
        return np.concatenate([np.ravel(np.asarray(part, np.float64)) for part in found])

    vectors = {name: gradient(loss) for name, loss in parts.items()}
    first, second = images
    return {
        **{f"‖{name}‖": float(np.linalg.norm(vector)) for name, vector in vectors.items()},
        f"cos({first}, {second})": _cosine(vectors[first], vectors[second]),
        f"cos({KD}, {first} + {second})": _cosine(vectors[KD], vectors[first] + vectors[second]),
        ALONE: float(terms["alone"]),
    }


def _cosine(a: NDArray, b: NDArray) -> float:
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / norms) if norms else 0.0


def rows(step: int, measured: Sequence[Mapping[str, float]]) -> list[dict[str, str]]:
    """Means over batches: over those in which a class is in one modality only, and over the others."""
    found = []
    for alone in (True, False):
        chosen = [batch for batch in measured if (batch[ALONE] > 0) == alone]
        if chosen:
            means = {name: mean(batch[name] for batch in chosen) for name in chosen[0] if name != ALONE}
            about = {"step": str(step), "a class in one modality only": "yes" if alone else "no"}
            found.append(about | {"batches": str(len(chosen))} | {name: f"{x:.3f}" for name, x in means.items()})
    return found


def main(_: list[str]) -> None:
    values = flags.FLAGS
    run_dir = Path(values.run_dir)
    record = read_run(run_dir)
    config, modalities = config_of(record), record["model"]["modalities"]
    if len(modalities) != 2:
        raise InputError(f"a run with the modalities {', '.join(modalities)}: expected two", where=run_dir)
    files = sorted(checkpoint_files(run_dir))
    if not files:
        raise InputError("no checkpoint", where=run_dir, fix="train the run first")
    dataset = open_run_data(record, values.data_dir)
    start_tensorflow()
    # Here, because these import TensorFlow.
    import keras

    from ummkd_tf.runs.checkpoints import restore
    from ummkd_tf.runs.session import make_model, make_sampler

    keras.config.set_dtype_policy(config.precision)
    model = make_model(config, record["model"])
    sampler = make_sampler(dataset, config, model.network.rank, Cache(free_memory() / 2))
    batches = [sampler.batch(step) for step in range(values.batches)]
    alpha = config.alpha if model.setting.distill and config.alpha else ALPHA
    lines: list[dict[str, str]] = []
    for path in progress(files, unit="checkpoint", desc="gradients"):
        step = restore(path, model, with_optimizer=True).step
        lines += rows(step, [measure(model, images, labels, alpha) for images, labels in batches])
    print(markdown(list(lines[0]), [list(line.values()) for line in lines]))
    print(f"{model.setting.title}, alpha {alpha:g}, {values.batches} batches", file=sys.stderr)


if __name__ == "__main__":
    flags.DEFINE_string("run_dir", None, "Folder of the run.", required=True)
    flags.DEFINE_string("data_dir", None, "Prepared data; by default what the run was trained on.")
    flags.DEFINE_integer("batches", 16, "How many batches.", lower_bound=1)
    run(main)
