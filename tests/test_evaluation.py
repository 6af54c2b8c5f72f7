"""From predictions to the table: known numbers, nothing dropped silently."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from ummkd_tf.common.files import write_json
from ummkd_tf.data.cases import Case
from ummkd_tf.evaluation import case_results as evaluation
from ummkd_tf.evaluation import validation
from ummkd_tf.evaluation.metrics import summarize
from ummkd_tf.evaluation.summary import MEASURES, POOLED, summarize_cases
from ummkd_tf.model import losses
from ummkd_tf.output import text_tables as reporting
from ummkd_tf.scans.geometry import Grid
from ummkd_tf.tasks import TASKS

TASK = TASKS["abdomen"]
GRID = Grid(np.eye(4), (4, 4, 1))


def case_of(case_id, modality, image, label, grid):
    return Case(case_id=case_id, modality=modality, image=image, label=label, grid=grid, original=grid)


def perfect(case, grid):
    return evaluation.classes_on(np.eye(5, dtype=np.float32)[case.label], case.grid, grid)


@pytest.mark.parametrize("original_grid", [False, True])
def test_the_reference_itself_is_perfect(prepared_dataset, original_grid):
    ids = prepared_dataset.ids("test")
    results = evaluation.evaluate(perfect, prepared_dataset, ids, original_grid=original_grid)
    assert list(results) == ["ct_3", "mr_3"]
    summary = summarize_cases(results, TASK, ("ct", "mr"))
    assert summary["dice"]["overall"] == 1
    assert summary["hausdorff_mm"]["overall"] == summary[POOLED]["overall"] == 0


def test_missed_organ_counts_as_zero_and_is_reported(prepared_dataset):
    def without_spleen(case, grid):
        return np.where(case.label == 4, 0, case.label)

    results = evaluation.evaluate(without_spleen, prepared_dataset, ["ct_3", "mr_3"])
    summary = summarize_cases(results, TASK, ("ct", "mr"))
    assert summary["dice"]["ct"]["spleen"] == {"mean": 0, "std": 0, "count": 1, "excluded": 0, "missed": 1}
    assert summary["dice"]["ct"]["mean"] == 0.75  # the mean of 1, 0, 1, 1
    diagonal = np.linalg.norm(np.array(prepared_dataset.case("ct_3").label.shape) * (1.5, 1.5, 8.0))
    assert summary["hausdorff_mm"]["ct"]["spleen"]["mean"] == pytest.approx(diagonal)
    record = {"modalities": ["ct", "mr"], "cases": results, "summary": summary}
    assert "ct spleen missed or invented in 1" in reporting.counts_line(record, TASK)


def test_missed_and_invented_organs_are_counted_and_measured_in_the_own_voxels_of_a_scan():
    """A voxel of one organ, and one of another invented, in a scan of 4 × 2 × 2 voxels of 2 × 3 × 4 mm, not 1 mm."""
    grid, own = Grid(np.eye(4), (4, 4, 4)), Grid(np.diag([2.0, 3, 4, 1]), (4, 2, 2))
    reference, predicted = np.zeros(own.shape, np.uint8), np.zeros(own.shape, np.uint8)
    reference[0, 0, 0], predicted[3, 0, 0] = 1, 2
    case = SimpleNamespace(modality="ct", grid=grid, original=own, original_label=reference)
    dataset = SimpleNamespace(task=TASK, case=lambda case_id, original_label: case)
    results = evaluation.evaluate(lambda case, grid: predicted, dataset, ["ct_1"], original_grid=True)
    assert results["ct_1"]["spacing_mm"] == (2, 3, 4)
    assert results["ct_1"]["classes"]["liver"]["hausdorff_mm"] == pytest.approx(math.dist((0, 0, 0), (8, 6, 8)))
    dice = summarize_cases(results, TASK, ("ct",))["dice"]["ct"]
    assert [dice[name]["missed"] for name in ("liver", "right_kidney", "spleen")] == [1, 1, 0]


def record_of(dice_by_case):
    """An evaluation record with given Dice values per case (the four classes of the abdomen, in class order)."""
    results = {}
    for case_id, values in dice_by_case.items():
        classes = {}
        for name, dice in zip(TASK.class_names[1:], values, strict=True):
            classes[name] = {
                "status": "absent" if dice is None else "ok",
                "dice": float("nan") if dice is None else dice,
                **dict.fromkeys(("hausdorff_mm", "hausdorff95_mm", "average_mm", "surface_dice"), 1.0),
                "surface_points": 2,
                "surface_distance_sum_mm": 2.0,
                "surface_distance_square_sum_mm2": 2.0,
            }
        results[case_id] = {"modality": case_id.split("_")[0], "classes": classes}
    summary = summarize_cases(results, TASK, ("ct", "mr"))
    return {"modalities": ["ct", "mr"], "cases": results, "summary": summary}


def test_means_and_deviations_by_hand():
    record = record_of({"ct_1": (0.9, 0.8, 0.7, 0.6), "ct_2": (0.7, 0.8, None, 0.2), "mr_1": (0.5, 0.5, 0.5, 0.5)})
    dice = record["summary"]["dice"]
    assert dice["ct"]["liver"] == pytest.approx({"mean": 0.8, "std": 0.1, "count": 2, "excluded": 0, "missed": 0})
    assert dice["ct"]["left_kidney"] == pytest.approx({"mean": 0.7, "std": 0, "count": 1, "excluded": 1, "missed": 0})
    assert dice["ct"]["mean"] == pytest.approx((0.8 + 0.8 + 0.7 + 0.4) / 4)
    assert dice["overall"] == pytest.approx((0.675 + 0.5) / 2)
    assert record["summary"][POOLED]["ct"]["liver"]["mean"] == 1.0  # 4 mm over 4 surface points


def test_table_has_a_row_for_each_class_and_the_printed_numbers():
    record = record_of({"ct_1": (0.9, 0.8, 0.7, 0.6), "ct_2": (0.7, 0.8, None, 0.2), "mr_1": (0.5, 0.5, 0.5, None)})
    lines = reporting.evaluation_table(record, TASK).splitlines()
    assert max(map(len, lines)) <= 120
    header, _, *rows = ([cell.strip() for cell in line[1:-1].split("|")] for line in lines if line.startswith("|"))
    assert header == ["", "Dice (%)", "HD (mm)", "HD95 (mm)", "ASSD (mm)", "Surface Dice (%)", "Pooled (mm)"]
    dice = {row[0]: row[1] for row in rows}
    # The last is of one case, which has no spread.
    of_ct = {"liver": "80.0 ± 10.0", "spleen": "40.0 ± 20.0", "right kidney": "80.0 ± 0.0", "left kidney": "70.0"}
    assert list(dice.items())[:5] == [(f"ct {name}", cell) for name, cell in of_ct.items()] + [("ct mean", "67.5")]
    assert list(dice)[-2:] == ["mr mean", "overall mean"]
    assert dice["mr spleen"] == "–"  # absent everywhere: no number is invented
    assert "mr spleen absent in 1 (left out)" in reporting.counts_line(record, TASK)


def test_nan_becomes_null_in_json_and_comes_back_as_left_out(tmp_path):
    record = record_of({"ct_1": (0.9, 0.8, None, 0.6), "mr_1": (0.5, 0.5, 0.5, 0.5)})
    write_json(tmp_path / "evaluation.json", record)
    text = (tmp_path / "evaluation.json").read_text(encoding="utf-8")
    assert "NaN" not in text
    again = json.loads(text)
    assert again["cases"]["ct_1"]["classes"]["left_kidney"]["dice"] is None
    assert summarize([again["cases"]["ct_1"]["classes"]["left_kidney"]["dice"], 0.5]).excluded == 1
    assert reporting.evaluation_table(again, TASK) == reporting.evaluation_table(record, TASK)


def test_validation_score_is_the_mean_over_cases_classes_and_modalities():
    label = np.zeros((8, 8, 8), np.uint8)
    label[:4], label[4:] = 1, 2
    grid = Grid(np.eye(4), label.shape)

    class Always1:
        def probabilities(self, image, modality):
            return np.eye(3, dtype=np.float32)[np.ones(label.shape, int)]

    cases = [case_of("a", "ct", label.astype(np.float32), label, grid)]
    # Class 1: 2 · ½ / (1 + ½) = 2/3; class 2: 0.
    assert validation.mean_dice(Always1(), cases) == pytest.approx({"dice": 1 / 3, "ct_dice": 1 / 3})
    seen = []
    each = validation.mean_dice(Always1(), cases, ("liver", "spleen"), lambda case, map: seen.append((case, map.sum())))
    assert each == pytest.approx({"dice": 1 / 3, "ct_dice": 1 / 3, "ct_liver_dice": 2 / 3, "ct_spleen_dice": 0.0})
    assert seen == [(cases[0], label.size)]
    # Without class 2 anywhere, class 1 alone counts.
    whole = np.ones_like(label)
    cases = [case_of("a", "ct", label.astype(np.float32), whole, grid)]
    assert validation.mean_dice(Always1(), cases) == pytest.approx({"dice": 1.0, "ct_dice": 1.0})


def test_validation_means_go_over_cases_then_classes_then_modalities():
    """CT's class 1 has Dice 1 and 0, its class 2 is absent once and else 0: (½ + 0) / 2. MR has class 1 alone: 1."""
    ones, both = np.ones((8, 8, 8), np.uint8), np.ones((8, 8, 8), np.uint8)
    both[4:] = 2
    predictions = {"a": ("ct", ones, ones), "b": ("ct", 0 * ones, both), "c": ("mr", ones, ones)}
    cases = [case_of(name, m, predicted, label, GRID) for name, (m, predicted, label) in predictions.items()]
    predictor = SimpleNamespace(probabilities=lambda image, modality: np.eye(3)[image])
    expected = {"dice": 0.625, "ct_dice": 0.25, "mr_dice": 1.0}
    assert validation.mean_dice(predictor, cases) == pytest.approx(expected)


