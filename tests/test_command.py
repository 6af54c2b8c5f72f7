"""What every program does alike: the command, the wheel, help, pipes and progress."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from programs import program

from experiments.command import PROGRAMS
from ummkd_tf.common.progress import progress

ROOT = Path(__file__).parent.parent
UMMKD = [sys.executable, "-c", "import sys; sys.argv[0] = 'ummkd'; from ummkd_tf.command import main; main()"]


def ummkd(*arguments, **more):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([*UMMKD, *arguments], env=environment, capture_output=True, encoding="utf-8", **more)


def test_command_lists_programs_and_knows_them(tmp_path):
    done = ummkd(cwd=tmp_path)
    assert done.returncode == 0
    for name in PROGRAMS:
        assert f"\n  {name}" in done.stdout
    done = ummkd("trian", cwd=tmp_path)
    assert done.returncode == 1 and done.stderr == "error: unknown program 'trian': did you mean train?\n"


def test_command_runs_programs_and_their_processes_anywhere(tmp_path):
    assert ummkd("phantom", "--out=raw", "--cases=ct:3,mr:3", "--size=64", cwd=tmp_path).returncode == 0
    done = ummkd("prepare", "--source=abdomen", "--raw=raw", "--out=data", "--workers=2", cwd=tmp_path)
    assert done.returncode == 0 and "6 cases prepared" in done.stdout, done.stderr


def test_a_wheel_installs_one_package(tmp_path):
    """Whatever is installed beside it may be called experiments or data_prep."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "ummkd_tf", "experiments", "data_prep"):
        (source / name).symlink_to(ROOT / name)
    command = [sys.executable, "setup.py", "--quiet", "bdist_wheel", f"--dist-dir={tmp_path}"]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"ummkd_tf", "ummkd_tf-0.1.0.dist-info"}
    tracked = subprocess.run(
        ["git", "ls-files", "ummkd_tf", "experiments", "data_prep"], cwd=ROOT, capture_output=True, encoding="utf-8"
    ).stdout.split()
    expected = {n if n.startswith("ummkd_tf/") else f"ummkd_tf/_programs/{n}" for n in tracked}
    assert expected - set(names) == set()


def test_help_marks_required_flags():
    help_text = " ".join(program("experiments.predict", "--help").stdout.split())
    assert "or a CSV of scans. Required." in help_text
    assert "three planes. Required" not in help_text


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ((), "error: --input is needed: --help explains every flag"),
        (
            ("--inputs=a",),
            "error: Unknown command line flag 'inputs'. Did you mean: input ?: --help explains every flag",
        ),
        (("--overlap=much",), "error: --overlap=much: could not convert string to float: 'much': --help explains"),
    ],
)
def test_a_wrong_flag_is_one_line(flags, line):
    done = program("experiments.predict", *flags)
    assert done.returncode == 1 and done.stderr.startswith(line) and done.stderr.count("\n") == 1, done.stderr


def test_help_in_a_terminal_that_shows_ascii_alone(tmp_path):
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "experiments.train", "--help"]
    done = subprocess.run(command, env={**os.environ, **ascii_only}, cwd=tmp_path, capture_output=True)
    assert (done.returncode, done.stderr) == (1, b"") and b"--alpha: ? of Eq. 5" in done.stdout


@pytest.mark.parametrize("arguments", [(), ("predict", "--help")])
def test_nobody_reads_the_output(arguments, tmp_path):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [*UMMKD, *arguments], env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=write, stderr=subprocess.PIPE
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_log_file_gets_ten_lines(monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    assert list(progress(range(1000), desc="train", unit="step")) == list(range(1000))
    lines = log.getvalue().splitlines()
    assert len(lines) == 10 and lines[0].startswith("train: 100/1000 steps [") and "\r" not in log.getvalue()
    assert lines[-1].startswith("train: 1000/1000 steps [")
