"""Prepared data on disk: round trips, and every kind of damage."""

import dataclasses
import json
import shutil

import h5py
import numpy as np
import pytest

from ummkd_tf.common.errors import InputError
from ummkd_tf.data.cases import (
    file_checksum,
    is_current,
    read_case,
    read_checksums,
    recipe_checksum,
    source_checksum,
    voxels_checksum,
    write_case,
)
from ummkd_tf.data.dataset import Dataset, check_split, write_dataset
from ummkd_tf.scans import preprocessing
from ummkd_tf.scans.geometry import Grid, Volume, reorient
from ummkd_tf.scans.preprocessing import Prepared
from ummkd_tf.tasks import LARGEST_SIZE, TASKS, Clip, get_task

TASK = get_task("abdomen")
AFFINE = np.array([[0, 1.5, 0, -12], [-1.5, 0, 0, 10], [0, 0, 8, 5], [0, 0, 0, 1.0]])
SOURCE = {"image.nii.gz": "ab", "label.nii.gz": "cd"}
IDS = {"train": ["ct_1", "mr_1"], "validation": ["ct_2", "mr_2"], "test": ["ct_3", "mr_3"]}


def prepared(seed=0):
    rng = np.random.default_rng(seed)
    return Prepared(
        image=rng.normal(size=(8, 6, 3)).astype(np.float32),
        label=rng.integers(0, 5, (8, 6, 3)).astype(np.uint8),
        grid=Grid(AFFINE, (8, 6, 3)),
        original=Grid(np.diag([2.0, 2, 4, 1]), (5, 4, 6)),
        original_label=rng.integers(0, 5, (5, 4, 6)).astype(np.uint8),
    )


def write(path, seed=0, case_id="ct_1", modality="ct"):
    write_case(path, prepared(seed), case_id=case_id, modality=modality, task=TASK, source=SOURCE)
    return path


@pytest.fixture
def dataset(tmp_path):
    case_modality = {c: c[:2] for ids in IDS.values() for c in ids}
    for seed, (case_id, modality) in enumerate(case_modality.items()):
        write(tmp_path / f"cases/{case_id}.h5", seed, case_id, modality)
    write_dataset(tmp_path, task=TASK, case_modality=case_modality, split=IDS, split_name="by hand")
    return tmp_path


# --- cases -----------------------------------------------------------------------------------------------------------


def test_case_comes_back_as_it_was(tmp_path):
    path, expected = write(tmp_path / "a.h5"), prepared()
    case = read_case(path)
    assert (case.case_id, case.modality) == ("ct_1", "ct")
    for name in ("image", "label"):
        found, wanted = getattr(case, name), getattr(expected, name)
        assert found.dtype == wanted.dtype
        assert np.array_equal(found, wanted)
    for name in ("grid", "original"):
        assert np.array_equal(getattr(case, name).affine, getattr(expected, name).affine)
        assert getattr(case, name).shape == getattr(expected, name).shape
    assert np.array_equal(read_case(path, original_label=True).original_label, expected.original_label)
    assert read_checksums(path).source == source_checksum(SOURCE)


def test_a_case_of_the_largest_size_comes_back_and_is_current(tmp_path):
    size, depth = (LARGEST_SIZE, LARGEST_SIZE), 2
    label = np.zeros((*size, depth), np.uint8)
    label[7, 9] = 1
    grid = Grid(AFFINE, label.shape)
    about = {"case_id": "a", "modality": "ct", "task": dataclasses.replace(TASK, size=size), "source": SOURCE}
    write_case(tmp_path / "a.h5", Prepared(label.astype(np.float32), label, grid, grid, label), **about)
    assert np.array_equal(read_case(tmp_path / "a.h5").image, label)
    assert is_current(tmp_path / "a.h5", **about)


def test_reduced_case_lies_in_the_same_place(tmp_path):
    """A block of 2 × 2 voxels has its centre between them."""
    path = write(tmp_path / "a.h5")
    fine, coarse = read_case(path), read_case(path, factor=2)
    assert coarse.image.shape == coarse.label.shape == (4, 3, 3)
    assert coarse.grid.spacing_mm == (3.0, 3.0, 8.0)
    np.testing.assert_allclose(coarse.grid.world((0, 0, 0)), fine.grid.world((0.5, 0.5, 0)))
    np.testing.assert_allclose(coarse.grid.world((3, 2, 2)), fine.grid.world((6.5, 4.5, 2)))
    assert coarse.image[1, 2, 0] == pytest.approx(fine.image[2:4, 4:6, 0].mean())


