"""Models as folders: exported, read, refused, grown; and the authors' checkpoints."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from prepared_data import blocks, write_prepared_dataset
from programs import fresh_programs, program
from recorded_runs import run_config

import ummkd_tf
from ummkd_tf.common.errors import InputError, Stopped
from ummkd_tf.common.files import write_json
from ummkd_tf.data.cases import file_checksum, recipe_checksum
from ummkd_tf.data.dataset import Dataset
from ummkd_tf.evaluation.inference import Predictor
from ummkd_tf.model.segmenter import UnpairedSegmenter
from ummkd_tf.runs.checkpoints import CheckpointFolder, weights_checksum
from ummkd_tf.runs.exported import ExportedModel, check_not_seen, export_run, load_model, start_from, write_model
from ummkd_tf.runs.loading import load_run, load_scan_predictor
from ummkd_tf.runs.model_card import model_card
from ummkd_tf.runs.model_folder import CHECKSUMS, MODEL
from ummkd_tf.runs.session import SessionOptions, run_training
from ummkd_tf.scans import preprocessing
from ummkd_tf.scans.geometry import Volume
from ummkd_tf.scans.nifti import write_nifti
from ummkd_tf.tasks import TASKS

ARGUMENTS = {
    "network": "unet3d",
    "setting": "ours",
    "num_classes": 5,
    "width": 2,
    "normalization": "batch",
    "decoder": "paper",
    "initialization": "glorot",
}
SHORT = {"steps": 2, "size": 32, "validate_every": 2, "batch_size": 1}


@pytest.fixture(scope="module", autouse=True)
def _all_eager():
    """As `eager` of conftest.py, also for the runs that several tests share."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


def short_run(data: Path, run_dir: Path, **config) -> Path:
    run_training(Dataset.load(data), run_dir, run_config(**SHORT, **config), ARGUMENTS, SessionOptions())
    return run_dir


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("data")
    write_prepared_dataset(directory)
    return directory


