"""Which cases train, validate and test: seeded, k-fold, or a JSON file of case ids.

A split file holds `name`, `description`, and either `split` or, for k-fold, the list `folds` of such splits:
`{"ct": {"train": ["ct_0001", …], "validation": […], "test": […]}, "mr": {…}}`. The committed ones lie in
`data_prep/splits/`.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from ummkd_tf.common.documents import MALFORMED, read_json, strings
from ummkd_tf.common.errors import InputError
from ummkd_tf.data.dataset import PARTS

Split = Mapping[str, Mapping[str, Sequence[str]]]  # case ids by modality and part
Patients = Mapping[str, str]  # patient by case id
NO_PATIENTS: Patients = MappingProxyType({})

COMMITTED = Path(__file__).parent / "splits"
VALIDATION_SHARE, TEST_SHARE = 0.1, 0.2  # the rest trains: 70/10/20 % per modality (paper Sec. IV-A)
FOLDS = 5  # of "k_fold", where the user does not say
_USED_WITH = {
    "split_seed": "--split=seeded or k_fold",
    "folds": "--split=k_fold",
    "fold": "--split=k_fold or a file of folds",
}


def committed_names() -> list[str]:
    """Names of the committed split files."""
    return sorted(path.stem for path in COMMITTED.glob("*.json"))


def seeded(ids: Mapping[str, Sequence[str]], seed: int, patients: Patients = NO_PATIENTS) -> Split:
    """Random 70/10/20 % per modality; all scans of a patient in one part.

    Validation and test sizes are rounded half up, at least one case each, and the rest trains: 20 → 14/2/4,
    29 → 20/3/6, 9 → 6/1/2. Where patients have several scans, the sizes come as close to these as they can.

    Args:
        ids: Cases by modality.
        seed: Another one gives another split.
        patients: Patient by case; a case that is not there is the only one of its patient.

    Raises:
        InputError: A modality with fewer than three patients.
    """
    scans = _by_patient(ids, patients)
    _check_enough(ids, patients, 3, "at least three, one each to train, validate and test")
    order = shuffled(list(scans), seed)
    test = _draw(order, scans, ids, TEST_SHARE)
    rest = [patient for patient in order if patient not in test]
    validation = _draw(rest, scans, ids, VALIDATION_SHARE)
    return _split(ids, scans, test, validation)


def k_fold(
    ids: Mapping[str, Sequence[str]], seed: int, folds: int, fold: int, patients: Patients = NO_PATIENTS
) -> Split:
    """Fold `fold` (from 0) of `folds`: every case is tested in exactly one of them, with all others of its patient.

    The validation cases come from the next fold, so that they change with the fold. Other arguments as `seeded`.

    Raises:
        InputError: A fold that does not exist, or fewer patients than folds.
    """
    if folds < 3 or not 0 <= fold < folds:
        raise InputError(f"fold {fold} of {folds}: expected at least 3 folds and 0 <= fold < folds; change the flags")
    scans = _by_patient(ids, patients)
    _check_enough(ids, patients, folds, f"at least one for each of {folds} folds")
    tested: list[list[str]] = [[] for _ in range(folds)]
    share = [dict.fromkeys(ids, 0.0) for _ in range(folds)]  # of a modality's cases
    # Patients with many scans first, because those with few can fill what is left.
    for patient in sorted(shuffled(list(scans), seed), key=lambda patient: -len(scans[patient])):
        counts = Counter(modality for modality, _ in scans[patient])
        emptiest = min(range(folds), key=lambda i: sum(n * share[i][m] for m, n in counts.items()))
        tested[emptiest].append(patient)
        for modality, n in counts.items():
            share[emptiest][modality] += n / len(ids[modality])
    validation = _draw(tested[(fold + 1) % folds], scans, ids, VALIDATION_SHARE)
    return _split(ids, scans, tested[fold], validation)


def _by_patient(ids: Mapping[str, Sequence[str]], patients: Patients) -> dict[str, list[tuple[str, str]]]:
    """(modality, case) of every scan by patient."""
    scans: dict[str, list[tuple[str, str]]] = {}
    for modality, cases in ids.items():
        for case in cases:
            scans.setdefault(patients.get(case, case), []).append((modality, case))
    return scans


def _check_enough(ids: Mapping[str, Sequence[str]], patients: Patients, least: int, expected: str) -> None:
    for modality, cases in ids.items():
        found = len({patients.get(case, case) for case in cases})
        if found < least:
            what = f"patient(s) with {modality}" if patients else f"{modality} case(s)"
            raise InputError(f"{found} {what}: expected {expected}; add cases")


def _draw(
    order: Sequence[str],
    scans: Mapping[str, Sequence[tuple[str, str]]],
    ids: Mapping[str, Sequence[str]],
    share: float,
) -> list[str]:
    """Patients for a part: in their order, each that brings its sizes closer to a share of each modality's cases."""
    missing = Counter({modality: max(1, math.floor(len(cases) * share + 0.5)) for modality, cases in ids.items()})
    drawn: list[str] = []

    def change(patient: str) -> int:
        """By how much the sizes would be farther from the share with this patient."""
        counts = Counter(modality for modality, _ in scans[patient])
        return sum(abs(missing[m] - n) - abs(missing[m]) for m, n in counts.items())

    def take(patient: str) -> None:
        drawn.append(patient)
        missing.subtract(modality for modality, _ in scans[patient])

    for patient in order:
        if change(patient) < 0:
            take(patient)
    # A modality of which every patient has too many scans would be absent.
    for modality in ids:
        left = [p for p in order if p not in drawn and any(m == modality for m, _ in scans[p])]
        if left and not any(m == modality for p in drawn for m, _ in scans[p]):
            take(min(left, key=change))
    return drawn


