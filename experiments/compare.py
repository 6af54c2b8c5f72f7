"""Two methods on the same test cases: the difference between them, and whether it is chance.

    python -m experiments.compare --first=runs/ours --second=runs/chilopod
    python -m experiments.compare --first='runs/ours-seed*' --second='runs/chilopod-seed*' --list

Each side is one evaluated run or several: its folds join, and a case that several runs (seeds) tested counts with their
mean. A run is given by its folder, whose evaluation_test.json is read, or by the path of such a file.

Both sides must have tested the same cases. A case counts with its mean over the classes of which both sides have a
value, and overall the modalities weigh alike. p is that of Wilcoxon's signed-rank test over the cases. It says whether
a difference is the same in many cases, and not whether another training would show it: for that, compare several seeds.
"""

from __future__ import annotations

import glob
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
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
from ummkd_tf.output.text_tables import markdown, signed

_MUST_AGREE = ("task", "grid")
_CHECKSUMS = ("scans", "labels")  # by case; evaluations of earlier versions have none
_SHOULD_AGREE = ("part", "overlap", "largest_component", "selection", "preset")

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
        """Case id → modality."""
        return {case_id: case["modality"] for e in self.evaluations for case_id, case in e["cases"].items()}

    def values(self, metric: str) -> dict[Unit, float]:
        """By case and class, averaged over seeds."""
        return unit_values((evaluation["cases"] for evaluation in self.evaluations), metric)

    @property
    def splits(self) -> dict[str, list[str]]:
        """Case id → checksum of the split of each run that tested it."""
        found: dict[str, list[str]] = {}
        for evaluation in self.evaluations:
            for case_id in evaluation["cases"]:
                found.setdefault(case_id, []).append(str(evaluation.get("split_sha256")))
        return found

    def each(self, name: str) -> str:
        """What its evaluations hold under a name, e.g. "preset"; "None" where they lack it."""
        found = {str(evaluation.get(name)) for evaluation in self.evaluations}
        return " / ".join(sorted(found, key=lambda text: (len(text), text)))  # step 900 before 1500

    def __str__(self) -> str:
        titles = sorted({evaluation["setting"]["title"] for evaluation in self.evaluations})
        known = [f", {name} {text}" for name in ("preset", "step", "seed") if (text := self.each(name)) != "None"]
        number = len(self.evaluations)
        return f"{' / '.join(titles)}{''.join(known)} ({number} evaluation{'s' * (number > 1)})"


def read_side(name: str, patterns: Sequence[str]) -> Side:
    """The evaluations that a flag names.

    Raises:
        InputError: Nothing there, not evaluated, or damaged.
    """
    flag = f"--{name}={','.join(patterns)}"
    if not any(patterns):
        raise InputError(f"{flag}: expected runs or evaluation files; give one or more")
    paths = sorted({Path(found) for pattern in patterns for found in glob.glob(pattern) or [pattern]})
    files = {file.resolve(): file for path in paths for file in [path / EVALUATION if path.is_dir() else path]}
    return Side(flag, [_read(file, flag) for file in files.values()])


def _read(file: Path, flag: str) -> dict[str, Any]:
    evaluation = read_json(file)
    if evaluation is None:
        raise InputError(f"{flag}: {file}: no such file: expected an evaluation; run ummkd evaluate first")
    try:
        cases = evaluation["cases"].values()
        numbers = [metrics[m] for case in cases for metrics in case["classes"].values() for m in METRICS]
        texts = [evaluation["setting"]["title"], *(evaluation[n] for n in _MUST_AGREE), *(c["modality"] for c in cases)]
        texts += [text for kind in _CHECKSUMS for text in evaluation.get(kind, {}).values()]
    except MALFORMED:
        numbers = texts = []
    sound = all(isinstance(n, int | float | None) for n in numbers) and all(isinstance(t, str) for t in texts)
    if not numbers or not sound:
        raise InputError("holds no evaluated cases", where=file, fix="expected a file that ummkd evaluate wrote")
    return evaluation