@pytest.fixture(scope="module")
def run_dir(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return short_run(data, tmp_path_factory.mktemp("runs") / "ours")


@pytest.fixture(scope="module")
def exported(run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "model"
    done = program("experiments.export", f"--run_dir={run_dir}", f"--out={out}")
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def model(exported: Path) -> ExportedModel:
    return ummkd_tf.load_model(exported)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras, of its own variables
def test_run_folder_and_keras_file_agree(run_dir: Path, model: ExportedModel, data: Path, tmp_path: Path) -> None:
    """What a SavedModel gives, test_keras_ways.py compares."""
    trained, _, _ = load_run(run_dir)
    assert load_scan_predictor([run_dir]).weights_sha256 == model.scan_predictor().weights_sha256
    assert load_scan_predictor([run_dir]).seen.keys() == model.scan_predictor().seen.keys()
    trained.save(tmp_path / "x.keras")
    from_keras = keras.models.load_model(tmp_path / "x.keras")
    for m, case_id in (("ct", "ct_3"), ("mr", "mr_3")):
        image = Dataset.load(data).case(case_id, 8).image
        expected = Predictor(trained).probabilities(image, m)
        assert np.ptp(expected) > 0.01
        np.testing.assert_allclose(model.predictor.probabilities(image, m), expected, atol=1e-6)
        np.testing.assert_allclose(Predictor(from_keras).probabilities(image, m), expected, atol=1e-6)
    trained.weights[0].assign_add(np.full(trained.weights[0].shape, 1e-3))
    assert (weights_checksum(trained),) != model.scan_predictor().weights_sha256


def test_a_scan_is_segmented_with_no_flag(model: ExportedModel, tmp_path: Path) -> None:
    image, _ = blocks(np.random.default_rng(1), depth=9)
    scan = Volume(image, np.diag([-1.5, -1.5, 8.0, 1.0])[[1, 0, 2, 3]])
    write_nifti(tmp_path / "scan.nii.gz", scan)
    result = model.predict_scan(tmp_path / "scan.nii.gz", modality="mr")
    assert result.labels.shape == image.shape
    np.testing.assert_allclose(result.affine, scan.affine, atol=1e-5)
    np.testing.assert_allclose(result.probabilities.sum(-1), 1, atol=1e-5)
    np.testing.assert_array_equal(result.probabilities.argmax(-1), result.labels)
    with pytest.raises(InputError, match="the model knows ct, mr"):
        model.predict_scan(scan, modality="pet")


def test_the_folder_says_where_the_model_comes_from(exported: Path, run_dir: Path, data: Path) -> None:
    content = json.loads((exported / MODEL).read_text(encoding="utf-8"))
    record = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))
    training = content["training"]
    assert training["split_sha256"] == record["split_sha256"]
    assert training["commit"] == record["environment"]["commit"]
    assert sorted(training["cases"]) == ["ct_0", "ct_1", "ct_2", "mr_0", "mr_1", "mr_2"]  # not the test part
    assert content["labels"][0] == {"value": 0, "name": "background", "color": None}
    card = (exported / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "Not a medical device" in card and "has not been evaluated" in card
    assert "kernels are shared by all modalities, its normalization layers\neach modality's own; after" in card
    content["model"]["setting"] = "individual"
    assert "kernels are each modality's own, its" in model_card(content, 1, "")
    assert "mm, 32 × 32)" in card and f"{content['factor'] * 1.5:g} × {content['factor'] * 1.5:g} × 8 mm" in card


def test_a_run_whose_data_have_moved_is_exported(run_dir: Path, data: Path, tmp_path: Path) -> None:
    run, moved = Path(shutil.copytree(run_dir, tmp_path / "run")), Path(shutil.copytree(data, tmp_path / "moved"))
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    write_json(run / "run.json", {**record, "data_dir": str(tmp_path / "before")})
    flags = (f"--run_dir={run}", f"--out={tmp_path / 'model'}")
    refused = program("experiments.export", *flags)
    assert refused.returncode == 1 and "before/dataset.json: no prepared data set" in refused.stderr
    done = program("experiments.export", *flags, f"--data_dir={moved}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "model" / MODEL).is_file()


def test_damage_and_edits_are_told(exported: Path, run_dir: Path, tmp_path: Path) -> None:
    def copy(name: str) -> Path:
        return Path(shutil.copytree(exported, tmp_path / name))

    for name in (MODEL, "weights.npz", "MODEL_CARD.md"):
        folder = copy(f"edited-{name}")
        with open(folder / name, "ab") as stream:
            stream.write(b" ")
        with pytest.raises(InputError, match=f"{name}: missing, damaged or edited"):
            load_model(folder)
    folder = copy("no-sums")
    (folder / CHECKSUMS).unlink()
    with pytest.raises(InputError, match="SHA256SUMS: missing or damaged"):
        load_model(folder)
    with pytest.raises(InputError, match="no exported model"):
        load_model(tmp_path)
    with pytest.raises(InputError, match="is there already"):
        export_run(run_dir, exported)

    def rewritten(name: str, **changes) -> Path:
        folder = copy(name)
        write_json(folder / MODEL, json.loads((folder / MODEL).read_text(encoding="utf-8")) | changes)
        sums = [f"{file_checksum(folder / n)}  {n}\n" for n in ("MODEL_CARD.md", MODEL, "weights.npz")]
        (folder / CHECKSUMS).write_text("".join(sums), encoding="utf-8")
        return folder

    for changes, message in (
        ({"preparation": 4}, "prepared by version 4 of the steps, and this program has version"),
        ({"format": 9}, "format 9, expected 1"),
        ({"task": {}}, "problems in the task"),
        ({"model": {"network": "unet4d"}}, "describes no model"),
        ({"training": []}, "no training"),
        ({"model": {**ARGUMENTS, "width": 3}}, "another architecture"),
    ):
        with pytest.raises(InputError, match=message):
            load_model(rewritten(f"rewritten-{next(iter(changes))}-{message[:9]}", **changes))


def test_cases_of_training_are_recognized_under_another_name(model: ExportedModel, data: Path) -> None:
    dataset = Dataset.load(data)
    check_not_seen(model.training, dataset, ["ct_3", "mr_3"])
    with pytest.raises(InputError, match=r"2 of 3 cases .* part: ct_0, mr_2: expected"):
        check_not_seen(model.training, dataset, ["ct_0", "ct_3", "mr_2"])


def test_an_outlier_that_the_first_model_was_trained_on_is_refused(model: ExportedModel, data: Path) -> None:
    """A run that went on from a model has learnt from its cases, too, though its own split holds one of them out."""
    dataset = Dataset.load(data)
    train = tuple(case_id for case_id in dataset.split["train"] if case_id != "ct_0")
    held_out = replace(dataset, split={**dataset.split, "train": train})
    with fresh_programs():
        from experiments.evaluate import _outlier
    assert _outlier(held_out, "ct_0", None) == ["ct_0"]
    with pytest.raises(InputError, match=r"1 of 1 cases .* part: ct_0: expected"):
        _outlier(held_out, "ct_0", model.training)


def test_the_card_has_results_of_this_checkpoint_alone(run_dir: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(run_dir, tmp_path / "run"))
    done = program("experiments.evaluate", f"--run_dir={run}")
    assert done.returncode == 0, done.stderr
    with fresh_programs():
        from experiments.export import results_of
    ((step, text),) = results_of(run, None).items()
    assert step == 2 and ", step 2 (best):" in text
    evaluation = json.loads((run / "evaluation_test.json").read_text(encoding="utf-8"))
    beyond = {"overlap": 0.5, "largest_component": True}
    write_json(run / "evaluation_test.json", {**evaluation, **beyond})
    assert "(best); chunks overlapping by 50 %; largest connected part of each class:" in results_of(run, None)[2]
    for other in ({"step": 1}, {"selection": "last"}):  # of an averaged model, the last is another one of the same step
        write_json(run / "evaluation_test.json", {**evaluation, **other})
        assert results_of(run, None) == {}
    (run / "evaluation_test.json").unlink()
    write_json(run / "evaluation_test_original.json", {**evaluation, "grid": "original"})
    assert ", step 2 (best); in the scans' own voxels:" in results_of(run, None)[2]
    # A run that goes on has no record of its best checkpoint: what is exported decides.
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    for best_step, results, told in ((2, {2: "of it"}, True), (1, {1: "of another"}, False)):
        write_json(run / "run.json", {**record, "progress": {**record["progress"], "best_step": best_step}})
        out = export_run(run, tmp_path / f"model{best_step}", results=results)
        card = (out / "MODEL_CARD.md").read_text(encoding="utf-8")
        assert ("of it" in card, "It has not been evaluated." in card) == (told, not told)
        assert ("validation Dice" in card) == told


def test_scans_not_used_before_are_evaluated(exported: Path, data: Path, tmp_path: Path) -> None:
    for number, modality in enumerate(("ct", "mr")):
        image, label = blocks(np.random.default_rng(50 + number), depth=9)
        affine = np.diag([-1.5, -1.5, 8.0, 1.0])[[1, 0, 2, 3]]
        write_nifti(tmp_path / f"{modality}.nii.gz", Volume((100 * image + 300).astype(np.int16), affine))
        write_nifti(tmp_path / f"{modality}_label.nii.gz", Volume(label, affine))
    rows = "".join(f"new_{m},{m},{m}.nii.gz,{m}_label.nii.gz,\n" for m in ("ct", "mr"))
    (tmp_path / "new.csv").write_text("case,modality,image,label,split\n" + rows, encoding="utf-8")
    flags = (f"--model={exported}", f"--out={tmp_path / 'out'}")
    done = program("experiments.evaluate", *flags, f"--csv={tmp_path / 'new.csv'}")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out" / "evaluation_new.json").read_text(encoding="utf-8"))
    assert sorted(result["cases"]) == ["new_ct", "new_mr"]
    assert result["summary"]["dice"]["ct"]["liver"]["count"] == 1
    # The data set that it was trained on: refused, with names, and nothing is written.
    done = program("experiments.evaluate", *flags[:1], f"--out={tmp_path / 'no'}", f"--data_dir={data}")
    assert done.returncode == 1 and "6 of 8 cases were in the model's train or validation part" in done.stderr
    assert not (tmp_path / "no").exists()
    done = program("experiments.evaluate", *flags)
    assert done.returncode == 1 and "labelled scans as --csv or as prepared --data_dir" in done.stderr


def test_data_prepared_by_other_steps_are_not_evaluated(exported: Path, data: Path, tmp_path: Path) -> None:
    """The model's scans and these were prepared differently: a score would mean nothing."""
    older = Path(shutil.copytree(data, tmp_path / "data"))
    content = json.loads((older / "dataset.json").read_text(encoding="utf-8"))
    recipe = recipe_checksum(Dataset.load(data).task, preprocessing.VERSION - 1)
    write_json(older / "dataset.json", {**content, "recipe": recipe})
    done = program("experiments.evaluate", f"--model={exported}", f"--data_dir={older}", f"--out={tmp_path / 'out'}")
    assert done.returncode == 1 and not (tmp_path / "out").exists()
    before, now = preprocessing.VERSION - 1, preprocessing.VERSION
    assert f"data: prepared by version {before} of the steps, and this program has version {now}" in done.stderr


def third_modality(data: Path, directory: Path) -> Path:
    """The MR cases as modality `mr2`, alone, with images of opposite contrast."""
    shutil.copytree(data, directory)
    content = json.loads((directory / "dataset.json").read_text(encoding="utf-8"))
    cases = [c for c in content["cases"] if c.startswith("mr")]
    for case_id in cases:
        path = directory / "cases" / f"{case_id}.h5"
        with h5py.File(path, "r+") as file:
            file["image"][...] = -0.5 * file["image"][...]
            file.attrs["modality"] = np.bytes_(b"mr2")
            file.attrs["source_sha256"] = file.attrs["image_sha256"] = np.bytes_(case_id.encode())
    content["modalities"] = ["mr2"]
    content["cases"] = {c: content["cases"][c] | {"modality": "mr2"} for c in cases}
    content["split"] = {part: [c for c in ids if c in cases] for part, ids in content["split"].items()}
    write_json(directory / "dataset.json", content)
    return directory


def test_a_third_modality_is_added_by_its_norms_alone(
    exported: Path, model: ExportedModel, data: Path, tmp_path: Path
) -> None:
    grown_data = third_modality(data, tmp_path / "data")
    grown_run = short_run(grown_data, tmp_path / "grown", init_from=str(exported), freeze="kernels", norm_batches=1)
    grown, record, _ = load_run(grown_run)
    assert grown.modalities == ("ct", "mr", "mr2")
    before = {v.path: v.numpy() for v in model.model.variables}
    changed = [v.path for v in grown.variables if not np.array_equal(before.get(v.path, np.nan), v.numpy())]
    # What the new modality owns, and nothing else: CT and MR are segmented as before, to the last bit.
    assert changed == [v.path for v in grown.variables if "/mr2/" in v.path]
    gamma = "segmenter/encoder_1/unit_1/norm/{}/gamma".format
    start = (before[gamma("ct")] + before[gamma("mr")]) / 2
    moved = next(v.numpy() for v in grown.variables if v.path == gamma("mr2"))
    np.testing.assert_allclose(moved, start, atol=2 * 2e-3 + 1e-6)  # two steps of Adam
    # What the first model has seen stays known.
    again = load_model(export_run(grown_run, tmp_path / "model"))
    with pytest.raises(InputError, match="part: mr_0: expected"):
        check_not_seen(again.training, Dataset.load(data), ["ct_3", "mr_0"])
    assert record["flags"]["freeze"] == "kernels"


def test_a_fine_tuning_goes_on_without_the_model_folder(exported: Path, data: Path, tmp_path: Path) -> None:
    def train(model: Path, **options) -> dict:
        """Trains, or goes on, with --init_from=`model`; returns the record."""
        config = run_config(**SHORT, init_from=str(model))
        run_training(Dataset.load(data), tmp_path / "run", config, ARGUMENTS, SessionOptions(**options))
        return json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))

    model = Path(shutil.copytree(exported, tmp_path / "model"))
    with pytest.raises(Stopped, match="at step 1; the same command continues"):
        train(model, max_hours=0)
    moved, other = model.rename(tmp_path / "moved"), Path(shutil.copytree(exported, tmp_path / "other"))
    with open(other / "weights.npz", "ab") as stream:
        stream.write(b" ")
    with pytest.raises(InputError, match=r"init_from is '.*other', was '.*model'"):
        train(other)
    assert train(model)["progress"]["step"] == 2  # the same command
    record = train(moved)  # the same model
    assert record["flags"]["init_from"] == str(model) and "changes" not in record
    assert record["started_from"] == json.loads((moved / MODEL).read_text(encoding="utf-8"))["training"]


