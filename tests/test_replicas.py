"""Several devices compute what one does: two logical devices of a process, and two processes over loopback."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from programs import program
from toy_networks import TOY3D
from two_workers import child_environment, start_workers

from ummkd_tf.common.errors import InputError
from ummkd_tf.data.sampling import UnpairedSampler
from ummkd_tf.runs.checkpoints import read_checkpoint
from ummkd_tf.runs.devices import Devices, has_bfloat16_instructions
from ummkd_tf.runs.folder import checkpoint_files

TESTS = Path(__file__).parent


@pytest.mark.slow
def test_two_devices_train_as_one():
    """Losses, weights, Adam's moments, statistics, what is remembered; and a step that is not finite is not taken."""
    settings = ["toy3d:ours:ct,mr:memory:float32", "toy2d:x_shaped:ct,mr:uniform:float32"]
    settings += ["toy2d:joint:ct,mr,us:skip:float32"]
    if has_bfloat16_instructions():  # without them it takes long, and nobody trains so
        settings += ["toy3d:ours:ct,mr:uniform:mixed_bfloat16"]
    command = [sys.executable, TESTS / "replicas.py", *settings]
    done = subprocess.run(command, capture_output=True, text=True, env=child_environment(), timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert [line.split()[1] for line in done.stdout.splitlines() if line.startswith("same: ")] == settings


@pytest.mark.slow
def test_a_killed_worker_ends_the_other_and_the_run_goes_on_alone(tmp_path, prepared_dataset):
    """Two workers, of which one is killed; one process continues, and ends as one that trained all the time."""

    def command(run: str) -> list[object]:
        fixed = [f"--network={TOY3D}", "--preset=tiny", "--steps=20", "--validate_every=20"]
        often = ["--checkpoint_every=2", "--log_every=1", "--threads=2"]
        return [*fixed, *often, f"--data_dir={prepared_dataset.directory}", f"--run_dir={tmp_path / run}"]

    paths = [tmp_path / f"{index}.log" for index in range(2)]
    with contextlib.ExitStack() as stack:
        logs = [stack.enter_context(open(path, "w", encoding="utf-8")) for path in paths]
        workers = start_workers(["-m", "experiments.train", "--strategy=multi_worker", *command("killed")], logs)

    def read() -> list[str]:
        return [path.read_text(encoding="utf-8") for path in paths]

    try:
        until = time.monotonic() + 300
        while not checkpoint_files(tmp_path / "killed"):
            assert time.monotonic() < until and all(worker.poll() is None for worker in workers), read()
            time.sleep(0.05)
        workers[1].send_signal(signal.SIGKILL)
        killed = time.monotonic()
        assert workers[0].wait(60) == 1, read()
        print(f"ended {time.monotonic() - killed:.1f} s after the other")
    finally:
        for worker in workers:
            worker.kill()
    errors = [line for line in read()[0].splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "another worker is gone" in errors[0] and "start all workers again" in errors[0]
    assert "Traceback" not in read()[0]
    for run in ("killed", "whole"):
        done = program("experiments.train", *command(run))
        assert done.returncode == 0, done.stderr
    resumed, whole = (read_checkpoint(checkpoint_files(tmp_path / run)[0])[0] for run in ("killed", "whole"))
    for name, value in whole.items():
        np.testing.assert_allclose(resumed[name], value, rtol=0, atol=1e-3 * (np.abs(value).max() + 1e-3), err_msg=name)


class Numbers:
    """Examples of one modality: what the generator says, read from nowhere."""

    def __init__(self):
        self.drawn = 0

    def origin(self, rng):
        return str(rng.random())

    def draw(self, rng):
        self.drawn += 1
        return np.full((2, 2, 3), rng.random(), np.float32), np.zeros((2, 2), np.uint8)

    def classes(self):
        return []


@pytest.mark.parametrize("count", [1, 2, 3])
def test_parts_of_a_batch_are_the_batch(count):
    """Of six examples, each part reads its own alone; side by side they are the batch of one device."""

    def noise(image, label, rng):
        return image + rng.random(), label

    parts = []
    for number in range(count):
        examples = {"ct": Numbers(), "mr": Numbers()}
        parts.append(UnpairedSampler(examples, 6, 1, noise).batch(3, (number, count)))
        assert [e.drawn for e in examples.values()] == [6 // count] * 2
    whole = UnpairedSampler({"ct": Numbers(), "mr": Numbers()}, 6, 1, noise).batch(3)
    for m in ("ct", "mr"):
        np.testing.assert_array_equal(np.concatenate([images[m] for images, _ in parts]), whole[0][m])
    ahead = UnpairedSampler({"ct": Numbers(), "mr": Numbers()}, 6, 1, noise).batches(3, 4, 1, (count - 1, count))
    np.testing.assert_array_equal(next(ahead)[0]["mr"], parts[-1][0]["mr"])


def test_batches_that_cannot_be_shared(tmp_path, prepared_dataset):
    devices = Devices()
    devices.check_batch(3)
    devices.replicas = 2
    devices.check_batch(4)
    with pytest.raises(InputError, match="3 examples of each modality a step, on 2 devices: expected a multiple of 2"):
        devices.check_batch(3)
    flags = [f"--data_dir={prepared_dataset.directory}", f"--run_dir={tmp_path / 'run'}", "--preset=tiny"]
    for wrong, message in (
        (["--global_batch=5"], "--global_batch=5: expected a multiple of 2, for equal shares of ct, mr"),
        (["--global_batch=4", "--batch_size=2"], "and no --batch_size beside it"),
    ):
        done = program("experiments.train", *flags, *wrong)
        assert done.returncode == 1 and message in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "config",
    [
        None,
        "{",
        "[]",
        '{"cluster": {"worker": ["a:1"]}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}',
    ],
)
def test_tf_config_that_says_no_worker(monkeypatch, config):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if config is not None:
        monkeypatch.setenv("TF_CONFIG", config)
    with pytest.raises(InputError, match=r"TF_CONFIG is .*: expected for the first of two workers"):
        Devices("multi_worker")
