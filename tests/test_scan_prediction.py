"""From raw scans to label maps with a stand-in for the network, which sees brightness alone."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import itertools
import json
import os
import shutil
import signal
import threading
from functools import partial
from pathlib import Path

import dicom_files
import nibabel as nib
import numpy as np
import pytest
from matplotlib.figure import Figure
from programs import program
from recorded_runs import write_run
from scipy import ndimage
from scipy.spatial.transform import Rotation

from experiments.plans import DATA, RunSpec
from experiments.results.captions import provenance
from experiments.results.records import Record
from experiments.volume_tables import ScanToSegment, VolumeTables, check_names_are_free, state_of
from ummkd_tf.common.errors import InputError
from ummkd_tf.data.cases import voxels_checksum
from ummkd_tf.evaluation import scan_prediction
from ummkd_tf.evaluation.inference import Ensemble
from ummkd_tf.evaluation.overlap import gaussian_weights
from ummkd_tf.evaluation.scan_prediction import ScanPredictor
from ummkd_tf.output.viewer import SliceViewer
from ummkd_tf.runs.folder import read_run
from ummkd_tf.scans import geometry
from ummkd_tf.scans.dicom import DicomSeries
from ummkd_tf.scans.geometry import Grid, Volume, reorient, resample
from ummkd_tf.scans.nifti import write_nifti
from ummkd_tf.scans.plausibility import machine
from ummkd_tf.scans.preprocessing import prepare_scan, restore
from ummkd_tf.tasks import TASKS, Clip

COARSE = {"size": (64, 64), "spacing_mm": (4.0, 4.0, 8.0), "clip": {"default": Clip(-1000, 1000)}}
ABDOMEN, CARDIAC = (dataclasses.replace(TASKS[name], **COARSE) for name in ("abdomen", "cardiac"))


class Bright:
    """Class 1 with certainty from 1.8 standard deviations above the mean on, which tissue alone stays below."""

    def __init__(self, above: float = 1.8) -> None:
        self.above, self.seen = above, []

    def probabilities(self, image, modality, factor=1, *, overlap=0.0, progress=iter):
        self.seen.append(image.shape)
        for _ in progress(range(1)):
            pass
        result = np.zeros((*image.shape, 5), np.float32)
        result[..., 1] = image > self.above
        result[..., 0] = 1 - result[..., 1]
        return result


def predictor(task=ABDOMEN, **more) -> ScanPredictor:
    return ScanPredictor(Bright(), task, ("ct", "mr"), title="bright", **more)


def spaced(*spacing, origin=(0, 0, 0)):
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = origin
    return affine


def patient(shape=(40, 30, 10), spacing=(6.0, 6.0, 8.0), organs=((slice(5, 12), slice(8, 14), slice(2, 6)),)) -> Volume:
    """Soft tissue of 50 in air of -1000, with organs of 800; RAS."""
    array = np.full(shape, -1000, np.float32)
    array[2:-2, 2:-2] = 50 + np.random.default_rng(0).integers(-5, 6, array[2:-2, 2:-2].shape)
    for organ in organs:
        array[organ] = 800
    return Volume(array, spaced(*spacing, origin=(-100, -80, 30)))


def inside(scan: Volume) -> np.ndarray:
    """Voxels of the organs that no other tissue touches."""
    return ndimage.binary_erosion(scan.array == 800)


def all_orientations() -> list[str]:
    pairs = ("RL", "AP", "SI")
    return ["".join(letters) for order in itertools.permutations(pairs) for letters in itertools.product(*order)]


# --- the same scan, however it is stored -----------------------------------------------------------------------------


@pytest.mark.parametrize("task", [ABDOMEN, CARDIAC], ids=lambda task: task.name)
def test_all_48_orientations_predict_the_same_labels_in_world_space(task):
    scan = patient()
    expected = predictor(task).predict_scan(scan, "ct")
    assert expected.voxels["liver" if task is ABDOMEN else "lv_myocardium"] == pytest.approx(7 * 6 * 4, rel=0.3)
    assert len(all_orientations()) == 48
    for axes in all_orientations():
        turned = reorient(scan, axes)
        found = predictor(task).predict_scan(turned, "ct")
        assert found.grid.axes == axes and found.labels.shape == turned.array.shape
        back = reorient(Volume(found.labels, found.affine), "RAS")
        np.testing.assert_allclose(back.affine, scan.affine, atol=1e-9)
        assert np.array_equal(back.array, expected.labels), axes


def write_series(folder: Path, scan: Volume, modality: str = "CT") -> None:
    """`scan` in LPS."""
    for k in range(scan.array.shape[2]):
        place = scan.grid.world([0, 0, k]) * (-1, -1, 1)
        slice_ = scan.array[:, :, k].astype(np.int16)
        ds = dicom_files.dataset(slice_, place, spacing=scan.grid.spacing_mm[1::-1])
        ds.Modality, ds.InstanceNumber = modality, str(k + 1)
        dicom_files.write(folder / f"{k:03d}.dcm", ds)


def test_a_file_and_its_dicom_series_predict_the_same(tmp_path):
    scan = reorient(patient(), "LPS")
    write_nifti(tmp_path / "scan.nii.gz", Volume(scan.array.astype(np.int16), scan.affine))
    write_series(tmp_path / "series", scan)
    from_file = predictor().predict_scan(tmp_path / "scan.nii.gz", "ct")
    from_series = predictor().predict_scan(tmp_path / "series", "ct")
    np.testing.assert_allclose(from_series.affine, from_file.affine, atol=1e-6)
    assert np.array_equal(from_series.labels, from_file.labels)
    assert from_file.labels.any()


def test_dicom_of_another_machine_is_refused(tmp_path):
    write_series(tmp_path / "mr", reorient(patient(), "LPS"), "MR")
    with pytest.raises(InputError, match=r"Modality is MR: expected CT for modality 'ct'"):
        predictor().predict_scan(tmp_path / "mr", "ct")


def test_values_that_speak_against_the_modality_are_warned_of(tmp_path, caplog):
    scan = patient()
    write_nifti(tmp_path / "a.nii", scan)
    write_nifti(tmp_path / "b.nii", Volume(scan.array + 1024, scan.affine))
    predictor().predict_scan(tmp_path / "a.nii", "ct")
    assert "looks like" not in caplog.text and "Hounsfield" not in caplog.text
    predictor().predict_scan(tmp_path / "a.nii", "mr")
    assert "values down to -1000, which looks like a CT" in caplog.text
    predictor().predict_scan(tmp_path / "b.nii", "ct")
    assert "no value below 24: a CT in Hounsfield units has air at -1000" in caplog.text


def test_units_that_no_patient_has(tmp_path, caplog):
    scan = patient()
    for factor, words in (
        (0.001, "voxels of 0.006 × 0.006 × 0.008 mm: expected at least"),
        (50, "large: expected at m"),
    ):
        with pytest.raises(InputError, match=words):
            predictor().predict_scan(Volume(scan.array, scan.affine @ np.diag([factor] * 3 + [1])), "ct")
    predictor().predict_scan(Volume(scan.array, scan.affine @ np.diag([0.1] * 3 + [1])), "ct")
    assert "24 × 18 × 8 mm large: are distances in cm written as mm?" in caplog.text


def test_machines_by_names_of_modalities():
    named = {"ct": "CT", "ct_1": "CT", "cect": "CT", "mr": "MR", "mri": "MR", "t1_in": "MR", "t2": "MR", "site_a": None}
    assert {name: machine(name) for name in [*named, "ctx"]} == {**named, "ctx": None}


def test_a_scan_that_the_model_was_trained_on_is_warned_of(caplog):
    """By its voxels: in other axes it is the same scan, and with one voxel changed another one."""
    scan = patient()
    model = predictor()
    model.seen = {voxels_checksum(scan): "the train part of runs/fold1 (ct_7)"}
    other = scan.array.copy()
    other[0, 0, 0] += 1
    for volume, warned in ((scan, True), (reorient(scan, "SAR"), True), (Volume(other, scan.affine), False)):
        caplog.clear()
        model.predict_scan(volume, "ct")
        assert ("it was in the train part of runs/fold1 (ct_7)" in caplog.text) == warned


def test_unknown_modality():
    with pytest.raises(InputError, match="modality 'pet': the model knows ct, mr"):
        predictor().predict_scan(patient(), "pet")


# --- scans larger than the window ------------------------------------------------------------------------------------


def test_wide_patient_keeps_the_whole_organ():
    """480 mm wide, where the window has 64 × 4 = 256 mm: organs at both edges are found, none twice."""
    scan = patient((120, 40, 6), (4.0, 4.0, 8.0), [(slice(s, s + 8), slice(10, 20), slice(1, 5)) for s in (4, 56, 108)])
    model = predictor()
    result = model.predict_scan(scan, "ct")
    assert result.windows == 3
    assert set(model.model.seen) == {(64, 64, 6)}
    assert result.milliliters["liver"] == pytest.approx(3 * 8 * 10 * 4 * 128 / 1000, rel=0.3)
    assert (result.labels[inside(scan)] == 1).all()
    assert not result.labels[scan.array < 0].any()
    np.testing.assert_allclose(result.prepared_probabilities.sum(-1), 1, atol=1e-5)
    assert result.prepared_image.shape == result.prepared_probabilities.shape[:3]


class FirstWindow(Bright):
    """Class 1 everywhere in the first window that it is shown, and nowhere in the others."""

    def probabilities(self, image, modality, factor=1, *, overlap=0.0, progress=iter):
        self.overlap = overlap
        return super().probabilities(np.full_like(image, -9 if self.seen else 9), modality)


def test_windows_are_averaged_with_gaussian_weights():
    """Three windows side by side; and the overlap of chunks inside a window is the model's to make."""
    model, scan = FirstWindow(), patient((120, 40, 6), (4.0, 4.0, 8.0))
    result = ScanPredictor(model, ABDOMEN, ("ct", "mr"), overlap=0.5).predict_scan(scan, "ct")
    columns = result.prepared_image.shape[1]
    weights = np.zeros((3, columns))
    for row, start in zip(weights, (0, round((columns - 64) / 2), columns - 64), strict=True):
        row[start : start + 64] = gaussian_weights(64)
    expected = weights[0] / weights.sum(axis=0)
    np.testing.assert_allclose(result.prepared_probabilities[20, :, 0, 1], expected, atol=1e-5)
    assert model.overlap == 0.5


