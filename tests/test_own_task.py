"""Own organs and own modalities: a first task from the scans, and the whole way without one edit of code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from own_scans import write_own_data
from programs import program
from recorded_runs import class_metrics, write_run
from toy_networks import TOY3D

from data_prep import new_task
from data_prep.new_task import Measured
from data_prep.sources.csv_list import read_aligned
from data_prep.sources.raw_case import RawCase
from data_prep.workers import Workers
from experiments.plans import RunSpec
from experiments.recipes import PRESETS
from experiments.results import builders
from experiments.results.records import load_records
from ummkd_tf.common.errors import InputError
from ummkd_tf.data import intensities
from ummkd_tf.data.cases import write_case
from ummkd_tf.data.dataset import Dataset, write_dataset
from ummkd_tf.runs.exported import load_model
from ummkd_tf.runs.folder import read_run, task_of
from ummkd_tf.scans.geometry import Grid
from ummkd_tf.scans.preprocessing import Prepared
from ummkd_tf.tasks import TASKS, Clip, Task, get_task, task_from_dict


def measured(modality="ct", spacing=(1, 1, 5), extent=(300, 200, 400), values=(1, 2), foreground=(0, 100), **more):
    case = RawCase("a", modality, Path("a.nii"), Path("a_label.nii"), {})
    return Measured(
        case,
        spacing_mm=np.array(spacing, float),
        extent_mm=np.array(extent, float),
        label_values=frozenset(values),
        foreground=np.linspace(*foreground, 1001, dtype=np.float32),
        **more,
    )


def described(*scans, names=None):
    content, notes = new_task.describe(
        scans, name="own", network="unet3d", names=names or {1: "prostate", 2: "bladder"}
    )
    return task_from_dict(content, "own.json"), notes


# --- the first task, by hand -----------------------------------------------------------------------------------------


def test_grid_is_median_spacing_and_the_next_multiple_of_32():
    """Rows run from front to back: 200 mm / 1 mm → 224; columns 300 mm / 1.5 mm = 200 → 224; 320 / 1 → 320."""
    task, notes = described(measured(spacing=(1.5, 1, 4)), measured(spacing=(2, 1, 6)), measured(spacing=(1, 1, 5)))
    assert (task.axes, task.spacing_mm, task.size) == ("PLS", (1.0, 1.5, 5.0), (224, 224))
    assert "median of 3 scans" in notes["spacing_mm"] and "(200 × 300 mm)" in notes["size"]
    assert described(measured(extent=(320, 10, 1)))[0].size == (64, 320)


def test_size_holds_the_body_of_all_but_the_largest():
    """Of 21 scans 20 (95 %) have 190 mm at most; one of 500 mm is cut."""
    scans = [measured(extent=(190, 100 + n, 1)) for n in range(20)] + [measured(extent=(500, 500, 1))]
    assert described(*scans)[0].size == (128, 192)


def test_size_holds_both_limbs(tmp_path):
    """Legs of 26 × 20 voxels of 5 mm, from column 4 to 95: 92 columns. A table under them has 0.08 of one leg."""
    image, label = np.zeros((100, 40, 8), np.int16), np.zeros((100, 40, 8), np.uint8)
    image[4:30, 10:30], image[70:96, 10:30], image[30:70, 2] = 300, 300, 300
    label[10:20, 15:25], label[80:90, 15:25] = 1, 2
    for name, array in (("image", image), ("label", label)):
        nib.save(nib.Nifti1Image(array, np.diag([5.0, 5, 8, 1])), tmp_path / f"{name}.nii")
    scan = new_task.measure(RawCase("a", "t1", tmp_path / "image.nii", tmp_path / "label.nii", {}, read_aligned))
    assert not scan.problems and scan.extent_mm.tolist() == [92 * 5, 20 * 5, 64]
    assert described(scan)[0].size == (64, 96)


def test_size_ends_at_512():
    task, notes = described(measured(spacing=(0.5, 0.5, 5)))
    assert task.size == (416, 512) and "cut at 512" in notes["size"]


@pytest.mark.parametrize(
    ("spacing", "axes"),
    [((1, 1, 5), "PLS"), ((1, 4, 1), "ILP"), ((3, 1, 1), "IPL"), ((1, 1, 1), "PLS"), ((1.1, 1, 1), "PLS")],
)
def test_plane_is_that_of_the_slices(spacing, axes):
    assert described(measured(spacing=spacing))[0].axes == axes


def test_most_common_plane_and_its_spacing():
    """Two coronal scans against one transverse: rows S, columns R, slices A."""
    task, notes = described(measured(spacing=(1, 4, 2)), measured(spacing=(1, 4, 2)), measured(spacing=(3, 3, 9)))
    assert (task.axes, task.spacing_mm) == ("ILP", (2.0, 1.0, 4.0))
    assert "2 coronal, 1 transverse" in notes["axes"]


def test_intensities():
    """CT by value, from fat on; the others by percentile, at least 95."""
    task, notes = described(
        measured("ct", foreground=(0, 1000)),
        measured("t1", foreground=(0, 1000), high_percentile=97.31),
        measured("t2", foreground=(0, 1000), high_percentile=60.0),
        measured("cbct", foreground=(-990, -400), minimum=-1024.0),
    )
    assert task.clip == {
        "ct": Clip(-125.0, 995.0),
        "t1": Clip(0.0, 97.4, "percentile"),
        "t2": Clip(0.0, 95.0, "percentile"),
        "cbct": Clip(-988.0, -402.0),  # Hounsfield units, because its air is far below 0; darker than fat
        "default": Clip(0.0, 99.5, "percentile"),
    }
    assert {"clip.ct", "clip.t1", "clip.t2", "clip.cbct"} <= set(notes)


def test_a_modality_without_labels_is_refused():
    scan = measured("t1", foreground=(0, 1))
    empty = Measured(RawCase("b", "ct", Path("b.nii"), Path("b_label.nii"), {}))
    with pytest.raises(InputError, match=r"b_label\.nii: no ct scan has a labelled voxel"):
        described(scan, empty)


def test_classes_are_the_label_values(tmp_path):
    scans = [measured(values=(7,)), measured(values=(2, 7))]
    assert new_task.class_names(scans, None) == {2: "class_2", 7: "class_7"}
    path = tmp_path / "names.json"
    path.write_text(json.dumps({"2": "left lung", "7": "right lung", "0": "Background"}), encoding="utf-8")
    names = new_task.class_names(scans, path)
    assert described(*scans, names=names)[0].class_names == ("background", "left lung", "right lung")
    path.write_text(json.dumps({"2": "left lung", "7": 0}), encoding="utf-8")
    assert new_task.class_names(scans, path)[7] == "background"
    path.write_text(json.dumps({"2": "both", "7": "both"}), encoding="utf-8")  # two values, one class
    assert described(*scans, names=new_task.class_names(scans, path))[0].class_names == (
        "background",
        "both",
    )
    for content, text in (
        ({"2": "a"}, r"no name for label value 7 \(a_label\.nii\): add it"),
        ({"2": 1, "7": "a"}, r"2 → 1: expected a class name"),
        ([], r"not a label map"),
        ({"x": "a"}, r"not a label map"),
    ):
        path.write_text(json.dumps(content), encoding="utf-8")
        with pytest.raises(InputError, match=text):
            new_task.class_names(scans, path)


# --- the program -----------------------------------------------------------------------------------------------------


def flags(**values):
    return [f"--{name}={value}" for name, value in values.items()]


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """(CSV, task file) of four CT, T1 and T2 scans of 180 × 150 mm, with spacings from 3 to 3.75 and 5 to 5.75 mm."""
    folder = tmp_path_factory.mktemp("own")
    csv_file = write_own_data(folder / "raw")
    (folder / "names.json").write_text('{"1": "prostate", "2": "urinary bladder"}', encoding="utf-8")
    done = program(
        "data_prep.new_task",
        *flags(csv=csv_file, out=folder / "pelvis.json", label_map=folder / "names.json", workers=1),
    )
    assert done.returncode == 0, done.stderr
    assert "measure: 12/12 cases" in done.stderr and "read and correct it, then: ummkd verify" in done.stdout
    return csv_file, folder / "pelvis.json"


def test_first_task_of_a_csv(own):
    task = get_task(str(own[1]))
    assert (task.name, task.network, task.axes) == ("pelvis", "unet3d", "PLS")
    assert task.class_names == ("background", "prostate", "urinary bladder")
    assert task.spacing_mm == (3.25, 3.25, 5.25) and task.size == (64, 64)
    assert task.clip["ct"].low == -125 and 140 < task.clip["ct"].high < 200  # organ 2 has 140 HU, noise 10
    assert set(task.clip) == {"ct", "t1", "t2", "default"}
    notes = json.loads(own[1].read_text(encoding="utf-8"))["notes"]
    assert "prostate in 9 of 9 scans" in notes["class_names"]


def test_test_scans_are_not_measured(tmp_path):
    """They would decide how they are prepared. What they hold wrong is told all the same."""
    csv_file = write_own_data(tmp_path, ["ct"])
    tested = tmp_path / "ct_3_image.nii.gz"
    scan = nib.load(tested)
    nib.save(
        nib.Nifti1Image((np.asarray(scan.dataobj) + 1000).astype(np.int16), scan.affine), tested
    )  # 140 HU become 1140

    def task(csv_file):
        with Workers(1) as pool:
            problems, files = new_task.first_task(
                csv_file, tmp_path / "a.json", name="a", network="unet3d", label_map=None, pool=pool
            )
        assert problems == []
        return json.loads(files[tmp_path / "a.json"])

    content = task(csv_file)
    assert (
        content["clip"]["ct"]["high"] < 200 and content["notes"]["scans"] == "measured on 3 in training and validation"
    )
    rows = [line.rpartition(",")[0] for line in csv_file.read_text(encoding="utf-8").splitlines()]
    (tmp_path / "unsplit.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    content = task(tmp_path / "unsplit.csv")
    assert content["clip"]["ct"]["high"] > 1000 and content["notes"]["scans"].startswith("measured on all; where")


def test_nothing_is_replaced(own):
    before = own[1].read_bytes()
    done = program("data_prep.new_task", *flags(csv=own[0], out=own[1], workers=1))
    assert done.returncode == 1 and "pelvis.json: is there already: give --overwrite" in done.stderr
    assert own[1].read_bytes() == before


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"out": "task.txt"}, "expected a name that ends in .json"),
        ({"name": "abdomen"}, "--name=abdomen: is the paper's task: choose another name"),
        ({"name": "3 organs"}, "name '3 organs': expected a letter"),
        ({"csv": "none.csv"}, "none.csv: not a readable CSV file"),
    ],
)
def test_bad_flags(own, tmp_path, change, text):
    values = {"csv": own[0], "out": tmp_path / "a.json", "workers": 1} | change
    done = program("data_prep.new_task", *flags(**values))
    assert done.returncode == 1 and text in done.stderr, done.stderr
    assert not list(tmp_path.iterdir())


def test_every_bad_scan_is_told_and_nothing_written(tmp_path):
    csv_file = write_own_data(tmp_path, ["ct"])
    (tmp_path / "ct_1_image.nii.gz").write_bytes(b"no scan")
    label = nib.load(tmp_path / "ct_2_label.nii.gz")
    nib.save(nib.Nifti1Image(np.asarray(label.dataobj)[1:], label.affine), tmp_path / "ct_2_label.nii.gz")
    shutil.copy(tmp_path / "ct_3_label.nii.gz", tmp_path / "ct_3_image.nii.gz")
    done = program("data_prep.new_task", *flags(csv=csv_file, out=tmp_path / "a.json", workers=1))
    assert done.returncode == 1 and "3 problem(s), nothing was written" in done.stderr
    assert "ct_3_label.nii.gz: the label map is the image itself, voxel for voxel" in done.stderr
    assert "ct_1_image.nii.gz" in done.stderr and "ct_2_label.nii.gz: the label has" in done.stderr
    assert not (tmp_path / "a.json").exists()


def test_label_values_with_gaps_get_a_label_map(tmp_path):
    """One modality, labels 3 and 9: the map is written beside the task, and preparation takes both."""
    csv_file, task_file = write_own_data(tmp_path / "raw", ["t2"], values=(3, 9)), tmp_path / "gaps.json"
    done = program("data_prep.new_task", *flags(csv=csv_file, out=task_file, workers=1))
    label_map = tmp_path / "gaps_label_map.json"
    assert done.returncode == 0 and f"--label_map={label_map}" in done.stdout, done.stderr
    assert json.loads(label_map.read_text(encoding="utf-8")) == {"3": "class_3", "9": "class_9"}
    source = flags(source="csv", csv=csv_file, task=task_file, label_map=label_map, workers=1)
    assert program("data_prep.verify", *source).stdout == "12 cases, no problem\n".replace("12", "4")
    done = program("data_prep.prepare", *source, f"--out={tmp_path / 'data'}")
    assert done.returncode == 0, done.stderr
    case = Dataset.load(tmp_path / "data").case("t2_0")
    assert np.unique(case.label).tolist() == [0, 1, 2]

    done = program("experiments.train", *flags(data_dir=tmp_path / "data", run_dir=tmp_path / "run", setting="ours"))
    assert done.returncode == 1 and "--setting=ours: needs two modalities or more, and" in done.stderr
    assert "has only t2: take --setting=individual" in done.stderr


# --- the whole task is stored ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_whole_way(own, tmp_path, eager, monkeypatch):
    """new_task → verify → prepare → qc → train → evaluate → predict → export → predict with the exported folder alone.

    Later changes of the task file change nothing.
    """
    monkeypatch.setattr(intensities, "MIN_CASES", 2)
    csv_file, task_file = own[0], tmp_path / "pelvis.json"
    task_file.write_bytes(own[1].read_bytes())
    task = get_task(str(task_file))
    data, run_dir, raw = tmp_path / "data", tmp_path / "run", csv_file.parent
    names = csv_file.parent.parent / "names.json"
    source = flags(source="csv", csv=csv_file, task=task_file, label_map=names, workers=1)
    train = flags(
        data_dir=data, run_dir=run_dir, preset="tiny", steps=2, validate_every=2, deterministic="true", network=TOY3D
    )
    predict = flags(run_dir=run_dir, modality="t1", input=raw / "t1_3_image.nii.gz")

    def done(name, *arguments):
        result = program(name, *arguments)
        assert result.returncode == 0, result.stderr
        return result.stdout

    assert done("data_prep.verify", *source) == "12 cases, no problem\n"
    done("data_prep.prepare", *source, f"--out={data}")
    case = Dataset.load(data).case("t1_3")
    right, left = (case.grid.world(np.argwhere(case.label == c).mean(axis=0))[0] for c in (1, 2))
    np.testing.assert_allclose([right, left], [40, -35], atol=2)  # the scans' own place, in mm
    done("data_prep.qc", f"--data_dir={data}")
    assert "prostate" in (data / "qc" / "index.html").read_text(encoding="utf-8")
    assert "2 ct, 2 t1, 2 t2" in done("experiments.train", *train, f"--task={task_file}")
    stored = task_of(read_run(run_dir))
    assert stored == Dataset.load(data).task == task
    table = done("experiments.evaluate", *flags(run_dir=run_dir, pictures=tmp_path / "pictures"))
    assert all(f"{m} {c}" in table for m in ("ct", "t1", "t2") for c in ("prostate", "urinary bladder"))
    assert len(list((tmp_path / "pictures").iterdir())) == 3
    said = done("experiments.predict", *predict, f"--output={tmp_path / 'before.nii.gz'}")

    content = json.loads(task_file.read_text(encoding="utf-8"))
    task_file.write_text(json.dumps(content | {"spacing_mm": [30, 30, 30]}), encoding="utf-8")
    refused = program("experiments.train", *train, f"--task={task_file}")
    assert refused.returncode == 1, refused.stdout
    assert f"{data}: has another task: spacing_mm is 3.25 × 3.25 × 5.25, not 30 × 30 × 30" in refused.stderr
    task_file.unlink()
    again = done("experiments.predict", *predict, f"--output={tmp_path / 'after.nii.gz'}")
    assert said.splitlines()[1] == again.splitlines()[1]  # the volumes in ml
    before, after = (nib.load(tmp_path / f"{name}.nii.gz").get_fdata() for name in ("before", "after"))
    assert np.array_equal(before, after) and before.any()

    done("experiments.export", *flags(run_dir=run_dir, out=tmp_path / "model"))
    there = tmp_path / "somebody" / "else"
    there.parent.mkdir()
    (tmp_path / "model").rename(there)
    exported = load_model(there)
    result = exported.predict_scan(raw / "t1_3_image.nii.gz", modality="t1")
    assert np.array_equal(result.labels, before) and exported.task == task
    known = exported.scan_predictor().intensities  # what prediction warns by, from the run
    assert known == read_run(run_dir)["intensities"] and {m: k["cases"] for m, k in known.items()} == {
        "ct": 2,
        "t1": 2,
        "t2": 2,
    }

    other = tmp_path / "other.json"  # the data prepared again for another task: the run is not evaluated on it
    other.write_text(json.dumps(content | {"region": "image_center"}), encoding="utf-8")
    source[2] = f"--task={other}"
    done("data_prep.prepare", *source, f"--out={data}")
    refused = program("experiments.evaluate", *flags(run_dir=run_dir))
    assert refused.returncode == 1
    assert f"{data}: has another task: region is image_center, not body; give the run's own" in refused.stderr
    refused = program("experiments.train", *train)
    assert (
        refused.returncode == 1 and f"{run_dir}: has another task: region is body, not image_center" in refused.stderr
    )


def prepared(folder: Path, task: Task, modalities) -> Path:
    """Per modality one case a part, 32 × 32 × 8, with every class in it."""
    split = {part: [f"{m}_{part}" for m in modalities] for part in ("train", "validation", "test")}
    grid = Grid(np.diag([*task.spacing_mm, 1.0]), (*task.size, 8))
    label = np.zeros(grid.shape, np.uint8)
    for c in range(1, task.num_classes):
        row, column = divmod(c - 1, 4)
        label[8 * row : 8 * row + 6, 8 * column : 8 * column + 6, 1:-1] = c
    image = ((label - label.mean()) / label.std()).astype(np.float32)
    for case_id in (c for ids in split.values() for c in ids):
        path = folder / "cases" / f"{case_id}.h5"
        modality = case_id.rpartition("_")[0]
        content = Prepared(image, label, grid, grid, label)
        write_case(path, content, case_id=case_id, modality=modality, task=task, source={case_id: "none"})
    modality_of = {c: c.rpartition("_")[0] for ids in split.values() for c in ids}
    write_dataset(folder, task=task, case_modality=modality_of, split=split, split_name="blocks", modalities=modalities)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("classes", "modalities", "setting"),
    [(1, ("us",), "individual"), (14, ("ct", "t1", "t2", "pet"), "ours"), (2, ("t1", "t2"), "x_shaped")],
)
def test_any_number_of_classes_and_modalities(classes, modalities, setting, tmp_path, eager):
    task = task_from_dict(
        {
            "name": f"own_{classes}",
            "network": "unet3d",
            "class_names": [f"organ {n}" for n in range(1, classes + 1)],
            "axes": "PLS",
            "spacing_mm": [2, 2, 5],
            "size": [32, 32],
            "region": "image_center",
        },
        "own.json",
    )
    data = prepared(tmp_path / "data", task, modalities)
    run_dir = tmp_path / "runs" / "mine"
    train = flags(
        data_dir=data, run_dir=run_dir, preset="tiny", setting=setting, steps=1, validate_every=1, network=TOY3D
    )
    for name, arguments in (
        ("experiments.train", train),
        ("experiments.evaluate", flags(run_dir=run_dir, pictures=tmp_path / "pictures")),
        ("experiments.report", flags(runs_dir=tmp_path / "runs", out=tmp_path / "report.html")),
        ("data_prep.qc", flags(data_dir=data, out_dir=tmp_path / "qc")),
    ):
        done = program(name, *arguments)
        assert done.returncode == 0, (name, done.stderr)
    result = json.loads((run_dir / "evaluation_test.json").read_text(encoding="utf-8"))
    assert set(result["summary"]["dice"]) == {*modalities, "overall"}
    assert all(set(result["summary"]["dice"][m]) == {*task.table_classes, "mean"} for m in modalities)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert all(name in page for name in (*task.table_classes, *modalities))
    assert len(list((tmp_path / "pictures").iterdir())) == len(modalities)


def recorded(runs_dir, name, task, modalities, setting="ours", status="finished", *, seed=0, case=1, dice=0.5):
    """A run's folder with the same Dice for every structure of one case of each modality."""
    spec = RunSpec("abdomen", "abdomen", setting, seed=seed)
    classes = {c: class_metrics(np.random.default_rng(0), dice) for c in task.class_names[1:]}
    cases = {f"{m}_{case}": {"modality": m, "spacing_mm": [1, 1, 1], "classes": classes} for m in modalities}
    run_dir = write_run(runs_dir, spec, cases, status=status, parameters=12345)
    run_dir = run_dir.rename(runs_dir / name)
    path = run_dir / "run.json"
    run = json.loads(path.read_text(encoding="utf-8"))
    run |= {"task": task.to_dict(), "model": run["model"] | {"modalities": modalities}}
    path.write_text(json.dumps(run | {"flags": run["flags"] | {"size": task.size[0]}}), encoding="utf-8")
    return run_dir


