"""Writes a first task file from your own scans; read it, correct it, then prepare the data with it.

    python -m data_prep.new_task --csv=own.csv --out=my_task.json
    python -m data_prep.new_task --csv=own.csv --label_map=names.json --network=dilated2d --out=my_task.json

The CSV is that of `data_prep.prepare --source=csv`. Every choice is explained in the file, under "notes". Where the
CSV has a split, test scans are checked and not measured. A label map ({"1": "prostate", "2": "bladder"}) names the
classes; without one they are class_1, class_2, ….
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
from absl import flags
from numpy.typing import NDArray

from data_prep.sources import csv_list
from data_prep.sources.raw_case import Problem, RawCase, report
from data_prep.workers import Workers
from ummkd_tf.common.cli import run
from ummkd_tf.common.documents import MALFORMED
from ummkd_tf.common.errors import InputError
from ummkd_tf.common.files import write_whole
from ummkd_tf.common.notes import note, warnings_to
from ummkd_tf.runs.environment import available_cores
from ummkd_tf.scans import preprocessing
from ummkd_tf.scans.geometry import reorient, same_geometry
from ummkd_tf.tasks import (
    BACKGROUND,
    DEFAULT_CLIP,
    NETWORKS,
    SIZE_MULTIPLE,
    TASKS,
    Clip,
    Task,
    task_from_dict,
)

# Task axes by the direction the slices are stacked in, displayed as viewers do: transverse with anterior up, coronal
# and sagittal with the feet down.
PLANES = {"S": ("transverse", "PLS"), "A": ("coronal", "ILP"), "R": ("sagittal", "IPL")}
_DIRECTIONS = "RAS"
_THICKER = 1.2  # slices are those across the largest spacing, if it is so much larger than the others
_SHARE = 95  # per cent of the scans whose body the window must hold
_SMALLEST, _LARGEST = 64, 512  # rows and columns
_SMALL = 128  # with these, a step of preset `paper` takes a CPU a quarter of what 256 take
_FOREGROUND = (0.5, 99.5)  # percentiles of the labelled voxels, as nnU-Net clips CT
_LEAST_HIGH = 95.0  # percentile; below it the surroundings of dark organs would lose their contrast
_VOXELS = 10_000  # of each scan's foreground, so that every scan counts the same
_FAT = -125  # Hounsfield units, as in the abdomen's range; the body is found in the clipped image
_HOUNSFIELD_AIR = -500  # images that reach below are in Hounsfield units
_BODY = {True: Clip(-1000, 400), False: DEFAULT_CLIP}  # what the body is found in, before the task's range is known


@dataclass(frozen=True)
class Measured:
    """What is measured of one scan, to choose its task.

    Attributes:
        case: The scan.
        problems: Why it cannot be used.
        spacing_mm: Along R, A and S.
        extent_mm: Of the body along R, A and S.
        label_values: Values of the label map, without 0.
        foreground: Intensities of labelled voxels, at most `_VOXELS`.
        high_percentile: Where the upper end of the foreground lies among all voxels, 0..100.
        minimum: Lowest intensity.
        notes: What is odd but handled.
    """

    case: RawCase
    problems: Sequence[Problem] = ()
    spacing_mm: NDArray[np.float64] = field(default_factory=lambda: np.ones(3))
    extent_mm: NDArray[np.float64] = field(default_factory=lambda: np.ones(3))
    label_values: frozenset[int] = frozenset()
    foreground: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    high_percentile: float = 100.0
    minimum: float = 0.0
    notes: Sequence[str] = ()

    @property
    def across(self) -> str:
        """Direction of the slices: R, A or S; S where no spacing stands out."""
        order = np.argsort(self.spacing_mm)
        stands_out = self.spacing_mm[order[2]] > _THICKER * self.spacing_mm[order[1]]
        return _DIRECTIONS[order[2]] if stands_out else "S"


def is_ct(modality: str, minima: Sequence[float]) -> bool:
    """Whether a modality's intensities are Hounsfield units: by its name, or because air is far below 0."""
    return modality.startswith("ct") or float(np.median(minima)) < _HOUNSFIELD_AIR