def test_a_window_of_air_alone_is_background():
    """It is not shown to the model; where it overlaps another one, the probabilities still sum to 1."""
    scan = patient((120, 40, 6), (4.0, 4.0, 8.0))
    scan.array[50:] = -1000
    model = predictor(dataclasses.replace(ABDOMEN, region="image_center"))
    result = model.predict_scan(scan, "ct")
    assert (result.windows, len(model.model.seen)) == (3, 2)
    np.testing.assert_allclose(result.prepared_probabilities.sum(-1), 1, atol=1e-5)


def test_what_is_bright_apart_from_the_heart_does_not_move_its_window():
    """A tenth as large, 70 mm beside it: the centroid of both would lie 7 mm off."""
    heart, other = (slice(20, 30), slice(10, 22), slice(4, 14)), (slice(34, 38), slice(13, 16), slice(4, 14))
    alone, both = (
        predictor(CARDIAC).predict_scan(patient((50, 40, 18), organs=organs), "mr")
        for organs in ([heart], [heart, other])
    )
    np.testing.assert_allclose(both.prepared_grid.affine, alone.prepared_grid.affine, atol=2.0)  # mm: half a voxel


def test_scan_that_fits_has_one_window_as_in_training():
    scan = patient((12, 11, 10), (6.0, 6.0, 8.0), [(slice(5, 8), slice(5, 8), slice(2, 6))])
    result = predictor().predict_scan(scan, "ct")
    assert result.windows == 1
    assert np.array_equal(result.prepared_image, prepare_scan(scan, None, ABDOMEN, "ct").image)


