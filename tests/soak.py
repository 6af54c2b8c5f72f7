"""Kills training runs at random moments and compares how they end with runs left alone.

    python tests/soak.py --kills=20        (make soak)

For each configuration one run is left alone. A second one is started with the same command, killed with SIGKILL,
started again, and so on, and at last left to end. Weights, optimizer, statistics, best checkpoint and logs must be the
same bit for bit. Every second kill comes while a checkpoint is being written.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from prepared_data import write_prepared_dataset

from ummkd_tf.runs.checkpoints import read_checkpoint

ROOT = Path(__file__).resolve().parents[1]
STEPS = 10
CONFIGURATIONS = (
    # network, setting: both networks, and every way of sharing (all, norms apart, stages apart, everything apart)
    ("unet3d", "ours"),
    ("unet3d", "joint_kd"),
    ("dilated2d", "ours"),
    ("unet3d", "x_shaped"),
    ("unet3d", "individual"),
)
PATIENCE_SECONDS = 600


def start(run_dir: Path, data_dir: Path, network: str, setting: str) -> subprocess.Popen:
    """The training command as a user gives it."""
    flags = {
        "network": network,
        "setting": setting,
        "preset": "tiny",
        "steps": STEPS,
        "validate_every": 4,
        "checkpoint_every": 1,
        "log_every": 1,
        "knowledge_on": "validation",
        "data_dir": data_dir,
        "run_dir": run_dir,
    }
    command = [sys.executable, "-m", "experiments.train", "--deterministic"]
    command += [f"--{name}={value}" for name, value in flags.items()]
    log = open(run_dir.with_suffix(".log"), "a", encoding="utf-8")  # noqa: SIM115, the child's
    return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)


def finish(process: subprocess.Popen, run_dir: Path) -> None:
    """Waits for the end.

    Raises:
        RuntimeError: The run failed.
    """
    if process.wait(PATIENCE_SECONDS):
        log = run_dir.with_suffix(".log").read_text(encoding="utf-8")
        raise RuntimeError(f"{run_dir.name}: exit code {process.returncode}\n{log[-2000:]}")


def kill_while_writing(process: subprocess.Popen, run_dir: Path, rng: random.Random) -> bool:
    """SIGKILL as soon as a half-written checkpoint is seen, after a random number of whole ones; False: none was."""
    folder = run_dir / "checkpoints"
    target = newest_step(run_dir) + rng.randrange(1, 4)
    while process.poll() is None:
        if newest_step(run_dir) >= target and any(folder.glob(".writing-*")):
            process.send_signal(signal.SIGKILL)
            process.wait()
            return any(folder.glob(".writing-*"))
        time.sleep(0.0005)
    return False


def kill_at(process: subprocess.Popen, seconds: float) -> bool:
    """SIGKILL after a time; False: the run ended first."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return True
    return False


def newest_step(run_dir: Path) -> int:
    """Step of the newest checkpoint, 0 without any."""
    return max((int(p.stem.split("-")[1]) for p in (run_dir / "checkpoints").glob("step-*.npz")), default=0)


def differences(one: Path, other: Path) -> list[str]:
    """What two finished runs do not share."""
    found = []
    for name in ("history.jsonl", "knowledge.jsonl"):
        if (one / name).read_bytes() != (other / name).read_bytes():
            found.append(name)
    files = [sorted(p.name for p in (run / "checkpoints").iterdir()) for run in (one, other)]
    if files[0] != files[1]:
        return [*found, f"files {files[0]} and {files[1]}"]
    for name in files[0]:
        (a, progress_a), (b, progress_b) = (read_checkpoint(run / "checkpoints" / name) for run in (one, other))
        if progress_a != progress_b or a.keys() != b.keys():
            found.append(f"{name}: progress or variables")
        found += [f"{name}: {key}" for key in a if key in b and a[key].tobytes() != b[key].tobytes()]
    records = [json.loads((run / "run.json").read_text(encoding="utf-8")) for run in (one, other)]
    found += [
        f"run.json: {key}" for key in ("flags", "model", "status", "progress") if records[0][key] != records[1][key]
    ]
    return found


def soak(work: Path, kills: int, seed: int) -> int:
    """The loop; returns the number of configurations that did not end alike."""
    rng = random.Random(seed)
    data_dir = work / "data"
    write_prepared_dataset(data_dir)
    done = wrong = 0
    for number, (network, setting) in enumerate(CONFIGURATIONS):
        wanted = len(range(number, kills, len(CONFIGURATIONS)))
        name = f"{network}-{setting}"
        alone, killed = work / f"{name}-alone", work / f"{name}-killed"
        began = time.monotonic()
        finish(start(alone, data_dir, network, setting), alone)
        duration = time.monotonic() - began
        print(f"{name}: left alone {STEPS} steps in {duration:.0f} s", flush=True)
        count = 0
        while count < wanted:
            process = start(killed, data_dir, network, setting)
            began = time.monotonic()
            if count % 2 == 0:
                hit, when = kill_while_writing(process, killed, rng), "while writing a checkpoint"
            else:
                hit, when = kill_at(process, rng.uniform(0.1, 0.9) * duration), "at a random moment"
            if process.returncode == 0:  # ended before the kill: from the start again
                shutil.rmtree(killed)
                continue
            count += 1
            done += 1
            when += "" if hit else " (just finished)"
            print(
                f"  kill {done}/{kills} {when}, {time.monotonic() - began:.1f} s after its start, "
                f"newest checkpoint: step {newest_step(killed)}",
                flush=True,
            )
        finish(start(killed, data_dir, network, setting), killed)
        found = differences(alone, killed)
        wrong += bool(found)
        print(f"  {name}: {'bit-identical' if not found else 'DIFFERENT: ' + ', '.join(found[:9])}", flush=True)
    print(f"{done} kills, {len(CONFIGURATIONS) - wrong} of {len(CONFIGURATIONS)} runs ended bit-identically")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="number of kills over all configurations")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--work", type=Path, help="folder to keep; a temporary one by default")
    arguments = parser.parse_args()
    if arguments.work:
        arguments.work.mkdir(parents=True, exist_ok=True)
        return bool(soak(arguments.work.resolve(), arguments.kills, arguments.seed))
    with tempfile.TemporaryDirectory() as folder:
        return bool(soak(Path(folder), arguments.kills, arguments.seed))


if __name__ == "__main__":
    sys.exit(main())