def _split(
    ids: Mapping[str, Sequence[str]],
    scans: Mapping[str, Sequence[tuple[str, str]]],
    test: Collection[str],
    validation: Collection[str],
) -> Split:
    """The split by the patients of two parts; the others train."""
    part = dict.fromkeys(scans, "train") | dict.fromkeys(validation, "validation") | dict.fromkeys(test, "test")
    return {
        modality: {
            p: sorted(case for patient in scans if part[patient] == p for m, case in scans[patient] if m == modality)
            for p in PARTS
        }
        for modality in ids
    }


def read(name_or_path: str, fold: int | None = None) -> tuple[str, Split]:
    """(name, split) of a committed split file, or of one given by its path.

    Args:
        name_or_path: The split file.
        fold: Which of its folds, from 0; None is the first, and all that a file without folds takes.

    Raises:
        InputError: No such split, not a split file, no such fold, or a fold of a file without folds.
    """
    path = _file(name_or_path)
    try:
        content = read_json(path)
        name = str(content["name"])
        if "folds" in content:
            fold = fold or 0
            if not 0 <= fold < len(content["folds"]):
                raise InputError(
                    f"no fold {fold}", where=path, fix=f"expected 0 to {len(content['folds']) - 1}; change --fold"
                )
            name, split = f"{name}, fold {fold}", content["folds"][fold]
        else:
            split = content["split"]
            _check_unused(name, fold=fold)
        return name, {m: {part: list(strings(parts[part])) for part in PARTS} for m, parts in split.items()}
    except InputError:
        raise
    except MALFORMED as error:
        raise _no_split_file(path, error) from error


def number_of_folds(name_or_path: str) -> int:
    """Of a committed split file, or of one given by its path; 0 where it holds one split alone.

    Raises:
        InputError: No such split, or not a split file.
    """
    path = _file(name_or_path)
    try:
        return len(read_json(path).get("folds", ()))
    except MALFORMED as error:
        raise _no_split_file(path, error) from error


def _file(name_or_path: str) -> Path:
    path = Path(name_or_path)
    if name_or_path in committed_names():
        path = COMMITTED / f"{name_or_path}.json"
    elif not path.is_file():
        raise InputError(
            "no such split",
            where=name_or_path,
            fix=f"expected seeded, k_fold, {', '.join(committed_names())} or the path of a split file",
        )
    return path


def _no_split_file(path: Path, error: Exception) -> InputError:
    return InputError(f"not a split file ({error!r})", where=path, fix="expected the form in docs/data.md")


def _check_unused(name: str, **given: int | None) -> None:
    """Refuses flags that the split `name` does not use: who gave them meant another split."""
    for flag, value in given.items():
        if value is not None:
            raise InputError(
                f"not used by the split ({name})",
                where=f"--{flag}={value}",
                fix=f"expected it only with {_USED_WITH[flag]}; leave it out, or change --split",
            )


def by_part(split: Split) -> dict[str, list[str]]:
    """Case ids by part, all modalities together."""
    return {part: [c for parts in split.values() for c in parts.get(part, ())] for part in PARTS}


