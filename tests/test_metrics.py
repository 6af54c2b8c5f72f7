"""Metrics on shapes a reader can check on paper, against brute force, and by their properties."""

import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ummkd_tf.common.errors import InputError
from ummkd_tf.evaluation import metrics

CLASSES = ("liver", "right kidney", "left kidney", "spleen")
DISTANCES = ("hausdorff_mm", "hausdorff95_mm", "average_mm")

shapes = hnp.array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=6)
mask_pairs = shapes.flatmap(lambda shape: st.tuples(hnp.arrays(bool, shape), hnp.arrays(bool, shape)))
filled_pairs = mask_pairs.filter(lambda pair: pair[0].any() and pair[1].any())
few_examples = settings(max_examples=60, deadline=None)


def mask_of(shape, *voxels):
    mask = np.zeros(shape, bool)
    for voxel in voxels:
        mask[voxel] = True
    return mask


def spacing_for(mask):
    return (0.7, 1.9, 3.1)[: mask.ndim]


def brute_surface(mask):
    """Voxel indices with a background or outside neighbour across a face, one voxel at a time."""
    padded = np.pad(mask, 1)
    steps = [sign * step for step in np.eye(mask.ndim, dtype=int) for sign in (-1, 1)]
    return np.array([v for v in np.argwhere(padded) if not all(padded[tuple(v + step)] for step in steps)]) - 1


def brute_distances(prediction, reference, spacing_mm):
    """All pairs of surface voxels; both directions pooled."""
    first, second = (brute_surface(mask) * np.array(spacing_mm) for mask in (prediction, reference))
    pairs = np.sqrt(((first[:, None] - second[None]) ** 2).sum(axis=-1))
    return np.concatenate([pairs.min(axis=1), pairs.min(axis=0)])


# --- Dice -------------------------------------------------------------------------------------------------------


def test_dice_counts_overlap_twice():
    # |P| = 3, |R| = 2, |P and R| = 1: 2 * 1 / 5.
    assert metrics.dice_coefficient(np.array([1, 1, 1, 0]), np.array([0, 0, 1, 1])) == pytest.approx(0.4)


def test_dice_takes_any_rank_and_integer_type():
    prediction = np.array([[[[1, 0], [1, 1]]]], np.uint8)
    assert metrics.dice_coefficient(prediction, prediction.astype(">i4")) == 1.0


def test_dice_of_empty_masks():
    empty, filled = np.zeros((2, 3), bool), np.ones((2, 3), bool)
    assert math.isnan(metrics.dice_coefficient(empty, empty))
    assert metrics.dice_coefficient(empty, filled) == 0.0
    assert metrics.dice_coefficient(filled, empty) == 0.0


@few_examples
@given(mask_pairs)
def test_dice_is_symmetric_and_within_its_range(pair):
    dice = metrics.dice_coefficient(*pair)
    assert dice == pytest.approx(metrics.dice_coefficient(*pair[::-1]), nan_ok=True)
    assert math.isnan(dice) if not (pair[0] | pair[1]).any() else 0 <= dice <= 1


# --- Surface distances on paper -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "spacing_mm", "distance_mm"),
    [
        ((1, 1, 2), (1.0, 1.0, 2.0), 2.0),  # one voxel along the 2 mm axis
        ((3, 1, 1), (1.0, 5.0, 5.0), 2.0),  # two voxels along the 1 mm axis
        ((1, 3, 2), (9.0, 1.5, 4.0), 5.0),  # 3-4-5 triangle: 2 * 1.5 mm and 1 * 4 mm
    ],
)
def test_two_single_voxels(other, spacing_mm, distance_mm):
    first, second = mask_of((4, 4, 4), (1, 1, 1)), mask_of((4, 4, 4), other)
    found = metrics.surface_distances(first, second, spacing_mm)
    assert [getattr(found, name) for name in DISTANCES] == pytest.approx([distance_mm] * 3)
    assert found.distances_mm.tolist() == pytest.approx([distance_mm] * 2)


