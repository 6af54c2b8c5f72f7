"""Which cases train, validate and test."""

import hashlib
import json
import re

import numpy as np
import pytest

from data_prep import make_splits, splits
from data_prep.splits import Choice, by_part, k_fold, seeded
from ummkd_tf.common.errors import InputError
from ummkd_tf.data.dataset import PARTS

CT20 = [f"ct_{n:04d}" for n in range(1, 21)]
MR9 = [f"mr_{n}" for n in range(1, 10)]


def sizes(parts):
    return tuple(len(parts[part]) for part in PARTS)


# --- committed files -------------------------------------------------------------------------------------------------


def test_committed_files_are_those_that_the_program_makes():
    made = {name: make_splits.text(content) for name, content in make_splits.contents().items()}
    assert {path.stem: path.read_text(encoding="utf-8") for path in splits.COMMITTED.iterdir()} == made


SPLITS = {
    **{name: splits.read(name)[1] for name in splits.committed_names()},
    "abdomen, seeded": seeded(make_splits.ABDOMEN, 0),
    "mmwhs, seeded": seeded(make_splits.MMWHS, 0),
    **{f"abdomen, fold {fold}": k_fold(make_splits.ABDOMEN, 0, 5, fold) for fold in range(5)},
    **{f"mmwhs, fold {fold}": k_fold(make_splits.MMWHS, 0, 5, fold) for fold in range(5)},
}
"""The committed splits, and those of the whole public sets."""


@pytest.mark.parametrize("name", SPLITS)
def test_no_patient_is_in_two_parts(name):
    split = SPLITS[name]
    ids = [case for cases in by_part(split).values() for case in cases]
    assert len(ids) == len(set(ids)) > 30
    assert set(split) == {"ct", "mr"}
    for modality, parts in split.items():
        assert all(parts[part] for part in PARTS)
        assert all(case.startswith(f"{modality}_") for part in PARTS for case in parts[part])


@pytest.mark.parametrize(
    ("name", "ct", "mr"),
    [
        ("mmwhs_sifa", (14, 2, 4), (14, 2, 4)),
        ("mmwhs, seeded", (14, 2, 4), (14, 2, 4)),
        ("abdomen, seeded", (21, 3, 6), (14, 2, 4)),
        ("abdomen_paper_size", (20, 3, 6), (6, 1, 2)),
        ("abdomen_39", (14, 2, 8), (8, 2, 5)),
        ("abdomen_sifa", (21, 3, 6), (14, 2, 4)),
    ],
)
def test_sizes(name, ct, mr):
    assert sizes(SPLITS[name]["ct"]) == ct
    assert sizes(SPLITS[name]["mr"]) == mr


def test_published_test_cases():
    """The ids that the same group used in SIFA (docs/reproduction.md#cardiac and #splits)."""
    _, split = splits.read("mmwhs_sifa")
    assert split["ct"]["test"] == ["ct_1003", "ct_1008", "ct_1014", "ct_1019"]
    assert split["mr"]["test"] == ["mr_1007", "mr_1009", "mr_1018", "mr_1019"]
    _, split = splits.read("abdomen_sifa")
    assert split["ct"]["test"] == ["ct_0001", "ct_0009", "ct_0030", "ct_0032", "ct_0033", "ct_0039"]
    assert split["mr"]["test"] == ["mr_1", "mr_13", "mr_32", "mr_38"]


@pytest.mark.parametrize("task", ["abdomen", "mmwhs"])
def test_every_case_is_tested_in_one_fold(task):
    tested = [case for fold in range(5) for case in by_part(SPLITS[f"{task}, fold {fold}"])["test"]]
    everyone = [case for cases in by_part(SPLITS[f"{task}, fold 0"]).values() for case in cases]
    assert sorted(tested) == sorted(everyone)


def test_splits_of_the_public_sets_never_change():
    """Seed 0, as recorded when runs were first compared: another split could test on what was trained on."""
    drawn = {name: split for name, split in SPLITS.items() if "," in name}
    assert hashlib.sha256(json.dumps(drawn).encode()).hexdigest()[:16] == "8f8fdd9deabe59f5"


