"""The losses of the paper as pure functions (Sec. III-B and III-C; docs/reproduction.md#losses).

All take logits `[batch, *space, classes]` before the softmax and one-hot references of the same shape (2D or 3D), as
tensors, arrays or lists; another shape is a ValueError. Logits of 16 bits are taken, and the loss returned, in float32.
A voxel with an all-zero one-hot (its label is no class) adds only to Dice's sum(p²) and to cross-entropy's voxel count.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import tensorflow as tf

from ummkd_tf.model.checks import as_tensors, check_pairs
from ummkd_tf.model.replicas import replica_any, replica_means, replica_sum, replica_sums
from ummkd_tf.settings import AbsentClass


def soft_dice_loss(logits: tf.Tensor, one_hot: tf.Tensor) -> tf.Tensor:
    """Dice loss on probabilities: `-(1/C) sum_c 2 sum(p_c y_c) / (sum(p_c²) + sum(y_c) + 1e-7)`.

    Sums run over batch and space; background counts as a class.

    Returns:
        Scalar in [-1, 0]; -1 is a perfect prediction.
    """
    logits, one_hot = as_tensors(logits, one_hot)
    probabilities = tf.nn.softmax(logits)
    axes = list(range(logits.shape.rank - 1))
    intersection = tf.reduce_sum(probabilities * one_hot, axes)
    union = tf.reduce_sum(tf.square(probabilities), axes) + tf.reduce_sum(one_hot, axes)
    intersection, union = replica_sums([intersection, union])
    return -tf.reduce_mean(2.0 * intersection / (union + 1e-7))


def weighted_cross_entropy(logits: tf.Tensor, one_hot: tf.Tensor) -> tf.Tensor:
    """Cross-entropy with rare classes weighted up: mean over voxels of `sum_c -w_c y_c log(clip(p_c, 0.005, 1))`.

    `w_c = 1 - |c| / (all labelled voxels)`, counted in this batch of one modality.

    Returns:
        Scalar >= 0.
    """
    logits, one_hot = as_tensors(logits, one_hot)
    axes = list(range(logits.shape.rank - 1))
    counts = replica_sum(tf.reduce_sum(one_hot, axes))
    weights = 1.0 - counts / tf.reduce_sum(counts)
    log_probabilities = tf.math.log(tf.clip_by_value(tf.nn.softmax(logits), 0.005, 1.0))
    return replica_means([tf.reduce_mean(tf.reduce_sum(-weights * one_hot * log_probabilities, -1))])[0]


def class_logits(logits: tf.Tensor, one_hot: tf.Tensor) -> tf.Tensor:
    """Eq. 2: `z_c`, the mean logits over all voxels of true class c in the batch.

    Returns:
        [C, C]; row = true class. A class without voxels has a row of zeros.
    """
    logits, one_hot = as_tensors(logits, one_hot)
    classes = logits.shape[-1]
    indicators = tf.reshape(one_hot, [-1, classes])
    sums = tf.matmul(indicators, tf.reshape(logits, [-1, classes]), transpose_a=True)
    sums, counts = replica_sums([sums, tf.reduce_sum(indicators, 0)])
    return sums / (counts[:, tf.newaxis] + 1e-6)


def class_knowledge(logits: tf.Tensor, one_hot: tf.Tensor, temperature: float = 2.0) -> tf.Tensor:
    """Eq. 3: `q_c = softmax(z_c / T)`, how the voxels of class c are distributed over all classes.

    Returns:
        [C, C]; rows q_c sum to 1. A class without voxels has a uniform row, as in the released code.
    """
    return tf.nn.softmax(class_logits(logits, one_hot) / temperature)


def knowledge_distillation_loss(
    logits_by_modality: Mapping[str, tf.Tensor],
    one_hot_by_modality: Mapping[str, tf.Tensor],
    temperature: float = 2.0,
    absent: AbsentClass = "uniform",
    memory: Mapping[str, tf.Tensor] | None = None,
) -> tf.Tensor:
    """Eq. 4: `L_kd = (1/C) sum_c [KL(qa_c || qb_c) + KL(qb_c || qa_c)]`, without a factor T².

    Gradients flow into both modalities. With more than two modalities: the mean over all pairs (our choice, because
    the paper has two; with two it is Eq. 4).

    Args:
        logits_by_modality: Modality → logits; at least two.
        one_hot_by_modality: Modality → one-hot reference.
        temperature: T of Eq. 3.
        absent: A class without voxels in one modality has a uniform q_c that stays in the mean ("uniform", as
            released), or is left out of the mean for that pair ("skip"), or has the z_c of `memory` ("memory").
        memory: Modality → `updated_memory` of the batches before; no gradient flows into it.

    Returns:
        Scalar >= 0; 0 where all modalities confuse the classes alike.

    Raises:
        ValueError: Fewer than two modalities, other ones in the references, or absent="memory" without a memory.
    """
    check_pairs(logits_by_modality, one_hot_by_modality)
    z = {m: class_logits(logits, one_hot_by_modality[m]) for m, logits in logits_by_modality.items()}
    present = {m: present_classes(one_hot_by_modality[m]) for m in logits_by_modality}
    if absent == "memory":
        if memory is None:
            raise ValueError("absent='memory': expected the memory of the batches before, got none")
        z = {m: tf.where(present[m][:, tf.newaxis], z[m], tf.stop_gradient(memory[m])) for m in z}
    log_q = {m: tf.nn.log_softmax(z[m] / temperature) for m in z}
    pairs = []
    for a, b in combinations(log_q, 2):
        # KL(qa || qb) + KL(qb || qa) in one sum, in log space.
        divergence = tf.reduce_sum((tf.exp(log_q[a]) - tf.exp(log_q[b])) * (log_q[a] - log_q[b]), -1)
        if absent == "skip":
            counted = tf.cast(present[a] & present[b], divergence.dtype)
            pairs.append(tf.math.divide_no_nan(tf.reduce_sum(divergence * counted), tf.reduce_sum(counted)))
        else:
            pairs.append(tf.reduce_mean(divergence))
    return tf.add_n(pairs) / len(pairs)


def present_classes(one_hot: tf.Tensor) -> tf.Tensor:
    """[C]; whether a class has a voxel in the batch."""
    one_hot = tf.convert_to_tensor(one_hot)
    return replica_any(tf.reduce_any(tf.reshape(one_hot, [-1, one_hot.shape[-1]]) > 0, 0))