def test_heart_at_the_top_of_a_long_scan_is_found_and_centred_as_in_evaluation():
    """700 mm long, the window 256 mm: the second pass has the window of training, around the label's centroid."""
    scan = patient((50, 40, 88), (6.0, 6.0, 8.0), [(slice(20, 30), slice(10, 22), slice(74, 84))])
    result = predictor(CARDIAC).predict_scan(scan, "mr")
    label = Volume((scan.array == 800).astype(np.uint8), scan.affine)
    trained = prepare_scan(scan, label, CARDIAC, "mr")
    assert result.windows > 3
    np.testing.assert_allclose(result.prepared_grid.affine, trained.grid.affine, atol=2.0)  # mm: half a voxel
    assert (result.labels[inside(scan)] == 1).all()
    assert result.milliliters["lv_myocardium"] == pytest.approx(10 * 12 * 10 * 288 / 1000, rel=0.3)


def test_nothing_found_is_said(caplog):
    result = predictor(CARDIAC).predict_scan(patient(organs=()), "ct")
    assert not result.labels.any()
    assert "nothing found in any of" in caplog.text


# --- options ---------------------------------------------------------------------------------------------------------


def test_largest_component_drops_what_is_apart():
    organs = [(slice(5, 12), slice(8, 14), slice(2, 6)), (slice(30, 33), slice(8, 11), slice(2, 6))]
    both = predictor().predict_scan(patient(organs=organs), "ct").labels
    largest = predictor(largest_component=True).predict_scan(patient(organs=organs), "ct").labels
    assert both[31, 9, 4] == 1 and largest[31, 9, 4] == 0
    assert np.array_equal(largest[:20], both[:20])


def test_probabilities_on_the_scans_grid_agree_with_the_labels():
    result = predictor().predict_scan(patient(), "ct")
    assert result.probabilities.shape == (*result.labels.shape, 5)
    assert result.probabilities.dtype == np.float32
    assert np.array_equal(result.probabilities.argmax(-1), result.labels)
    np.testing.assert_allclose(result.probabilities.sum(-1), 1, atol=1e-5)


def test_several_models_are_averaged():
    image = np.array([0.5, 1.5, 2.5], np.float32).reshape(1, 1, 3)
    mean = Ensemble([Bright(0), Bright(1), Bright(2)]).probabilities(image, "ct")
    np.testing.assert_allclose(mean[0, 0, :, 1], [1 / 3, 2 / 3, 1], atol=1e-6)


# --- in blocks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interpolation", ["linear", "nearest"])
def test_resampling_in_blocks_changes_nothing(interpolation, monkeypatch):
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    affine = np.eye(4)
    affine[:3, :3] = turn * (1.1, 0.9, 3.0)
    volume = Volume(rng.normal(size=(30, 25, 12)).astype(np.float32), affine)
    center = volume.grid.world([14.5, 12, 5.5])
    grid = Grid(spaced(1.3, 1.3, 2.1, origin=tuple(center - (26, 29, 21))), (40, 45, 20))
    whole = resample(volume, grid, interpolation, outside=-9)
    monkeypatch.setattr(geometry, "_BLOCK_VOXELS", 2000)
    np.testing.assert_allclose(resample(volume, grid, interpolation, outside=-9), whole, atol=1e-4)
    assert 0.05 < (whole == -9).mean() < 0.95


def test_labels_restored_in_blocks_are_the_same(monkeypatch):
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet([1] * 4, (20, 22, 9)).astype(np.float32)
    grid, own = Grid(spaced(3, 3, 8), (20, 22, 9)), Grid(spaced(2, 2, 3, origin=(-5, 4, 9)), (40, 30, 25))
    whole = restore(probabilities, grid, own)
    monkeypatch.setattr("ummkd_tf.scans.preprocessing._RESTORED_VOXELS", 3000)
    assert (restore(probabilities, grid, own) != whole).mean() < 1e-4


def test_labels_are_restored_where_each_class_wins_and_nowhere_else():
    """Against the largest of the interpolated probabilities at every voxel; a window beside the scan gives nothing."""
    rng = np.random.default_rng(1)
    probabilities = rng.dirichlet([5, 1, 1], (16, 14, 9)).astype(np.float32)
    probabilities[:6, :, 5:] = (1, 0, 0)
    probabilities[10:] = (1, 0, 0)
    grid, own = Grid(spaced(3, 3, 8), (16, 14, 9)), Grid(spaced(2, 2, 3, origin=(-5, 4, 9)), (40, 30, 25))
    each = [
        resample(Volume(probabilities[..., c], grid.affine), own, "linear", outside=float(c == 0)) for c in range(3)
    ]
    assert np.array_equal(restore(probabilities, grid, own), np.argmax(each, axis=0))
    assert not restore(probabilities, grid, Grid(spaced(2, 2, 3, origin=(500, 0, 0)), (40, 30, 25))).any()


# --- the program -----------------------------------------------------------------------------------------------------


