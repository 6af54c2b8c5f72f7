"""Valid but odd headers, and what becomes of them: the right geometry, a refusal, or an error without a word.

Small scans of every format are written with one or two header fields removed, emptied, swapped, rounded, scaled or
contradicted, in one slice or in all. Where voxels lie is computed from the odd header by other means (tags alone,
scipy, SimpleITK); a header that does not say it can only be refused.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import dicom_files
import nibabel as nib
import numpy as np
import SimpleITK as sitk
from dicom_files import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag
from scipy.spatial.transform import Rotation

from ummkd_tf.common.errors import InputError
from ummkd_tf.scans.geometry import Grid, Volume, to_sitk
from ummkd_tf.scans.reading import read_volume

RIGHT, REFUSED, SILENT, TRACEBACK = "right geometry", "refused", "silent error", "traceback"
OUTCOMES, BUGS = (RIGHT, REFUSED, SILENT, TRACEBACK), (SILENT, TRACEBACK)
ROUNDING_MM = 0.11  # positions in tenths of a millimetre


@dataclass(frozen=True)
class Truth:
    """What an odd header says.

    Attributes:
        world: Position (RAS mm) [n, 3] of index [n, 3] of `values`.
        values: The voxels in their unit.
        tolerance_mm: Of positions: rounding in the header itself.
    """

    world: Callable[[np.ndarray], np.ndarray]
    values: np.ndarray
    tolerance_mm: float = ROUNDING_MM


Made = tuple[Path, Truth | None]  # None: the header does not say where the voxels lie, and can only be refused

SHAPE = (7, 6, 5)
NUMBER = r"[+-]?\d+\.?\d*(?:[eE][+-]?\d+)?"


def scan(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Voxels, all different, and an affine."""
    affine = np.eye(4)
    turn = Rotation.random(random_state=int(rng.integers(2**31))).as_matrix() if rng.random() < 0.7 else np.eye(3)
    affine[:3, :3], affine[:3, 3] = turn * rng.uniform(0.5, 6, 3), rng.uniform(-300, 300, 3)
    return rng.permutation(np.prod(SHAPE)).reshape(SHAPE).astype(np.int16), affine


def numbers_changed(text: str, separator: str, rng: np.random.Generator) -> str:
    """Another spelling of some numbers: fewer, more, rounded, swapped, scaled, with decimal commas, or no numbers."""
    parts = text.split(separator)
    which = int(rng.integers(len(parts)))

    def number(change: Callable[[float], str]) -> str:
        return separator.join(change(float(p)) if n == which or rng.random() < 0.5 else p for n, p in enumerate(parts))

    kind = int(rng.integers(12))
    if kind == 0:
        return ""
    if kind == 1:
        return separator.join(parts[:which])
    if kind == 2:
        return separator.join([*parts, parts[which]])
    if kind == 3:
        return separator.join(parts[::-1])
    if kind == 4:
        return text.replace(".", ",")
    if kind == 5:
        none = str(rng.choice(["nan", "inf", "abc", "", "1e400", "0x10", "1_0"]))
        return separator.join(none if n == which else p for n, p in enumerate(parts))
    if kind == 6:
        return separator.join("0" if n == which else p for n, p in enumerate(parts))
    if kind == 7:
        return number(lambda v: f"{-v:.10g}")
    if kind == 8:
        return number(lambda v: f"{v * rng.choice([0.001, 0.1, 0.5, 2, 10, 1000]):.10g}")
    if kind == 9:
        return number(lambda v: f"{v + rng.choice([1e-7, 1e-4, 0.01, 1, 30]):.10g}")
    digits = int(rng.integers(0, 5))
    return number(lambda v: f"{v:.{digits}f}")


# --- DICOM -----------------------------------------------------------------------------------------------------------

DECIMALS = ("PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient", "RescaleSlope", "RescaleIntercept")
OTHERS = ("SeriesInstanceUID", "SOPClassUID", "SliceThickness", "AcquisitionNumber", "FrameOfReferenceUID", "Modality",
          "PhotometricInterpretation", "SamplesPerPixel", "NumberOfFrames", "Rows", "Columns", "HighBit")  # fmt: skip
VALUES: dict[str, list[Any]] = {
    "SOPClassUID": [dicom_files.CR, dicom_files.NM, dicom_files.SECONDARY_CAPTURE, dicom_files.ENHANCED_MR, "1.2.3"],
    "SliceThickness": ["0", "99"],
    "AcquisitionNumber": ["2", "7"],
    "SeriesInstanceUID": ["1.2.3.9"],
    "FrameOfReferenceUID": ["1.2.3.9"],
    "Modality": ["MR", "OT"],
    "PhotometricInterpretation": ["MONOCHROME1", "RGB"],
    "SamplesPerPixel": [3],
    "NumberOfFrames": ["1", "2"],
    "Rows": [5, 7],
    "Columns": [6, 8],
    "HighBit": [14],
}
CONTRADICTIONS = ("SpacingBetweenSlices", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "GantryDetectorTilt")


