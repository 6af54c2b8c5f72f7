"""Figures show the recorded numbers, say what was not run, and come as PDF and PNG."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.figure import Figure
from programs import program as in_this_process
from recorded_runs import absent, class_metrics, evaluation_cases, write_run

from experiments import figures
from experiments.plans import TARGETS
from experiments.results.records import load_records
from ummkd_tf.common.errors import InputError
from ummkd_tf.data.cases import Case
from ummkd_tf.scans.geometry import Grid
from ummkd_tf.tasks import TASKS


def specs(target):
    return TARGETS[target].specs


def case(case_id):
    """A liver in slices 3 to 5 and, in slice 5 only, a right kidney, on axes as the task's."""
    label = np.zeros((40, 30, 8), np.uint8)
    label[10:20, 5:15, 3:6] = 1
    label[22:28, 6:12, 5] = 2
    image = np.random.default_rng(0).normal(size=label.shape).astype(np.float32)
    grid = Grid(np.diag([2.0, 2.0, 8.0, 1.0]), label.shape)
    return Case(case_id=case_id, modality=case_id[:2], image=image, label=label, grid=grid, original=grid)


@pytest.fixture
def shown_cases(monkeypatch):
    """Case ids that a figure reads."""
    ids = []

    def read(record, case_id):
        ids.append(case_id)
        return case(case_id)

    monkeypatch.setattr(figures, "read_case", read)
    return ids


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_dice_over_alpha_draws_the_cases_means(tmp_path):
    for spec in specs("fig6")[:8]:
        write_run(tmp_path, spec, evaluation_cases("cardiac", np.random.default_rng(3), range(5)))
    records = load_records(tmp_path)
    figure = figures._dice_over_alpha(specs("fig6"), records)
    expected = [
        100 * np.mean([metrics["dice"] for metrics in case["classes"].values()])
        for name, case in records[0].evaluation["cases"].items()
        if name.startswith("mr")
    ]
    _, mri = figure.axes
    medians = [line.get_ydata()[0] for line in mri.lines if list(line.get_xdata()) == [-0.3, 0.3]]
    assert np.median(expected) in medians
    assert texts(mri) == ["not run"]  # alpha 0.9
    assert [label.get_text() for label in mri.get_xticklabels()] == [f"{a / 10:g}" for a in range(1, 10)]


def test_a_class_that_a_case_lacks_does_not_enter_its_mean():
    def mean(*dice):
        return figures._mean_dice({"classes": {str(n): {"dice": value} for n, value in enumerate(dice)}})

    assert mean(0.5, None, 1.0) == 0.75
    assert np.isnan(mean(None))


def test_kd_loss_is_a_line_for_each_run(tmp_path):
    zero = specs("fig7")[0]
    lines = [{"step": s, "kd_loss": s / 100, "q": {}} for s in (0, 25, 50)]
    write_run(tmp_path, zero, None, knowledge=lines)
    axes = figures._kd_loss(specs("fig7"), load_records(tmp_path)).axes[0]
    drawn = [line for line in axes.lines if len(line.get_xdata())]
    assert [line.get_xydata().tolist() for line in drawn] == [[[0, 0], [25, 0.25], [50, 0.5]]]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["α = 0", "α = 0.1 (not run)", "α = 0.5 (not run)", "α = 0.9 (not run)"]
    assert len({(line.get_color(), str(line.get_linestyle())) for line in axes.lines}) == 4


def test_matrices_and_five_times_their_difference(tmp_path):
    ours, chilopod = specs("fig8")

    def q(value):
        return np.full((5, 5), value).tolist()

    lines = [{"step": s, "kd_loss": 0.1, "q": {"ct": q(0.2), "mr": q(0.2 + s / 1000)}} for s in (0, 10, 20)]
    write_run(tmp_path, ours, None, knowledge=lines)
    figure = figures._matrices((ours, chilopod), load_records(tmp_path))
    panels = np.array(figure.axes[: 6 * figures.Q_STEPS]).reshape(6, figures.Q_STEPS)
    for column, step in enumerate((0, 10, 20)):
        ct, mr, difference = (panels[row, column].images[0].get_array() for row in range(3))
        np.testing.assert_allclose(ct, 0.2)
        np.testing.assert_allclose(mr, 0.2 + step / 1000)
        np.testing.assert_allclose(difference, 5 * step / 1000)
    assert panels[0, 2].get_title() == "α = 0.5, step 20"
    assert not panels[0, 3].images and texts(panels[3, 0]) == ["not run"]


