"""Two workers over loopback against one process: both networks, and every way of sharing layers.

python tests/two_workers.py        (make check-two-workers)
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = [
    f"{network}:{setting}:{modalities}:{absent}:float32"
    for network in ("unet3d", "dilated2d")
    for setting, modalities, absent in (
        ("joint", "ct,mr", "uniform"),
        ("x_shaped", "ct,mr", "uniform"),
        ("ours", "ct,mr", "memory"),
        ("ours", "ct,mr,us", "skip"),
    )
]


def child_environment() -> dict[str, str]:
    """In which a process finds this project, installed or not, and TensorFlow keeps its banners to itself."""
    path = os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))
    return {**os.environ, "PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "3"}


def start_workers(command: Sequence[object], logs: Sequence[IO[str]]) -> list[subprocess.Popen]:
    """The same command as a worker for each log, on ports that are free now."""
    sockets = [socket.create_server(("localhost", 0)) for _ in logs]
    workers = [f"localhost:{s.getsockname()[1]}" for s in sockets]
    for s in sockets:
        s.close()
    started = []
    for index, log in enumerate(logs):
        config = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
        environment = child_environment() | {"TF_CONFIG": json.dumps(config)}
        arguments = [sys.executable, *map(str, command)]
        started.append(subprocess.Popen(arguments, cwd=ROOT, env=environment, stdout=log, stderr=log))
    return started


if __name__ == "__main__":
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        both = start_workers(
            [Path(__file__).with_name("replicas.py"), *(sys.argv[1:] or SETTINGS)], [sys.stdout, nowhere]
        )
        sys.exit(max(worker.wait() for worker in both))
