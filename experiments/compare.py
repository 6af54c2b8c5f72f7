"""Two methods on the same test cases: the difference between them, and whether it is chance.

    python -m experiments.compare --first=runs/ours --second=runs/chilopod
    python -m experiments.compare --first='runs/ours-*' --second='runs/chilopod-*' --metric=hausdorff95_mm --list

Each side is one evaluated run or several: its folds join, and a case that several runs (seeds) tested counts with their
mean. A run is given by its folder, whose evaluation_test.json is read, or by the path of such a file.

Both sides must have tested the same cases. A case counts with its mean over the classes, and overall the modalities
weigh alike. p is that of Wilcoxon's signed-rank test over the cases. It says whether a difference is the same in many
cases, and not whether another training would show it: for that, compare several seeds.
"""

from __future__ import annotations

import glob
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from experiments.results.records import EVALUATION, read_json
from experiments.results.significance import Unit, compare, unit_values
from experiments.results.table import p_text
from ummkd_tf.common.cli import run
from ummkd_tf.common.documents import MALFORMED
from ummkd_tf.common.errors import InputError, listed
from ummkd_tf.common.notes import note_aside
from ummkd_tf.evaluation.summary import METRICS
from ummkd_tf.output.text_tables import markdown

_MUST_AGREE = ("task", "grid", "part")
_SHOULD_AGREE = ("overlap", "largest_component", "preset", "split_sha256")

Pairs = dict[str, tuple[float, float]]
"""Case id → value of the first side and of the second."""


@dataclass(frozen=True, eq=False)
class Side:
    """One of the two methods.

    Attributes:
        flag: Its flag and value, for messages.
        evaluations: Contents of its evaluation files.
    """

    flag: str
    evaluations: Sequence[Mapping[str, Any]]

    @property
    def modality(self) -> dict[str, str]:
        """Of each case."""
        return {case_id: case["modality"] for e in self.evaluations for case_id, case in e["cases"].items()}

    def values(self, metric: str) -> dict[Unit, float]:
        """By case and class, averaged over seeds."""
        return unit_values((evaluation["cases"] for evaluation in self.evaluations), metric)

    def each(self, name: str) -> str:
        """What its evaluations say of themselves."""
        return " / ".join(sorted({str(evaluation.get(name)) for evaluation in self.evaluations}))

    def __str__(self) -> str:
        titles = sorted({(e.get("setting") or {}).get("title", "unnamed") for e in self.evaluations})
        known = [f", {name} {text}" for name in ("preset", "step", "seed") if (text := self.each(name)) != "None"]
        number = len(self.evaluations)
        return f"{' / '.join(titles)}{''.join(known)} ({number} evaluation{'s' * (number > 1)})"


def read_side(name: str, patterns: Sequence[str]) -> Side:
    """The evaluations that a flag names.

    Raises:
        InputError: Nothing there, not evaluated, or damaged.
    """
    flag = f"--{name}={','.join(patterns)}"
    paths = sorted({Path(found) for pattern in patterns for found in glob.glob(pattern) or [pattern]})
    files = [path / EVALUATION if path.is_dir() else path for path in paths]
    return Side(flag, [_read(file, flag) for file in files])


def _read(file: Path, flag: str) -> dict[str, Any]:
    evaluation = read_json(file)
    if evaluation is None:
        raise InputError(f"{flag}: {file}: no such file: expected an evaluation; run experiments.evaluate first")
    try:
        units = [
            metrics[m] for case in evaluation["cases"].values() for metrics in case["classes"].values() for m in METRICS
        ]
        names = [case["modality"] for case in evaluation["cases"].values()]
    except MALFORMED:
        units = names = []
    if (
        not units
        or not all(isinstance(u, int | float | None) for u in units)
        or not all(isinstance(n, str) for n in names)
    ):
        raise InputError("holds no evaluated cases", where=file, fix="expected a file that experiments.evaluate wrote")
    return evaluation


def check_comparable(first: Side, second: Side, without: Collection[str] = ()) -> None:
    """Refuses to compare different things, and tells of smaller differences.

    Raises:
        InputError: Other cases, another task, grid or part.
    """
    one, other = first.modality, second.modality
    if unknown := sorted({*without} - {*one, *other}):
        raise InputError(f"--without={','.join(unknown)}: expected some of the tested cases, e.g. {min(one)}")
    for side, lacks in ((first, second), (second, first)):
        if alone := sorted(side.modality.keys() - lacks.modality.keys() - {*without}):
            raise InputError(
                f"{listed(alone)}: in {side.flag} and not in {lacks.flag}: expected the same cases on both sides; "
                "leave some out with --without, or evaluate again"
            )
    if mixed := sorted(case_id for case_id in one.keys() & other.keys() if one[case_id] != other[case_id]):
        raise InputError(
            f"{mixed[0]}: {one[mixed[0]]} in {first.flag}, {other[mixed[0]]} in {second.flag}: not one scan"
        )
    for name in _MUST_AGREE:
        if len({e.get(name) for side in (first, second) for e in side.evaluations}) > 1:
            raise InputError(
                f"{name}: expected one for all, found {first.each(name)} in {first.flag}, {second.each(name)} in "
                f"{second.flag}; compare evaluations of one kind"
            )
    for name in _SHOULD_AGREE:
        found = first.each(name), second.each(name)
        if found[0] != found[1] and "None" not in found:  # other programs' label maps have no preset
            note_aside(f"the two differ in {name}: {found[0]} and {found[1]}")


