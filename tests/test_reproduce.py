"""What is run, reused and continued; a fake runner stands for training and evaluation."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from programs import program
from recorded_runs import write_run

from experiments import execution, reproduce
from experiments.execution import Stop, execute, execute_all, shares
from experiments.plans import RunSpec
from experiments.reproduce import ReproduceOptions, ReproductionRun, describe, plan, steps_left
from experiments.results.records import load_records
from ummkd_tf.common.errors import InputError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def options(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "dataset.json").write_text("{}", encoding="utf-8")
    os.utime(data / "dataset.json", (0, 0))  # older than every run, whatever the fake runner's clock
    return ReproduceOptions({"abdomen": str(data)}, tmp_path / "runs", preset="tiny", outlier="ct_0031")


class FakeRunner:
    """Writes what the real programs write; `fails` names runs whose training ends with exit code 1."""

    def __init__(self, options, fails=()):
        self.options, self.fails, self.calls = options, fails, []
        self.clock = time.time() - 1000

    def __call__(self, command, log):
        flags = dict(flag.removeprefix("--").split("=", 1) for flag in command[3:])
        run_dir = Path(flags["run_dir"])
        self.calls.append((run_dir.name, command[2], "outlier" in flags))
        log.parent.mkdir(parents=True, exist_ok=True)
        if command[2] == "experiments.train":
            if run_dir.name in self.fails:
                log.write_text("step 7\nerror: loss not finite\n", encoding="utf-8")
                return 1
            seed, alpha = int(flags["seed"]), float(flags["alpha"])
            spec = RunSpec(flags["task"], "abdomen", flags["setting"], alpha=alpha, seed=seed)
            if not run_dir.exists():
                write_run(run_dir.parent, spec, None, data_dir=str(Path(flags["data_dir"]).resolve()))
            record = json.loads((run_dir / "run.json").read_text(encoding="utf-8")) | {"status": "finished"}
            self._write(run_dir / "run.json", record)
            self._write(run_dir / "checkpoints" / "step-00000300.npz", {})
        else:
            name = "evaluation_outlier.json" if "outlier" in flags else "evaluation_test.json"
            self._write(run_dir / name, {"cases": {flags.get("outlier", "ct_1"): {}}})
        return 0

    def _write(self, path, content):
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content), encoding="utf-8")
        self.clock += 1
        os.utime(path, (self.clock, self.clock))


def test_missing_runs_are_done_and_finished_ones_reused(options):
    works = plan(["table2", "fig8", "table6"], [0], [0], options)
    assert len(works) == 7 and all(work.with_outlier for work in works)
    runner = FakeRunner(options)
    outcome = execute_all(works, 1, runner, Stop())
    assert len(outcome.done) == 7 and not outcome.failed
    one = [call[1:] for call in runner.calls if call[0] == works[0].spec.name]
    assert one == [("experiments.train", False), ("experiments.evaluate", False), ("experiments.evaluate", True)]
    again = FakeRunner(options)
    assert len(execute_all(works, 2, again, Stop()).done) == 7 and again.calls == []


def test_settings_limit_the_runs(options):
    works = plan(["table2", "fig8"], [0, 1], [0], options, ["joint", "ours"])
    assert [(work.spec.seed, work.spec.setting) for work in works] == list(product([0, 1], ["joint", "ours"]))
    with pytest.raises(InputError, match=r"--settings=our: not known: expected some of individual, joint, .*ours$"):
        plan(["table2"], [0], [0], options, ["our"])


def test_table_without_outlier_needs_no_outlier_evaluation(options):
    assert not any(work.with_outlier for work in plan(["table2"], [0], [0], options))
    blank = ReproduceOptions(options.data, options.runs_dir, preset="tiny")
    assert not any(work.with_outlier for work in plan(["table6"], [0], [0], blank))


def work_of(options, **more):
    return ReproductionRun(RunSpec("abdomen", "abdomen", "ours", knowledge=True), options, **more)


def test_interrupted_run_is_continued_by_the_same_command(options):
    work = work_of(options)
    assert work.missing() == ["train", "evaluate"] and steps_left(work) == 300
    run_dir = write_run(options.runs_dir, work.spec, None, status="stopped", data_dir=options.data["abdomen"])
    (run_dir / "checkpoints").mkdir()
    newest = run_dir / "checkpoints" / "step-00000200.npz"
    newest.touch()
    os.utime(newest, (0, 0))  # long ago, as the fake runner's files are
    assert work.missing() == ["train", "evaluate"] and steps_left(work) == 100
    runner = FakeRunner(options)
    assert execute(work, runner, Stop()) is None
    assert [call[1] for call in runner.calls] == ["experiments.train", "experiments.evaluate"]
    assert work.missing() == []


@pytest.mark.parametrize("newer", ["checkpoint", "data"])
def test_evaluation_older_than_what_it_is_of_is_done_again(newer, options):
    work = work_of(options, with_outlier=True)
    runner = FakeRunner(options)
    assert execute(work, runner, Stop()) is None and work.missing() == []
    checkpoint, data = work.run_dir / "checkpoints" / "step-00000300.npz", Path(options.data["abdomen"], "dataset.json")
    os.utime(checkpoint if newer == "checkpoint" else data)
    assert work.missing() == ["evaluate", "evaluate outlier"]


def test_outlier_of_another_name_is_evaluated(options):
    assert execute(work_of(options, with_outlier=True), FakeRunner(options), Stop()) is None
    other = ReproduceOptions(options.data, options.runs_dir, preset="tiny", outlier="ct_0007")
    assert work_of(other, with_outlier=True).missing() == ["evaluate outlier"]


def test_evaluation_by_another_protocol_is_done_again(options):
    assert execute(work_of(options), FakeRunner(options), Stop()) is None
    assert work_of(replace(options, overlap=0.5)).missing() == ["evaluate"]
    assert work_of(replace(options, largest_component=True)).missing() == ["evaluate"]


def test_evaluation_of_another_checkpoint_is_done_again(options):
    """As after --selection=last, or of a run that was trained on since."""
    work = work_of(options)
    assert execute(work, FakeRunner(options), Stop()) is None
    result = work.run_dir / "evaluation_test.json"
    newest = result.stat().st_mtime
    for evaluated, missing in ((250, []), (300, ["evaluate"])):
        record = json.loads((work.run_dir / "run.json").read_text(encoding="utf-8"))
        record["progress"] = {"step": 300, "best_step": 250, "best_dice": 0.5}
        (work.run_dir / "run.json").write_text(json.dumps(record), encoding="utf-8")
        result.write_text(json.dumps({"cases": {}, "step": evaluated}), encoding="utf-8")
        os.utime(result, (newest, newest))
        assert work.missing() == missing


def test_one_failed_run_keeps_no_other(options, capfd):
    works = plan(["table2"], [0], [0], options)
    outcome = execute_all(works, 1, FakeRunner(options, fails=("abdomen-joint-seed0-fold0",)), Stop())
    assert len(outcome.done) == 6
    log = options.runs_dir / "logs" / "abdomen-joint-seed0-fold0.log"
    reason = f"train ended with exit code 1; last line of {log}: error: loss not finite"
    assert outcome.failed == {"abdomen-joint-seed0-fold0": reason}
    error = capfd.readouterr().err
    assert f"FAILED abdomen-joint-seed0-fold0: {reason}" in error
    assert "1800/1800 steps" in error  # those of the failed run will not come


def test_the_bar_counts_steps_of_runs_that_go_on(options, monkeypatch, capfd):
    """One of two runs was stopped at step 100; each has 300. So 500 are left, of which the bar sees every tenth."""
    monkeypatch.setattr(execution, "SECONDS_BETWEEN_LOOKS", 0.01)
    works = plan(["fig8"], [0], [0], options)
    runner, shown = FakeRunner(options), []

    def history(name, step):
        path = options.runs_dir / name / "history.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'{{"step": {step}}}\n', encoding="utf-8")

    def slow(command, log):
        code = runner(command, log)
        if command[2] == "experiments.train":
            for step in (180, 300):
                history(log.stem, step)
                until = time.monotonic() + 5
                while f"{step + 300 * (log.stem == works[1].name)}/600 steps" not in "".join(shown):
                    assert time.monotonic() < until
                    shown.append(capfd.readouterr().err)
                    time.sleep(0.01)
        return code

    write_run(options.runs_dir, works[0].spec, None, status="stopped", data_dir=options.data["abdomen"])
    history(works[0].name, 100)
    assert len(execute_all(works, 1, slow, Stop()).done) == 2
    text = "".join(shown) + capfd.readouterr().err
    assert "training: 180/600 steps [" in text and "100/600" not in text
    assert "training: 480/600 steps [" in text and "1 of 2 runs done]" in text


def test_a_command_that_does_nothing_is_noticed(options):
    reason = execute(work_of(options), lambda command, log: 0, Stop())
    assert reason.startswith("not done although every command succeeded: train, evaluate; see ")


def test_a_run_that_cannot_be_started_keeps_no_other(options):
    """E.g. a full disk."""
    works = plan(["fig8"], [0], [0], options)
    runner = FakeRunner(options)

    def failing(command, log):
        if "ours" in log.name:
            raise OSError(28, "No space left on device")
        return runner(command, log)

    outcome = execute_all(works, 1, failing, Stop())
    assert outcome.done == [works[1].spec.name]
    assert outcome.failed == {works[0].spec.name: "[Errno 28] No space left on device"}


def test_an_error_of_any_kind_keeps_no_other_run(options):
    works = plan(["fig8"], [0], [0], options)
    runner = FakeRunner(options)

    def odd(command, log):
        if "ours" in log.name:
            raise KeyError("odd")
        return runner(command, log)

    outcome = execute_all(works, 1, odd, Stop())
    assert outcome.done == [works[1].name] and outcome.failed == {works[0].name: "KeyError('odd')"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 299}, "steps is 300, wanted 299"),
        ({"preset": "small", "steps": 300, "validate_every": 50}, "preset is tiny, wanted small"),
        ({"validate_every": 7}, "validate_every is 50, wanted 7"),
        ({"recipe": "released"}, "recipe is paper, wanted released"),
        ({"precision": "mixed_bfloat16"}, "precision is float32, wanted mixed_bfloat16"),
        (
            {"recipe": "practice"},
            "schedule is staircase, wanted polynomial; augmentation is none, wanted practice; "
            "labelled_patches is inside, wanted centered; recipe is paper, wanted practice",
        ),
    ],
)
def test_run_of_other_settings_is_not_reused(change, message, options):
    write_run(options.runs_dir, work_of(options).spec, {}, data_dir=options.data["abdomen"])
    assert work_of(options).missing() == []
    values = {"preset": "tiny", **change}
    with pytest.raises(InputError, match=rf"holds another run \({message}\): .* another --runs_dir"):
        work_of(ReproduceOptions(options.data, options.runs_dir, **values)).missing()


@pytest.mark.parametrize(("flag", "value", "wanted"), [("ema", 0.99, 0.0), ("temperature", 4.0, 2.0)])
def test_a_run_by_hand_with_flags_of_its_own_is_not_reused(flag, value, wanted, options):
    run_dir = write_run(options.runs_dir, work_of(options).spec, {}, data_dir=options.data["abdomen"])
    record = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))
    record["flags"][flag] = value
    (run_dir / "run.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(InputError, match=rf"holds another run \({flag} is {value}, wanted {wanted}\)"):
        work_of(options).missing()


def test_data_that_have_moved_are_the_runs_if_they_hold_the_same(options, prepared_dataset, tmp_path):
    """The folder that the run names is gone; evaluation is told the new one."""
    run_dir = write_run(options.runs_dir, work_of(options).spec, None, data_dir=str(tmp_path / "gone"))
    record = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))
    record |= {"split_sha256": prepared_dataset.split_checksum, "task": prepared_dataset.task.to_dict()}
    (run_dir / "run.json").write_text(json.dumps(record), encoding="utf-8")
    moved = work_of(replace(options, data={"abdomen": str(prepared_dataset.directory)}))
    assert moved.missing() == ["evaluate"]
    assert f"--data_dir={prepared_dataset.directory}" in moved.command("evaluate")
    (run_dir / "run.json").write_text(json.dumps(record | {"split_sha256": "0" * 64}), encoding="utf-8")
    with pytest.raises(InputError, match="another split"):
        moved.missing()


def test_any_precision_is_reused_where_the_machine_chooses(options):
    run_dir = write_run(options.runs_dir, work_of(options).spec, {}, data_dir=options.data["abdomen"])
    record = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))
    record["flags"]["precision"] = "mixed_bfloat16"
    (run_dir / "run.json").write_text(json.dumps(record), encoding="utf-8")
    auto = work_of(replace(options, precision="auto"))
    assert auto.missing() == [] and "--precision=auto" in auto.command("train")
    with pytest.raises(InputError, match="precision is mixed_bfloat16, wanted float32"):
        work_of(options).missing()


def test_alpha_is_compared_where_it_has_an_effect(options):
    """A run trained by hand records --alpha's default, also without distillation."""
    for setting, missing in (("joint", True), ("ours", False)):
        spec = RunSpec("abdomen", "abdomen", setting)
        run_dir = write_run(options.runs_dir, spec, {}, data_dir=options.data["abdomen"])
        record = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))
        record["flags"]["alpha"] = 0.7
        (run_dir / "run.json").write_text(json.dumps(record), encoding="utf-8")
        if missing:
            assert "train" not in ReproductionRun(spec, options).missing()
        else:
            with pytest.raises(InputError, match=r"alpha is 0\.7, wanted 0\.5"):
                ReproductionRun(spec, options).missing()