def test_growing_refuses_what_cannot_work(exported: Path, data: Path, tmp_path: Path) -> None:
    def start(**config) -> None:
        short_run(data, tmp_path / "run", **config)

    with pytest.raises(InputError, match="expected --init_from"):
        start(freeze="kernels")
    other = tmp_path / "other-split"
    shutil.copytree(data, other)
    content = json.loads((other / "dataset.json").read_text(encoding="utf-8"))
    content["split"] = {
        **content["split"],
        "test": content["split"]["validation"],
        "validation": content["split"]["test"],
    }
    write_json(other / "dataset.json", content)
    with pytest.raises(InputError, match="2 of 2 cases were in the model's train or validation part"):
        short_run(other, tmp_path / "run", init_from=str(exported))
    with pytest.raises(InputError, match=r"has none for|has shape"):
        run_training(
            Dataset.load(data),
            tmp_path / "run",
            run_config(**SHORT, init_from=str(exported)),
            {**ARGUMENTS, "width": 3},
            SessionOptions(),
        )
    dataset = Dataset.load(data)
    task = replace(dataset.task, class_names=(*dataset.task.class_names[:4], "pancreas"))
    with pytest.raises(InputError, match=r"but the data have .*pancreas"):
        run_training(
            replace(dataset, task=task),
            tmp_path / "run",
            run_config(**SHORT, init_from=str(exported)),
            ARGUMENTS,
            SessionOptions(),
        )
    assert not (tmp_path / "run").exists()


