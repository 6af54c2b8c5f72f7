"""A step whose loss or gradients are not finite leaves everything as it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

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
    """Applies gradients where every term is finite.

    Args:
        optimizer: Applies the gradients.
        gradients: Of the scaled loss, one for each variable.
        variables: What the optimizer updates.
        terms: Name → scalar loss.
        scale: What the loss was multiplied by; 1, except with float16. A scaled loss may overflow: a
            `LossScaleOptimizer` then halves the scale and applies nothing.
        state: Variables that the forward pass has updated, with their values before it.

    Returns:
        The terms, and "gradient_norm", which is 0 after an overflow.
    """
    norm = tf.linalg.global_norm(gradients) / scale
    skips = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)  # others would apply what is not finite
    overflow = tf.constant(skips) & (scale > 1.0) & ~tf.math.is_finite(norm)
    terms = {**terms, "gradient_norm": tf.where(overflow, 0.0, norm)}

    def apply(gradients: Sequence[tf.Tensor]) -> None:  # halves the scale where there is an overflow
        optimizer.apply(gradients, variables)

    def undo(before: Sequence[tf.Tensor]) -> None:
        for (v, _), value in zip(state, before, strict=True):
            v.assign(value)

    finite = tf.reduce_all(tf.math.is_finite(tf.stack(list(terms.values()))))
    before = [value for _, value in state]
    if number_of_replicas() == 1:
        tf.cond(finite, lambda: apply(gradients), lambda: None)
        tf.cond(finite & ~overflow, lambda: None, lambda: undo(before))
        return terms

    def together(strategy: tf.distribute.Strategy, finite: Any, good: Any, gradients: Any, before: Any) -> None:
        def everywhere(function: Any, values: Any) -> None:
            strategy.extended.call_for_each_replica(function, args=(values,))

        finite, good = (strategy.experimental_local_results(x)[0] for x in (finite, good))  # the same everywhere
        tf.cond(finite, lambda: everywhere(apply, gradients), lambda: None)
        tf.cond(good, lambda: None, lambda: everywhere(undo, before))

    # The optimizer needs all replicas at once: so the condition is asked for all of them, not inside each one.
    tf.distribute.get_replica_context().merge_call(together, args=(finite, finite & ~overflow, gradients, before))
    return terms
