"""The authors' released records, lists and test volumes: read as they are, checked, trained on, made cases."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tensorflow as tf
from programs import Done, program
from recorded_runs import run_config
from toy_networks import TOY2D

from data_prep import release as preparation
from ummkd_tf.common.errors import InputError
from ummkd_tf.data import released_dataset
from ummkd_tf.data.cache import Cache
from ummkd_tf.data.cases import read_case
from ummkd_tf.data.opening import open_dataset
from ummkd_tf.evaluation.validation import validation_score
from ummkd_tf.released import lists, test_volumes
from ummkd_tf.released import records as released
from ummkd_tf.runs.exported import check_not_seen, export_run, training_cases
from ummkd_tf.runs.session import make_sampler
from ummkd_tf.scans.geometry import Volume, reorient
from ummkd_tf.tasks import TASKS

ROOT = Path(__file__).parent.parent
GOLDEN = Path(os.environ.get("UMMKD_GOLDEN", ROOT.parent / "shared" / "golden")) / "released_records"
needs_golden = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason="no golden records: set UMMKD_GOLDEN to the folder that holds released_records/"
)


def slices(seed: int, sign: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Three slices of noise with four squares, and their labels; the neighbours' labels differ from the middle's."""
    rng = np.random.default_rng(seed)
    label = np.zeros(released.SHAPE, np.float32)
    for k in range(3):
        for c, (row, column) in enumerate([(40, 40), (40, 160), (150, 40), (150, 160)], start=1):
            label[row + 8 * k : row + 64, column : column + 64, k] = c
    return (sign * label + rng.normal(0, 0.3, label.shape)).astype(np.float32), label


def write_record(path: Path, image: np.ndarray, label: np.ndarray, **changes: object) -> Path:
    """A record in the released schema, with the extra keys that real files have."""
    sizes = {f"{kind}size_dim{axis}": size for kind in "dl" for axis, size in enumerate((256, 256, 3))}
    values = {**sizes, "data_vol": image.tobytes(), "label_vol": label.tobytes(), "mask_vol": b"", **changes}
    features = {
        name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
        if isinstance(value, bytes)
        else tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))
        for name, value in values.items()
        if value is not None
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        writer.write(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())
    return path


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    nib.save(nib.Nifti1Image(array, affine), path)


