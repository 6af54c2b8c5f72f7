"""Kinds of odd scans, each with its outcome: the right volume, or a refusal that says what it is.

The truth of a DICOM series is computed from its tags (`dicom_files.told`), that of a file is the array written.
"""

from __future__ import annotations

import gzip
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import dicom_files
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from dicom_files import CR, CT, ENHANCED_CT, ENHANCED_MR, NM, SECONDARY_CAPTURE, Dataset, decimals
from pydicom import uid
from pydicom.dataset import FileMetaDataset
from scipy.spatial.transform import Rotation
from test_dicom_series import assert_same

from data_prep.workers import _lost
from ummkd_tf.common.errors import InputError
from ummkd_tf.evaluation import case_results
from ummkd_tf.scans.dicom import DicomSeries
from ummkd_tf.scans.geometry import Grid, Volume, straightened, to_sitk
from ummkd_tf.scans.itk import read_png
from ummkd_tf.scans.nifti import write_nifti
from ummkd_tf.scans.preprocessing import task_grid
from ummkd_tf.scans.reading import read_label, read_volume
from ummkd_tf.tasks import TASKS

SHAPE, STEP_MM = (10, 8, 6), 8.0
STORED = np.random.default_rng(0).integers(-1000, 1500, SHAPE).astype(np.int16)
AFFINE = np.array([[-6.0, 0, 0, 27], [0, -7, 0, 24], [0, 0, 8, -12], [0, 0, 0, 1]])
LABEL = (STORED > 600).astype(np.uint8) * 3 + (STORED < -600).astype(np.uint8)
OBLIQUE = Rotation.from_euler("xyz", (25, -14, 8), degrees=True).as_matrix()


@dataclass
class Series:
    """A DICOM folder to be written: `change(dataset, k)` on each slice, then `after(folder)` on the files.

    Attributes:
        told: What the truth is computed from where the tags say it in another way; by default the changed slices.
        tolerance_mm: Of positions.
    """

    change: Callable[[Dataset, int], object] = lambda ds, k: None
    after: Callable[[Path], object] = lambda folder: None
    orientation: tuple[float, ...] = (1, 0, 0, 0, 1, 0)
    step: tuple[float, ...] = (0, 0, STEP_MM)
    name: Callable[[int], str] = "IM{:04d}.dcm".format
    sop_class: uid.UID = CT
    preamble: bool = True
    told: Callable[[Dataset, int], object] = lambda ds, k: None
    tolerance_mm: float = 0.05
    slices: list[Dataset] = field(default_factory=list)

    def write(self, folder: Path) -> list[Dataset]:
        """Writes the files; returns the slices as they are meant."""
        meant = []
        for k in range(SHAPE[2]):
            position = np.array([-27, 24, -12]) + k * np.asarray(self.step)
            ds = dicom_files.dataset(STORED[:, :, k], position, self.orientation, sop_class=self.sop_class)
            self.change(ds, k)
            if self.name(k):
                dicom_files.write(folder / self.name(k), ds, preamble=self.preamble)
            self.told(ds, k)
            meant.append(ds)
        self.after(folder)
        return meant


def put(**tags: object) -> Callable[[Dataset, int], None]:
    """The same tags for all slices."""
    return lambda ds, k: [setattr(ds, name, value) for name, value in tags.items()] and None


def without(*names: str) -> Callable[[Dataset, int], None]:
    return lambda ds, k: [delattr(ds, name) for name in names if name in ds] and None


def raw(name: str, text: str) -> Callable[[Dataset, int], None]:
    """A decimal string as some programs write it, which pydicom would refuse to make."""

    def change(ds: Dataset, k: int) -> None:
        tag = dicom_files.pydicom.datadict.tag_for_keyword(name)
        content = text.encode() + b" " * (len(text) % 2)
        ds[name] = dicom_files.pydicom.dataelem.RawDataElement(
            dicom_files.pydicom.tag.Tag(tag), "DS", len(content), content, 0, False, True
        )

    return change


def moved(ds: Dataset, mm: tuple[float, float, float]) -> None:
    ds.ImagePositionPatient = decimals(np.array([float(v) for v in ds.ImagePositionPatient]) + mm)


def each(values: Callable[[int], object], name: str) -> Callable[[Dataset, int], None]:
    """A tag with a value for each slice."""
    return lambda ds, k: setattr(ds, name, values(k))


def two_decimals(ds: Dataset, k: int) -> None:
    ds.ImageOrientationPatient = [f"{v:.2f}" for v in OBLIQUE[:, :2].T.ravel()]


def exact_orientation(ds: Dataset, k: int) -> None:
    ds.ImageOrientationPatient = decimals(OBLIQUE[:, :2].T.ravel())


def overlay(ds: Dataset, k: int) -> None:
    """12 bits of values, and an overlay in the 13th."""
    values = (STORED[:, :, k].T + 1024).clip(0, 4095).astype(np.uint16)
    ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 12, 11, 0
    ds.PixelData = (values | np.uint16(0x1000)).tobytes()


def monochrome1(ds: Dataset, k: int) -> None:
    ds.PhotometricInterpretation = "MONOCHROME1"
    ds.RescaleSlope, ds.RescaleIntercept = "1", "-24"


def frames_of(sop_class: uid.UID, groups: bool) -> Callable[[Path], None]:
    def after(folder: Path) -> None:
        files = sorted(folder.iterdir())
        ds = dicom_files.enhanced([dicom_files.pydicom.dcmread(f) for f in files], sop_class)
        if not groups:
            ds.PixelSpacing, ds.ImagePositionPatient = ["7", "6"], ["-27", "24", "-12"]
            ds.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
            del ds.PerFrameFunctionalGroupsSequence, ds.SharedFunctionalGroupsSequence
        for file in files:
            file.unlink()
        dicom_files.write(folder / "frames.dcm", ds)

    return after


def two_time_points(folder: Path) -> None:
    frames_of(ENHANCED_MR, groups=True)(folder)
    ds = dicom_files.pydicom.dcmread(folder / "frames.dcm")
    for n, group in enumerate(ds.PerFrameFunctionalGroupsSequence):
        content = Dataset()
        content.TemporalPositionIndex = 1 + n // 3
        group.FrameContentSequence = [content]
    dicom_files.write(folder / "frames.dcm", ds)


