"""Sums over the replicas of `tf.distribute`, so that several devices compute what one would for the whole batch.

Every replica has an equal share of the batch and computes the loss of the whole. The gradient of an all-reduced sum is
again an all-reduced sum: so the gradients of R replicas add up to R times that of the whole batch's loss. With one
replica, nothing is added to the computation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf


def number_of_replicas() -> int:
    """How many replicas compute together; 1 outside of a replica, and without a strategy."""
    context = tf.distribute.get_replica_context()
    return 1 if context is None else int(context.num_replicas_in_sync)


def replica_sums(tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Each tensor summed over all replicas, in one exchange."""
    if number_of_replicas() == 1:
        return list(tensors)
    return list(tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, list(tensors)))


def replica_sum(tensor: tf.Tensor) -> tf.Tensor:
    """The tensor summed over all replicas."""
    return replica_sums([tensor])[0]


def replica_means(tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """The means over all replicas, which have equal shares of the batch."""
    replicas = number_of_replicas()
    return list(tensors) if replicas == 1 else [total / replicas for total in replica_sums(tensors)]


def replica_any(tensor: tf.Tensor) -> tf.Tensor:
    """Where a boolean is true on any replica."""
    return tensor if number_of_replicas() == 1 else replica_sum(tf.cast(tensor, tf.float32)) > 0


def loss_share(loss: tf.Tensor) -> tf.Tensor:
    """A replica's part of the whole batch's loss: the gradients of all parts add up to the whole's."""
    replicas = number_of_replicas()
    return loss if replicas == 1 else loss / replicas


def replica_number() -> int | tf.Tensor:
    """Number of this replica, from 0."""
    context = tf.distribute.get_replica_context()
    return 0 if context is None else context.replica_id_in_sync_group


def take_summed_gradients(optimizer: Any) -> None:
    """Makes a Keras optimizer apply gradients as they are, because the training step has summed them already."""
    inner: keras.optimizers.Optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    inner._all_reduce_sum_gradients = lambda gradients_and_variables: gradients_and_variables


def normalize_over_replicas(
    inputs: tf.Tensor, gamma: keras.Variable, beta: keras.Variable, shift: keras.Variable, epsilon: float
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Eq. 1 with the mean and variance of the whole batch.

    Args:
        inputs: [batch, *space, channels] of this replica.
        gamma: Scale of each channel.
        beta: Shift of each channel.
        shift: Subtracted before summing, so that sums keep their digits: near the mean, not trained, equal on all
            replicas.
        epsilon: Added to the variance.

    Returns:
        Normalized inputs, and the mean and the unbiased variance, in float32.
    """
    axes = list(range(inputs.shape.rank - 1))
    centered = tf.cast(inputs, tf.float32) - shift.value
    sums = replica_sums([tf.reduce_sum(centered, axes), tf.reduce_sum(tf.square(centered), axes)])
    count = tf.cast(tf.size(inputs) // inputs.shape[-1] * number_of_replicas(), tf.float32)
    mean = sums[0] / count
    variance = tf.nn.relu(sums[1] / count - tf.square(mean))
    outputs = (centered - mean) * tf.math.rsqrt(variance + epsilon) * gamma.value + beta.value
    return tf.cast(outputs, inputs.dtype), mean + shift.value, variance * count / (count - 1.0)