def test_plate_shifted_along_its_thickness():
    # One voxel thick: every voxel is surface, and each lies three 2.5 mm steps from the other plate.
    first, second = mask_of((6, 4, 5), np.s_[1]), mask_of((6, 4, 5), np.s_[4])
    found = metrics.surface_distances(first, second, (2.5, 1.0, 1.0))
    assert found.distances_mm.shape == (40,)
    assert [getattr(found, name) for name in DISTANCES] == pytest.approx([7.5] * 3)


def test_shifted_cube():
    # 3³ cubes one 2 mm step apart along axis 0; the surface is 26 voxels, all but the centre. On either cube the
    # 9 voxels of the outer layer are 2 mm away. The other 17 coincide with the other surface, except the one that
    # falls on the other cube's centre: it lies 1 mm (axes 1, 2) from the surface around that centre.
    first = mask_of((6, 5, 5), np.s_[1:4, 1:4, 1:4])
    second = mask_of((6, 5, 5), np.s_[2:5, 1:4, 1:4])
    found = metrics.surface_distances(first, second, (2.0, 1.0, 1.0))
    assert sorted(found.distances_mm) == pytest.approx([0.0] * 32 + [1.0] * 2 + [2.0] * 18)
    assert (found.hausdorff_mm, found.hausdorff95_mm) == pytest.approx((2.0, 2.0))
    assert found.average_mm == pytest.approx((2 * 1 + 18 * 2) / 52)
    assert found.surface_dice == pytest.approx(34 / 52)  # default tolerance: the smallest spacing, 1 mm


def test_hausdorff95_interpolates_between_pooled_distances():
    # Row of 10 against its first 5: distances 0 x5, 1 … 5 and 0 x5. The 95th percentile of 15 sits at index
    # 0.95 * 14 = 13.3, between the two largest, 4 and 5.
    found = metrics.surface_distances(mask_of((1, 10), np.s_[:]), mask_of((1, 10), np.s_[:, :5]), (1.0, 1.0))
    assert found.hausdorff95_mm == pytest.approx(4.3)
    assert found.average_mm == pytest.approx(1.0)
    assert found.hausdorff_mm == 5.0


def test_image_edge_counts_as_background():
    # A full 3x3 image has a surface of 8 voxels; its centre is 1 mm (the short axis) from it.
    found = metrics.surface_distances(np.ones((3, 3), bool), mask_of((3, 3), (1, 1)), (1.0, 4.0))
    from_edge, from_centre = found.distances_mm[:8], found.distances_mm[8:]
    assert from_centre.tolist() == [1.0]
    assert sorted(from_edge) == pytest.approx([1.0, 1.0, 4.0, 4.0, *[math.sqrt(17)] * 4])


def test_surface_ignores_diagonal_neighbours():
    # The centre of a plus touches background only at corners, so it is not surface.
    plus = mask_of((5, 5), (np.s_[1:4], 2), (2, np.s_[1:4]))
    assert metrics.surface_distances(plus, plus, (1.0, 1.0)).distances_mm.size == 8  # 4 voxels, both ways


@pytest.mark.parametrize(
    ("tolerance_mm", "surface_dice"),
    [(None, 0.0), (1.5, 0.0), (8.0, 1.0), (7.999, 0.0)],  # the default is one voxel in the plane: 1.5 mm
)
def test_surface_dice_tolerance(tolerance_mm, surface_dice):
    first, second = mask_of((4, 4, 3), np.s_[:, :, 0]), mask_of((4, 4, 3), np.s_[:, :, 1])
    assert metrics.surface_distances(first, second, (1.5, 1.5, 8.0), tolerance_mm).surface_dice == surface_dice


