"""Recipes and presets: every number of a training run that the paper or the released code fixes (SPEC §7)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        learning_rate: Adam's, at the start.
        decay_every: Steps after which the learning rate falls by 5 %.
        batch_size: Examples per modality.
        steps: Length of training (the paper gives none; the released code's).
        l2_on: Which variables the L2 term holds.
        l2_weight: eta, with the released code's factor ½ where it has one.
    """

    learning_rate: float
    decay_every: int
    batch_size: int
    steps: int
    l2_on: Literal["all", "kernels"]
    l2_weight: float


RECIPES: Mapping[str, Mapping[str, Recipe]] = MappingProxyType(
    {
        "paper": {
            "dilated2d": Recipe(1e-4, 1000, 8, 150_000, "all", 1e-4),
            "unet3d": Recipe(1e-4, 500, 2, 50_000, "all", 1e-4),
        },
        "released": {
            "dilated2d": Recipe(1e-3, 1000, 8, 150_000, "kernels", 0.5e-4),
            "unet3d": Recipe(1e-4, 500, 2, 50_000, "all", 1e-4),
        },
    }
)


@dataclass(frozen=True)
class Preset:
    """How large a run is. The reduced ones are our choice, for machines without a GPU.

    Attributes:
        factor: The network sees so many times fewer rows and columns than the prepared volumes have.
        width: Base width w.
        steps: Length of training; None for the recipe's.
        learning_rate: None for the recipe's; a short training needs a larger one.
        batch_size: Examples per modality; None for the recipe's.
        initialization: How kernels start; the released way needs a long training.
        norm_batches: Training batches from which batch normalization's statistics are estimated anew before each
            validation; 0 keeps the running ones, as released. After few steps with a large learning rate these belong
            to weights that are gone (measured on real scans, preset tiny, 300 steps: Dice 0.64 against 0.53).
        validate_every: Steps between validations (and checkpoints).
    """

    factor: int
    width: int
    steps: int | None
    learning_rate: float | None
    batch_size: int | None
    initialization: Literal["released", "glorot"]
    norm_batches: int
    validate_every: int


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "paper": Preset(1, 16, None, None, None, "released", 0, 1000),
        "small": Preset(2, 8, 600, 2e-3, 2, "glorot", 16, 100),
        "tiny": Preset(4, 4, 300, 2e-3, 2, "glorot", 16, 50),
    }
)