@dataclass(frozen=True)
class Choice:
    """Which split the user wants.

    Attributes:
        name: "seeded", "k_fold", a committed split, the path of a split file, or None: the source's own split where it
            has one, else seeded.
        seed: Of "seeded" and "k_fold"; None is 0.
        folds: Number of folds of "k_fold"; None is `FOLDS`.
        fold: The tested fold of "k_fold" or of a file of folds, from 0; None is 0.
        excluded: Case ids to leave out.
        held_out: Case ids in no part, which are prepared all the same (Table VI's outlier).
    """

    name: str | None = None
    seed: int | None = None
    folds: int | None = None
    fold: int | None = None
    excluded: frozenset[str] = frozenset()
    held_out: frozenset[str] = frozenset()

    def folds_there(self) -> range:
        """Every fold that this split has.

        Raises:
            InputError: It has none; or as `number_of_folds`.
        """
        if self.name == "k_fold":
            return range(max(1, FOLDS if self.folds is None else self.folds))  # too few are refused with the first
        count = 0 if self.name in (None, "seeded") else number_of_folds(self.name)
        if not count:
            raise InputError(
                f"--split={self.name or 'seeded'}: has no folds: expected k_fold or a file of folds where --out holds "
                "{fold}; change one of them"
            )
        return range(count)

    def split(
        self, ids: Mapping[str, Sequence[str]], own: Split | None, patients: Patients = NO_PATIENTS
    ) -> tuple[str, Split]:
        """(name for `dataset.json`, split) without the excluded and the held-out cases.

        Args:
            ids: Cases found, by modality.
            own: The source's own split.
            patients: As for `seeded`.

        Raises:
            InputError: As `seeded`, `k_fold`, `read`; a seed or fold that the split does not use; a case that is not
                there is named somewhere; a patient in two parts.
        """
        without = self.excluded | self.held_out
        kept = {modality: [c for c in cases if c not in without] for modality, cases in ids.items()}
        seed, fold, folds = self.seed or 0, self.fold or 0, FOLDS if self.folds is None else self.folds
        if self.name is None and own is not None:
            name, split = "the CSV's split column", own
            _check_unused(name, split_seed=self.seed, folds=self.folds, fold=self.fold)
        elif self.name in (None, "seeded"):
            name = f"seeded 70/10/20, seed {seed}"
            _check_unused(name, folds=self.folds, fold=self.fold)
            split = seeded(kept, seed, patients)
        elif self.name == "k_fold":
            name, split = f"fold {fold} of {folds}, seed {seed}", k_fold(kept, seed, folds, fold, patients)
        else:
            name, split = read(self.name, self.fold)
            _check_unused(name, split_seed=self.seed, folds=self.folds)
        known = {c for cases in ids.values() for c in cases}
        unknown = self.excluded - known - {c for cases in by_part(split).values() for c in cases}
        unknown |= self.held_out - known
        if unknown:
            raise InputError(
                f"no case {', '.join(sorted(unknown))} to leave out: expected some of {', '.join(sorted(known))}; "
                "correct --exclude_cases or --hold_out_cases"
            )
        chosen = _select(split, kept, without)
        _check_patients(by_part(chosen) | {"--hold_out_cases": sorted(self.held_out)}, patients, name)
        return name, chosen


def _select(split: Split, kept: Mapping[str, Sequence[str]], excluded: Collection[str]) -> Split:
    chosen = {
        m: {part: [c for c in split.get(m, {}).get(part, ()) if c not in excluded] for part in PARTS} for m in kept
    }
    there = {case for cases in kept.values() for case in cases}
    absent = [case for cases in by_part(chosen).values() for case in cases if case not in there]
    if absent:
        names = ",".join(sorted(absent))
        raise InputError(
            f"{len(absent)} absent case(s) in the split: expected every case it names among the raw ones; add them, "
            f"choose another --split, or leave them out with --exclude_cases={names}"
        )
    return chosen


def _check_patients(parts: Mapping[str, Sequence[str]], patients: Patients, name: str) -> None:
    if found := in_two_parts(parts, patients):
        (other, other_part), (case, part) = found
        raise InputError(
            f"patient {patients[case]!r} is in {other_part} ({other}) and in {part} ({case})",
            where=f"the split ({name})",
            fix="expected all scans of a patient in one part; move one, or leave it out",
        )


def in_two_parts(
    parts: Mapping[str, Sequence[str]], owner: Mapping[str, Hashable]
) -> tuple[tuple[str, str], tuple[str, str]] | None:
    """Two cases of one owner in different parts, as (case, part); None where there are none.

    Args:
        parts: Case ids by part.
        owner: By case, e.g. its patient; a case without one is left out.
    """
    first: dict[Hashable, tuple[str, str]] = {}
    for part, cases in parts.items():
        for case in cases:
            if case in owner:
                other = first.setdefault(owner[case], (case, part))
                if other[1] != part:
                    return other, (case, part)
    return None


def shuffled(cases: Sequence[str], seed: int) -> list[str]:
    """Cases in a random order that depends on the seed and their ids alone."""
    # By hash rather than by a generator: the same for every version of NumPy, and another case changes no order.
    return sorted(cases, key=lambda case: hashlib.sha256(f"{seed}/{case}".encode()).digest())