def own_task(classes, **changes):
    content = {"name": "own", "network": "unet3d", "class_names": classes, "axes": "PLS", "spacing_mm": [2, 2, 5]}
    return task_from_dict({**content, "size": [32, 32], "region": "body", **changes}, "own.json")


def test_own_runs_have_a_table_for_each_task(tmp_path):
    task = own_task(["prostate", "bladder"], table_classes=["bladder", "prostate"])
    recorded(tmp_path, "a", task, ["t1", "t2", "ct"])
    recorded(tmp_path, "b", task, ["t1", "t2", "ct"], "chilopod")
    recorded(tmp_path, "c", task, ["t1"])
    recorded(tmp_path, "d", own_task(["prostate"]), ["t1"])
    recorded(tmp_path, "e", task, ["t1"], status="running")
    recorded(tmp_path, RunSpec("abdomen", "abdomen", "ours").name, TASKS["abdomen"], ["ct", "mr"])  # the paper's
    first, second, third = builders.own_tables(load_records(tmp_path))
    assert [row.title for row in first.blocks[0].rows] == ["a (Ours)", "b (“Chilopod”-shaped)"]
    assert first.headings == [
        "Param Scale",
        *(f"own {m} {c}" for m in ("t1", "t2", "CT") for c in ("bladder", "prostate", "Mean")),
        "Overall Mean",
    ]
    assert [cell.text for cell in first.blocks[0].rows[0].cells] == [
        "12,345",
        *["50.0", "50.0", "50.0"] * 3,
        "50.0",
    ]
    assert "n = 1 t1 + 1 t2 + 1 CT test cases" in first.caption
    assert [[row.key for row in table.blocks[0].rows] for table in (second, third)] == [["c"], ["d"]]
    done = program("experiments.tables", *flags(runs_dir=tmp_path, table="own", format="csv"))
    assert done.returncode == 0 and "own CT bladder" in done.stdout, done.stderr
    done = program("experiments.tables", *flags(runs_dir=tmp_path, table="own", seeds="1"))
    assert done.returncode == 1 and "leave --compare, --seeds and --folds out" in done.stderr