@pytest.mark.parametrize("spacing", [0.1, 0.7, 1.1, 1.2, 1.3, 2.3])
@pytest.mark.parametrize("row", [1, 4, 7])
def test_a_shift_of_one_voxel_is_within_the_tolerance_whatever_the_rounding(spacing, row):
    found = metrics.surface_distances(
        mask_of((40, 10), (0, 0), (row, 5)), mask_of((40, 10), (0, 0), (row + 1, 5)), (spacing, 9.0)
    )
    assert found.surface_dice == 1.0


# --- Empty masks --------------------------------------------------------------------------------------------------


def test_one_empty_mask_is_an_image_diagonal_away():
    # 3 x 1 mm, 4 x 3 mm, 1 x 4 mm: sqrt(9 + 144 + 16) = 13 mm, once for each of the 2 surface voxels.
    empty, filled = np.zeros((3, 4, 1), bool), mask_of((3, 4, 1), (0, 0, 0), (2, 1, 0))
    for pair in ((empty, filled), (filled, empty)):
        found = metrics.surface_distances(*pair, (1.0, 3.0, 4.0), tolerance_mm=100.0)
        assert [getattr(found, name) for name in DISTANCES] == pytest.approx([13.0] * 3)
        assert found.distances_mm.tolist() == pytest.approx([13.0] * 2)
        assert found.surface_dice == 0.0


def test_two_empty_masks_have_no_distance():
    empty = np.zeros((3, 4), bool)
    found = metrics.surface_distances(empty, empty, (1.0, 1.0))
    assert all(math.isnan(getattr(found, name)) for name in (*DISTANCES, "surface_dice"))
    assert found.distances_mm.shape == (0,)


# --- Surface distances: brute force and properties ----------------------------------------------------------------


@few_examples
@given(filled_pairs)
def test_agrees_with_all_pairs(pair):
    spacing = spacing_for(pair[0])
    expected = brute_distances(*pair, spacing)
    found = metrics.surface_distances(*pair, spacing)
    np.testing.assert_allclose(found.distances_mm, expected, rtol=0, atol=1e-9)
    assert found.hausdorff_mm == pytest.approx(expected.max(), abs=1e-9)
    assert found.average_mm == pytest.approx(expected.mean(), abs=1e-9)
    assert found.hausdorff95_mm == pytest.approx(np.percentile(expected, 95), abs=1e-9)
    assert found.surface_dice == np.mean(expected <= 0.7 + 1e-9)


@pytest.mark.parametrize("share", [0.0, 1.0], ids=["transform", "tree"])
def test_both_search_methods_agree_with_all_pairs(share, monkeypatch):
    monkeypatch.setattr(metrics, "_TREE_MAX_SURFACE_SHARE", share)
    chosen = []
    for name in ("_distances_by_tree", "_distances_by_transform"):
        method = getattr(metrics, name)
        monkeypatch.setattr(metrics, name, lambda *args, n=name, m=method: chosen.append(n) or m(*args))
    # Sparse, so that both surfaces together stay below a share of 1.
    pair = np.random.default_rng(3).random((2, 9, 8, 7)) < 0.2
    found = metrics.surface_distances(*pair, (0.7, 1.9, 3.1))
    np.testing.assert_allclose(found.distances_mm, brute_distances(*pair, (0.7, 1.9, 3.1)), rtol=0, atol=1e-9)
    assert set(chosen) == {"_distances_by_tree" if share else "_distances_by_transform"}


@few_examples
@given(filled_pairs)
def test_order_range_and_symmetry(pair):
    spacing = spacing_for(pair[0])
    found, reverse = (metrics.surface_distances(*masks, spacing) for masks in (pair, pair[::-1]))
    assert found.hausdorff_mm >= found.hausdorff95_mm >= 0
    assert found.hausdorff_mm >= found.average_mm - 1e-12
    assert 0 <= found.surface_dice <= 1
    for name in (*DISTANCES, "surface_dice"):
        assert getattr(found, name) == pytest.approx(getattr(reverse, name), abs=1e-12)


