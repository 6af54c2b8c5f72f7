"""The tests of Tables III and IV against values worked out by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded_runs import absent, evaluation_cases, write_run

from experiments.plans import RunSpec
from experiments.results.records import load_records
from experiments.results.significance import compare, holm, unit_values


def units(values):
    return {(f"ct_{i}", "liver"): v for i, v in enumerate(values)}


def test_paired_t_test_by_hand():
    """Differences 1, 2, 3: mean 2, standard error 1/√3, so t = 2√3 with 2 degrees of freedom: p = 1 - t / √(t² + 2)."""
    result = compare(units([1, 2, 3]), units([0, 0, 0]))
    assert result.pairs == 3
    assert result.t_test == pytest.approx(1 - math.sqrt(12) / math.sqrt(14))
    # Three differences of one sign: 2 of the 2³ equally likely sign patterns are as extreme.
    assert result.wilcoxon == pytest.approx(2 / 8)


def test_wilcoxon_by_hand():
    """Differences -1, 2, 3, 4, 5: the negative ranks sum to 1; 2 · 2 of the 2⁵ sign patterns have a sum of 0 or 1."""
    assert compare(units([-1, 2, 3, 4, 5]), units([0] * 5)).wilcoxon == pytest.approx(4 / 32)


def test_pairs_are_those_that_both_have():
    ours = units([1, 2, 3]) | {("mr_0", "liver"): 99.0}
    result = compare(ours, units([0, 0, 0]) | {("mr_1", "liver"): -99.0})
    assert (result.pairs, result.t_test) == (3, compare(units([1, 2, 3]), units([0, 0, 0])).t_test)


@pytest.mark.parametrize("number", [0, 1])
def test_too_few_pairs(number):
    result = compare(units([1.0] * number), units([0.0] * number))
    assert result.pairs == number and math.isnan(result.t_test) and math.isnan(result.wilcoxon)


def test_no_difference():
    result = compare(units([1, 2, 3]), units([1, 2, 3]))
    assert (result.t_test, result.wilcoxon) == (1.0, 1.0)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    corrected = holm([0.02, math.nan, 0.04])
    assert corrected[::2] == [0.04, 0.04] and math.isnan(corrected[1])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_between_the_p_value_and_bonferroni(p_values):
    for p, corrected in zip(p_values, holm(p_values), strict=True):
        assert p <= corrected <= min(1, len(p_values) * p)


def test_units_are_averaged_over_seeds_and_joined_over_folds(tmp_path):
    dice = {}
    for seed, fold in ((0, 0), (1, 0), (0, 1), (1, 1)):
        cases = evaluation_cases("abdomen", np.random.default_rng(10 * seed + fold), range(fold, fold + 1))
        cases[f"mr_{fold}"]["classes"]["spleen"] = absent()
        write_run(tmp_path, RunSpec("abdomen", "abdomen", "ours", seed=seed, fold=fold), cases)
        dice[seed, fold] = cases[f"ct_{fold}"]["classes"]["liver"]["dice"]
    found = unit_values((record.cases() for record in load_records(tmp_path)), "dice")
    assert len(found) == 2 * 7  # per fold CT's four structures and MR's three
    for fold in (0, 1):
        assert found[f"ct_{fold}", "liver"] == pytest.approx((dice[0, fold] + dice[1, fold]) / 2)