def set_text(ds: Dataset, name: str, text: str) -> None:
    content = text.encode() + b" " * (len(text) % 2)
    tag = Tag(name)
    ds[tag] = RawDataElement(tag, "DS", len(content), content, 0, False, True)


def dicom(folder: Path, rng: np.random.Generator) -> Made:
    array, affine = scan(rng)
    lps = np.diag([-1, -1, 1]) @ affine[:3]
    spacing = np.linalg.norm(lps[:, :3], axis=0)
    slices = []
    for k in range(SHAPE[2]):
        position, axes = lps[:, 3] + k * lps[:, 2], lps[:, :3] / spacing
        ds = dicom_files.dataset(array[:, :, k], position, (*axes[:, 0], *axes[:, 1]), spacing[1::-1])
        ds.RescaleSlope, ds.RescaleIntercept = "1", "0"
        slices.append(ds)
    for _ in range(int(rng.integers(1, 3))):
        odd_dicom(slices, rng)
    for k, name in enumerate(rng.permutation(SHAPE[2])):
        dicom_files.write(folder / f"{name}.dcm", slices[k])
    return folder, dicom_truth(slices, array)


def odd_dicom(slices: list[Dataset], rng: np.random.Generator) -> None:
    chosen = slices if rng.random() < 0.6 else [slices[int(rng.integers(len(slices)))]]
    kind = rng.random()
    name = str(rng.choice(DECIMALS if kind < 0.7 else OTHERS if kind < 0.9 else CONTRADICTIONS))
    seed = int(rng.integers(2**31))
    for ds in chosen:
        same = np.random.default_rng(seed)  # the same in every slice
        if name in CONTRADICTIONS:
            setattr(ds, name, ["3.3", "3.3"] if name.endswith("PixelSpacing") else "17.5")
        elif name not in ds and name != "NumberOfFrames":
            continue
        elif same.random() < 0.15:
            ds.pop(Tag(name), None)
        elif name in VALUES:
            setattr(ds, name, VALUES[name][int(same.integers(len(VALUES[name])))])
        else:
            element: Any = ds.get_item(Tag(name))
            text = element.value.decode().strip() if isinstance(element, RawDataElement) else None
            values = element.value if text is None else None
            if text is None:
                text = "\\".join(map(str, values if hasattr(values, "__iter__") else [values]))
            if text and all(re.fullmatch(NUMBER, part) for part in text.split("\\")):
                set_text(ds, name, numbers_changed(text, "\\", same))


def tag_numbers(ds: Dataset, name: str, count: int) -> np.ndarray | None:
    """The finite numbers of a tag, or None where it does not give as many."""
    element: Any = ds.get_item(Tag(name)) if name in ds else None
    if element is None or element.value is None:
        return None
    value = element.value
    parts = value.decode().strip().split("\\") if isinstance(value, bytes) else [str(v) for v in np.atleast_1d(value)]
    if len(parts) != count or not all(re.fullmatch(NUMBER, part) for part in parts):
        return None
    numbers = np.array(parts, float)
    return numbers if np.isfinite(numbers).all() else None


def dicom_truth(slices: list[Dataset], array: np.ndarray) -> Truth | None:
    """PS3.3, C.7.6.2.1.1 and C.11.1, slice by slice; None where a tag does not say it."""
    origins, axes, values, off = [], [], [], 0.0
    for k, ds in enumerate(slices):
        position, orientation = (
            tag_numbers(ds, "ImagePositionPatient", 3),
            tag_numbers(ds, "ImageOrientationPatient", 6),
        )
        spacing = tag_numbers(ds, "PixelSpacing", 2)
        slope, intercept = (
            tag_numbers(ds, name, 1) if said(ds, name) else np.array([default])
            for name, default in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0))
        )
        if any(found is None for found in (position, orientation, spacing, slope, intercept)) or spacing.min() <= 0:
            return None
        row, column = orientation.reshape(2, 3)
        gram = np.array([[row @ row, row @ column], [row @ column, column @ column]])
        away = float(np.abs(gram - np.eye(2)).max())
        if away > 0.04 or slope[0] == 0:
            return None
        if away > 1e-9:
            text = ds.get_item(Tag("ImageOrientationPatient")).value
            text = text.decode() if isinstance(text, bytes) else "\\".join(map(str, text))
            decimals = max(len(digits) for digits in re.findall(r"\.?(\d*)(?=\\|\s*$)", text))
            off = max(off, away + 1.5 * 10.0**-decimals)
        origins.append(position)
        axes.append(np.column_stack([row * spacing[1], column * spacing[0]]))
        values.append(array[:, :, k] * slope[0] + intercept[0])
    if {(ds.get("Rows"), ds.get("Columns")) for ds in slices} != {(SHAPE[1], SHAPE[0])}:
        return None

    def world(index: np.ndarray) -> np.ndarray:
        k = index[:, 2]
        return (np.array(origins)[k] + np.einsum("nxy,ny->nx", np.array(axes)[k], index[:, :2])) * (-1, -1, 1)

    extent = float(np.abs(axes).max() * max(SHAPE))
    return Truth(world, np.stack(values, -1), ROUNDING_MM + off * extent)