# --- seeded and k-fold -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "expected"),
    [(3, (1, 1, 1)), (4, (2, 1, 1)), (9, (6, 1, 2)), (15, (10, 2, 3)), (20, (14, 2, 4)), (24, (17, 2, 5)),
     (29, (20, 3, 6)), (30, (21, 3, 6)), (100, (70, 10, 20))],
)  # fmt: skip
def test_seeded_sizes(count, expected):
    assert sizes(seeded({"ct": [str(n) for n in range(count)]}, 0)["ct"]) == expected


def test_seed_decides():
    first = seeded({"ct": CT20, "mr": MR9}, 0)
    assert first == seeded({"ct": CT20[::-1], "mr": MR9[::-1]}, 0)
    assert first != seeded({"ct": CT20, "mr": MR9}, 1)
    # As drawn on the day this was written; another machine or version must draw the same.
    assert first["mr"] == {
        "train": ["mr_1", "mr_3", "mr_5", "mr_6", "mr_7", "mr_8"],
        "validation": ["mr_4"],
        "test": ["mr_2", "mr_9"],
    }


def test_too_few_cases():
    with pytest.raises(InputError, match=r"2 mr case\(s\): expected at least three"):
        seeded({"ct": CT20, "mr": MR9[:2]}, 0)


@pytest.mark.parametrize("folds", [3, 5, 9])
def test_k_fold_tests_every_case_once(folds):
    split = [k_fold({"mr": MR9}, 4, folds, fold)["mr"] for fold in range(folds)]
    assert sorted(case for parts in split for case in parts["test"]) == MR9
    for parts in split:
        assert sorted(case for part in PARTS for case in parts[part]) == MR9
        assert len(parts["validation"]) == 1
    assert len({parts["validation"][0] for parts in split}) == folds


@pytest.mark.parametrize(
    ("folds", "fold", "message"),
    [
        (5, 5, "fold 5 of 5"),
        (5, -1, "fold -1 of 5"),
        (2, 0, "fold 0 of 2"),
        (10, 0, r"9 mr case\(s\): expected at least one for each of 10 folds"),
    ],
)
def test_impossible_folds(folds, fold, message):
    with pytest.raises(InputError, match=message):
        k_fold({"mr": MR9}, 0, folds, fold)


# --- several scans of a patient --------------------------------------------------------------------------------------

SCANS = {m: [f"p{p}_{m}{t}" for p in range(10) for t in range(number)] for m, number in (("ct", 2), ("mr", 1))}
SCANS["mr"] += [f"p{p}_mr0" for p in range(10, 20)]  # ten patients without CT
PATIENTS = {case: case.split("_")[0] for cases in SCANS.values() for case in cases}


def test_patients_of_one_scan_each_change_nothing():
    for ids in (make_splits.ABDOMEN, make_splits.MMWHS):
        alone = {case: case for cases in ids.values() for case in cases}
        assert seeded(ids, 5, alone) == seeded(ids, 5)
        assert k_fold(ids, 5, 3, 1, alone) == k_fold(ids, 5, 3, 1)


@pytest.mark.parametrize("seed", range(5))
def test_all_scans_of_a_patient_are_in_one_part(seed):
    """20 CT of ten patients, two each, and 20 MR of these and ten more."""
    drawn = seeded(SCANS, seed, PATIENTS)
    assert sizes(drawn["ct"]) == (14, 2, 4)  # as without patients; of MR there may be more, as some come with CT
    assert all(more in (0, 1, 2) for more in np.subtract(sizes(drawn["mr"])[1:], (2, 4)))
    folds = [k_fold(SCANS, seed, 5, fold, PATIENTS) for fold in range(5)]
    assert all((len(fold["ct"]["test"]), len(fold["mr"]["test"])) == (4, 4) for fold in folds)
    assert sorted(c for fold in folds for c in by_part(fold)["test"]) == sorted(PATIENTS)
    for split in (drawn, *folds):
        of = {part: {PATIENTS[case] for case in cases} for part, cases in by_part(split).items()}
        assert sum(map(len, of.values())) == 20
        assert sum(map(len, by_part(split).values())) == 40
        assert all(parts[part] for parts in split.values() for part in PARTS)


