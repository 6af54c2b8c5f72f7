"""Speed and memory on a CPU: the same results as the plain operations of `model/`, but for float32's rounding.

`OPERATIONS` are the fields of `model.operations.Operations`; that file puts them in when a model is made, and nothing
else depends on this folder.

- `winograd.py`, `convolutions.py`: wide 3×3 convolutions with 2.25 times fewer multiplications; 3D convolutions of two
  inputs without concatenating them, and their gradients in blocks of channels where that is faster.
- `recompute.py`: normalizations and activations are computed a second time for the gradient instead of being kept
  (gradient checkpointing), and large temporary tensors one after the other instead of all at once.
- `adam.py`: Adam in one TensorFlow operation per variable.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import keras

from ummkd_tf.fast.adam import Adam
from ummkd_tf.fast.convolutions import Conv2D, Conv3D
from ummkd_tf.fast.recompute import add_scaled, run_stage, run_units

OPERATIONS: Mapping[str, Any] = MappingProxyType(
    {
        "convolutions": {
            (2, False): Conv2D,
            (2, True): keras.layers.Conv2DTranspose,
            (3, False): Conv3D,
            (3, True): keras.layers.Conv3DTranspose,
        },
        "run_units": run_units,
        "run_stage": run_stage,
        "add_scaled": add_scaled,
        "adam": Adam,
    }
)
