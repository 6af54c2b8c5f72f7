"""Phantoms as files in the layouts of BTCV, CHAOS and MM-WHS."""

from __future__ import annotations

import gzip
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from data_prep.phantom.patient import Anatomy, PhantomCase, draw_anatomy
from data_prep.phantom.scanner import PhantomOptions, ct_image, mr_image
from data_prep.phantom.templates import ABDOMEN, CARDIAC, Template
from ummkd_tf.scans.geometry import Affine, Grid, to_sitk

BTCV_LABELS = {
    "spleen": 1,
    "right_kidney": 2,
    "left_kidney": 3,
    "gallbladder": 4,
    "liver": 6,
    "stomach": 7,
    "aorta": 8,
    "inferior_vena_cava": 9,
}
CHAOS_GREYS = {"liver": 63, "right_kidney": 126, "left_kidney": 189, "spleen": 252}
MMWHS_LABELS = {
    "lv_myocardium": 205,
    "left_atrium": 420,
    "left_ventricle": 500,
    "right_atrium": 550,
    "right_ventricle": 600,
    "ascending_aorta": 820,
    "pulmonary_artery": 850,
}


@dataclass(frozen=True)
class ChaosScan:
    """One of CHAOS's MR scans.

    Attributes:
        slice_range_mm: Range of the slice distance.
        step: Step of the file numbers.
        images: Subfolder of `DICOM_anon`, sequence and first file number of each image. The PNGs carry the names of
            the first image's files.
    """

    slice_range_mm: tuple[float, float]
    step: int
    images: tuple[tuple[str, str, int], ...]


CHAOS_SCANS = {
    "T2SPIR": ChaosScan((6.0, 8.0), 1, (("", "t2spir", 1),)),
    "T1DUAL": ChaosScan((5.5, 7.0), 2, (("InPhase", "t1_in", 2), ("OutPhase", "t1_out", 1))),
}
_SLICE_THICKNESS_ERROR = 1.6  # as in CHAOS: slices 2.0 mm apart with a SliceThickness of 3.2
_NUM_421 = 5


def _grid(
    anatomy: Anatomy, axes: Sequence[int], signs: Sequence[int], spacing_mm: Sequence[float], shape: Sequence[int]
) -> Grid:
    """A grid around the middle of the field of view; index axis n runs along world axis `axes[n]`, `signs[n]`."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for n in range(3):
        affine[axes[n], n] = signs[n] * spacing_mm[n]
    center = anatomy.world_from_patient @ (*anatomy.template.center_mm, 1)
    # Thousandths of a millimetre fit a DICOM decimal string.
    affine[:3, 3] = np.round(center[:3] - affine[:3, :3] @ (np.asarray(shape) - 1) / 2, 3)
    i, j, k = (int(n) for n in shape)
    return Grid(affine, (i, j, k))


def _scale(anatomy: Anatomy) -> NDArray[np.float64]:
    return np.linalg.norm(anatomy.world_from_patient[:3, :3], axis=0)


def _abdomen_grid(anatomy: Anatomy, rng: np.random.Generator, size: int, slice_mm: float, signs: Sequence[int]) -> Grid:
    """Transverse slices that hold the whole body; 1.2–1.7 mm pixels at size 256."""
    width = 2 * anatomy.template.organs[0].semi_axes_mm[0]
    pixel = round(width * _scale(anatomy)[0] * rng.uniform(1.1, 1.2) / size, 4)
    slices = math.ceil(230 * _scale(anatomy)[2] / slice_mm)
    return _grid(anatomy, (0, 1, 2), signs, (pixel, pixel, slice_mm), (size, size, slices))


def btcv_grid(anatomy: Anatomy, case: PhantomCase, size: int) -> Grid:
    """Axes L, A, S as BTCV's; slices 3 mm apart, 5 mm in every fourth case."""
    slice_mm = 5.0 if int(case.case_id) % 4 == 3 else 3.0
    return _abdomen_grid(anatomy, case.rng("grid"), size, slice_mm, signs=(-1, 1, 1))