def test_volume(seed: int, depth: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """A volume as an .npz holds it: half a turn from the records, with a corner of label 5."""
    image, label = slices(seed)
    volume, classes = (np.repeat(array[:, :, 1:2], depth, axis=2) for array in (image, label))
    classes[0, 0] = 5
    return np.flip(volume, (0, 1)), np.flip(classes, (0, 1))


test_volume.__test__ = False  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release as downloaded: lists with the authors' own paths, two training records and one for validation."""
    raw = tmp_path_factory.mktemp("release")
    for number, (modality, sign) in enumerate((("ct", 1.0), ("mr", -1.0))):
        for part, count in (("train", 2), ("val", 1)):
            names = [f"{modality}_{part}_tfs/{modality}_{part}_slice{k}.tfrecords" for k in range(count)]
            for k, name in enumerate(names):
                image, label = slices(10 * number + k + (5 if part == "val" else 0), sign)
                label[:2, :3, 1] = 5
                write_record(raw / "train&val" / name, image, label)
            lines = "\n\n".join(f"/data/projects/multimodal_learning/{name}" for name in names)
            (raw / "train&val" / f"{modality}_{part}_list").write_text(lines + "\n", encoding="utf-8")
        image, label = test_volume(number)
        (raw / "test").mkdir(exist_ok=True)
        np.savez_compressed(raw / "test" / f"{modality}_test_0.npz", image, label)
    (raw / "test" / "mr_test_list").write_text("mr_test_0.npz\n", encoding="utf-8")
    # As the released test code uses it: axes (slice, column, row).
    affine = np.array([[0.0, 0, 2, 7], [0, -1.5, 0, 8], [-3.0, 0, 0, 9], [0, 0, 0, 1]])
    write_nifti(raw / "test" / "ct_test_0_ref.nii.gz", np.zeros((5, 256, 256), np.uint8), affine)
    return raw


@pytest.fixture(scope="module")
def described(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("described")
    assert preparation.prepare_release(release, out) == []
    return out


# --- records ---------------------------------------------------------------------------------------------------------


@needs_golden
@pytest.mark.parametrize("modality", ["ct", "mr"])
def test_golden_record_is_read_bit_for_bit(modality: str) -> None:
    image, label = released.read_record(GOLDEN / f"{modality}_train_0.tfrecords")
    with np.load(GOLDEN / "expected.npz") as expected:
        assert image.dtype == np.float32 and image.tobytes() == expected[f"{modality}_train_0/image"].tobytes()
        np.testing.assert_array_equal(label, expected[f"{modality}_train_0/label_middle"])
        assert label.dtype == np.uint8


def test_record_round_trip(tmp_path: Path) -> None:
    image, label = slices(3)
    image[0, 0, 0] = np.float32(1e-42)  # a denormal, which arithmetic on the way would flush
    label[0, 0, 1] = 5
    read, classes = released.read_record(write_record(tmp_path / "a.tfrecords", image, label))
    assert read.tobytes() == image.tobytes()
    np.testing.assert_array_equal(classes, label[:, :, 1])


IMAGE, LABEL = slices(0)


def _with(array: np.ndarray, value: float) -> bytes:
    changed = array.copy()
    changed[5, 5, 1] = value
    return changed.tobytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lsize_dim2": 1}, r"lsize_dim2 is \[1\]: expected \[3\]"),
        ({"dsize_dim0": None}, r"dsize_dim0 is \[\]: expected \[256\]"),
        ({"data_vol": IMAGE.tobytes()[:-4]}, r"data_vol is 786428 bytes: expected 786432"),
        ({"label_vol": None}, r"label_vol is missing: expected 786432"),
        ({"data_vol": _with(IMAGE, np.nan)}, r"NaN or infinite"),
        ({"label_vol": _with(LABEL, 1.5)}, r"1 label voxels are not whole numbers \(first: 1.5\)"),
        ({"label_vol": _with(LABEL, 6)}, r"label values 0 to 6: expected 0 to 5"),
        ({"label_vol": _with(LABEL, -1)}, r"label values -1 to 4: expected 0 to 5"),
    ],
)
def test_unfit_record_is_one_clear_line(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    path = write_record(tmp_path / "a.tfrecords", IMAGE, LABEL, **changes)
    with pytest.raises(InputError, match=message) as caught:
        released.read_record(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: b"", r"empty file \(0 bytes\)"),
        (lambda content: content[:-1000], "damaged or truncated"),
        (lambda content: content[:5000] + bytes([content[5000] ^ 1]) + content[5001:], "damaged or truncated"),
        (lambda content: content + content, "more than one example"),
    ],
)
def test_damaged_record_is_one_clear_line(tmp_path: Path, damage, message: str) -> None:
    path = write_record(tmp_path / "a.tfrecords", IMAGE, LABEL)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=message) as caught:
        released.read_record(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_something_else_in_a_record_frame(tmp_path: Path) -> None:
    with tf.io.TFRecordWriter(str(tmp_path / "a.tfrecords")) as writer:
        writer.write(b"no example at all")
    with pytest.raises(InputError, match="damaged or truncated"):
        released.read_record(tmp_path / "a.tfrecords")
    with pytest.raises(InputError, match="no such record"):
        released.read_record(tmp_path / "b.tfrecords")


# --- lists -----------------------------------------------------------------------------------------------------------


def _files(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def read_list(path: Path, folder: Path) -> list[Path]:
    files, problems = lists.find_listed(path, lists.files_by_name(folder), folder)
    if problems:
        raise problems[0]
    return files


def test_list_keeps_the_line_after_a_blank_one(tmp_path: Path) -> None:
    _files(tmp_path, "a.tfrecords", "b.tfrecords", "c.tfrecords")
    (tmp_path / "list").write_bytes(b"\r\n/their/a.tfrecords\r\n\r\n/their/b.tfrecords\n   \nc.tfrecords")
    assert [p.name for p in read_list(tmp_path / "list", tmp_path)] == [f"{n}.tfrecords" for n in "abc"]


def test_list_finds_files_by_name_and_by_the_folders_that_agree(tmp_path: Path) -> None:
    _files(tmp_path, "raw/x/ct/1.tfrecords", "raw/x/mr/1.tfrecords", "outside.tfrecords")
    raw, listed = tmp_path / "raw", tmp_path / "list"
    listed.write_text("/data/elsewhere/mr/1.tfrecords\n", encoding="utf-8")
    assert read_list(listed, raw) == [raw / "x/mr/1.tfrecords"]
    listed.write_text("/data/1.tfrecords\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"list line 1: 2 files 1\.tfrecords fit /data/1\.tfrecords: expected one"):
        read_list(listed, raw)
    for outside in ("../outside.tfrecords", str(tmp_path / "outside.tfrecords")):
        listed.write_text(f"{outside}\n", encoding="utf-8")
        with pytest.raises(InputError, match=r"no file outside\.tfrecords below"):
            read_list(listed, raw)


def test_list_names_every_problem(tmp_path: Path) -> None:
    _files(tmp_path, "a.tfrecords")
    (tmp_path / "list").write_text("a.tfrecords\n\nb.tfrecords\n/x/a.tfrecords\n", encoding="utf-8")
    found, problems = lists.find_listed(tmp_path / "list", lists.files_by_name(tmp_path), tmp_path)
    assert found == [tmp_path / "a.tfrecords"]
    missing, twice = map(str, problems)
    assert "list line 3: no file b.tfrecords below" in missing
    assert "list line 4: a.tfrecords is already in line 1" in twice
    with pytest.raises(InputError, match="line 3"):
        read_list(tmp_path / "list", tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\n \n", "empty list"), (b"\xff\xfe\x00", "not a readable text file"), (b"a\nb\n", "none of its 2 files")],
)
def test_useless_list(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "list").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_list(tmp_path / "list", tmp_path)


# --- test volumes ----------------------------------------------------------------------------------------------------


@needs_golden
@pytest.mark.parametrize("modality", ["ct", "mr"])
def test_golden_test_volume(modality: str) -> None:
    path = GOLDEN / f"{modality}_test_0.npz"
    image, label = test_volumes.read_test_volume(path)
    with np.load(path) as stored:
        assert image.tobytes() == stored["arr_0"][::-1, ::-1].tobytes()
        np.testing.assert_array_equal(label, stored["arr_1"][::-1, ::-1])
    prepared = test_volumes.prepare_test_volume(path, TASKS["cardiac"])
    reference = nib.load(GOLDEN / f"{modality}_test_0_ref.nii.gz")
    # SimpleITK's view of the turned array [i, j, k] is the reference's voxel [k, j, i].
    np.testing.assert_allclose(prepared.grid.world([30, 20, 10]), reference.affine[:3] @ [10, 20, 30, 1], atol=1e-9)
    np.testing.assert_allclose(prepared.grid.spacing_mm, [1.1, 0.9, 1.0], rtol=1e-6)
    assert prepared.original.shape == reference.shape
    np.testing.assert_allclose(prepared.original.affine, reference.affine, atol=1e-9)
    assert prepared.label is not None and prepared.original_label is not None
    np.testing.assert_array_equal(prepared.original_label, prepared.label.transpose(2, 1, 0))
    np.testing.assert_array_equal(prepared.label, np.where(label == 5, 0, label))
    assert (label == 5).any()


def test_nifti_pair_is_the_npz_made_from_it(tmp_path: Path) -> None:
    """`savenpz.py` stores a NIfTI's own axis order; the world place of a voxel must survive the half turn."""
    image, label = test_volume(4)
    affine = np.array([[-0.8, 0, 0, 5.0], [0, 0, 1.2, 6], [0, -0.9, 0, 7], [0, 0, 0, 1]])
    write_nifti(tmp_path / "image_ct_1003.nii.gz", image, affine)
    write_nifti(tmp_path / "gth_ct_1003.nii.gz", label.astype(np.int16), affine)
    np.savez(tmp_path / "ct_1003.npz", image, label)
    shutil.copy(tmp_path / "image_ct_1003.nii.gz", tmp_path / "ct_1003.nii.gz")
    pair, npz = (
        test_volumes.prepare_test_volume(tmp_path / name, TASKS["cardiac"])
        for name in ("image_ct_1003.nii.gz", "ct_1003.npz")
    )
    for prepared in (pair, npz):
        np.testing.assert_array_equal(prepared.image, image[::-1, ::-1])
        np.testing.assert_allclose(prepared.grid.world([255 - 30, 255 - 20, 2]), affine[:3] @ [30, 20, 2, 1], atol=1e-5)
        np.testing.assert_allclose(prepared.original.affine, affine, atol=1e-5)
        np.testing.assert_array_equal(prepared.original_label, np.where(label == 5, 0, label))


def test_cube_takes_the_axis_order_that_its_reference_shows() -> None:
    """256 slices fit both orders: the reference's own voxels decide, and a blank one is refused."""
    rng = np.random.default_rng(0)
    label = np.zeros((256, 256, 256), np.uint8)
    label[tuple(rng.integers(0, 256, (3, 50)))] = 1
    image = np.broadcast_to(np.float32(0), label.shape)
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    own = test_volumes.place(image, label, Volume(label[::-1, ::-1], affine), Path("ref"))
    np.testing.assert_array_equal(own[:3], [[-2, 0, 0, 510], [0, -3, 0, 765], [0, 0, 4, 0]])
    reversed_order = test_volumes.place(image, label, Volume(label.T, affine), Path("ref"))
    np.testing.assert_array_equal(reversed_order[:3], [[0, 0, 2, 0], [0, 3, 0, 0], [4, 0, 0, 0]])
    with pytest.raises(InputError, match="ref: both axis orders fit"):
        test_volumes.place(image, label, Volume(np.full(label.shape, 7), affine), Path("ref"))


def test_volume_without_reference_assumes_the_tasks_grid(release: Path) -> None:
    grid = test_volumes.prepare_test_volume(release / "test/mr_test_0.npz", TASKS["cardiac"]).grid
    assert (grid.axes, grid.spacing_mm) == ("ILP", (1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"arr_0": np.zeros((256, 256, 2))}, "no arr_0 and arr_1"),
        ({"arr_0": np.zeros((256, 256, 2)), "arr_1": np.zeros((256, 256, 3))}, "expected both as"),
        ({"arr_0": np.zeros((256, 128, 2)), "arr_1": np.zeros((256, 128, 2))}, "expected both as"),
        ({"arr_0": np.full((256, 256, 2), np.inf), "arr_1": np.zeros((256, 256, 2))}, "NaN or infinite"),
        ({"arr_0": np.zeros((256, 256, 2)), "arr_1": np.full((256, 256, 2), 0.5)}, "not whole numbers"),
        ({"arr_0": np.array([{}]), "arr_1": np.zeros(1)}, "not a readable .npz file of plain arrays"),
    ],
)
def test_unfit_volume_is_one_clear_line(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "ct.npz", **arrays)
    with pytest.raises(InputError, match=message) as caught:
        test_volumes.read_test_volume(tmp_path / "ct.npz")
    assert "\n" not in str(caught.value)


def test_damaged_volumes(tmp_path: Path) -> None:
    np.savez(tmp_path / "ct.npz", np.zeros((256, 256, 2)), np.zeros((256, 256, 2)))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "ct.npz").read_bytes()[:5000])
    (tmp_path / "empty.npz").touch()
    for name in ("cut.npz", "empty.npz"):
        with pytest.raises(InputError, match=f"{name}: not a readable .npz"):
            test_volumes.read_test_volume(tmp_path / name)
    with pytest.raises(InputError, match=r"missing\.npz: no such file"):
        test_volumes.read_test_volume(tmp_path / "missing.npz")
    with pytest.raises(InputError, match="not a test volume"):
        test_volumes.read_test_volume(tmp_path / "gth_ct_1.nii.gz")


