"""TensorFlow 2 reproduction of "Unpaired Multi-modal Segmentation via Knowledge Distillation" (IEEE TMI 2020).

The public names are imported on first use, so that programs which need no TensorFlow start without it.
"""

from __future__ import annotations

import importlib
from typing import Any

from ummkd_tf.settings import SETTINGS, Setting
from ummkd_tf.tasks import TASKS

__version__ = "0.1.0"
__all__ = [
    "SETTINGS",
    "TASKS",
    "Adam",
    "Setting",
    "UnpairedSegmenter",
    "load_model",
    "losses",
    "metrics",
    "per_modality",
]

_LAZY = {
    "Adam": ("ummkd_tf.fast.adam", "Adam"),
    "UnpairedSegmenter": ("ummkd_tf.model.segmenter", "UnpairedSegmenter"),
    "load_model": ("ummkd_tf.runs.exported", "load_model"),
    "losses": ("ummkd_tf.model.losses", None),
    "metrics": ("ummkd_tf.evaluation.metrics", None),
    "per_modality": ("ummkd_tf.model.any_network", "per_modality"),
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _LAZY[name]
    found = importlib.import_module(module)
    return getattr(found, attribute) if attribute else found
