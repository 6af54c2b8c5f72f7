"""What a program says about bad input, word by word: one line, exit code 1, and nothing written or changed.

Raw data sets have a table of their own in test_malformed_input.py, training in test_programs.py and test_training.py.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import resource
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
from programs import Done, program
from raw_data import snapshot, write_abdomen
from recorded_runs import run_config
from toy_networks import toy3d

from ummkd_tf.common.documents import read_npz
from ummkd_tf.data.dataset import Dataset
from ummkd_tf.model.networks import network_to_dict
from ummkd_tf.model.segmenter import UnpairedSegmenter
from ummkd_tf.runs.checkpoints import CheckpointFolder, Progress
from ummkd_tf.runs.folder import start_run

AFFINE = np.diag([-6.0, -6.0, 8.0, 1.0])
AFFINE[:3, 3] = 100, 90, -40
MODEL = {
    "network": network_to_dict(toy3d()),  # a toy, because most rows build it
    "setting": "ours",
    "num_classes": 5,
    "width": 2,
    "modalities": ("ct", "mr"),
}


@pytest.fixture(scope="module")
def run_dir(prepared_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run as training leaves it, with random weights."""
    folder = tmp_path_factory.mktemp("run")
    model = UnpairedSegmenter(**MODEL)
    model.compile()
    CheckpointFolder(folder).save_best(model, Progress(step=7, best_dice=0.5, best_step=7), model.modalities)
    start_run(folder, config=run_config(), model=MODEL, dataset=prepared_dataset)
    return folder


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    write_abdomen(folder)
    return folder


def array(shape: tuple[int, ...] = (30, 28, 9)) -> np.ndarray:
    return np.random.default_rng(0).integers(-100, 200, shape).astype(np.float32)


