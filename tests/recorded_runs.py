"""Run folders with known numbers, as training and evaluation write them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from experiments.plans import RunSpec
from experiments.recipes import RECIPES
from ummkd_tf.runs.config import RunConfig
from ummkd_tf.settings import SETTINGS
from ummkd_tf.tasks import TASKS

METRICS = ("dice", "hausdorff_mm", "hausdorff95_mm", "average_mm", "surface_dice")


def class_metrics(rng: np.random.Generator, dice: float | None = None) -> dict:
    """One class of one case: random, but consistent in the pooled distance."""
    distances = rng.uniform(0, 9, size=int(rng.integers(20, 60)))
    return {
        "status": "ok",
        "dice": float(rng.uniform(0.5, 1)) if dice is None else dice,
        "hausdorff_mm": float(distances.max()),
        "hausdorff95_mm": float(np.percentile(distances, 95)),
        "average_mm": float(distances.mean()),
        "surface_dice": float((distances < 1).mean()),
        "surface_points": len(distances),
        "surface_distance_sum_mm": float(distances.sum()),
        "surface_distance_square_sum_mm2": float(distances @ distances),
    }


def absent() -> dict:
    """A class that prediction and reference lack; JSON has no NaN."""
    empty = dict.fromkeys(METRICS)
    sums = {"surface_points": 0, "surface_distance_sum_mm": 0.0, "surface_distance_square_sum_mm2": 0.0}
    return {"status": "absent", **empty, **sums}


def evaluation_cases(task: str, rng: np.random.Generator, numbers: range) -> dict:
    """Cases ct_<n> and mr_<n>."""
    return {
        f"{m}_{n}": {
            "modality": m,
            "spacing_mm": [1.0, 1.0, 1.0],
            "classes": {name: class_metrics(rng) for name in TASKS[task].class_names[1:]},
        }
        for m in ("ct", "mr")
        for n in numbers
    }


def run_config(**changes) -> RunConfig:
    """Settings of a run at preset tiny."""
    values = {
        "task": "abdomen",
        "setting": "ours",
        "recipe": "paper",
        "preset": "tiny",
        "size": 64,
        "steps": 300,
        "learning_rate": 2e-3,
        "decay_every": 500,
        "batch_size": 2,
        "alpha": 0.5,
        "temperature": 2.0,
        "absent": "uniform",
        "l2_on": "all",
        "l2_weight": 1e-4,
        "selection": "best",
        "validate_every": 50,
        "seed": 0,
    }
    return RunConfig(**(values | changes))


def write_run(
    runs_dir: Path,
    spec: RunSpec,
    cases: dict | None,
    *,
    outlier: dict | None = None,
    knowledge: list[dict] | None = None,
    status: str = "finished",
    source: str = "phantom abdomen",
    data_dir: str = "data",
    steps: int = 300,
    parameters: int = 1_918_741,
    modalities: tuple[str, ...] = ("ct", "mr"),
) -> Path:
    """Writes a run's folder; no evaluation where `cases` is None."""
    run_dir = runs_dir / spec.name
    run_dir.mkdir(parents=True)
    recipe = RECIPES["paper"][TASKS[spec.task].network]
    config = run_config(
        task=spec.task,
        setting=spec.setting,
        steps=steps,
        alpha=spec.alpha,
        seed=spec.seed,
        labelled_patches=recipe.labelled_patches,
        augmentation=recipe.augmentation,
        norm_batches=16,
    )
    run = {
        "flags": config.to_dict(),
        "model": {
            "network": TASKS[spec.task].network,
            "setting": spec.setting,
            "normalization": spec.normalization,
            "modalities": modalities,
        },
        "setting": asdict(SETTINGS[spec.setting]),
        "task": spec.task,
        "data_dir": data_dir,
        "source": source,
        "split_name": "seeded 70/10/20, seed 0",
        "split_sha256": "0" * 64,
        "seed": spec.seed,
        "environment": {"commit": "abc123"},
        "status": status,
        "seconds": 60.0,
    }
    evaluations = {"test": cases, "outlier": outlier}
    contents = {"run.json": run} | {
        f"evaluation_{part}.json": {"cases": c, "parameters": parameters, "trained_at_commit": "abc123"}
        for part, c in evaluations.items()
        if c is not None
    }
    for name, content in contents.items():
        (run_dir / name).write_text(json.dumps(content), encoding="utf-8")
    if knowledge:
        lines = "".join(json.dumps(line) + "\n" for line in knowledge)
        (run_dir / "knowledge.jsonl").write_text(lines, encoding="utf-8")
    return run_dir
