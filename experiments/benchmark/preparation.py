"""Part `preparation`: one MM-WHS-sized case, against a plain SimpleITK script with the same resampling."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from data_prep import pipeline
from data_prep.phantom.sets import write_cardiac
from data_prep.sources import mmwhs
from experiments.benchmark.results import OURS, Measurement, Part
from experiments.benchmark.timing import interleaved, timed
from ummkd_tf.tasks import TASKS, Task

PLAIN = "plain SimpleITK"
ROOT = Path(__file__).parents[2]


def write_heart(folder: Path, cases: int, size: int) -> None:
    """Equal raw CT of MM-WHS's size: at size 512, 512 × 512 × about 250 voxels. One is drawn and copied."""
    write_cardiac(folder, num_ct=1, num_mr=0, seed=0, size=size)
    for other in mmwhs.IDS[1:cases]:
        for kind in ("image", "label"):
            shutil.copy(*(folder / f"ct_train/ct_train_{i}_{kind}.nii.gz" for i in (mmwhs.IDS[0], other)))


# Preparation as the program does it, without a split (one modality only).
_PROGRAM = """
import sys
from functools import partial
from pathlib import Path
from data_prep import pipeline
from data_prep.sources import mmwhs
from data_prep.workers import Workers
from ummkd_tf.tasks import get_task

def main():
    raw, out, task = Path(sys.argv[1]), Path(sys.argv[2]), get_task(sys.argv[3])
    workers, count = map(int, sys.argv[4:])
    cases = mmwhs.find(raw, "ct").cases[:count]
    with Workers(workers) as pool:
        visits = list(pool.each(partial(pipeline.visit, task=task, out=out), cases, "prepare"))
        assert not any(visit.problems for visit in visits)

if __name__ == "__main__":
    main()
"""


def prepare_hearts(raw: Path, workers: int, cases: int) -> float:
    """Seconds to verify and prepare the first `cases` raw cases in a new process, into an empty folder."""
    with tempfile.TemporaryDirectory() as name:
        program = Path(name) / "program.py"
        program.write_text(_PROGRAM, encoding="utf-8")
        command = [sys.executable, *map(str, (program, raw, Path(name) / "out", "cardiac", workers, cases))]
        started = time.perf_counter()
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL, env=environment)
        return time.perf_counter() - started


def measure(size: int, rounds: int) -> Part:
    """Times of both, in one process.

    Args:
        size: Rows and columns of the raw scan; MM-WHS has 512.
        rounds: How often.
    """
    task = TASKS["cardiac"]
    with tempfile.TemporaryDirectory() as name:
        raw, out = Path(name) / "raw", Path(name) / "out"
        write_heart(raw, 1, size)
        (case,) = mmwhs.find(raw, "ct").cases
        written = out / pipeline.STAGING / f"{case.case_id}.h5"

        def ours() -> None:
            written.unlink(missing_ok=True)  # what is there is not prepared again
            assert not pipeline.visit(case, task=task, out=out).problems

        image, label = Path(case.image), Path(case.label)
        runs = {OURS: timed(ours), PLAIN: timed(lambda: plain(image, label, Path(name) / "plain.h5", task))}
        timings = interleaved(runs, rounds)
        voxels = "×".join(str(n) for n in sitk.ReadImage(str(image)).GetSize())
    rows = [Measurement(f"one heart CT of {voxels}", contender, timing) for contender, timing in timings.items()]
    notes = [
        "Ours also checks image and label against each other, hashes the sources, keeps every class's volume in the "
        "label map and stores it on the scan's own grid too; the plain script takes the nearest label."
    ]
    return Part("preparation", "Preparation", rows, notes=notes)


def plain(image_path: Path, label_path: Path, out: Path, task: Task) -> None:
    """What one writes for the same result: read, orient, centre, resample, clip, z-score, save."""
    orientation = task.axes[::-1]  # arrays are indexed in the order opposite to SimpleITK's
    image = sitk.DICOMOrient(sitk.ReadImage(str(image_path), sitk.sitkFloat32), orientation)
    label = sitk.DICOMOrient(sitk.ReadImage(str(label_path)), orientation)
    classes = sitk.GetArrayFromImage(label)
    foreground = np.isin(classes, [value for value, c in mmwhs.CLASSES.items() if c])
    center = [float(axis.mean()) for axis in np.nonzero(foreground)][::-1]
    center[0] = (image.GetSize()[0] - 1) / 2
    depth = round(image.GetSize()[0] * image.GetSpacing()[0] / task.spacing_mm[2])
    size = (depth, task.size[1], task.size[0])
    spacing = task.spacing_mm[::-1]
    direction = np.array(image.GetDirection()).reshape(3, 3)
    middle = (np.array(size) - 1) / 2 * spacing
    origin = np.array(image.TransformContinuousIndexToPhysicalPoint(center)) - direction @ middle
    direction_cosines, darkest = image.GetDirection(), float(sitk.GetArrayViewFromImage(image).min())

    def resampled(volume: sitk.Image, interpolator: int, outside: float) -> NDArray:
        result = sitk.Resample(
            volume, size, sitk.Transform(), interpolator, origin.tolist(), spacing, direction_cosines, outside
        )
        return sitk.GetArrayFromImage(result)

    values, labels = resampled(image, sitk.sitkLinear, darkest), resampled(label, sitk.sitkNearestNeighbor, 0)
    values = np.clip(values, *np.percentile(values, (0, 98)))
    values = (values - values.mean()) / values.std()
    result = np.zeros(labels.shape, np.uint8)
    for value, c in mmwhs.CLASSES.items():
        result[labels == value] = c
    with h5py.File(out, "w") as file:
        for name, array in (("image", values.astype(np.float32)), ("label", result)):
            file.create_dataset(name, data=array, chunks=(*array.shape[:2], 1), compression="gzip", compression_opts=1)
