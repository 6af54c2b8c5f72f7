"""Classes that a batch lacks: how many, and what absent="memory" keeps of them (our choice, not the paper's)."""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf

from ummkd_tf.model.losses import class_logits, present_classes

MEMORY_DECAY = 0.9
"""Our choice: a class is seldom missing from more than a few batches in a row."""


def updated_memory(memory: tf.Tensor, logits: tf.Tensor, one_hot: tf.Tensor) -> tf.Tensor:
    """Running mean of Eq. 2's z_c over the batches that hold class c.

    Args:
        memory: [C, C] of the batches before; zeros in the row of a class that none of them held, so that its q_c is
            uniform.
        logits: Of this batch.
        one_hot: Its reference.

    Returns:
        [C, C]; the row of a class that this batch lacks is that of `memory`.
    """
    memory = tf.convert_to_tensor(memory)
    z = class_logits(logits, one_hot)
    seen = tf.reduce_any(memory != 0, -1, keepdims=True)
    mean = tf.where(seen, MEMORY_DECAY * memory + (1 - MEMORY_DECAY) * z, z)
    return tf.where(present_classes(one_hot)[:, tf.newaxis], mean, memory)


def count_alone(one_hot_by_modality: Mapping[str, tf.Tensor]) -> tf.Tensor:
    """Number of classes that one modality's batch holds and another's lacks, as a float scalar.

    Args:
        one_hot_by_modality: References [batch, *space, C] by modality.
    """
    present = tf.stack([present_classes(one_hot) for one_hot in one_hot_by_modality.values()])
    return tf.reduce_sum(tf.cast(tf.reduce_any(present, 0) & ~tf.reduce_all(present, 0), tf.float32))
