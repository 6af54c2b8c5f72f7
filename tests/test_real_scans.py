"""Preparation of real BTCV and CHAOS scans: nothing may be lost, moved or mirrored.

The scans may not be passed on, so they are no part of the project. The tests use the folder that the environment
variable UMMKD_REAL_DATA names, or ../shared/real beside the repository, with `btcv/` and `chaos/` in it.
"""

import os
from pathlib import Path

import numpy as np
import pytest
from raw_data import read

from data_prep import pipeline
from data_prep.sources.table import SOURCES, RawOptions
from data_prep.splits import Choice
from data_prep.workers import Workers
from ummkd_tf.data.dataset import Dataset
from ummkd_tf.runs.environment import available_cores
from ummkd_tf.scans import preprocessing
from ummkd_tf.scans.geometry import Volume
from ummkd_tf.tasks import get_task

ROOT = Path(__file__).resolve().parents[1]
REAL = Path(os.environ.get("UMMKD_REAL_DATA", ROOT.parent / "shared/real"))
TASK = get_task("abdomen")
ORGANS = dict(enumerate(TASK.class_names))
del ORGANS[0]
VOLUME_TOLERANCE = {"liver": 0.03, "spleen": 0.03, "right_kidney": 0.05, "left_kidney": 0.05}
# Lowest mean Dice of a reference label taken to the task's grid and back. CT slices of 2.5 to 5 mm become 8 mm.
CEILING = {
    "ct": {"liver": 0.96, "right_kidney": 0.93, "left_kidney": 0.93, "spleen": 0.94},
    "mr": {"liver": 0.98, "right_kidney": 0.96, "left_kidney": 0.96, "spleen": 0.96},
}
MARKED_PER_MODALITY = 3

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (REAL / "btcv").is_dir(), reason="no real scans: set UMMKD_REAL_DATA to a folder with btcv/ and chaos/"
    ),
]


@pytest.fixture(scope="module")
def raw_cases():
    found = SOURCES["abdomen"].find(RawOptions(raw=REAL))
    assert [str(problem) for problem in found.problems] == []
    return found.cases


@pytest.fixture(scope="module")
def prepared(raw_cases, tmp_path_factory):
    """(data set, notes) of all scans."""
    out, notes = tmp_path_factory.mktemp("real") / "data", []
    with Workers(available_cores()) as pool:
        problems = pipeline.prepare_source(
            SOURCES["abdomen"], RawOptions(raw=REAL), out, choice=Choice(), pool=pool, note=notes.append
        )
    assert problems == []
    return Dataset.load(out), notes


@pytest.fixture(scope="module")
def scans(prepared):
    """(case, original label) of every scan."""
    dataset = prepared[0]
    cases = (dataset.case(c, original_label=True) for c in sorted(dataset.case_modality))
    return [(case, case.original_label) for case in cases]


def ml(voxels, grid):
    return voxels * abs(np.linalg.det(grid.affine[:3, :3])) / 1000


def centroid(label, c, grid):
    return grid.world(np.argwhere(label == c).mean(axis=0))


def test_every_scan_is_prepared_without_a_warning_that_matters(prepared, raw_cases):
    dataset, notes = prepared
    assert sorted(dataset.case_modality) == sorted(case.case_id for case in raw_cases)
    assert set(dataset.case_modality.values()) == {"ct", "mr"}
    expected = (
        "ordered by their position",
        "headers differ by rounding",
        "cases prepared",
        "in the label map",
        "of 30 known cases",
        "of 20 known cases",
    )
    assert [note for note in notes if not any(words in note for words in expected)] == []