def test_data_must_be_there(options, tmp_path):
    with pytest.raises(InputError, match="--cardiac_data: not given, but cardiac-individual-seed0-fold0 needs it"):
        plan(["table1"], [0], [0], options)
    with pytest.raises(InputError, match=r"one data set for 2 folds: expected \{fold\} in the path"):
        plan(["table2"], [0], [0, 1], options)
    for fold in (0, 1):
        (tmp_path / f"fold{fold}").mkdir()
    folds = ReproduceOptions({"abdomen": str(tmp_path / "fold{fold}")}, tmp_path / "runs")
    with pytest.raises(InputError, match="fold0: no prepared data set there"):
        plan(["table2"], [0], [0, 1], folds)
    for fold in (0, 1):
        (tmp_path / f"fold{fold}" / "released.json").touch()
    works = plan(["table2"], [0], [0, 1], folds)
    assert len(works) == 14 and f"--data_dir={tmp_path / 'fold1'}" in works[-1].command("train")


def test_commands(options):
    values = ReproduceOptions(
        options.data, options.runs_dir, "small", "released", steps=9, validate_every=3, outlier="ct_7"
    )
    work = work_of(values)
    assert work.command("train")[1:] == [
        "-m", "experiments.train", *work.spec.flags(), f"--data_dir={options.data['abdomen']}",
        f"--run_dir={work.run_dir}", "--preset=small", "--recipe=released", "--steps=9", "--validate_every=3",
        "--precision=float32",
    ]  # fmt: skip
    rounded = work_of(replace(values, precision="mixed_bfloat16", cache_gb=0.0))
    assert rounded.command("train")[-2:] == ["--precision=mixed_bfloat16", "--cache_gb=0.0"]
    on_gpu = work_of(replace(values, threads=8, xla=True))
    assert on_gpu.command("train")[-2:] == ["--threads=8", "--xla=True"]
    places = [f"--run_dir={work.run_dir}", f"--data_dir={options.data['abdomen']}"]
    assert work.command("evaluate")[1:] == ["-m", "experiments.evaluate", *places]
    assert work.command("evaluate outlier")[-1] == "--outlier=ct_7"
    beyond = work_of(replace(options, overlap=0.5, largest_component=True))
    assert beyond.command("evaluate")[-2:] == ["--overlap=0.5", "--largest_component=True"]


