"""What the arguments of a model and of its losses, and a batch of images, must be like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from ummkd_tf.model.architectures import Network
from ummkd_tf.settings import SETTINGS, SHARED, are_modality_names


def check_arguments(setting: str, modalities: Sequence[str], num_classes: int, width: int) -> None:
    """Refuses arguments that make no model.

    Raises:
        ValueError: Such an argument.
    """
    if setting not in SETTINGS:
        raise ValueError(f"unknown setting {setting!r}: expected one of {', '.join(SETTINGS)}")
    check_modality_names(modalities)
    if num_classes < 2 or width < 1:
        raise ValueError(f"num_classes={num_classes}, width={width}: expected at least 2 and 1")


def check_modality_names(modalities: Sequence[str]) -> None:
    """Refuses what cannot name the modalities of a model.

    Raises:
        ValueError: Such names.
    """
    if not are_modality_names(tuple(modalities)):
        raise ValueError(f"modalities {tuple(modalities)!r}: expected different plain names, none of them {SHARED!r}")


def check_present(images: Mapping[str, tf.Tensor], modalities: Sequence[str]) -> None:
    """Refuses a batch that holds none of the modalities, or others.

    Raises:
        ValueError: Such a batch.
    """
    if not images or set(images) - set(modalities):
        raise ValueError(f"images of {sorted(images)}: expected modalities among {tuple(modalities)}")


def as_tensors(logits: Any, one_hot: Any) -> tuple[tf.Tensor, tf.Tensor]:
    """Logits and reference as tensors of the logits' type; of float32 where that has 16 bits, whose sums overflow.

    Raises:
        ValueError: A reference of another shape than the logits, as far as both shapes are known.
    """
    logits = tf.convert_to_tensor(logits)
    if logits.dtype not in (tf.float32, tf.float64):
        logits = tf.cast(logits, tf.float32)
    one_hot = tf.cast(one_hot, logits.dtype)
    if not logits.shape.is_compatible_with(one_hot.shape):
        raise ValueError(
            f"reference of shape {one_hot.shape} for logits of shape {logits.shape}: expected both alike, one-hot "
            "[batch, *space, classes]; tf.one_hot(labels, classes) makes it of an integer label map [batch, *space]"
        )
    return logits, one_hot


def check_pairs(logits_by_modality: Mapping[str, tf.Tensor], one_hot_by_modality: Mapping[str, tf.Tensor]) -> None:
    """Refuses what the distillation loss cannot compare.

    Args:
        logits_by_modality: Logits [batch, *space, C] by modality.
        one_hot_by_modality: References of the same shapes.

    Raises:
        ValueError: Fewer than two modalities, or other ones in the references.
    """
    if len(logits_by_modality) < 2:
        raise ValueError(
            f"the distillation loss compares modalities: expected at least two, got {len(logits_by_modality)}"
        )
    if logits_by_modality.keys() != one_hot_by_modality.keys():
        raise ValueError(
            f"logits of {sorted(logits_by_modality)}, one-hot references of {sorted(one_hot_by_modality)}: "
            "expected the same modalities"
        )


def present_modalities(images: Mapping[str, tf.Tensor], modalities: Sequence[str], network: Network) -> list[str]:
    """Modalities of a batch in the model's order.

    Raises:
        ValueError: Unknown modality, wrong rank or channels, or a size that pooling does not allow.
    """
    check_present(images, modalities)
    rank, multiple = network.rank, network.multiple
    for modality, x in images.items():
        if x.shape.rank != rank + 2 or x.shape[-1] != network.input_channels:
            raise ValueError(
                f"{modality} images of shape {tuple(x.shape)}: {network.name} expects rank {rank + 2} with "
                f"{network.input_channels} channels last"
            )
        if any(size is not None and size % multiple for size in x.shape[1:-1]):
            raise ValueError(
                f"{modality} images of size {tuple(x.shape[1:-1])}: every side must be a multiple of {multiple}"
            )
    return [m for m in modalities if m in images]


def check_bfloat16(images: Mapping[str, tf.Tensor], network: Network, dtype: str) -> None:
    """Refuses 3D images for which TensorFlow's gradient is wrong (2.21, on a CPU): 2×2 at the coarsest level.

    Raises:
        ValueError: Such images, where the model computes in bfloat16.
    """
    least = 3 * network.multiple
    if network.rank == 2 or dtype != "bfloat16":
        return
    for modality, x in images.items():
        if any(size is not None and size < least for size in x.shape[1:3]):
            raise ValueError(
                f"{modality} images of size {tuple(x.shape[1:-1])}: TensorFlow's bfloat16 gradient is wrong "
                f"for two voxels at the coarsest level; use {least} rows and columns or more, or float32"
            )


def check_accumulation(images: Mapping[str, Any], modalities: Sequence[str], optimizer: Any) -> None:
    """Refuses a batch without all modalities where a Keras optimizer accumulates gradients over batches.

    Keras applies the sum at every n-th batch, to the variables of that batch alone, and forgets what it has summed up
    for the others.

    Raises:
        ValueError: Such a batch.
    """
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)  # LossScaleOptimizer wraps the one that accumulates
    if optimizer.gradient_accumulation_steps and set(images) != set(modalities):
        raise ValueError(
            f"gradient_accumulation_steps: expected every batch to have {', '.join(modalities)}, found "
            f"{', '.join(images)}"
        )