def in_a_folder(*names: str) -> Callable[[Path], None]:
    """Moves files (all, where none is named) to a folder beside them."""

    def after(folder: Path) -> None:
        files = [folder / name for name in names] or list(folder.iterdir())
        (folder / "more").mkdir()
        for file in files:
            file.rename(folder / "more" / file.name)

    return after


def cut(name: str, length: int) -> Callable[[Path], None]:
    """A file that is not there whole, under the name that browsers give it."""

    def after(folder: Path) -> None:
        file = folder / name
        (folder / f"{name}.part").write_bytes(file.read_bytes()[:length])
        file.unlink()

    return after


def broken_link(folder: Path) -> None:
    (folder / "IM0003.dcm").rename(folder.parent / "moved.dcm")
    (folder / "IM0003.dcm").symlink_to("nowhere.dcm")


def add(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def compressed(folder: Path) -> None:
    file = folder / "IM0003.dcm"
    (folder / "IM0003.dcm.gz").write_bytes(gzip.compress(file.read_bytes()))
    file.unlink()


def structures(folder: Path) -> None:
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = uid.RTStructureSetStorage, "1.2.3.9", "RTSTRUCT"
    dicom_files.write(folder / "RS.dcm", ds)


def as_nifti(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    nib.save(nib.Nifti1Image(STORED, AFFINE), folder / "scan.nii.gz")


def as_masks(folder: Path) -> None:
    as_nifti(folder)
    shutil.copy(folder / "scan.nii.gz", folder / "spleen.nii.gz")
    (folder / "scan.nii.gz").rename(folder / "liver.nii.gz")


def half_a_slice(of: str) -> Callable[[Dataset, int], None]:
    """Two scans of three slices, one in the gaps of the other."""

    def change(ds: Dataset, k: int) -> None:
        setattr(ds, of, str(1 + k % 2))

    return change


TILT = np.radians(18.0)
# Kind: (the series, None for the right volume or words of the refusal)
DICOM_KINDS: dict[str, tuple[Series, str | None]] = {
    "as it should be": (Series(), None),
    # 1. geometry that is missing, impossible, or told by rules of a class
    "no PixelSpacing": (Series(without("PixelSpacing")), "IM0000.dcm: no PixelSpacing: the size of a pixel is unknown"),
    "empty PixelSpacing": (Series(put(PixelSpacing=None)), "no PixelSpacing: the size of a pixel is unknown"),
    "only ImagerPixelSpacing": (
        Series(lambda ds, k: (without("PixelSpacing")(ds, k), put(ImagerPixelSpacing=["7", "6"])(ds, k))),
        "no PixelSpacing, only ImagerPixelSpacing, which is measured at the detector"),
    "PixelSpacing of zero": (Series(put(PixelSpacing=["0", "0"])), r"PixelSpacing is 0\\0 mm: expected positive sizes"),
    "negative PixelSpacing": (Series(put(PixelSpacing=["-7", "6"])), r"PixelSpacing is -7\\6 mm: expected positive"),
    "one PixelSpacing": (Series(put(PixelSpacing="7")), "PixelSpacing is '7': expected 2 finite numbers"),
    "decimal commas": (Series(raw("PixelSpacing", "7,5\\6,5")),
        r"PixelSpacing is '7,5\\\\6,5': expected 2 finite numbers"),
    "PixelSpacing of words": (Series(raw("PixelSpacing", "nan\\6")), r"PixelSpacing is 'nan\\\\6': expected 2 finite"),
    "three PixelSpacing": (Series(put(PixelSpacing=["7", "6", "8"])), "expected 2 finite numbers"),
    "PixelSpacing with units": (Series(raw("PixelSpacing", "7mm\\6mm")), "expected 2 finite numbers"),
    "PixelSpacing with exponents": (Series(raw("PixelSpacing", "7.0E+00\\0.6e1"), told=put(PixelSpacing=[7, 6])), None),
    "PixelSpacing in one slice": (
        Series(lambda ds, k: without("PixelSpacing")(ds, k) if k else None),
        "IM0001.dcm: no PixelSpacing",
    ),
    "only NominalScannedPixelSpacing": (
        Series(lambda ds, k: (without("PixelSpacing")(ds, k), put(NominalScannedPixelSpacing=["7", "6"])(ds, k))),
        "no PixelSpacing: the size of a pixel is unknown",
    ),
    "class CR": (Series(sop_class=CR), None),
    "class XA": (Series(sop_class=uid.XRayAngiographicImageStorage), None),
    "a class of its own": (Series(sop_class=uid.UID("1.2.3.4.5")), None),
    "class NM, one frame a file": (Series(sop_class=NM), None),
    "class Secondary Capture": (Series(sop_class=SECONDARY_CAPTURE), None),
    "Enhanced CT": (Series(after=frames_of(ENHANCED_CT, groups=True)), None),
    "Enhanced CT, frames 30 mm aside": (
        Series(lambda ds, k: moved(ds, (30 * (k > 2), 0, 0)), after=frames_of(ENHANCED_CT, groups=True)),
        "frames.dcm, frame 4 lies 30.00 mm beside the line",
    ),
    "Enhanced MR, two time points": (
        Series(lambda ds, k: moved(ds, (0, 0, -STEP_MM * (k > 2) * 3)), after=two_time_points),
        r"alternate between 2 values of TemporalPositionIndex \(1, 2\): two scans in one series",
    ),
    "multi-frame RT Dose": (
        Series(after=frames_of(uid.RTDoseStorage, groups=False)),
        "6 frames in a file of class RT Dose Storage, which tells no place for each",
    ),
    "multi-frame NM": (
        Series(after=frames_of(NM, groups=False)),
        "frames.dcm: 6 frames in a file of class Nuclear Medicine Image Storage, which tells no place for each",
    ),
    "multi-frame Secondary Capture": (
        Series(after=frames_of(uid.MultiFrameGrayscaleWordSecondaryCaptureImageStorage, groups=False)),
        "6 frames in a file of class Multi-frame Grayscale Word Secondary Capture Image Storage"),
    "orientation of two decimals": (
        # Half of the last decimal over 63 and 50 mm; the distances along the slices are exact.
        Series(two_decimals, step=tuple(OBLIQUE[:, 2] * STEP_MM), told=exact_orientation, tolerance_mm=0.6),
        None,
    ),
    "orientation that is none": (
        Series(put(ImageOrientationPatient=["1", "0", "0", "0.5", "1", "0"])),
        r"ImageOrientationPatient is '1\\\\0\\\\0\\\\0.5\\\\1\\\\0': expected two perpendicular directions of length 1",
    ),
    "no position": (Series(without("ImagePositionPatient")), "no ImagePositionPatient or ImageOrientationPatient"),
    "infinite position": (Series(raw("ImagePositionPatient", "1e999\\0\\0")), "expected 3 finite numbers"),
    "oblique": (Series(exact_orientation, step=tuple(OBLIQUE[:, 2] * STEP_MM)), None),
    # 2. slices out of line
    "from the middle on 30 mm aside": (Series(lambda ds, k: moved(ds, (30 * (k > 2), 0, 0))),
        "IM0003.dcm lies 30.00 mm beside the line of the slices before it"),
    "one slice 25 mm aside": (Series(lambda ds, k: moved(ds, (0, 25 * (k == 2), 0))), "lies 25.00 mm beside the line"),
    "a tilted gantry": (Series(step=(0, STEP_MM * np.sin(TILT), STEP_MM * np.cos(TILT))), None),
    "positions within the plane": (Series(step=(STEP_MM, 0, 0)),
        "lie side by side in one plane: their positions and their orientation contradict each other"),
    "shifted further than any gantry": (Series(step=(0, 40, STEP_MM)), "shifted by 40.8 mm for 8.0 mm of distance"),
    "a missing slice": (Series(name=lambda k: "" if k == 3 else f"IM{k}.dcm"), "16.000 mm between IM2.dcm and IM4.dcm"),
    "the same position twice": (
        Series(lambda ds, k: moved(ds, (0, 0, -STEP_MM * (k == 3)))),
        "have the same position",
    ),
    "slices on a curve": (Series(lambda ds, k: moved(ds, (0.3 * k * k, 0, 0))), "beside the line of the slices before"),
    # 3. files by their content
    "the last without .dcm": (Series(name=lambda k: f"IM{k}" + ".dcm" * (k < 5)), None),
    "every kind of name": (Series(name=["a.dcm", "b", "c.dicom", "d.dcm.1", "e.IMA", "1.2.840.5"].__getitem__), None),
    "a name of another kind": (Series(name=lambda k: f"IM{k}" + (".bak" if k == 5 else ".dcm")), None),
    "a broken link": (Series(after=broken_link), "IM0003.dcm: a link to a file that is not there"),
    "a hidden slice": (Series(name=lambda k: "." * (k == 5) + f"IM{k}.dcm"), ".IM5.dcm: a hidden DICOM file"),
    "a Mac's file beside each": (Series(after=add("._IM0001.dcm", b"\0\5\26\7" + bytes(200))), None),
    "a slice in a folder": (
        Series(after=in_a_folder("IM0005.dcm")),
        "more: a folder with files of the same series as those beside it",
    ),
    "all in a folder": (Series(after=in_a_folder()), "no DICOM files, but folders: more; give the one that holds"),
    "a slice half downloaded": (Series(after=cut("IM0005.dcm", -50)), "IM0005.dcm.part: damaged or truncated: 110 byt"),
    "a header half downloaded": (Series(after=cut("IM0005.dcm", 200)), "IM0005.dcm.part: not a readable DICOM image"),
    "a copy of a slice": (
        Series(after=lambda folder: shutil.copy(folder / "IM0003.dcm", folder / "copy of IM0003.dcm.bak")),
        "IM0003.dcm and copy of IM0003.dcm.bak have the same position",
    ),
    "a packed slice": (Series(after=compressed), "IM0003.dcm.gz: not a readable DICOM image"),
    "a text beside it": (Series(after=add("notes.txt", b"hello")), None),
    "a report beside it": (Series(after=structures), None),
    "a file of nothing known": (Series(after=add("IM0007", b"hello" * 99)), "IM0007: not a readable DICOM image"),
    # 4. two scans in one series
    "two acquisitions in turns": (Series(half_a_slice("AcquisitionNumber")),
        r"neighbouring slices alternate between 2 values of AcquisitionNumber \(1, 2\): two scans in one series"),
    "two time points in turns": (Series(half_a_slice("TemporalPositionIdentifier")), "TemporalPositionIdentifier"),
    "two echoes in turns": (Series(half_a_slice("EchoNumbers")), "alternate between 2 values of EchoNumbers"),
    "two echo times in turns": (Series(half_a_slice("EchoTime")), "alternate between 2 values of EchoTime"),
    "two kernels in turns": (Series(each(lambda k: ("B30f", "B60f")[k % 2], "ConvolutionKernel")), "ConvolutionKernel"),
    "two voltages in turns": (Series(each(lambda k: ("80", "140")[k % 2], "KVP")), "2 values of KVP"),
    "two phases of the heart in turns": (
        Series(each(lambda k: (30.0, 70.0)[k % 2], "NominalPercentageOfCardiacPhase")),
        "alternate between 2 values of NominalPercentageOfCardiacPhase",
    ),
    "numbers in turns": (Series(each(lambda k: str(1 + k // 2 + 3 * (k % 2)), "InstanceNumber")), None),
    "numbers from head to feet": (Series(each(lambda k: str(9 - k), "InstanceNumber")), None),
    "echo times that differ by rounding": (Series(each(lambda k: ("2.3", "2.304")[k % 2], "EchoTime")), None),
    "two acquisitions, one above the other": (Series(each(lambda k: str(1 + k // 3), "AcquisitionNumber")), None),
    "an acquisition for each slice": (Series(each(lambda k: str(k + 1), "AcquisitionNumber")), None),
    # 10. values
    "MONOCHROME1": (Series(monochrome1), None),
    "slope for each slice": (Series(lambda ds, k: put(RescaleSlope=str(k + 0.5), RescaleIntercept="-3")(ds, k)), None),
    "an overlay in the high bits": (Series(overlay), None),
    "intercept in all but one": (
        Series(lambda ds, k: put(RescaleSlope="1", RescaleIntercept="-1024" if k != 3 else None)(ds, k)),
        "scan: RescaleIntercept is in 5 of 6 slices: expected it in all or none, .*; export the series again",
    ),
    "slope in two frames": (
        Series(lambda ds, k: put(RescaleSlope="2", RescaleIntercept="0")(ds, k) if k < 2 else None,
               after=frames_of(ENHANCED_CT, groups=True)),
        "RescaleSlope is in 2 of 6 slices"),
    "slope of zero": (Series(put(RescaleSlope="0", RescaleIntercept="0")), "RescaleSlope is 0"),
    "colour": (Series(put(SamplesPerPixel=3, PhotometricInterpretation="RGB")), r"a colour image \(RGB\)"),
    "rows that are too few": (Series(put(Rows=6)), "160 bytes of pixels, and the header tells of 120"),
    # 14. rounding is one value
    "noise of 1e-7": (
        Series(lambda ds, k: put(ImageOrientationPatient=decimals((1, 0, k * 1e-7, 0, 1, -k * 1e-7)))(ds, k)), None),
    "a spacing rounded": (Series(lambda ds, k: put(PixelSpacing=["0.78125", f"0.7812{5 * (k < 3)}"])(ds, k)), None),
    "positions of one decimal": (
        Series(
            lambda ds, k: put(ImagePositionPatient=[f"{float(v):.1f}" for v in ds.ImagePositionPatient])(ds, k),
            step=(0, 0, 2.46),
            tolerance_mm=0.11,
        ),
        None,
    ),
    "oblique positions of one decimal": (  # the header's own rounding; to the positions meant see below
        Series(
            lambda ds, k: (
                exact_orientation(ds, k),
                put(ImagePositionPatient=[f"{float(v):.1f}" for v in ds.ImagePositionPatient])(ds, k),
            ),
            step=tuple(OBLIQUE[:, 2] * 2.46),
            tolerance_mm=0.11,
        ),
        None,
    ),
    "two spacings": (Series(each(lambda k: ["7", str(6 + (k > 2))], "PixelSpacing")), "2 pixel spacings in one folder"),
    "two orientations": (
        Series(each(lambda k: decimals((1, 0, 0, 0, np.cos(k * 0.01), np.sin(k * 0.01))), "ImageOrientationPatient")),
        "6 orientations in one folder"),
    # 17. what it is
    "no preamble": (Series(preamble=False), None),
    "a NIfTI file in the folder": (Series(after=as_nifti),
        "no DICOM files, but scan.nii.gz; give the path of that file"),
    "masks of one organ each": (Series(after=as_masks),
        "no DICOM files, but liver.nii.gz, spleen.nii.gz; .* merge masks of one organ each .* TotalSegmentator .*--ml"),
    "a Git-LFS pointer": (
        Series(after=add("IM0003.dcm", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n")),
        "IM0003.dcm: a Git-LFS pointer, expected the file it stands for: run 'git lfs pull'"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DICOM_KINDS)
def test_dicom_kind(kind, tmp_path):
    series, refusal = DICOM_KINDS[kind]
    meant = series.write(tmp_path / "scan")
    if refusal:
        with pytest.raises(InputError, match=refusal):
            read_volume(tmp_path / "scan")
    else:
        assert_same(read_volume(tmp_path / "scan"), *dicom_files.told(meant), series.tolerance_mm)


# What a note must say: (kind of series, words)
NOTES = {
    "a text beside it": "left out, not DICOM: notes.txt",
    "a report beside it": "left out, no image: RS.dcm (RT Structure Set Storage)",
    "two acquisitions, one above the other": "AcquisitionNumber is not the same in all slices (1, 2)",
    "orientation of two decimals": "ImageOrientationPatient is rounded; its directions were made orthonormal",
    "numbers in turns": "the slices' numbers run 1, 4, 2, 5, 3, 6 … along their positions: are two scans in turns in "
    "this series?",
}


@pytest.mark.parametrize("kind", NOTES)
def test_what_is_handled_is_told(kind, tmp_path, caplog):
    DICOM_KINDS[kind][0].write(tmp_path / "scan")
    with caplog.at_level(logging.WARNING):
        assert DicomSeries.open(tmp_path / "scan").notes == (NOTES[kind],)
    assert caplog.messages == [f"{tmp_path / 'scan'}: {NOTES[kind]}"]


def test_rounded_positions_are_read_as_a_line_near_those_meant(tmp_path):
    """Given to a tenth of a millimetre, a position can be 0.087 mm off; the header holds no more. All have one line."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        turn = Rotation.random(random_state=seed).as_matrix()
        meant = rng.uniform(-200, 200, 3) + np.arange(20)[:, np.newaxis] * turn[:, 2] * rng.uniform(1, 8)
        for k, position in enumerate(meant):
            ds = dicom_files.dataset(STORED[:, :, 0], position, turn[:, :2].T.ravel())
            ds.ImagePositionPatient = [f"{v:.1f}" for v in position]
            dicom_files.write(tmp_path / f"{seed}/{k}.dcm", ds)
        found = DicomSeries.open(tmp_path / str(seed)).grid.world([(0, 0, k) for k in range(20)])
        assert np.linalg.norm(found - meant * (-1, -1, 1), axis=1).max() < 0.06


@pytest.mark.parametrize(("size", "rounded", "off_mm"), [(512, "0.7812", 0.05), (1024, "0.7812", 0.06)])
def test_a_spacing_rounded_in_some_slices_of_a_large_scan(size, rounded, off_mm, tmp_path):
    """A corner moves by the rounding times the size: 0.036 mm of 400 mm, 0.072 mm of 800 mm."""
    slices = []
    for k in range(3):
        slices.append(dicom_files.dataset(np.zeros((size, size), np.int8), (0, 0, k), bits=8))
        slices[-1].PixelSpacing = ["0.78125", rounded if k == 1 else "0.78125"]
        dicom_files.write(tmp_path / f"{k}.dcm", slices[-1])
    grid = DicomSeries.open(tmp_path).grid
    for k, ds in enumerate(slices):
        corner = np.array([float(ds.PixelSpacing[1]), float(ds.PixelSpacing[0])]) * (size - 1)
        assert np.linalg.norm(grid.world([size - 1, size - 1, k]) - (*-corner, k)) < off_mm
    with pytest.raises(InputError, match="2 pixel spacings in one folder"):
        slices[1].PixelSpacing = ["0.78", "0.78"]
        dicom_files.write(tmp_path / "1.dcm", slices[1])
        DicomSeries.open(tmp_path)


def test_one_multi_frame_file_is_a_volume(tmp_path):
    meant = Series(after=frames_of(ENHANCED_CT, groups=True)).write(tmp_path / "scan")
    assert_same(read_volume(tmp_path / "scan/frames.dcm"), *dicom_files.told(meant))
    Series().write(tmp_path / "single")
    with pytest.raises(InputError, match="one DICOM slice: expected a volume of at least two; give the folder"):
        read_volume(tmp_path / "single/IM0003.dcm")


def padded(folder: Path, stored: np.ndarray, change: Callable[[Dataset, int], object]) -> Path:
    """A series whose values are twice the stored ones, less 1000."""
    for k in range(stored.shape[2]):
        ds = dicom_files.dataset(stored[:, :, k], (0, 0, 3 * k))
        ds.RescaleSlope, ds.RescaleIntercept = "2", "-1000"
        change(ds, k)
        dicom_files.write(folder / f"{k}.dcm", ds)
    return folder


def tissue(kind: type, padding: int) -> np.ndarray:
    """Stored values 500, with a darkest of 200, and a last column of padding."""
    stored = np.full((4, 5, 3), 500, kind)
    stored[0, 0, 1] = 200
    stored[3] = padding
    return stored


TOLD = "15 voxels of padding (PixelPaddingValue) are not dark; they take the darkest other value, -600"
# Kind: (stored values, tags, the note)
PADDING: dict[str, tuple[np.ndarray, Callable[[Dataset, int], object], str]] = {
    "bright": (tissue(np.uint16, 65535), put(PixelPaddingValue=65535), TOLD),
    "darker than all": (tissue(np.int16, -2000), put(PixelPaddingValue=-2000), ""),
    "of the wrong sign": (tissue(np.int16, -2000), lambda ds, k: ds.add_new("PixelPaddingValue", "US", 63536), ""),
    "a range": (tissue(np.uint16, 1001), put(PixelPaddingValue=1000, PixelPaddingRangeLimit=1001), TOLD),
    "a range from above": (tissue(np.uint16, 1001), put(PixelPaddingValue=1002, PixelPaddingRangeLimit=1001), TOLD),
}


@pytest.mark.parametrize("kind", PADDING)
def test_padding_takes_the_darkest_other_value(kind, tmp_path, caplog):
    """Compared with stored values: 500 stands for 0, and the darkest, 200, for -600."""
    stored, change, note = PADDING[kind]
    expected = np.zeros(stored.shape, np.float32)
    expected[0, 0, 1] = expected[3] = -600
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(read_volume(padded(tmp_path / "scan", stored, change)).array, expected)
    assert caplog.messages == ([f"{tmp_path / 'scan'}: {note}"] if note else [])


def test_padding_of_each_slice(tmp_path):
    """What is padding in one slice is tissue in the others."""
    stored = tissue(np.uint16, 900)
    stored[:, :, 0][stored[:, :, 0] == 900] = 901
    values = read_volume(padded(tmp_path, stored, each(lambda k: 901 - k, "PixelPaddingValue"))).array
    assert values[3].tolist() == [[-600, -600, 800]] * 5  # 901, 900, and 900 where 899 is padding


@pytest.mark.parametrize(
    ("stored", "tags"),
    [
        (tissue(np.int16, 900), {"PixelPaddingValue": -2000}),
        (tissue(np.int16, 900), {"PixelPaddingRangeLimit": 900}),
        (np.full((4, 5, 3), 900, np.int16), {"PixelPaddingValue": 900}),
    ],
    ids=["no pixel holds it", "a limit alone", "all is padding"],
)
def test_without_padding_or_without_anything_else_values_stay(stored, tags, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        values = read_volume(padded(tmp_path, stored, put(**tags))).array
    assert np.array_equal(values, stored * np.float32(2) - 1000) and not caplog.messages


def test_a_labels_background_is_not_padding(tmp_path):
    label = padded(tmp_path, LABEL.astype(np.uint16), put(PixelPaddingValue=0, RescaleSlope="1", RescaleIntercept="0"))
    assert np.array_equal(read_label(label).array, LABEL)


def test_files_by_slice_whatever_their_order(tmp_path):
    names = ["f", "a", "c", "b", "e", "d"]
    Series(name=names.__getitem__).write(tmp_path)
    series = DicomSeries.open(tmp_path)
    assert [series.files[n].name for n in series.file_of_slice] == names


# --- files -----------------------------------------------------------------------------------------------------------


def nifti(path: Path, array: np.ndarray = STORED, affine: np.ndarray | None = AFFINE, **header: object) -> Path:
    image = nib.Nifti1Image(array, affine)
    for name, value in header.items():
        image.header[name] = value
    nib.save(image, path)
    return path


def itk(path: Path, *without_lines: bytes, array: np.ndarray = STORED) -> Path:
    """A NRRD or MetaImage file without the lines that begin so."""
    sitk.WriteImage(to_sitk(array, AFFINE), str(path), useCompression=False)
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join(line for line in lines if not line.startswith(without_lines or (b"\0",))))
    return path


def scaled(path: Path, field: bytes) -> Path:
    """A MetaImage file whose voxels stand for other values, e.g. "Slope = 2"."""
    return changed(itk(path), b"ElementSpacing", b"ElementToIntensityFunction" + field + b"\nElementSpacing")


def one_volume(path: Path) -> Path:
    sitk.WriteImage(sitk.JoinSeries(to_sitk(STORED, AFFINE)), str(path))
    return path


def renamed(path: Path, name: str) -> Path:
    return path.rename(path.with_name(name))


def scaled_label(path: Path) -> Path:
    image = nib.Nifti1Image(LABEL.astype(np.float64), AFFINE)
    image.set_data_dtype(np.uint8)
    image.header.set_slope_inter(None, None)
    nib.save(image, path)
    return path


def content(path: Path, text: bytes) -> Path:
    path.write_bytes(text)
    return path


def as_file(text: bytes, name: str = "a.nii.gz") -> Callable[[Path], Path]:
    return lambda folder: content(folder / name, text)


def changed(path: Path, old: bytes, new: bytes) -> Path:
    text = path.read_bytes()
    assert old in text
    return content(path, text.replace(old, new, 1))


def ras_nrrd(path: Path) -> Path:
    """The same place in the other of NRRD's usual axes."""
    for old, new in ((SPACE, b"RAS"), (b"(6,0,0) (0,7,0)", b"(-6,0,0) (0,-7,0)"), (b"(-27,-24,", b"(27,24,")):
        changed(path if path.exists() else itk(path), old, new)
    return path


SPACE, UNITS = b"left-posterior-superior", b'space units: "millimeter" "millimeter" "millimeter"\n'
WEB_PAGE = b"\n<!DOCTYPE html><html><body>Please sign in</body></html>" * 20
NO_PLACE = "the header does not say how large its voxels are and where they lie"
# Kind: (how to write it, the array it stands for or words of the refusal)
FILE_KINDS: dict[str, tuple[Callable[[Path], Path], np.ndarray | str]] = {
    # 9. one rule for all formats
    "NIfTI without orientation": (lambda f: content(f / "a.nii", nib.Nifti1Image(STORED, None).to_bytes()),
        "the header gives no orientation"),
    "NRRD": (lambda f: itk(f / "a.nrrd"), STORED),
    "NRRD without directions": (lambda f: itk(f / "a.nrrd", b"space directions"), NO_PLACE),
    "NRRD without space": (lambda f: itk(f / "a.nrrd", b"space:", b"space directions", b"space origin"), NO_PLACE),
    "NRRD without origin": (lambda f: itk(f / "a.nrrd", b"space origin"), NO_PLACE),
    "NRRD in RAS": (lambda f: ras_nrrd(f / "a.nrrd"), STORED),
    "NRRD of the scanner's axes": (lambda f: changed(itk(f / "a.nrrd"), SPACE, b"scanner-xyz"), NO_PLACE),
    "NRRD in millimeters": (lambda f: changed(itk(f / "a.nrrd"), b"kinds", UNITS + b"kinds"), STORED),
    "NRRD in cm": (
        lambda f: changed(itk(f / "a.nrrd"), b"kinds", UNITS.replace(b"millimeter", b"cm") + b"kinds"),
        "the header gives distances in cm: expected mm",
    ),
    "MetaImage": (lambda f: itk(f / "a.mha"), STORED),
    "MetaImage with a negative spacing": (lambda f: changed(itk(f / "a.mha"), b"ing = 6", b"ing = -6"), NO_PLACE),
    "MetaImage without spacing": (lambda f: itk(f / "a.mha", b"ElementSpacing"), NO_PLACE),
    "MetaImage without orientation": (lambda f: itk(f / "a.mha", b"TransformMatrix"), NO_PLACE),
    "MetaImage without origin": (lambda f: itk(f / "a.mha", b"Offset"), NO_PLACE),
    "MetaImage with neither": (lambda f: itk(f / "a.mha", b"Transform", b"Offset", b"Element", b"Center"),
        "unreadable"),
    # 17. what it is
    "gzip named .nii": (lambda f: renamed(nifti(f / "a.nii.gz"), "b.nii"), STORED),
    "plain file named .nii.gz": (lambda f: renamed(nifti(f / "a.nii"), "b.nii.gz"), STORED),
    "names in capitals": (lambda f: renamed(itk(f / "a.nrrd"), "A.NRRD"), STORED),
    "MetaImage in capitals": (lambda f: renamed(itk(f / "a.mha"), "A.MHA"), STORED),
    "NRRD named .nii.gz": (
        lambda f: renamed(itk(f / "a.nrrd"), "b.nii.gz"),
        r"begins as a \.nrrd file: rename it, as \*\.nrrd",
    ),
    "NIfTI named .nrrd": (lambda f: renamed(nifti(f / "a.nii"), "b.nrrd"), r"begins as a \.nii file"),
    "NIfTI named .mha": (lambda f: renamed(nifti(f / "a.nii.gz"), "b.mha"), r"begins as a \.nii\.gz file"),
    "NIfTI of two files": (lambda f: renamed(nifti(f / "a.nii"), "a.hdr"), "unknown image format"),
    "4D NIfTI with one volume": (lambda f: nifti(f / "a.nii.gz", STORED[..., np.newaxis]), STORED),
    "4D NIfTI with two": (lambda f: nifti(f / "a.nii.gz", np.stack([STORED] * 2, -1)), "4D image of shape"),
    "4D MetaImage with one volume": (lambda f: one_volume(f / "a.mha"), STORED),
    "a Git-LFS pointer": (as_file(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"),
        "a.nii.gz: a Git-LFS pointer, expected the file it stands for: run 'git lfs pull'"),
    "a web page as NIfTI": (as_file(WEB_PAGE), "a web page, expected a scan: download it again, signed in"),
    "a server's error": (as_file(b'<?xml version="1.0"?><Error>AccessDenied</Error>'), "a text of XML or JSON"),
    "an interface's error": (as_file(b'{"message": "Not Found"}'), "a text of XML or JSON, perhaps a server's error"),
    "a git-annex pointer": (as_file(b"/annex/objects/MD5E-s1--a.nii.gz"), "a git-annex pointer, .* 'git annex get'"),
    "packed by another program": (as_file(b"BZh91AY&SY" + bytes(99)), "a packed file, expected the file inside"),
    "a web page as NRRD": (as_file(WEB_PAGE, "a.nrrd"), "a web page, expected a scan"),
    "a zip archive": (as_file(b"PK\3\4" + bytes(400)), "a zip archive, expected the file inside: unpack it"),
    "DICOM named as NIfTI": (as_file(bytes(128) + b"DICM" + bytes(400), "a.nii"),
        "a DICOM file with the name of another"),
    "metres": (lambda f: nifti(f / "a.nii", xyzt_units=1), "distances in meter: expected mm"),
    "MetaImage with a slope of one": (lambda f: scaled(f / "a.mha", b"Slope = 1"), STORED),
    "MetaImage with a slope": (lambda f: scaled(f / "a.mha", b"Slope = 2"),
        "a.mha: ElementToIntensityFunctionSlope is 2: expected 1 or no such field; store the values themselves"),
    "MetaImage with an offset": (lambda f: scaled(f / "a.mha", b"Offset = -1024"),
        "a.mha: ElementToIntensityFunctionOffset is -1024: expected 0 or no such field"),
    "MetaImage in cm": (
        lambda f: content(f / "a.mha", itk(f / "a.mha").read_bytes().replace(b"NDims", b"DistanceUnits = cm\nNDims")),
        "the header gives distances in cm: expected mm"),
}  # fmt: skip
LABEL_KINDS: dict[str, tuple[Callable[[Path], Path], np.ndarray | str]] = {
    "stored with a slope": (lambda f: scaled_label(f / "a.nii.gz"), LABEL),
    "0.9999999": (lambda f: nifti(f / "a.nii.gz", (LABEL * (1 - 1e-7)).astype(np.float32)), LABEL),
    "interpolated": (
        lambda f: nifti(f / "a.nii.gz", (LABEL * 0.99).astype(np.float32)),
        r"label voxels are not whole numbers \(first: 2.97\): expected class values; save the label map without",
    ),
}


@pytest.mark.parametrize("kind", FILE_KINDS)
def test_file_kind(kind, tmp_path):
    check(read_volume, *FILE_KINDS[kind], tmp_path)


@pytest.mark.parametrize("kind", LABEL_KINDS)
def test_label_kind(kind, tmp_path):
    check(read_label, *LABEL_KINDS[kind], tmp_path)


def check(
    read: Callable[[Path], Volume], write: Callable[[Path], Path], expected: np.ndarray | str, folder: Path
) -> None:
    path = write(folder)
    if isinstance(expected, str):
        with pytest.raises(InputError, match=expected):
            read(path)
    else:
        volume = read(path)
        assert np.array_equal(volume.array, expected)
        np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-5)


def test_a_damaged_qform_beside_a_sound_sform_is_told(tmp_path, caplog):
    """A quaternion longer than 1 is of no direction; the sform counts."""
    image = nib.Nifti1Image(STORED, AFFINE)
    image.set_qform(AFFINE, 1)
    image.header["quatern_b"] = 1.5
    content(tmp_path / "a.nii", image.header.binaryblock + bytes(4) + STORED.tobytes(order="F"))
    with caplog.at_level(logging.WARNING):
        np.testing.assert_allclose(read_volume(tmp_path / "a.nii").affine, AFFINE)
    assert re.search(r"a\.nii: its qform is damaged \(.+\); the sform is used", caplog.messages[0])


@pytest.mark.parametrize("given", ["file", "folder"])
def test_a_dicom_object_that_is_no_image_is_named(given, tmp_path):
    structures = Dataset()
    structures.file_meta = FileMetaDataset()
    structures.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    structures.SOPClassUID, structures.SOPInstanceUID = uid.RTStructureSetStorage, "1.2.3"
    structures.save_as(tmp_path / "rtss.dcm", enforce_file_format=True)
    with pytest.raises(InputError, match=r"DICOM, but no image: rtss\.dcm \(RT Structure Set Storage\)"):
        read_volume(tmp_path / "rtss.dcm" if given == "file" else tmp_path)


def test_two_forms_that_differ_are_told(tmp_path, caplog):
    image = nib.Nifti1Image(STORED, AFFINE)
    moved_affine = AFFINE + np.eye(4)[:, :1] @ np.eye(4)[3:] * 5
    image.set_qform(moved_affine, 1)
    nib.save(image, tmp_path / "a.nii")
    with caplog.at_level(logging.WARNING):
        np.testing.assert_allclose(read_volume(tmp_path / "a.nii").affine, AFFINE)
    assert caplog.messages[0].endswith(
        "its qform has position or direction off by 5.00 mm, the sform; the sform is used"
    )
    image.header["pixdim"][1:4], image.header["qform_code"] = 1, 0
    content(tmp_path / "b.nii", image.header.binaryblock + bytes(4) + STORED.tobytes(order="F"))
    with caplog.at_level(logging.WARNING):
        np.testing.assert_allclose(read_volume(tmp_path / "b.nii").affine, AFFINE)
    assert caplog.messages[1].endswith(
        "its pixdim has voxels of 1 × 1 × 1 mm, its sform of 6 × 7 × 8 mm; the sform is used"
    )


# --- 12. paths that are not UTF-8 ------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux only")
def test_paths_that_are_not_utf8(tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    folder.mkdir()
    meant = Series().write(tmp_path / "plain")
    shutil.copytree(tmp_path / "plain", folder / "dicom")
    assert_same(read_volume(folder / "dicom"), *dicom_files.told(meant))
    for name in ("a.nrrd", "a.mha", "a.nii.gz", "a.mhd"):
        (nifti if name.endswith("gz") else itk)(tmp_path / name)
        shutil.copy(tmp_path / name, folder / name)
    shutil.copy(tmp_path / "a.raw", folder / "a.raw")
    for name in ("a.nrrd", "a.mha", "a.nii.gz", "a.mhd"):
        assert np.array_equal(read_volume(folder / name).array, STORED), name
    sitk.WriteImage(sitk.GetImageFromArray(LABEL[:, :, 0].T), str(tmp_path / "a.png"))
    shutil.copy(tmp_path / "a.png", folder / "a.png")
    assert np.array_equal(read_png(folder / "a.png"), LABEL[:, :, 0])
    write_nifti(folder / "written.nii.gz", Volume(LABEL, AFFINE))
    with pytest.raises(InputError, match=r"caf\\udce9/none.nii: no such file"):
        read_volume(folder / "none.nii")


@pytest.mark.parametrize(
    ("exit_codes", "told"),
    [
        ({7: -9, 8: -15}, "ct_1: the worker process was killed (signal 9; often the system's out-of-memory killer)"),
        ({7: -15, 8: 3}, "ct_2: the worker process ended with exit code 3"),
        ({7: -15, 8: -15}, "ct_1, ct_2: the worker process was ended by signal 15 (Terminated)"),
    ],
)
def test_exit_codes_in_words(exit_codes, told):
    assert str(_lost(exit_codes, {7: "ct_1", 8: "ct_2"}, "prepare")).startswith(f"{told} during 'prepare': ")


# --- 15. what is written can be read ---------------------------------------------------------------------------------


def orientations() -> list[np.ndarray]:
    """The 48 ways of putting axes along the patient's, and 200 oblique ones, with the noise of a header."""
    rng = np.random.default_rng(0)
    axes = [np.eye(3)[:, list(order)] for order in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))]
    signs = np.array(list(np.ndindex(2, 2, 2))) * 2 - 1
    turns = Rotation.random(200, random_state=0).as_matrix() * rng.choice([-1, 1], (200, 1, 3))
    return [a * s for a in axes for s in signs] + [t + rng.normal(size=(3, 3)) * 10.0**-e for t, e in
                                                    zip(turns, rng.integers(5, 12, 200), strict=True)]  # fmt: skip


def test_written_files_are_read_by_itk_and_nibabel(tmp_path):
    rng = np.random.default_rng(1)
    for n, directions in enumerate(orientations()):
        affine = np.eye(4)
        affine[:3, :3] = directions * rng.uniform(0.4, 8, 3)
        affine[:3, 3] = rng.uniform(-300, 300, 3)
        volume, path = Volume(LABEL, affine), tmp_path / "a.nii.gz"
        write_nifti(path, volume)
        theirs = sitk.ReadImage(str(path))
        read = nib.load(path)
        assert (int(read.header["sform_code"]), int(read.header["qform_code"])) == (1, 1)
        assert np.array_equal(np.asarray(read.dataobj), LABEL)
        assert np.array_equal(sitk.GetArrayFromImage(theirs).T, LABEL)
        for corner in np.ndindex(2, 2, 2):
            index = np.array(corner) * (np.array(SHAPE) - 1)
            x, y, z = theirs.TransformIndexToPhysicalPoint(index.tolist())
            world = volume.grid.world(index)
            for found in (
                (-x, -y, z),
                Grid(read.affine, SHAPE).world(index),
                Grid(read.get_qform(), SHAPE).world(index),
            ):
                assert np.linalg.norm(found - world) < 0.05, n


# --- 11. tilted grids ------------------------------------------------------------------------------------------------


def tilted() -> Grid:
    """18° between the slices' normal and the way the table goes, as of a CT's gantry."""
    affine = np.diag([-2.0, -2.0, 5.0, 1.0])
    affine[:3, 1] = np.array([0, -np.cos(TILT), np.sin(TILT)]) * 2
    return Grid(affine, (40, 50, 30))


def test_volume_of_a_tilted_voxel():
    assert tilted().voxel_volume_mm3 == pytest.approx(2 * 2 * 5 * np.cos(TILT))
    assert Grid(AFFINE, SHAPE).voxel_volume_mm3 == pytest.approx(6 * 7 * 8)


def test_a_tilted_grid_is_straightened():
    grid = tilted()
    upright = straightened(grid)
    assert grid.is_tilted and not upright.is_tilted
    assert upright.spacing_mm == pytest.approx(grid.spacing_mm) and upright.axes == grid.axes
    np.testing.assert_allclose(upright.affine[:3, :3], np.diag([-2, -2, 5]), atol=1e-9)
    corners = np.array(list(np.ndindex(2, 2, 2))) * np.array(grid.shape) - 0.5
    index = upright.index(grid.world(corners))
    assert (index > -0.5 - 1e-6).all() and (index < np.array(upright.shape) - 0.5 + 1e-6).all()
    same = Grid(AFFINE, SHAPE)
    assert straightened(same) is same
    with pytest.raises(ValueError, match="perpendicular axes"):
        write_nifti("a.nii", Volume(np.zeros(grid.shape, np.uint8), grid.affine))


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_the_task_grid_of_a_tilted_scan_is_upright(task):
    grid = tilted()
    center = (np.array(grid.shape) - 1) / 2
    prepared = task_grid(grid, center, task)
    assert not prepared.is_tilted
    np.testing.assert_allclose(prepared.world((np.array(prepared.shape) - 1) / 2), grid.world(center), atol=1e-6)
    assert prepared.spacing_mm == pytest.approx(task.spacing_mm)


def test_distances_on_a_tilted_scan_are_those_of_the_patient(monkeypatch, caplog):
    """Two balls 30 mm apart along the tilted rows and slices, against the distance of their true positions."""
    grid, task = tilted(), TASKS["abdomen"]
    positions = grid.world(np.argwhere(np.ones(grid.shape, bool)))
    middle = grid.world((np.array(grid.shape) - 1) / 2)

    def ball(center: np.ndarray, places: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        return (np.linalg.norm(places - center, axis=1) < 9).reshape(shape).astype(np.uint8)

    moved = middle + np.array([0, 18, 24])
    reference = ball(middle, positions, grid.shape)
    prepared = task_grid(grid, (np.array(grid.shape) - 1) / 2, task)
    there = prepared.world(np.argwhere(np.ones(prepared.shape, bool)))
    probabilities = np.eye(task.num_classes, dtype=np.float32)[ball(moved, there, prepared.shape)]
    case = SimpleNamespace(modality="ct", grid=prepared, original=grid, original_label=reference)
    dataset = SimpleNamespace(task=task, case=lambda case_id, original_label: case)

    with caplog.at_level(logging.WARNING):
        found = case_results.evaluate(
            lambda case, grid: case_results.classes_on(probabilities, case.grid, grid),
            dataset,
            ["a"],
            original_grid=True,
        )["a"]

    liver = found["classes"]["liver"]
    assert caplog.messages == ["a: the scan's slices are tilted; it is evaluated on an upright grid over it"]
    assert liver["hausdorff_mm"] == pytest.approx(30, abs=5)  # a slice, since slices are 8 mm thick
    assert reference.sum() * grid.voxel_volume_mm3 == pytest.approx(4 / 3 * np.pi * 9**3, rel=0.03)
