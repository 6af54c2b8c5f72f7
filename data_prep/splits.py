"""Which cases train, validate and test: seeded, k-fold, or a JSON file of case ids.

A split file holds `name`, `description`, and either `split` or, for k-fold, the list `folds` of such splits:
`{"ct": {"train": ["ct_0001", …], "validation": […], "test": […]}, "mr": {…}}`. The committed ones lie in
`data_prep/splits/`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ummkd_tf.common.documents import MALFORMED, read_json, strings
from ummkd_tf.common.errors import InputError
from ummkd_tf.data.dataset import PARTS

Split = Mapping[str, Mapping[str, Sequence[str]]]  # case ids by modality and part

COMMITTED = Path(__file__).parent / "splits"
VALIDATION_SHARE, TEST_SHARE = 0.1, 0.2  # the rest trains: 70/10/20 % per modality (paper Sec. IV-A)


def committed_names() -> list[str]:
    """Names of the committed split files."""
    return sorted(path.stem for path in COMMITTED.glob("*.json"))


def seeded(ids: Mapping[str, Sequence[str]], seed: int) -> Split:
    """Random 70/10/20 % per modality.

    Validation and test sizes are rounded half up, at least one case each, and the rest trains: 20 → 14/2/4,
    29 → 20/3/6, 9 → 6/1/2.

    Raises:
        InputError: A modality with fewer than three cases.
    """
    split = {}
    for modality, cases in ids.items():
        if len(cases) < 3:
            raise InputError(
                f"{len(cases)} {modality} case(s): expected at least three, one each to train, validate and test; "
                "add cases"
            )
        order = shuffled(cases, seed)
        test, validation = _share(len(order), TEST_SHARE), _share(len(order), VALIDATION_SHARE)
        split[modality] = _parts(order[test + validation :], order[test : test + validation], order[:test])
    return split


def k_fold(ids: Mapping[str, Sequence[str]], seed: int, folds: int, fold: int) -> Split:
    """Fold `fold` (from 0) of `folds`: every case is tested in exactly one of them.

    The validation cases come from the next fold, so that they change with the fold.

    Raises:
        InputError: A fold that does not exist, or fewer cases than folds.
    """
    if folds < 3 or not 0 <= fold < folds:
        raise InputError(f"fold {fold} of {folds}: expected at least 3 folds and 0 <= fold < folds; change the flags")
    split = {}
    for modality, cases in ids.items():
        if len(cases) < folds:
            raise InputError(f"{len(cases)} {modality} cases for {folds} folds: expected one or more a fold; add cases")
        order = shuffled(cases, seed)
        test, following = order[fold::folds], order[(fold + 1) % folds :: folds]
        validation = following[: _share(len(order), VALIDATION_SHARE)]
        split[modality] = _parts([c for c in order if c not in {*test, *validation}], validation, test)
    return split


def read(name_or_path: str, fold: int = 0) -> tuple[str, Split]:
    """(name, split) of a committed split file, or of one given by its path.

    Raises:
        InputError: No such split, not a split file, or no such fold.
    """
    path = COMMITTED / f"{name_or_path}.json"
    if name_or_path not in committed_names():
        path = Path(name_or_path)
        if not path.is_file():
            raise InputError(
                "no such split",
                where=name_or_path,
                fix=f"expected seeded, k_fold, {', '.join(committed_names())} or the path of a split file",
            )
    try:
        content = read_json(path)
        name = str(content["name"])
        if "folds" in content:
            if not 0 <= fold < len(content["folds"]):
                raise InputError(
                    f"no fold {fold}", where=path, fix=f"expected 0 to {len(content['folds']) - 1}; change --fold"
                )
            name, split = f"{name}, fold {fold}", content["folds"][fold]
        else:
            split = content["split"]
        return name, {m: {part: list(strings(parts[part])) for part in PARTS} for m, parts in split.items()}
    except InputError:
        raise
    except MALFORMED as error:
        raise InputError(
            f"not a split file ({error!r})", where=path, fix="expected the form in docs/data.md"
        ) from error


def by_part(split: Split) -> dict[str, list[str]]:
    """Case ids by part, all modalities together."""
    return {part: [c for parts in split.values() for c in parts.get(part, ())] for part in PARTS}


@dataclass(frozen=True)
class Choice:
    """Which split the user wants.

    Attributes:
        name: "seeded", "k_fold", a committed split, the path of a split file, or None: the source's own split where it
            has one, else seeded.
        seed: Of "seeded" and "k_fold".
        folds: Number of folds of "k_fold".
        fold: The tested fold, from 0.
        excluded: Case ids to leave out.
        held_out: Case ids in no part, which are prepared all the same (Table VI's outlier).
    """

    name: str | None = None
    seed: int = 0
    folds: int = 5
    fold: int = 0
    excluded: frozenset[str] = frozenset()
    held_out: frozenset[str] = frozenset()

    def split(self, ids: Mapping[str, Sequence[str]], own: Split | None) -> tuple[str, Split]:
        """(name for `dataset.json`, split) without the excluded and the held-out cases.

        Args:
            ids: Cases found, by modality.
            own: The source's own split.

        Raises:
            InputError: As `seeded`, `k_fold`, `read`; a case that is not there is named somewhere.
        """
        without = self.excluded | self.held_out
        kept = {modality: [c for c in cases if c not in without] for modality, cases in ids.items()}
        if self.name is None and own is not None:
            name, split = "the CSV's split column", own
        elif self.name in (None, "seeded"):
            name, split = f"seeded 70/10/20, seed {self.seed}", seeded(kept, self.seed)
        elif self.name == "k_fold":
            name = f"fold {self.fold} of {self.folds}, seed {self.seed}"
            split = k_fold(kept, self.seed, self.folds, self.fold)
        else:
            name, split = read(self.name, self.fold)
        known = {c for cases in ids.values() for c in cases}
        unknown = self.excluded - known - {c for cases in by_part(split).values() for c in cases}
        unknown |= self.held_out - known
        if unknown:
            raise InputError(
                f"no case {', '.join(sorted(unknown))} to leave out: expected some of {', '.join(sorted(known))}; "
                "correct --exclude_cases or --hold_out_cases"
            )
        return name, _select(split, kept, without)


def _select(split: Split, kept: Mapping[str, Sequence[str]], excluded: Collection[str]) -> Split:
    chosen = {
        m: {part: [c for c in split.get(m, {}).get(part, ()) if c not in excluded] for part in PARTS} for m in kept
    }
    absent = [
        c for cases in by_part(chosen).values() for c in cases if c not in {c for of in kept.values() for c in of}
    ]
    if absent:
        names = ",".join(sorted(absent))
        raise InputError(
            f"{len(absent)} absent case(s) in the split: expected every case it names among the raw ones; add them, "
            f"choose another --split, or leave them out with --exclude_cases={names}"
        )
    return chosen


def shuffled(cases: Sequence[str], seed: int) -> list[str]:
    """Cases in a random order that depends on the seed and their ids alone."""
    # By hash rather than by a generator: the same for every version of NumPy, and another case changes no order.
    return sorted(cases, key=lambda case: hashlib.sha256(f"{seed}/{case}".encode()).digest())


def _share(count: int, share: float) -> int:
    return max(1, math.floor(count * share + 0.5))


def _parts(train: Sequence[str], validation: Sequence[str], test: Sequence[str]) -> dict[str, list[str]]:
    return {part: sorted(ids) for part, ids in zip(PARTS, (train, validation, test), strict=True)}