def write(path: Path, values: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    nib.save(nib.Nifti1Image(values, affine), path)


def predict(run_dir: Path, scan: Path, output: Path, modality: str = "ct", **more: object) -> Done:
    given = {"run_dir": run_dir, "input": scan, "output": output, "modality": modality, **more}
    return program("experiments.predict", *(f"--{name}={value}" for name, value in given.items()))


# --- what is refused -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Where a row of the table may do damage: copies of the run and the data, a scan, an output that is not there."""

    folder: Path
    run: Path
    data: Path
    scan: Path
    output: Path
    raw: Path


def edit_json(path: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def edit_run(change: Callable[[dict], object]) -> Callable[[Place], object]:
    return lambda at: edit_json(at.run / "run.json", change)


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def scan_of(change: Callable[[np.ndarray], np.ndarray], affine: np.ndarray = AFFINE) -> Callable[[Place], object]:
    return lambda at: write(at.scan, change(array()), affine)


def put(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(values: np.ndarray) -> np.ndarray:
        values[3, 4, 5] = value
        return values

    return change


def header_only(shape: tuple[int, ...], zeros: int = 0) -> Callable[[Place], object]:
    """A header that tells of `shape`, and some zeros behind it."""

    def damage(at: Place) -> None:
        image = nib.Nifti1Image(np.zeros((1, 1, 1), np.int16), AFFINE)
        image.header["dim"][1:4] = shape
        image.header["vox_offset"] = 352
        at.scan.write_bytes(gzip.compress(image.header.binaryblock + bytes(4) + bytes(zeros), 1))

    return damage


def zero_affine(at: Place) -> None:
    image = nib.Nifti1Image(array(), AFFINE)
    for row in ("srow_x", "srow_y", "srow_z"):
        image.header[row] = 0
    image.header["vox_offset"] = 352
    block = image.header.binaryblock + bytes(4) + array().tobytes(order="F")
    at.scan.write_bytes(gzip.compress(block))


def in_metres(at: Place) -> None:
    image = nib.Nifti1Image(array(), AFFINE)
    image.header.set_xyzt_units("meter")
    nib.save(image, at.scan)


PREDICT, EVALUATE, QC, TRAIN = "experiments.predict", "experiments.evaluate", "data_prep.qc", "experiments.train"
USUAL = {
    TRAIN: "--data_dir={data} --run_dir={folder}/new --preset=tiny",
    PREDICT: "--run_dir={run} --input={scan} --output={output} --modality=ct",
    EVALUATE: "--run_dir={run} --data_dir={data}",
    QC: "--data_dir={data}",
}


def data_file(name: str, damage: Callable[[Path], object]) -> Callable[[Place], object]:
    """Damages a copy of a file of the data, which are linked from the shared ones."""

    def replace(at: Place) -> None:
        path, copy = at.data / name, at.folder / "copy"
        copy.write_bytes(path.read_bytes())
        path.unlink()
        copy.rename(path)
        damage(path)

    return replace


def fewer_cases(path: Path) -> None:
    edit_json(path, lambda content: content["split"].update(train=["ct_0", "mr_0"]))


def without_test_part(path: Path) -> None:
    edit_json(path, lambda content: content["split"].update(test=[]))


def case_in_two_parts(path: Path) -> None:
    edit_json(path, lambda content: content["split"]["test"].append("ct_0"))


def external_link(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["image"]
        file["image"] = h5py.ExternalLink("/etc/hostname", "/")


def other_case(path: Path) -> None:
    shutil.copy(path.with_name("mr_3.h5"), path)


def label_seven(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["label"][10:90, 10:90, 2] = 7


def not_finite(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["image"][0, 0, 0] = np.nan


def slices_of(rows: int, columns: int) -> Callable[[Path], None]:
    def cut(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            for name in ("image", "label"):
                part = file[name][:rows, :columns]
                del file[name]
                file[name] = part

    return cut


def nan_weights(at: Place) -> None:
    path = at.run / "checkpoints/best.npz"
    arrays = read_npz(path)
    name = next(n for n, a in arrays.items() if n.startswith("model/") and a.dtype.kind == "f")
    path.unlink()
    np.savez(path, **arrays | {name: np.full_like(arrays[name], np.nan)})


def modalities(names: list[str]) -> Callable[[Path], None]:
    return lambda path: edit_json(path, lambda content: content.update(modalities=names))


def without_mr(path: Path) -> None:
    edit_json(path, lambda content: content["split"].update(train=["ct_0", "ct_1"]))


def runs_checkpoint_alone(at: Place) -> None:
    (at.folder / "new/checkpoints").mkdir(parents=True)
    shutil.copy(at.run / "checkpoints/best.npz", at.folder / "new/checkpoints/step-00000007.npz")
    (at.folder / "new/lock").touch()


def nothing(at: Place) -> None:
    """No damage."""


# What is wrong: (program, how to bring it about, flags beside the usual ones, the line)
TABLE: dict[str, tuple[str, Callable[[Place], object], str, str]] = {
    "modality": (PREDICT, nothing, "--modality=pet", "--modality=pet: the run knows ct, mr; give the scan's modality"),
    "no run": (PREDICT, lambda at: (at.run / "run.json").unlink(), "",
        "{run}/run.json: no run here: expected a folder that ummkd train has written; check --run_dir"),
    "half a run.json": (PREDICT, lambda at: (at.run / "run.json").write_text('{"flags": ', encoding="utf-8"), "",
        "{run}/run.json: damaged (Expecting value: line 1 column 11 (char 10)): restore it from a copy or train again"),
    "run.json of another kind": (PREDICT, lambda at: (at.run / "run.json").write_text("[]", encoding="utf-8"), "",
        "{run}/run.json: damaged (a JSON list, expected an object): restore it from a copy or train again"),
    "run.json without its model": (PREDICT, edit_run(lambda run: run.pop("model")), "",
        "{run}/run.json: damaged (no model): restore it from a copy or train again"),
    "run.json without a flag": (PREDICT, edit_run(lambda run: run["flags"].pop("selection")), "",
        "{run}/run.json: damaged (no selection): restore it from a copy or train again"),
    "run.json with flags of another kind": (PREDICT, edit_run(lambda run: run.update(flags=[])), "",
        "{run}/run.json: damaged (no flags): restore it from a copy or train again"),
    "run.json without modalities": (PREDICT, edit_run(lambda run: run["model"].pop("modalities")), "",
        "{run}/run.json: damaged (no model.modalities): restore it from a copy or train again"),
    "run.json without its setting's name": (PREDICT, edit_run(lambda run: run.update(setting={})), "",
        "{run}/run.json: damaged (no setting.title): restore it from a copy or train again"),
    "run.json that continued nothing": (PREDICT, edit_run(lambda run: run.update(continued=[{}])), "",
        "{run}/run.json: damaged ('environment'): restore it from a copy or train again"),
    "run.json with progress of another kind": (PREDICT, edit_run(lambda run: run.update(progress=[])), "",
        "{run}/run.json: damaged (no progress): restore it from a copy or train again"),
    "run.json of no size": (PREDICT, edit_run(lambda run: run["flags"].update(size=0)), "",
        "{run}/run.json: damaged (size 0 of 256 rows): restore it from a copy or train again"),
    "run.json of a size that does not fit": (PREDICT, edit_run(lambda run: run["flags"].update(size=100)), "",
        "{run}/run.json: damaged (size 100 of 256 rows): restore it from a copy or train again"),
    "run.json of an unknown task": (PREDICT, edit_run(lambda run: run.update(task="brain")), "",
        "{run}/run.json: damaged (run.json: unknown task 'brain': expected abdomen or cardiac, or a whole task): "
        "restore it from a copy or train again"),
    "run.json of a giant": (PREDICT, edit_run(lambda run: run["model"].update(width=10**6)), "",
        "out of memory: free some, or take a smaller image; in training, a smaller --batch_size or --preset"),
    "no checkpoints": (PREDICT, lambda at: shutil.rmtree(at.run / "checkpoints"), "",
        "{run}/checkpoints: no best checkpoint: train the run to its first validation, or choose "
        "--selection=last"),
    "no last checkpoint": (PREDICT, nothing, "--selection=last",
        "{run}/checkpoints: no last checkpoint: train the run first, or choose --selection=best"),
    "half a checkpoint": (PREDICT, lambda at: halve(at.run / "checkpoints/best.npz"), "",
        "{run}/checkpoints/best.npz: damaged checkpoint: restore it from a copy, or use the other --selection"),
    "unknown setting": (PREDICT, edit_run(lambda run: run["model"].update(setting="z_shaped")), "",
        "{run}/run.json: describes no model (unknown setting 'z_shaped': expected one of individual, joint, "
        "joint_kd, y_shaped, x_shaped, chilopod, ours): restore it from a copy"),
    "another architecture": (PREDICT, edit_run(lambda run: run["model"].update(width=4)), "",
        "{run}/checkpoints/best.npz: checkpoint of another architecture (19 variables differ, e.g. "
        "'model/segmenter/encoder_1/unit_1/conv/shared/kernel'): use the flags it was trained with"),
    "no scan": (PREDICT, lambda at: at.scan.unlink(), "", "{scan}: no such file or folder: check the path"),
    "half a scan": (PREDICT, lambda at: halve(at.scan), "",
        "{scan}: damaged or truncated NIfTI file (Compressed file ended before the end-of-stream marker was "
        "reached): copy it again"),
    "4D scan": (PREDICT, scan_of(lambda a: np.stack([a, a], -1)), "",
        "{scan}: 4D image of shape (30, 28, 9, 2): expected 3D; give one volume (a 4D file must be split)"),
    "NaN": (PREDICT, scan_of(put(np.nan)), "",
        "{scan}: 1 NaN or infinite voxels: expected finite values; repair the image"),
    "infinity": (PREDICT, scan_of(put(np.inf)), "",
        "{scan}: 1 NaN or infinite voxels: expected finite values; repair the image"),
    "one voxel": (PREDICT, scan_of(lambda a: a[:1, :1, :1]), "",
        "{scan}: every voxel has the value 155 after clipping: expected an image with contrast"),
    "constant scan": (PREDICT, scan_of(lambda a: 0 * a + 5), "",
        "{scan}: every voxel has the value 5 after clipping: expected an image with contrast"),
    "zero affine": (PREDICT, zero_affine, "",
        "{scan}: the affine is singular or not finite: repair the header's geometry"),
    "slices 100 m apart": (PREDICT, scan_of(lambda a: a, np.diag([6.0, 6.0, 1e5, 1.0])), "",
        "{scan}: the scan is 180 × 168 × 900000 mm large: expected at most 3000 mm; write the file again with its "
        "spacing in mm"),
    "no voxel": (PREDICT, header_only((0, 30, 30)), "",
        "{scan}: an image of shape (0, 30, 30): expected at least one voxel; copy it again"),
    "header of 54 TB": (PREDICT, header_only((30000, 30000, 30000)), "",
        "{scan}: an image of shape (30000, 30000, 30000), 2.7e+13 voxels: expected at most 5.4e+08, as 512 × 512 × "
        "2048; crop or reduce it"),
    "header of 1 GB and nothing behind it": (PREDICT, header_only((800, 800, 800)), "",
        "{scan}: damaged or truncated: the header tells of shape (800, 800, 800), and the file is too short for it: "
        "copy it again"),
    "bomb behind a small header": (PREDICT, header_only((10, 10, 10), 10**8), "",
        "{scan}: damaged or truncated NIfTI file (more data than the header tells of): copy it again"),
    "output of another format": (PREDICT, nothing, "--output={folder}/label.png",
        "--output={folder}/label.png: expected a name that ends in .nii or .nii.gz, or a folder"),
    "picture of another format": (PREDICT, nothing, "--overlay={folder}/label.bmp",
        "--overlay={folder}/label.bmp: expected a name that ends in .png or .pdf"),
    "metres": (PREDICT, in_metres, "",
        "{scan}: the header gives distances in meter: expected mm; write the file again in mm"),
    "output below a file": (PREDICT, nothing, "--output={scan}/label.nii.gz",
        "{scan}/label.nii.gz: could not be written (File exists): make room or check permissions"),
    "output is the scan": (PREDICT, nothing, "--output={scan}",
        "{scan}: is the scan itself: expected another file; choose another --output or --overlay"),
    "evaluate: no data": (EVALUATE, nothing, "--data_dir={folder}",
        "{folder}/dataset.json: no prepared data set: run ummkd prepare first, or check --data_dir"),
    "evaluate: another split": (EVALUATE, data_file("dataset.json", fewer_cases), "",
        "{data}: another split (blocks) than the run was trained with (blocks): test cases may have been trained on; "
        "give the run's own data"),
    "evaluate: half a case": (EVALUATE, data_file("cases/ct_3.h5", halve), "",
        "{data}/cases/ct_3.h5: not a readable HDF5 file: delete it and prepare the case again"),
    "evaluate: another case's file": (EVALUATE, data_file("cases/ct_3.h5", other_case), "",
        "{data}/cases/ct_3.h5: holds case 'mr_3' of modality 'mr': expected 'ct_3' of 'ct'; prepare the case again"),
    "evaluate: no checkpoint": (EVALUATE, lambda at: (at.run / "checkpoints/best.npz").unlink(), "",
        "{run}/checkpoints: no best checkpoint: train the run to its first validation, or choose "
        "--selection=last"),
    "evaluate: slices of an odd size": (EVALUATE, data_file("cases/ct_3.h5", slices_of(100, 128)), "",
        "{data}/cases/ct_3.h5: slices of (100, 128): expected (256, 256) in task abdomen; prepare the data again"),
    "weights that are no numbers": (PREDICT, nan_weights, "",
        "{run}/checkpoints/best.npz: 1 variables with NaN or infinite values, e.g. "
        "'model/segmenter/encoder_1/unit_1/conv/shared/kernel': the run diverged; use the other --selection, or "
        "train again with a lower --learning_rate"),
    "evaluate: more classes than the model": (EVALUATE, data_file("cases/ct_3.h5", label_seven), "",
        "{data}/cases/ct_3.h5: label value 7, but task abdomen has values 0 to 4: prepare the data again"),
    "qc: no data": (QC, nothing, "--data_dir={folder}",
        "{folder}/dataset.json: no prepared data set: run ummkd prepare first, or check --data_dir"),
    "qc: half a case": (QC, data_file("cases/ct_0.h5", halve), "",
        "{data}/cases/ct_0.h5: not a readable HDF5 file: delete it and prepare the case again"),
    "qc: output below a file": (QC, nothing, "--out_dir={scan}",
        "{scan}/case_ct_0.png: could not be written (File exists): make room or check permissions"),
    "splits: output below a file": ("data_prep.make_splits", nothing, "--dir={scan}",
        "{scan}/mmwhs_sifa.json: could not be written (File exists): make room or check permissions"),
    "splits: not a split file": ("data_prep.prepare", nothing,
        "--source=abdomen --raw={raw} --out={folder}/new --workers=1 --split={run}/run.json",
        "{run}/run.json: not a split file (KeyError('name')): expected the form in docs/data.md"),
    "splits: no such split": ("data_prep.prepare", nothing,
        "--source=abdomen --raw={raw} --out={folder}/new --workers=1 --split=nothing",
        "nothing: no such split: expected seeded, k_fold, abdomen_39, abdomen_paper_size, abdomen_sifa, mmwhs_sifa "
        "or the path of a split file"),
    "splits: folds without k_fold": ("data_prep.prepare", nothing,
        "--source=abdomen --raw={raw} --out={folder}/new --workers=1 --folds=3 --fold=1",
        "--folds=3: not used by the split (seeded 70/10/20, seed 0): expected it only with --split=k_fold; leave it "
        "out, or change --split"),
    "prepare: another source's flag": ("data_prep.prepare", nothing,
        "--source=btcv --raw={raw} --out={folder}/new --workers=1 --sequence=t2spir",
        "--sequence: not used by --source=btcv: expected it only with --source=chaos or abdomen; leave it out"),
    "prepare: a folder besides the list": ("data_prep.prepare", nothing,
        "--source=csv --raw={raw} --csv={folder}/own.csv --task=cardiac --out={folder}/new --workers=1",
        "--raw: not used by --source=csv: expected it only with --source=btcv or chaos or abdomen or mmwhs or "
        "released; leave it out"),
    "prepare: label 5 of scans": ("data_prep.prepare", nothing,
        "--source=abdomen --raw={raw} --out={folder}/new --workers=1 --label_5=background",
        "--label_5: not used by --source=abdomen: expected it only with --source=released; leave it out"),
    "verify: another source's list": ("data_prep.verify", nothing,
        "--source=abdomen --dir={raw} --workers=1 --csv={folder}/own.csv",
        "--csv: not used by --source=abdomen: expected it only with --source=csv; leave it out"),
    "describe: patches of the other network": (TRAIN, nothing, "--task=cardiac --labelled_share=1 --describe",
        "--labelled_share=1.0: dilated2d takes no patches; leave it out"),
    "describe: decoder of the other network": (TRAIN, nothing, "--task=cardiac --decoder=released --describe",
        "--decoder=released: belongs to unet3d, but the network is dilated2d; leave it out"),
    "float16 without a GPU": (TRAIN, nothing, "--precision=mixed_float16",
        "--precision=mixed_float16: needs a GPU, and TensorFlow sees none (its CPU operations lack float16); "
        "--precision=auto takes what suits the machine"),
    "XLA with deterministic operations": (TRAIN, nothing, "--xla --deterministic",
        "--xla: TensorFlow has no deterministic operations for it: leave out --xla or --deterministic"),
    "train: no run named": (TRAIN, nothing, "--run_dir=",
        "--data_dir and --run_dir are needed to train: give both, or use --describe"),
    "train: no data": (TRAIN, data_file("dataset.json", Path.unlink), "",
        "{data}/dataset.json: no prepared data set: run ummkd prepare first, or check --data_dir"),
    "train: JSON of another kind": (TRAIN,
        data_file("dataset.json", lambda path: path.write_text("[]", encoding="utf-8")), "",
        "{data}/dataset.json: not a data set description (ValueError('a JSON list, expected an object')): prepare "
        "the data again"),
    "train: empty part": (TRAIN, data_file("dataset.json", without_test_part), "",
        "{data}/dataset.json: the test part has no ct case: expected at least one; add cases or choose another split"),
    "train: leaking split": (TRAIN, data_file("dataset.json", case_in_two_parts), "",
        "{data}/dataset.json: case 'ct_0' is in train and in test: keep it in one part"),
    "train: missing case": (TRAIN, data_file("cases/ct_0.h5", Path.unlink), "",
        "{data}/cases/ct_0.h5: missing case file: prepare the data again"),
    "train: half a case": (TRAIN, data_file("cases/ct_0.h5", halve), "",
        "{data}/cases/ct_0.h5: not a readable HDF5 file: delete it and prepare the case again"),
    "train: more classes than the model": (TRAIN, data_file("cases/ct_2.h5", label_seven), "",
        "{data}/cases/ct_2.h5: label value 7, but task abdomen has values 0 to 4: prepare the data again"),
    "evaluate: NaN in a case": (EVALUATE, data_file("cases/ct_3.h5", not_finite), "",
        "{data}/cases/ct_3.h5: the image has NaN or infinite voxels: expected finite ones; prepare the case again"),
    "train: NaN in a case": (TRAIN, data_file("cases/ct_2.h5", not_finite), "",
        "{data}/cases/ct_2.h5: the image has NaN or infinite voxels: expected finite ones; prepare the case again"),
    "train: smaller slices": (TRAIN, data_file("cases/ct_0.h5", slices_of(128, 128)), "",
        "{data}/cases/ct_0.h5: slices of (128, 128): expected (256, 256) in task abdomen; prepare the data again"),
    "train: no modality": (TRAIN, data_file("dataset.json", modalities([])), "",
        "{data}/dataset.json: modalities none: expected different plain names like ct and mr, and not shared; rename "
        "them where the data come from, and prepare again"),
    "train: a modality that is none": (TRAIN, data_file("dataset.json", modalities(["ct", "mr", "shared"])), "",
        "{data}/dataset.json: modalities ct, mr, shared: expected different plain names like ct and mr, and not "
        "shared; rename them where the data come from, and prepare again"),
    "train: case of an unknown modality": (TRAIN, data_file("dataset.json", modalities(["ct"])), "",
        "{data}/dataset.json: 'mr_0' in the train part is of modality 'mr': expected ct; prepare the data again"),
    "train: a modality without a case": (TRAIN, data_file("dataset.json", without_mr), "",
        "{data}/dataset.json: the train part has no mr case: expected at least one; add cases or choose another split"),
    "train: checkpoints without run.json": (TRAIN, runs_checkpoint_alone, "",
        "{folder}/new: has checkpoints but no run.json, so nobody knows what was run: restore run.json from a copy, "
        "or choose another --run_dir"),
    "train: link to another file": (TRAIN, data_file("cases/ct_0.h5", external_link), "",
        "{data}/cases/ct_0.h5: 'image' is a link: expected data in the file itself; prepare it again"),
}  # fmt: skip


def run_row(name: str, at: Place) -> Done:
    module, _, more, _ = TABLE[name]
    arguments = f"{USUAL.get(module, '')} {more}".format(**vars(at)).split()
    return program(module, *arguments)


@pytest.fixture
def at(run_dir: Path, prepared_dataset: Dataset, raw: Path, tmp_path: Path) -> Place:
    run = shutil.copytree(run_dir, tmp_path / "run")
    data = tmp_path / "data"
    shutil.copytree(prepared_dataset.directory, data, copy_function=os.link)  # large; replaced before it is changed
    write(tmp_path / "scan.nii.gz", array())
    return Place(tmp_path, run, data, tmp_path / "scan.nii.gz", tmp_path / "label.nii.gz", raw)


@pytest.mark.parametrize("name", TABLE)
def test_bad_input_is_one_line_and_writes_nothing(name: str, at: Place) -> None:
    _, damage, _, line = TABLE[name]
    damage(at)
    before = snapshot(at.folder)
    code, _, error = run_row(name, at)
    lines = re.split(r"[\r\n]+", error)
    said = [text for text in lines if text and "case/s" not in text and not text.startswith("note: ")]  # no bars
    assert said == ["error: " + line.format(**vars(at))]
    assert code == 1
    after = snapshot(at.folder)
    for files in (before, after):
        files.pop("data/index.json", None)  # what training has learnt of the cases
    assert after == before


# --- what works all the same -----------------------------------------------------------------------------------------


def test_orientation_makes_no_difference(run_dir: Path, tmp_path: Path) -> None:
    """The label map of a turned scan is the turned label map."""
    image, start = nib.Nifti1Image(array(), AFFINE), nib.orientations.io_orientation(AFFINE)
    turns = {
        axes: nib.orientations.ornt_transform(start, nib.orientations.axcodes2ornt(tuple(axes)))
        for axes in ("RAS", "PSR", "ILP")
    }
    (tmp_path / "scans").mkdir()
    nib.save(image, tmp_path / "scans" / "own.nii.gz")
    for axes, turn in turns.items():
        nib.save(image.as_reoriented(turn), tmp_path / "scans" / f"{axes}.nii.gz")
    assert predict(run_dir, tmp_path / "scans", tmp_path / "labels")[0] == 0
    expected = nib.load(tmp_path / "labels" / "own.nii.gz")
    assert np.ptp(expected.get_fdata()) > 0
    for axes, turn in turns.items():
        found = nib.load(tmp_path / "labels" / f"{axes}.nii.gz")
        assert nib.aff2axcodes(found.affine) == tuple(axes)
        differing = expected.as_reoriented(turn).get_fdata() != found.get_fdata()
        assert differing.mean() < 1e-3  # rounding decides where two classes are equally likely


@pytest.mark.parametrize(
    ("shape", "spacing"), [((5, 4, 1), (40, 40, 8)), ((30, 28, 3), (6, 6, 8)), ((3, 40, 60), (30, 1, 0.7))]
)
def test_small_and_anisotropic_scans(shape: tuple[int, int, int], spacing: tuple[float, ...], run_dir: Path,
                                     tmp_path: Path) -> None:  # fmt: skip
    affine = np.diag([*spacing, 1.0])
    write(tmp_path / "a.nii", array(shape), affine)
    code, printed, error = predict(run_dir, tmp_path / "a.nii", tmp_path / "new/folder/label.nii.gz", "mr")
    assert code == 0, error
    label = nib.load(tmp_path / "new/folder/label.nii.gz")
    assert label.shape == shape and np.allclose(label.affine, affine)
    assert f"Ours, step 7; shape {shape}, orientation RAS" in printed


def test_disk_that_fills_up_during_prediction(run_dir: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk; the earlier label map stays as it was."""
    write(tmp_path / "a.nii", array((60, 60, 9)))
    output = tmp_path / "label.nii"
    output.write_bytes(b"the earlier one")
    before, limits = snapshot(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        code, _, error = predict(run_dir, tmp_path / "a.nii", output)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 1
    assert error.endswith(f"error: {output}: could not be written (File too large): make room or check permissions\n")
    assert snapshot(tmp_path) == before
