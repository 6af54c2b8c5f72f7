"""The recipes are what paper and released code say (docs/reproduction.md#disagreements), number by number."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from experiments.recipes import PRESETS, RECIPES

COMMON = {
    "schedule": "staircase", "augmentation": "none", "absent": "uniform", "initialization": "released",
    "norm_batches": 0, "l2_on": "all", "l2_weight": 1e-4, "learning_rate": 1e-4,
}  # fmt: skip
LENGTH_2D = {"decay_every": 1000, "batch_size": 8, "steps": 150_000, "labelled_patches": "centered"}
LENGTH_3D = {"decay_every": 500, "batch_size": 2, "steps": 50_000, "labelled_patches": "inside"}


@pytest.mark.parametrize(
    ("recipe", "network", "expected"),
    [
        ("paper", "dilated2d", {**COMMON, **LENGTH_2D, "augmentation": "affine"}),
        ("paper", "unet3d", {**COMMON, **LENGTH_3D}),
        # The 2D code has η·½‖kernels‖², and the rate of its upload; its records come augmented.
        (
            "released",
            "dilated2d",
            {**COMMON, **LENGTH_2D, "learning_rate": 1e-3, "l2_on": "kernels", "l2_weight": 5e-5},
        ),
        ("released", "unet3d", {**COMMON, **LENGTH_3D}),
    ],
)
def test_recipes(recipe, network, expected):
    assert asdict(RECIPES[recipe][network]) == expected


def test_the_paper_s_preset_changes_nothing_but_has_its_size():
    given = {name: value for name, value in asdict(PRESETS["paper"]).items() if value is not None}
    assert given == {"factor": 1, "width": 16, "validate_every": 1000}