def measure(case: RawCase) -> Measured:
    """Reads a scan and its label map; whatever is wrong with them is among the problems."""
    warnings: list[str] = []
    with warnings_to(warnings.append):
        measured = _measure(case)
    return replace(measured, notes=[f"{case.case_id}: {text}" for text in warnings])


def _measure(case: RawCase) -> Measured:
    try:
        scan = case.read_scan()
        image, label = scan.volume, case.read_label_values(scan)
        difference = same_geometry(image.grid, label.grid)
        if difference:
            raise InputError(f"the label has {difference}", where=case.label, fix="use the image's own label map")
        values = np.unique(label.array)
        if values[0] < 0 or len(values) > 255:
            text = f"{len(values)} label values from {values[0]} to {values[-1]}"
            raise InputError(f"{text}", where=case.label, fix="expected at most 255, none negative; is it a label map?")
    except InputError as error:
        return Measured(case, (Problem.of(error),))
    foreground = image.array[label.array > 0].astype(np.float32)
    upper = np.percentile(foreground, _FOREGROUND[1]) if foreground.size else image.array.max()
    oriented, minimum = reorient(image, _DIRECTIONS), float(image.array.min())
    clipped = preprocessing.clip_intensity(oriented.array, _BODY[is_ct(case.modality, [minimum])])
    body = preprocessing.find_body(clipped)
    spacing = np.array(oriented.grid.spacing_mm)
    return Measured(
        case,
        spacing_mm=spacing,
        extent_mm=spacing * [side.stop - side.start for side in body],
        label_values=frozenset(values[values > 0].tolist()),
        foreground=foreground[:: math.ceil(foreground.size / _VOXELS) or 1],
        high_percentile=100 * float(np.mean(oriented.array[body] <= upper)),
        minimum=minimum,
    )


