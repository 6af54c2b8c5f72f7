"""Tiny raw data sets in the layouts of BTCV and CHAOS, and what tests need to look at folders."""

import hashlib

import nibabel as nib
import numpy as np
import SimpleITK as sitk

from data_prep.sources.raw_case import no_note

SHAPE = (14, 12, 6)
SPACING_MM = (20.0, 25.0, 10.0)
CT_AFFINE = np.array([[-20.0, 0, 0, 130], [0, 25, 0, -140], [0, 0, 10, -25], [0, 0, 0, 1]])  # "LAS", as BTCV
CT_LABELS, MR_GREYS = (6, 2, 3, 1), (63, 126, 189, 252)  # liver, right kidney, left kidney, spleen
CT_IDS, MR_IDS = ("0001", "0002", "0003"), ("1", "2", "3")
# Index [i, j] of each organ, with i towards the patient's left.
ORGAN_BOXES = ((slice(1, 5), slice(3, 8)), (slice(3, 5), slice(9, 11)), (slice(8, 10), slice(9, 11)),
               (slice(10, 13), slice(5, 8)))  # fmt: skip
NUM_SLICES = SHAPE[2]


def label_map(values, shape=SHAPE):
    """Four boxes in all slices but the first and the last."""
    array = np.zeros(shape, np.uint8)
    for value, (i, j) in zip(values, ORGAN_BOXES, strict=True):
        array[i, j, 1:-1] = value
    return array


def image(seed, shape=SHAPE):
    """Noise, brighter in the middle of the plane than at its edge."""
    rng = np.random.default_rng(seed)
    array = rng.integers(20, 200, shape).astype(np.int16)
    array[0], array[-1], array[:, 0], array[:, -1] = 0, 0, 0, 0
    return array


def write_nifti(path, array, affine=CT_AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


def write_slice(
    path, pixels, position, *, series="1.2.3", study="1.2.3.4", row=(1, 0, 0), column=(0, 1, 0), spacing=(20.0, 25.0)
):
    """One DICOM file; `pixels` [column, row], `position` in LPS."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = sitk.GetImageFromArray(np.ascontiguousarray(pixels.T[None]).astype(np.uint16))
    picture.SetSpacing((*spacing, 1.0))
    tags = {
        "0008|0016": "1.2.840.10008.5.1.4.1.1.4",
        "0008|0060": "MR",
        "0020|000d": study,
        "0020|000e": series,
        "0020|0032": "\\".join(f"{x:.4f}" for x in position),
        "0020|0037": "\\".join(str(x) for x in (*row, *column)),
        "0028|1052": "0",
        "0028|1053": "1",
        "0028|1054": "US",
    }
    for tag, value in tags.items():
        picture.SetMetaData(tag, value)
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.KeepOriginalImageUIDOn()
    writer.SetFileName(str(path))
    writer.Execute(picture)


def write_png(path, pixels):
    """One grey PNG of `pixels` [column, row]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(np.ascontiguousarray(pixels.T)), str(path))


def z_mm(k):
    """Position of slice k of the MR."""
    return -25.0 + 10.0 * k


def write_mr(folder, seed, file_of_slice=tuple(range(NUM_SLICES))):
    """One CHAOS scan; slice k in space is file number `file_of_slice[k]`."""
    scan, label = image(seed), label_map(MR_GREYS)
    for k, number in enumerate(file_of_slice):
        name = f"IMG-0004-{number + 1:05d}"
        place = (-130.0, -140.0, z_mm(k))
        write_slice(folder / "DICOM_anon" / f"{name}.dcm", scan[:, :, k], place, study=f"1.2.3.4.{seed}")
        write_png(folder / "Ground" / f"{name}.png", label[:, :, k])


def write_abdomen(raw):
    """Three CT in `raw/btcv` and three MR in `raw/chaos`; the files of MR 2 run from head to feet."""
    for seed, n in enumerate(CT_IDS):
        write_nifti(raw / f"btcv/img/img{n}.nii.gz", image(seed))
        write_nifti(raw / f"btcv/label/label{n}.nii.gz", label_map(CT_LABELS))
    for seed, n in enumerate(MR_IDS):
        order = range(NUM_SLICES)[::-1] if n == "2" else range(NUM_SLICES)
        write_mr(mr(raw, n), 10 + seed, order)


def read(case, note=no_note):
    """(scan, label map of task classes) of a raw case, each in the files' own axis order."""
    scan = case.read_scan()
    return scan.volume, case.read_label(scan, note)


def ct(raw, kind, case="0001"):
    """Path of a CT's image ("img") or label."""
    return raw / f"btcv/{kind}/{kind}{case}.nii.gz"


def mr(raw, case="1"):
    """Folder of an MR's T2SPIR scan."""
    return raw / f"chaos/Train_Sets/MR/{case}/T2SPIR"


def snapshot(folder):
    """Every file and folder below `folder` with its content's checksum."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "folder"
        for p in sorted(folder.rglob("*"))
    }