def test_same_case_gives_the_same_bytes(tmp_path):
    assert write(tmp_path / "a.h5").read_bytes() == write(tmp_path / "b.h5").read_bytes()


def test_checksums():
    assert source_checksum({"a": "1", "b": "2"}) == source_checksum({"b": "2", "a": "1"})
    assert source_checksum({"a": "1", "b": "2"}) != source_checksum({"a": "2", "b": "1"})


def test_file_checksum(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # of FIPS 180-2, appendix B.1
    assert file_checksum(tmp_path / "a") == expected


def test_recipe_of_the_papers_tasks_stays(monkeypatch):
    """Data prepared before tasks were files stay valid."""
    monkeypatch.setattr(preprocessing, "VERSION", 3)
    assert {name: recipe_checksum(task)[:16] for name, task in TASKS.items()} == {
        "abdomen": "93f6f4f24424b0c0",
        "cardiac": "5441efefe7223bff",
    }


def test_recipe_changes_with_what_decides_the_result_only(monkeypatch):
    before = recipe_checksum(TASK)
    assert recipe_checksum(dataclasses.replace(TASK, spacing_mm=(1.5, 1.5, 5.0))) != before
    assert recipe_checksum(dataclasses.replace(TASK, clip={"default": Clip(0, 1)})) != before
    assert recipe_checksum(dataclasses.replace(TASK, class_colors={})) == before
    monkeypatch.setattr(preprocessing, "VERSION", preprocessing.VERSION + 1)
    assert recipe_checksum(TASK) != before


def test_a_case_that_was_prepared_otherwise_than_its_data_set(dataset):
    """One file of another clipping or version, copied into the set, is refused wherever it is opened."""
    path, other = dataset / "cases/ct_1.h5", dataclasses.replace(TASK, clip={"default": Clip(0, 1)})
    content = Dataset.load(dataset)
    small = dataclasses.replace(content, task=dataclasses.replace(TASK, size=(8, 6)))
    (stored,) = small.stored_cases("train", "ct", 2)
    assert content.case("ct_1").recipe == content.recipe == content.checksums["ct_1"].recipe == recipe_checksum(TASK)
    write_case(path, prepared(), case_id="ct_1", modality="ct", task=other, source=SOURCE)
    for opened in (content.case, lambda _: stored.slices([0], [0]), lambda _: Dataset.load(dataset).checksums):
        with pytest.raises(
            InputError, match=r"ct_1\.h5: prepared otherwise than the data set: for another task, or by"
        ):
            opened("ct_1")


# --- damage ----------------------------------------------------------------------------------------------------------


def cut(path):
    path.write_bytes(path.read_bytes()[:-1500])


def flip_a_byte_of_the_image(path):
    with h5py.File(path) as file:
        offset = file["image"].id.get_chunk_info(1).byte_offset
    content = bytearray(path.read_bytes())
    content[offset + 20] ^= 255
    path.write_bytes(bytes(content))


def edit(change):
    def damage(path):
        with h5py.File(path, "r+") as file:
            change(file)

    return damage


def link(target):
    def change(file):
        del file["label"]
        file["label"] = target

    return edit(change)


def resize_label(file):
    del file["label"]
    file["label"] = np.zeros((2, 2, 2), np.uint8)


DAMAGES = {
    "missing": (lambda path: path.unlink(), "missing case file: prepare the data again"),
    "empty": (lambda path: path.write_bytes(b""), "not a readable HDF5 file"),
    "not HDF5": (lambda path: path.write_bytes(b"hello" * 500), "not a readable HDF5 file"),
    "truncated": (cut, "not a readable HDF5 file"),
    "flipped byte": (flip_a_byte_of_the_image, "damaged or incomplete case file"),
    "no label": (edit(lambda file: file.pop("label")), "damaged or incomplete case file"),
    "no affine": (edit(lambda file: file.attrs.pop("affine")), "damaged or incomplete case file"),
    "external link": (link(h5py.ExternalLink("other.h5", "/label")), "'label' is a link"),
    "soft link": (link(h5py.SoftLink("/original_label")), "'label' is a link"),
    "other format": (edit(lambda file: file.attrs.update(format=99)), "case format 99, expected 1"),
    "no format": (edit(lambda file: file.attrs.pop("format")), "case format none, expected 1"),
    "other shape": (edit(resize_label), r"image \(8, 6, 3\) and label \(2, 2, 2\) do not fit"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_case_is_one_clear_line(name, tmp_path):
    damage, message = DAMAGES[name]
    path = write(tmp_path / "a.h5")
    damage(path)
    with pytest.raises(InputError, match=f"^{path}: {message}") as caught:
        read_case(path)
    assert "\n" not in str(caught.value)


# --- data sets -------------------------------------------------------------------------------------------------------


def test_dataset_comes_back_as_it_was(dataset):
    found = Dataset.load(dataset)
    assert found.task == TASK
    assert found.modalities == ("ct", "mr")
    assert {part: list(ids) for part, ids in found.split.items()} == IDS
    assert found.split_name == "by hand"
    assert found.ids("validation") == ["ct_2", "mr_2"]
    assert found.ids("test", "mr") == ["mr_3"]
    assert found.case("mr_2", factor=2).image.shape == (4, 3, 3)


def test_split_checksum_tells_splits_apart(dataset):
    found = Dataset.load(dataset)
    other = dataclasses.replace(found, split=IDS | {"train": ["ct_2", "mr_1"], "validation": ["ct_1", "mr_2"]})
    assert found.split_checksum != other.split_checksum
    assert found.split_checksum == dataclasses.replace(found, split_name="same cases").split_checksum


def test_no_data_set(tmp_path):
    with pytest.raises(InputError, match=r"dataset.json: no prepared data set"):
        Dataset.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("split"), r"not a data set description \(KeyError\('split'\)\)"),
        (lambda content: content.update(cases=["ct_1"]), "not a data set description"),
        (lambda content: content.update(task="brain"), "unknown task 'brain'"),
        (lambda content: content["split"]["test"].append("ct_9"), "the split's test part names 'ct_9'"),
        (lambda content: content["split"]["test"].append("ct_1"), "case 'ct_1' is in train and in test"),
        (lambda content: content["split"]["test"].remove("mr_3"), "the test part has no mr case"),
        (
            lambda content: content["cases"].update({"../x": {"modality": "ct"}}),
            r"case id '../x': expected a plain name",
        ),
        (lambda content: content["cases"].update({"ct_7": {"modality": "ct"}}), "ct_7.h5: missing case file"),
    ],
)
def test_damaged_dataset_is_one_clear_line(change, message, dataset):
    path = dataset / "dataset.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(InputError, match=message):
        Dataset.load(dataset)


