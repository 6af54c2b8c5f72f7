"""The study's plan: runs that exist as flags, each once, skipped when finished."""

from __future__ import annotations

import json

import pytest
from programs import fresh_programs

from experiments.study import COMMON, QUESTIONS, StudyRun, columns, plan
from ummkd_tf.common.errors import InputError


def test_every_run_is_one_of_train_and_differs_from_the_common_one(tmp_path):
    runs = plan(list(QUESTIONS), [0, 1], tmp_path, preset="tiny")
    assert len({run.name for run in runs}) == len(runs) == len({tuple(run.flags.items()) for run in runs})
    with fresh_programs():
        from absl import flags

        from experiments import train

        assert train.FLAGS is flags.FLAGS
        for run in runs:
            values = [part.removeprefix("--").split("=", 1) for part in run.command("train")[3:]]
            for name, value in values:
                flags.FLAGS[name].parse(value)  # an unknown flag or value raises


def test_first_seed_comes_first_and_only_small_differences_are_repeated(tmp_path):
    names = [run.name for run in plan(["absent", "batch"], [0, 1], tmp_path)]
    assert names[:2] == ["ours-uniform-seed0", "ours-skip-seed0"] and names.count("batch-4-seed0") == 1
    assert "ours-memory-seed1" in names and "batch-4-seed1" not in names
    assert [run.name for run in plan(["ema-0.99", "ours-skip"], [1], tmp_path)] == ["ours-skip-seed1", "ema-0.99-seed1"]
    other = plan(["schedule", "precision"], [0], tmp_path, precision="mixed_float16")
    assert [run.flags["precision"] for run in other] == ["mixed_float16", "float32"]
    with pytest.raises(InputError, match="--only=weather: not known: expected some of absent"):
        plan(["weather"], [0], tmp_path)


TWO = ("ct", "mr")


def test_a_finished_run_is_kept_and_its_best_validation_shown(tmp_path, monkeypatch, prepared_dataset):
    record = {
        "flags": {"steps": 1500},
        "status": "finished",
        "seconds": 12.3,
        "data_dir": str(tmp_path / "gone"),  # the data have moved
        "split_name": prepared_dataset.split_name,
        "split_sha256": prepared_dataset.split_checksum,
        "task": prepared_dataset.task.to_dict(),
    }
    monkeypatch.setattr("experiments.study.read_run", lambda _: record)
    run = StudyRun("a", {**COMMON, "data_dir": str(prepared_dataset.directory)}, tmp_path)
    assert run.missing() == ["train"] and run.row(TWO) == ["a"] + ["–"] * (len(columns(TWO)) - 1)
    run.run_dir.mkdir()
    (run.run_dir / "run.json").write_text("{}", encoding="utf-8")
    lines = [{"step": 1, "alone": 2.0}, {"step": 2, "alone": 0.0}]
    lines += [
        {"step": s, "validation_dice": d, "validation_ct_dice": d, "validation_mr_dice": d}
        for s, d in ((1, 0.1), (2, 0.6), (3, 0.3), (4, 0.3))
    ]
    (run.run_dir / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert run.missing() == []
    assert run.row(TWO) == ["a", "4", "2", "60.0", "60.0", "60.0", "40.0", "50", "12"]
    record["split_sha256"] = "0" * 64
    with pytest.raises(InputError, match="another split"):
        run.missing()
    record["flags"]["steps"] = 3000
    with pytest.raises(InputError, match="differs in steps: expected the planned run"):
        run.missing()
    assert columns(("t1", "t2", "us"))[3:7] == ["Dice", "T1", "T2", "US"]