@few_examples
@given(filled_pairs)
def test_identical_masks_are_perfect(pair):
    found = metrics.surface_distances(pair[0], pair[0], spacing_for(pair[0]))
    assert (found.hausdorff_mm, found.hausdorff95_mm, found.average_mm, found.surface_dice) == (0, 0, 0, 1)
    assert metrics.dice_coefficient(pair[0], pair[0]) == 1


@few_examples
@given(filled_pairs, st.integers(1, 5))
def test_background_around_the_image_changes_nothing(pair, margin):
    spacing = spacing_for(pair[0])
    padded = [np.pad(mask, margin) for mask in pair]
    np.testing.assert_array_equal(
        metrics.surface_distances(*padded, spacing).distances_mm,
        metrics.surface_distances(*pair, spacing).distances_mm,
    )


@few_examples
@given(filled_pairs)
def test_axis_order_is_free_if_the_spacing_follows(pair):
    spacing = spacing_for(pair[0])
    found = metrics.surface_distances(*pair, spacing)
    for order in itertools.permutations(range(pair[0].ndim)):
        turned = metrics.surface_distances(*(np.transpose(m, order) for m in pair), [spacing[a] for a in order])
        np.testing.assert_allclose(np.sort(turned.distances_mm), np.sort(found.distances_mm), rtol=0, atol=1e-9)


def test_inputs_are_left_alone():
    pair = np.random.default_rng(0).random((2, 5, 6)) < 0.5
    before = pair.copy()
    metrics.surface_distances(*pair, (1.0, 1.0))
    np.testing.assert_array_equal(pair, before)


# --- One case -----------------------------------------------------------------------------------------------------


def small_case():
    """Liver: two voxels against one; right kidney missed, left kidney absent, spleen spurious."""
    prediction, reference = np.zeros((4, 3, 2), np.uint8), np.zeros((4, 3, 2), np.int16)
    prediction[0, 0, 0] = prediction[1, 0, 0] = 1
    reference[0, 0, 0] = 1
    reference[3, 2, 0] = reference[3, 2, 1] = 2
    prediction[0, 2, 1] = 4
    return prediction, reference


def test_case_metrics_by_hand():
    found = metrics.case_metrics(*small_case(), (2.0, 3.0, 5.0), CLASSES)
    assert tuple(found) == CLASSES
    assert {name: entry["status"] for name, entry in found.items()} == {
        "liver": "ok",
        "right kidney": "missed",
        "left kidney": "absent",
        "spleen": "spurious",
    }
    # Liver: distances 0 and 2 one way, 0 the other; index 0.95 * 2 = 1.9 of [0, 0, 2] is 1.8.
    assert found["liver"] == {
        "status": "ok",
        "dice": pytest.approx(2 / 3),
        "hausdorff_mm": 2.0,
        "hausdorff95_mm": pytest.approx(1.8),
        "average_mm": pytest.approx(2 / 3),
        "surface_dice": 1.0,
        "surface_points": 3,
        "surface_distance_sum_mm": 2.0,
        "surface_distance_square_sum_mm2": 4.0,
    }
    diagonal = math.sqrt(8**2 + 9**2 + 10**2)
    for name, points in (("right kidney", 2), ("spleen", 1)):
        entry = found[name]
        assert [entry[key] for key in DISTANCES] == pytest.approx([diagonal] * 3)
        assert (entry["dice"], entry["surface_dice"], entry["surface_points"]) == (0.0, 0.0, points)
        assert entry["surface_distance_sum_mm"] == pytest.approx(points * diagonal)
        assert entry["surface_distance_square_sum_mm2"] == pytest.approx(points * diagonal**2)
    absent = found["left kidney"]
    assert all(math.isnan(absent[key]) for key in (*DISTANCES, "dice", "surface_dice"))
    assert (absent["surface_points"], absent["surface_distance_sum_mm"]) == (0, 0.0)


