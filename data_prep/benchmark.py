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
from pathlib import Path

from ummkd_tf.cli import run
from ummkd_tf.reporting import markdown

CASES = 4  # of each kind


def write_heart(folder: Path) -> None:
    """MM-WHS-sized: 512 × 512 × about 250 voxels."""
    from data_prep.phantom import MMWHS_IDS, write_cardiac

    write_cardiac(folder, num_ct=1, num_mr=0, seed=0, size=512)
    for other in MMWHS_IDS[1:CASES]:
        for kind in ("image", "label"):
            shutil.copy(*(folder / f"ct_train/ct_train_{i}_{kind}.nii.gz" for i in (MMWHS_IDS[0], other)))


def write_abdomen(folder: Path) -> None:
    """BTCV-sized: 512 × 512 voxels a slice."""
    from data_prep.phantom import BTCV_IDS, write_abdomen

    write_abdomen(folder, num_ct=1, num_mr=0, seed=0, size=512)
    for other in BTCV_IDS[1:CASES]:
        for kind, name in (("img", "img"), ("label", "label")):
            shutil.copy(*(folder / f"btcv/{kind}/{name}{i}.nii.gz" for i in (BTCV_IDS[0], other)))


KINDS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    # title: (writer, task, raw cases)
    "MM-WHS-sized": (write_heart, "cardiac", "mmwhs.find(raw, 'ct')"),
    "BTCV-sized": (write_abdomen, "abdomen", "btcv.find(raw)"),
}

# Verification and preparation as the program does them, without a split (one modality only).
_PROGRAM = """
import sys
from functools import partial
from pathlib import Path
from data_prep import btcv, mmwhs, pipeline
from ummkd_tf.tasks import get_task

def main():
    raw, out, task, workers = Path(sys.argv[1]), Path(sys.argv[2]), get_task(sys.argv[3]), int(sys.argv[4])
    cases = {cases}.cases
    with pipeline.Workers(workers) as pool:
        assert not pipeline.verify(cases, task, pool, lambda text: None)
        list(pool.each(partial(pipeline.prepare_case, task=task, out=out), cases, "prepare"))

if __name__ == "__main__":
    main()
"""


def main(_: list[str]) -> None:
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for title, (write, task, cases) in KINDS.items():
            raw = Path(name) / task
            write(raw)
            program = Path(name) / f"{task}.py"
            program.write_text(_PROGRAM.replace("{cases}", cases), encoding="utf-8")
            seconds = {}
            for workers in range(1, (os.cpu_count() or 1) + 1):
                out = Path(name) / f"{task}_{workers}"
                command = [sys.executable, str(program), str(raw), str(out), task, str(workers)]
                started = time.perf_counter()
                subprocess.run(command, check=True, stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": "."})
                seconds[workers] = time.perf_counter() - started
                # The largest process that has ended so far: an upper bound for this row.
                peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024**2
                speedup = seconds[1] / seconds[workers]
                cells = [f"{seconds[workers]:.1f}", f"{seconds[workers] / CASES:.1f}", f"{speedup:.2f}", f"{peak:.2f}"]
                rows.append([title, str(workers), *cells])
    print(f"{CASES} cases each, verified and prepared; {os.cpu_count()} cores\n")
    print(markdown(["case", "workers", "s in all", "s a case", "speed-up", "peak GiB a process"], rows))


if __name__ == "__main__":
    run(main)