def test_own_folds_and_seeds_have_a_row_for_their_mean(tmp_path):
    task = own_task(["prostate"])
    for fold, dice in enumerate((0.4, 0.6, 0.8)):
        recorded(tmp_path, f"f{fold}", task, ["t1"], case=fold, dice=dice)
    for seed, dice in enumerate((0.5, 0.7)):
        recorded(tmp_path, f"s{seed}", task, ["t1"], "joint", seed=seed, dice=dice)
        recorded(tmp_path, f"x{seed}", task, ["t1"], "x_shaped", dice=dice)  # the same seed and case twice: no mean
        recorded(tmp_path, f"y{seed}", task, ["t1"], "y_shaped", seed=seed, case=seed)  # seeds of different cases
    (table,) = builders.own_tables(load_records(tmp_path))
    rows = table.blocks[0].rows
    assert [row.title for row in rows[9:]] == [
        "mean of 3 folds, n = 3 t1: f0, f1, f2 (Ours)",
        "mean of 2 seeds, n = 1 t1: s0, s1 (Joint)",
    ]
    # Over the folds' cases √(2 · 20² / 3) = 16.3; over seeds the mean of what has no spread, one case.
    assert [row.cells[1].text for row in rows[9:]] == ["60.0±16.3", "60.0"]
    assert "n = 3 t1 test cases" in table.caption and "Means are of runs that differ in fold and seed" in table.caption
    for names in ("x0, x1", "y0, y1"):
        assert f"No mean of {names}: with one seed, they test a case twice, or with another seed" in table.caption


