"""Cluster scripts, run with stand-ins for SLURM's programs: as far as a machine without a cluster can check them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from experiments.slurm import write_jobs
from ummkd_tf.common.files import write_json

CLUSTER = Path(__file__).parent.parent / "experiments" / "cluster"


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """A folder in front of PATH; `programs(name, text)` puts a shell script there."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def add(name: str, text: str) -> None:
        (folder / name).write_text(f"#!/bin/bash\n{text}\n", encoding="utf-8")
        (folder / name).chmod(0o755)

    return add


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def test_a_job_for_each_run_and_one_after_them(tmp_path, programs, monkeypatch):
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    programs("sbatch", 'echo "$@" >> "$LOG"; wc --lines < "$LOG"')  # prints 1, 2, 3: the numbers of the jobs
    runs = [("one", [["python", "-m", "train", "--out=a b"], ["python", "-m", "evaluate"]]), ("two", [["python"]])]
    script = write_jobs(runs, ["echo", "tables"], tmp_path / "jobs", tmp_path / "logs")
    subprocess.run([script, "--gres=gpu:1"], check=True)
    assert lines(tmp_path / "log") == [
        "--parsable --gres=gpu:1 one.sh",
        "--parsable --gres=gpu:1 two.sh",
        "--parsable --gres=gpu:1 --dependency=afterok:1:2 render.sh",
    ]
    assert lines(tmp_path / "jobs" / "one.sh")[-2:] == ["run python -m train '--out=a b'", "run python -m evaluate"]
    subprocess.run([tmp_path / "jobs" / "render.sh"], check=True, stdout=subprocess.DEVNULL)


SAVES = """
import pathlib, signal, sys, time
def save(*_):
    time.sleep(0.5)
    pathlib.Path("saved").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(("kind", "code"), [("job", 143), ("array", 143), ("job", 0)])
def test_the_signal_before_the_end_reaches_the_program_which_saves(kind, code, tmp_path, programs, monkeypatch):
    """SLURM signals the script alone; what would come next does not start, unless the program was just done."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
    (tmp_path / "saves.py").write_text(SAVES.replace("143", str(code)), encoding="utf-8")
    programs("ummkd", f'[ "$1" = train ] && exec {sys.executable} saves.py; touch evaluated')
    write_jobs([("one", [["ummkd", "train"], ["ummkd", "evaluate"]])], ["echo"], tmp_path / "jobs", tmp_path)
    script = [tmp_path / "jobs" / "one.sh"] if kind == "job" else [CLUSTER / "slurm_array.sh", "ours", "data"]
    with subprocess.Popen(script, stdout=subprocess.PIPE, encoding="utf-8") as job:
        assert job.stdout.readline() == "ready\n"
        job.terminate()
        assert job.wait(timeout=20) == code
    assert (tmp_path / "saved").exists() and (tmp_path / "evaluated").exists() == (code == 0)


