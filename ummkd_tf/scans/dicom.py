"""DICOM series. The tags, as they stand in the files, decide where voxels lie and what their values mean.

pydicom parses the files. GDCM, a part of SimpleITK, only unpacks JPEG pixels: for some classes its geometry
follows rules of its own, and it guesses what a header lacks.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import math
import os
import re
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import get_decoder
from pydicom.tag import Tag
from pydicom.uid import UID, RLELossless

from ummkd_tf.common.documents import DEFLATE_RATIO
from ummkd_tf.common.errors import InputError, listed
from ummkd_tf.common.files import files_in_order, last_line
from ummkd_tf.scans.checks import check_content, check_size, checked
from ummkd_tf.scans.geometry import Grid, Volume, nearest_orthonormal, ras_affine
from ummkd_tf.scans.geometry import pixels as sitk_pixels
from ummkd_tf.scans.itk import read_sitk

_LOG = logging.getLogger(__name__)

_PIXEL_SPACING, _POSITION, _ORIENTATION = "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient"
_RESCALE = ("RescaleSlope", "RescaleIntercept")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_TEXT = ("DS", "IS", "LO", "UI", "CS", "SH")  # kinds of values that are stored as text
_SECONDARY_CAPTURE = UID("1.2.840.10008.5.1.4.1.1.7")
# Where a multi-frame object says what a single-slice file says at its top (PS3.3, C.7.6.16).
_FUNCTIONAL_GROUPS = (
    "PixelMeasuresSequence",
    "PlanePositionSequence",
    "PlaneOrientationSequence",
    "PixelValueTransformationSequence",
    "FrameContentSequence",
    "MREchoSequence",
    "MRDiffusionSequence",
    "MRModifierSequence",
    "MRTimingAndRelatedParametersSequence",
    "CardiacSynchronizationSequence",
    "CTReconstructionSequence",
)
# Tags that differ between the parts of a series that shows the same place several times.
_PARTS = (
    "AcquisitionNumber",
    "FrameAcquisitionNumber",
    "TemporalPositionIdentifier",
    "TemporalPositionIndex",
    "EchoNumbers",
    "EchoTime",
    "EffectiveEchoTime",
    "DiffusionBValue",
    "NominalPercentageOfCardiacPhase",
    "InversionTime",
    "FlipAngle",
    "KVP",
    "ConvolutionKernel",
    "StackID",
    "ImageType",
    "FrameOfReferenceUID",
)
_MEASURED = ("EchoTime", "EffectiveEchoTime", "InversionTime", "FlipAngle", "KVP")  # with rounding
_SAME_MEASURE = 0.02  # of the value; another echo is further away
# Headers of one series differ by rounding: values that move a slice's far corner by less count as equal.
_SAME_PLACE_MM = 0.1
_ROUNDING_MM = 0.11  # of positions from their line: rounding to 0.1 mm gives up to 0.087, the fitted line the rest
_EXACT_MM = 1e-6
_UNIT_ERROR = 0.02  # allowed in a direction's length and right angle; rounding to two decimals makes up to 0.0173
_ROUNDED = 1e-4  # a larger correction of the directions is noted
_PIXEL_MM = (1e-3, 1e3)  # the smallest and largest believable pixel: below and above any medical scanner
_STEEPEST = math.cos(math.radians(60))  # every gantry tilts less
# Names of files that are meant to be slices, whatever their content is.
_SLICE_NAME = re.compile(r"[^.]+|.*\.(dcm|dicom|ima|acr|\d+)(\.\w+)?", re.IGNORECASE)


@dataclass(frozen=True)
class _Pixels:
    """How a file's pixels are stored: their shape, and bits of each."""

    frames: int
    rows: int
    columns: int
    allocated: int
    stored: int
    high: int
    signed: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.frames, self.rows, self.columns


