"""DICOM files written by pydicom, tag by tag, and an independent reading of them: tags and stored values alone."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence as Items
from pydicom.valuerep import DSfloat

CT, MR, PET = uid.CTImageStorage, uid.MRImageStorage, uid.PositronEmissionTomographyImageStorage
SECONDARY_CAPTURE, CR, NM = (
    uid.SecondaryCaptureImageStorage,
    uid.ComputedRadiographyImageStorage,
    uid.UID("1.2.840.10008.5.1.4.1.1.20"),
)
ENHANCED_CT, ENHANCED_MR = uid.EnhancedCTImageStorage, uid.EnhancedMRImageStorage
PLAIN = (uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian,
         uid.DeflatedExplicitVRLittleEndian)  # fmt: skip
PACKED = (uid.RLELossless, uid.JPEG2000Lossless, uid.JPEGLosslessSV1, uid.JPEGLSLossless, uid.JPEGBaseline8Bit)

Change = Callable[[Dataset, int], object]


def decimals(values: Sequence[float]) -> list[DSfloat]:
    """Numbers as DICOM's decimal strings of at most 16 characters."""
    return [DSfloat(float(v), auto_format=True) for v in values]


def dataset(
    stored: np.ndarray,
    position: Sequence[float],
    orientation: Sequence[float] = (1, 0, 0, 0, 1, 0),
    spacing: Sequence[float] = (7, 6),
    sop_class: uid.UID = CT,
    bits: int = 16,
) -> Dataset:
    """One slice; `stored` [column, row], `spacing` between rows and between columns, as PixelSpacing has them."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = sop_class, uid.generate_uid(entropy_srcs=[repr(position), repr(stored)])
    ds.Modality, ds.PatientName, ds.PatientID = "CT", "x", "x"
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = "1.2.3.1", "1.2.3.2", "1.2.3.3"
    ds.SliceThickness, ds.AcquisitionNumber = "3", "1"
    ds.ImagePositionPatient, ds.ImageOrientationPatient = decimals(position), decimals(orientation)
    ds.PixelSpacing = decimals(spacing)
    describe_pixels(ds, stored.shape[1], stored.shape[0], bits, np.issubdtype(stored.dtype, np.signedinteger))
    ds.PixelData = stored_bytes(stored.T, bits)
    return ds


def describe_pixels(ds: Dataset, rows: int, columns: int, bits: int, signed: bool) -> None:
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = rows, columns, 1, "MONOCHROME2"
    ds.BitsAllocated = 8 if bits == 8 else 16
    ds.BitsStored, ds.HighBit, ds.PixelRepresentation = bits, bits - 1, int(signed)


def stored_bytes(values: np.ndarray, bits: int) -> bytes:
    """Little-endian bits alone, without a sign in those that are not stored."""
    content = (values.astype(np.int64) & (2**bits - 1)).astype("<u1" if bits == 8 else "<u2").tobytes()
    return content + bytes(len(content) % 2)


def enhanced(slices: Sequence[Dataset], sop_class: uid.UID) -> Dataset:
    """One multi-frame object of slices, with the geometry in its functional groups (PS3.3, C.7.6.16)."""
    first, ds = slices[0], Dataset()
    for name in ("SOPInstanceUID", "Modality", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"):
        setattr(ds, name, getattr(first, name))
    ds.SOPClassUID, ds.NumberOfFrames = sop_class, len(slices)
    describe_pixels(ds, first.Rows, first.Columns, first.BitsStored, bool(first.PixelRepresentation))
    size = first.Rows * first.Columns * first.BitsAllocated // 8
    content = b"".join(part.PixelData[:size] for part in slices)
    ds.PixelData = content + bytes(len(content) % 2)

    def group(**tags: object) -> Items:
        item = Dataset()
        for name, value in tags.items():
            setattr(item, name, value)
        return Items([item])

    shared = Dataset()
    shared.PixelMeasuresSequence = group(PixelSpacing=first.PixelSpacing)
    shared.PlaneOrientationSequence = group(ImageOrientationPatient=first.ImageOrientationPatient)
    ds.SharedFunctionalGroupsSequence, frames = Items([shared]), []
    for part in slices:
        frame = Dataset()
        frame.PlanePositionSequence = group(ImagePositionPatient=part.ImagePositionPatient)
        if "RescaleSlope" in part:
            frame.PixelValueTransformationSequence = group(
                RescaleSlope=part.RescaleSlope, RescaleIntercept=part.RescaleIntercept
            )
        frames.append(frame)
    ds.PerFrameFunctionalGroupsSequence = Items(frames)
    return ds


def write(path: Path, ds: Dataset, syntax: uid.UID = uid.ExplicitVRLittleEndian, preamble: bool = True) -> None:
    """Writes a file in a transfer syntax, whose encoder does not come from the reader."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ds = pydicom.Dataset(ds)
    if syntax.is_encapsulated:
        shape = (int(ds.get("NumberOfFrames", 1)), ds.Rows, ds.Columns)
        kind = np.dtype(f"<{'i' if ds.PixelRepresentation else 'u'}{ds.BitsAllocated // 8}")
        values = np.frombuffer(ds.PixelData, kind, int(np.prod(shape))).reshape(shape)
        ds.PixelData = encapsulate([packed(frame, ds, syntax) for frame in values])
        ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    elif "PixelData" in ds:
        ds["PixelData"].VR = "OB" if ds.get("BitsAllocated") == 8 and not syntax.is_implicit_VR else "OW"
        if not syntax.is_little_endian and ds.get("BitsAllocated") == 16:
            ds.PixelData = np.frombuffer(ds.PixelData, "<u2").astype(">u2").tobytes()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID, ds.file_meta.MediaStorageSOPClassUID = syntax, ds.get("SOPClassUID", CT)
    ds.file_meta.MediaStorageSOPInstanceUID = ds.get("SOPInstanceUID", "1.2.3.4")
    if preamble:
        ds.save_as(path, enforce_file_format=True)
    else:
        del ds.file_meta
        ds.save_as(path, implicit_vr=syntax.is_implicit_VR, little_endian=syntax.is_little_endian)