def chaos_grid(anatomy: Anatomy, case: PhantomCase, size: int, scan: str) -> Grid:
    """Axes L, P, S (DICOM's identity orientation); each scan has its own spacing."""
    rng = case.rng(f"{scan}/grid")
    slice_mm = round(rng.uniform(*CHAOS_SCANS[scan].slice_range_mm), 1)
    return _abdomen_grid(anatomy, rng, size, slice_mm, signs=(-1, -1, 1))


def mmwhs_grid(anatomy: Anatomy, case: PhantomCase, size: int) -> Grid:
    """A box around the heart (CT) or through the chest (MR); axis order, directions and spacing by case."""
    rng = case.rng("grid")
    # 7 and 48 (orders × directions) have no common divisor: the ids of a modality never share an orientation.
    orders = ((0, 1, 2), (0, 2, 1), (1, 2, 0), (1, 0, 2), (2, 0, 1), (2, 1, 0))
    turn = 7 * int(case.case_id) + (case.modality == "mr")
    order, flips = orders[turn % 6], turn // 6 % 8
    signs = [-1 if flips >> n & 1 else 1 for n in range(3)]
    field_mm = rng.uniform(190, 215) if case.modality == "ct" else rng.uniform(270, 330)
    pixel = round(field_mm / size, 4)
    slice_mm = round(pixel * rng.uniform(1.1, 1.5), 4)
    slices = math.ceil(170 * _scale(anatomy).max() / slice_mm)
    return _grid(anatomy, order, signs, (pixel, pixel, slice_mm), (size, size, slices))


def _labels(template: Template, values: Mapping[str, int], tissues: NDArray[np.uint8]) -> NDArray[np.int16]:
    """Label map in a data set's own values; every other tissue is 0."""
    return np.array([values.get(tissue, 0) for tissue in template.signals], np.int16)[tissues]


def _write_nifti(path: Path, array: NDArray, affine: Affine) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(array, affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    image.header.set_xyzt_units("mm")
    # A gzip header carries a time unless told not to.
    path.write_bytes(gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))


def _write_sitk(path: Path, image: sitk.Image) -> None:
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.SetFileName(str(path))
    try:
        writer.Execute(image)
    except RuntimeError as error:  # also on a full disk, with a misleading text
        raise OSError(f"SimpleITK could not write {path.name}; is the disk full?") from error


@dataclass(frozen=True)
class _DicomSeries:
    case: PhantomCase
    name: str
    files: tuple[str, ...]
    descending: bool  # file order against z order
    thickness_mm: float

    def write(self, folder: Path, image: NDArray[np.int16], grid: Grid) -> None:
        """One file a slice, `image` [i, j, k]; `grid` has its first two axes along +L and +P."""
        folder.mkdir(parents=True)
        for position, (name, k) in enumerate(self._slices(grid), start=1):
            affine = grid.affine.copy()
            affine[:3, 3] = grid.world((0, 0, k))
            picture = to_sitk(image[:, :, k : k + 1].astype(np.uint16), affine)
            for tag, value in self._tags(picture, position).items():
                picture.SetMetaData(tag, value)
            _write_sitk(folder / f"{name}.dcm", picture)

    def write_ground(self, folder: Path, label: NDArray[np.int16], grid: Grid) -> None:
        """One 8-bit grey PNG a slice, under the slice's name."""
        folder.mkdir(parents=True)
        for name, k in self._slices(grid):
            _write_sitk(folder / f"{name}.png", sitk.GetImageFromArray(label[:, :, k].T.astype(np.uint8)))

    def _slices(self, grid: Grid) -> Iterator[tuple[str, int]]:
        ks = range(grid.shape[2])
        return zip(self.files, reversed(ks) if self.descending else ks, strict=True)

    def _tags(self, picture: sitk.Image, position: int) -> dict[str, str]:
        spacing = picture.GetSpacing()
        return {
            "0008|0016": "1.2.840.10008.5.1.4.1.1.4",  # MR Image Storage
            "0008|0018": self.case.uid(self.name, position),
            "0008|0020": "20180101",  # GDCM would put today's date
            "0008|0030": "120000",
            "0008|0060": "MR",
            "0008|103e": self.name,
            "0010|0010": f"PHANTOM^{self.case.case_id}",
            "0010|0020": f"PHANTOM_{self.case.case_id}",
            "0018|0050": f"{self.thickness_mm:.4f}",
            "0018|0088": f"{spacing[2]:.4f}",
            "0020|000d": self.case.uid("study"),
            "0020|000e": self.case.uid("series", self.name),
            "0020|0013": str(position),
            "0020|0032": "\\".join(f"{x:.3f}" for x in picture.GetOrigin()),
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0020|0052": self.case.uid("frame"),
            "0028|0030": f"{spacing[1]:.4f}\\{spacing[0]:.4f}",
            # Set here because GDCM adds them by itself, but only after the process has read a DICOM file.
            "0028|1052": "0",
            "0028|1053": "1",
            "0028|1054": "US",
        }