def paired(first: Side, second: Side, metric: str, without: Collection[str] = ()) -> dict[str, Pairs]:
    """Values of both sides by class, and under "mean" the means over the classes that a case has on both sides.

    Args:
        first, second: Of the same cases.
        metric: One of `METRICS`.
        without: Cases to leave out.
    """
    one, other = ({u: v for u, v in side.values(metric).items() if u[0] not in without} for side in (first, second))
    for case_id, name in sorted(one.keys() ^ other.keys()):
        note_aside(f"{case_id}, {name}: left out, because only one of the two labels it; the reference has none")
    by_class: dict[str, Pairs] = {}
    by_case: dict[str, list[tuple[float, float]]] = {}
    for case_id, name in one:
        if (case_id, name) in other:
            pair = one[case_id, name], other[case_id, name]
            by_class.setdefault(name, {})[case_id] = pair
            by_case.setdefault(case_id, []).append(pair)
    means = {case_id: (_mean(a for a, _ in pairs), _mean(b for _, b in pairs)) for case_id, pairs in by_case.items()}
    return {**by_class, "mean": means}


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return math.fsum(listed) / len(listed)


@dataclass(frozen=True)
class Difference:
    """Of two methods over some cases.

    Attributes:
        first, second: Means, in which modalities weigh alike.
        std: Population standard deviation of the cases' differences.
        p: Of Wilcoxon's two-sided signed-rank test over the cases; NaN for one case.
        larger: Cases in which the first is larger.
        cases: All of them.
    """

    first: float
    second: float
    std: float
    p: float
    larger: int
    cases: int

    @property
    def mean(self) -> float:
        """First − second."""
        return self.first - self.second


def difference_of(pairs: Pairs, modality: Mapping[str, str]) -> Difference:
    """What two methods differ by.

    Args:
        pairs: Values of the cases, at least one.
        modality: Case id → modality.
    """
    by_modality: dict[str, list[tuple[float, float]]] = {}
    for case_id, pair in pairs.items():
        by_modality.setdefault(modality[case_id], []).append(pair)
    first, second = (_mean(_mean(pair[side] for pair in of) for of in by_modality.values()) for side in (0, 1))
    differences = [one - other for one, other in pairs.values()]
    tested = compare(*({case_id: pair[side] for case_id, pair in pairs.items()} for side in (0, 1)))
    larger = sum(difference > 0 for difference in differences)
    return Difference(first, second, float(np.std(differences)), tested.wilcoxon, larger, len(pairs))


def table(by_class: Mapping[str, Pairs], modality: Mapping[str, str], metric: str) -> str:
    """Markdown: every class and the mean of each modality, and overall.

    Args:
        by_class: From `paired`.
        modality: Of each case.
        metric: One of `METRICS`.
    """
    title, factor, decimals = METRICS[metric]

    def row(name: str, pairs: Pairs) -> list[str]:
        found = difference_of(pairs, modality)
        return [
            name,
            *(f"{factor * value:.{decimals}f}" for value in (found.first, found.second)),
            f"{factor * found.mean:+.{decimals}f} ± {factor * found.std:.{decimals}f}",
            "–" if math.isnan(found.p) else p_text(found.p),
            f"{found.larger} of {found.cases}",
        ]

    rows = []
    for one in dict.fromkeys(modality.values()):
        for name, pairs in by_class.items():
            if of := {case_id: pair for case_id, pair in pairs.items() if modality[case_id] == one}:
                rows.append(row(f"{one} {name.replace('_', ' ')}", of))
    rows.append(row("overall", by_class["mean"]))
    return markdown([title, "first", "second", "difference ± std", "p", "first is larger"], rows)


def case_list(means: Pairs, modality: Mapping[str, str], metric: str) -> str:
    """Markdown: every case's mean over its classes, by falling difference."""
    _, factor, decimals = METRICS[metric]
    ordered = sorted(means.items(), key=lambda item: item[1][1] - item[1][0])
    rows = [
        [
            case_id,
            modality[case_id],
            *(f"{factor * value:.{decimals}f}" for value in pair),
            f"{factor * (pair[0] - pair[1]):+.{decimals}f}",
        ]
        for case_id, pair in ordered
    ]
    return markdown(["case", "modality", "first", "second", "difference"], rows)


def main(_: list[str]) -> None:
    """Prints the comparison that the flags ask for."""
    values = flags.FLAGS
    first, second = (read_side(name, getattr(values, name)) for name in ("first", "second"))
    check_comparable(first, second, values.without)
    by_class = paired(first, second, values.metric, values.without)
    if not by_class["mean"]:
        raise InputError(f"--without={','.join(values.without)}: leaves no case to compare: expected one or more")
    modality = first.modality
    without = f" without {', '.join(values.without)}" if values.without else ""
    number = len(by_class["mean"])
    print(f"first:  {first}\nsecond: {second}\n\n{number} cases of the {first.each('part')} part{without}:\n")
    print(table(by_class, modality, values.metric))
    if values.list:
        print(f"\n{case_list(by_class['mean'], modality, values.metric)}")
    print(
        "\n± is the standard deviation of the cases' differences; p is of Wilcoxon's signed-rank test over the cases, "
        "not corrected for the number of rows. With five cases or fewer it cannot be below 0.06."
    )


def _define_flags() -> None:
    flags.DEFINE_list(
        "first", None, "Runs, or evaluation files, with wildcards; several are folds or seeds.", required=True
    )
    flags.DEFINE_list("second", None, "The others, on the same cases; the difference is first − second.", required=True)
    flags.DEFINE_enum("metric", "dice", list(METRICS), "What to compare.")
    flags.DEFINE_list("without", [], "Cases to leave out, to see whether a difference hangs on them.")
    flags.DEFINE_bool("list", False, "Also print every case.")


if __name__ == "__main__":
    _define_flags()
    run(main)