# --- a whole release -------------------------------------------------------------------------------------------------


def test_description_and_cases(release: Path, described: Path) -> None:
    dataset = open_dataset(described)
    assert isinstance(dataset, released_dataset.ReleasedDataset)
    assert (dataset.task.name, dataset.modalities, dataset.outside) == ("cardiac", ("ct", "mr"), "ignored")
    assert dataset.ids("train", "ct") == [f"train&val/ct_train_tfs/ct_train_slice{k}.tfrecords" for k in range(2)]
    assert dataset.ids("validation") == [f"train&val/{m}_val_tfs/{m}_val_slice0.tfrecords" for m in ("ct", "mr")]
    assert dataset.ids("test") == ["ct_test_0", "mr_test_0"]

    case = dataset.case("ct_test_0")
    image, label = test_volumes.read_test_volume(release / "test/ct_test_0.npz")
    np.testing.assert_array_equal(case.image, image)
    np.testing.assert_array_equal(case.label, np.where(label == 5, 0, label))
    assert (label == 5).any() and case.grid.spacing_mm == (2.0, 1.5, 3.0)
    original = read_case(dataset.path("ct_test_0"), original_label=True).original_label
    assert original.shape == case.original.shape == (5, 256, 256)
    restored = reorient(Volume(original, case.original.affine), case.grid.axes)
    np.testing.assert_array_equal(restored.array, case.label)
    with pytest.raises(InputError, match="a single slice: only the test part has volumes"):
        dataset.case(dataset.ids("train")[0])