def test_of_each_predicted_class_the_largest_part_alone_is_evaluated_where_asked():
    """Liver of four voxels, of which one that lies apart is left out: 2 · 3 / (3 + 4)."""
    label = np.zeros((6, 1, 1), np.uint8)
    label[[0, 1, 2, 5]] = 1
    case = case_of("a", "ct", label, label, Grid(np.eye(4), label.shape))
    dataset = SimpleNamespace(task=TASK, case=lambda case_id, original_label: case)
    for largest_component, dice in ((False, 1.0), (True, 6 / 7)):
        found = evaluation.evaluate(perfect, dataset, ["a"], largest_component=largest_component)
        assert found["a"]["classes"]["liver"]["dice"] == pytest.approx(dice)


def test_knowledge_of_whole_cases_is_that_of_their_logits():
    """Eq. 2–4 from probabilities of cases of different sizes agree with the losses on all their logits at once."""
    rng = np.random.default_rng(0)
    cases, logits, labels = [], {"ct": [], "mr": []}, {"ct": [], "mr": []}
    for modality, depth in (("ct", 3), ("mr", 2), ("ct", 5)):
        shape = (4, 4, depth)
        cases.append(case_of(modality, modality, rng.normal(size=shape), rng.integers(0, 3, shape), GRID))
        logits[modality].append(rng.normal(0, 3, (*shape, 3)).astype(np.float32).reshape(-1, 3))
        labels[modality].append(np.eye(3, dtype=np.float32)[cases[-1].label].reshape(-1, 3))
    waiting = [tf.nn.softmax(logits[m][k]).numpy().reshape(4, 4, -1, 3) for m, k in (("ct", 0), ("mr", 0), ("ct", 1))]
    predictor = SimpleNamespace(
        model=SimpleNamespace(num_classes=3), probabilities=lambda image, modality: waiting.pop(0)
    )
    result = evaluation.knowledge_of_cases(predictor, cases, temperature=3.0)
    together = [{m: np.concatenate(parts) for m, parts in x.items()} for x in (logits, labels)]
    assert result["kd_loss"] == pytest.approx(float(losses.knowledge_distillation_loss(*together, 3.0)), rel=1e-4)
    for m in ("ct", "mr"):
        np.testing.assert_allclose(result["q"][m], losses.class_knowledge(*(x[m] for x in together), 3.0), atol=1e-5)


