"""Label maps of other programs, evaluated as a run is."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from programs import program

from experiments.segmentations import label_map_on, read_label_map
from ummkd_tf.scans.geometry import Grid, Volume, reorient, resample, straightened
from ummkd_tf.scans.preprocessing import prepare_scan
from ummkd_tf.scans.reading import with_axes_of
from ummkd_tf.tasks import TASKS


@pytest.fixture
def folder(prepared_dataset, tmp_path):
    """The references themselves, with values of another program; one of them with its axes in another order."""
    for case_id, axes in (("ct_3", None), ("mr_3", "SAR")):
        case = prepared_dataset.case(case_id, original_label=True)
        labels = Volume(10 * case.original_label, case.original.affine)
        labels = reorient(labels, axes) if axes else labels
        (tmp_path / "maps").mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(labels.array, labels.affine), tmp_path / "maps" / f"{case_id}.nii.gz")
    values = {str(10 * index): name for index, name in enumerate(prepared_dataset.task.class_names)}
    (tmp_path / "values.json").write_text(json.dumps(values), encoding="utf-8")
    return tmp_path


def evaluated(dataset, folder, *more):
    return program(
        "experiments.evaluate",
        f"--segmentations={folder / 'maps'}",
        f"--data_dir={dataset.directory}",
        f"--label_map={folder / 'values.json'}",
        f"--out={folder / 'out'}",
        *more,
    )


@pytest.mark.parametrize("grid", ["original", "prepared"])
def test_the_references_themselves_are_perfect(prepared_dataset, folder, grid):
    """On the prepared grid, too: a label map gets there in the same way as the reference."""
    done = evaluated(prepared_dataset, folder, f"--grid={grid}")
    assert done.returncode == 0, done.stderr
    assert f"\nmaps on the test part of {prepared_dataset.split_name}, {grid} grid\n" in done.stdout
    name = f"evaluation_test{'_original' * (grid == 'original')}.json"
    found = json.loads((folder / "out" / name).read_text(encoding="utf-8"))
    assert [*found["cases"]] == ["ct_3", "mr_3"] and found["setting"] == {"title": "maps"}
    for case in found["cases"].values():
        for metrics in case["classes"].values():
            assert (metrics["status"], metrics["dice"], metrics["hausdorff_mm"]) == ("ok", 1, 0)


def test_a_table_of_phantoms_says_so(prepared_dataset, folder):
    shutil.copytree(prepared_dataset.directory, folder / "data")
    about = json.loads((folder / "data/dataset.json").read_text(encoding="utf-8"))
    (folder / "data/dataset.json").write_text(json.dumps(about | {"source": "phantom abdomen"}), encoding="utf-8")
    done = evaluated(replace(prepared_dataset, directory=folder / "data"), folder, f"--viewer={folder / 'page.html'}")
    assert "<h1>PHANTOM data: maps: test part" in (folder / "page.html").read_text(encoding="utf-8")
    assert "\nPHANTOM data: maps on the test part of blocks, prepared grid\n" in done.stdout, done.stderr


def test_they_can_be_compared_and_looked_at(prepared_dataset, folder):
    assert evaluated(prepared_dataset, folder, f"--pictures={folder / 'pictures'}").returncode == 0
    assert (folder / "pictures" / "mr_3.png").read_bytes().startswith(b"\x89PNG")
    out = folder / "out"
    done = program("experiments.compare", f"--first={out}", f"--second={out}")
    assert done.returncode == 0 and "first:  maps (1 evaluation)" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (
            lambda maps: (maps / "mr_3.nii.gz").unlink(),
            "1 of 2 cases have no label map, or two: mr_3",
        ),
        (lambda maps: shifted(maps / "ct_3.nii.gz"), "ct_3.nii.gz: the label map has"),
        (
            lambda maps: (maps.parent / "values.json").write_text('{"10": "liver"}', encoding="utf-8"),
            "unknown label value 20",
        ),
    ],
)
def test_what_does_not_fit_is_refused(prepared_dataset, folder, break_it, message):
    break_it(folder / "maps")
    done = evaluated(prepared_dataset, folder)
    assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr
    assert not (folder / "out").exists()


def shifted(path):
    """Moves a label map by ten millimetres."""
    image = nib.load(path)
    affine = image.affine.copy()
    affine[:3, 3] += 10
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), affine), path)


def test_a_run_s_evaluation_is_not_replaced_and_another_s_is_told(prepared_dataset, folder):
    assert evaluated(prepared_dataset, folder).returncode == 0
    assert "will be replaced" not in evaluated(prepared_dataset, folder).stderr
    (folder / "maps").rename(folder / "others")
    again = evaluated(prepared_dataset, folder, f"--segmentations={folder / 'others'}")
    assert f"was made with --segmentations={folder / 'maps'} and will be replaced" in again.stderr
    (folder / "out" / "run.json").touch()
    done = evaluated(prepared_dataset, folder, f"--segmentations={folder / 'others'}")
    assert done.returncode == 1 and "out: holds a run, whose evaluation would be replaced" in done.stderr


def test_of_a_tilted_scan_the_upright_grid_is_taken_too(tmp_path):
    """A ball in slices that lean by 20 degrees: on the upright grid, its label map is what the reference is there."""
    affine = np.diag([1.0, 1.0, 4.0, 1.0])
    affine[1, 2] = 4 * np.tan(np.radians(20))
    scan = Grid(affine, (40, 40, 10))
    places = scan.world(np.argwhere(np.ones(scan.shape, bool)))
    ball = np.linalg.norm(places - scan.world([20, 20, 5]), axis=1) < 9
    own = Volume(ball.reshape(scan.shape).astype(np.uint8), affine)
    upright = straightened(scan)
    reference = resample(own, upright, "nearest")
    case = SimpleNamespace(grid=scan, original=scan)
    np.testing.assert_array_equal(label_map_on(upright, own, case, 2), reference)
    path = tmp_path / "ct_1.nii.gz"
    nib.save(nib.Nifti1Image(reference, upright.affine), path)
    label = read_label_map(path, scan, {0: 0, 1: 1})
    np.testing.assert_array_equal(label_map_on(upright, label, case, 2), reference)
    assert reference.sum() == pytest.approx(ball.sum(), rel=0.05)


def test_axes_are_turned_only_where_the_place_differs():
    """At 45 degrees, rounding decides which axis is called which."""

    def turned(degrees):
        affine = np.eye(4)
        cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        affine[:2, :2] = [[cos, -sin], [sin, cos]]
        return affine

    scan = Grid(turned(45 - 1e-7), (4, 4, 2))
    label = Volume(np.arange(32).reshape(4, 4, 2), turned(45 + 1e-7))
    assert label.grid.axes != scan.axes
    assert with_axes_of(scan, label) is label


def test_flags_that_do_not_go_together_are_refused(tmp_path):
    for flags, message in (
        ([], "--run_dir, --model, --segmentations: expected one of them"),
        (["--segmentations=a"], "expected --out and prepared --data_dir"),
        (["--segmentations=a", "--out=b", "--data_dir=c", "--overlap=0.5"], "leave --csv and --overlap out"),
        (["--segmentations=a", "--out=b", "--data_dir=c", "--selection=last"], "belong to a run"),
        (["--run_dir=a", "--label_map=b"], "leave it out without --csv or --segmentations"),
    ):
        done = program("experiments.evaluate", *flags)
        assert done.returncode == 1 and message in done.stderr


def test_label_maps_get_to_the_prepared_grid_as_references_do():
    """By classes that keep their volume, so that no program loses Dice to the way its maps are resampled."""
    label = Volume(np.zeros((40, 40, 9), np.uint8), np.diag([2.0, 2.0, 5.0, 1.0]))
    label.array[10:30, 12:29, 2:7] = 1
    label.array[14:20, 15:24, 3:8] = 2
    noise = np.random.default_rng(0).uniform(0, 9, label.array.shape)
    image = Volume(((label.array > 0) * 100 + noise).astype(np.float32), label.affine)
    prepared = prepare_scan(image, label, replace(TASKS["abdomen"], region="image_center"), "mr")
    found = label_map_on(prepared.grid, label, SimpleNamespace(grid=prepared.grid), 5)
    np.testing.assert_array_equal(found, prepared.label)