def test_another_task_is_not_tabulated_as_the_papers(tmp_path):
    name = RunSpec("abdomen", "abdomen", "ours").name
    recorded(tmp_path, name, own_task(["liver", "right_kidney", "left_kidney", "spleen"]), ["ct", "mr"])
    with pytest.raises(
        InputError, match=rf"{name}: has another task: name is own, not abdomen; .*spacing_mm is 2 × 2 × 5"
    ):
        builders.build("table2", load_records(tmp_path))


def test_presets_reduce_any_size():
    assert {name: preset.factor for name, preset in PRESETS.items()} == {"paper": 1, "small": 2, "tiny": 4}


def test_one_scan_does_not_decide():
    """The window holds both of two bodies, the plane is that of most scans, and the percentile their median."""
    assert described(measured(extent=(1, 190, 1)), measured(extent=(1, 200, 1)))[0].size[0] == 224  # not 192
    coronal = measured(spacing=(1, 4, 2))
    assert described(measured(spacing=(3, 3, 9)), coronal, coronal)[0].axes == "ILP"
    scans = [measured("t1", high_percentile=percentile) for percentile in (96.0, 97.31, 99.9)]
    assert described(*scans)[0].clip["t1"] == Clip(0.0, 97.4, "percentile")
    assert new_task.is_ct("cb", [-1024, -1000, 0]) and not new_task.is_ct("cb", [-1024, 0, 0])


def test_foreground_and_where_its_upper_end_lies_among_all_voxels(tmp_path):
    """A body of values 500 to 1499, of which 600 to 799 are labelled, beside as much air, which preparation cuts away.

    Their percentile 99.5 is 798.005; 299 of the body's 1000 values are below.
    """
    image = np.zeros((20, 10, 10), np.int16)
    image[10:] = 500 + np.arange(1000).reshape(10, 10, 10)
    label = ((image >= 600) & (image < 800)).astype(np.uint8)
    for name, array in (("image", image), ("label", label)):
        nib.save(nib.Nifti1Image(array, np.diag([5.0, 5, 5, 1])), tmp_path / f"{name}.nii")
    found = new_task.measure(RawCase("a", "t1", tmp_path / "image.nii", tmp_path / "label.nii", {}, read_aligned))
    assert sorted(found.foreground) == list(range(600, 800)) and found.high_percentile == pytest.approx(29.9)