def test_numbers_of_scans_are_numbers(tmp_path: Path) -> None:
    done = program("experiments.growing", f"--work_dir={tmp_path / 'work'}", "--scans=two")
    assert done.returncode == 1 and done.stderr.startswith("error: --scans=two: expected whole numbers")
    assert not (tmp_path / "work").exists()


GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("recorded", ["net2d_fb4_s32", "net3d_fb4"])
def test_the_authors_checkpoints_give_their_logits(recorded: str, tmp_path: Path) -> None:
    checkpoint = tmp_path / "theirs"
    with np.load(GOLDEN / f"{recorded.removesuffix('_s32')}_weights.npz") as weights:
        write_tf1_checkpoint(checkpoint, dict(weights))
    done = program("experiments.import_tf1", f"--checkpoint={checkpoint}", f"--out={tmp_path / 'model'}")
    assert done.returncode == 0, done.stderr
    imported = load_model(tmp_path / "model")
    with np.load(GOLDEN / f"{recorded}.npz") as data:
        for ours, theirs in (("mr", "source"), ("ct", "target")):
            logits = imported.model({ours: data[theirs]})[ours]
            np.testing.assert_allclose(logits, data[f"inference/{theirs}_logits"], rtol=1e-4, atol=1e-4)


def write_tf1_checkpoint(prefix: Path, values: dict[str, np.ndarray]) -> None:
    """A TF 1 Saver's checkpoint of these arrays."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        variables = {name: tf.compat.v1.Variable(value) for name, value in values.items()}
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.train.Saver(variables).save(session, str(prefix), write_meta_graph=False, write_state=False)


def test_an_outlier_of_training_or_validation_is_refused(data):
    with fresh_programs():
        from experiments.evaluate import _outlier
    for case_id, part in (("ct_0", "train"), ("ct_2", "validation")):
        with pytest.raises(InputError, match=f"--outlier={case_id}: in the {part} part"):
            _outlier(Dataset.load(data), case_id, None)
    with pytest.raises(InputError, match="--outlier=ct_9: not in"):
        _outlier(Dataset.load(data), "ct_9", None)


def test_the_same_voxels_from_another_file_are_recognized(data, monkeypatch):
    checksums = {"image_sha256": "voxels", "source_sha256": "other files"}
    monkeypatch.setattr("ummkd_tf.runs.exported._checksums", lambda *_: checksums)
    training = {"cases": {"a": {"part": "train", "image_sha256": "voxels", "source_sha256": "files"}}}
    with pytest.raises(InputError, match=r"1 of 1 cases .*: ct_3 \(there a\)"):
        check_not_seen(training, Dataset.load(data), ["ct_3"])


def test_validation_cases_that_the_first_model_was_trained_on_are_refused(exported, data, tmp_path):
    other = Path(shutil.copytree(data, tmp_path / "other"))
    content = json.loads((other / "dataset.json").read_text(encoding="utf-8"))
    content["split"] |= {"train": ["ct_1", "mr_1", "ct_2", "mr_2"], "validation": ["ct_0", "mr_0"]}
    write_json(other / "dataset.json", content)
    with pytest.raises(InputError, match="2 of 2 cases were in the model's train part: ct_0, mr_0"):
        short_run(other, tmp_path / "run", init_from=str(exported))


def test_an_evaluation_is_of_the_options_that_it_records(run_dir, tmp_path, monkeypatch):
    """The reference's liver with an island apart: its largest part alone has Dice 1."""
    run, asked = Path(shutil.copytree(run_dir, tmp_path / "run")), []

    def with_island(self, image, modality, factor=1, *, overlap=0.0, progress=iter):
        asked.append(overlap)
        classes = np.zeros((256, 256, image.shape[2]), int)
        classes[40:104, 40:104, 2:-2] = classes[230:240, 230:240, 4] = 1
        return np.eye(5, dtype=np.float32)[classes]

    selected = CheckpointFolder.selected
    monkeypatch.setattr(Predictor, "probabilities", with_island)
    monkeypatch.setattr(CheckpointFolder, "selected", lambda self, s: asked.append(s) or selected(self, s))
    flags = ("--selection=last", "--overlap=0.5", "--largest_component")
    done = program("experiments.evaluate", f"--run_dir={run}", *flags)
    assert done.returncode == 0, done.stderr
    assert asked == ["last", 0.5, 0.5]
    cases = json.loads((run / "evaluation_test.json").read_text(encoding="utf-8"))["cases"].values()
    assert [case["classes"]["liver"]["dice"] for case in cases] == [1, 1]