def test_every_organ_keeps_its_volume(scans):
    worst: dict[tuple[str, str], tuple[float, str]] = {}
    for case, original in scans:
        for c, organ in ORGANS.items():
            before, after = ml((original == c).sum(), case.original), ml((case.label == c).sum(), case.grid)
            assert (after > 0) == (before > 0), f"{case.case_id} {organ}"
            if before:
                change = (after / before - 1, case.case_id)
                worst[case.modality, organ] = max(worst.get((case.modality, organ), change), change, key=_size)
    print(*(f"{m} {organ}: {change:+.2%} ({case_id})" for (m, organ), (change, case_id) in worst.items()), sep="\n")
    assert {key: value for key, value in worst.items() if _size(value) > VOLUME_TOLERANCE[key[1]]} == {}


def _size(change):
    return abs(change[0])


def test_every_organ_is_on_its_side(scans):
    """World x grows towards the patient's right; column 127.5 is the middle of the body."""
    for case, _ in scans:
        x = {organ: centroid(case.label, c, case.grid)[0] for c, organ in ORGANS.items() if (case.label == c).any()}
        middle = case.grid.world((127.5, 127.5, 0))[0]
        for organ, right in (("liver", True), ("right_kidney", True), ("left_kidney", False), ("spleen", False)):
            assert organ not in x or (x[organ] > middle) == right, f"{case.case_id} {organ}"
        columns = np.argwhere(case.label == 1).mean(axis=0)[1]
        assert columns < 127.5, case.case_id  # the patient's right is on the picture's left


def test_organs_stay_in_their_place(scans):
    """Less than a voxel per organ, and no drift over all."""
    moved = np.array(
        [
            (centroid(case.label, c, case.grid) - centroid(original, c, case.original)) / (1.5, 1.5, 8.0)
            for case, original in scans
            for c in ORGANS
            if (original == c).any()
        ]
    )
    assert np.abs(moved).max() < 1
    assert np.abs(moved.mean(axis=0)).max() < 0.1


@pytest.mark.parametrize("modality", ["ct", "mr"])
def test_known_voxels_survive_the_chain(modality, raw_cases):
    """A bright block put around a known voxel: the middle of the prepared block is within half a voxel of it."""
    for case in [case for case in raw_cases if case.modality == modality][:MARKED_PER_MODALITY]:
        image, label = read(case)
        middle = np.round(np.argwhere(label.array == 2).mean(axis=0)).astype(int)
        reach = np.ceil(8.0 / np.array(image.grid.spacing_mm)).astype(int)  # a prepared slice lies in it for certain
        array = np.clip(image.array, -125, 200).astype(np.float32)
        array[tuple(slice(m - r, m + r + 1) for m, r in zip(middle, reach, strict=True))] = 275
        # The CT's range keeps the block, and only that, brightest in the MR, too.
        prepared = preprocessing.prepare_scan(Volume(array, image.affine), label, TASK, "ct")
        block = np.argwhere(prepared.image > prepared.image.max() - 1e-3)
        offset = block.mean(axis=0) - prepared.grid.index(image.grid.world(middle))
        assert np.abs(offset).max() <= 0.5 + 1e-6, case.case_id


def test_reference_labels_return_up_to_resampling(scans):
    """The ceiling of every result: the best Dice a network on the task's grid could reach on the scan's own grid.

    Every third scan, because it takes half a second each.
    """
    dice: dict[tuple[str, str], list[float]] = {}
    for case, original in scans[::3]:
        one_hot = np.eye(TASK.num_classes, dtype=np.float32)[case.label]
        restored = preprocessing.restore(one_hot, case.grid, case.original)
        for c, organ in ORGANS.items():
            sizes = (restored == c).sum() + (original == c).sum()
            if sizes:
                both = ((restored == c) & (original == c)).sum()
                dice.setdefault((case.modality, organ), []).append(2 * both / sizes)
    mean = {key: float(np.mean(values)) for key, values in dice.items()}
    print(*(f"{m} {organ}: {value:.4f} over {len(dice[m, organ])}" for (m, organ), value in mean.items()), sep="\n")
    assert {key: value for key, value in mean.items() if value < CEILING[key[0]][key[1]]} == {}
