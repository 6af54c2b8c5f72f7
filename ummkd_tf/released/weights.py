"""Variables of the authors' TF 1.8 code by our variable paths, and their import.

| ours                                             | theirs (2D)                                    |
| `segmenter/group_5/block_2/unit_1/conv/shared/kernel` | `segmenter/group_5/kernel/Variable_2`     |
| `segmenter/group_5/block_2/unit_1/norm/mr/gamma`      | `segmenter/group_5/sourcebn_5_2_1/gamma`  |
| `segmenter/group_9/unit_2/norm/ct/beta`               | `segmenter/group_9/targetbn_9_2/beta`     |

| ours                                             | theirs (3D)                                    |
| `segmenter/encoder_2/unit_1/conv/shared/kernel`       | `joint/encoder2_1/encoder2_1_conv/kernel` |
| `segmenter/decoder_2/unit_1/conv/shared/kernel`       | `joint/deconv2/deconv2_deconv/filter`     |
| `segmenter/decoder_2/unit_2/norm/ct/gamma`            | `joint/decoder2_1/decoder2_1/target/batch_norm/gamma` |
| `segmenter/output/unit_1/conv/shared/bias`            | `joint/seg_logits/bias`                   |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from ummkd_tf.common.errors import InputError
from ummkd_tf.model.keras_hooks import RANDOM_STATE
from ummkd_tf.model.segmenter import UnpairedSegmenter
from ummkd_tf.released.records import MODALITIES
from ummkd_tf.settings import SHARED

RELEASED_MODALITY = {"mr": "source", "ct": "target"}
"""The released code's names of the modalities (its 2D lists; the method is symmetric)."""

_PHASE_SHIFT_STAGE = "group_10"


def tf1_name(path: str, kernel_number: int) -> str:
    """The released code's name of one of our variables, in every stage but the output.

    Args:
        path: Our variable path, of a model whose kernels are shared and whose norms are separate.
        kernel_number: How many kernels its stage has created before it (the 2D code counts them).
    """
    _, stage, *parts, _, owner, variable = path.split("/")
    numbers = [part.split("_")[1] for part in parts]  # of block and unit, or of the unit alone
    modality = RELEASED_MODALITY.get(owner)
    if stage.startswith("group_"):
        if variable == "kernel":
            return f"segmenter/{stage}/kernel/{_numbered('Variable', kernel_number)}"
        return f"segmenter/{stage}/{modality}bn_{'_'.join([stage.split('_')[1], *numbers])}/{variable}"
    coder, level = stage.split("_")
    unit = int(numbers[0])
    if coder == "decoder":  # their up-convolution has a name of its own
        layer = f"deconv{level}" if unit == 1 else f"decoder{level}_{unit - 1}"
    else:
        layer = f"encoder{level}_{unit}"
    if variable == "kernel":
        return f"joint/{layer}/{layer}_{'deconv/filter' if layer.startswith('deconv') else 'conv/kernel'}"
    return f"joint/{layer}/{layer}/{modality}/batch_norm/{variable}"


def _numbered(name: str, number: int) -> str:
    return f"{name}_{number}" if number else name


def tf1_names(model: UnpairedSegmenter) -> dict[str, str]:
    """Our variable path → the released code's name, for every weight and statistic of a model.

    Raises:
        InputError: The model is not one that the released code has: shared kernels, separate batch norms, CT and MR.
    """
    if (
        set(model.modalities) != set(RELEASED_MODALITY)
        or model.setting.separate_kernels != "nowhere"
        or model.setting.separate_norms != "everywhere"
    ):
        raise InputError(
            f"the released code has no variables for setting {model.setting.name!r} with modalities "
            f"{model.modalities}: import into 'chilopod' or 'ours' with ('ct', 'mr')"
        )
    names = {}
    for stage in model.stages:
        kernels = 0
        for variable in stage.variables:
            if variable.name == RANDOM_STATE:
                continue
            if stage.row.name == "output":
                name = (
                    "segmenter/output/kernel/Variable"
                    if model.network.rank == 2
                    else f"joint/seg_logits/{variable.name}"
                )
            else:
                name = tf1_name(variable.path, kernels)
            kernels += variable.path.endswith(f"conv/{SHARED}/kernel")
            names[variable.path] = name
    return names


