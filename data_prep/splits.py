"""Which cases train, validate and test: seeded, k-fold, or a JSON file of case ids.

A split file holds `name`, `description`, and either `split` or, for k-fold, the list `folds` of such splits:
`{"ct": {"train": ["ct_0001", …], "validation": […], "test": […]}, "mr": {…}}`. The committed ones lie in
`data_prep/splits/`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from ummkd_tf.cases import PARTS
from ummkd_tf.errors import InputError

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
        order = _shuffled(cases, seed)
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
        order = _shuffled(cases, seed)
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
                f"{name_or_path}: no such split: expected seeded, k_fold, {', '.join(committed_names())} "
                "or the path of a split file"
            )
    try:
        content = json.loads(path.read_text())
        name = str(content["name"])
        if "folds" in content:
            if not 0 <= fold < len(content["folds"]):
                raise InputError(f"{path}: no fold {fold}: expected 0 to {len(content['folds']) - 1}; change --fold")
            name, split = f"{name}, fold {fold}", content["folds"][fold]
        else:
            split = content["split"]
        return name, {m: {part: [str(c) for c in parts[part]] for part in PARTS} for m, parts in split.items()}
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not a split file ({error!r}): expected the form in data_prep/README.md") from error


def select(split: Split, modalities: Sequence[str], cases: Collection[str], excluded: Collection[str]) -> Split:
    """The split's part for `modalities`, without the excluded cases.

    Raises:
        InputError: It names cases that are not there.
    """
    chosen = {
        m: {part: [c for c in ids if c not in excluded] for part, ids in split.get(m, {}).items()} for m in modalities
    }
    absent = sorted(c for parts in chosen.values() for ids in parts.values() for c in ids if c not in cases)
    if absent:
        raise InputError(
            f"the split names {len(absent)} absent case(s), {', '.join(absent)}: expected all of them in the raw "
            f"folder; add them, use --exclude_cases={','.join(absent)}, or choose another --split"
        )
    return chosen


def by_part(split: Split) -> dict[str, list[str]]:
    """Case ids by part, all modalities together."""
    return {part: [c for parts in split.values() for c in parts.get(part, ())] for part in PARTS}


def _shuffled(cases: Sequence[str], seed: int) -> list[str]:
    # By hash rather than by a generator: the same for every version of NumPy, and another case moves no other.
    return sorted(cases, key=lambda case: hashlib.sha256(f"{seed}/{case}".encode()).digest())


def _share(count: int, share: float) -> int:
    return max(1, math.floor(count * share + 0.5))


def _parts(train: Sequence[str], validation: Sequence[str], test: Sequence[str]) -> dict[str, list[str]]:
    return {part: sorted(ids) for part, ids in zip(PARTS, (train, validation, test), strict=True)}