def test_a_class_that_no_case_has_leaves_the_mean_to_the_others():
    """Three organs of Dice 1, 0.5 and 0.6, and a spleen that is nowhere in CT: 0.7, and the table says so."""

    def record(dice):
        status = "absent" if np.isnan(dice) else "found"
        return {"dice": dice, "status": status, **dict.fromkeys(("hausdorff_mm", "hausdorff95_mm"), 1.0),
                "average_mm": 1.0, "surface_dice": 1.0, "surface_points": 1, "surface_distance_sum_mm": 1.0,
                "surface_distance_square_sum_mm2": 1.0}  # fmt: skip

    def case(modality, spleen):
        values = {"liver": 1.0, "right_kidney": 0.5, "left_kidney": 0.6, "spleen": spleen}
        return {"modality": modality, "classes": {name: record(dice) for name, dice in values.items()}}

    cases = {"ct_1": case("ct", np.nan), "mr_1": case("mr", 0.9)}
    summary = summarize_cases(cases, TASK, ("ct", "mr"))
    assert summary["dice"]["ct"]["mean"] == pytest.approx(0.7)
    assert summary["dice"]["overall"] == pytest.approx((0.7 + 0.75) / 2)
    line = reporting.counts_line({"summary": summary, "cases": cases, "modalities": ["ct", "mr"]}, TASK)
    assert "ct mean over the other 3 classes, because no case has spleen" in line


def test_one_case_has_no_spread():
    entry = {"mean": 0.875, "std": 0.0, "count": 1}
    assert reporting._cell(entry, MEASURES["dice"]) == "87.5"
    assert reporting._cell({**entry, "std": 0.021, "count": 2}, MEASURES["dice"]) == "87.5 ± 2.1"
