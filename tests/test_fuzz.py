"""The fuzz program finds what it looks for, and a small run of it is clean; `make fuzz` is the large one."""

from __future__ import annotations

import io
import os
import signal
import time
from pathlib import Path

import fuzz
import numpy as np
import odd_headers
import pytest
import SimpleITK as sitk

from ummkd_tf.common.errors import InputError
from ummkd_tf.scans.geometry import Volume, ras_affine

SMALL = ("NIfTI .nii.gz", "NIfTI .nii", "NRRD", "MetaImage", "DICOM", "PNG", "HDF5 case", "npz volume",
         "dataset.json", "split file", "run.json", "own.csv")  # fmt: skip


def refuse(path: Path) -> str:
    raise InputError(f"{path}: damaged: copy it again")


def stumble(path: Path) -> str:
    raise KeyError("arr_0")


# What a reader does with a damaged file: (the reader, whether a checksum could tell, the outcome)
BEHAVIOURS = {
    "refuses": (refuse, True, fuzz.CLEAR),
    "sees no difference": (lambda path: 1, True, fuzz.SAME),
    "reads other content": (lambda path: path.read_bytes(), False, fuzz.OTHER),
    "does not look at the checksum": (lambda path: path.read_bytes(), True, fuzz.SILENT),
    "stumbles": (stumble, True, fuzz.TRACEBACK),
    "never ends": (lambda path: time.sleep(60), True, fuzz.HANG),
    "takes 3 GiB": (lambda path: np.ones(3 * 2**30, np.uint8), True, fuzz.TOO_LARGE),
    "brings the process down": (lambda path: os.kill(os.getpid(), signal.SIGKILL), True, fuzz.CRASH),
}


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_outcomes_are_told_apart(behaviour, tmp_path):
    read, sealed, expected = BEHAVIOURS[behaviour]

    def make(folder: Path) -> Path:
        (folder / "a").write_bytes(b"whole" * 9)
        return folder / "a"

    def read_whole_or_damaged(path: Path) -> object:
        return 1 if path.read_bytes() == b"whole" * 9 else read(path)

    formats = {"toy": fuzz.Format(make, read_whole_or_damaged, sealed)}
    reader, log = fuzz.Reader(formats, seconds=1.0), io.StringIO()
    counts = fuzz.fuzz(formats, 2, 0, tmp_path / "kept", reader, log)
    reader.stop()
    assert counts["toy"] == {expected: 2}
    assert (tmp_path / "kept").exists() == (expected in fuzz.BUGS) == (expected in log.getvalue())


@pytest.mark.parametrize("name", SMALL)
def test_small_run_is_clean(name, tmp_path):
    chosen = {name: fuzz.FORMATS[name]}
    reader, log = fuzz.Reader(chosen), io.StringIO()
    counts = fuzz.fuzz(chosen, 40, 7, tmp_path, reader, log)
    reader.stop()
    assert log.getvalue() == ""
    assert counts[name].total() == 40 and counts[name][fuzz.CLEAR] > 3


@pytest.mark.parametrize("name", SMALL)
def test_mutations_are_reproducible(name, tmp_path):
    original = fuzz.FORMATS[name].make(tmp_path).read_bytes()
    for mutate in (*fuzz.BINARY, *fuzz.TEXT):
        first, second = (mutate(original, np.random.default_rng(3)) for _ in range(2))
        assert first == second


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_odd_headers_end_well(tmp_path):
    counts, bugs = odd_headers.fuzz(200, 7, tmp_path)
    assert bugs == []
    for of in counts.values():
        assert of[odd_headers.RIGHT] > 5 and of[odd_headers.REFUSED] > 5


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_reader_that_guesses_is_caught(tmp_path):
    """SimpleITK alone, as most programs use it: every kind of format shows silent errors."""

    def guess(path: Path) -> Volume:
        try:
            names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(path)) if path.is_dir() else str(path)
            image = sitk.ReadImage(names)
        except RuntimeError as error:
            raise InputError(f"{path}: {error}") from error
        axes = np.reshape(image.GetDirection(), (image.GetDimension(), -1)) * image.GetSpacing()
        affine = ras_affine(axes[:3, :3], np.array(image.GetOrigin()[:3]))
        return Volume(sitk.GetArrayFromImage(image).T.reshape(image.GetSize()[:3]), affine)

    for number, (name, make) in enumerate(odd_headers.FORMATS.items()):
        found = set()
        for n in range(60):
            folder = tmp_path / f"{name}-{n}"
            folder.mkdir()
            found.add(odd_headers.outcome(*make(folder, np.random.default_rng([7, number, n])), guess)[0])
        assert odd_headers.SILENT in found, name
