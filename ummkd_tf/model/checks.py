"""What the arguments of a model, and a batch of images, must be like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
    if not are_modality_names(tuple(modalities)):
        raise ValueError(f"modalities {tuple(modalities)!r}: expected different plain names, none of them {SHARED!r}")
    if num_classes < 2 or width < 1:
        raise ValueError(f"num_classes={num_classes}, width={width}: expected at least 2 and 1")


def present_modalities(images: Mapping[str, tf.Tensor], modalities: Sequence[str], network: Network) -> list[str]:
    """Modalities of a batch in the model's order.

    Raises:
        ValueError: Unknown modality, wrong rank or channels, or a size that pooling does not allow.
    """
    unknown = set(images) - set(modalities)
    if unknown or not images:
        raise ValueError(f"images of {sorted(images)}: expected modalities among {tuple(modalities)}")
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
