"""Positive proof: series of every class and transfer syntax, at random places, against their tags and stored bits."""

from __future__ import annotations

import errno
import random

import dicom_files
import numpy as np
import pytest
from dicom_files import CT, ENHANCED_CT, ENHANCED_MR, MR, PACKED, PET, PLAIN, SECONDARY_CAPTURE
from pydicom import uid
from scipy.spatial.transform import Rotation

from ummkd_tf.common.errors import InputError
from ummkd_tf.scans.dicom import DicomSeries
from ummkd_tf.scans.geometry import Volume

CLASSES = (CT, MR, PET, SECONDARY_CAPTURE, ENHANCED_CT, ENHANCED_MR)
SERIES = 300


def assert_same(volume: Volume, positions: np.ndarray, values: np.ndarray, tolerance_mm: float = 0.05) -> None:
    """Every pixel is a voxel of its own, within the tolerance of its position, with exactly its value."""
    index = np.round(volume.grid.index(positions)).astype(int)
    assert len(np.unique(index, axis=0)) == volume.array.size == len(values)
    assert np.linalg.norm(volume.grid.world(index) - positions, axis=1).max() < tolerance_mm
    assert np.array_equal(volume.array[tuple(index.T)], values.astype(np.float32))


def random_series(rng: np.random.Generator, sop_class: uid.UID, syntax: uid.UID) -> list[dicom_files.Dataset]:
    """A series of 3 to 6 slices: any orientation, spacing, slope, bits and sign; every fourth with a tilted gantry."""
    baseline = syntax == uid.JPEGBaseline8Bit
    turn = Rotation.random(random_state=int(rng.integers(2**31))).as_matrix()
    if rng.random() < 0.3:
        turn = np.round(turn / np.abs(turn).max(axis=0))  # along the patient's axes, if they are still perpendicular
        if not np.array_equal(turn.T @ turn, np.eye(3)):
            turn = np.eye(3)[:, rng.permutation(3)] * rng.choice([-1, 1], 3)
    row, column, _ = turn.T
    step = np.cross(row, column) * rng.uniform(0.5, 9) * rng.choice([-1, 1])
    if rng.random() < 0.25:
        step = step + column * rng.uniform(-0.5, 0.5) * np.linalg.norm(step)
    bits, signed = (8, False) if baseline else (int(rng.choice([8, 12, 16])), bool(rng.random() < 0.5))
    signed &= syntax not in PACKED or (bits == 16 and syntax != uid.JPEG2000Lossless)
    shape, low = 2 * rng.integers(2, 6, 2) + (0, 1), -(2 ** (bits - 1)) if signed else 0
    slope, first = rng.choice([1.0, 0.37, 2.5]), rng.uniform(-400, 400, 3)
    spacing = rng.uniform(0.3, 7, 2)
    slices = []
    for k in range(int(rng.integers(3, 7))):
        stored = rng.integers(low, low + 2**bits, shape).astype(np.int16 if signed else np.uint16)
        if baseline:
            stored[:] = stored[0, 0]  # a lossy code keeps one value
        elif syntax == uid.JPEGLSLossless:
            stored[:] = low + np.indices(shape).sum(0) * rng.integers(1, 5)  # pyjpegls packs nothing that would grow
        ds = dicom_files.dataset(stored, first + k * step, (*row, *column), spacing, sop_class, bits)
        if rng.random() < 0.5:
            ds.PhotometricInterpretation = "MONOCHROME1"
        if sop_class != MR:
            scale = slope if sop_class != PET else rng.uniform(0.1, 4)
            ds.RescaleSlope, ds.RescaleIntercept = dicom_files.decimals((scale, 0 if sop_class == PET else -1024))
        slices.append(ds)
    return slices


@pytest.mark.parametrize("sop_class", CLASSES, ids=lambda u: u.name.removesuffix(" Image Storage").replace(" ", "-"))
def test_series_are_read_as_their_tags_say(sop_class, tmp_path):
    """50 series of each class; together 300 in 9 transfer syntaxes."""
    if not uid_available(uid.JPEGLSLossless):
        print("JPEG-LS is left out: no encoder (pyjpegls) here")
    syntaxes = [syntax for syntax in (*PLAIN, *PACKED) if uid_available(syntax)]
    for n in range(SERIES // len(CLASSES)):
        rng = np.random.default_rng([CLASSES.index(sop_class), n])
        syntax, folder = syntaxes[n % len(syntaxes)], tmp_path / str(n)
        slices = random_series(rng, sop_class, syntax)
        positions, values = dicom_files.told(slices)
        if sop_class in (ENHANCED_CT, ENHANCED_MR):
            rng.shuffle(slices)  # type: ignore[arg-type]
            dicom_files.write(folder / "a.dcm", dicom_files.enhanced(slices, sop_class), syntax)
        else:
            for ds, name in zip(slices, random.Random(n).sample(range(len(slices)), len(slices)), strict=True):
                dicom_files.write(folder / f"IM{name}.dcm", ds, syntax, preamble=n % 10 != 0 or syntax not in PLAIN[:2])
        assert_same(DicomSeries.open(folder).read(), positions, values)


def test_a_full_disk_is_not_taken_for_damaged_pixels(tmp_path, monkeypatch):
    for ds in random_series(np.random.default_rng(0), CT, uid.JPEG2000Lossless):
        dicom_files.write(tmp_path / f"{ds.ImagePositionPatient}.dcm", ds, uid.JPEG2000Lossless)
    series = DicomSeries.open(tmp_path)

    def no_space(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(dicom_files.Dataset, "save_as", no_space)
    with pytest.raises(
        InputError, match=r"into a temporary file \(No space left on device\): make room there, or name"
    ):
        series.read()


def uid_available(syntax: uid.UID) -> bool:
    if syntax != uid.JPEGLSLossless:
        return True
    return bool(dicom_files.pydicom.pixels.get_encoder(syntax).is_available)