def check_comparable(first: Side, second: Side, without: Collection[str] = ()) -> None:
    """Refuses to compare different things, and tells of smaller differences.

    Raises:
        InputError: Other cases, scans, label maps or classes; another task or grid.
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
    evaluations = [*first.evaluations, *second.evaluations]
    for case_id in sorted(one.keys() - {*without}):
        of_case = [e for e in evaluations if case_id in e["cases"]]
        classes = {tuple(sorted(e["cases"][case_id]["classes"])) for e in of_case}
        known = {kind: {e[kind][case_id] for e in of_case if case_id in e.get(kind, {})} for kind in _CHECKSUMS}
        different = [kind for kind, found in {"classes": classes, **known}.items() if len(found) > 1]
        if different:
            raise InputError(
                f"{case_id}: other {' and '.join(different)} in some of {first.flag}, {second.flag}: expected the same "
                "scan, label map and classes in all; evaluate all on one data set"
            )
    for name in _MUST_AGREE:
        if len({evaluation[name] for side in (first, second) for evaluation in side.evaluations}) > 1:
            raise InputError(
                f"{name}: expected one for all, found {first.each(name)} in {first.flag}, {second.each(name)} in "
                f"{second.flag}; compare evaluations of one kind"
            )
    for name in _SHOULD_AGREE:
        found = {e[name] for side in (first, second) for e in side.evaluations if e.get(name) is not None}
        if len(found) > 1:  # label maps of other programs have no preset, and no overlap
            note_aside(f"{name} is not the same: first {first.each(name)}, second {second.each(name)}")
    splits = first.splits, second.splits
    if any({*splits[0][case_id]} != {*splits[1][case_id]} for case_id in one.keys() & other.keys()):
        note_aside("the two were trained on different splits")
    for side, tested in zip((first, second), splits, strict=True):
        if len({len(runs) for runs in tested.values()}) > 1:
            note_aside(f"{side.flag}: some cases were tested by more runs than others; each case counts once")


def paired(first: Side, second: Side, metric: str, without: Collection[str] = ()) -> dict[str, Pairs]:
    """Values of both sides by class, and under "mean" the means over the classes that a case has on both sides.

    Args:
        first, second: Of the same cases.
        metric: One of `METRICS`.
        without: Cases to leave out.
    """
    one, other = first.values(metric), second.values(metric)
    by_class: dict[str, Pairs] = {}
    by_case: dict[str, list[tuple[float, float]]] = {}
    for case_id, name in one:
        if (case_id, name) in other and case_id not in without:
            pair = one[case_id, name], other[case_id, name]
            by_class.setdefault(name, {})[case_id] = pair
            by_case.setdefault(case_id, []).append(pair)
    means = {case_id: (fmean(a for a, _ in pairs), fmean(b for _, b in pairs)) for case_id, pairs in by_case.items()}
    return {**by_class, "mean": means}


def invented(first: Side, second: Side, without: Collection[str] = ()) -> list[str]:
    """What only one of the two finds, where the reference has none, so that there is no pair: e.g. "ct_1 spleen"."""
    one, other = (side.values("dice").keys() for side in (first, second))
    return [f"{case_id} {name.replace('_', ' ')}" for case_id, name in sorted(one ^ other) if case_id not in without]


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
    first, second = (fmean(fmean(pair[side] for pair in found) for found in by_modality.values()) for side in (0, 1))
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
    measure = METRICS[metric]

    def row(name: str, pairs: Pairs) -> list[str]:
        found = difference_of(pairs, modality)
        return [
            name,
            *map(measure.text, (found.first, found.second)),
            f"{signed(measure.factor * found.mean, measure.decimals)} ± {measure.text(found.std)}",
            "–" if math.isnan(found.p) else p_text(found.p),
            f"{found.larger} of {found.cases}",
        ]

    rows = []
    for one in dict.fromkeys(modality.values()):
        for name, pairs in by_class.items():
            if of := {case_id: pair for case_id, pair in pairs.items() if modality[case_id] == one}:
                rows.append(row(f"{one} {name.replace('_', ' ')}", of))
    rows.append(row("overall", by_class["mean"]))
    return markdown([measure.title, "first", "second", "difference ± std", "p", "first is larger"], rows)


def case_list(means: Pairs, modality: Mapping[str, str], metric: str) -> str:
    """Markdown: every case's mean over its classes, by falling difference."""
    measure = METRICS[metric]
    ordered = sorted(means.items(), key=lambda item: item[1][1] - item[1][0])
    rows = [
        [
            case_id,
            modality[case_id],
            *map(measure.text, pair),
            signed(measure.factor * (pair[0] - pair[1]), measure.decimals),
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
    number = len(by_class["mean"])
    if not number:
        raise InputError("no case is left that has a value on both sides: expected one or more; see --without")
    modality = first.modality
    without = f" without {', '.join(values.without)}" if values.without else ""
    print(f"first:  {first}\nsecond: {second}\n\n{number} cases of the {first.each('part')} part{without}:\n")
    print(table(by_class, modality, values.metric))
    if values.list:
        print(f"\n{case_list(by_class['mean'], modality, values.metric)}")
    if unpaired := invented(first, second, values.without):
        print(
            "\nleft out, because only one of the two finds it where the reference has none (tables of runs count it as "
            f"Dice 0): {listed(unpaired)}"
        )
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
