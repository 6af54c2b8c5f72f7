"""A run directory belongs to one run and one process."""

from __future__ import annotations

import errno
import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from recorded_runs import run_config

from ummkd_tf.common import files, processor
from ummkd_tf.common.errors import InputError, Stopped
from ummkd_tf.data.dataset import Dataset
from ummkd_tf.runs import folder as runs
from ummkd_tf.runs.config import RunConfig
from ummkd_tf.tasks import TASKS

CONFIG = run_config()
MODEL = {"network": "unet3d", "setting": "ours", "modalities": ["ct", "mr"]}


def start(run_dir, dataset, config=CONFIG, model=MODEL, **more):
    return runs.start_run(run_dir, config=config, model=model, dataset=dataset, **more)


def test_second_process_is_refused_and_told_who_holds_the_run(tmp_path):
    code = (
        "import pathlib, sys; from ummkd_tf.runs.folder import exclusive\n"
        f"with exclusive(pathlib.Path({str(tmp_path)!r})): print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(InputError, match=f"in use by process {holder.pid} on"), runs.exclusive(tmp_path):
            pass
    finally:
        holder.kill()  # SIGKILL: nothing of the holder's own runs any more
        holder.communicate()
    (tmp_path / "checkpoints" / ".writing-left").mkdir(parents=True)
    with runs.exclusive(tmp_path):  # the system let go of it
        assert list((tmp_path / "checkpoints").iterdir()) == []  # what the killed one left half-written


def test_changed_flags_are_shown_and_refused_unless_accepted(tmp_path, prepared_dataset):
    start(tmp_path, prepared_dataset)
    changed = run_config(alpha=0.9)
    with pytest.raises(InputError, match=r"alpha is 0.9, was 0.5.*--accept_changes continues .* that$"):
        start(tmp_path, prepared_dataset, changed)
    record = start(tmp_path, prepared_dataset, changed, accept_changes=True)
    assert record["flags"]["alpha"] == 0.9 and record["changes"][0]["changed"] == ["alpha is 0.9, was 0.5"]
    assert start(tmp_path, prepared_dataset, changed) == record  # from now on these are the run's flags


def test_a_run_goes_on_where_its_data_have_moved_to(tmp_path, prepared_dataset):
    """From then on they are looked for there; what an earlier end recorded of its checkpoints is of the past."""
    run_dir, moved = tmp_path / "run", Path(shutil.copytree(prepared_dataset.directory, tmp_path / "moved"))
    start(run_dir, prepared_dataset)
    record = runs.read_run(run_dir)
    (run_dir / "run.json").write_text(json.dumps(record | {"progress": {"step": 9, "best_step": 4}}), encoding="utf-8")
    start(run_dir, Dataset.load(moved))
    assert runs.read_run(run_dir) == record | {"data_dir": str(moved)}


def test_copies_of_checkpoints_are_none_of_the_runs(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for name in ("step-00000300", "step-100000000", "step-00000300_backup", "step-00000200-keep", "step-7"):
        (tmp_path / f"checkpoints/{name}.npz").touch()
    assert [path.stem for path in runs.checkpoint_files(tmp_path)] == ["step-100000000", "step-00000300"]
    assert runs.newest_step(tmp_path) == 100_000_000


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"ema": 0.9}, "ema is 0.9, was 0.0"),
        ({"absent": "memory"}, "absent is 'memory', was 'uniform'"),
        ({"freeze": "kernels"}, "freeze is 'kernels', was 'none'"),
        ({"precision": "mixed_float16"}, "precision is 'mixed_float16', was 'float32'"),
    ],
)
def test_what_a_checkpoint_cannot_continue_with_is_never_accepted(tmp_path, prepared_dataset, changes, told):
    """Such a checkpoint holds other variables. Nothing is written, so that the run goes on with its own settings."""
    start(tmp_path, prepared_dataset)
    before = (tmp_path / runs.RUN).read_bytes()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step-00000001.npz").touch()
    with pytest.raises(InputError, match=rf"\({told}\): use its settings .* or another --run_dir$"):
        start(tmp_path, prepared_dataset, run_config(**changes), accept_changes=True)
    assert (tmp_path / runs.RUN).read_bytes() == before


def test_more_steps_of_a_rate_that_falls_to_zero_are_advised_against(tmp_path, prepared_dataset):
    start(tmp_path, prepared_dataset, run_config(steps=100, schedule="polynomial"))
    with pytest.raises(InputError, match=r"records that, but the learning rate.* jumps.* a new run with --init_from$"):
        start(tmp_path, prepared_dataset, run_config(steps=200, schedule="polynomial"))


def test_a_run_tells_its_processor(tmp_path, prepared_dataset, monkeypatch):
    """By name and instruction sets: clouds call several generations alike."""
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
    core = "processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu avx2 avx512f avx512_bf16\n"
    processor.CPUINFO.write_text(core + core, encoding="utf-8")
    told = start(tmp_path / "run", prepared_dataset)["environment"]
    assert (
        told["processor"] == "AMD EPYC (avx2, avx512f, avx512_bf16)" and len(told["gpus"]) == len(told["devices"]) - 1
    )
    processor.CPUINFO.unlink()  # another system
    assert processor.description() == (platform.processor() or platform.machine())


