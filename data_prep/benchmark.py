"""How long preparation takes: an MM-WHS-sized and a BTCV-sized case, by number of workers, with peak memory.

    python -m data_prep.benchmark

The scans are phantoms; one is written and copied under further ids, so that every worker has the same work. Every
number of workers starts from an empty folder, in a process of its own.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ummkd_tf.cli import run
from ummkd_tf.reporting import markdown

CASES = 4  # of each kind
ROOT = Path(__file__).parent.parent


def write_heart(folder: Path, cases: int, size: int) -> None:
    """MM-WHS-sized: at size 512, 512 × 512 × about 250 voxels."""
    from data_prep.phantom import MMWHS_IDS, write_cardiac

    write_cardiac(folder, num_ct=1, num_mr=0, seed=0, size=size)
    for other in MMWHS_IDS[1:cases]:
        for kind in ("image", "label"):
            shutil.copy(*(folder / f"ct_train/ct_train_{i}_{kind}.nii.gz" for i in (MMWHS_IDS[0], other)))


def write_abdomen(folder: Path, cases: int, size: int) -> None:
    """BTCV-sized: at size 512, 512 × 512 voxels a slice."""
    from data_prep.phantom import BTCV_IDS, write_abdomen

    write_abdomen(folder, num_ct=1, num_mr=0, seed=0, size=size)
    for other in BTCV_IDS[1:cases]:
        for kind, name in (("img", "img"), ("label", "label")):
            shutil.copy(*(folder / f"btcv/{kind}/{name}{i}.nii.gz" for i in (BTCV_IDS[0], other)))


@dataclass(frozen=True)
class Kind:
    """What is prepared.

    Attributes:
        title: Name in tables.
        task: Its task.
        write: Writes so many equal raw cases of a size into a folder.
        find: Expression that finds the raw cases in `raw`.
    """

    title: str
    task: str
    write: Callable[[Path, int, int], None]
    find: str


HEART = Kind("MM-WHS-sized", "cardiac", write_heart, "mmwhs.find(raw, 'ct')")
ABDOMEN = Kind("BTCV-sized", "abdomen", write_abdomen, "btcv.find(raw)")

# Verification and preparation as the program does them, without a split (one modality only).
_PROGRAM = """
import sys
from functools import partial
from pathlib import Path
from data_prep import btcv, mmwhs, pipeline
from ummkd_tf.tasks import get_task

def main():
    raw, out, task = Path(sys.argv[1]), Path(sys.argv[2]), get_task(sys.argv[3])
    workers, count = map(int, sys.argv[4:])
    cases = {find}.cases[:count]
    with pipeline.Workers(workers) as pool:
        assert not pipeline.verify(cases, task, pool, lambda text: None)
        list(pool.each(partial(pipeline.prepare_case, task=task, out=out), cases, "prepare"))

if __name__ == "__main__":
    main()
"""


def prepare(kind: Kind, raw: Path, workers: int, cases: int) -> float:
    """Seconds to verify and prepare the first `cases` raw cases in a new process, into an empty folder."""
    with tempfile.TemporaryDirectory() as name:
        program = Path(name) / "program.py"
        program.write_text(_PROGRAM.replace("{find}", kind.find), encoding="utf-8")
        command = [sys.executable, *map(str, (program, raw, Path(name) / "out", kind.task, workers, cases))]
        started = time.perf_counter()
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL, env=environment)
        return time.perf_counter() - started


def peak_gib() -> float:
    """Of the largest process that has ended so far: an upper bound for the last one."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024**2


def main(_: list[str]) -> None:
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for kind in (HEART, ABDOMEN):
            raw = Path(name) / kind.task
            kind.write(raw, CASES, 512)
            alone = 0.0
            for workers in range(1, (os.cpu_count() or 1) + 1):
                seconds = prepare(kind, raw, workers, CASES)
                alone = alone or seconds
                cells = [f"{seconds:.1f}", f"{seconds / CASES:.1f}", f"{alone / seconds:.2f}", f"{peak_gib():.2f}"]
                rows.append([kind.title, str(workers), *cells])
    print(f"{CASES} cases each, verified and prepared; {os.cpu_count()} cores\n")
    print(markdown(["case", "workers", "s in all", "s a case", "speed-up", "peak GiB a process"], rows))


if __name__ == "__main__":
    run(main)
