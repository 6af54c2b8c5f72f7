"""Recipes and presets: every number of a training run that the paper or the released code fixes.

Where both disagree: docs/reproduction.md#disagreements.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ummkd_tf.model.architectures import Initialization
from ummkd_tf.runs.config import L2On, Schedule


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        learning_rate: Adam's, at the start.
        schedule: The learning rate falls by 5 % ("staircase", the paper's), or over the whole run to zero with power
            0.9 ("polynomial").
        decay_every: Steps after which the staircase falls.
        batch_size: Examples per modality.
        steps: Length of training (the paper gives none; the released code's).
        l2_on: Which variables the L2 term holds.
        l2_weight: eta, with the released code's factor ½ where it has one.
        augmentation: Row of `AUGMENTATIONS`. The authors' 2D records were augmented beforehand; in 3D theirs is off.
    """

    learning_rate: float
    schedule: Schedule
    decay_every: int
    batch_size: int
    steps: int
    l2_on: L2On
    l2_weight: float
    augmentation: str


RECIPES: Mapping[str, Mapping[str, Recipe]] = MappingProxyType(
    {
        "paper": {
            "dilated2d": Recipe(1e-4, "staircase", 1000, 8, 150_000, "all", 1e-4, "affine"),
            "unet3d": Recipe(1e-4, "staircase", 500, 2, 50_000, "all", 1e-4, "none"),
        },
        "released": {
            "dilated2d": Recipe(1e-3, "staircase", 1000, 8, 150_000, "kernels", 0.5e-4, "none"),
            "unet3d": Recipe(1e-4, "staircase", 500, 2, 50_000, "all", 1e-4, "none"),
        },
        # For the best model rather than the paper's: our choice.
        "practice": {
            "dilated2d": Recipe(1e-3, "polynomial", 1000, 8, 150_000, "all", 1e-4, "practice"),
            "unet3d": Recipe(1e-3, "polynomial", 500, 2, 50_000, "all", 1e-4, "practice"),
        },
    }
)


@dataclass(frozen=True)
class Preset:
    """How large a run is. The reduced ones are our choice, for machines without a GPU.

    Attributes:
        size: Rows and columns the network sees; the prepared volumes are reduced by 256 / size.
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

    size: int
    width: int
    steps: int | None
    learning_rate: float | None
    batch_size: int | None
    initialization: Initialization
    norm_batches: int
    validate_every: int


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "paper": Preset(256, 16, None, None, None, "released", 0, 1000),
        "small": Preset(128, 8, 600, 2e-3, 2, "glorot", 16, 100),
        "tiny": Preset(64, 4, 300, 2e-3, 2, "glorot", 16, 50),
    }
)