@dataclass(frozen=True)
class _Slice:
    """One frame, with what its tags say.

    Attributes:
        path: Its file.
        frame: Its place in the file.
        pixels: How the file's pixels are stored.
        spacing: mm between columns and between rows.
        axes: [3, 2] unit directions (LPS) in which the column and the row index grow.
        rounding: The last decimal of the directions where they are visibly rounded, else 0.
        origin: Centre of the first pixel, LPS mm.
        slope: Of the stored values.
        intercept: Of the stored values.
        rescale: Which of RescaleSlope and RescaleIntercept are there.
        padding: First and last of the stored values that are no measurement; None where there are none.
        series: SeriesInstanceUID.
        parts: Values of the tags `_PARTS`.
        number: InstanceNumber, or the frame's place; None where it is not a number.
    """

    path: Path
    frame: int
    pixels: _Pixels
    spacing: tuple[float, float]
    axes: NDArray[np.float64]
    rounding: float
    origin: NDArray[np.float64]
    slope: float
    intercept: float
    rescale: tuple[str, ...]
    padding: tuple[int, int] | None
    series: str
    parts: dict[str, str]
    number: int | None

    @property
    def name(self) -> str:
        return f"{self.path.name}, frame {self.frame + 1}" if self.frame else self.path.name

    @property
    def size(self) -> tuple[int, int]:
        """Columns and rows."""
        return self.pixels.columns, self.pixels.rows

    @property
    def normal(self) -> NDArray[np.float64]:
        return np.cross(self.axes[:, 0], self.axes[:, 1])

    def is_padding(self, stored: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which of the stored values are padding."""
        if self.padding is None:
            return np.zeros(stored.shape, bool)
        low, high = self.padding
        return (low <= stored) & (stored <= high)

    def far_edges(self, spacing: tuple[float, float]) -> NDArray[np.float64]:
        """What lies between the first and the last column and row, in mm, if pixels had a spacing."""
        return self.axes * (np.asarray(self.size) - 1) * spacing


@dataclass(frozen=True)
class DicomSeries:
    """The one image series of a folder, in the order of its slices in the patient; each file is read once.

    Attributes:
        place: The folder, or one multi-frame file.
        files: Its image files in file-name order.
        grid: Where the voxels lie, from the tags alone.
        file_of_slice: For each slice k the position of its file in `files`.
        notes: What is odd but handled.
    """

    place: Path
    files: tuple[Path, ...]
    grid: Grid
    file_of_slice: tuple[int, ...]
    notes: tuple[str, ...]
    _slices: tuple[_Slice, ...] = field(repr=False)
    _datasets: dict[Path, Dataset] = field(repr=False)

    @classmethod
    def open(cls, place: str | Path) -> DicomSeries:
        """Reads the headers of a folder's series, or of one multi-frame file, and finds its grid.

        The distance of slices is taken from their positions: SliceThickness and SpacingBetweenSlices are known to be
        wrong in CHAOS (docs/reproduction.md). A constant shear, as of a tilted gantry, is kept in the grid.

        Raises:
            InputError: A file that cannot be read or is no part of the series; geometry that is missing, impossible or
                contradictory; slices that are missing, twice or out of line; parts that alternate; RescaleSlope or
                RescaleIntercept in a part of the slices.
        """
        place = Path(place)
        datasets, notes = _image_datasets(place)
        files = tuple(datasets)
        slices = []
        for path, dataset in datasets.items():
            with _refused_if_damaged(path):
                slices += _slices(dataset, path, notes)
        _check_alike(slices, place)
        slices, origin, axes = _in_line(slices, place, notes)
        grid = Grid(ras_affine(axes, origin), (*slices[0].size, len(slices)))
        for note in notes:
            _LOG.warning("%s: %s", place, note)
        order = tuple(files.index(part.path) for part in slices)
        return cls(place, files, grid, order, tuple(notes), tuple(slices), datasets)

    @property
    def modality(self) -> str:
        """The first file's Modality, as CT or MR; empty where it has none."""
        return "".join(_texts(next(iter(self._datasets.values())), "Modality")[:1])

    @property
    def slices(self) -> list[Dataset]:
        """The file of each slice k; a multi-frame file stands for each of its frames."""
        return [self._datasets[part.path] for part in self._slices]

    def read(self, labels: bool = False) -> Volume:
        """Values in the series' own unit (HU for CT): stored value × RescaleSlope + RescaleIntercept, float32.

        MONOCHROME1 says only how to display values, so it changes nothing here. Padding (PixelPaddingValue) is no
        measurement, and may be brighter than any tissue: it takes the darkest of the other values.

        Args:
            labels: The values are classes: padding stays, because it may be the background's 0.

        Raises:
            InputError: Pixels that are damaged, in colour, or packed in an unknown way.
        """
        check_size(self.place, self.grid.shape, 0, 0)
        array = np.empty(self.grid.shape, np.float32)
        darkest = np.inf
        padded: dict[int, NDArray[np.uint8]] = {}  # slice to mask of padding, packed to bits for its memory
        in_file: dict[Path, list[int]] = {}
        for k, part in enumerate(self._slices):
            in_file.setdefault(part.path, []).append(k)
        for path, slices in in_file.items():
            with _refused_if_damaged(path):
                frames = _frames(self._datasets[path], self._slices[slices[0]].pixels, path)
            for k in slices:
                part = self._slices[k]
                stored = _numbers(frames[part.frame], part.pixels).T
                array[:, :, k] = stored * part.slope + part.intercept
                padding = part.is_padding(stored)
                darkest = min(darkest, float(array[:, :, k].min(where=~padding, initial=np.inf)))
                if padding.any():
                    padded[k] = np.packbits(padding)
        if padded and darkest < np.inf and not labels:
            self._darken(array, padded, darkest)
        return checked(array, self.grid.affine, self.place)

    def _darken(self, array: NDArray[np.float32], padded: dict[int, NDArray[np.uint8]], darkest: float) -> None:
        """Gives padding the darkest value, and says so where it was brighter."""
        bright = 0
        for k, packed in padded.items():
            plane = array[:, :, k]
            padding = np.unpackbits(packed, count=plane.size).reshape(plane.shape).astype(bool)
            bright += int(np.count_nonzero(plane[padding] > darkest))
            plane[padding] = darkest
        if bright:
            text = "%s: %s voxels of padding (PixelPaddingValue) are not dark; they take the darkest other value, %g"
            _LOG.warning(text, self.place, bright, darkest)


# --- files -----------------------------------------------------------------------------------------------------------


def _image_datasets(place: Path) -> tuple[dict[Path, Dataset], list[str]]:
    """Every image object of a folder by its file, found by content; and notes on what was left out."""
    found: dict[Path, Dataset] = {}
    other, objects = [], []
    for path in files_in_order(place) if place.is_dir() else [place]:
        meant = _SLICE_NAME.fullmatch(path.name) or not os.access(path, os.R_OK)
        if meant:
            check_content(path)
        dataset = _dataset(path)
        if dataset is None:
            if meant:
                raise InputError("not a readable DICOM image", where=path, fix="remove it or copy it again")
            other.append(path.name)
        elif "DirectoryRecordSequence" in dataset:  # a DICOMDIR
            continue
        elif "Rows" not in dataset and "PixelData" not in dataset and _is_no_image(dataset):
            objects.append(f"{path.name} ({_class_name(dataset)})")
        else:
            found[path] = dataset
    hidden = [p for p in sorted(place.glob(".*")) if p.is_file() and os.access(p, os.R_OK) and is_dicom(p)]
    if hidden:
        raise InputError("a hidden DICOM file", where=hidden[0], fix="rename it without the dot, or remove it")
    if not found:
        what = f"DICOM, but no image: {listed(objects)}" if objects else f"no DICOM files{_instead(place)}"
        raise InputError(what, where=place, fix="expected one series of DICOM images")
    folders = [p.name for p in sorted(place.glob("[!.]*/"))] if place.is_dir() else []
    for name in folders:
        _check_no_part(place / name, {_series(dataset) for dataset in found.values()})
    left_out = {"not DICOM": other, "no image": objects, "a folder": folders}
    return found, [f"left out, {what}: {listed(names)}" for what, names in left_out.items() if names]


def _series(dataset: Dataset) -> str:
    return "".join(_texts(dataset, "SeriesInstanceUID"))


def _check_no_part(folder: Path, series: set[str]) -> None:
    """Refuses a folder beside the slices whose first file is one of them."""
    dataset = None
    with contextlib.suppress(InputError, OSError):
        dataset = next((_dataset(path) for path in files_in_order(folder)), None)
    if dataset is not None and _series(dataset) in series:
        raise InputError(
            "a folder with files of the same series as those beside it",
            where=folder,
            fix="expected all slices in one folder; move them together",
        )


def _instead(folder: Path) -> str:
    if not folder.is_dir():
        return ""
    images = sorted(p.name for p in folder.iterdir() if re.search(r"\.(nii(\.gz)?|nrrd|nhdr|mh[ad])$", p.name.lower()))
    if len(images) > 1:
        return (
            f", but {listed(images, 3)}; give the path of one file instead of its folder, of several scans in a CSV (a "
            "label map holds all classes: merge masks of one organ each first; TotalSegmentator does so with --ml)"
        )
    if images:
        return f", but {images[0]}; give the path of that file instead of its folder"
    inner = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    return f", but folders: {listed(inner)}; give the one that holds the series" if inner else ""


@contextlib.contextmanager
def _refused_if_damaged(path: Path) -> Iterator[None]:
    """Turns pydicom's errors into one line: it parses a value when it is read, and damaged ones raise many kinds of
    errors."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"damaged DICOM file ({last_line(error)})", where=path, fix="copy it again") from error


def is_dicom(path: Path) -> bool:
    """Whether a file says that it is DICOM."""
    with open(path, "rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def _dataset(path: Path) -> Dataset | None:
    """What a file holds, with the 128 bytes before "DICM" or without; None where it is no DICOM object.

    Python reads the file, because the libraries accept only UTF-8 paths. It reads all of it, so that a damaged header
    cannot claim more than the file holds.
    """
    with open(path, "rb") as stream:
        content = stream.read(132)
        group = (int.from_bytes(content[:2], "little"), int.from_bytes(content[:2], "big"))
        if content[128:] != b"DICM" and not {2, 8} & set(group):
            return None
        content += stream.read()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's remarks on values; those that matter are checked here
        try:
            dataset = pydicom.dcmread(io.BytesIO(content), force=True)
            known = "SOPClassUID" in dataset or "Rows" in dataset or "DirectoryRecordSequence" in dataset
        except Exception:  # damaged files raise many kinds of errors
            return None
    return dataset if known else None


def _is_no_image(dataset: Dataset) -> bool:
    name = _class_name(dataset)
    return bool(name) and not re.search(r"Image Storage|^[\d.]+$", name)


def _class_name(dataset: Dataset) -> str:
    return UID(str(dataset.get("SOPClassUID", ""))).name


# --- tags ------------------------------------------------------------------------------------------------------------


def _texts(dataset: Dataset, name: str) -> list[str]:
    """A tag's values as they stand in the file; empty where it is absent or empty."""
    element: Any = dataset.get_item(Tag(name)) if name in dataset else None
    if element is None or element.value is None:
        return []
    value = element.value
    if isinstance(value, bytes) and dictionary_VR(name) in _TEXT and element.VR in (*_TEXT, "UN", None):
        text = value.decode("latin-1")
    else:
        value = dataset[name].value  # numbers in binary
        text = value if isinstance(value, str) else "\\".join(map(str, value if _is_list(value) else [value]))
    text = text.strip("\0 ")
    return [part.strip("\0 ") for part in text.split("\\")] if text else []


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


class _Tags:
    """The tags of one frame: its own functional groups, then those of all frames, then the top of the file."""

    def __init__(self, places: Sequence[Dataset], path: Path) -> None:
        self._places, self._path = places, path

    def texts(self, name: str) -> list[str]:
        for place in self._places:
            found = _texts(place, name)
            if found:
                return found
        return []

    def numbers(self, name: str, count: int, default: Sequence[float] | None = None) -> list[float]:
        """Finite numbers.

        Raises:
            InputError: Another count, no numbers, or absent without a default.
        """
        texts = self.texts(name)
        if not texts and default is not None:
            return list(default)
        values = [float(text) for text in texts if _NUMBER.fullmatch(text)]
        if len(texts) != count or len(values) != count or not np.isfinite(values).all():
            found = "\\".join(texts) or "nothing"
            raise InputError(
                f"{name} is {found[:80]!r}",
                where=self._path,
                fix=(
                    f"expected {count} finite number{'s' * (count > 1)} with decimal points; export the series"
                    " again with its geometry"
                ),
            )
        return values

    def whole(self, name: str, low: int, high: int, default: int | None = None) -> int:
        (value,) = self.numbers(name, 1, None if default is None else [default])
        if value != int(value) or not low <= value <= high:
            raise InputError(f"{name} is {value:g}", where=self._path, fix=f"expected {low} to {high}; copy it again")
        return int(value)


def _slices(dataset: Dataset, path: Path, notes: list[str]) -> list[_Slice]:
    """Every frame of an image object."""
    top = _Tags([dataset], path)
    if "PixelData" not in dataset:
        kind = "floating-point" if "FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset else "no"
        raise InputError(
            f"{kind} pixels ({_class_name(dataset)})", where=path, fix="expected whole numbers; copy or convert it"
        )
    photometric = top.texts("PhotometricInterpretation") or ["MONOCHROME2"]
    if top.whole("SamplesPerPixel", 1, 4, 1) != 1 or photometric[0] not in ("MONOCHROME1", "MONOCHROME2"):
        raise InputError(f"a colour image ({photometric[0]})", where=path, fix="expected one value per pixel")
    if "ModalityLUTSequence" in dataset:
        raise InputError(
            "its values go through a table (Modality LUT)", where=path, fix="expected RescaleSlope; convert it"
        )
    bits = top.whole("BitsAllocated", 1, 64)
    if bits not in (8, 16, 32):
        raise InputError(
            f"{bits} bits a pixel ({_class_name(dataset)})", where=path, fix="expected 8, 16 or 32; convert it"
        )
    stored = top.whole("BitsStored", 1, bits)
    count = top.whole("NumberOfFrames", 1, 2**20, 1)
    pixels = _Pixels(
        count,
        top.whole("Rows", 1, 2**16),
        top.whole("Columns", 1, 2**16),
        bits,
        stored,
        top.whole("HighBit", stored - 1, bits - 1, stored - 1),
        top.whole("PixelRepresentation", 0, 1),
    )
    groups: Any = dataset.get("PerFrameFunctionalGroupsSequence")
    if count > 1 and not groups:
        raise InputError(
            f"{count} frames in a file of class {_class_name(dataset)}, which tells no place for each",
            where=path,
            fix="expected single slices, or Enhanced CT or MR; convert it",
        )
    if not groups:
        places = [[dataset]]
    elif len(groups) == count:
        shared: Any = dataset.get("SharedFunctionalGroupsSequence") or [Dataset()]
        places = [[*_macros(group), *_macros(shared[0]), dataset] for group in groups]
    else:
        raise InputError(f"{count} frames and geometry for {len(groups)}", where=path, fix="damaged; copy it again")
    return [_slice(_Tags(place, path), path, frame, pixels, notes) for frame, place in enumerate(places)]


def _macros(group: Dataset) -> list[Dataset]:
    return [group[name].value[0] for name in _FUNCTIONAL_GROUPS if name in group and group[name].value]


def _slice(tags: _Tags, path: Path, frame: int, pixels: _Pixels, notes: list[str]) -> _Slice:
    if not tags.texts(_POSITION) or not tags.texts(_ORIENTATION):
        raise InputError(
            "no ImagePositionPatient or ImageOrientationPatient",
            where=path,
            fix="slices cannot be put in order; export the series again with its geometry",
        )
    if not tags.texts(_PIXEL_SPACING):
        detector = ", only ImagerPixelSpacing, which is measured at the detector" * bool(
            tags.texts("ImagerPixelSpacing")
        )
        raise InputError(
            f"no PixelSpacing{detector}",
            where=path,
            fix="the size of a pixel is unknown; export the series again with its geometry",
        )
    between_rows, between_columns = tags.numbers(_PIXEL_SPACING, 2)
    if not all(_PIXEL_MM[0] <= s <= _PIXEL_MM[1] for s in (between_rows, between_columns)):
        raise InputError(
            f"PixelSpacing is {between_rows:g}\\{between_columns:g} mm",
            where=path,
            fix="expected positive sizes of pixels; export the series again with its geometry",
        )
    axes, rounding = _directions(tags, path, notes)
    slope = tags.numbers("RescaleSlope", 1, [1.0])[0]
    if slope == 0:
        raise InputError(
            "RescaleSlope is 0", where=path, fix="every pixel would have one value; export the series again"
        )
    return _Slice(
        path,
        frame,
        pixels,
        (between_columns, between_rows),
        axes,
        rounding,
        np.array(tags.numbers(_POSITION, 3)),
        slope,
        tags.numbers("RescaleIntercept", 1, [0.0])[0],
        tuple(name for name in _RESCALE if tags.texts(name)),
        _padding(tags, pixels),
        "".join(tags.texts("SeriesInstanceUID")),
        {name: "\\".join(tags.texts(name)) for name in _PARTS},
        _number(tags, frame, pixels),
    )


def _padding(tags: _Tags, pixels: _Pixels) -> tuple[int, int] | None:
    """First and last stored value that is padding (PS3.3, C.7.5.1.1.2), in either order of the tags."""
    names = [name for name in ("PixelPaddingValue", "PixelPaddingRangeLimit") if tags.texts(name)]
    if names[:1] != ["PixelPaddingValue"]:
        return None
    values = [tags.whole(name, -(2**15), 2**16 - 1) for name in names]  # both have 16 bits
    if pixels.signed:  # some programs write 63536 instead of -2000
        values = [value - 2**16 * (value >= 2**15) for value in values]
    return min(values), max(values)


def _number(tags: _Tags, frame: int, pixels: _Pixels) -> int | None:
    if pixels.frames > 1:
        return frame
    (text,) = tags.texts("InstanceNumber")[:1] or [""]
    return int(text) if re.fullmatch(r"[+-]?\d{1,12}", text) else None


def _directions(tags: _Tags, path: Path, notes: list[str]) -> tuple[NDArray[np.float64], float]:
    """Orthonormal directions of ImageOrientationPatient, and the last decimal it is rounded to (0: it is exact)."""
    directions = np.reshape(tags.numbers(_ORIENTATION, 6), (2, 3)).T
    off = float(np.abs(directions.T @ directions - np.eye(2)).max())
    if off > 2 * _UNIT_ERROR:
        text = "\\".join(tags.texts(_ORIENTATION))
        raise InputError(
            f"ImageOrientationPatient is {text!r}",
            where=path,
            fix="expected two perpendicular directions of length 1; export the series again with its geometry",
        )
    if off < 1e-9:
        return directions, 0.0
    decimals = max(len(re.sub(r"[eE].*|^[^.]*\.?", "", text)) for text in tags.texts(_ORIENTATION))
    exponents = [int(e) for text in tags.texts(_ORIENTATION) for e in re.findall(r"[eE]([+-]?\d+)", text)]
    note = "ImageOrientationPatient is rounded; its directions were made orthonormal"
    if off > _ROUNDED and note not in notes:
        notes.append(note)
    return nearest_orthonormal(directions), 10.0 ** -(decimals - min([0, *exponents]))


# --- order -----------------------------------------------------------------------------------------------------------


def _check_alike(slices: Sequence[_Slice], place: Path) -> None:
    """Refuses slices that are not of one series, one size, one spacing and one orientation, but for rounding; or of
    which some lack a tag that says what their values mean."""
    first = slices[0]

    def edges_apart(part: _Slice, spacing: tuple[float, float]) -> bool:
        apart = part.far_edges(spacing) - first.far_edges(first.spacing)
        corners = apart @ [[1, 0, 1, 1], [0, 1, 1, -1]]
        return float(np.linalg.norm(corners, axis=0).max()) > _SAME_PLACE_MM

    for what, value, differs in (
        ("series", lambda s: s.series, lambda s: s.series != first.series),
        ("image sizes", lambda s: s.size, lambda s: s.size != first.size),
        ("orientations", lambda s: tuple(s.axes.T.ravel().round(6).tolist()), lambda s: edges_apart(s, first.spacing)),
        ("pixel spacings", lambda s: s.spacing, lambda s: edges_apart(s, s.spacing)),
    ):
        others = {value(s) for s in slices if differs(s)} - {value(first)}
        if others:
            found = ", ".join(str(v) for v in sorted({value(first), *others}, key=str)[:3])
            raise InputError(
                f"{len(others) + 1} {what} in one folder ({found})", where=place, fix="expected one; separate them"
            )
    for name in _RESCALE:
        there = sum(name in s.rescale for s in slices)
        if 0 < there < len(slices):
            raise InputError(
                f"{name} is in {there} of {len(slices)} slices",
                where=place,
                fix="expected it in all or none, or values change their unit between slices; export the series again",
            )


def _in_line(
    slices: Sequence[_Slice], place: Path, notes: list[str]
) -> tuple[list[_Slice], NDArray[np.float64], NDArray[np.float64]]:
    """The slices from first to last along their normal, the first voxel (LPS mm), and the vectors along i, j, k."""
    if len(slices) < 2:
        raise InputError(
            "one DICOM slice", where=place, fix="expected a volume of at least two; give the folder of the series"
        )
    first = slices[0]
    slices = sorted(slices, key=lambda s: float(s.origin @ first.normal))
    positions = np.array([s.origin for s in slices])
    steps = np.diff(positions, axis=0)
    gaps = steps @ first.normal
    usual = float(np.median(gaps))
    tolerance = min(_ROUNDING_MM, 0.25 * usual)

    _check_parts(slices, place, notes)
    at = int(gaps.argmin())
    pair = f"{slices[at].name} and {slices[at + 1].name}"
    if gaps[at] < 1e-3:
        if np.linalg.norm(steps[at]) > max(1e-3, _STEEPEST * 1e-3):
            raise InputError(
                f"{pair} lie side by side in one plane",
                where=place,
                fix=(
                    "their positions and their orientation contradict each other; export the series again with"
                    " its geometry"
                ),
            )
        raise InputError(
            f"{pair} have the same position",
            where=place,
            fix="expected one image a slice; remove one of two copies, or separate the scans (time points, echoes)",
        )
    numbers = np.arange(len(slices))
    start, step = positions[0], (positions[-1] - positions[0]) / numbers[-1]

    def away() -> NDArray[np.float64]:
        return np.linalg.norm(positions - start - numbers[:, None] * step, axis=1)

    if away().max() > _EXACT_MM:  # rounded positions: the line that fits all of them best
        step, start = np.polyfit(numbers, positions, 1)
    if away().max() > tolerance:
        uneven = np.flatnonzero(np.abs(gaps - usual) > tolerance)
        if uneven.size:
            at = int(uneven[0])
            raise InputError(
                f"{gaps[at]:.3f} mm between {slices[at].name} and {slices[at + 1].name}, {usual:.3f} mm elsewhere",
                where=place,
                fix="expected evenly spaced slices; restore the missing slice",
            )
        shifts = np.linalg.norm(steps - np.median(steps, axis=0), axis=1)
        at = int(shifts.argmax())
        raise InputError(
            f"{slices[at + 1].name} lies {shifts[at]:.2f} mm beside the line of the slices before it",
            where=place,
            fix="expected slices in one line; export the series again, or reconstruct it on one grid",
        )
    length = float(np.linalg.norm(step))
    if gaps.mean() < _STEEPEST * length:
        raise InputError(
            f"the slices are shifted by {length:.1f} mm for {gaps.mean():.1f} mm of distance",
            where=place,
            fix=(
                "their positions and their orientation contradict each other; export the series again with its geometry"
            ),
        )
    axes = first.axes
    along = step / length
    # Directions rounded to two decimals turn the normal by up to 0.7°. The first and last position give it more
    # precisely.
    if np.linalg.norm(along @ axes) <= 1.5 * first.rounding:
        axes = nearest_orthonormal(axes - np.outer(along, along @ axes))
    spacing = np.mean([s.spacing for s in slices], axis=0)  # they may differ by rounding
    return slices, start, np.column_stack([axes * spacing, step])


def _check_parts(slices: Sequence[_Slice], place: Path, notes: list[str]) -> None:
    """Refuses two scans in turns; notes what else is not the same in all slices, which are in their order."""
    for name in _PARTS:
        values = [s.parts[name] for s in slices if s.parts[name]]
        if name in _MEASURED:
            values = _without_rounding(values)
        changes = sum(a != b for a, b in itertools.pairwise(values))
        shown = ", ".join(dict.fromkeys(values))[:80]
        if not changes:
            continue
        if changes >= len(set(values)):
            raise InputError(
                f"neighbouring slices alternate between {len(set(values))} values of {name} ({shown})",
                where=place,
                fix="two scans in one series; separate them",
            )
        notes.append(f"{name} is not the same in all slices ({shown})")
    numbers = [s.number for s in slices if s.number is not None]
    if len(set(numbers)) == len(slices) and numbers not in (sorted(numbers), sorted(numbers)[::-1]):
        turns = sum((b > a) != (c > b) for a, b, c in zip(numbers, numbers[1:], numbers[2:], strict=False))
        if turns == len(slices) - 2 > 1:
            first = ", ".join(map(str, numbers[:6]))
            notes.append(
                f"the slices' numbers run {first} … along their positions: are two scans in turns in this series?"
            )


def _without_rounding(values: Sequence[str]) -> list[str]:
    """Each number as the first that it differs from by rounding alone."""
    firsts: list[str] = []
    result = []
    for text in values:
        near = (first for first in firsts if _NUMBER.fullmatch(first) and _NUMBER.fullmatch(text)
                and math.isclose(float(first), float(text), rel_tol=_SAME_MEASURE))  # fmt: skip
        result.append(next(near, text))
        firsts += [text] * (result[-1] is text)
    return result


# --- pixels ----------------------------------------------------------------------------------------------------------


def _frames(dataset: Dataset, pixels: _Pixels, path: Path) -> NDArray:
    """Pixels [frames, rows, columns] as they are stored."""
    element = dataset["PixelData"]
    syntax = UID(str(dataset.file_meta.get("TransferSyntaxUID", "")))
    check_size(path, pixels.shape, 1, path.stat().st_size * DEFLATE_RATIO)
    packed = bool(element.is_undefined_length)
    if packed != (syntax.is_transfer_syntax and syntax.is_encapsulated):
        raise InputError("its transfer syntax and its pixels contradict each other", where=path, fix="copy it again")
    return _unpacked(element, pixels, syntax, path) if packed else _plain(dataset, pixels, path)


def _plain(dataset: Dataset, pixels: _Pixels, path: Path) -> NDArray:
    content, size = dataset.PixelData, pixels.allocated // 8
    wanted = math.prod(pixels.shape) * size
    if not wanted <= len(content) <= wanted + wanted % 2:  # an even length, always (PS3.5, 7.1.1)
        raise InputError(
            f"damaged or truncated: {len(content)} bytes of pixels, and the header tells of {wanted}",
            where=path,
            fix="copy it again",
        )
    order = "<" if dataset.original_encoding[1] else ">"
    if size == 1 and order == ">" and dataset["PixelData"].VR == "OW":  # pixels stored in pairs, as 16-bit words
        content = np.frombuffer(content, ">u2").astype("<u2").tobytes()
    return np.frombuffer(content, f"{order}u{size}", math.prod(pixels.shape)).reshape(pixels.shape)


def _unpacked(element: DataElement, pixels: _Pixels, syntax: UID, path: Path) -> NDArray:
    """Unpacks the pixels with GDCM, from a temporary file with a minimal header and a plain path."""
    clean = Dataset()
    clean.SOPClassUID, clean.SOPInstanceUID = _SECONDARY_CAPTURE, "1.2.3"
    clean.SamplesPerPixel, clean.PhotometricInterpretation = 1, "MONOCHROME2"
    clean.Rows, clean.Columns, clean.NumberOfFrames = pixels.rows, pixels.columns, pixels.frames
    clean.BitsAllocated, clean.BitsStored, clean.HighBit = pixels.allocated, pixels.stored, pixels.high
    clean.PixelRepresentation = pixels.signed
    clean.add(element)
    clean.file_meta = FileMetaDataset()
    clean.file_meta.TransferSyntaxUID = syntax
    try:
        # GDCM fails at run lengths with an odd number of pixels; pydicom reads them without a plugin
        if syntax == RLELossless:
            values, _ = get_decoder(syntax).as_array(clean, raw=True, decoding_plugin="pydicom")
        else:
            with tempfile.TemporaryDirectory() as folder:
                copy = Path(folder, "pixels.dcm")
                clean.save_as(copy, enforce_file_format=True)
                values = sitk_pixels(read_sitk(copy, "GDCMImageIO")).T
    except OSError as error:
        raise InputError(
            f"its pixels could not be unpacked into a temporary file ({error.strerror or last_line(error)})",
            where=path,
            fix="make room there, or name another folder in TMPDIR",
        ) from error
    except Exception as error:  # damaged pixels raise many kinds of errors
        raise InputError(
            f"damaged or unreadable pixels ({syntax.name})", where=path, fix="copy or convert it"
        ) from error
    if values.size != math.prod(pixels.shape) or values.shape[-2:] != pixels.shape[1:] or values.dtype.kind not in "iu":
        raise InputError(
            f"its header tells of {pixels.shape[::-1]} pixels, and {values.shape[::-1]} are there",
            where=path,
            fix="copy it again",
        )
    return values.reshape(pixels.shape)


def _numbers(frame: NDArray, pixels: _Pixels) -> NDArray[np.float64]:
    """The values of the stored bits; the other bits may hold overlays."""
    values = (frame.astype(np.int64) >> (pixels.high + 1 - pixels.stored)) & (2**pixels.stored - 1)
    if pixels.signed:
        values -= (values >> (pixels.stored - 1)) << pixels.stored
    return values.astype(np.float64)
