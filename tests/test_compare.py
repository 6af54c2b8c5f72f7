"""Two methods on the same cases, against differences worked out by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from programs import program
from recorded_runs import METRICS, absent

from experiments.compare import Side, check_comparable, difference_of, invented, paired, read_side
from ummkd_tf.common.errors import InputError

CASES = {"ct_1": (0.9, 0.7), "ct_2": (0.8, 0.6), "mr_1": (0.5, 0.5)}  # case id: Dice of liver and spleen
OTHER = {"ct_1": (0.8, 0.7), "ct_2": (0.8, 0.8), "mr_1": (0.4, 0.45)}


def evaluation(dice: dict[str, tuple[float, float]], **more) -> dict:
    """What experiments.evaluate writes, as far as it is compared; every distance is ten times the Dice."""
    cases = {
        case_id: {
            "modality": case_id[:2],
            "classes": {
                name: dict.fromkeys(METRICS, 10 * value) | {"dice": value}
                for name, value in zip(("liver", "spleen"), of_case, strict=True)
            },
        }
        for case_id, of_case in dice.items()
    }
    about = {"task": "abdomen", "grid": "prepared", "part": "test", "setting": {"title": "Ours"}, "overlap": 0.0}
    return {**about, "cases": cases, **more}


def without_spleens() -> dict:
    cases = evaluation(OTHER)["cases"]
    return {case_id: {**case, "classes": {"liver": case["classes"]["liver"]}} for case_id, case in cases.items()}


def write(folder: Path, *arguments, **more) -> Path:
    """A run's folder with its evaluation."""
    folder.mkdir()
    (folder / "evaluation_test.json").write_text(json.dumps(evaluation(*arguments, **more)), encoding="utf-8")
    return folder


def difference(first, second, metric="dice"):
    sides = Side("--first", first), Side("--second", second)
    return difference_of(paired(*sides, metric)["mean"], sides[0].modality)


def test_difference_by_hand():
    """Of the cases' means: 0.80 - 0.75, 0.70 - 0.80, 0.500 - 0.425: CT has -0.025, MR 0.075; both weigh alike."""
    found = difference([evaluation(CASES)], [evaluation(OTHER)])
    assert found.first == pytest.approx((0.75 + 0.5) / 2) and found.mean == pytest.approx(0.025)
    assert found.std == pytest.approx(((0.05**2 + 0.1**2 + 0.075**2) / 3 - (0.025 / 3) ** 2) ** 0.5)
    assert (found.larger, found.cases) == (2, 3)
    assert found.p == 1  # the negative difference has rank 3, the positive ones 1 and 2


def test_seeds_are_averaged_and_folds_join():
    lower, higher = ({"ct_1": (value, value)} for value in (0.6, 0.8))
    fold = {"mr_1": (0.3, 0.5)}
    found = difference([evaluation(lower), evaluation(higher), evaluation(fold)], [evaluation({**lower, **fold})])
    assert (found.mean, found.cases) == (pytest.approx(0.1 / 2), 2)


def test_equal_cases_are_not_counted_as_larger():
    assert difference_of({"a": (1.0, 1.0), "b": (0.5, 0.4)}, {"a": "ct", "b": "ct"}).larger == 1


def test_a_case_that_is_left_out_may_be_another_scan():
    one, other = ({**evaluation(CASES), "scans": {"ct_1": scan}} for scan in ("a", "b"))
    sides = Side("--first", [one]), Side("--second", [other])
    with pytest.raises(InputError, match="ct_1: other scans in some of --first, --second"):
        check_comparable(*sides, [])
    check_comparable(*sides, ["ct_1"])


def test_what_runs_differ_in_is_told_in_the_order_of_numbers():
    assert Side("", [evaluation(CASES, step=step) for step in (1500, 900, 1500)]).each("step") == "900 / 1500"


def test_a_class_that_one_of_the_two_invents_is_left_out_and_told():
    first, second = evaluation(CASES), evaluation(OTHER)
    first["cases"]["ct_1"]["classes"]["spleen"] = absent()
    sides = Side("", [first]), Side("", [second])
    found = paired(*sides, "dice")
    assert found["mean"]["ct_1"] == (0.9, 0.8) and "ct_1" not in found["spleen"]
    assert invented(*sides) == ["ct_1 spleen"] and invented(*sides, ["ct_1"]) == []


