"""A step whose loss or gradients are not finite leaves everything as it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import keras
import tensorflow as tf

from ummkd_tf.model.replicas import number_of_replicas


def apply_if_finite(
    optimizer: keras.optimizers.Optimizer,
    gradients: Sequence[tf.Tensor],
    variables: Sequence[keras.Variable],
    terms: Mapping[str, tf.Tensor],
    *,
    scale: tf.Tensor,
    state: Sequence[tuple[keras.Variable, tf.Tensor]],
) -> dict[str, tf.Tensor]:
    """Applies gradients where every term is finite; with several replicas, always.

    Args:
        optimizer: Which applies them.
        gradients: Of the scaled loss, one for each variable.
        variables: What they move.
        terms: Name → scalar loss.
        scale: What the loss was multiplied by; 1, except with float16. A scaled loss may overflow: the optimizer then
            halves the scale and applies nothing.
        state: What the forward pass has moved, with the values before it.

    Returns:
        The terms, and "gradient_norm", which is 0 after an overflow.
    """
    norm = tf.linalg.global_norm(gradients) / scale
    overflow = (scale > 1.0) & ~tf.math.is_finite(norm)
    terms = {**terms, "gradient_norm": tf.where(overflow, 0.0, norm)}

    def apply() -> None:  # halves the scale where there is an overflow
        optimizer.apply(gradients, variables)

    def undo() -> None:
        for v, value in state:
            v.assign(value)

    if number_of_replicas() > 1:  # a strategy cannot reach other replicas out of a condition
        apply()
        return terms
    finite = tf.reduce_all(tf.math.is_finite(tf.stack(list(terms.values()))))
    tf.cond(finite, apply, lambda: None)
    tf.cond(finite & ~overflow, lambda: None, undo)
    return terms
