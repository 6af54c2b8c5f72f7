"""Less memory for activations: recomputation (gradient checkpointing), and large tensors one after the other.

The functions at the top take the place of those with the same names in `model/operations.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from ummkd_tf.fast.convolutions import Conv3D

# Filters of a unit from which the modalities run one after the other: its temporary tensors take most of the memory.
_WIDE = 1024


def run_units(
    units: Sequence[Any], inputs: tf.Tensor, *, modality: str, training: bool, skip: tf.Tensor | None = None
) -> tf.Tensor:
    """Runs `ConvUnit`s so that the gradient keeps the outputs of convolutions and nothing in between.

    A convolution is recomputed together with the normalization and activation before it, which belong to the same unit
    in the 2D network and to the previous unit in the 3D network.
    """
    x = inputs
    waiting: Any = None  # the previous unit, where its normalization and activation are still to be done
    for number, unit in enumerate(units):
        norm_first = unit.row.order == "norm-act-conv"
        second = [skip] if number == 1 and skip is not None else []
        joined = bool(second) and not _takes_two(unit)
        if waiting is not None and (norm_first or joined):
            x, waiting = _activate(waiting, x, modality=modality, training=training), None
        if joined:
            x, second = tf.concat([x, *second], -1), []
        before = unit if norm_first else waiting
        x = recomputed(_convolution(unit, before, modality=modality, training=training))(x, *second)
        waiting = unit if unit.row.order == "conv-norm-act" else None
        if waiting is not None and (unit.dropout or number == len(units) - 1):
            x, waiting = _activate(unit, x, modality=modality, training=training), None
        if unit.dropout:
            x = unit.dropout(x, training=training)
    if skip is not None and len(units) == 1:  # residual blocks follow, and take both together
        x = tf.concat([x, skip], -1)
    return x


def run_stage(
    stage: Any, inputs: dict[tuple[str, ...], tf.Tensor], skips: dict[tuple[str, ...], tf.Tensor], *, training: bool
) -> dict[tuple[str, ...], tf.Tensor]:
    """Runs a stage on each tensor: in a wide stage on one after the other, in the gradient too."""
    wide = any(unit.filters >= _WIDE for unit in stage.units)
    outputs: dict[tuple[str, ...], tf.Tensor] = {}
    for group, x in inputs.items():
        if wide and outputs:
            previous = next(reversed(outputs))
            x, outputs[previous] = _after(x, outputs[previous])
        outputs[group] = stage(x, modality=stage.modality_of(group), skip=skips.get(group), training=training)
    return outputs


def add_scaled(gradient: tf.Tensor, variable: keras.Variable, factor: tf.Tensor) -> tf.Tensor:
    """A gradient and that of an L2 term, `factor · v`, computed when the first is known.

    Otherwise TensorFlow computes all L2 gradients at the beginning of the step and keeps them to its end.
    """
    with tf.control_dependencies([gradient]):
        return gradient + factor * tf.identity(variable.value)


def recomputed(function: Callable[..., tf.Tensor]) -> Callable[..., tf.Tensor]:
    """The function with gradient checkpointing: the gradient keeps only its arguments and calls it a second time.

    Costs a little time and saves half of the memory of activations. The numbers are the same to the last bit.

    Args:
        function: Takes tensors, and whether this is its second call (`again`).
    """

    @tf.custom_gradient
    def first(*inputs: tf.Tensor) -> tf.Tensor:
        def gradient(upstream: tf.Tensor, variables: Sequence[tf.Variable] = ()) -> tuple:
            # The dependency keeps TensorFlow from merging the second call with the first.
            with tf.control_dependencies([upstream]):
                inputs_again = [tf.identity(x) for x in inputs]
            with tf.GradientTape() as tape:
                tape.watch(inputs_again)
                result = function(*inputs_again, again=True)
            of_inputs, of_variables = tape.gradient(result, (inputs_again, list(variables)), upstream)
            return (of_inputs, of_variables) if variables else of_inputs

        return function(*inputs, again=False), gradient

    return first


def _takes_two(unit: Any) -> bool:
    """Whether a unit begins with a convolution that takes a second input as it is, without concatenation."""
    (convolution, *_) = unit.conv.sublayers.values()
    alone = unit.row.order != "norm-act-conv" and not unit.row.symmetric_pad
    return alone and isinstance(convolution, Conv3D)


def _convolution(unit: Any, before: Any, *, modality: str, training: bool) -> Callable[..., tf.Tensor]:
    """Normalization and activation of the unit `before`, where there is one, then the convolution of `unit`."""

    def convolve(x: tf.Tensor, skip: tf.Tensor | None = None, *, again: bool) -> tf.Tensor:
        if before is not None:
            x = _activate(before, x, modality=modality, training=training, again=again)
        return unit.conv(unit.pad(x), modality=modality, **({} if skip is None else {"skip": skip}))

    return convolve


def _activate(unit: Any, x: tf.Tensor, *, modality: str, training: bool, again: bool = False) -> tf.Tensor:
    """Normalization and activation of a unit; a second call of the same batch leaves running statistics alone."""
    norm = unit.norm.of(modality)
    if again and hasattr(norm, "normalize"):
        return leaky_relu(norm.normalize(x, training=training)[0])
    return leaky_relu(norm(x, training=training))


@tf.custom_gradient
def leaky_relu(inputs: tf.Tensor) -> tf.Tensor:
    """`tf.nn.leaky_relu` with slope 0.2, whose gradient needs the output alone, so that the input is not kept.

    The gradient depends on the sign of the input, which is also that of the output.
    """
    outputs = tf.nn.leaky_relu(inputs, 0.2)

    def gradient(upstream: tf.Tensor) -> tf.Tensor:
        return tf.raw_ops.LeakyReluGrad(gradients=upstream, features=outputs, alpha=0.2)

    return outputs, gradient


@tf.custom_gradient
def _after(x: tf.Tensor, done: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns both unchanged. What uses x waits until `done` is known; in the gradient, `done` waits for x."""

    def gradient(of_x: tf.Tensor, of_done: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.control_dependencies([of_x]):
            return of_x, tf.identity(of_done)

    with tf.control_dependencies([done]):
        return (tf.identity(x), tf.identity(done)), gradient
