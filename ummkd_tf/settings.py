"""The seven experimental settings of the paper, as one table (Sec. IV-B, Tables I and II).

A setting says which stages of a network keep their convolution kernels, and which their normalization layers,
separate for each modality, and whether the knowledge-distillation loss is on. Everything else is the same for
all seven. Stages are named by *regions*; `model/architectures.py` says which stages of a network a region covers.

Plain data: importing this module does not import TensorFlow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

SHARED = "shared"
"""Scope name of a layer that all modalities share, and the `modality` of a batch that holds all of them."""


def are_modality_names(names: Sequence[str]) -> bool:
    """Whether these can name the modalities of a model: at least one, all different identifiers, none `SHARED`."""
    return bool(names) and len(set(names)) == len(names) and all(m.isidentifier() and m != SHARED for m in names)


Region = Literal["nowhere", "before_green_line", "outside_blue_lines", "everywhere"]
"""A part of a network: the lines are those of the paper's Fig. 2 and Fig. 3."""


AbsentClass = Literal["uniform", "skip", "memory"]
"""What the distillation loss does with a class that a batch lacks, see `losses.knowledge_distillation_loss`."""


@dataclass(frozen=True)
class Setting:
    """One row of the table.

    Attributes:
        name: Flag value.
        title: Name in the paper's tables.
        separate_kernels: Region whose convolution kernels exist once per modality.
        separate_norms: Region whose normalization layers exist once per modality.
        distill: Whether Eq. 4 is part of the training loss.
    """

    name: str
    title: str
    separate_kernels: Region
    separate_norms: Region
    distill: bool


SETTINGS: Mapping[str, Setting] = MappingProxyType(
    {
        setting.name: setting
        for setting in (
            # name, title, kernels separate in, norms separate in, knowledge distillation
            Setting("individual", "Individual", "everywhere", "everywhere", False),
            Setting("joint", "Joint", "nowhere", "nowhere", False),
            Setting("joint_kd", "Joint+KD", "nowhere", "nowhere", True),
            Setting("y_shaped", "“Y”-shaped", "before_green_line", "before_green_line", False),
            Setting("x_shaped", "“X”-shaped", "outside_blue_lines", "outside_blue_lines", False),
            Setting("chilopod", "“Chilopod”-shaped", "nowhere", "everywhere", False),
            Setting("ours", "Ours", "nowhere", "everywhere", True),
        )
    }
)