def test_estimate_is_of_recorded_runs_or_measured_now(options):
    works = plan(["fig8"], [0], [0], options)
    ours, chilopod = works
    asked = []
    text = describe(works, [], lambda *about: asked.append(about) or 0.5)
    assert text.endswith(
        "2 runs, 0 done; about 5 min of training, one at a time\n"
        "measured on a few steps on this machine (abdomen 0.5 s); validation comes on top"
    )
    assert asked == [("abdomen", "tiny", "paper")]
    write_run(options.runs_dir, ours.spec, {}, data_dir=options.data["abdomen"])  # 60 s for 300 steps
    text = describe(works, load_records(options.runs_dir))
    assert f"{ours.spec.name}: done" in text
    assert f"{chilopod.spec.name}: train, evaluate; 300 steps, about 60 s" in text
    assert text.endswith("2 runs, 1 done; about 60 s of training, one at a time")


@pytest.mark.slow
def test_a_step_is_measured():
    assert 0 < reproduce.measured_step("abdomen", "tiny", "paper") < 60


def test_durations():
    assert [reproduce.duration(s) for s in (119, 120, 7199, 7200)] == ["119 s", "2 min", "120 min", "2 h"]


def test_a_stopped_run_measures_too(options):
    """So that the first run of a long reproduction, stopped, tells what the rest will take."""
    ours, chilopod = plan(["fig8"], [0], [0], options)
    run_dir = write_run(options.runs_dir, ours.spec, None, status="stopped", data_dir=options.data["abdomen"])
    (run_dir / "checkpoints").mkdir()
    (run_dir / "checkpoints" / "step-00000001.npz").touch()  # nearly all of the 60 s was starting
    assert describe([chilopod], load_records(options.runs_dir), lambda *_: 0.5).startswith(
        f"{chilopod.spec.name}: train, evaluate; 300 steps, about 2 min"
    )
    (run_dir / "checkpoints" / "step-00000100.npz").touch()  # 60 s for 100 steps
    text = describe([ours, chilopod], load_records(options.runs_dir))
    assert f"{ours.spec.name}: train, evaluate; 200 steps, about 2 min" in text
    assert f"{chilopod.spec.name}: train, evaluate; 300 steps, about 3 min" in text