def test_rows_are_the_runs_own_modalities(tmp_path, shown_cases):
    """CT, T1 and T2: three rows, three panels, and the differences of each two."""
    names, rng = ("ct", "t1", "t2"), np.random.default_rng(0)
    of_two = evaluation_cases("abdomen", rng, range(2))
    cases = {f"{m}_{n}": of_two[f"ct_{n}"] | {"modality": m} for m in names for n in range(2)}
    lines = [{"step": 0, "kd_loss": 0.1, "q": {m: np.full((5, 5), n / 10).tolist() for n, m in enumerate(names)}}]
    ours = specs("fig8")[0]
    write_run(tmp_path, ours, cases, knowledge=lines, modalities=names, outlier={"t1_9": cases["t1_0"]})
    records = load_records(tmp_path)
    figure = figures._segmentations((ours,), records, lambda record, case_id: case(case_id).label)
    labels = [axes.get_ylabel() for axes in np.array(figure.axes).reshape(3, 2)[:, 0]]
    assert labels == ["CT, ct_0", "t1, t1_0", "t2, t2_0"]
    assert [axes.get_ylabel() for axes in figures._dice_over_alpha((ours,), records).axes] == [
        "CT Dice (%)",
        "t1 Dice (%)",
        "t2 Dice (%)",
    ]
    panels = np.array(figures._matrices((ours,), records).axes[: 6 * figures.Q_STEPS]).reshape(6, figures.Q_STEPS)
    assert [axes.get_ylabel() for axes in panels[3:, 0]] == ["5 × |CT − t1|", "5 × |CT − t2|", "5 × |t1 − t2|"]
    np.testing.assert_allclose(panels[4, 0].images[0].get_array(), 5 * 0.2)
    figure = figures._outlier_slices((ours,), records, lambda record, case_id: case(case_id).label)
    assert [axes.get_title() for axes in figure.axes] == [
        "general case t1_0",
        "general case t1_1",
        "outlier t1_9",
    ]


def test_chosen_steps_hold_the_first_and_the_last():
    lines = [{"step": s} for s in range(0, 110, 10)]
    assert [line["step"] for line in figures.spread(lines, 5)] == [0, 20, 50, 80, 100]
    assert figures.spread(lines[:3], 5) == lines[:3]


def test_the_case_shown_is_the_median_of_ours(tmp_path):
    rng = np.random.default_rng(0)
    cases = {
        f"ct_{n}": {"modality": "ct", "classes": {name: class_metrics(rng, dice) for name in ("liver", "spleen")}}
        for n, dice in enumerate((0.9, 0.1, 0.5, 0.8, 0.3))
    }
    write_run(tmp_path, specs("fig5")[-1], cases)
    (record,) = load_records(tmp_path)
    assert figures.median_cases(record, "ct", 1) == ["ct_2"]
    assert figures.median_cases(record, "ct", 3) == ["ct_2", "ct_3", "ct_4"]
    assert len(figures.median_cases(record, "ct", 9)) == 5
    with pytest.raises(InputError, match="no mr case"):
        figures.median_cases(record, "mr", 1)


def test_segmentations_beside_the_reference(tmp_path, shown_cases):
    for spec in specs("fig5"):
        if spec.setting != "x_shaped":
            write_run(tmp_path, spec, evaluation_cases("abdomen", np.random.default_rng(0), range(1)))
    asked = []

    def predict(record, case_id):
        asked.append((record.run["setting"]["name"], case_id))
        return np.zeros_like(case(case_id).label)

    figure = figures._segmentations(specs("fig5"), load_records(tmp_path), predict)
    assert shown_cases == ["ct_0", "mr_0"]
    assert len(asked) == 12 and ("ours", "mr_0") in asked and ("x_shaped", "ct_0") not in asked
    panels = np.array(figure.axes).reshape(2, 8)
    assert panels[0, 0].get_title() == "Reference" and panels[0, 7].get_title() == "Ours"
    assert len(panels[0, 0].collections) == 2  # the contours of liver and kidney
    assert texts(panels[0, 0]) == ["1", "2"]  # and their numbers, as in the legend
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["1 Liver", "4 Spleen", "2 R-kdy", "3 L-kdy"]
    assert [len(axes.collections) for axes in panels[0, 1:]] == [0] * 7  # nothing was predicted
    assert texts(panels[1, 5]) == ["not run"]