def said(ds: Dataset, name: str) -> bool:
    element: Any = ds.get_item(Tag(name)) if name in ds else None
    return element is not None and element.value not in (None, b"", "")


# --- files -----------------------------------------------------------------------------------------------------------


NIFTI_VALUES: dict[str, list[Any]] = {
    "sform_code": [0, 1],
    "qform_code": [0, 1],
    "xyzt_units": [0, 1, 2, 3, 10, 18],
    "scl_slope": [0, np.nan, 1],
    "intent_code": [1002],
    "slice_code": [3],
    "quatern_b": [0, 0.3, 2],
    "qoffset_x": [0, 55],
    "descrip": [b"odd"],
}


def nifti(folder: Path, rng: np.random.Generator) -> Made:
    array, affine = scan(rng)
    image = nib.Nifti1Image(array, affine)
    image.set_sform(affine, int(rng.integers(0, 5)))
    image.set_qform(affine, int(rng.integers(0, 5)))
    header = image.header
    header["vox_offset"] = 352
    for _ in range(int(rng.integers(1, 3))):
        name = str(rng.choice([*NIFTI_VALUES, "srow_x", "srow_z", "pixdim", "dim"]))
        if name in NIFTI_VALUES:
            header[name] = NIFTI_VALUES[name][int(rng.integers(len(NIFTI_VALUES[name])))]
        elif name == "dim":
            header["dim"][:5] = [[4, *SHAPE, 1], [3, *SHAPE, 1], [4, *SHAPE, 2]][int(rng.integers(3))]
        else:
            row = header[name].copy()
            which = int(rng.integers(1 if name == "pixdim" else 0, 4))
            row[which] = row[which] * rng.choice([0, -1, 2, 0.001]) if rng.random() < 0.7 else np.round(row[which], 1)
            header[name] = row
    path = folder / "a.nii"
    path.write_bytes(header.binaryblock + bytes(4) + array.tobytes(order="F"))
    return path, nifti_truth(header, array)


def nifti_truth(header: nib.Nifti1Header, array: np.ndarray) -> Truth | None:
    """The standard's methods 3 and 2 (nifti1.h), the first that is coded."""
    affine = np.eye(4)
    if int(header["xyzt_units"]) % 8 not in (0, 2) or (int(header["dim"][0]) == 4 and int(header["dim"][4]) > 1):
        return None
    if int(header["sform_code"]) > 0:
        affine[:3] = [header[f"srow_{axis}"] for axis in "xyz"]
    elif int(header["qform_code"]) > 0:
        b, c, d = (float(header[f"quatern_{axis}"]) for axis in "bcd")
        if b * b + c * c + d * d > 1 + 1e-6:
            return None
        turn = Rotation.from_quat([b, c, d, np.sqrt(max(0.0, 1 - b * b - c * c - d * d))]).as_matrix()
        sign = -1.0 if header["pixdim"][0] < 0 else 1.0
        affine[:3, :3] = turn * header["pixdim"][1:4] * (1, 1, sign)
        affine[:3, 3] = [header[f"qoffset_{axis}"] for axis in "xyz"]
        if header["pixdim"][1:4].min() <= 0:
            return None
    else:
        return None
    return Truth(Grid(affine, SHAPE).world, array)


def _next(words: Iterator[str], _: re.Match[str]) -> str:
    return next(words, "")