def test_run_held_by_another_process_is_waited_for(options, monkeypatch):
    """What a killed reproduction has started trains on; its run is not started a second time."""
    monkeypatch.setattr(execution, "SECONDS_BETWEEN_LOOKS", 0.01)
    work = work_of(options)
    work.run_dir.mkdir(parents=True)
    holder = open(work.run_dir / "lock", "a", encoding="utf-8")  # noqa: SIM115, closed by the timer
    fcntl.flock(holder, fcntl.LOCK_EX)
    released = []

    def release():
        released.append(time.monotonic())
        holder.close()

    threading.Timer(0.2, release).start()
    runner = FakeRunner(options)
    runner_started = []

    def noting(command, log):
        runner_started.append(time.monotonic())
        return runner(command, log)

    (work.run_dir / "lock").touch()
    write_run_in_place(work, options)
    assert execute(work, noting, Stop()) is None
    assert runner_started[0] >= released[0]


def test_run_that_another_process_begins_at_the_same_moment_is_waited_for(options, monkeypatch):
    """Its folder was free when this process looked, and taken when its own command came."""
    monkeypatch.setattr(execution, "SECONDS_BETWEEN_LOOKS", 0.01)
    work, runner, codes = work_of(options), FakeRunner(options), []

    def second(command, log):
        if codes:
            codes.append(runner(command, log))
        else:
            work.run_dir.mkdir(parents=True)
            holder = open(work.run_dir / "lock", "a", encoding="utf-8")  # noqa: SIM115, closed by the timer
            fcntl.flock(holder, fcntl.LOCK_EX)
            write_run_in_place(work, options)
            threading.Timer(0.2, holder.close).start()
            codes.append(1)
        return codes[-1]

    assert execute(work, second, Stop()) is None
    assert codes == [1, 0, 0]  # refused; then trained on and evaluated