def packed(frame: np.ndarray, ds: Dataset, syntax: uid.UID) -> bytes:
    """One frame [row, column] compressed."""
    if syntax == uid.JPEGLosslessSV1:
        with tempfile.TemporaryDirectory() as folder:
            writer = sitk.ImageFileWriter()
            writer.SetImageIO("GDCMImageIO")
            writer.SetFileName(str(Path(folder, "a.dcm")))
            writer.UseCompressionOn()
            writer.SetCompressor("JPEG")
            writer.Execute(sitk.GetImageFromArray(frame[np.newaxis]))
            content = pydicom.dcmread(Path(folder, "a.dcm"))
        assert content.file_meta.TransferSyntaxUID == syntax
        return next(pydicom.encaps.generate_frames(content.PixelData, number_of_frames=1))
    if syntax in (uid.JPEG2000Lossless, uid.JPEGBaseline8Bit):
        stream = io.BytesIO()
        if syntax == uid.JPEG2000Lossless:
            Image.fromarray(frame).save(stream, "JPEG2000", irreversible=False, no_jp2=True, num_resolutions=1)
        else:
            Image.fromarray(frame).save(stream, "JPEG", quality=100)
        return stream.getvalue()
    description = {"rows": ds.Rows, "columns": ds.Columns, "samples_per_pixel": 1, "bits_stored": ds.BitsStored,
                   "photometric_interpretation": "MONOCHROME2", "pixel_representation": ds.PixelRepresentation,
                   "bits_allocated": ds.BitsAllocated, "number_of_frames": 1}  # fmt: skip
    return pydicom.pixels.get_encoder(syntax).encode(frame, **description)


def told(slices: Sequence[Dataset]) -> tuple[np.ndarray, np.ndarray]:
    """World positions (RAS mm) [..., 3] of all pixels and their values, from tags and stored bits (PS3.3, C.7.6.2)."""
    positions, values = [], []
    for ds in slices:
        row, column = np.reshape([float(v) for v in ds.ImageOrientationPatient], (2, 3))
        between_rows, between_columns = (float(v) for v in ds.PixelSpacing)
        r, c = np.indices((ds.Rows, ds.Columns)).reshape(2, -1, 1)
        lps = (
            np.array([float(v) for v in ds.ImagePositionPatient])
            + c * between_columns * row
            + r * between_rows * column
        )
        positions.append(lps * (-1, -1, 1))
        raw = np.frombuffer(ds.PixelData, f"<u{ds.BitsAllocated // 8}", ds.Rows * ds.Columns).astype(np.int64)
        raw &= 2**ds.BitsStored - 1
        if ds.PixelRepresentation:
            raw = np.where(raw >= 2 ** (ds.BitsStored - 1), raw - 2**ds.BitsStored, raw)
        values.append(raw * float(ds.get("RescaleSlope", 1)) + float(ds.get("RescaleIntercept", 0)))
    return np.concatenate(positions), np.concatenate(values)
