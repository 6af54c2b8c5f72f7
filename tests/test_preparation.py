"""From raw folders to a prepared data set: every source, resuming, and the programs."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
import raw_data
import SimpleITK as sitk
from programs import program
from raw_data import CT_AFFINE, CT_LABELS, ct, label_map, mr, snapshot, write_abdomen, write_mr, write_nifti
from recorded_runs import run_config

from data_prep import new_task, pipeline, qc
from data_prep.phantom import sets
from data_prep.sources import btcv, chaos, mmwhs
from data_prep.sources import csv_list as own
from data_prep.sources.raw_case import Problem, RawCase, remap, source_names
from data_prep.sources.table import SOURCES, RawOptions
from data_prep.splits import Choice, by_part
from data_prep.workers import Workers
from ummkd_tf.common.errors import InputError, Stopped
from ummkd_tf.data.cases import read_case
from ummkd_tf.data.dataset import Dataset
from ummkd_tf.runs.folder import check_run, start_run
from ummkd_tf.runs.loading import open_run_data, read_agreeing_runs
from ummkd_tf.scans import preprocessing
from ummkd_tf.scans.geometry import Grid, Volume, reorient, to_sitk
from ummkd_tf.scans.plausibility import implausible
from ummkd_tf.scans.reading import Scan, study_of
from ummkd_tf.tasks import Clip, get_task

ROOT = Path(__file__).resolve().parents[1]
TASK = get_task("abdomen")
MISSPELLED = dataclasses.replace(TASK, name="own", clip={**TASK.clip, "mri": Clip(0, 98, "percentile")})


def prepare(
    raw, out, source="abdomen", choice=None, workers=1, dry_run=False, overwrite=False, shard=None, other_folds=(),
    **options,
):  # fmt: skip
    """Notes of a preparation that finds no problem."""
    notes = []
    with Workers(workers) as pool:
        problems = pipeline.prepare_source(
            SOURCES[source],
            RawOptions(raw=raw, **options),
            out,
            choice=choice or Choice(),
            pool=pool,
            note=notes.append,
            dry_run=dry_run,
            overwrite=overwrite,
            shard=shard and pipeline.Shard.parse(shard),
            other_folds=other_folds,
        )
    assert problems == []
    return notes


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw")
    write_abdomen(folder)
    return folder


@pytest.fixture(scope="module")
def prepared(raw, tmp_path_factory):
    """(folder, notes) of a preparation; not to be changed."""
    folder = tmp_path_factory.mktemp("prepared") / "data"
    return folder, prepare(raw, folder)


@pytest.fixture(scope="module")
def cardiac_raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cardiac") / "raw"
    sets.write_cardiac(folder, num_ct=3, num_mr=3, seed=1, size=40)
    return folder


def times(out):
    return {path.stem: path.stat().st_mtime_ns for path in (out / "cases").iterdir()}


# --- raw cases -------------------------------------------------------------------------------------------------------


def test_remap_goes_by_value_and_not_by_rank():
    """Value 2 is class 2 although 1 is absent."""
    values = np.array([[[0, 6, 2, 13]]], np.int32)
    assert remap(values, btcv.CLASSES, Path("a")).tolist() == [[[0, 1, 2, 0]]]
    with pytest.raises(
        InputError, match=r"^a: unknown label value -5 \(1 voxels\), 300 \(2 voxels\): expected only 0–13"
    ):
        remap(np.array([300, 300, -5, 0]), btcv.CLASSES, Path("a"))


def test_label_values_of_the_data_sets():
    """docs/reproduction.md#chaos."""
    assert {v: c for v, c in btcv.CLASSES.items() if c} == {6: 1, 2: 2, 3: 3, 1: 4}
    assert sorted(btcv.CLASSES) == list(range(14))
    for value, c in {
        55: None,
        56: 1,
        70: 1,
        71: None,
        110: None,
        111: 2,
        135: 2,
        176: 3,
        200: 3,
        241: 4,
        255: 4,
    }.items():
        assert chaos.CLASSES.get(value) == c
    assert mmwhs.CLASSES == {0: 0, 205: 1, 420: 2, 500: 3, 820: 4, 550: 0, 600: 0, 850: 0}


def test_problem_is_one_line_of_three_parts():
    problem = Problem.of(
        InputError("2 NaN voxels (first: 7)", where=Path("a: b/b.nii"), fix="expected finite values; repair it")
    )
    assert (problem.file, problem.problem, problem.fix) == (
        "a: b/b.nii", "2 NaN voxels (first: 7)", "expected finite values; repair it"
    )  # fmt: skip
    assert str(problem) == "a: b/b.nii: 2 NaN voxels (first: 7): expected finite values; repair it"


@pytest.mark.parametrize("below", [".", "btcv", "RawData/Training", "Training", "btcv/RawData/Training"])
def test_btcv_trees(below, raw, tmp_path):
    (tmp_path / below).mkdir(parents=True, exist_ok=True)
    for name in ("img", "label"):
        (tmp_path / below / name).symlink_to(raw / "btcv" / name)
    assert [case.case_id for case in btcv.find(tmp_path).cases] == ["ct_0001", "ct_0002", "ct_0003"]


@pytest.mark.parametrize("below", [".", "MR", "Train_Sets/MR", "chaos/Train_Sets/MR", "chaos"])
def test_chaos_trees(below, raw, tmp_path):
    (tmp_path / below).mkdir(parents=True, exist_ok=True)
    for patient in ("1", "2", "3"):
        (tmp_path / below / patient).symlink_to(mr(raw, patient).parent)
    assert [case.case_id for case in chaos.find(tmp_path).cases] == ["mr_1", "mr_2", "mr_3"]


def test_cases_come_in_the_order_of_their_numbers(raw, tmp_path):
    for patient in ("10", "2", "1"):
        (tmp_path / patient).symlink_to(mr(raw, "1").parent)
    assert [case.case_id for case in chaos.find(tmp_path).cases] == ["mr_1", "mr_2", "mr_10"]


@pytest.mark.parametrize(
    ("source", "ours", "theirs"),
    [
        ("btcv", "btcv", "btcv/Abdomen/RawData/Training"),
        ("btcv", "btcv", "RawData/RawData/Training"),
        ("chaos", "chaos/Train_Sets/MR", "CHAOS_Train_Sets/Train_Sets/MR"),
        ("mmwhs", "ct_train", "ct_train/ct_train"),
    ],
)
def test_data_sets_are_found_as_downloads_are_unpacked(source, ours, theirs, raw, cardiac_raw, tmp_path):
    original = (cardiac_raw if source == "mmwhs" else raw) / ours
    for name in (theirs, f"__MACOSX/{theirs}"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).symlink_to(original)
    cases = SOURCES[source].find(RawOptions(raw=tmp_path)).cases
    assert [case.case_id for case in cases] == [
        case.case_id for case in SOURCES[source].find(RawOptions(raw=original)).cases
    ]
    assert all(case.image.is_relative_to(tmp_path / theirs) for case in cases) and len(cases) == 3


def test_a_second_data_set_below_the_folder_is_refused(raw, tmp_path):
    for name in ("first", "second"):
        shutil.copytree(raw / "btcv", tmp_path / name)
    (problem,) = SOURCES["btcv"].find(RawOptions(raw=tmp_path)).problems
    named = f"BTCV cases in 2 folders ({tmp_path}/first, {tmp_path}/second)"
    assert str(problem) == f"{tmp_path}: {named}: expected one; give its path"


def test_what_is_left_out_or_missing_is_told(raw, tmp_path):
    shutil.copytree(raw, tmp_path, dirs_exist_ok=True)
    for kind in ("img", "label"):
        path = ct(tmp_path, kind, "0002")
        path.rename(path.with_name(f"{kind}0002 (1).nii.gz"))
    found = SOURCES["btcv"].find(RawOptions(raw=tmp_path))
    assert [case.case_id for case in found.cases] == ["ct_0001", "ct_0003"] and not found.problems
    assert list(found.notes) == [
        *(f"{tmp_path}/btcv/{kind}: left out, because their names are not as expected: {kind}0002 (1).nii.gz"
          for kind in ("img", "label")),
        "ct: 2 of 30 known cases; not there: 0002, 0004, 0005, 0006, 0007, 0008, 0009, 0010, 0021, 0022 and 18 more",
    ]  # fmt: skip