def test_no_network_is_shown_on_a_case_of_another_fold(tmp_path, shown_cases, monkeypatch):
    """It may be among those that this network was trained on."""
    for spec, folds in zip(specs("fig5"), [(0,), (0, 1), (1,), (0, 1), (), (), (1, 0)], strict=True):
        for fold in folds:
            cases = evaluation_cases("abdomen", np.random.default_rng(0), range(10 * fold, 10 * fold + 1))
            write_run(tmp_path, replace(spec, fold=fold), cases)
    asked, captions = [], []

    def predict(record, case_id):
        asked.append(record.name)
        return np.zeros_like(case(case_id).label)

    monkeypatch.setattr(figures, "Predictions", lambda: predict)
    monkeypatch.setattr(Figure, "supxlabel", lambda self, text, **more: captions.append(text.replace("\n", " ")))
    records = load_records(tmp_path)
    figures.draw("fig5", records, tmp_path)
    assert shown_cases == ["ct_0", "mr_0"]
    assert [name for name in asked if "fold1" in name] == [] and len(asked) == 2 * 4
    assert "n = 1 CT + 1 MRI test cases" in captions[0]
    # As `--folds=1` draws it.
    shown_cases.clear()
    asked.clear()
    figures.draw("fig5", [record for record in records if record.name.endswith("fold1")], tmp_path)
    assert shown_cases == ["ct_10", "mr_10"] and len(asked) == 2 * 4


def test_segmentations_shown_are_those_evaluated(tmp_path, monkeypatch):
    """With the evaluation's checkpoint, overlap and largest component; of another case, as the network gives it."""
    chosen = {"selection": "last", "overlap": 0.5, "largest_component": True}
    run_dir = write_run(tmp_path, specs("fig5")[-1], evaluation_cases("abdomen", np.random.default_rng(0), range(1)))
    path = run_dir / "evaluation_test.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | chosen), encoding="utf-8")
    (record,) = load_records(tmp_path)
    asked = []

    class TwoIslands:
        """Class 1 in four voxels, and in one far from them."""

        def __init__(self, model):
            asked.append(model)

        def probabilities(self, image, modality, factor, *, overlap):
            asked.append(overlap)
            classes = np.zeros(image.shape, int)
            classes[10:14, 5, 5] = classes[30, 20, 5] = 1
            return np.eye(5)[classes]

    monkeypatch.setattr("ummkd_tf.evaluation.inference.Predictor", TwoIslands)
    monkeypatch.setattr(figures, "load_run", lambda run_dir, selection: (selection, record.run, 300))
    data = SimpleNamespace(task=TASKS["abdomen"], case=lambda case_id, factor: case(case_id))
    monkeypatch.setattr(figures, "open_run_data", lambda _: data)
    predict = figures.Predictions()
    assert np.count_nonzero(predict(record, "mr_0")) == 4
    assert np.count_nonzero(predict(record, "mr_7")) == 5
    assert asked == ["last", 0.5, None, 0.0]


def test_slice_with_every_organ_is_shown_around_them():
    shown = figures.Slice.of(case("ct_0"), TASKS["abdomen"], margin_mm=4)
    assert shown.index == 5
    cut = shown.plane.cut(case("ct_0").label, 5)[shown.window]
    assert {1, 2} <= set(cut.ravel()) and cut.shape == (18 + 4, 10 + 4)


def test_outlier_beside_general_cases(tmp_path, shown_cases):
    (ours,) = specs("fig9")
    cases = evaluation_cases("abdomen", np.random.default_rng(0), range(5))
    write_run(tmp_path, ours, cases, outlier={"ct_99": cases["ct_0"]})
    figure = figures._outlier_slices((ours,), load_records(tmp_path), lambda record, case_id: case(case_id).label)
    assert [axes.get_title() for axes in figure.axes][-1] == "outlier ct_99"
    assert len(figure.axes) == 4 and shown_cases[-1] == "ct_99"
    assert all(axes.get_title().startswith("general case ct_") for axes in figure.axes[:3])