@pytest.fixture
def run_dir(tmp_path, monkeypatch):
    """A run whose network is the stand-in."""

    def stand_in(run_dirs, selection, *, overlap, largest_component):
        return predictor(overlap=overlap, largest_component=largest_component)

    monkeypatch.setattr("ummkd_tf.runs.loading.load_scan_predictor", stand_in)
    return write_run(tmp_path / "runs", RunSpec("abdomen", next(iter(DATA)), "ours", seed=0), None)


def predict(run_dir, *arguments):
    return program("experiments.predict", f"--run_dir={run_dir}", *arguments)


def write_scans(folder: Path) -> None:
    folder.mkdir()
    write_nifti(folder / "a.nii.gz", patient())
    write_nifti(folder / "b.nii", patient(organs=[(slice(20, 30), slice(8, 14), slice(2, 6))]))
    write_series(folder / "c", reorient(patient(), "LPS"))
    (folder / "notes.txt").write_text("not a scan", encoding="utf-8")


def test_folder_of_scans_with_tables_and_label_files(run_dir, tmp_path):
    write_scans(tmp_path / "scans")
    out = tmp_path / "out"
    done = predict(run_dir, "--modality=ct", f"--input={tmp_path / 'scans'}", f"--output={out}", "--probabilities")
    assert done.returncode == 0, done.stderr
    assert "left out, no scans: notes.txt" in done.stderr
    assert sorted(p.name for p in out.iterdir() if p.name != ".volumes.lock") == [
        *(f"{name}{more}.nii.gz" for name in "abc" for more in ("", "_probabilities")),
        *("labels.ctbl", "labels.label", "volumes.csv", "volumes.json"),
    ]
    labels = np.asarray(nib.load(out / "a.nii.gz").dataobj)
    with open(out / "volumes.csv", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["scan"] for row in rows] == [name for name in "abc" for _ in range(4)]
    assert rows[0] == {
        "scan": "a",
        "modality": "ct",
        "class": "liver",
        "label": "1",
        "voxels": str((labels == 1).sum()),
        "ml": f"{(labels == 1).sum() * 0.288:.3f}",
        "status": "done",
        "notes": NOTE,
    }
    content = json.loads((out / "volumes.json").read_text(encoding="utf-8"))
    assert content["scans"]["c"]["classes"]["liver"]["voxels"] == int(rows[8]["voxels"])
    assert (content["overlap"], content["largest_component"]) == (0, False)
    probabilities = np.asarray(nib.load(out / "a_probabilities.nii.gz").dataobj)
    assert probabilities.shape == (*labels.shape, 5) and probabilities.dtype == np.float32
    assert '    1   255    0    0        1  1  1    "liver"' in (out / "labels.label").read_text(encoding="utf-8")
    assert "4 spleen 255 255 0 255" in (out / "labels.ctbl").read_text(encoding="utf-8").splitlines()


def test_a_second_call_for_the_other_modality_adds_its_scans(run_dir, tmp_path):
    """Each call names one modality; a call with other options says which scans its table does not hold."""
    write_scans(tmp_path / "scans")
    flags = [f"--output={tmp_path / 'out'}"]

    def scans():
        return list(json.loads((tmp_path / "out/volumes.json").read_text(encoding="utf-8"))["scans"])

    for modality, name, expected in (
        ("ct", "a.nii.gz", ["a"]),
        ("mr", "b.nii", ["a", "b"]),
        ("ct", "c", ["a", "b", "c"]),
    ):
        done = predict(run_dir, f"--modality={modality}", f"--input={tmp_path / 'scans' / name}", *flags)
        assert done.returncode == 0 and "out: scans segmented: 1; volumes.csv" in done.stdout, done.stderr
        assert scans() == expected
    # Another scan of a name that is taken, e.g. patient 1 of CT and of MR, is refused before anything is written.
    before = (tmp_path / "out/a.nii.gz").read_bytes()
    (tmp_path / "other").mkdir()
    write_nifti(tmp_path / "other/a.nii.gz", patient(organs=[(slice(20, 30), slice(8, 14), slice(2, 6))]))
    for modality, folder in (("mr", "scans"), ("ct", "other")):
        done = predict(run_dir, f"--modality={modality}", f"--input={tmp_path / folder / 'a.nii.gz'}", *flags)
        assert done.returncode == 1 and "a: holds the label map of another scan of that name (ct " in done.stderr
    assert (tmp_path / "out/a.nii.gz").read_bytes() == before
    done = predict(run_dir, "--modality=mr", f"--input={tmp_path / 'scans/b.nii'}", "--largest_component", *flags)
    assert "segmented otherwise, so no longer in volumes.csv: a, c" in done.stdout and scans() == ["b"]


def test_a_scan_is_known_by_its_place_or_its_state_and_not_by_the_words_of_the_command(tmp_path, monkeypatch):
    """Of two hospitals' ct.nii.gz, each given as "ct.nii.gz" from its own folder, the second is another scan."""
    here, there = tmp_path / "a/ct.nii.gz", tmp_path / "b/ct.nii.gz"
    for place, content in ((here, b"1"), (there, b"22")):
        place.parent.mkdir()
        place.write_bytes(content)
    places = {"ct": {"labels": tmp_path / "ct.nii.gz"}}
    places["ct"]["labels"].touch()
    monkeypatch.chdir(there.parent)
    scan = ScanToSegment("ct", Path("ct.nii.gz"), "ct")

    def check(image, state):
        entry = {"modality": "ct", "image": str(image), "image_state": state}
        (tmp_path / "volumes.json").write_text(json.dumps({"scans": {"ct": entry}}), encoding="utf-8")
        check_names_are_free([scan], tmp_path, places)

    check(there, "any")  # the scan itself, which has changed since
    for image in ("ct.nii.gz", tmp_path / "gone/ct.nii.gz"):  # as earlier versions wrote it; a scan that was moved
        check(image, state_of(there))
    for image in (here, "ct.nii.gz", tmp_path / "gone/ct.nii.gz"):
        with pytest.raises(InputError, match="ct: holds the label map of another scan of that name"):
            check(image, state_of(here))