def test_modalities_can_lie_apart(raw, tmp_path):
    prepare(None, tmp_path / "out", raw_ct=raw / "btcv", raw_mr=raw / "chaos")
    assert len(Dataset.load(tmp_path / "out").case_modality) == 6


# --- what is prepared ------------------------------------------------------------------------------------------------


def test_prepared_data_set(prepared):
    dataset = Dataset.load(prepared[0])
    assert dataset.task == TASK
    assert dataset.modalities == ("ct", "mr")
    assert sorted(dataset.case_modality) == ["ct_0001", "ct_0002", "ct_0003", "mr_1", "mr_2", "mr_3"]
    assert {part: len(ids) for part, ids in dataset.split.items()} == {"train": 2, "validation": 2, "test": 2}
    case = dataset.case("ct_0001")
    assert case.image.shape == (256, 256, 8)  # 6 slices of 10 mm


@pytest.mark.parametrize("case_id", ["ct_0001", "mr_1", "mr_2"])
def test_organs_are_on_their_sides_in_the_world(case_id, prepared):
    """World x grows towards the patient's right (RAS): liver and right kidney there, spleen and left kidney not."""
    case = read_case(prepared[0] / f"cases/{case_id}.h5")
    x = {c: case.grid.world(np.argwhere(case.label == c).mean(axis=0))[0] for c in range(1, 5)}
    assert x[1] > x[4]
    assert x[2] > x[3]
    rows = {c: np.argwhere(case.label == c).mean(axis=0) for c in range(1, 5)}
    assert rows[1][1] < rows[4][1]  # the patient's right is on the picture's left


def test_original_label_is_the_file_in_task_classes(prepared, raw):
    expected = np.zeros(14, np.uint8)
    expected[[6, 2, 3, 1]] = 1, 2, 3, 4
    stored = nib.load(ct(raw, "label")).get_fdata().astype(int)
    assert np.array_equal(
        read_case(prepared[0] / "cases/ct_0001.h5", original_label=True).original_label, expected[stored]
    )


def test_slice_order_does_not_matter(tmp_path):
    """Files from feet to head, from head to feet, and shuffled: the same patient."""
    orders = {"1": range(6), "2": range(6)[::-1], "3": [3, 0, 5, 1, 4, 2]}
    for patient, order in orders.items():
        write_mr(tmp_path / patient / "T2SPIR", 7, order)
    cases = {case.case_id: case for case in chaos.find(tmp_path).cases}
    image, label = raw_data.read(cases["mr_1"])
    assert set(np.unique(label.array)) == {0, 1, 2, 3, 4}
    for case_id in ("mr_2", "mr_3"):
        notes = []
        other_image, other_label = raw_data.read(cases[case_id], notes.append)
        assert np.array_equal(other_image.array, image.array)
        assert np.array_equal(other_label.array, label.array)
        np.testing.assert_allclose(other_image.affine, image.affine)
        assert len(notes) == 1


def test_file_numbers_without_padding(tmp_path):
    """2 comes before 10: twelve slices whose labels tell them apart by their height."""
    folder = tmp_path / "1/T2SPIR"
    for n in range(1, 13):
        pixels = np.full((4, 3), n, np.uint8)
        raw_data.write_slice(folder / f"DICOM_anon/{n}.dcm", pixels, (0, 0, 5.0 * n))
        raw_data.write_png(folder / f"Ground/{n}.png", np.full((4, 3), 55 + n, np.uint8))
    case = RawCase("mr_1", "mr", folder / "DICOM_anon", folder / "Ground", {55 + n: n for n in range(1, 13)},
                   chaos.read_grey_values)  # fmt: skip
    image, label = raw_data.read(case)
    assert np.array_equal(image.array, label.array)


def test_out_phase_files_have_other_numbers_than_their_labels(tmp_path):
    """DICOM 1, 3, … 11 with the labels of the in-phase files 2, 4, … 12; not with 2, 4, 6, 8, 10, 14."""
    folder = tmp_path / "T1DUAL"
    for n in range(1, 13, 2):
        raw_data.write_slice(folder / f"DICOM_anon/OutPhase/IMG-0004-{n:05d}.dcm", np.eye(4), (0, 0, 5.0 * n))
        raw_data.write_png(folder / f"Ground/IMG-0004-{n + 1:05d}.png", np.full((4, 4), 63, np.uint8))
    case = RawCase("mr_1", "mr", folder / "DICOM_anon/OutPhase", folder / "Ground", chaos.CLASSES,
                   chaos.read_grey_values)  # fmt: skip
    assert (case.read_label(None).array == 1).all()
    (folder / "Ground/IMG-0004-00012.png").rename(folder / "Ground/IMG-0004-00014.png")
    with pytest.raises(InputError, match=r"Ground: IMG-0004-00014.png stands where the label of IMG-0004-00011.dcm"):
        case.read_label(None)


def test_one_dicom_file_of_several_slices_is_not_chaos():
    volume = Volume(np.zeros((4, 4, 6), np.int16), np.eye(4))
    scan = Scan(volume, (Path("IMG-0004-00001.dcm"),), tuple(range(6)))
    case = RawCase("mr_1", "mr", Path("DICOM_anon"), Path("Ground"), chaos.CLASSES, chaos.read_grey_values)
    with pytest.raises(InputError, match=r"DICOM_anon: 1 DICOM file\(s\) with 6 slices: expected one file a slice"):
        case.read_label(scan)


def test_notes_tell_what_was_handled(prepared, raw, tmp_path):
    assert [note for note in prepared[1] if "mr_2" in note] == [
        "mr_2: files do not run from feet to head; slices are ordered by their position"
    ]
    assert [
        note for note in prepared[1] if "have the same label map, voxel for voxel: if they are of one patient" in note
    ]
    changed = shutil.copytree(raw, tmp_path / "raw")
    write_nifti(ct(changed, "label"), label_map(CT_LABELS), CT_AFFINE * (1 + 1e-6))
    write_nifti(ct(changed, "label", "0002"), label_map((6, 2, 0, 1)))
    shifted = CT_AFFINE.copy()
    shifted[1, 3] += 5  # of a voxel's 25 mm
    write_nifti(ct(changed, "label", "0003"), label_map(CT_LABELS), shifted)
    notes = prepare(changed, tmp_path / "out")
    assert "ct_0001: image and label headers differ by rounding; the image's is used" in notes
    assert "ct_0002: no left_kidney in the label map" in notes
    off = "0.20 of a voxel off the image's (position or direction off by 5.00 mm)"
    text = f"{ct(changed, 'label', '0003')}: its header lies up to {off}; the image's is used"
    assert f"ct_0003: {text}" in notes
    for case in raw_data.CT_IDS:
        write_nifti(ct(changed, "label", case), label_map((6, 2, 0, 1)))
    ending = "ct holds left_kidney, so no training would start: add scans that do, or leave the class out of the task"
    assert f"no training case of {ending}" in prepare(changed, tmp_path / "without")
    found, notes = SOURCES["abdomen"].find(RawOptions(raw=changed)), []
    with Workers(1) as pool:
        assert pipeline.verify(found.cases, TASK, pool, notes.append) == []
    assert notes[-1] == f"no scan of {ending}"
    assert read_case(tmp_path / "out/cases/ct_0003.h5").notes == (text,)
    case = read_case(tmp_path / "out/cases/ct_0002.h5")
    assert set(np.unique(case.label)) == {0, 1, 2, 4}


# --- cardiac and T1 --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modality", ["ct", "mr"])
def test_cardiac_phantom(modality, cardiac_raw):
    notes = []
    image, label = raw_data.read(mmwhs.find(cardiac_raw, modality).cases[0], notes.append)
    prepared = preprocessing.prepare_scan(image, label, get_task("cardiac"), modality)
    assert prepared.grid.axes == "ILP"
    assert prepared.grid.spacing_mm == pytest.approx((1, 1, 1))
    assert prepared.image.shape[:2] == (256, 256)
    assert set(np.unique(prepared.label)) == {0, 1, 2, 3, 4}
    assert [note.split(" (")[0] for note in notes] == (
        ["mr_1001: 5 voxels of 421, a known slip, read as 420"] if modality == "mr" else []
    )
    # The voxels that the scan covers have mean 0 and deviation 1, and the brightest 2 % have one value.
    corners = prepared.grid.index(prepared.original.world([(0, 0, 0), np.array(prepared.original.shape) - 1]))
    low, high = np.ceil(corners.min(axis=0)).clip(0), np.floor(corners.max(axis=0)) + 1
    values = prepared.image[tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))]
    assert values.mean() == pytest.approx(0, abs=0.05)
    assert values.std() == pytest.approx(1, abs=0.05)
    assert (values == values.max()).mean() == pytest.approx(0.02, abs=0.003)
    # In the logic of the group's sanity ranges (MR −1.8…4.4, CT −2.8…3.2): a few deviations each way, none far off.
    assert -4 < values.min() < -0.5
    assert 1 < values.max() < 6