def describe(
    scans: Sequence[Measured], *, name: str, network: str, names: Mapping[int, str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """A task file's content for measured scans, and a note for each of its keys.

    Args:
        scans: Measured without problems.
        name: The task's.
        network: A key of `model.architectures.NETWORKS`.
        names: Class name by label value.

    Raises:
        InputError: A modality without any labelled voxel.
    """
    across = Counter(scan.across for scan in scans).most_common(1)[0][0]
    plane, axes = PLANES[across]
    order = [next(i for i, pair in enumerate(("RL", "AP", "SI")) if letter in pair) for letter in axes]
    spacing = np.round(np.median([scan.spacing_mm[order] for scan in scans], axis=0), 2)
    extent = np.percentile([scan.extent_mm[order[:2]] for scan in scans], _SHARE, axis=0, method="higher")
    wanted = SIZE_MULTIPLE * np.ceil(np.round(extent / spacing[:2], 3) / SIZE_MULTIPLE).astype(int)
    size = np.clip(wanted, _SMALLEST, _LARGEST).tolist()
    clip, clip_notes = _clip(scans)
    classes = list(dict.fromkeys(names[value] for value in sorted(names) if names[value] != BACKGROUND))
    counted = [
        f"{c} in {sum(any(names[v] == c for v in scan.label_values) for scan in scans)} of {len(scans)} scans"
        for c in classes
    ]
    content = {
        "name": name,
        "network": network,
        "class_names": classes,
        "axes": axes,
        "spacing_mm": spacing.tolist(),
        "size": size,
        "region": "body",
        "clip": clip,
    }
    planes = Counter(PLANES[scan.across][0] for scan in scans)
    notes = {
        "network": "unet3d sees 8 slices at once, dilated2d three; --network chooses",
        "class_names": f"the first is label 1 of prepared data, and so on; found: {', '.join(counted)}",
        "axes": f"direction of rows, columns and slices: {plane}; slices by the largest spacing: "
        + ", ".join(f"{number} {title}" for title, number in planes.most_common()),
        "spacing_mm": f"rows, columns, slices: median of {len(scans)} scans"
        + ("; of scans in several planes, so choose one that suits them all" if len(planes) > 1 else ""),
        "size": f"rows and columns, the next multiples of {SIZE_MULTIPLE} that hold the body in {_SHARE} % of scans "
        f"({extent[0]:.0f} × {extent[1]:.0f} mm)"
        + (f"; cut at {_LARGEST}: take a larger spacing to see all of it" if wanted.max() > _LARGEST else "")
        + ("; small enough to train with --preset=paper on a CPU, too" if max(size) <= _SMALL else ""),
        "region": "the window's centre: body, image_center, or label_centroid (small organs in a large scan)",
        **clip_notes,
        "table_classes": "optional: the classes in the order of tables' columns",
        "class_colors": 'optional: {"name": "#rrggbb"}; without it, colours that most readers tell apart',
    }
    return content, notes


def _clip(scans: Sequence[Measured]) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    ranges, notes = {}, {}
    for modality in dict.fromkeys(scan.case.modality for scan in scans):
        own_scans = [scan for scan in scans if scan.case.modality == modality]
        foreground = np.concatenate([scan.foreground for scan in own_scans])
        if not foreground.size:
            raise InputError(
                f"no {modality} scan has a labelled voxel",
                where=own_scans[0].case.label,
                fix="expected labelled scans; check the label files",
            )
        low, high = map(float, np.percentile(foreground, _FOREGROUND))
        shown = f"labelled voxels have {low:.4g} to {high:.4g} ({_FOREGROUND[0]} to {_FOREGROUND[1]} percentile)"
        if is_ct(modality, [scan.minimum for scan in own_scans]):
            low = min(math.floor(low), _FAT)
            clip = Clip(low, max(math.ceil(high), low + 1))
            notes[f"clip.{modality}"] = (
                f"Hounsfield units: {shown}; at least from {_FAT}, so that fat and with it the body's outline stays"
            )
        else:
            percentile = float(np.median([scan.high_percentile for scan in own_scans]))
            clip = Clip(0, min(100.0, max(_LEAST_HIGH, math.ceil(10 * percentile) / 10)), "percentile")
            notes[f"clip.{modality}"] = (
                f"percentiles of each scan, because its unit is no fixed one: {shown}, whose upper end is percentile "
                f"{percentile:.1f}; at least {_LEAST_HIGH:g}, and dark voxels stay, for the surroundings' contrast"
            )
        ranges[modality] = vars(clip)
    notes["clip.default"] = "for a modality not named here"
    return {**ranges, "default": vars(DEFAULT_CLIP)}, notes


def read_names(label_map: Path) -> dict[int, str]:
    """Class name by label value.

    Raises:
        InputError: No such label map.
    """
    try:
        names = csv_list.read_by_value(label_map)
    except MALFORMED as error:
        raise InputError(
            f"not a label map ({error})", where=label_map, fix='expected a JSON object like {"1": "prostate"}'
        ) from error
    names = {value: BACKGROUND if name == 0 else name for value, name in names.items()}  # as prepare takes it
    wrong = [f"{value} → {name!r}" for value, name in names.items() if not isinstance(name, str)]
    if wrong:
        raise InputError(
            f"{', '.join(wrong)}",
            where=label_map,
            fix=f"expected a class name for every value, or {BACKGROUND}; correct the entries",
        )
    return names


def class_names(scans: Sequence[Measured], label_map: Path | None) -> dict[int, str]:
    """Class name by label value, from a label map or, without one, class_<value>.

    Raises:
        InputError: As `read_names`, or the label map lacks values of the scans.
    """
    found = {value: scan.case for scan in reversed(scans) for value in scan.label_values}
    if label_map is None:
        return {value: f"class_{value}" for value in sorted(found)}
    names = read_names(label_map)
    missing = [f"{value} ({found[value].label})" for value in sorted(found.keys() - names.keys())]
    if missing:
        raise InputError(
            f"no name for label value {', '.join(missing)}", where=label_map, fix="add it, as background or a class"
        )
    return names


def task_text(content: Mapping[str, Any], notes: Mapping[str, str]) -> str:
    """A task file: a line for each key, then the notes."""

    def lines(part: Mapping[str, Any], indent: str) -> str:
        entries = (f"{indent}{json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in part.items())
        return ",\n".join(entries)

    return f'{{\n{lines(content, "  ")},\n  "notes": {{\n{lines(notes, "    ")}\n  }}\n}}\n'


def first_task(
    csv_file: Path, out: Path, *, name: str, network: str, label_map: Path | None, pool: Workers
) -> tuple[list[Problem], dict[Path, str]]:
    """Measures the scans of a CSV.

    Returns:
        Problems, or else the files to write: the task, and a label map where the label values are not 1, 2, ….

    Raises:
        InputError: As `class_names` and `describe`, or a name no task can have.
    """
    if label_map:
        read_names(label_map)  # a wrong one is told now, and not after minutes of reading scans
    found = csv_list.list_cases(csv_file, {})
    for text in found.notes:
        note(text)
    scans = list(pool.each(measure, found.cases, "measure"))
    for text in (text for scan in scans for text in scan.notes):
        note(text)
    problems = [*found.problems, *(problem for scan in scans for problem in scan.problems)]
    if problems or not scans:
        return problems or [Problem(str(csv_file), "no scan", "add a row for each scan")], {}
    names = class_names(scans, label_map)
    if not any(scan.label_values for scan in scans):
        return [Problem(str(csv_file), "no label map has a voxel above 0", "check the label files")], {}
    tested = {case_id for parts in (found.split or {}).values() for case_id in parts["test"]}
    content, notes = describe(
        [scan for scan in scans if scan.case.case_id not in tested], name=name, network=network, names=names
    )
    notes["scans"] = (
        f"measured on {len(scans) - len(tested)} in training and validation"
        if tested
        else "measured on all; where the CSV has a split column, on those in training and validation alone"
    )
    task: Task = task_from_dict(content, out)
    files = {out: task_text(content, notes)}
    if label_map is None and list(names) != list(range(1, task.num_classes)):
        files[label_map_beside(out)] = json.dumps({str(value): name for value, name in names.items()}, indent=2) + "\n"
    return [], files


def label_map_beside(out: Path) -> Path:
    """Where the label map of a task file goes."""
    return out.with_name(f"{out.stem}_label_map.json")


def _define_flags() -> None:
    flags.DEFINE_string("csv", None, f"CSV file with columns {csv_list.COLUMNS}.", required=True)
    flags.DEFINE_string("out", None, "Task file to write, *.json.", required=True)
    flags.DEFINE_string("name", None, "The task's name; by default that of the file.")
    flags.DEFINE_enum("network", "unet3d", list(NETWORKS), "Network: 3D for thin scans, or 2D with three slices.")
    flags.DEFINE_string("label_map", None, 'JSON file from label value to class name, e.g. {"1": "prostate"}.')
    flags.DEFINE_bool("overwrite", False, "Replace the file if it is there.")
    flags.DEFINE_integer("workers", available_cores(), "Scans read at once, each by one process.", lower_bound=1)


def main(_: list[str]) -> int:
    """Writes a task file for the scans of --csv."""
    values = flags.FLAGS
    csv_file, out = Path(values.csv), Path(values.out)
    label_map = Path(values.label_map) if values.label_map else None
    if out.suffix != ".json":
        raise InputError(f"--out={out}: expected a name that ends in .json")
    for path in (out, label_map_beside(out)):
        if path.exists() and not values.overwrite:
            raise InputError("is there already", where=path, fix="give --overwrite, or choose another --out")
    name = values.name or re.sub(r"\W", "_", out.stem, flags=re.ASCII)
    if name in TASKS:
        raise InputError(f"--name={name}: is the paper's task: choose another name")
    with Workers(values.workers) as pool:
        problems, files = first_task(csv_file, out, name=name, network=values.network, label_map=label_map, pool=pool)
    if problems:
        return report(problems)
    for path, text in files.items():
        write_whole(path, text)
        print(path)
    used = label_map or next((path for path in files if path != out), None)
    options = f"--source=csv --csv={quote(str(csv_file))} --task={quote(str(out))}"
    options += f" --label_map={quote(str(used))}" if used else ""
    print(f"read and correct it, then: ummkd verify {options}")
    return 0


if __name__ == "__main__":
    _define_flags()
    run(main)
