"""Names and colours of labels as viewers read them, and DICOM segmentations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydicom.sr.codedict import codes

import ummkd_tf
from ummkd_tf.common.errors import InputError
from ummkd_tf.common.files import replacing, write_whole
from ummkd_tf.output.pictures import rgb
from ummkd_tf.scans.dicom import DicomSeries
from ummkd_tf.scans.geometry import Volume, same_geometry, straightened
from ummkd_tf.tasks import Task

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_SNAP_HEADER = """\
################################################
# ITK-SnAP Label Description File
# File format:
# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL
################################################
"""
_OUR_CODES = "99UMMKD"  # our own coding scheme: DICOM leaves names that begin with 99 to private ones
# Tags that every DICOM file must have, if only with an empty value; some exported series lack them.
_MAY_BE_EMPTY = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime"),
    *("AccessionNumber", "ReferringPhysicianName"),
)
_TEXT_VALUE, _LABEL = 16, 64  # characters of a code's value and of a segment's name, at most


def write_label_files(folder: str | Path, task: Task) -> list[Path]:
    """Writes `labels.label` for ITK-SNAP (Segmentation → Import Label Descriptions) and `labels.ctbl` for 3D Slicer.

    Args:
        folder: Where to.
        task: Gives names and colours.

    Returns:
        The two paths.
    """
    rows = [(c, name, *rgb(task.class_colors[name])) for c, name in enumerate(task.class_names) if c]
    snap = ['    0     0    0    0        0  0  0    "Clear Label"']
    slicer = ["# 3D Slicer colour table: value, name, red, green, blue, opacity", "0 background 0 0 0 0"]
    for c, name, red, green, blue in rows:
        snap.append(f'{c:5d} {red:5d}{green:5d}{blue:5d}        1  1  1    "{name.replace(chr(34), chr(39))}"')
        slicer.append(f"{c} {'_'.join(name.split())} {red} {green} {blue} 255")
    contents = {"labels.label": _SNAP_HEADER + "\n".join(snap) + "\n", "labels.ctbl": "\n".join(slicer) + "\n"}
    for name, text in contents.items():
        write_whole(Path(folder) / name, text)
    return [Path(folder) / name for name in contents]


def check_highdicom() -> None:
    """Refuses to start without highdicom, so that a program does not fail after its work.

    Raises:
        InputError: highdicom is not installed.
    """
    try:
        # Here, because it is optional.
        import highdicom  # noqa: F401
    except ImportError as error:
        raise InputError(
            "DICOM segmentations need the package highdicom: install it with pip install 'ummkd_tf[dicom]'"
        ) from error


def write_dicom_seg(path: str | Path, labels: Volume, series: DicomSeries, task: Task, title: str) -> None:
    """Writes a DICOM segmentation that refers to the series it was made from.

    Args:
        path: File to write, .dcm.
        labels: uint8 class map on the series' own grid.
        series: The segmented scan.
        task: Names and colours of the classes.
        title: The model, for the algorithm's name.

    Raises:
        InputError: highdicom is missing, the series is of multi-frame files or tilted, lacks tags that DICOM requires,
            or the class map has no organ.
    """
    check_highdicom()
    if len(set(map(id, series.slices))) < len(series.slices) or series.grid.is_tilted:
        raise InputError("a DICOM segmentation needs one file for each slice, and upright slices", where=series.place)
    difference = same_geometry(straightened(series.grid), labels.grid)
    if difference:
        raise InputError(f"the label map has {difference}; expected the series' own grid", where=series.place)
    present = [c for c in range(1, task.num_classes) if (labels.array == c).any()]
    if not present:
        raise InputError("nothing was found, and a DICOM segmentation cannot be empty", where=series.place)
    try:
        content = _segmentation(labels.array, series.slices, present, task, title)
    except Exception as error:  # highdicom wants every tag that the standard requires, and raises many kinds
        raise InputError(
            f"no DICOM segmentation can be made from it ({error})",
            where=series.place,
            fix="leave --dicom_seg out, or restore the series' tags",
        ) from error
    with replacing(path) as temporary:
        content.save_as(temporary)


def _code(name: str, number: int) -> str:
    """A class's own, also where others begin alike."""
    return name if len(name) <= _TEXT_VALUE else f"{name[: _TEXT_VALUE - 4]}_{number:03d}"


def _segmentation(
    labels: NDArray[np.uint8], slices: Sequence[Dataset], present: Sequence[int], task: Task, title: str
) -> Dataset:
    # Here, because it is optional.
    import highdicom as hd

    for part in slices:
        for keyword in _MAY_BE_EMPTY:
            if keyword not in part:
                setattr(part, keyword, "")
        if str(part.PatientName).strip("^") and "^" not in str(part.PatientName):
            part.PatientName = f"{part.PatientName}^"  # highdicom wants to know that it is a family name
    algorithm = hd.AlgorithmIdentificationSequence(
        name=title[:_LABEL] or "ummkd_tf", version=ummkd_tf.__version__, family=codes.DCM.ArtificialIntelligence
    )
    described = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=task.class_names[c][:_LABEL],
            segmented_property_category=codes.SCT.AnatomicalStructure,
            segmented_property_type=hd.sr.CodedConcept(
                _code(task.class_names[c], c), _OUR_CODES, task.class_names[c][:_LABEL]
            ),
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            display_color=hd.color.CIELabColor.from_rgb(*rgb(task.class_colors[task.class_names[c]])),
        )
        for number, c in enumerate(present, start=1)
    ]
    numbers = np.zeros(256, np.uint8)  # DICOM numbers the segments that are there 1, 2, …
    numbers[list(present)] = np.arange(1, len(present) + 1)
    return hd.seg.Segmentation(
        source_images=list(slices),
        pixel_array=numbers[labels].transpose(2, 1, 0),
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=described,
        series_instance_uid=hd.UID(),
        series_number=9000,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="ummkd_tf",
        manufacturer_model_name="ummkd_tf",
        software_versions=ummkd_tf.__version__,
        device_serial_number="0",
    )