def phase_shift_channels(factor: int, channels: int) -> NDArray[np.int64]:
    """For each input channel of `elements.phase_shift`, the released code's channel.

    Released: `out[n, i r + v, j r + u, k] = in[n, i, j, k r² + u r + v]` (golden README); TensorFlow's
    `depth_to_space`: `out[n, i r + v, j r + u, k] = in[n, i, j, (v r + u) channels + k]`.
    """
    v, u, k = np.meshgrid(range(factor), range(factor), range(channels), indexing="ij")
    return (k * factor**2 + u * factor + v).ravel()


def convert(model: UnpairedSegmenter, values: Mapping[str, NDArray]) -> dict[str, NDArray]:
    """Arrays by our variable paths from arrays by the released code's names (weights, gradients or statistics).

    Names that are missing in `values` are left out.
    """
    converted = {}
    for path, name in tf1_names(model).items():
        if name in values:
            value = np.asarray(values[name])
            if f"/{_PHASE_SHIFT_STAGE}/" in path:
                factor = next(s.row.phase_shift for s in model.stages if s.row.name == _PHASE_SHIFT_STAGE)
                value = value[..., phase_shift_channels(factor, value.shape[-1] // factor**2)]
            converted[path] = value
    return converted


def load_released_weights(model: UnpairedSegmenter, values: Mapping[str, NDArray]) -> None:
    """Sets every weight and statistic of a model from arrays by the released code's names.

    Args:
        model: Setting "chilopod" or "ours"; the 3D network with `decoder="released"`.
        values: E.g. `read_tf1_checkpoint(...)`.

    Raises:
        InputError: A variable is missing or has another shape.
    """
    converted = convert(model, values)
    names = tf1_names(model)
    variables = {v.path: v for v in model.variables}
    for path, name in names.items():
        if path not in converted:
            raise InputError(f"released weights: {name!r} is missing: expected a checkpoint of {model.network.name}")
        if converted[path].shape != tuple(variables[path].shape):
            raise InputError(
                f"released weights: {name!r} has shape {converted[path].shape}, expected "
                f"{tuple(variables[path].shape)}: build the model with the checkpoint's width, classes and decoder"
            )
    for path, value in converted.items():
        variables[path].assign(value)


def model_arguments(values: Mapping[str, NDArray], where: object) -> dict[str, Any]:
    """Arguments of the `UnpairedSegmenter` that a checkpoint is of, without its setting.

    Args:
        values: Arrays by the released code's names.
        where: The checkpoint, for messages.

    Raises:
        InputError: A checkpoint of neither network.
    """
    for network, first, last in (
        ("dilated2d", "segmenter/group_1/kernel/Variable", "segmenter/output/kernel/Variable"),
        ("unet3d", "joint/encoder1_1/encoder1_1_conv/kernel", "joint/seg_logits/kernel"),
    ):
        if first in values and last in values:
            return {
                "network": network,
                "modalities": MODALITIES,
                "width": int(values[first].shape[-1]),
                "num_classes": int(values[last].shape[-1]),
                "decoder": "paper" if network == "dilated2d" else "released",
            }
    raise InputError(
        "holds neither of the authors' two networks", where=where, fix="expected variables segmenter/… or joint/…"
    )


def read_tf1_checkpoint(prefix: str) -> dict[str, NDArray]:
    """All arrays of a TF 1 Saver checkpoint by name.

    Args:
        prefix: Path without `.index` and `.data-…`.

    Raises:
        InputError: No checkpoint there.
    """
    try:
        reader = tf.train.load_checkpoint(prefix)
        return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    except (tf.errors.OpError, ValueError) as error:
        raise InputError(
            "not a readable TF 1 checkpoint", where=prefix, fix="give the path without '.index'"
        ) from error
