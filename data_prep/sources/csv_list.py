"""Own data by a CSV file, one scan a row: columns `case,modality,image,label` and, if wanted, `split` and `patient`.

`image` and `label` are NIfTI, NRRD or MetaImage files or DICOM folders, relative to the CSV's folder. `split` is train,
validation or test in every row, or empty in every row, or the column is left out. `patient` is any text that is the
same for all scans of a patient, in every row or in none; no split divides a patient. A label map is a JSON object
from the file's label value to a class name or index of the task: `{"0": "background", "7": "liver", "9": 0}`.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_prep.sources.raw_case import Found, Note, Problem, RawCase
from ummkd_tf.common.documents import MALFORMED, MAX_NAME, read_json
from ummkd_tf.common.errors import InputError
from ummkd_tf.data.dataset import PARTS
from ummkd_tf.scans.geometry import Volume
from ummkd_tf.scans.reading import Scan, read_label, read_scan, with_axes_of
from ummkd_tf.tasks import BACKGROUND, Task

_NEEDED, _OPTIONAL = ("case", "modality", "image", "label"), ("split", "patient")
COLUMNS = f"{','.join(_NEEDED)} and, if wanted, {' and '.join(_OPTIONAL)}"
_MAX_LABEL = 65535  # larger values are no label map, and would need a table of that size


def find(csv_file: Path, task: Task, label_map: Path | None = None) -> Found:
    """Cases of a CSV file, for a task.

    Raises:
        InputError: Not such a CSV or label map.
    """
    return list_cases(csv_file, read_label_map(label_map, task))


def list_cases(csv_file: Path, classes: Mapping[int, int]) -> Found:
    """Cases of a CSV file whose label values are those of `classes`.

    Raises:
        InputError: Not such a CSV.
    """
    rows = _rows(csv_file)
    written = dict.fromkeys(row["modality"] for _, row in rows)
    notes = [f"{csv_file}: modality {m} is taken as {m.lower()}" for m in written if m != m.lower()]
    rows = [(line, {**row, "modality": row["modality"].lower()}) for line, row in rows]
    cases: dict[str, RawCase] = {}
    spelled: dict[str, str] = {}
    first = {row["modality"]: line for line, row in reversed(rows)}
    odd = [name for name in first if not re.fullmatch(r"(?!(shared|overall|default)$)[a-z]\w*", name, re.ASCII)]
    fix = "expected letters, digits and '_' as in t1_in, a letter first, and not shared, overall or default; rename it"
    problems = [Problem(f"{csv_file} line {first[name]}", f"modality {name!r}", fix) for name in odd]
    for line, row in rows:
        image, label = (csv_file.parent / row[column] for column in ("image", "label"))
        mistakes = _mistakes(row, image, label)
        other = spelled.setdefault(row["case"].casefold(), row["case"])
        if row["case"] in cases:
            mistakes.append((f"the same case twice ({row['case']})", "give every scan a name of its own"))
        elif other != row["case"]:
            text = f"case {row['case']}, which on some disks is the same file name as {other}"
            mistakes.append((text, "give every scan a name of its own"))
        problems += [Problem(f"{csv_file} line {line}", problem, fix) for problem, fix in mistakes]
        if not mistakes and row["modality"] not in odd:
            cases[row["case"]] = RawCase(
                row["case"], row["modality"], image, label, classes, read_aligned, row["patient"]
            )
    patients = dict.fromkeys(row["patient"] for _, row in rows)
    written_first = {patient.casefold(): patient for patient in reversed(patients)}
    for patient in patients:
        if (other := written_first[patient.casefold()]) != patient:
            fix = "write one patient's name alike in every row, and two patients' names less alike"
            problems.append(Problem(str(csv_file), f"patient {other} and patient {patient}", fix))
    for column in _OPTIONAL:
        empty = [row["case"] for _, row in rows if not row[column]]
        if 0 < len(empty) < len(rows):
            text = f"no {column} for {', '.join(empty)}"
            fix = f"fill the {column} column in every row, or leave it empty in all"
            problems.append(Problem(str(csv_file), text, fix))
    parts = {row["case"]: row["split"] for _, row in rows}
    return Found(list(cases.values()), problems, _split(cases, parts) if all(parts.values()) else None, notes)


def read_label_map(path: Path | None, task: Task) -> Mapping[int, int]:
    """Task class by file value; without a file, the classes' own indices. Background 0 need not be named.

    Raises:
        InputError: Not a JSON object of that kind.
    """
    indices = {name: index for index, name in enumerate(task.class_names)}
    if path is None:
        return {index: index for index in indices.values()}
    try:
        values = {value: indices.get(name, name) for value, name in read_by_value(path).items()}
    except MALFORMED as error:
        raise InputError(
            f"not a label map ({error})",
            where=path,
            fix=f'expected a JSON object from label value to class, e.g. {{"1": "{task.class_names[1]}"}}',
        ) from error
    for value, index in values.items():
        if type(index) is not int or index not in indices.values():
            classes = ", ".join(task.class_names)
            raise InputError(
                f"{value} → {index!r}",
                where=path,
                fix=f"expected a class, one of {classes} or its index; correct the entry",
            )
    return {0: 0} | values


def read_by_value(label_map: Path) -> dict[int, Any]:
    """Entries of a label map by label value.

    Raises:
        ValueError, OSError: No such file, or no JSON object of that kind; all are among `MALFORMED`.
    """
    entries = read_json(label_map)
    if wrong := [value for value in entries if not value.isdecimal() or int(value) > _MAX_LABEL]:
        raise ValueError(f"{wrong[0]!r} stands where a label value from 0 to {_MAX_LABEL} should")
    by_value = {int(value): entry for value, entry in entries.items()}
    if len(by_value) < len(entries):
        raise ValueError("a label value stands there twice")
    by_value = {value: BACKGROUND if str(name).lower() == BACKGROUND else name for value, name in by_value.items()}
    if by_value.get(0, 0) not in (0, BACKGROUND):
        raise ValueError(f"0 is {by_value[0]!r}, but in label files it is background")
    return by_value


def read_aligned(case: RawCase, scan: Scan | None, note: Note) -> Volume:
    """Reads a label map and turns its axes as the image's."""
    label = read_label(case.label)
    grid = (scan or read_scan(case.image)).volume.grid
    turned = with_axes_of(grid, label)
    if turned is not label:
        note(f"{case.case_id}: the label's axes are {label.grid.axes}, the image's {grid.axes}; the label is turned")
    return turned