def test_written_as_pdf_and_png_with_their_provenance(tmp_path, monkeypatch):
    write_run(tmp_path / "runs", specs("fig7")[0], None, knowledge=[{"step": 0, "kd_loss": 0.1, "q": {}}])
    captions = []
    monkeypatch.setattr(Figure, "supxlabel", lambda self, text, **more: captions.append(text.replace("\n", " ")))
    figures.draw("fig7", load_records(tmp_path / "runs"), tmp_path / "new")
    assert (tmp_path / "new/fig7.pdf").read_bytes().startswith(b"%PDF")
    assert (tmp_path / "new/fig7.png").read_bytes().startswith(b"\x89PNG")
    assert captions[0].startswith(
        "PHANTOM data: phantom abdomen; split seeded 70/10/20, seed 0; preset tiny; 300 steps"
    )


def test_what_a_mean_leaves_out_is_told_and_an_unfinished_run_is_not_drawn(tmp_path, monkeypatch):
    cases = evaluation_cases("cardiac", np.random.default_rng(0), range(2))
    cases["ct_0"]["classes"]["left_atrium"] = absent()
    for spec, status in zip(specs("fig6"), ("finished", "running"), strict=False):
        write_run(tmp_path, spec, cases, status=status)
    captions, drawn = [], []
    draw = figures._dice_over_alpha
    monkeypatch.setattr(Figure, "supxlabel", lambda self, text, **more: captions.append(text.replace("\n", " ")))
    monkeypatch.setattr(
        figures, "_DRAW", {"fig6": lambda specs, records: drawn.extend(records) or draw(specs, records)}
    )
    figures.draw("fig6", load_records(tmp_path), tmp_path)
    assert [record.name for record in drawn] == [specs("fig6")[0].name]
    assert captions[0].endswith("Absent in prediction and reference, left out: cardiac-ours-alpha0.1 1 of 16.")


@pytest.mark.parametrize(
    ("target", "message"),
    [("table1", "no figure 'table1': expected one of fig4"), ("fig7", "fig7: none of its runs is finished")],
)
def test_nothing_to_draw_is_one_line(target, message, tmp_path):
    with pytest.raises(InputError, match=message):
        figures.draw(target, [], tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_program_tells_the_files_and_nothing_of_their_fonts(tmp_path):
    lines = [{"step": 0, "kd_loss": 0.1, "q": {}}]
    write_run(tmp_path / "runs", specs("fig7")[0], None, knowledge=lines)
    command = [sys.executable, "-m", "experiments.figures", "--figure=fig7", "--runs_dir=runs", "--out_dir=new"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}

    def program(*more):
        return subprocess.run([*command, *more], cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8")

    done = program("--folds=0")
    assert (done.returncode, done.stdout, done.stderr) == (0, "new/fig7.pdf and .png\n", "")
    done = in_this_process("experiments.figures", "--figure=fig7", f"--runs_dir={tmp_path / 'runs'}", "--folds=1")
    assert done.returncode == 1 and "none of its runs is finished" in done.stderr


def test_pictures_are_of_the_checkpoints_that_were_evaluated(monkeypatch):
    """Of each run, and of the outlier's checkpoint where it is another than the test cases'."""
    loaded = []
    task = TASKS["abdomen"]
    voxels = np.zeros((2, 2, 2))
    data = SimpleNamespace(task=task, case=lambda *_: SimpleNamespace(image=voxels, modality="ct"))
    predictor = SimpleNamespace(probabilities=lambda *_, **__: np.zeros((2, 2, 2, 5)))
    monkeypatch.setattr(figures, "load_run", lambda *checkpoint: loaded.append(checkpoint) or (None, {}, 1))
    monkeypatch.setattr(figures, "open_run_data", lambda _: data)
    monkeypatch.setattr(figures, "config_of", lambda _: SimpleNamespace(factor=lambda _: 1))
    monkeypatch.setattr("ummkd_tf.evaluation.inference.Predictor", lambda _: predictor)
    test, outlier = ({"cases": {case: {}}, "selection": s} for case, s in (("ct_1", "best"), ("ct_9", "last")))
    predict = figures.Predictions()
    for run_dir, case_id in (("r", "ct_1"), ("r", "ct_9"), ("s", "ct_1"), ("r", "ct_1")):
        predict(SimpleNamespace(run_dir=run_dir, run={}, evaluation=test, outlier=outlier), case_id)
    assert loaded == [("r", "best"), ("r", "last"), ("s", "best")]
