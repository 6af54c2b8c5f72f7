"""The command-line programs as a user meets them: a whole small path. Bad input: test_bad_input.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from programs import program
from toy_networks import TOY3D

from ummkd_tf.common.documents import read_json

ROOT = Path(__file__).parent.parent


def new_process(name, *flags):
    command = [sys.executable, "-m", name, *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", timeout=240, check=False)


def train_flags(data_dir, run_dir, **more):
    flags = {"preset": "tiny", "data_dir": data_dir, "run_dir": run_dir, **more}
    return [f"--{name}={value}" for name, value in flags.items()]


def assert_one_line(result, *expected):
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line]
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    for text in expected:
        assert text in lines[0]


@pytest.mark.slow
def test_train_continue_evaluate_predict(prepared_dataset, tmp_path):
    """Stop, continue, evaluate and predict; what the programs print and write."""
    run_dir = tmp_path / "run"
    # Quick to trace; the README's commands, which `make test-wheel` runs, train the paper's network.
    common = train_flags(prepared_dataset.directory, run_dir, steps=4, validate_every=2, network=TOY3D)
    stopped = new_process("experiments.train", *common, "--max_hours=0.000001")
    assert stopped.returncode == 0 and "the same command continues from here" in stopped.stdout, stopped.stderr
    assert read_json(run_dir / "run.json")["status"] == "stopped"

    assert_one_line(program("experiments.train", *common, "--alpha=0.9"), "alpha is 0.9, was 0.5", "another --run_dir")

    # A run keeps its precision, whatever this machine would choose for a new one.
    finished = program("experiments.train", *common, "--precision=auto")
    assert finished.returncode == 0, finished.stderr
    assert "finished 4 steps" in finished.stdout
    record = read_json(run_dir / "run.json")
    assert record["status"] == "finished" and record["progress"]["step"] == 4
    assert record["setting"] == {
        "name": "ours",
        "title": "Ours",
        "separate_kernels": "nowhere",
        "separate_norms": "everywhere",
        "distill": True,
    }
    assert record["split_sha256"] == prepared_dataset.split_checksum
    assert {"tensorflow", "keras", "numpy"} < set(record["environment"]["versions"])
    assert record["flags"]["learning_rate"] > 0 and record["flags"]["seed"] == 0 and record["seconds"] > 0
    assert record["flags"]["precision"] == "float32"

    measured = program("experiments.gradients", f"--run_dir={run_dir}", "--batches=1")
    assert measured.returncode == 0, measured.stderr
    assert [line.split("|")[1].strip() for line in measured.stdout.splitlines()[2:]] == ["1", "4"]  # its checkpoints

    slices = tmp_path / "slices.html"
    evaluated = program("experiments.evaluate", f"--run_dir={run_dir}", f"--viewer={slices}")
    assert evaluated.returncode == 0, evaluated.stderr
    assert "Dice (%) |" in evaluated.stdout and "ct: n = 1; mr: n = 1" in evaluated.stdout
    evaluation = read_json(run_dir / "evaluation_test.json")
    assert set(evaluation["cases"]) == {"ct_3", "mr_3"}
    assert evaluation["viewer"] == "../slices.html" and slices.is_file()  # found again from the run's folder

    again = program("experiments.evaluate", f"--run_dir={run_dir}", "--overlap=0.5")
    assert "evaluation_test.json was made with --overlap=0.0 and will be replaced" in again.stderr
    beside = program("experiments.evaluate", f"--run_dir={run_dir}", "--selection=last", "--tag=last")
    assert beside.returncode == 0 and "will be replaced" not in beside.stderr
    kept, new = (read_json(run_dir / f"evaluation_test{tag}.json") for tag in ("", "_last"))
    assert (kept["overlap"], kept["selection"]) == (0.5, "best") and (new["overlap"], new["selection"]) == (0, "last")

    # A scan in another orientation and spacing comes back in its own geometry.
    scan, label, picture = tmp_path / "scan.nii.gz", tmp_path / "label.nii.gz", tmp_path / "picture.png"
    affine = np.array([[0, -3.0, 0, 90], [0, 0, 6.0, -60], [5.0, 0, 0, 10], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(np.random.default_rng(0).normal(0, 50, (12, 50, 40)).astype(np.float32), affine), scan)
    arguments = [f"--run_dir={run_dir}", f"--input={scan}", f"--output={label}"]
    predicted = program(
        "experiments.predict", *arguments, "--modality=ct", f"--overlay={picture}", f"--viewer={tmp_path / 'p.html'}"
    )
    assert predicted.returncode == 0, predicted.stderr
    result = nib.load(label)
    assert result.shape == (12, 50, 40) and result.get_data_dtype() == np.uint8
    np.testing.assert_allclose(result.affine, affine)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "prediction" in (tmp_path / "p.html").read_text(encoding="utf-8")


def test_unknown_setting_lists_all_seven():
    result = program("experiments.train", "--setting=z_shaped")
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "individual|joint|joint_kd|y_shaped|x_shaped|chilopod|ours" in result.stderr


def test_describe_needs_no_data():
    result = new_process("experiments.train", "--setting=x_shaped", "--describe")
    assert result.returncode == 0, result.stderr
    rows = {
        c[0]: c[1:]
        for c in ([x.strip() for x in r.strip("|").split("|")] for r in result.stdout.splitlines())
        if len(c) == 4
    }
    assert rows["encoder_3"][:2] == ["separate", "separate"]
    assert rows["encoder_4"][:2] == ["shared", "shared"]
    assert "3,388,522 (the paper prints 3389K)" in result.stdout
    assert result.stderr == ""  # no start-up banners


def test_help_teaches_quickly():
    environment = {**os.environ, "PYTHONPROFILEIMPORTTIME": "1"}
    command = [sys.executable, "-m", "experiments.train", "--help"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", check=False, env=environment)
    assert "python -m experiments.train --task=abdomen --setting=ours" in result.stdout
    assert "individual|joint|joint_kd|y_shaped|x_shaped|chilopod|ours" in result.stdout.replace("\n", "")
    assert "tensorflow" not in result.stderr  # not imported, so it starts at once