def test_one_model_by_two_paths_is_one_model(tmp_path, capsys):
    entry = {"modality": "ct", "image": "a", "windows": 1, "classes": {}, "status": "done", "notes": []}
    for name, source in (("a", "runs/ours"), ("b", "runs/ours/")):
        VolumeTables(tmp_path, [], predictor(), [source]).add(name, entry)
    assert set(entries(tmp_path)) == {"a", "b"}
    VolumeTables(tmp_path, [], predictor(overlap=0.5), ["runs/ours"]).add("c", entry)
    assert set(entries(tmp_path)) == {"c"} and "no longer in volumes.csv: a, b" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["a", "a_probabilities"])
def test_no_file_of_an_earlier_scan_is_replaced(name, tmp_path):
    """Scan a's probabilities and scan a_probabilities' label map are of one name: whichever is second is refused."""
    entry = {"modality": "ct", "image": str(tmp_path / "first.nii.gz")}
    (tmp_path / "volumes.json").write_text(json.dumps({"scans": {name: entry}}), encoding="utf-8")
    shared = tmp_path / "a_probabilities.nii.gz"
    places = {
        "a": {"labels": tmp_path / "a.nii.gz", "probabilities": shared},
        "a_probabilities": {"labels": shared},
    }
    (other,) = places.keys() - {name}
    scan = ScanToSegment(other, tmp_path / "second.nii.gz", "ct")
    check_names_are_free([scan], tmp_path, places)
    shared.touch()
    with pytest.raises(InputError, match=rf"a_probabilities\.nii\.gz: is a file of the scan {name}, segmented before"):
        check_names_are_free([scan], tmp_path, places)


@pytest.mark.parametrize("largest", [False, True])
def test_picture_and_viewer_show_the_parts_that_the_label_map_has(largest, run_dir, tmp_path, monkeypatch):
    organs = [(slice(5, 12), slice(8, 14), slice(2, 6)), (slice(30, 33), slice(8, 11), slice(2, 6))]
    write_nifti(tmp_path / "a.nii.gz", patient(organs=organs))
    shown = []

    def picture(image, label, **more):
        shown.append(label)
        return Figure()

    monkeypatch.setattr("ummkd_tf.output.pictures.overlay_figure", picture)
    monkeypatch.setattr(SliceViewer, "add", lambda self, name, image, maps, **more: shown.extend(maps))
    monkeypatch.setattr(SliceViewer, "write", lambda *_: None)
    files = (
        f"--output={tmp_path / 'out.nii.gz'}",
        f"--overlay={tmp_path / 'a.png'}",
        f"--viewer={tmp_path / 'a.html'}",
    )
    done = predict(
        run_dir, "--modality=ct", f"--input={tmp_path / 'a.nii.gz'}", *files, f"--largest_component={largest}"
    )
    assert done.returncode == 0, done.stderr
    labels = np.asarray(nib.load(tmp_path / "out.nii.gz").dataobj)
    assert [ndimage.label(found)[1] for found in (labels, *shown)] == 3 * [1 if largest else 2]