def test_where_every_patient_has_too_many_scans_the_one_with_fewest_validates():
    """23 scans of four patients: two should validate, and no patient has two."""
    patients = {f"{patient}{n}": patient for patient in "abcd" for n in range(5 if patient == "b" else 6)}
    splits_of_seeds = [seeded({"ct": list(patients)}, seed, patients)["ct"] for seed in range(8)]
    others = [s for s in splits_of_seeds if patients[s["test"][0]] != "b"]
    assert len(others) > 3
    assert all(split["validation"] == ["b0", "b1", "b2", "b3", "b4"] for split in others)


def test_too_few_patients():
    ids = {"ct": CT20, "mr": MR9}
    with pytest.raises(InputError, match=r"2 patient\(s\) with mr: expected at least three"):
        seeded(ids, 0, {case: str(int(case[3:]) % 2) for case in MR9})


@pytest.mark.parametrize("name", [None, "file"])
def test_a_split_that_divides_a_patient_is_refused(name, tmp_path):
    choice = Choice(name and write_split(tmp_path / "s.json"))
    with pytest.raises(InputError, match=r"patient 'A' is in train \(mr_2\) and in test \(mr_9\): expected all scans"):
        choice.split({"mr": MR9}, OWN, {"mr_2": "A", "mr_9": "A", "mr_1": "B", "mr_3": "B"})
    held_out = Choice(choice.name, held_out=frozenset({"mr_1"}))
    with pytest.raises(InputError, match=r"patient 'B' is in train \(mr_3\) and in --hold_out_cases \(mr_1\)"):
        held_out.split({"mr": MR9}, OWN, {"mr_1": "B", "mr_3": "B"})


# --- choosing --------------------------------------------------------------------------------------------------------

OWN = {"mr": {"train": MR9[:6], "validation": MR9[6:7], "test": MR9[7:]}}


def write_split(path, split=OWN):
    path.write_text(json.dumps({"name": "mine", "split": split}), encoding="utf-8")
    return str(path)


def test_choices(tmp_path):
    ids = {"mr": MR9}
    assert Choice().split(ids, None) == ("seeded 70/10/20, seed 0", seeded(ids, 0))
    assert Choice(seed=3).split(ids, None)[1] == seeded(ids, 3)
    assert Choice().split(ids, OWN) == ("the CSV's split column", OWN)
    assert Choice("seeded").split(ids, OWN)[1] == seeded(ids, 0)
    assert Choice("k_fold", folds=3, fold=1).split(ids, None) == ("fold 1 of 3, seed 0", k_fold(ids, 0, 3, 1))
    assert Choice(write_split(tmp_path / "s.json")).split(ids, None) == ("mine", OWN)


@pytest.mark.parametrize(
    ("name", "own", "flags", "told"),
    [
        (None, None, {"folds": 3, "fold": 1}, "--folds=3: not used by the split (seeded 70/10/20, seed 0)"),
        ("seeded", OWN, {"fold": 0}, "--fold=0: not used by the split (seeded 70/10/20, seed 0)"),
        (None, OWN, {"seed": 1}, "--split_seed=1: not used by the split (the CSV's split column)"),
        (None, OWN, {"fold": 1}, "--fold=1: not used by the split (the CSV's split column)"),
        ("file", None, {"fold": 3}, "--fold=3: not used by the split (mine)"),
        ("file", None, {"fold": 0}, "--fold=0: not used by the split (mine)"),
        ("file", None, {"seed": 0}, "--split_seed=0: not used by the split (mine)"),
        ("file", None, {"folds": 5}, "--folds=5: not used by the split (mine)"),
    ],
)
def test_a_seed_or_fold_that_the_split_does_not_use_is_refused(name, own, flags, told, tmp_path):
    """Who gave it meant another split, and would have got this one."""
    choice = Choice(write_split(tmp_path / "s.json") if name == "file" else name, **flags)
    with pytest.raises(InputError, match=re.escape(told) + ": expected it only with --split=.* leave it out"):
        choice.split({"mr": MR9}, own)


def test_only_the_modalities_at_hand_are_taken_from_a_committed_split():
    ids = {"ct": make_splits.ABDOMEN["ct"]}
    name, split = Choice("abdomen_paper_size").split(ids, None)
    assert name == "abdomen_paper_size"
    assert split == {"ct": splits.read("abdomen_paper_size")[1]["ct"]}