def test_jobs_find_the_programs_wherever_they_run(tmp_path, monkeypatch):
    """Also of an installed wheel, whose folder of programs only `ummkd` puts on the path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    command = [sys.executable, "-c", "import importlib.util as u; print(u.find_spec('experiments.train').origin)"]
    write_jobs([("one", [command])], ["echo"], tmp_path / "jobs", tmp_path)
    found = subprocess.run([tmp_path / "jobs" / "one.sh"], check=True, stdout=subprocess.PIPE, encoding="utf-8").stdout
    assert Path(found.strip()) == CLUSTER.parent / "train.py"


def test_results_alone_wait_for_nothing(tmp_path, programs, monkeypatch):
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    programs("sbatch", 'echo "$@" >> "$LOG"')
    subprocess.run([write_jobs([], ["echo"], tmp_path / "jobs", tmp_path)], check=True)
    assert lines(tmp_path / "log") == ["--parsable render.sh"]


def test_array_goes_through_folds_and_seeds(tmp_path, programs, monkeypatch):
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "7")
    monkeypatch.setenv("RUNS", str(tmp_path / "runs"))
    run_dir = tmp_path / "runs/ours-seed2-fold1"
    run_dir.mkdir(parents=True)
    programs("ummkd", 'echo "$@" >> "$LOG"')
    for status in ("finished", "stopped"):  # the second one by --max_hours: it is not evaluated
        write_json(run_dir / "run.json", {"flags": {}, "status": status})
        subprocess.run([CLUSTER / "slurm_array.sh", "ours", "data/fold{fold}", "--steps=9"], check=True)
    train, evaluate, again = lines(tmp_path / "log")
    assert (
        train
        == again
        == (f"train --task=abdomen --setting=ours --seed=2 --data_dir=data/fold1 --run_dir={run_dir} --steps=9")
    )
    assert evaluate == f"evaluate --run_dir={run_dir}"


def test_every_node_knows_all_workers_and_its_own_number(tmp_path, programs, monkeypatch):
    monkeypatch.setenv("LOG", str(tmp_path))
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[1-2]")
    programs("scontrol", "printf 'n1\\nn2\\n'")
    programs("srun", 'shift; for i in 0 1; do SLURM_PROCID=$i "$@"; done')
    programs("ummkd", 'echo "$TF_CONFIG" >> "$LOG/config"; echo "$@" >> "$LOG/arguments"')
    subprocess.run([CLUSTER / "slurm_nodes.sh", "--setting=ours", "--run_dir=a b"], check=True)
    for index, line in enumerate(lines(tmp_path / "config")):
        cluster = {"worker": ["n1:12345", "n2:12345"]}
        assert json.loads(line) == {"cluster": cluster, "task": {"type": "worker", "index": index}}
    assert lines(tmp_path / "arguments") == 2 * ["train --strategy=multi_worker --setting=ours --run_dir=a b"]


def test_kubernetes_gives_each_pod_its_number():
    service, job = yaml.safe_load_all((CLUSTER / "kubernetes.yaml").read_text(encoding="utf-8"))
    pod = job["spec"]["template"]["spec"]
    assert service["metadata"]["name"] == pod["subdomain"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 2
    export, program = pod["containers"][0]["args"][0].split("exec ")
    assert program.startswith("ummkd train ")  # the image holds the installed package, and no checkout
    for index in (0, 1):
        config = subprocess.run(
            ["bash", "-c", f'{export}\necho "$TF_CONFIG"'],
            env={"JOB_COMPLETION_INDEX": str(index)}, check=True, stdout=subprocess.PIPE, encoding="utf-8",
        ).stdout  # fmt: skip
        workers = ["ummkd-0.ummkd:12345", "ummkd-1.ummkd:12345"]
        assert json.loads(config) == {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing(tmp_path):
    jobs = write_jobs([("one", [["echo", "a b"]])], ["echo"], tmp_path / "jobs", tmp_path).parent
    subprocess.run(["shellcheck", *CLUSTER.glob("*.sh"), *jobs.glob("*.sh")], check=True)


def test_two_workers_on_this_machine(tmp_path, programs, monkeypatch):
    """The same training twice, as workers 0 and 1 on two ports; the code of one that fails is the script's."""
    programs("ummkd", """echo "$TF_CONFIG" > "$LOG"-$$; echo "$@"; [[ $TF_CONFIG != *'"index": 1'* ]]""")
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    done = subprocess.run([CLUSTER / "two_workers.sh", "--seed=1"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout.splitlines() == ["train --strategy=multi_worker --seed=1"] * 2
    configs = [json.loads(path.read_text(encoding="utf-8")) for path in tmp_path.glob("log-*")]
    assert sorted(config["task"]["index"] for config in configs) == [0, 1]
    assert configs[0]["cluster"] == configs[1]["cluster"] and len(set(configs[0]["cluster"]["worker"])) == 2