def test_csv_of_scans(run_dir, tmp_path):
    write_scans(tmp_path / "scans")
    rows = "case,modality,image,remark\n,,,\nfirst,ct,scans/a.nii.gz,x\nsecond,mr,scans/b.nii,\n\n,,,\n"
    (tmp_path / "list.csv").write_text(rows, encoding="utf-8")
    done = predict(run_dir, f"--input={tmp_path / 'list.csv'}", f"--output={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    assert {p.name for p in (tmp_path / "out").glob("*.nii.gz")} == {"first.nii.gz", "second.nii.gz"}


def test_an_oblique_scan_in_a_folder_whose_name_is_no_text(run_dir, tmp_path):
    """Directions to single precision, a note once, and every file that can be written."""
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    scan, turn = reorient(patient(), "LPS"), Rotation.from_euler("xyz", (10, 5, 20), degrees=True).as_matrix()
    for k in range(scan.array.shape[2]):
        place = turn @ (scan.grid.world([0, 0, k]) * (-1, -1, 1))
        orientation = turn[:, :2].T.ravel().round(5)
        ds = dicom_files.dataset(scan.array[:, :, k].astype(np.int16), place, orientation, scan.grid.spacing_mm[1::-1])
        dicom_files.write(folder / f"scan/{k}.dcm", ds)
    (folder / "scan/notes.txt").write_text("not a slice", encoding="utf-8")
    out = folder / "out"
    done = predict(
        run_dir, "--modality=ct", f"--input={folder / 'scan'}", f"--output={out}", f"--overlay={out}", "--probabilities"
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("left out, not DICOM: notes.txt") == 1
    assert [line for line in done.stderr.splitlines() if not line.startswith("note: ")] == []
    labels, probabilities = (nib.load(out / f"scan{more}.nii.gz") for more in ("", "_probabilities"))
    assert np.asarray(labels.dataobj).any() and (out / "scan.png").stat().st_size
    np.testing.assert_allclose(probabilities.affine, labels.affine)
    content = json.loads((out / "volumes.json").read_text(encoding="utf-8"))
    assert content["scans"]["scan"]["image"] == str(folder / "scan")


NOTE = "the image has only 13 different values, usual are hundreds: is it a label map?"
DONE = ("done", [NOTE])


def entries(out: Path) -> dict[str, tuple[str, list[str]]]:
    """Status and notes of each scan in volumes.json, which volumes.csv must repeat."""
    scans = json.loads((out / "volumes.json").read_text(encoding="utf-8"))["scans"]
    found = {name: (scan["status"], scan["notes"]) for name, scan in scans.items()}
    with open(out / "volumes.csv", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["scan"]: (row["status"], row["notes"]) for row in rows} == {
        name: (status, "; ".join(notes)) for name, (status, notes) in found.items()
    }
    assert [row["scan"] for row in rows if not row["class"]] == [name for name in scans if not scans[name]["classes"]]
    return found


def test_scans_that_are_not_there_are_named_and_the_others_are_done(run_dir, tmp_path):
    write_scans(tmp_path / "scans")
    (tmp_path / "scans/patient_9").symlink_to("nowhere")
    done = predict(run_dir, "--modality=ct", f"--input={tmp_path / 'scans'}", f"--output={tmp_path / 'out'}")
    told = "a link to a file that is not there: restore the file, or remove the link"
    assert done.returncode == 1 and f"error: {tmp_path}/scans/patient_9: {told}" in done.stderr
    assert "1 of 4 scans have an error, see above: patient_9" in done.stderr
    assert entries(tmp_path / "out") == {**dict.fromkeys("abc", DONE), "patient_9": ("failed", [told])}
    (tmp_path / "list.csv").write_text(
        "case,modality,image\nx,ct,no.nii\ny,ct,scans/a.nii.gz\nz,ct,no\n", encoding="utf-8"
    )
    done = predict(run_dir, f"--input={tmp_path / 'list.csv'}", f"--output={tmp_path / 'new'}")
    assert done.returncode == 1 and "2 of 3 scans have an error, see above: x, z" in done.stderr
    failed = ("failed", ["no such file or folder: check the path"])
    assert entries(tmp_path / "new") == {"x": failed, "y": DONE, "z": failed}


def test_one_bad_scan_of_many_is_named_and_the_others_are_done(run_dir, tmp_path):
    write_scans(tmp_path / "scans")
    (tmp_path / "scans/b.nii").write_bytes(b"no scan")
    done = predict(run_dir, "--modality=mr", f"--input={tmp_path / 'scans'}", f"--output={tmp_path / 'out'}")
    assert done.returncode == 1
    assert "2 of 3 scans have an error, see above: b, c" in done.stderr
    assert {p.name for p in (tmp_path / "out").glob("*.nii.gz")} == {"a.nii.gz"}
    found = entries(tmp_path / "out")
    assert "values down to -1000, which looks like a CT" in " ".join(found["a"][1]) and NOTE in found["a"][1]
    assert found["c"] == (
        "failed",
        ["the DICOM files' Modality is CT: expected MR for modality 'mr'; give the scan's own modality"],
    )
    # What failed takes no name.
    done = predict(run_dir, "--modality=ct", f"--input={tmp_path / 'scans/c'}", f"--output={tmp_path / 'out'}")
    assert done.returncode == 0 and entries(tmp_path / "out")["c"] == DONE


@pytest.fixture
def at_scan(monkeypatch):
    """What happens at scans instead of their prediction, by file name."""
    events, real = {}, ScanPredictor.predict_scan

    def predict_scan(self, scan, modality, **more):
        events.get(Path(scan).name, lambda: None)()
        return real(self, scan, modality, **more)

    monkeypatch.setattr(ScanPredictor, "predict_scan", predict_scan)
    return events


def raising(error: BaseException):
    def happen():
        raise error

    return happen


def test_too_little_memory_for_one_scan_ends_no_other(run_dir, tmp_path, at_scan):
    write_scans(tmp_path / "scans")
    flags = ["--modality=ct", f"--output={tmp_path / 'out'}"]
    at_scan.update({"a.nii.gz": raising(MemoryError()), "b.nii": raising(KeyError("unheard of"))})
    done = predict(run_dir, f"--input={tmp_path / 'scans'}", *flags)
    assert done.returncode == 1 and "2 of 3 scans have an error, see above: a, b" in done.stderr
    memory = "out of memory: free some, or take a smaller image; in training, a smaller --batch_size or --preset"
    assert f"error: {tmp_path}/scans/a.nii.gz: {memory}\n" in done.stderr
    assert entries(tmp_path / "out") == {
        "a": ("failed", [memory]), "b": ("failed", ["KeyError('unheard of')"]), "c": DONE,
    }  # fmt: skip
    with pytest.raises(KeyError):  # a fault of the program at a single scan shows its place
        predict(run_dir, f"--input={tmp_path / 'scans/b.nii'}", *flags)


@pytest.mark.parametrize(
    ("stop", "name", "code"),
    [(raising(KeyboardInterrupt()), "SIGINT", 130), (lambda: os.kill(os.getpid(), signal.SIGTERM), "SIGTERM", 143)],
)
def test_a_stopped_prediction_has_its_tables_and_goes_on(run_dir, tmp_path, at_scan, stop, name, code):
    write_scans(tmp_path / "scans")
    out, before = tmp_path / "out", signal.getsignal(signal.SIGTERM)
    flags = ["--modality=ct", f"--input={tmp_path / 'scans'}", f"--output={out}"]
    at_scan["b.nii"] = stop
    done = predict(run_dir, *flags)
    told = f"1 of 3 scans are segmented, and listed in {out}/volumes.csv; the same command with --skip_existing goes on"
    assert done.returncode == code and f"stopped by {name}: {told}\n" in done.stdout
    assert entries(out) == {"a": DONE} and signal.getsignal(signal.SIGTERM) is before
    del at_scan["b.nii"]
    seen = []
    at_scan.update({scan: partial(seen.append, scan) for scan in ("a.nii.gz", "b.nii", "c")})
    done = predict(run_dir, *flags, "--skip_existing")
    assert done.returncode == 0 and seen == ["b.nii", "c"]
    assert (
        "1 of 3 scans are kept, segmented before" in done.stdout
        and "out: scans segmented: 2; volumes.csv" in done.stdout
    )
    assert entries(out) == dict.fromkeys("abc", DONE)


def test_a_prediction_stopped_in_its_first_scan_names_no_table(run_dir, tmp_path, at_scan):
    write_scans(tmp_path / "scans")
    at_scan["a.nii.gz"] = raising(KeyboardInterrupt())
    done = predict(run_dir, "--modality=ct", f"--input={tmp_path / 'scans'}", f"--output={tmp_path / 'out'}")
    assert done.returncode == 130 and "stopped by SIGINT: 0 of 3 scans are segmented\n" in done.stdout


def test_a_run_counts_once_in_a_mean(run_dir, tmp_path):
    write_scans(tmp_path / "scans")
    flags = ("--modality=ct", f"--input={tmp_path / 'scans'}", f"--output={tmp_path / 'out'}")
    done = predict(f"{run_dir},{run_dir}/../{Path(run_dir).name}", *flags)
    assert done.returncode == 1 and "is given twice: a run counts once in a mean" in done.stderr


def test_what_is_kept_is_of_the_same_scan_model_and_options(run_dir, tmp_path, at_scan, monkeypatch):
    write_scans(tmp_path / "scans")
    flags = ["--modality=ct", f"--output={tmp_path / 'out'}"]
    seen = []
    at_scan.update({scan: partial(seen.append, scan) for scan in ("a.nii.gz", "b.nii", "c")})

    def segmented(*more, scans="scans"):
        seen.clear()
        done = predict(run_dir, f"--input={tmp_path / scans}", *flags, *more)
        assert done.returncode == 0, done.stderr
        return seen.copy()

    everything = ["a.nii.gz", "b.nii", "c"]
    assert segmented() == everything
    assert segmented("--skip_existing") == []
    (tmp_path / "out/b.nii.gz").unlink()
    assert segmented("--skip_existing") == ["b.nii"]
    os.utime(tmp_path / "scans/b.nii", (0, 0))  # replaced by a scan of the same size
    assert segmented("--skip_existing") == ["b.nii"]
    assert segmented("--skip_existing", "--probabilities") == everything
    assert segmented("--skip_existing", "--overlap=0.5") == everything
    (tmp_path / "scans").rename(tmp_path / "others")
    assert segmented("--skip_existing", "--overlap=0.5", scans="others") == everything

    def trained_again(run_dirs, selection, **options):
        """In the same folder, for as many steps: other weights under the same title."""
        return predictor(weights_sha256=["other"], **options)

    monkeypatch.setattr("ummkd_tf.runs.loading.load_scan_predictor", trained_again)
    assert segmented("--skip_existing", "--overlap=0.5", scans="others") == everything
    assert segmented("--skip_existing", "--overlap=0.5", scans="others") == []
    for more in ("--viewer=page.html", f"--output={tmp_path / 'a.nii'}"):
        done = predict(run_dir, *flags, f"--input={tmp_path / 'others/a.nii.gz'}", "--skip_existing", more)
        assert done.returncode == 1 and "--skip_existing: goes with a folder as --output" in done.stderr


def test_two_processes_lose_no_scan_of_each_other(tmp_path, monkeypatch):
    """Threads stand for them: both read the tables before either has written."""
    reading = threading.Barrier(2)
    read = VolumeTables._read

    def slow(self):
        found = read(self)
        with contextlib.suppress(threading.BrokenBarrierError):
            reading.wait(0.2)  # the other one, unless it has to wait
        return found

    monkeypatch.setattr(VolumeTables, "_read", slow)
    entry = {"modality": "ct", "image": "a", "windows": 1, "classes": {}, "status": "done", "notes": []}
    threads = [
        threading.Thread(target=VolumeTables(tmp_path, [], predictor(), ["run"]).add, args=(name, entry))
        for name in "ab"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(entries(tmp_path)) == {"a", "b"}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--input={scans}", "--output={out}"], "--modality: missing: expected the scan's modality, one of ct, mr"),
        (["--input={scans}", "--output={out}.nii.gz", "--modality=ct"], "lists scans: give a folder to write to"),
        (["--input={scans}", "--output={scans}", "--modality=ct"], "is the scan itself: expected another file"),
        (
            ["--input={scans}", "--output={out}", "--modality=ct", "--overlap=1"],
            "overlap 1: expected a share from 0 to",
        ),
        (["--input={csv}", "--output={out}"], "list.csv line 2: an empty field: expected case, modality, image"),
    ],
)
def test_misuse(run_dir, tmp_path, arguments, told):
    write_scans(tmp_path / "scans")
    (tmp_path / "list.csv").write_text("case,modality,image\na,,scans/a.nii.gz\n", encoding="utf-8")
    places = {"scans": tmp_path / "scans", "out": tmp_path / "out", "csv": tmp_path / "list.csv"}
    done = predict(run_dir, *(text.format(**places) for text in arguments))
    assert done.returncode == 1
    assert told in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("scan", "arguments", "told"),
    [
        ("b_probabilities.nii.gz", ["--output={folder}/b.nii.gz"], "b_probabilities.nii.gz: is the scan itself"),
        ("a_probabilities.nii.gz", ["--output={folder}/out"], "out/a_probabilities.nii.gz: would be written for two"),
    ],
)
def test_no_file_replaces_a_scan_or_another_scans_file(run_dir, tmp_path, scan, arguments, told):
    """Also those that are written beside label maps."""
    folder = tmp_path / "scans"
    write_scans(folder)
    shutil.copy(folder / "a.nii.gz", folder / scan)
    given = folder / scan if "b.nii.gz" in arguments[0] else folder
    flags = [text.format(folder=folder) for text in arguments]
    before = (folder / scan).read_bytes()
    done = predict(run_dir, "--modality=ct", f"--input={given}", "--probabilities", *flags)
    assert done.returncode == 1 and told in done.stderr, done.stderr
    assert (folder / scan).read_bytes() == before


