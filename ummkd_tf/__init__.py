"""TensorFlow 2 reproduction of "Unpaired Multi-modal Segmentation via Knowledge Distillation" (IEEE TMI 2020).

The public names are imported on first use, so that programs which need no TensorFlow start without it.
"""

from __future__ import annotations

import importlib
from typing import Any

from ummkd_tf.settings import SETTINGS, Setting

__version__ = "0.1.0"
__all__ = ["SETTINGS", "Setting", "UnpairedSegmenter", "losses", "metrics"]


def __getattr__(name: str) -> Any:
    if name == "UnpairedSegmenter":
        return importlib.import_module("ummkd_tf.segmenter").UnpairedSegmenter
    if name in ("losses", "metrics"):
        return importlib.import_module(f"ummkd_tf.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