def test_file_of_folds(tmp_path):
    folds = [k_fold(make_splits.MMWHS, 0, 5, fold) for fold in range(5)]
    path = tmp_path / "folds.json"
    path.write_text(json.dumps({"name": "five", "description": "", "folds": folds}), encoding="utf-8")
    assert Choice(str(path), fold=2).split(make_splits.MMWHS, None) == ("five, fold 2", folds[2])
    with pytest.raises(InputError, match="no fold 5: expected 0 to 4"):
        splits.read(str(path), 5)


def test_split_that_names_absent_cases(tmp_path):
    choice = Choice(write_split(tmp_path / "s.json"))
    with pytest.raises(InputError, match=r"2 absent case\(s\) in the split: .* --exclude_cases=mr_2,mr_9$"):
        choice.split({"mr": [c for c in MR9 if c not in ("mr_2", "mr_9")]}, None)
    excluded = Choice(choice.name, excluded=frozenset({"mr_2", "mr_9"}))
    _, split = excluded.split({"mr": [c for c in MR9 if c not in ("mr_2", "mr_9")]}, None)
    assert split["mr"] == {"train": ["mr_1", *MR9[2:6]], "validation": ["mr_7"], "test": ["mr_8"]}


def test_excluded_cases_are_left_out():
    _, split = Choice(excluded=frozenset({"mr_1", "mr_2"})).split({"mr": MR9}, None)
    assert sorted(case for cases in by_part(split).values() for case in cases) == MR9[2:]
    with pytest.raises(InputError, match=r"no case mr_0 to leave out: expected some of mr_1, "):
        Choice(excluded=frozenset({"mr_0"})).split({"mr": MR9}, None)


@pytest.mark.parametrize("name", ["seeded", "k_fold", "mmwhs_sifa"])
def test_held_out_case_is_in_no_part(name):
    """Table VI's outlier is neither trained, validated nor tested, whatever the split says of it."""
    for case in ("ct_1001", "ct_1003"):  # in mmwhs_sifa the second is a test case
        _, split = Choice(name, held_out=frozenset({case})).split(make_splits.MMWHS, None)
        assert case not in [c for cases in by_part(split).values() for c in cases]
    with pytest.raises(InputError, match=r"no case ct_7 to leave out: .* --hold_out_cases$"):
        Choice(name, held_out=frozenset({"ct_7"})).split(make_splits.MMWHS, None)


@pytest.mark.parametrize("text", ["", "[]", '{"name": "x"}', '{"name": "x", "split": {"ct": {"train": []}}}'])
def test_not_a_split_file(text, tmp_path):
    (tmp_path / "s.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"s\.json: not a split file"):
        splits.read(str(tmp_path / "s.json"))


def test_no_such_split():
    with pytest.raises(InputError, match="nothing: no such split: expected seeded, k_fold, abdomen_39, "):
        splits.read("nothing")


@pytest.mark.parametrize("seed", range(5))
def test_each_fold_has_its_share_of_each_modality(seed):
    """Three patients with two CT and an MR, and three with three CT: each fold tests five CT and one MR."""
    patients = {f"p{p}_ct{n}": f"p{p}" for p in range(6) for n in range(2 if p < 3 else 3)}
    patients |= {f"p{p}_mr0": f"p{p}" for p in range(3)}
    ids = {modality: [case for case in patients if modality in case] for modality in ("ct", "mr")}
    for fold in range(3):
        found = k_fold(ids, seed, 3, fold, patients)
        assert {modality: len(parts["test"]) for modality, parts in found.items()} == {"ct": 5, "mr": 1}


def test_a_held_out_case_does_not_count_in_the_sizes():
    """19 are left of 20: 1.9 to validate, 3.8 to test."""
    ids = {"ct": [f"ct_{n}" for n in range(20)]}
    case = seeded(ids, 0)["ct"]["test"][0]
    _, split = Choice("seeded", held_out=frozenset({case})).split(ids, None)
    assert [len(split["ct"][part]) for part in PARTS] == [13, 2, 4]
