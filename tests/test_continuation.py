"""A checkpoint written before the code was rearranged is continued to the same bits."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from ummkd_tf import UnpairedSegmenter
from ummkd_tf.runs.checkpoints import Progress, restore, write_checkpoint

# Written by `write` at commit 1b5a33c: after three steps, and after two more.
FOLDER = Path(__file__).parent / "golden" / "continuation"


def model() -> UnpairedSegmenter:
    """The released 3D network at its narrowest; plain operations, as `--deterministic` has them."""
    keras.utils.set_random_seed(0)
    found = UnpairedSegmenter("unet3d", "ours", width=1, num_classes=3, initialization="glorot", fast=False)
    found.compile(keras.optimizers.Adam(1e-2, epsilon=1e-8), jit_compile=False)
    return found


def steps(segmenter: UnpairedSegmenter, first: int, last: int) -> None:
    for step in range(first, last):
        rng = np.random.default_rng(step)
        images = {m: tf.constant(rng.normal(size=(1, 16, 16, 8, 1)).astype(np.float32)) for m in ("ct", "mr")}
        segmenter.optimize(images, {m: tf.cast(x[..., 0] > 0.3, tf.int32) for m, x in images.items()})


def write() -> None:
    segmenter = model()
    for first, last in ((0, 3), (3, 5)):
        steps(segmenter, first, last)
        write_checkpoint(FOLDER / f"step-{last}.npz", segmenter, Progress(last))


def test_an_old_checkpoint_is_continued_as_the_old_code_did():
    """Weights, running statistics and Adam's moments.

    On one machine with deterministic operations every bit was equal; elsewhere sums may run in another order.
    """
    segmenter = model()
    restore(FOLDER / "step-3.npz", segmenter, with_optimizer=True)
    steps(segmenter, 3, 5)
    expected = model()
    restore(FOLDER / "step-5.npz", expected, with_optimizer=True)
    for ours, theirs in zip(
        (*segmenter.variables, *segmenter.optimizer.variables),
        (*expected.variables, *expected.optimizer.variables),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7, err_msg=ours.path)


if __name__ == "__main__":
    write()