def test_a_csv_in_capitals_is_a_list_of_scans(run_dir, tmp_path):
    write_scans(tmp_path / "scans")
    (tmp_path / "LIST.CSV").write_text("case,modality,image\na,ct,scans/a.nii.gz\n", encoding="utf-8")
    done = predict(run_dir, f"--input={tmp_path / 'LIST.CSV'}", f"--output={tmp_path / 'label.nii.gz'}")
    assert done.returncode == 1 and "lists scans: give a folder to write to" in done.stderr


def test_runs_of_another_image_size_are_not_averaged(run_dir, tmp_path):
    other = write_run(tmp_path / "runs", RunSpec("abdomen", next(iter(DATA)), "ours", seed=1), None)
    record = json.loads((other / "run.json").read_text(encoding="utf-8"))
    record["flags"]["size"] = 128
    (other / "run.json").write_text(json.dumps(record), encoding="utf-8")
    write_scans(tmp_path / "scans")
    done = predict(
        f"{run_dir},{other}", "--modality=ct", f"--input={tmp_path / 'scans'}", f"--output={tmp_path / 'out'}"
    )
    assert done.returncode == 1
    assert f"{other}: does not go with {run_dir}: size 128 instead of 64" in done.stderr


def test_dicom_segmentation_lies_on_its_series(run_dir, tmp_path):
    hd = pytest.importorskip("highdicom", reason="DICOM segmentations need highdicom")
    write_series(tmp_path / "series", reorient(patient(), "LPS"))
    done = predict(
        run_dir, "--modality=ct", f"--input={tmp_path / 'series'}", f"--output={tmp_path / 'out'}", "--dicom_seg"
    )
    assert done.returncode == 0, done.stderr
    segmentation = hd.seg.segread(tmp_path / "out/series.dcm")
    assert [d.segment_label for d in segmentation.SegmentSequence] == ["liver"]
    series = DicomSeries.open(tmp_path / "series")
    frames = segmentation.get_pixels_by_source_instance(
        [ds.SOPInstanceUID for ds in series.slices], combine_segments=True, ignore_spatial_locations=True
    )
    labels = np.asarray(nib.load(tmp_path / "out/series.nii.gz").dataobj)
    assert labels.any() and np.array_equal(frames.T, labels)


