"""CHAOS abdominal MR: `Train_Sets/MR/<id>/T2SPIR/{DICOM_anon/*.dcm, Ground/*.png}` and `T1DUAL/…`.

A PNG belongs to the DICOM file of the same place in file-name order, and has its number; slices are put in order by
their position in the patient, because file order runs up in some patients and down in others
(docs/reproduction.md#chaos).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np

from data_prep.sources.raw_case import Found, Note, Problem, RawCase, find_root, numbered
from ummkd_tf.common.errors import InputError
from ummkd_tf.common.files import files_in_order
from ummkd_tf.scans.dicom import DicomSeries
from ummkd_tf.scans.geometry import Volume
from ummkd_tf.scans.itk import read_png
from ummkd_tf.scans.reading import Scan

MODALITY = "mr"
# Published grey ranges: liver, right kidney, left kidney, spleen.
CLASSES = {0: 0} | {
    grey: label
    for label, (above, last) in enumerate([(55, 70), (110, 135), (175, 200), (240, 255)], start=1)
    for grey in range(above + 1, last + 1)
}
# Folder of the DICOM files and of the PNG files below a patient's folder, by --sequence.
SEQUENCES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "t2spir": ("T2SPIR/DICOM_anon", "T2SPIR/Ground"),
        "t1_in": ("T1DUAL/DICOM_anon/InPhase", "T1DUAL/Ground"),
        "t1_out": ("T1DUAL/DICOM_anon/OutPhase", "T1DUAL/Ground"),
    }
)
IDS = tuple(str(n) for n in (1, 2, 3, 5, 8, 10, 13, 15, 19, 20, 21, 22, 31, 32, 33, 34, 36, 37, 38, 39))  # with labels
TREE = "Train_Sets/MR/<number>/{T2SPIR,T1DUAL}/{DICOM_anon,Ground}"


def find(raw: Path, sequence: str = "t2spir") -> Found:
    """Cases of CHAOS in a folder or below it.

    Raises:
        InputError: As `find_root`.
    """
    # The folders of the challenge's test cases have no labels.
    root = find_root(raw, lambda folder: any(folder.glob("[0-9]*/T[12]*/Ground")), "CHAOS MR cases", TREE)
    cases, problems = [], []
    for number, (patient,) in numbered(root, r"(\d+)").items():
        image, label = (patient / name for name in SEQUENCES[sequence])
        missing = [folder for folder in (image, label) if not folder.is_dir()]
        problems += [Problem(str(folder), "missing folder", f"add it, or remove {patient}") for folder in missing]
        if not missing:
            cases.append(RawCase(f"{MODALITY}_{number}", MODALITY, image, label, CLASSES, read_grey_values))
    return Found(cases, problems)


def read_grey_values(case: RawCase, scan: Scan | None, note: Note) -> Volume:
    """Stacks the PNG files in the order of the DICOM slices in space.

    Raises:
        InputError: A PNG too many or too few, with the number of another slice, of another size, or in colour.
    """
    if scan is None:  # the pixels may be damaged and the headers sound
        series = DicomSeries.open(case.image)
        grid, slices, file_of_slice = series.grid, series.files, series.file_of_slice
    else:
        grid, slices, file_of_slice = scan.volume.grid, scan.files, scan.file_of_slice
    if len(slices) != len(file_of_slice):
        raise InputError(
            f"{len(slices)} DICOM file(s) with {len(file_of_slice)} slices",
            where=case.image,
            fix="expected one file a slice, as CHAOS has them; convert it, or list scan and label in a CSV",
        )
    files = [path for path in files_in_order(case.label) if path.suffix.lower() == ".png"]
    if len(files) != len(file_of_slice):
        raise InputError(
            f"{len(files)} PNG files for {len(file_of_slice)} DICOM files",
            where=case.label,
            fix="expected one each; restore the missing or remove the extra one",
        )
    _check_numbers(slices, files, case)
    grey = np.empty(grid.shape, np.int32)
    for k, which in enumerate(file_of_slice):
        values = read_png(files[which])
        if values.shape != grey.shape[:2]:
            raise InputError(
                f"{values.shape} pixels, the scan's slices have {grey.shape[:2]}",
                where=files[which],
                fix="expected the same; use the scan's own label",
            )
        grey[:, :, k] = values
    if list(file_of_slice) != sorted(file_of_slice):
        note(f"{case.case_id}: files do not run from feet to head; slices are ordered by their position")
    return Volume(grey, grid.affine)


def _check_numbers(slices: Sequence[Path], labels: Sequence[Path], case: RawCase) -> None:
    """Refuses pairs of files with different numbers: where a file of each kind is missing, their counts still agree.

    The PNGs of T1DUAL have the in-phase files' numbers; those of the out-phase files differ from them by a constant.
    """
    numbers = [[_number(file) for file in files] for files in (slices, labels)]
    if None in numbers[0] + numbers[1]:
        return
    apart = [of_slice - of_label for of_slice, of_label in zip(*numbers, strict=True)]
    expected = apart[0] if case.image.name == "OutPhase" else 0
    for slice_file, label, difference in zip(slices, labels, apart, strict=True):
        if difference != expected:
            raise InputError(
                f"{label.name} stands where the label of {slice_file.name} should",
                where=case.label,
                fix="expected the same number in both names; restore the missing files",
            )


def _number(file: Path) -> int | None:
    """The last number in a file's name, without its suffix."""
    found = re.findall(r"[0-9]+", file.stem)
    return int(found[-1]) if found else None