def test_dataset_that_is_no_json(dataset):
    (dataset / "dataset.json").write_text('{"task": ', encoding="utf-8")
    with pytest.raises(InputError, match="not a data set description"):
        Dataset.load(dataset)


def test_removed_case_is_an_error_not_a_skip(dataset):
    (dataset / "cases/mr_2.h5").unlink()
    with pytest.raises(InputError, match=r"mr_2.h5: missing case file"):
        Dataset.load(dataset)


@pytest.mark.parametrize("case_id", ["", ".", "../secret", "a/b", ".hidden"])
def test_no_case_id_leads_out_of_the_folder(case_id, dataset):
    with pytest.raises(InputError, match="expected a plain name"):
        Dataset.load(dataset).path(case_id)


def test_refused_split_writes_no_dataset(tmp_path):
    with pytest.raises(InputError, match="the validation part has no ct case"):
        write_dataset(tmp_path, task=TASK, case_modality={"ct_1": "ct"}, split={"train": ["ct_1"]}, split_name="")
    assert list(tmp_path.iterdir()) == []


def test_check_split_accepts_unused_cases():
    check_split(IDS, {c: c[:2] for ids in IDS.values() for c in ids} | {"ct_99": "ct"}, ("ct", "mr"), "here")


def test_moved_dataset_still_loads(dataset, tmp_path_factory):
    moved = shutil.copytree(dataset, tmp_path_factory.mktemp("moved") / "data")
    assert Dataset.load(moved).case("ct_1").case_id == "ct_1"


def test_a_copy_with_other_axes_has_the_same_checksum():
    scan = Volume(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.diag([1.0, 2.0, 3.0, 1.0]))
    assert voxels_checksum(reorient(scan, "SAL")) == voxels_checksum(scan)
    assert voxels_checksum(Volume(scan.array[::-1], scan.affine)) != voxels_checksum(scan)