def test_cardiac_set_is_found_whole(cardiac_raw, tmp_path):
    found = SOURCES["mmwhs"].find(RawOptions(raw=cardiac_raw))
    assert not found.problems
    assert [case.case_id for case in found.cases] == [f"{m}_100{n}" for m in ("ct", "mr") for n in (1, 2, 3)]
    for case in found.cases[::3]:
        assert not pipeline.visit(case, get_task("cardiac"), None).problems


def test_421_is_known_but_422_is_not(cardiac_raw, tmp_path):
    folder = shutil.copytree(cardiac_raw, tmp_path / "raw")
    path = folder / "mr_train/mr_train_1001_label.nii.gz"
    image = nib.load(path)
    array = np.asarray(image.dataobj)
    array[array == 421] = 422
    nib.save(nib.Nifti1Image(array, image.affine), path)
    case = mmwhs.find(folder, "mr").cases[0]
    with pytest.raises(InputError, match=r"mr_train_1001_label.nii.gz: unknown label value 422 \(5 voxels\)"):
        raw_data.read(case)


def test_t1_sequences(tmp_path):
    sets.write_abdomen(tmp_path / "raw", num_ct=0, num_mr=1, seed=2, size=32, t1=True)
    scans = {s: raw_data.read(chaos.find(tmp_path / "raw", s).cases[0]) for s in chaos.SEQUENCES}
    images, labels = ({s: scan[n].array for s, scan in scans.items()} for n in (0, 1))
    assert np.array_equal(labels["t1_in"], labels["t1_out"])  # one label map for both phases
    assert not np.array_equal(images["t1_in"], images["t1_out"])
    assert labels["t1_in"].shape != labels["t2spir"].shape
    for case in (images, labels):
        assert all(array.any() for array in case.values())


# --- resuming --------------------------------------------------------------------------------------------------------


def test_second_run_does_nothing(prepared, raw):
    before, contents = times(prepared[0]), snapshot(prepared[0])
    notes = prepare(raw, prepared[0])
    assert notes[-1] == f"0 cases prepared, 6 already up to date, in {prepared[0]}"
    assert times(prepared[0]) == before
    assert snapshot(prepared[0]) == contents


def test_only_what_changed_is_prepared_again(raw, prepared, tmp_path):
    changed, out = shutil.copytree(raw, tmp_path / "raw"), shutil.copytree(prepared[0], tmp_path / "out")
    before = times(out)
    write_nifti(ct(changed, "img", "0002"), raw_data.image(99))
    (out / "cases/mr_1.h5").write_bytes(b"damaged")
    (out / "cases/mr_3.h5").unlink()
    flip_a_byte(out / "cases/ct_0001.h5")
    assert prepare(changed, out)[-1].startswith("4 cases prepared, 2 already up to date")
    redone = {case for case, when in times(out).items() if before.get(case) != when}
    assert redone == {"ct_0001", "ct_0002", "mr_1", "mr_3"}
    for damaged in ("cases/ct_0001.h5", "cases/mr_1.h5"):
        assert snapshot(out)[damaged] == snapshot(prepared[0])[damaged]


def flip_a_byte(path):
    """Of the image's last slice; attributes, time stamp and size stay."""
    with h5py.File(path) as file:
        place = file["image"].id.get_chunk_info(file["image"].id.get_num_chunks() - 1).byte_offset
    when, content = path.stat().st_mtime_ns, bytearray(path.read_bytes())
    content[place + 20] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(when, when))


def test_another_recipe_prepares_everything_again(raw, prepared, tmp_path, monkeypatch):
    """And data of an earlier version start no run; runs that have begun with it go on, with no other data."""
    out, run_dir = shutil.copytree(prepared[0], tmp_path / "out"), tmp_path / "run"
    started = {"config": run_config(), "model": {"network": "unet3d", "setting": "ours", "modalities": ["ct", "mr"]}}
    record = start_run(run_dir, dataset=Dataset.load(out), **started)
    before = preprocessing.VERSION
    monkeypatch.setattr(preprocessing, "VERSION", before + 1)
    earlier = Dataset.load(out)
    assert earlier.preparation == record["preparation"] == before
    check_run(run_dir, dataset=earlier, **started)
    with pytest.raises(InputError, match=f"prepared by version {before} of the steps, and this program has version"):
        start_run(tmp_path / "new", dataset=earlier, **started)
    with pytest.raises(InputError, match=f"was trained on scans prepared by version {before} of the steps"):
        read_agreeing_runs([run_dir])
    assert prepare(raw, out)[-1].startswith("6 cases prepared, 0 already up to date")
    with pytest.raises(InputError, match=f"by version {before + 1} of the steps, and the run was started on"):
        check_run(run_dir, dataset=Dataset.load(out), **started)
    start_run(tmp_path / "new", dataset=Dataset.load(out), **started)


def test_a_case_id_that_stands_for_another_scan_is_told(raw, prepared, tmp_path):
    """Two CT exchange their names between training and test: nothing goes on with a run that has seen one of them."""
    run_dir, dataset = tmp_path / "run", Dataset.load(prepared[0])
    train, test = (dataset.ids(part, "ct")[0] for part in ("train", "test"))
    model = {"network": "unet3d", "setting": "ours", "modalities": ["ct", "mr"]}
    record = start_run(run_dir, config=run_config(), model=model, dataset=dataset)
    changed, out = shutil.copytree(raw, tmp_path / "raw"), shutil.copytree(prepared[0], tmp_path / "out")
    for folder in ("img", "label"):
        one, other = (ct(changed, folder, case_id.removeprefix("ct_")) for case_id in (train, test))
        contents = one.read_bytes(), other.read_bytes()
        other.write_bytes(contents[0])
        one.write_bytes(contents[1])
    assert prepare(changed, out)[-1].startswith("2 cases prepared, 4 already up to date")
    exchanged = Dataset.load(out)
    assert exchanged.split_checksum == record["split_sha256"]
    message = f"{min(train, test)}, {max(train, test)}: not the same scan as when the run was started"
    with pytest.raises(InputError, match=message):
        check_run(run_dir, config=run_config(), model=model, dataset=exchanged)
    with pytest.raises(InputError, match=message):
        open_run_data(record, out)
    assert open_run_data(record).directory == prepared[0]


def test_interrupted_run_leaves_whole_cases_and_goes_on(raw, prepared, tmp_path, monkeypatch):
    out, real, done = tmp_path / "out", pipeline.write_case, []

    def interrupted(path, *args, **kwargs):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(path)
        real(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "write_case", interrupted)
        with pytest.raises(
            Stopped, match=r"stopped by SIGINT: finished cases are kept in .*out; the same command goes"
        ):
            prepare(raw, out)
    assert [path.name for path in sorted((out / pipeline.STAGING).iterdir())] == ["ct_0001.h5", "ct_0002.h5"]
    assert not (out / "dataset.json").exists()
    (out / pipeline.STAGING / ".writing-x").mkdir()  # what a killed process leaves behind
    (out / pipeline.STAGING / ".writing-x/ct_0003.h5").write_bytes(b"half")
    assert prepare(raw, out)[-1].startswith("4 cases prepared, 2 already up to date")
    assert snapshot(out) == snapshot(prepared[0])