def itk_text(suffix: str, fields: tuple[bytes, ...], separator: bytes) -> Callable[[Path, np.random.Generator], Made]:
    def make(folder: Path, rng: np.random.Generator) -> Made:
        array, affine = scan(rng)
        path = folder / f"a{suffix}"
        sitk.WriteImage(to_sitk(array, affine), str(path), useCompression=False)
        lines = path.read_bytes().split(b"\n")
        for _ in range(int(rng.integers(1, 3))):
            field = fields[int(rng.integers(len(fields)))]
            at = next((n for n, line in enumerate(lines) if line.startswith(field)), None)
            if at is None:
                continue
            key, _, value = lines[at].partition(separator)
            if rng.random() < 0.25:
                del lines[at]
            elif rng.random() < 0.2:
                lines.insert(at, lines[at])
            elif re.search(rb"\d", value):
                text = value.decode().strip()
                changed = iter(numbers_changed(" ".join(re.findall(NUMBER, text)), " ", rng).split(" "))
                new = re.sub(NUMBER, partial(_next, changed), text) if suffix == ".nrrd" else " ".join(changed)
                lines[at] = key + separator + b" " + new.encode()
        content = b"\n".join(lines)
        path.write_bytes(content)
        return path, itk_truth(path, array) if all(re.search(p, content, re.M) for p in COMPLETE[suffix]) else None

    return make


_N = rb"[+-]?\d+\.?\d*(?:[eE][+-]?\d+)?"
_VECTOR = rb"\(%b,%b,%b\)" % (_N, _N, _N)
# What a header must have, so that it says where its voxels lie.
COMPLETE = {
    ".nrrd": (
        rb"^space: left-posterior-superior$",
        rb"^space directions: %b %b %b$" % (_VECTOR, _VECTOR, _VECTOR),
        rb"^space origin: %b$" % _VECTOR,
    ),
    ".mha": tuple(
        rb"^%b = ?%b$" % (name, rb" ".join([_N] * count))
        for name, count in ((b"TransformMatrix", 9), (b"ElementSpacing", 3), (b"Offset", 3))
    ),
}


def itk_truth(path: Path, array: np.ndarray) -> Truth | None:
    """As SimpleITK has it."""
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError:
        return None

    def world(index: np.ndarray) -> np.ndarray:
        return np.array([image.TransformIndexToPhysicalPoint(i) for i in index.tolist()]) * (-1, -1, 1)

    return Truth(world, array)


FORMATS: dict[str, Callable[[Path, np.random.Generator], Made]] = {
    "DICOM": dicom,
    "NIfTI": nifti,
    "NRRD": itk_text(".nrrd", (b"space:", b"space directions", b"space origin", b"kinds"), b":"),
    "MetaImage": itk_text(
        ".mha", (b"TransformMatrix", b"Offset", b"ElementSpacing", b"CenterOfRotation", b"AnatomicalOrientation"), b" ="
    ),
}
SHARES = {"DICOM": 0.55, "NIfTI": 0.15, "NRRD": 0.15, "MetaImage": 0.15}


# --- what becomes of them --------------------------------------------------------------------------------------------


def outcome(path: Path, truth: Truth | None, read: Callable[[Path], Volume] = read_volume) -> tuple[str, str]:
    """(outcome, why)."""
    try:
        volume = read(path)
    except InputError as error:
        return REFUSED, str(error)
    except Exception as error:
        return TRACEBACK, repr(error)
    if truth is None:
        return SILENT, "the header does not say where the voxels lie, and they were read"
    if volume.array.size != truth.values.size:
        return SILENT, f"{volume.array.size} voxels, {truth.values.size} were written"
    world = truth.world(np.argwhere(np.ones(truth.values.shape, bool)))
    index = np.round(volume.grid.index(world)).astype(int)
    off = float(np.linalg.norm(volume.grid.world(index) - world, axis=1).max())
    inside = ((index >= 0) & (index < volume.array.shape)).all()
    if off > truth.tolerance_mm or not inside or len(np.unique(index, axis=0)) < len(index):
        return SILENT, f"voxels {off:.3f} mm from their place"
    if not np.allclose(volume.array[tuple(index.T)], truth.values.ravel(), rtol=1e-6, atol=0):
        return SILENT, "other values"
    return RIGHT, f"{off:.3f} mm"


def fuzz(headers: int, seed: int, folder: Path) -> tuple[dict[str, Counter[str]], list[str]]:
    """Counts of outcomes by format, and a line for each bug."""
    counts: dict[str, Counter[str]] = {}
    bugs = []
    for name, make in FORMATS.items():
        counts[name] = Counter()
        for n in range(round(headers * SHARES[name])):
            place = folder / f"{name}-{n}"
            place.mkdir()
            found, why = outcome(*make(place, np.random.default_rng([seed, list(FORMATS).index(name), n])))
            counts[name][found] += 1
            if found in BUGS:
                bugs.append(f"{found}: {name} {seed} {n}: {why[:300]}")
    return counts, bugs