def write_run_in_place(work, options):
    """A run that has begun, in a folder that is already there."""
    elsewhere = options.runs_dir / "elsewhere"
    made = write_run(elsewhere, work.spec, None, status="running", data_dir=options.data["abdomen"])
    (made / "run.json").rename(work.run_dir / "run.json")


def test_signal_reaches_the_running_command_and_nothing_more_starts(tmp_path):
    """The command saves and leaves; later ones do not begin."""
    script = (
        "import signal, sys, time, pathlib\n"
        "signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path(sys.argv[1]).write_bytes(b'saved'), sys.exit(143)))\n"
        "pathlib.Path(sys.argv[2]).touch()\n"
        "time.sleep(60)\n"
    )
    saved, ready = tmp_path / "saved", tmp_path / "ready"

    def interrupt():
        while not ready.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with Stop() as stop:
        threading.Thread(target=interrupt).start()
        assert stop.run([sys.executable, "-c", script, str(saved), str(ready)], tmp_path / "a.log") == 143
        assert saved.read_text(encoding="utf-8") == "saved"
        assert stop.run([sys.executable, "-c", "raise SystemExit(5)"], tmp_path / "b.log") == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


def test_shares_of_the_cores():
    assert shares([0, 1, 2, 5], 1) == [{0, 1, 2, 5}]
    assert shares([0, 1, 2, 5], 2) == [{0, 1}, {2, 5}]
    assert shares([0, 1, 2, 5, 6], 3) == [{0}, {1, 2}, {5, 6}]
    assert shares([3, 4], 3) == [{3, 4}] * 3


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot divide its cores")
def test_runs_that_go_on_at_a_time_have_a_share_of_the_cores_each(options, tmp_path):
    script = (
        "import os, pathlib, sys, time\n"
        "mine, other = map(pathlib.Path, sys.argv[1:])\n"
        "mine.write_text(str(sorted(os.sched_getaffinity(0))))\n"
        "while not other.exists(): time.sleep(0.01)\n"  # so that one thread cannot do both
        "sys.exit(1)\n"  # which ends the run
    )
    works = plan(["table2"], [0], [0], options, ["joint", "ours"])
    files = {str(work.run_dir): tmp_path / work.spec.setting for work in works}

    def runner(command, log):
        mine = files[next(flag for flag in command if flag.startswith("--run_dir=")).removeprefix("--run_dir=")]
        (other,) = set(files.values()) - {mine}
        return subprocess.run([sys.executable, "-c", script, mine, other], timeout=60, check=False).returncode

    before = os.sched_getaffinity(0)
    execute_all(works, 2, runner, Stop())
    found = [set(json.loads(path.read_text(encoding="utf-8"))) for path in files.values()]
    assert sorted(found, key=min) == shares(sorted(before), 2) and os.sched_getaffinity(0) == before