def test_a_run_killed_while_it_replaces_cases_leaves_no_data_set(raw, prepared, tmp_path, monkeypatch):
    changed, out = shutil.copytree(raw, tmp_path / "raw"), shutil.copytree(prepared[0], tmp_path / "out")
    for number in ("0001", "0002"):
        write_nifti(ct(changed, "img", number), raw_data.image(90 + int(number)))
    real = Path.replace

    def killed(path, target):
        if path.name == "ct_0002.h5" and path.parent.name == pipeline.STAGING:
            raise KeyboardInterrupt
        return real(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(changed, out)
    with pytest.raises(InputError, match=r"dataset\.json: no prepared data set"):
        Dataset.load(out)
    assert prepare(changed, out)[-1].startswith("0 cases prepared, 6 already up to date")
    assert not (out / pipeline.STAGING).exists()
    before, after = (Dataset.load(folder).checksums for folder in (prepared[0], out))
    assert {case_id for case_id in after if after[case_id] != before[case_id]} == {"ct_0001", "ct_0002"}


def test_what_an_interrupted_run_made_of_other_files_is_not_taken_over(raw, prepared, tmp_path):
    """A scan is replaced, its preparation stops, the scan is put back: the data set's own case is the right one."""
    out, changed = shutil.copytree(prepared[0], tmp_path / "out"), shutil.copytree(raw, tmp_path / "raw")
    write_nifti(ct(changed, "img", "0002"), raw_data.image(99))
    case = SOURCES["btcv"].find(RawOptions(raw=changed)).cases[1]
    assert pipeline.visit(case, TASK, out).put_aside and (out / pipeline.STAGING / "ct_0002.h5").exists()
    assert prepare(raw, out)[-1].startswith("0 cases prepared, 6 already up to date")
    assert snapshot(out) == snapshot(prepared[0])


def test_voxels_beside_their_header_are_source_files(tmp_path):
    """MetaImage's `.mhd` names its `.raw`: another `.raw` is another scan."""
    for values in (raw_data.image(1), raw_data.image(2)):
        sitk.WriteImage(to_sitk(values, CT_AFFINE), str(tmp_path / "a.mhd"))
        case = RawCase("a", "ct", tmp_path / "a.mhd", tmp_path / "a.mhd", {})
        assert case.files[:2] == (tmp_path / "a.mhd", tmp_path / "a.raw")


def test_workers_make_no_difference(raw, prepared, tmp_path):
    prepare(raw, tmp_path / "out", workers=2)
    assert snapshot(tmp_path / "out") == snapshot(prepared[0])


def test_shards_make_no_difference(raw, prepared, tmp_path):
    out = tmp_path / "out"
    for shard in ("3/3", "1/3", "2/3"):
        assert prepare(raw, out, shard=shard)[-1].startswith(f"shard {shard}: 2 cases prepared, 0 already up to date")
    assert [path.name for path in out.iterdir()] == [pipeline.STAGING]
    assert prepare(raw, out)[-1].startswith("0 cases prepared, 6 already up to date")
    assert snapshot(out) == snapshot(prepared[0])
    assert prepare(raw, out, shard="2/3")[-1].startswith("shard 2/3: 0 cases prepared, 2 already up to date")


def test_a_shard_with_a_problem_leaves_the_others(raw, tmp_path):
    changed, out = shutil.copytree(raw, tmp_path / "raw"), tmp_path / "out"
    ct(changed, "img", "0002").write_bytes(b"damaged")
    for n, problems in ((1, 0), (2, 1)):
        with Workers(1) as pool:
            found = pipeline.prepare_source(
                SOURCES["abdomen"], RawOptions(raw=changed), out, choice=Choice(), pool=pool, note=str,
                shard=pipeline.Shard(n, 3),
            )  # fmt: skip
        assert len(found) == problems
    assert [path.name for path in sorted((out / pipeline.STAGING).iterdir())] == ["ct_0001.h5", "mr_1.h5", "mr_2.h5"]


@pytest.mark.parametrize("text", ["4/3", "0/3", "1", "a/b", "1/0", ""])
def test_a_shard_that_is_none(text):
    with pytest.raises(InputError, match=f"^--shard={text}: expected NUMBER/COUNT with 1 <= NUMBER <= COUNT"):
        pipeline.Shard.parse(text)


def end(item):
    if item == 2:
        os.kill(os.getpid(), signal.SIGABRT)
    time.sleep(5)


def test_how_a_worker_ended_is_told_and_not_guessed():
    """Item 2 ends its process, and with it the other, which is asleep. Other ends in words: test_scan_kinds.py."""
    aborted = r"2: the worker process was ended by signal 6 \(Aborted\) during 'verify': finished cases are kept"
    with Workers(2) as pool, pytest.raises(InputError, match=f"^{aborted}"):
        list(pool.each(end, [1, 2], "verify"))


def test_dry_run_writes_nothing(raw, tmp_path):
    notes = prepare(raw, tmp_path / "out", dry_run=True)
    assert f"ct_0001: would be prepared from {ct(raw, 'img')}" in notes
    assert list(tmp_path.iterdir()) == []


def test_excluded_and_unlisted_cases(raw, prepared, tmp_path):
    out, more = shutil.copytree(prepared[0], tmp_path / "out"), shutil.copytree(raw, tmp_path / "raw")
    write_mr(mr(more, "5"), 55, range(6))
    notes = prepare(more, out, choice=Choice(excluded=frozenset({"mr_3"})))
    assert f"in {out / 'cases'} from an earlier run, and no longer part of the data set: mr_3" in notes
    assert "not in the split and left out: mr_3" in notes
    assert sorted(c for c in Dataset.load(out).case_modality if c.startswith("mr")) == ["mr_1", "mr_2", "mr_5"]


# --- own data --------------------------------------------------------------------------------------------------------


def write_own(folder, split=""):
    """Three modalities in four formats, one label map in another axis order; label values 6 2 3 1."""
    folder.mkdir(exist_ok=True)
    rows = []
    label = label_map(CT_LABELS)
    for n in range(9):
        modality, image = ("ct", "t1", "t2")[n % 3], raw_data.image(n)
        name, stored = f"{modality}_{n}", Volume(label, CT_AFFINE)
        if modality == "ct":
            write_nifti(folder / f"{name}.nii.gz", image)
            file, stored = f"{name}.nii.gz", reorient(stored, "PSR")
        elif modality == "t1":
            file = f"{name}{('.nrrd', '.mha', '.nrrd')[n // 3]}"
            sitk.WriteImage(to_sitk(image, CT_AFFINE), str(folder / file))
        else:  # the MR of `raw_data` lies elsewhere than its CT
            file = f"{name}_dicom"
            for k in range(6):
                place = (-130.0, -140.0, raw_data.z_mm(k))
                raw_data.write_slice(folder / file / f"{k}.dcm", image[:, :, k], place, study=f"1.2.3.4.{n}")
            stored = Volume(label, np.array([[-20.0, 0, 0, 130], [0, -25, 0, 140], [0, 0, 10, -25], [0, 0, 0, 1]]))
        write_nifti(folder / f"{name}_label.nii.gz", stored.array, stored.affine)
        part = ("train", "validation", "test")[n // 3] if split else ""
        rows.append(f"{name},{modality},{file},{name}_label.nii.gz,{part}")
    (folder / "own.csv").write_text("\n".join(["case,modality,image,label,split", *rows]), encoding="utf-8")
    (folder / "map.json").write_text(
        json.dumps({"6": "liver", "2": 2, "3": "left_kidney", "1": "spleen"}), encoding="utf-8"
    )
    return {"csv": folder / "own.csv", "label_map": folder / "map.json", "task": "abdomen"}


def test_own_data_of_three_modalities(tmp_path):
    notes = prepare(None, tmp_path / "out", "csv", **write_own(tmp_path / "own", split="given"))
    assert "ct_0: the label's axes are PSR, the image's LAS; the label is turned" in notes
    dataset = Dataset.load(tmp_path / "out")
    assert dataset.modalities == ("ct", "t1", "t2")
    assert dataset.split["test"] == ("ct_6", "t1_7", "t2_8")
    assert dataset.split_name == "the CSV's split column"
    expected = np.zeros(7, np.uint8)
    expected[[6, 2, 3, 1]] = 1, 2, 3, 4
    for case_id in dataset.case_modality:
        assert np.array_equal(
            read_case(dataset.path(case_id), original_label=True).original_label, expected[label_map(CT_LABELS)]
        )


def test_own_data_without_a_split_is_split_by_the_seed(tmp_path):
    prepare(None, tmp_path / "out", "csv", Choice(seed=4), **write_own(tmp_path / "own"))
    dataset = Dataset.load(tmp_path / "out")
    assert dataset.split_name == "seeded 70/10/20, seed 4"
    assert {part: len(ids) for part, ids in dataset.split.items()} == {"train": 3, "validation": 3, "test": 3}


def test_own_data_with_a_patient_column(tmp_path):
    """All scans of a patient stay together, and so do those that have one label map."""
    options = write_own(tmp_path / "own", split="given")
    header, *rows = options["csv"].read_text(encoding="utf-8").split("\n")

    def split(patients, choice=Choice(), rows=rows):  # noqa: B008, immutable
        lines = [header + ",patient", *(f"{row},{patient}" for row, patient in zip(rows, patients, strict=True))]
        options["csv"].write_text("\n".join(lines), encoding="utf-8")
        found = own.find(options["csv"], TASK, options["label_map"])
        assert [str(problem) for problem in found.problems] == []
        return by_part(pipeline.split_cases(SOURCES["csv"], found, choice)[1])

    assert split("AAABBBCCC")["test"] == ["ct_6", "t1_7", "t2_8"]  # as the split column has it
    refused = r"patient 'B' is in train \(t2_2\) and in validation \(ct_3\): expected all scans of a patient"
    with pytest.raises(InputError, match=refused):
        split("AABBBBCCC")
    patients = [["ct_0", "t1_7", "t2_5"], ["ct_3", "t1_1", "t2_8"], ["ct_6", "t1_4", "t2_2"]]
    assert sorted(split("ABCBCACAB", Choice("seeded")).values()) == patients
    assert sorted(split("ABCBCACAB", Choice("k_fold", folds=3)).values()) == patients
    with pytest.raises(
        InputError, match=r"t2_5_label.*: is the label map of t2_5 \(validation\) and of t2_8 \(test\), so"
    ):
        split("AAABBBCCC", rows=[*rows[:8], rows[8].replace("t2_8_label", "t2_5_label")])
    with pytest.raises(AssertionError, match="no patient for t2_8: fill the patient column in every row, or leave it"):
        split([*"AAABBBCC", ""])


def test_scans_of_one_study_or_with_one_label_map_are_in_one_part(tmp_path):
    """A DICOM study is of one patient, whom training would have seen; held-out cases are tested, too."""
    folder = tmp_path / "own"
    options = write_own(folder, split="given")
    text = options["csv"].read_text(encoding="utf-8")
    header, *rows = text.split("\n")

    def split(lines, **choice):
        options["csv"].write_text("\n".join(lines), encoding="utf-8")
        found = own.find(options["csv"], TASK, options["label_map"])
        assert [str(problem) for problem in found.problems] == []
        return pipeline.split_cases(SOURCES["csv"], found, Choice(**choice))[1]

    # A second scan of t2_8, which is a test case.
    held_out = frozenset({"t2_9"})
    lines = [header, *rows, "t2_9,t2,t2_8_dicom,t2_8_label.nii.gz,test"]
    assert split(lines)["t2"]["test"] == ["t2_8", "t2_9"]
    told = r"t2_8_label\.nii\.gz: is the label map of t2_8 \(test\) and of t2_9 \(--hold_out_cases\), so both"
    with pytest.raises(InputError, match=told):
        split(lines, held_out=held_out)
    shutil.copy(folder / "t2_8_label.nii.gz", folder / "t2_9_label.nii.gz")
    told = r"t2_8_dicom: is of the same DICOM study \(StudyInstanceUID\) as t2_8: t2_8 is in test, t2_9 in --hold_out"
    with pytest.raises(InputError, match=told):
        split([*lines[:-1], lines[-1].replace("t2_8_label", "t2_9_label")], held_out=held_out)

    assert split(text.split("\n"))["t2"] == {"train": ["t2_2"], "validation": ["t2_5"], "test": ["t2_8"]}
    for file in (folder / "t2_5_dicom").iterdir():
        file.write_bytes(file.read_bytes().replace(b"1.2.3.4.5", b"1.2.3.4.2"))
    told = "as t2_2: t2_2 is in train, t2_5 in validation: expected one patient's scans in one part of the split (the"
    with pytest.raises(InputError, match=re.escape(told)):
        split(text.split("\n"))
    # Some anonymizers write one study into all files: then the patients that the user names count.
    named = [f"{header},patient", *(f"{row},{patient}" for row, patient in zip(rows, "ABCDEFGHI", strict=True))]
    assert split(named)["t2"]["validation"] == ["t2_5"]


def test_study_of_a_scan(tmp_path):
    """Of the first file that has one; whatever is wrong with a scan is for its reader to say."""
    raw_data.write_slice(tmp_path / "scan/2.dcm", np.eye(4), (0, 0, 0), study="1.2.3.7")
    for name in ("1.txt", "3.dcm"):
        (tmp_path / "scan" / name).write_text("no DICOM file", encoding="utf-8")
    write_nifti(tmp_path / "scan.nii.gz", raw_data.image(0))
    found = [study_of(tmp_path / name) for name in ("scan", "scan/2.dcm", "scan/3.dcm", "scan.nii.gz", "none.dcm")]
    assert found == ["1.2.3.7", "1.2.3.7", "", "", ""]


def test_upper_case_modalities_are_taken_as_lower_case(tmp_path):
    options = write_own(tmp_path / "own", split="given")
    text = options["csv"].read_text(encoding="utf-8")
    options["csv"].write_text(text.replace(",ct,", ",CT,").replace(",t1,", ",T1,"), encoding="utf-8")
    notes = prepare(None, tmp_path / "out", "csv", dry_run=True, **options)
    assert notes[:2] == [
        f"{options['csv']}: modality CT is taken as ct",
        f"{options['csv']}: modality T1 is taken as t1",
    ]
    assert sum("would be prepared" in note for note in notes) == 9


@pytest.mark.parametrize(
    ("task", "modalities", "expected"),
    [
        (TASK, ["ct", "mr"], []),
        (TASK, ["mr"], []),
        (get_task("cardiac"), ["ct", "mr"], []),
        (
            TASK,
            ["ct_portal", "mr"],
            ["ct_portal, a CT by its name, is clipped to the percentiles 0 to 99.5 of each scan"],
        ),
        (MISSPELLED, ["ct", "mr"], ["task own has an intensity range for mri, which the data lack, and none for mr:"]),
        (MISSPELLED, ["ct", "mri"], []),
    ],
)
def test_modalities_that_take_the_default_range_unawares_are_noted(task, modalities, expected):
    notes = []
    pipeline._note_ranges(task, modalities, notes.append)
    assert [note[: len(start)] for note, start in zip(notes, expected, strict=True)] == expected


def test_another_sequence_is_another_data_set():
    """The usual one is not named, so that data sets of earlier versions stay valid."""
    told = {s: SOURCES["abdomen"].described(RawOptions(sequence=s), []) for s in chaos.SEQUENCES}
    assert told == {"t2spir": "abdomen", "t1_in": "abdomen t1_in", "t1_out": "abdomen t1_out"}
    assert SOURCES["btcv"].described(RawOptions(sequence="t1_in"), []) == "btcv"


def test_another_data_set_is_replaced_only_when_asked(raw, prepared, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(prepared[0], out)
    before = (out / "dataset.json").read_bytes()
    own = write_own(tmp_path / "own", split="given")
    with pytest.raises(InputError, match=r"out: holds another data set \(source is abdomen, now csv; modalities is .*"):
        prepare(None, out, "csv", **own)
    assert (out / "dataset.json").read_bytes() == before
    prepare(None, out, "csv", overwrite=True, **own)
    assert Dataset.load(out).modalities == ("ct", "t1", "t2")
    # Two studies of own data have one source, csv, and often modalities and a task file of one name.
    text = own["csv"].read_text(encoding="utf-8")
    head, *rows = text.splitlines()
    own["csv"].write_text("\n".join([head, *("new_" + row for row in rows)]) + "\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"holds another data set \(no case is the same\)"):
        prepare(None, out, "csv", **own)
    own["csv"].write_text(text, encoding="utf-8")
    content = json.loads((out / "dataset.json").read_text(encoding="utf-8"))
    names = content["task"]["class_names"]
    content["task"]["class_names"] = [names[0], *names[:0:-1]]
    (out / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(InputError, match=r"holds another data set \(classes is .*, now "):
        prepare(None, out, "csv", **own)


def test_absolute_and_relative_paths_may_stand_in_one_row(tmp_path, monkeypatch):
    """Names of source files are the same in whichever way they are given."""
    monkeypatch.chdir(tmp_path)
    files = [Path("img/a.nii"), Path("label/a.nii")]
    for given in (files, [path.absolute() for path in files], [files[0].absolute(), files[1]]):
        assert list(source_names(given)) == ["img/a.nii", "label/a.nii"]


def test_another_split_in_the_same_folder_is_told(prepared, raw, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(prepared[0], out)
    started = {"config": run_config(), "model": {"network": "unet3d", "setting": "ours", "modalities": ["ct", "mr"]}}
    first = Dataset.load(out)
    start_run(tmp_path / "run", dataset=first, **started)
    *_, told, _ = prepare(raw, out, choice=Choice("seeded", seed=1))
    assert told == f"the split was {first.split_name}, and is {Dataset.load(out).split_name} now: " + (
        "runs trained on the earlier one need it back"
    )
    with pytest.raises(InputError, match=r"split is 'seeded .*, seed 1' \(\w{8}\), was 'seeded .*, seed 0' \(\w{8}\)"):
        start_run(tmp_path / "run", dataset=Dataset.load(out), **started)
    assert not any("the split was" in note for note in prepare(raw, out, choice=Choice("seeded", seed=1)))


def test_a_corrected_modality_prepares_again(tmp_path):
    """Intensities were limited as the wrong modality's."""
    options = write_own(tmp_path / "own", split="given")
    right = options["csv"].read_text(encoding="utf-8")
    exchanged = right.replace("t1_4,t1,", "t1_4,t2,").replace("t2_5,t2,", "t2_5,t1,")
    options["csv"].write_text(exchanged, encoding="utf-8")
    prepare(None, tmp_path / "out", "csv", **options)
    options["csv"].write_text(right, encoding="utf-8")
    assert prepare(None, tmp_path / "out", "csv", **options)[-1].startswith("2 cases prepared, 7 already up to date")
    assert Dataset.load(tmp_path / "out").case("t1_4").modality == "t1"


def test_verify_refuses_a_split_that_prepare_refuses(tmp_path):
    options = write_own(tmp_path / "own", split="given")
    text = options["csv"].read_text(encoding="utf-8")
    options["csv"].write_text(text.replace("validation", "train"), encoding="utf-8")
    flags = [f"--{name}={value}" for name, value in options.items()]
    done = program("data_prep.verify", "--source=csv", *flags)
    message = "the split (the CSV's split column): the validation part has no ct case: expected at least one"
    assert done.returncode == 1 and message in done.stderr
    with pytest.raises(InputError, match=re.escape(message)):
        prepare(None, tmp_path / "out", "csv", **options)
    rows = [line.rpartition(",")[0] for line in text.splitlines()]
    options["csv"].write_text("\n".join(rows), encoding="utf-8")  # without the column, prepare draws a split
    done = program("data_prep.verify", "--source=csv", *flags)
    assert done.returncode == 0 and "9 cases, no problem" in done.stdout, done.stderr


def test_dicom_files_of_another_machine_than_the_row_says_are_a_problem(tmp_path):
    """An MR in a row of CT would be clipped, and trained on, as a CT; a name that says no machine is the user's own."""
    options = write_own(tmp_path / "own")
    (case,) = (c for c in own.find(options["csv"], TASK, options["label_map"]).cases if c.case_id == "t2_5")
    told = f"{case.image}: the DICOM files' Modality is MR: expected CT for modality 'ct'; give the scan's own modality"
    for modality, expected in {"ct": [told], "t1": [], "venous": []}.items():
        said = dataclasses.replace(case, modality=modality)
        for found in (pipeline.visit(said, TASK, None), new_task.measure(said)):
            assert [str(problem) for problem in found.problems] == expected


def test_a_list_without_scans_is_told(tmp_path):
    (tmp_path / "own.csv").write_text("case,modality,image,label,split\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"own\.csv: lists no scan: expected one a line under case,modality,"):
        own.find(tmp_path / "own.csv", TASK)


def test_another_label_map_prepares_again(tmp_path):
    """And nothing goes on with a run that was started on the earlier labels."""
    options, run_dir = write_own(tmp_path / "own"), tmp_path / "run"
    prepare(None, tmp_path / "out", "csv", **options)
    model = {"network": "unet3d", "setting": "ours", "modalities": ["ct", "t1", "t2"]}
    started = {"config": run_config(), "model": model}
    record = start_run(run_dir, dataset=Dataset.load(tmp_path / "out"), **started)
    check_run(run_dir, dataset=Dataset.load(tmp_path / "out"), **started)
    options["label_map"].write_text(
        json.dumps({"6": "liver", "2": 0, "3": "left_kidney", "1": "spleen"}), encoding="utf-8"
    )
    assert prepare(None, tmp_path / "out", "csv", **options)[-1].startswith("9 cases prepared, 0 already up to date")
    assert not (read_case(tmp_path / "out/cases/ct_0.h5", original_label=True).original_label == 2).any()
    other = Dataset.load(tmp_path / "out")
    message = r"ct_0, ct_3, ct_6, t1_1, t1_4 and \d more: not the same label map as when the run was started"
    with pytest.raises(InputError, match=message):
        check_run(run_dir, dataset=other, **started)
    with pytest.raises(InputError, match=message):
        open_run_data(record)
    del record["labels"]  # of an earlier version, which did not tell
    assert open_run_data(record).checksums == other.checksums


def test_empty_rows_of_a_spreadsheet_are_no_rows(tmp_path):
    options = write_own(tmp_path / "own")
    rows = options["csv"].read_text(encoding="utf-8").rstrip("\n").split("\n")
    options["csv"].write_text("\n".join([*rows[:2], ",,,,", " , ,, ,", *rows[2:], ",,,,,,,", ""]), encoding="utf-8")
    found = own.find(options["csv"], TASK, options["label_map"])
    assert (list(found.problems), len(found.cases)) == ([], len(rows) - 1)


def test_cases_of_one_name_on_some_disks_are_a_problem(tmp_path):
    options = write_own(tmp_path / "own")
    first, *rows = options["csv"].read_text(encoding="utf-8").rstrip("\n").split("\n")
    case_id, _, rest = rows[0].partition(",")
    options["csv"].write_text("\n".join([first, *rows, f"{case_id.upper()},{rest}"]), encoding="utf-8")
    (problem,) = own.find(options["csv"], TASK, options["label_map"]).problems
    line = f"line {len(rows) + 2}: case {case_id.upper()}, which on some disks is the same file name as {case_id}: "
    assert line in str(problem)


def test_label_map_by_name_index_and_default(tmp_path):
    (tmp_path / "map.json").write_text('{"0": "background", "7": "liver", "9": 0, "300": 4}', encoding="utf-8")
    assert own.read_label_map(tmp_path / "map.json", TASK) == {0: 0, 7: 1, 9: 0, 300: 4}
    assert own.read_label_map(None, TASK) == {0: 0, 1: 1, 2: 2, 3: 3, 4: 4}


def test_csv_as_spreadsheets_save_it(raw, tmp_path):
    """Byte-order mark, Windows line ends, blanks around the fields, another order of the columns."""
    lines = ["modality,case,image,label,split"]
    for modality in ("ct", "t1"):
        for n in raw_data.CT_IDS:
            lines.append(f"{modality}, {modality}_{n}, {ct(raw, 'img', n)} ,{ct(raw, 'label', n)},")
    (tmp_path / "own.csv").write_bytes("\r\n".join(lines).encode("utf-8-sig"))
    (tmp_path / "map.json").write_text(json.dumps({"6": 1, "2": 2, "3": 3, "1": 4}), encoding="utf-8")
    found = own.find(tmp_path / "own.csv", TASK, tmp_path / "map.json")
    assert not found.problems
    assert [case.case_id for case in found.cases] == [f"{m}_{n}" for m in ("ct", "t1") for n in raw_data.CT_IDS]
    assert set(np.unique(raw_data.read(found.cases[0])[1].array)) == {0, 1, 2, 3, 4}


# --- programs --------------------------------------------------------------------------------------------------------


def run(program, *flags):
    return subprocess.run(
        [sys.executable, "-m", f"data_prep.{program}", *flags],
        cwd=ROOT, capture_output=True, encoding="utf-8", check=False,
    )  # fmt: skip


@pytest.mark.parametrize("program", ["prepare", "verify"])
def test_help_teaches(program):
    done = run(program, "--help")
    for word in ("python -m data_prep.", "--source: <btcv|chaos|abdomen|mmwhs|csv", "--workers", "--label_map"):
        assert word in done.stdout


def test_help_does_not_load_tensorflow():
    code = "import sys, data_prep.prepare; assert 'tensorflow' not in sys.modules and 'keras' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_programs(raw, prepared, tmp_path):
    done = program("data_prep.verify", "--source=abdomen", f"--raw={raw}", "--workers=1")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "6 cases, no problem; 6 note(s) above to look at")
    out = tmp_path / "out"
    done = run("prepare", "--source=abdomen", f"--raw={raw}", f"--out={out}", "--workers=1")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (
        0, f"note: 6 cases prepared, 0 already up to date, in {out}"
    )  # fmt: skip
    assert snapshot(out) == snapshot(prepared[0])
    done = program(
        "data_prep.prepare", "--source=abdomen", f"--raw={raw}", f"--out={out}", "--split=mmwhs_sifa", "--workers=1"
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: 40 absent case(s) in the split")
    done = program("data_prep.prepare", "--source=brain", f"--raw={raw}", f"--out={out}")
    assert done.returncode == 1
    assert "btcv|chaos|abdomen" in done.stderr


def test_all_folds_with_one_command(raw, tmp_path):
    """Each fold is what it would be alone, and every case is prepared once: the folds hold one file under two names."""
    every = ("--source=abdomen", f"--raw={raw}", "--split=k_fold", "--folds=3", "--workers=1")
    done = program("data_prep.prepare", *every, f"--out={tmp_path}/fold{{fold}}")
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stdout.splitlines() if "up to date" in line]
    assert said == [
        f"note: 6 cases prepared, 0 already up to date, in {tmp_path}/fold0",
        f"note: 0 cases prepared, 6 already up to date, in {tmp_path}/fold1",
        f"note: 0 cases prepared, 6 already up to date, in {tmp_path}/fold2",
    ]
    tested = [set(Dataset.load(tmp_path / f"fold{fold}").split["test"]) for fold in range(3)]
    assert [len(cases) for cases in tested] == [2, 2, 2] and len(set.union(*tested)) == 6
    first, last = tmp_path / "fold0", tmp_path / "fold2"
    assert (first / "cases/mr_1.h5").samefile(last / "cases/mr_1.h5")
    alone = program("data_prep.prepare", *every, "--fold=2", f"--out={tmp_path}/alone{{fold}}")
    assert alone.returncode == 0 and snapshot(tmp_path / "alone2") == snapshot(last)


def test_folds_share_no_change(raw, prepared, tmp_path, monkeypatch):
    """A scan that is replaced is prepared anew in one fold and not in the other, here without hard links."""
    changed, other, before = shutil.copytree(raw, tmp_path / "raw"), tmp_path / "other", snapshot(prepared[0])
    write_nifti(ct(changed, "img", "0002"), raw_data.image(99))

    def no_links(*_):
        raise OSError

    monkeypatch.setattr(pipeline.os, "link", no_links)
    assert prepare(changed, other, other_folds=[prepared[0]])[-1].startswith("1 cases prepared, 5 already up to date")
    assert snapshot(prepared[0]) == before
    theirs, ours = (Dataset.load(folder).checksums for folder in (prepared[0], other))
    assert {case_id for case_id in ours if ours[case_id] != theirs[case_id]} == {"ct_0002"}


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ((), "--split=seeded: has no folds: expected k_fold or a file of folds where --out holds {fold}"),
        (("--split=mmwhs_sifa",), "--split=mmwhs_sifa: has no folds"),
        (("--split=k_fold", "--folds=0"), "fold 0 of 0: expected at least 3 folds"),
        (("--split=k_fold", "--shard=1/2"), "--shard: goes with one fold: expected --fold=0 beside it"),
    ],
)
def test_folds_that_are_none(flags, told, raw, tmp_path):
    done = program("data_prep.prepare", "--source=abdomen", f"--raw={raw}", f"--out={tmp_path}/{{fold}}", *flags)
    assert done.returncode == 1 and done.stderr.startswith(f"error: {told}"), done.stderr
    assert not any(tmp_path.iterdir())


# --- provenance and the outlier --------------------------------------------------------------------------------------


def test_held_out_case_is_prepared_in_no_part_and_the_source_is_told(raw, tmp_path):
    """Table VI's outlier can be evaluated, but never trained on; a phantom says that it is one."""
    more = shutil.copytree(raw, tmp_path / "raw")
    shutil.copy(ct(more, "label"), ct(more, "label", "0099"))
    write_nifti(ct(more, "img", "0099"), raw_data.image(99))
    (more / "phantom.json").write_text("{}", encoding="utf-8")
    prepare(more, tmp_path / "out", choice=Choice(held_out=frozenset({"ct_0099"})))
    dataset = Dataset.load(tmp_path / "out")
    assert "ct_0099" not in [case for ids in dataset.split.values() for case in ids]
    assert len(dataset.case_modality) == 7 and dataset.case("ct_0099").modality == "ct"
    assert dataset.source == "phantom abdomen"


def test_a_phantom_is_one_wherever_its_folder_is_named(tmp_path):
    """From above, from below, and through a CSV that lies elsewhere and is called as it likes."""
    raw = tmp_path / "above/raw"
    sets.write_abdomen(raw, num_ct=1, num_mr=1, seed=0)
    for given in (tmp_path / "above", raw, raw / "chaos/Train_Sets", raw / "chaos/Train_Sets/MR"):
        options = RawOptions(raw=given)
        found = SOURCES["chaos"].find(options)
        assert len(found.cases) == 1 and SOURCES["chaos"].described(options, found.cases) == "phantom chaos"
    image, label = raw / "btcv/img/img0001.nii.gz", raw / "btcv/label/label0001.nii.gz"
    for name, scan, expected in (("own.csv", image, "phantom csv"), ("phantom.csv", tmp_path / "b.nii.gz", "csv")):
        (tmp_path / name).write_text(f"case,modality,image,label\na,ct,{scan},{label}\n", encoding="utf-8")
        shutil.copy(image, tmp_path / "b.nii.gz")
        options = RawOptions(csv=tmp_path / name, task="abdomen")
        assert SOURCES["csv"].described(options, SOURCES["csv"].find(options).cases) == expected


def test_source_of_real_scans(prepared):
    folder, _ = prepared
    assert Dataset.load(folder).source == "abdomen"


# --- what is possible and hardly true --------------------------------------------------------------------------------


def test_the_same_scan_twice_is_a_problem_whatever_its_name(raw, tmp_path):
    """In train and in test it would make the test worthless."""
    more = shutil.copytree(raw, tmp_path / "raw")
    shutil.copy(ct(more, "label"), ct(more, "label", "0099"))
    image = nib.load(ct(more, "img"))
    nib.save(nib.Nifti1Image(image.get_fdata().astype(np.float32), image.affine), ct(more, "img", "0099"))
    assert ct(more, "img").read_bytes() != ct(more, "img", "0099").read_bytes()
    (problem,) = problems_of(more, tmp_path / "out")
    assert str(problem).startswith("ct_0001 and ct_0099: the same scan, voxel for voxel: expected every scan once")
    assert not (tmp_path / "out").exists()


def test_training_refuses_a_data_set_with_a_scan_twice(prepared, tmp_path):
    """As one that an earlier version prepared, or that was put together by hand."""
    folder = shutil.copytree(prepared[0], tmp_path / "data")
    dataset = Dataset.load(folder)
    dataset.check_copies()
    train, test = (dataset.ids(part, "ct")[0] for part in ("train", "test"))
    shutil.copy(dataset.path(train), dataset.path(test))
    with pytest.raises(InputError, match=f"{train} and {test} are the same scan, voxel for voxel"):
        Dataset.load(folder).check_copies()


def test_what_is_odd_in_a_scan_is_noted_once_kept_and_told_by_qc(raw, tmp_path, capfd):
    """By verify, by prepare, in the case file and on the QC page, although worker processes read the scans."""
    more = shutil.copytree(raw, tmp_path / "raw")
    (mr(more) / "DICOM_anon/report.txt").write_text("not a slice", encoding="utf-8")
    words = "left out, not DICOM: report.txt"
    notes = prepare(more, tmp_path / "out")
    case = Dataset.load(tmp_path / "out").case("mr_1", original_label=True)
    assert [text for text in notes if words in text] == [f"mr_1: {mr(more) / 'DICOM_anon'}: {words}"]
    assert case.notes == (words,)
    assert f"when prepared: {words}" in qc.summarize_case(case, case.original_label, TASK, "train").warnings
    assert words not in capfd.readouterr().err  # nothing beside the notes


def test_organs_outside_of_the_window_are_noted(raw, tmp_path):
    """Columns of 25 mm made 60 mm: a patient of 720 mm in a window of 384 mm."""
    more = shutil.copytree(raw, tmp_path / "raw")
    wide = raw_data.CT_AFFINE @ np.diag([1, 2.4, 1, 1])
    write_nifti(ct(more, "img"), raw_data.image(0), wide)
    write_nifti(ct(more, "label"), raw_data.label_map(raw_data.CT_LABELS), wide)
    found = [text for text in prepare(more, tmp_path / "out") if "lies outside of the task's window" in text]
    assert found and all(text.startswith("ct_0001: ") for text in found)


def test_what_the_window_cuts_off_and_what_resampling_loses_are_told_apart():
    """Rows 0-21 of 300 lie outside of the window of 256; slice 7 of 1 mm lies between those at 3.5 and 11.5."""
    task = dataclasses.replace(TASK, region="image_center")
    label = np.zeros((300, 20, 16), np.uint8)
    label[100:110, 5:15, 7] = 1
    label[:44, 5:15] = 2
    affine = np.diag([-1.5, -1.5, 1.0, 1.0])[[1, 0, 2, 3]]
    found = preprocessing.prepare_scan(Volume(label.astype(np.float32), affine), Volume(label, affine), task, "mr")
    liver, kidney = task.class_names[1:3]
    assert list(pipeline._lost(found, task)) == [
        f"100% of the {liver} (0.2 ml) is lost in resampling to voxels of 1.5 × 1.5 × 8 mm",
        f"50% of the {kidney} (15.8 ml) lies outside of the task's window",
    ]


def test_an_image_given_as_its_own_label_is_a_problem(raw, tmp_path):
    more = shutil.copytree(raw, tmp_path / "raw")
    shutil.copy(ct(more, "label"), ct(more, "img"))
    problems = [str(problem) for problem in problems_of(more, tmp_path / "out")]
    assert any("label0001.nii.gz: the label map is the image itself, voxel for voxel" in text for text in problems)


@pytest.mark.parametrize(
    ("task", "modality", "expected"),
    [
        (TASK, "venous", ["values down to -1000, which look like Hounsfield units, and task abdomen has no range for"]),
        (TASK, "ct", []),
        (TASK, "mr", ["values down to -1000, which looks like a CT, but its modality is said to be mr"]),
        (get_task("cardiac"), "ct", []),
        (MISSPELLED, "mri", ["values down to -1000, which looks like a CT, but its modality is said to be mri"]),
        (dataclasses.replace(TASK, clip={**TASK.clip, "venous": Clip(-125, 275)}), "venous", []),
        (dataclasses.replace(TASK, clip={**TASK.clip, "venous": Clip(0, 99, "percentile")}), "venous", []),
    ],
)
def test_a_ct_whose_name_does_not_say_so_is_noted(task, modality, expected):
    """A venous CT would be clipped to percentiles, as an MR is; who gave the task such a range meant it."""
    array = np.full((64, 64, 30), -1000.0, np.float32)
    array[16:48, 16:48] = np.random.default_rng(0).uniform(0, 60, (32, 32, 30))
    problems, notes = implausible(Volume(array, np.diag([2.0, 2.0, 5.0, 1.0])), task, modality)
    assert problems == []
    assert [note[: len(start)] for note, start in zip(notes, expected, strict=True)] == expected
    above = implausible(Volume(np.maximum(array, -500), np.diag([2.0, 2.0, 5.0, 1.0])), task, modality)[1]
    assert not any("Hounsfield units, and task" in note for note in above)


@pytest.mark.parametrize(
    ("values", "spacing", "words"),
    [
        (lambda a: a, (2.0, 2.0, 5.0), None),
        (lambda a: a + 1024, (2.0, 2.0, 5.0), "stored as HU + 1024"),
        (lambda a: a, (0.2, 0.2, 0.5), "are distances in cm written as mm?"),
        (lambda a: a, (20.0, 40.0, 5.0), "more than a person: is the spacing in mm?"),
        (lambda a: a, (0.8, 0.8, 2.0), "51 × 51 × 60 mm large: are distances in cm written as mm?"),
        (lambda a: a[..., :2], (2.0, 2.0, 5.0), "128 × 128 × 10 mm large: it has 2 slices"),
        (np.sign, (2.0, 2.0, 5.0), "only 2 different values, usual are hundreds: is it a label map?"),
    ],
)
def test_odd_units_are_noted(values, spacing, words):
    """A body of 0 to 60 HU in air, 64 × 64 × 30 voxels of 2 × 2 × 5 mm."""
    array = np.full((64, 64, 30), -1000.0)
    array[16:48, 16:48] = np.random.default_rng(0).uniform(0, 60, (32, 32, 30))
    problems, notes = implausible(Volume(values(array).astype(np.float32), np.diag([*spacing, 1.0])), TASK, "ct")
    assert problems == []
    assert (notes == []) if words is None else any(words in note for note in notes)


def test_voxels_smaller_than_any_scanner_makes_are_refused():
    volume = Volume(np.zeros((4, 4, 4), np.float32), np.diag([0.002, 0.002, 0.005, 1.0]))
    ((what, fix),), _ = implausible(volume, TASK, "mr")
    assert what == "voxels of 0.002 × 0.002 × 0.005 mm" and fix.startswith("expected at least 0.05 mm")


def test_what_verify_accepts_prepare_accepts(raw, tmp_path):
    """Slices 300 mm thick were found by preparation only, after two cases were written."""
    more = shutil.copytree(raw, tmp_path / "raw")
    path = ct(more, "img")
    affine = np.diag([2.0, 2.0, 800.0, 1.0])
    for file in (path, ct(more, "label")):
        nib.save(nib.Nifti1Image(np.asarray(nib.load(file).dataobj), affine), file)
    source = SOURCES["btcv"]
    cases = source.find(RawOptions(raw=more)).cases
    with Workers(1) as pool:
        found = pipeline.verify(cases, TASK, pool, lambda _: None)
    assert [str(problem) for problem in problems_of(more, tmp_path / "out")] == [str(problem) for problem in found]
    assert found and str(found[0]).startswith(str(path))


def problems_of(raw, out):
    """Problems of preparing the CT below `raw` with every case in training."""
    cases = SOURCES["btcv"].find(RawOptions(raw=raw)).cases
    split = {"ct": {"train": [c.case_id for c in cases[2:]], "validation": ["ct_0001"], "test": ["ct_0002"]}}
    with Workers(1) as pool:
        return pipeline.prepare_cases(
            cases, TASK, out, split=split, split_name="by hand", pool=pool, note=lambda _: None
        )


def test_share_outside_counts_all_four_sides():
    """Of 10 × 10 voxels of 1 mm, the prepared grid has rows 2 to 6 and columns 1 to 8: 40 of 100."""
    affine = np.eye(4)
    affine[:2, 3] = 2, 1
    found = pipeline._share_outside(np.ones((10, 10, 2), bool), Grid(np.eye(4), (10, 10, 2)), Grid(affine, (5, 8, 2)))
    assert found == pytest.approx(0.6)


def test_a_copy_of_a_case_that_is_up_to_date_is_a_problem(raw, tmp_path):
    more = shutil.copytree(raw, tmp_path / "raw")
    assert problems_of(more, tmp_path / "out") == []
    for kind in ("img", "label"):
        shutil.copy(ct(more, kind), ct(more, kind, "0099"))
    (problem,) = problems_of(more, tmp_path / "out")
    assert str(problem).startswith("ct_0001 and ct_0099: the same scan, voxel for voxel")