def test_program_prints_classes_means_and_cases(tmp_path):
    write(tmp_path / "ours-seed0", CASES), write(tmp_path / "chilopod", OTHER, overlap=0.5)
    done = program(
        "experiments.compare", f"--first={tmp_path}/ours*", f"--second={tmp_path}/chilopod", "--list", "--without=ct_2"
    )
    rows = [re.sub(r"\s+", " ", line) for line in done.stdout.splitlines()]
    assert "2 cases of the test part without ct_2:" in rows
    assert "| ct liver | 90.0 | 80.0 | +10.0 ± 0.0 | – | 1 of 1 |" in rows
    assert "| overall | 65.0 | 58.8 | +6.2 ± 1.2 | 0.500 | 2 of 2 |" in rows
    assert rows.index("| mr_1 | mr | 50.0 | 42.5 | +7.5 |") < rows.index("| ct_1 | ct | 80.0 | 75.0 | +5.0 |")
    assert done.stderr == "note: overlap is not the same: first 0.0, second 0.5\n"
    done = program(
        "experiments.compare", f"--first={tmp_path}/ours*", f"--second={tmp_path}/chilopod", "--metric=average_mm"
    )
    assert "| mr mean | 5.00 | 4.25 | +0.75 ± 0.00 |" in re.sub(r" +", " ", done.stdout)


@pytest.mark.parametrize(
    ("change", "flag", "message"),
    [
        ({"cases": {}}, "", "holds no evaluated cases: expected a file that ummkd evaluate wrote"),
        ({"cases": {"ct_1": {"classes": {"liver": {"dice": "0.9"}}}}}, "", "holds no evaluated cases"),
        (
            {"cases": {**evaluation(OTHER)["cases"], "mr_9": evaluation(OTHER)["cases"]["mr_1"]}},
            "",
            "mr_9: in --second=",
        ),
        ({"setting": "x"}, "", "holds no evaluated cases"),
        ({"task": ["abdomen"]}, "", "holds no evaluated cases"),
        ({}, "--first=", "--first=: expected runs or evaluation files"),
        ({"scans": {"ct_1": "b"}}, "", "ct_1: other scans in some of --first="),
        ({"labels": {"ct_2": "b"}}, "", "ct_2: other labels in some of --first="),
        ({"cases": without_spleens()}, "", "ct_1: other classes in some of --first="),
        ({"scans": ["ct_1"]}, "", "holds no evaluated cases"),
        ({"grid": "original"}, "", "grid: expected one for all, found prepared in --first="),
        ({"task": "cardiac"}, "", "task: expected one for all"),
        ({}, "--without=ct_7", "--without=ct_7: expected some of the tested cases, e.g. ct_1"),
        ({}, "--without=ct_1,ct_2,mr_1", "no case is left that has a value on both sides"),
        ({}, "--first=nowhere", "nowhere: no such file: expected an evaluation; run ummkd evaluate first"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path, change, flag, message):
    known = {"scans": {"ct_1": "a", "mr_1": "c"}, "labels": {"ct_2": "a"}}
    first, second = write(tmp_path / "a", CASES, **known), write(tmp_path / "b", OTHER, **change)
    done = program("experiments.compare", f"--first={first}", f"--second={second}", *filter(None, [flag]))
    assert (done.returncode, done.stdout) == (1, "")
    assert message in done.stderr and done.stderr.count("\n") == 1


def test_scans_of_one_name_and_two_modalities_are_refused(tmp_path):
    other = evaluation(OTHER)["cases"]
    other["mr_1"]["modality"] = "ct"
    first, second = write(tmp_path / "a", CASES), write(tmp_path / "b", OTHER, cases=other)
    done = program("experiments.compare", f"--first={first}", f"--second={second}")
    assert done.returncode == 1 and "mr_1: mr in --first" in done.stderr


def test_a_run_given_twice_counts_once(tmp_path):
    run = write(tmp_path / "a", CASES)
    assert len(read_side("first", [str(run), f"{run}/evaluation_test.json", f"{tmp_path}/*"]).evaluations) == 1


def test_what_differs_is_told(tmp_path):
    """Folds of two splits on one side go together; another split, checkpoint, or number of seeds is told."""
    one, other = {"ct_1": (0.9, 0.7)}, {"mr_1": (0.5, 0.5)}
    for name, cases, more in (
        ("a0", one, {"split_sha256": "0"}),
        ("a1", other, {"split_sha256": "1"}),
        ("b0", one, {"split_sha256": "0"}),
        ("b1", other, {"split_sha256": "1"}),
        ("c0", one, {"split_sha256": "2", "selection": "last"}),
        ("c1", other, {"split_sha256": "1", "selection": "best"}),
        ("c2", other, {"split_sha256": "1", "selection": "best"}),
    ):
        write(tmp_path / name, cases, **more)

    def notes(first, second):
        done = program("experiments.compare", f"--first={tmp_path}/{first}", f"--second={tmp_path}/{second}")
        assert done.returncode == 0
        return done.stderr.splitlines()

    assert notes("a*", "b*") == []
    assert notes("a*", "c*") == [
        "note: selection is not the same: first None, second best / last",
        "note: the two were trained on different splits",
        f"note: --second={tmp_path}/c*: some cases were tested by more runs than others; each case counts once",
    ]