def test_case_metrics_equals_the_binary_functions():
    prediction, reference = np.random.default_rng(1).integers(0, 5, (2, 9, 8, 7))
    found = metrics.case_metrics(prediction, reference, (1.0, 2.0, 3.0), CLASSES)
    for label, name in enumerate(CLASSES, start=1):
        masks = prediction == label, reference == label
        surfaces = metrics.surface_distances(*masks, (1.0, 2.0, 3.0))
        assert found[name]["dice"] == metrics.dice_coefficient(*masks)
        for key in (*DISTANCES, "surface_dice"):
            assert found[name][key] == getattr(surfaces, key)
        assert found[name]["surface_distance_sum_mm"] == pytest.approx(surfaces.distances_mm.sum())


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, ">i2", np.int64, np.uint64])
def test_case_metrics_takes_any_integer_type(dtype):
    prediction, reference = (array.astype(dtype) for array in small_case())
    found = metrics.case_metrics(prediction, reference, (2.0, 3.0, 5.0), CLASSES)
    assert found["liver"]["hausdorff_mm"] == 2.0


def test_case_metrics_survive_json():
    found = metrics.case_metrics(*small_case(), (2.0, 3.0, 5.0), CLASSES)
    again = json.loads(json.dumps(found))
    assert again["liver"] == found["liver"]
    assert metrics.pooled_surface_distance(again.values()) == metrics.pooled_surface_distance(found.values())


# --- Over cases ---------------------------------------------------------------------------------------------------


def test_summarize_counts_what_it_leaves_out():
    # Mean 4, squared deviations 9 + 1 + 4 + 0: population std sqrt(14 / 4), not sqrt(14 / 3).
    assert metrics.summarize([1.0, math.nan, 5.0, 6.0, None, 4.0]) == metrics.Summary(
        mean=4.0, std=pytest.approx(math.sqrt(3.5)), count=4, excluded=2
    )


@pytest.mark.parametrize(("values", "excluded"), [([], 0), ([math.nan, None], 2)])
def test_summarize_of_nothing(values, excluded):
    summary = metrics.summarize(values)
    assert math.isnan(summary.mean) and math.isnan(summary.std)
    assert (summary.count, summary.excluded) == (0, excluded)


def test_pooled_surface_distance_weighs_surface_voxels_alike():
    rng = np.random.default_rng(2)
    cases = [(rng.random((2, 6, 6)) < 0.4, (1.0, 2.0)), (rng.random((2, 9, 9)) < 0.4, (3.0, 0.5))]
    pooled = np.concatenate([metrics.surface_distances(*pair, spacing).distances_mm for pair, spacing in cases])
    records = [metrics.case_metrics(*pair, spacing, ["organ"])["organ"] for pair, spacing in cases]
    assert metrics.pooled_surface_distance(records) == pytest.approx((pooled.mean(), pooled.std(), pooled.size))


def test_pooled_surface_distance_of_nothing():
    absent = metrics.case_metrics(*np.zeros((2, 3, 3), int), (1.0, 1.0), ["organ"])["organ"]
    for records in ([], [absent]):
        mean, std, points = metrics.pooled_surface_distance(records)
        assert math.isnan(mean) and math.isnan(std) and points == 0


def test_pooled_surface_distance_of_equal_distances_has_no_spread():
    record = {
        "surface_points": 3,
        "surface_distance_sum_mm": 0.1 + 0.1 + 0.1,
        "surface_distance_square_sum_mm2": 3 * 0.1**2,
    }
    assert metrics.pooled_surface_distance([record]) == pytest.approx((0.1, 0.0, 3), abs=1e-8)


# --- Errors -------------------------------------------------------------------------------------------------------

PLANE = np.zeros((4, 5), np.uint8)
LABELS = np.array([[0, 1], [4, 5]])