def test_examples_of_every_record_with_label_5_as_chosen(release: Path, described: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    dataset = open_dataset(described)
    drawn = [dataset.examples("ct", 2).draw(rng) for _ in range(16)]
    stored = [released.read_record(path) for path in dataset.records("train", "ct")]
    assert {image.tobytes() for image, _ in drawn} == {image.tobytes() for image, _ in stored}
    assert all((label == 5).sum() == 6 for _, label in drawn)
    np.testing.assert_array_equal(tf.one_hot(drawn[0][1], 5)[0, 0], np.zeros(5))  # belongs to no class: ignored

    image, label = dataset.examples("ct", 2, factor=4).draw(rng)
    assert image.shape == (64, 64, 3) and label.shape == (64, 64) and label.dtype == np.uint8

    assert preparation.prepare_release(release, tmp_path, outside="background") == []
    other = open_dataset(tmp_path)
    image, label = other.examples("ct", 2).draw(np.random.default_rng(0))
    np.testing.assert_array_equal(label, np.where(drawn[0][1] == 5, 0, drawn[0][1]))
    assert other.split == dataset.split and other.split_checksum != dataset.split_checksum
    with pytest.raises(InputError, match=r"expected the 2D network.*--network=dilated2d"):
        dataset.examples("ct", 3)


def test_pooled_dice_by_hand(described: Path) -> None:
    """A model that calls every pixel class 1: Dice = 2·a / (a + 256²) for class 1, 0 for the three others."""

    class Ones:
        num_classes = 5

        def predict_on_batch(self, images):
            return {m: np.eye(5)[np.ones(x.shape[:-1], int)] for m, x in images.items()}

    class Fake:
        model, batch_size = Ones(), 4

    dataset = open_dataset(described)
    validate = validation_score(dataset, Fake())
    assert validate is not None
    area = np.count_nonzero(slices(0)[1][:, :, 1] == 1)
    assert area == 56 * 64
    expected = 2 * area / (area + 256**2) / 4
    scores = validate()
    assert {m: scores[m] for m in ("ct_dice", "mr_dice", "dice")} == pytest.approx(
        dict.fromkeys(("ct_dice", "mr_dice", "dice"), expected)
    )
    first, *others = (f"ct_{name}_dice" for name in dataset.task.class_names[1:])
    assert scores[first] == pytest.approx(4 * expected)
    assert [scores[name] for name in others] == [0.0, 0.0, 0.0]


def test_augmenting_the_augmented_records_again_is_noted(described: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = open_dataset(described)
    make_sampler(dataset, run_config(task="cardiac", size=64, augmentation="none"), 2, Cache())
    assert caplog.messages == []
    make_sampler(dataset, run_config(task="cardiac", size=64, augmentation="affine"), 2, Cache())
    assert len(caplog.messages) == 1 and "augmented already, and --augmentation=affine does so again" in caplog.text


def test_second_run_converts_nothing_again(release: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    preparation.prepare_release(release, out)
    before = {path: path.stat().st_mtime_ns for path in out.glob("cases/*.h5")}
    assert len(before) == 2
    (out / "cases" / "mr_test_0.h5").write_bytes(b"damaged")
    assert preparation.prepare_release(release, out) == []
    after = {path: path.stat().st_mtime_ns for path in before}
    assert after[out / "cases" / "ct_test_0.h5"] == before[out / "cases" / "ct_test_0.h5"]
    assert open_dataset(out).case("mr_test_0").modality == "mr"


def test_a_killed_run_leaves_no_description_of_other_volumes(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert preparation.prepare_release(release, tmp_path) == []

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(preparation, "_convert", killed)
    with pytest.raises(KeyboardInterrupt):
        preparation.prepare_release(release, tmp_path)
    assert not (tmp_path / preparation.RELEASED).exists() and (tmp_path / "cases" / "ct_test_0.h5").exists()


def test_copies_of_training_records_in_validation_are_noted(release: Path, tmp_path: Path) -> None:
    raw = shutil.copytree(release, tmp_path / "raw")
    (trained,), (chosen,) = (raw.rglob(f"ct_{name}_slice0.tfrecords") for name in ("train", "val"))
    shutil.copy(trained, chosen)
    notes: list[str] = []
    assert preparation.verify(raw, notes.append) == []
    assert "ct: 1 training records have copies in validation, by which the checkpoint is chosen" in notes
    assert not any(note.startswith("mr: 1 training") for note in notes)


def test_notes_say_what_is_used(release: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    shutil.copytree(release, tmp_path / "raw")
    (tmp_path / "raw" / "expected.npz").write_bytes(b"something else")
    for path in (tmp_path / "raw").rglob("*_val_list"):
        path.unlink()
    assert preparation.prepare_release(tmp_path / "raw", tmp_path / "out", note=notes.append, dry_run=True) == []
    assert not (tmp_path / "out").exists()
    text = "\n".join(notes)
    for line in (
        "ct: 2 train records (ct_train_list), 1 test volumes",
        "ct_test_0.npz: 2.00 × 1.50 × 3.00 mm",
        "mr_test_0.npz: 1.00 × 1.00 × 1.00 mm, axes ILP ASSUMED",
        "no validation lists: train with --selection=last",
        "names hold neither ct nor mr: expected.npz",
        "mr train: label 5 in 2 of 2 records",
    ):
        assert line in text
    preparation.prepare_release(tmp_path / "raw", tmp_path / "out")
    assert validation_score(open_dataset(tmp_path / "out"), None) is None  # type: ignore[arg-type]


TRAINED = "the released lists train and validate on all 20 MR scans of MM-WHS"


def test_mr_volumes_are_test_cases_only_where_a_list_names_them(release: Path, tmp_path: Path) -> None:
    """`mri` in a name is MR too, as in the lists; and a modality without test volumes is told."""
    raw = shutil.copytree(release, tmp_path / "raw")
    volume = raw / "test" / "mr_test_0.npz"
    listed = preparation.find(raw)
    assert [m for m, _ in listed.volumes.values()] == ["ct", "mr"]
    assert listed.notes == [f"the volumes in mr_test_list must not be of MM-WHS, because {TRAINED}"]
    (raw / "test/mr_test_list").unlink()
    volume.rename(volume.with_name("mri_1007.npz"))
    found = preparation.find(raw)
    assert list(found.volumes) == ["ct_test_0"]
    left_out = f"not tested on, because {TRAINED}: mri_1007.npz; name other MR scans in a mr_test_list"
    assert found.notes == [left_out]
    volume.with_name("mri_1007.npz").unlink()
    assert preparation.find(raw).notes == [
        "no mr test volume, so mr will not be evaluated: expected .npz files, or image_ and gth_ NIfTI files, named "
        "with mr"
    ]


def test_every_problem_at_once_and_nothing_written(release: Path, tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    shutil.copytree(release, raw)
    lists = raw / "train&val"
    record = lists / "ct_train_tfs" / "ct_train_slice1.tfrecords"
    record.write_bytes(record.read_bytes()[:-50])
    (lists / "ct_train_list").write_text(
        (lists / "ct_train_list").read_text(encoding="utf-8") + "gone.tfrecords\n", encoding="utf-8"
    )
    (lists / "mr_train_list").rename(lists / "notes.md")
    (lists / "mr_val_list").unlink()
    (raw / "test" / "mr_test_0.npz").write_bytes(b"")
    (lists / "list_ct_val.txt").write_text("ct_train_slice0.tfrecords\n", encoding="utf-8")
    image, label = slices(1)
    write_record(lists / "ct_val_tfs" / "ct_val_slice0.tfrecords", image, np.zeros_like(label))
    problems = "\n".join(map(str, preparation.prepare_release(raw, out)))
    for line in (
        "ct_train_slice1.tfrecords: damaged or truncated record",
        "ct_train_list line 4: no file gone.tfrecords",
        "no list of mr training records: expected a text file like mr_train_list",
        "a validation list for ct only",
        "mr_test_0.npz: not a readable .npz file",
        "a second list of ct validation",
        "no ct validation record shows any structure",
    ):
        assert line in problems
    assert len(problems.splitlines()) == 7
    assert not out.exists()
    assert preparation.verify(release) == []
    assert preparation.verify(tmp_path / "nowhere")[0].problem == "No such file or directory"


def test_record_in_two_lists(release: Path, tmp_path: Path) -> None:
    shutil.copytree(release, tmp_path / "raw")
    (tmp_path / "raw/train&val/ct_val_list").write_text("ct_train_slice0.tfrecords\n", encoding="utf-8")
    (tmp_path / "raw/test/mr_test_list").write_text("mr_test_0.npz\nct_test_0.npz\n", encoding="utf-8")
    first, second = preparation.verify(tmp_path / "raw")
    assert "ct_val_list: ct_train_slice0.tfrecords is also in" in str(first) or "same case twice" in str(first)
    assert {"is also in", "the same case twice"} == {
        text for text in ("is also in", "the same case twice") for p in (first, second) if text in str(p)
    }


def test_other_data_sets_are_not_mixed(release: Path, described: Path, tmp_path: Path) -> None:
    shutil.copytree(described, tmp_path / "both")
    (tmp_path / "both" / "dataset.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match=r"holds dataset.json and released.json: expected one"):
        open_dataset(tmp_path / "both")
    (problem,) = preparation.prepare_release(release, tmp_path / "both")
    assert "holds another data set" in str(problem)
    with pytest.raises(InputError, match="no prepared data set"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("raw"), "not a description of released data"),
        (lambda content: content.update(label_5="maybe"), "label_5 is 'maybe'"),
        (lambda content: content["records"]["ct"]["train"].append("../x.tfrecords"), "expected a path below"),
        (lambda content: content["records"]["ct"]["train"].append("x.tfrecords"), "x.tfrecords: missing record"),
        (lambda content: content["cases"].update({"../a": {"modality": "ct"}}), "expected a plain name"),
        (lambda content: content["cases"].update({"a": {"modality": "ct"}}), "a.h5: missing case file"),
    ],
)
def test_description_that_does_not_fit(described: Path, tmp_path: Path, change, message: str) -> None:
    shutil.copytree(described, tmp_path / "data")
    content = json.loads((described / "released.json").read_text(encoding="utf-8"))
    change(content)
    (tmp_path / "data" / "released.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(InputError, match=message):
        open_dataset(tmp_path / "data")


# --- the programs ----------------------------------------------------------------------------------------------------


def train(data: Path, run_dir: Path, *more: str) -> Done:
    small = (f"--network={TOY2D}", "--preset=tiny", "--steps=2", "--batch_size=1")
    usual = ("--task=cardiac", "--recipe=released", f"--data_dir={data}", f"--run_dir={run_dir}")
    return program("experiments.train", *small, *usual, *more)  # a flag that is given twice has its last value


@pytest.fixture(scope="module")
def trained(described: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """(what the program said, run folder) of two training steps."""
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    done = train(described, run_dir)
    assert done.returncode == 0, done.stderr
    return done.stdout, run_dir


def test_trains_a_2d_network(trained: tuple[str, Path]) -> None:
    said, run_dir = trained
    assert "training records: 2 ct, 2 mr; split the released list files" in said
    last_step, validation = map(json.loads, (run_dir / "history.jsonl").read_text(encoding="utf-8").splitlines())
    assert last_step["step"] == validation["step"] == 2
    assert all(np.isfinite(value) for value in last_step.values())
    assert 0 <= validation["validation_mr_dice"] <= 1


@pytest.mark.filterwarnings("ignore:Even though the .tf.config:UserWarning")  # tf.data reads the records
def test_the_paper_s_2d_network_takes_a_step(described: Path, tmp_path: Path, eager: None) -> None:
    done = train(described, tmp_path / "run", "--network=dilated2d", "--steps=1", "--norm_batches=1")
    assert done.returncode == 0, done.stderr
    assert "finished 1 steps" in done.stdout


def test_evaluates_the_test_volumes(trained: tuple[str, Path]) -> None:
    run_dir = trained[1]
    done = program("experiments.evaluate", f"--run_dir={run_dir}")
    assert done.returncode == 0, done.stderr
    result = json.loads((run_dir / "evaluation_test.json").read_text(encoding="utf-8"))
    assert {c: case["spacing_mm"] for c, case in result["cases"].items()} == {
        "ct_test_0": [2.0, 1.5, 3.0],
        "mr_test_0": [1.0, 1.0, 1.0],
    }
    assert set(result["cases"]["mr_test_0"]["classes"]) == set(TASKS["cardiac"].class_names[1:])


def test_an_exported_model_is_evaluated_on_the_test_volumes(
    trained: tuple[str, Path], described: Path, tmp_path: Path
) -> None:
    """And on no record: those are single slices."""
    model = export_run(trained[1], tmp_path / "model", "last")
    done = program("experiments.evaluate", f"--model={model}", f"--data_dir={described}", f"--out={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out" / "evaluation_new.json").read_text(encoding="utf-8"))
    assert list(result["cases"]) == ["ct_test_0", "mr_test_0"]


def test_best_checkpoint_needs_validation_lists(described: Path, tmp_path: Path) -> None:
    shutil.copytree(described, tmp_path / "data")
    content = json.loads((described / "released.json").read_text(encoding="utf-8"))
    for parts in content["records"].values():
        parts["validation"] = []
    (tmp_path / "data" / "released.json").write_text(json.dumps(content), encoding="utf-8")
    done = train(tmp_path / "data", tmp_path / "run")
    assert done.returncode == 1 and not (tmp_path / "run").exists()
    (line,) = done.stderr.splitlines()
    assert "no validation part" in line and "--selection=last" in line


def test_a_start_from_another_model_compares_records_as_a_whole(described: Path) -> None:
    """They have one checksum for all: the same split is no leak, another split of the same records may be one."""
    dataset = open_dataset(described)
    assert isinstance(dataset, released_dataset.ReleasedDataset)
    of_records = {"cases": training_cases(dataset), "split_sha256": dataset.split_checksum}
    of_scans = {"cases": {"ct_1": {"part": "train", "source_sha256": "12", "image_sha256": "34"}}}
    for training in (of_records, of_scans, {}):
        check_not_seen(training, dataset, dataset.ids("validation"), ("train",))
        check_not_seen(training, dataset, dataset.ids("test"))
    with pytest.raises(InputError, match=r"2 of 2 cases were in the model's train part: .* \(there released records\)"):
        check_not_seen({**of_records, "split_sha256": "?"}, dataset, dataset.ids("validation"), ("train",))


def test_preparation_programs(release: Path, tmp_path: Path) -> None:
    done = program("data_prep.verify", "--source=released", f"--raw={release}")
    assert (done.returncode, done.stderr.count("error")) == (0, 0)
    folders = (f"--raw={release}", f"--out={tmp_path / 'out'}")
    done = program("data_prep.prepare", "--source=released", *folders, "--label_5=background")
    assert done.returncode == 0, done.stderr
    assert f"described in {tmp_path / 'out' / 'released.json'}" in done.stdout
    dataset = open_dataset(tmp_path / "out")
    assert isinstance(dataset, released_dataset.ReleasedDataset) and dataset.outside == "background"
    done = program("data_prep.prepare", "--source=released", *folders, "--split=seeded")
    assert done.returncode == 1 and "error: --split: the lists are the split: expected no such flag" in done.stderr
    done = program("data_prep.prepare", "--source=released", *folders, "--fold=0", f"--out={tmp_path}/{{fold}}")
    assert done.returncode == 1 and "error: --fold, {fold} in --out: the lists are the split" in done.stderr


@pytest.mark.slow
def test_3d_network_on_records_is_one_line(described: Path, tmp_path: Path) -> None:
    done = train(described, tmp_path / "run", "--network=unet3d")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and line.endswith("give --network=dilated2d")
    assert not (tmp_path / "run").exists()