def _rows(csv_file: Path) -> list[tuple[int, dict[str, str]]]:
    try:
        with open(csv_file, newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, strict=True)
            columns = reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
            named = {*columns}
            if len(named) < len(columns) or not {*_NEEDED} <= named <= {*_NEEDED, *_OPTIONAL}:
                found = ",".join(columns)
                raise InputError(
                    f"columns {found or 'missing'}",
                    where=csv_file,
                    fix=f"expected {COLUMNS}; "
                    + ("save the table with commas, not semicolons" if ";" in found else "correct the first line"),
                )
            rows = []
            for row in reader:
                if not "".join(text for cell in row.values() for text in cell or ()).strip():  # of a spreadsheet
                    continue
                if None in row or None in row.values():
                    raise InputError(
                        f"{csv_file} line {reader.line_num}: not {len(columns)} fields: expected {','.join(columns)}; "
                        "correct the line"
                    )
                rows.append(
                    (
                        reader.line_num,
                        {**dict.fromkeys(_OPTIONAL, ""), **{name: text.strip() for name, text in row.items()}},
                    )
                )
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"not a readable CSV file ({error})", where=csv_file, fix="check the path and that it is UTF-8"
        ) from error
    if not rows:
        raise InputError("lists no scan", where=csv_file, fix=f"expected one a line under {COLUMNS}")
    return rows


def _mistakes(row: Mapping[str, str], image: Path, label: Path) -> list[tuple[str, str]]:
    mistakes = [
        (f"{column} file {path} does not exist", "correct the path; it is relative to the CSV's folder")
        if row[column]
        else (f"no {column}", "give one, or remove the row: a case is a scan with its label map")
        for column, path in (("image", image), ("label", label))
        if not row[column] or not _exists(path)
    ]
    if not re.fullmatch(r"\w[\w.-]*", row["case"], re.ASCII) or len(row["case"]) > MAX_NAME:
        mistakes.append((f"case name {row['case']!r}", f"use up to {MAX_NAME} letters, digits, '_', '-' and '.'"))
    if row["split"] not in ("", *PARTS):
        mistakes.append((f"split {row['split']!r}", f"use {', '.join(PARTS)}, or leave it empty in every row"))
    return mistakes


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # e.g. too long for a name
        return False


def _split(cases: Mapping[str, RawCase], parts: Mapping[str, str]) -> dict[str, dict[str, list[str]]]:
    return {
        modality: {
            part: [c for c, case in cases.items() if case.modality == modality and parts[c] == part] for part in PARTS
        }
        for modality in dict.fromkeys(case.modality for case in cases.values())
    }
