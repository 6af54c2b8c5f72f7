"""How the method's operations are computed: plainly, as here, or as `ummkd_tf.fast` does it.

This is the one place where speed is put in. Without the folder `fast/` the program works all the same, more slowly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

try:
    from ummkd_tf import fast as _fast
except ImportError:  # the folder was deleted
    _fast = None  # type: ignore[assignment]

Tensors = dict[tuple[str, ...], tf.Tensor]
"""Tensors by the modalities they hold: one for each modality, or one for all, concatenated along the batch axis."""


def run_units(
    units: Sequence[keras.layers.Layer],
    inputs: tf.Tensor,
    *,
    modality: str,
    training: bool,
    skip: tf.Tensor | None = None,
) -> tf.Tensor:
    """One unit after the other; `skip` is concatenated behind the channels that the first unit gives."""
    x = inputs
    for number, unit in enumerate(units):
        x = unit(x, modality=modality, training=training)
        if number == 0 and skip is not None:
            x = tf.concat([x, skip], -1)
    return x


def run_stage(stage: Any, inputs: Tensors, skips: Tensors, *, training: bool) -> Tensors:
    """A `layers.Stage` on each tensor, with the tensor in `skips` of the same modalities, where there is one."""
    return {
        group: stage(x, modality=stage.modality_of(group), skip=skips.get(group), training=training)
        for group, x in inputs.items()
    }


def add_scaled(gradient: tf.Tensor, variable: keras.Variable, factor: tf.Tensor) -> tf.Tensor:
    """A gradient and that of an L2 term, `factor · v`."""
    return gradient + factor * variable.value


@dataclass(frozen=True)
class Operations:
    """How layers are computed. The defaults are the method; `ummkd_tf.fast` has others with the same results.

    Attributes:
        convolutions: Class of a convolution by (number of spatial axes, whether it is transposed).
        run_units: See the function.
        run_stage: See the function.
        add_scaled: See the function.
        adam: Class of the paper's optimizer.
    """

    convolutions: Mapping[tuple[int, bool], type[keras.layers.Layer]]
    run_units: Callable[..., tf.Tensor] = run_units
    run_stage: Callable[..., Tensors] = run_stage
    add_scaled: Callable[..., tf.Tensor] = add_scaled
    adam: type[keras.optimizers.Adam] = keras.optimizers.Adam


PLAIN = Operations(
    {
        (2, False): keras.layers.Conv2D,
        (2, True): keras.layers.Conv2DTranspose,
        (3, False): keras.layers.Conv3D,
        (3, True): keras.layers.Conv3DTranspose,
    }
)


def choose_operations(fast: bool | None) -> Operations:
    """Those of `ummkd_tf.fast`, or `PLAIN`; None: fast on one device that is no GPU, because they suit CPUs.

    Raises:
        ValueError: They are asked for, and the folder is not there.
    """
    if fast is None:
        alone = tf.distribute.get_strategy().num_replicas_in_sync == 1
        fast = _fast is not None and alone and not tf.config.list_physical_devices("GPU")
    if not fast:
        return PLAIN
    if _fast is None:
        raise ValueError("fast=True: ummkd_tf/fast is not installed: expected fast=False or None")
    return Operations(**_fast.OPERATIONS)