def write_btcv(folder: Path, case: PhantomCase, options: PhantomOptions) -> None:
    anatomy = draw_anatomy(ABDOMEN, case)
    grid = btcv_grid(anatomy, case, options.size)
    tissues = anatomy.tissue_map(grid)
    label = _labels(ABDOMEN, BTCV_LABELS, tissues).astype(np.uint8)
    noise = 1e-6 if case.has("label_header_noise") else 0.0
    image = ct_image(anatomy, tissues, grid, case, options)
    _write_nifti(folder / f"btcv/img/img{case.case_id}.nii.gz", image, grid.affine)
    _write_nifti(folder / f"btcv/label/label{case.case_id}.nii.gz", label, grid.affine * (1 + noise))


def write_chaos(folder: Path, case: PhantomCase, options: PhantomOptions) -> None:
    anatomy = draw_anatomy(ABDOMEN, case)
    for scan, layout in CHAOS_SCANS.items() if options.t1 else [("T2SPIR", CHAOS_SCANS["T2SPIR"])]:
        grid = chaos_grid(anatomy, case, options.size, scan)
        tissues = anatomy.tissue_map(grid)
        thickness_mm = grid.spacing_mm[2] * (_SLICE_THICKNESS_ERROR if case.has("wrong_slice_thickness") else 1.0)
        home = folder / "chaos/Train_Sets/MR" / case.case_id / scan
        for n, (subfolder, sequence, first) in enumerate(layout.images):
            files = tuple(f"IMG-0004-{first + layout.step * k:05d}" for k in range(grid.shape[2]))
            descending = int(case.case_id) % 2 == 0
            series = _DicomSeries(case, sequence, files, descending, thickness_mm)
            image = mr_image(anatomy, tissues, grid, case, options, scan=scan, sequence=sequence)
            series.write(home / "DICOM_anon" / subfolder, image, grid)
            if n == 0:
                series.write_ground(home / "Ground", _labels(ABDOMEN, CHAOS_GREYS, tissues), grid)


def write_mmwhs(folder: Path, case: PhantomCase, options: PhantomOptions) -> None:
    anatomy = draw_anatomy(CARDIAC, case)
    grid = mmwhs_grid(anatomy, case, options.size)
    tissues = anatomy.tissue_map(grid)
    label = _labels(CARDIAC, MMWHS_LABELS, tissues)
    if case.modality == "ct":
        image = ct_image(anatomy, tissues, grid, case, options)
    else:
        image = mr_image(anatomy, tissues, grid, case, options, scan="scan", sequence="mr")
        if case.has("label_421"):
            atrium = np.flatnonzero(label == MMWHS_LABELS["left_atrium"])
            label.flat[atrium[len(atrium) // 2 :][:_NUM_421]] += 1
    stem = f"{case.modality}_train/{case.modality}_train_{case.case_id}"
    _write_nifti(folder / f"{stem}_image.nii.gz", image, grid.affine)
    _write_nifti(folder / f"{stem}_label.nii.gz", label, grid.affine)