def test_a_run_continued_by_another_commit_says_so(tmp_path, prepared_dataset, monkeypatch):
    start(tmp_path, prepared_dataset)
    assert "continued" not in start(tmp_path, prepared_dataset)
    monkeypatch.setattr(runs, "environment", lambda: {"commit": "b"})
    checkpoint = tmp_path / "checkpoints" / "step-00000001.npz"
    checkpoint.parent.mkdir()
    checkpoint.touch()
    record = start(tmp_path, prepared_dataset)
    assert [(part["step"], part["environment"]) for part in record["continued"]] == [(1, {"commit": "b"})]
    assert runs.commits_of(record) == [record["environment"]["commit"], "b"]
    assert start(tmp_path, prepared_dataset) == runs.read_run(tmp_path) == record
    # A finished run is not continued, whoever looks at it.
    monkeypatch.setattr(runs, "environment", lambda: {"commit": "c"})
    checkpoint.rename(checkpoint.with_name(f"step-{CONFIG.steps:08}.npz"))
    assert start(tmp_path, prepared_dataset) == record


def test_another_model_is_never_accepted(tmp_path, prepared_dataset):
    start(tmp_path, prepared_dataset)
    with pytest.raises(InputError, match=r"setting is 'joint', was 'ours'.*or another --run_dir$"):
        start(tmp_path, prepared_dataset, model={**MODEL, "setting": "joint"}, accept_changes=True)


@pytest.mark.parametrize("content", ["{", "[]", "{}", "3", json.dumps({"flags": {}, "model": {}})])
def test_damaged_run_json_is_one_line(tmp_path, content):
    (tmp_path / runs.RUN).write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=r"run\.json: damaged"):
        runs.read_run(tmp_path)


def test_checkpoints_without_run_json_are_not_continued(tmp_path, prepared_dataset):
    """Nobody knows their flags and their split."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step-00000005.npz").touch()
    with pytest.raises(InputError, match=r"has checkpoints but no run\.json.*choose another --run_dir$"):
        start(tmp_path, prepared_dataset)
    assert not (tmp_path / runs.RUN).exists()


@pytest.mark.parametrize("status", ["finished", "stopped"])
def test_a_run_whose_checkpoints_are_gone_is_not_begun_anew_over_its_logs(tmp_path, prepared_dataset, status):
    record = start(tmp_path, prepared_dataset)
    files.write_json(tmp_path / runs.RUN, {**record, "status": status})
    with pytest.raises(InputError, match=f"the run is {status}, but its checkpoints are gone"):
        start(tmp_path, prepared_dataset)


def test_a_file_system_without_locks_is_one_line(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(runs.fcntl, "flock", no_locks)
    with pytest.raises(InputError, match=r"cannot be locked .No locks available."), runs.exclusive(tmp_path):
        pass


def test_a_disk_too_full_to_record_the_failure_does_not_hide_it(tmp_path, prepared_dataset, monkeypatch):
    record = start(tmp_path, prepared_dataset)

    def full(*_):
        raise InputError("run.json: could not be written")

    with pytest.raises(InputError, match="checkpoint: could not be written"), runs.recorded_session(tmp_path, record):
        monkeypatch.setattr(runs, "write_json", full)
        raise InputError("checkpoint: could not be written")


@pytest.mark.parametrize(
    ("error", "status"),
    [(None, "finished"), (Stopped("", 143), "stopped"), (InputError(""), "failed"), (OSError(28, ""), "failed")],
)
def test_session_records_how_it_ended(tmp_path, prepared_dataset, error, status):
    record = start(tmp_path, prepared_dataset)
    try:
        with runs.recorded_session(tmp_path, {**record, "seconds": 100.0}) as session:
            assert runs.read_run(tmp_path)["status"] == "running"
            session["progress"] = {"step": 3}
            if error:
                raise error
    except (Stopped, InputError, OSError):
        pass
    after = runs.read_run(tmp_path)
    assert after["status"] == status and after["progress"] == {"step": 3}
    assert 100 <= after["seconds"] < 110  # seconds add up over sessions


def test_a_run_from_before_a_setting_existed_goes_on_without_a_word(tmp_path, prepared_dataset):
    record = start(tmp_path, prepared_dataset, run_config(ema=0.0))  # as the program gives it
    later = ("schedule", "labelled_share", "augmentation", "ema", "precision")
    old = {**record, "flags": {name: value for name, value in record["flags"].items() if name not in later}}
    files.write_json(tmp_path / runs.RUN, old)
    assert "changes" not in start(tmp_path, prepared_dataset)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": "half"}, r"alpha is 'half'"),
        ({"selection": "newest"}, r"selection is 'newest'"),
        ({"steps": True}, r"steps is True"),
        ({"steps": 1.5}, r"steps is 1\.5"),
        ({"color": "red"}, r"unknown settings color"),
    ],
)
def test_settings_of_another_kind_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        RunConfig.from_dict(CONFIG.to_dict() | change)
    assert RunConfig.from_dict(CONFIG.to_dict() | {"alpha": 1}).alpha == 1  # JSON has 1 for 1.0


def test_the_size_of_the_images_gives_the_reduction():
    assert CONFIG.factor(TASKS["abdomen"]) == 4  # 256 rows, 64 seen
    with pytest.raises(ValueError, match="size 100 of 256 rows"):
        run_config(size=100).factor(TASKS["abdomen"])