def test_a_series_in_which_nothing_is_found_counts_with_0_ml(run_dir, tmp_path, monkeypatch):
    pytest.importorskip("highdicom", reason="DICOM segmentations need highdicom")
    monkeypatch.setattr(scan_prediction, "restore", lambda probabilities, grid, own: np.zeros(own.shape, np.uint8))
    write_series(tmp_path / "scans/a", reorient(patient(), "LPS"))
    flags = ["--modality=ct", f"--input={tmp_path / 'scans'}", f"--output={tmp_path / 'out'}", "--dicom_seg"]
    done = predict(run_dir, *flags)
    assert done.returncode == 0 and "a DICOM segmentation cannot be empty: none was written" in done.stdout, done.stderr
    scan = json.loads((tmp_path / "out/volumes.json").read_text(encoding="utf-8"))["scans"]["a"]
    assert {organ["ml"] for organ in scan["classes"].values()} == {0.0} and not (tmp_path / "out/a.dcm").exists()


def test_dicom_segmentation_without_highdicom_is_one_line(run_dir, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "highdicom", None)
    done = predict(run_dir, "--modality=ct", f"--input={tmp_path}", f"--output={tmp_path / 'out'}", "--dicom_seg")
    assert done.returncode == 1
    assert done.stderr.startswith("error: DICOM segmentations need the package highdicom: install it with pip install")


def test_caption_says_what_the_paper_does_not_do(tmp_path):
    record = Record("a", tmp_path, read_run(run_with_evaluation(tmp_path)), {"overlap": 0.5, "cases": {}})
    plain = dataclasses.replace(record, evaluation={"overlap": 0.0, "largest_component": False, "cases": {}})
    assert "chunks overlapping by 50 % in 1 of 2 evaluations; commit" in provenance([record, plain])
    assert "overlapping" not in provenance([plain]) and "largest" not in provenance([plain])
    shown = {"window": "around the reference label's centroid; …", "grid": "original", "cases": {}}
    caption = provenance([dataclasses.replace(record, evaluation=shown)])
    assert "in the scans' own voxels; windows around the reference label's centroid, so finding" in caption
    trained_on = {**record.run, "progress": {"step": 300, "best_step": 250}}
    other = dataclasses.replace(record, run=trained_on, evaluation={"step": 200, "cases": {}})
    assert "; a EVALUATED AT STEP 200, not 250; commit" in provenance([other])
    assert "EVALUATED" not in provenance([dataclasses.replace(other, evaluation={"step": 250, "cases": {}})])
    # Of the same step, and another model all the same where weights are averaged.
    last = dataclasses.replace(other, evaluation={"step": 250, "selection": "last", "cases": {}})
    assert "; a EVALUATED WITH --selection=last; commit" in provenance([last])


def run_with_evaluation(tmp_path: Path) -> Path:
    return write_run(tmp_path, RunSpec("abdomen", next(iter(DATA)), "ours"), None)
