"""Is Ours better than a setting, or is it chance? (Tables III and IV; docs/reproduction.md#significance)

Unit: one structure of one case, CT and MR together, as the paper does. Several seeds are averaged first, so that they
do not multiply n; the folds of a cross-validation join, since each case is tested in one of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from experiments.results.records import Record

Unit = tuple[str, str]  # case id, class name


@dataclass(frozen=True)
class Comparison:
    """Ours against one setting.

    Attributes:
        pairs: n, the number of units both have a value of.
        t_test: p of the two-sided paired Student's t-test.
        wilcoxon: p of the two-sided Wilcoxon signed-rank test.
    """

    pairs: int
    t_test: float
    wilcoxon: float


def unit_values(records: Iterable[Record], metric: str) -> dict[Unit, float]:
    """A metric by case and class, averaged over seeds; a class absent in prediction and reference is left out."""
    values: dict[Unit, list[float]] = {}
    for record in records:
        for case_id, case in (record.evaluation or {"cases": {}})["cases"].items():
            for name, metrics in case["classes"].items():
                value = metrics[metric]
                if value is not None and not math.isnan(value):
                    values.setdefault((case_id, name), []).append(value)
    return {unit: math.fsum(of_seeds) / len(of_seeds) for unit, of_seeds in values.items()}


def compare(ours: Mapping[Unit, float], other: Mapping[Unit, float]) -> Comparison:
    """Both tests over the units that both have; p is NaN for fewer than two, and 1 where no pair differs."""
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
