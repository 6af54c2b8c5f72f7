"""Is one method better than another, or is it chance? (docs/reproduction.md#significance)

Tables III and IV: CT and MR together, as in the paper; the unit is one structure of one case, our choice, because the
paper names none. In `experiments.compare` it is a case. Several seeds are averaged first, so that they do not multiply
n; the folds of a cross-validation join, since each case is tested in one of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from scipy import stats

Unit = tuple[str, str]  # case id, class name
Key = TypeVar("Key", Unit, str)


@dataclass(frozen=True)
class Comparison:
    """One method against another.

    Attributes:
        pairs: n, the number of units both have a value of.
        t_test: p of the two-sided paired Student's t-test.
        wilcoxon: p of the two-sided Wilcoxon signed-rank test.
    """

    pairs: int
    t_test: float
    wilcoxon: float


def unit_values(evaluated: Iterable[Mapping[str, Any]], metric: str) -> dict[Unit, float]:
    """A metric by case and class, averaged over seeds; a class absent in prediction and reference is left out.

    Args:
        evaluated: "cases" of each evaluation.
        metric: Name of a `ClassMetrics` number.
    """
    values: dict[Unit, list[float]] = {}
    for cases in evaluated:
        for case_id, case in cases.items():
            for name, metrics in case["classes"].items():
                value = metrics[metric]
                if value is not None and not math.isnan(value):
                    values.setdefault((case_id, name), []).append(value)
    return {unit: math.fsum(of_seeds) / len(of_seeds) for unit, of_seeds in values.items()}


def compare(ours: Mapping[Key, float], other: Mapping[Key, float]) -> Comparison:
    """Both tests over what both have (units, or cases); p is NaN for fewer than two, and 1 where no pair differs."""
    shared = sorted(ours.keys() & other.keys())
    a, b = (np.array([values[unit] for unit in shared]) for values in (ours, other))
    if len(shared) < 2:
        return Comparison(len(shared), math.nan, math.nan)
    if np.array_equal(a, b):
        return Comparison(len(shared), 1.0, 1.0)
    return Comparison(len(shared), float(stats.ttest_rel(a, b).pvalue), float(stats.wilcoxon(a, b).pvalue))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction for testing all of them; NaN does not count as a test and stays NaN."""
    tested = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    corrected = [math.nan] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * p))
        corrected[i] = largest
    return corrected
