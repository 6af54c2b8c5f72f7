"""A small prepared data set, made in a second."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ummkd_tf.data.cases import write_case
from ummkd_tf.data.dataset import write_dataset
from ummkd_tf.scans.geometry import Grid
from ummkd_tf.scans.preprocessing import Prepared
from ummkd_tf.tasks import TASKS


def blocks(rng: np.random.Generator, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """A noisy image and its label map on the abdomen's grid: four cubes of different brightness."""
    label = np.zeros((256, 256, depth), np.uint8)
    for c, (row, column) in enumerate([(40, 40), (40, 160), (150, 40), (150, 160)], start=1):
        label[row : row + 64, column : column + 64, 2:-2] = c
    image = label + rng.normal(0, 0.3, label.shape)
    return ((image - image.mean()) / image.std()).astype(np.float32), label


def write_prepared_dataset(directory: Path) -> None:
    """Blocks: per modality two training cases, one validation and one test case."""
    task = TASKS["abdomen"]
    split: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for modality in ("ct", "mr"):
        for number, part in enumerate(("train", "train", "validation", "test")):
            case_id = f"{modality}_{number}"
            image, label = blocks(np.random.default_rng(len(case_id) + number), depth=9 + number)
            grid = Grid(np.diag([-1.5, -1.5, 8.0, 1.0])[[1, 0, 2, 3]], label.shape)
            prepared = Prepared(image if modality == "ct" else -image, label, grid, grid, label)
            path = directory / "cases" / f"{case_id}.h5"
            write_case(path, prepared, case_id=case_id, modality=modality, task=task, source={case_id: "none"})
            split[part].append(case_id)
    modality_of = {c: c.split("_")[0] for ids in split.values() for c in ids}
    write_dataset(directory, task=task, case_modality=modality_of, split=split, split_name="blocks")