def test_norms_of_a_new_modality_are_the_mean_of_the_others(tmp_path):
    """Scales, shifts and statistics are 1 in CT and 4 in MR, so 2.5 in the new one. The card says what was trained."""
    arguments = {"network": "unet3d", "setting": "ours", "num_classes": 5, "width": 2}
    model = UnpairedSegmenter(**arguments, modalities=("ct", "mr"))
    for v in model.variables:
        if "/norm/" in v.path:
            v.assign(np.full(v.shape, 1.0 if "/ct/" in v.path else 4.0))
    training = {"cases": {}, "counts": {"ct": 3, "mr": 2}, "data": "phantom abdomen", "validation_dice": 0.5}
    training |= {"step": 7, "selection": "best", "commit": "abc", "settings": {}}
    stored = {**arguments, "modalities": ["ct", "mr"], "normalization": "batch", "decoder": "paper"}
    write_model(tmp_path / "m", model, stored, TASKS["abdomen"], 8, training)
    grown = UnpairedSegmenter(**arguments, modalities=("ct", "mr", "mr2"))
    start_from(grown, tmp_path / "m", TASKS["abdomen"])
    new = [v.numpy() for v in grown.variables if "/norm/mr2/" in v.path]
    assert new and all((value == 2.5).all() for value in new)
    card = (tmp_path / "m" / "MODEL_CARD.md").read_text(encoding="utf-8")
    for line in ("trained on generated phantoms", "- training cases: 3 ct, 2 mr\n", "- validation Dice: 50.0 %"):
        assert line in card
    description = json.loads((tmp_path / "m" / MODEL).read_text(encoding="utf-8"))
    description["training"] |= {"data": "btcv", "split_name": "mine", "preset": "tiny", "seed": 3}
    description["training"]["settings"] = {"init_from": "other"}
    card = model_card(description, 1234, "")
    assert "phantom" not in card
    assert card.split("## Where it comes from")[1].split("## Results")[0].strip().splitlines() == [
        "- network: unet3d, setting ours, 1,234 weights and statistics",
        "- data: btcv",
        "- training cases: 3 ct, 2 mr",
        "- split: mine",
        "- checkpoint: step 7 (best)",
        "- preset, seed, commit: tiny, 3, abc",
        "- validation Dice: 50.0 %",
        "- fine-tuned from: other",
    ]