@pytest.mark.parametrize(
    ("call", "received"),
    [
        (lambda: metrics.dice_coefficient(PLANE, PLANE[1:]), r"\(4, 5\) and \(3, 5\)"),
        (lambda: metrics.dice_coefficient(PLANE, PLANE[None]), r"\(4, 5\) and \(1, 4, 5\)"),
        (lambda: metrics.dice_coefficient(PLANE + 0.5, PLANE), r"prediction .* float64 with values from 0.5 to 0.5"),
        (lambda: metrics.dice_coefficient(PLANE, PLANE + 2), r"reference .* uint8 with values from 2 to 2"),
        (lambda: metrics.dice_coefficient(PLANE, PLANE.astype(int) - 1), r"int64 with values from -1 to -1"),
        (lambda: metrics.dice_coefficient(np.array(["a"]), np.array([1])), r"prediction .* dtype <U1"),
        (lambda: metrics.surface_distances(PLANE, PLANE, (1.0, 1.0, 1.0)), r"2 finite .* got \(1.0, 1.0, 1.0\)"),
        (lambda: metrics.surface_distances(PLANE, PLANE, (1.0, 0.0)), r"got \(1.0, 0.0\)"),
        (lambda: metrics.surface_distances(PLANE, PLANE, (1.0, -2.0)), r"got \(1.0, -2.0\)"),
        (lambda: metrics.surface_distances(PLANE, PLANE, (1.0, math.nan)), r"got \(1.0, nan\)"),
        (lambda: metrics.surface_distances(PLANE, PLANE, (math.inf, 1.0)), r"got \(inf, 1.0\)"),
        (lambda: metrics.surface_distances(PLANE, PLANE, ("a", "b")), r"got \('a', 'b'\)"),
        (lambda: metrics.surface_distances(PLANE, PLANE, np.eye(4)), r"got \[\[1. 0. 0. 0.\] \[0. 1."),
        (lambda: metrics.surface_distances(PLANE[0], PLANE[0], (1.0,)), r"2 or 3 axes .* got shape \(5,\)"),
        (lambda: metrics.surface_distances(PLANE[:0], PLANE[:0], (1.0, 1.0)), r"got shape \(0, 5\)"),
        (lambda: metrics.surface_distances(PLANE, PLANE, (1.0, 1.0), -1.0), r"tolerance_mm .* got -1.0"),
        (lambda: metrics.surface_distances(PLANE, PLANE, (1.0, 1.0), math.nan), r"tolerance_mm .* got nan"),
        (lambda: metrics.case_metrics(LABELS, LABELS, (1, 1), CLASSES), r"prediction .* 0…4 .* from 0 to 5"),
        (lambda: metrics.case_metrics(LABELS * 0, -LABELS, (1, 1), CLASSES), r"reference .* from -5 to 0"),
        (lambda: metrics.case_metrics(LABELS * 1.0, LABELS, (1, 1), CLASSES), r"prediction .* float64 .* 0.0 to 5.0"),
        (lambda: metrics.case_metrics(LABELS, LABELS[:1], (1, 1), CLASSES), r"\(2, 2\) and \(1, 2\)"),
        (lambda: metrics.case_metrics(PLANE, PLANE, (1, 1), "liver"), r"distinct names .* got 'liver'"),
        (lambda: metrics.case_metrics(PLANE, PLANE, (1, 1), []), r"distinct names .* got \[\]"),
        (lambda: metrics.case_metrics(PLANE, PLANE, (1, 1), ["a", "a"]), r"distinct names .* got \['a', 'a'\]"),
        (lambda: metrics.summarize([1.0, math.inf]), r"infinite .* got \[1.0, inf\]"),
    ],
)
def test_bad_input_is_told_in_one_line(call, received):
    with pytest.raises(InputError, match=received) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_metrics_do_not_import_tensorflow():
    program = "import sys, ummkd_tf.evaluation.metrics; sys.exit('tensorflow' in sys.modules)"
    root = Path(__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", program], cwd=root, check=False).returncode == 0