def test_program(options, tmp_path):
    common = (f"--abdomen_data={options.data['abdomen']}", f"--runs_dir={options.runs_dir}", "--preset=tiny")
    first, *others = plan(["table2"], [0], [0], options)
    write_run(options.runs_dir, first.spec, {}, data_dir=options.data["abdomen"])  # 60 s for 300 steps
    before = sorted(options.runs_dir.rglob("*"))
    listed = program("experiments.reproduce", "--dry_run", *common)
    assert listed.returncode == 0 and "9 runs, 1 done; about 8 min of training" in listed.stdout
    assert sorted(options.runs_dir.rglob("*")) == before
    nothing = program("experiments.reproduce")
    assert nothing.returncode == 1 and "no data given: expected --cardiac_data or --abdomen_data" in nothing.stderr
    wrong = program("experiments.reproduce", "--targets=table9", *common)
    assert wrong.returncode == 1 and "--targets=table9: not known: expected some of table1, " in wrong.stderr
    for work in others:
        write_run(options.runs_dir, work.spec, {}, data_dir=options.data["abdomen"])
    out_dir = tmp_path / "results"
    rendered = program("experiments.reproduce", "--targets=table2", f"--out_dir={out_dir}", *common)
    assert rendered.returncode == 0, rendered.stderr
    assert "7 of 7 runs done" in rendered.stdout
    names = ["table2.csv", "table2.md", "table2.tex", "table2_beside_paper.md"]
    assert sorted(path.name for path in out_dir.iterdir()) == names
