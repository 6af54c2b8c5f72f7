"""Segmentation tasks as data: classes, grid and intensity range. A task is a JSON file.

The paper's two tasks (Sec. IV-A) are the files in `task_files/`, read by the same code as a user's own; their notes
say where each line comes from. A key that starts with "_" is a comment, and so is everything under "notes".

    {
      "name": "pelvis",
      "network": "unet3d",                         or "dilated2d"
      "class_names": ["prostate", "bladder"],      label values 1, 2, …; background is 0
      "axes": "PLS",                               direction of rows, columns, slices
      "spacing_mm": [1.0, 1.0, 3.0],
      "size": [192, 256],                          rows and columns
      "region": "body",                            or "image_center", "label_centroid"
      "clip": {"ct": {"low": -100, "high": 300, "unit": "value"},
               "default": {"low": 0, "high": 99.5, "unit": "percentile"}},
      "table_classes": ["bladder", "prostate"],    optional: order of columns
      "class_colors": {"bladder": "#56b4e9"}       optional
    }
"""

from __future__ import annotations

import colorsys
import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

from ummkd_tf.common.documents import MALFORMED, read_json
from ummkd_tf.common.errors import InputError
from ummkd_tf.model.architectures import NETWORKS

Region = Literal["body", "image_center", "label_centroid"]
Unit = Literal["value", "percentile"]

BACKGROUND = "background"

SIZE_MULTIPLE = 32
"""Rows and columns must be multiples of this: the networks halve them three times, the smallest preset takes a
quarter."""

LARGEST_SIZE = 1024
_MAX_CLASSES = 254  # foreground; label maps are uint8, and 255 marks a value that belongs to no class
_PATIENT_AXES = ("RL", "AP", "SI")
_COLOR_NAMES = ("red", "green", "blue", "yellow", "cyan", "magenta", "orange", "purple", "white")
# For readers who do not tell all colours apart: Okabe and Ito's (without black), then Paul Tol's "muted".
PALETTE = (
    *("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7"),
    *("#cc6677", "#332288", "#ddcc77", "#117733", "#88ccee", "#882255", "#44aa99", "#999933", "#aa4499"),
)
_GOLDEN_RATIO = 0.618034  # steps of this size round the circle of hues stay apart for any number of steps


@dataclass(frozen=True)
class Clip:
    """Intensity range kept before the z-score, in the image's own unit or in percentiles of its voxels (0..100)."""

    low: float
    high: float
    unit: Unit = "value"


DEFAULT_CLIP = Clip(0.0, 99.5, "percentile")
"""For modalities that a task says nothing about: our choice, so that single bright voxels do not set the scale."""


@dataclass(frozen=True)
class Task:
    """What is segmented, and on which grid.

    Attributes:
        name: Flag value, or name in a file.
        network: The network for the task (a key of `model.architectures.NETWORKS`).
        class_names: Class 0 (background) first; the position is the label value.
        table_classes: Foreground classes in the column order of tables.
        class_colors: Contour colours by class name: "#rrggbb" or a colour's name.
        axes: Patient direction in which the row, column and slice index of a prepared volume increase
            (R/L, A/P, S/I). Rows and columns span the task's image plane.
        spacing_mm: Voxel spacing of rows, columns and slices.
        size: Rows and columns of a prepared volume.
        region: What the in-plane window is centred on: the body without black margins, the image, or the labelled
            organs.
        clip: Intensity range by modality; other modalities use the entry "default".
    """

    name: str
    network: str
    class_names: tuple[str, ...]
    table_classes: tuple[str, ...]
    class_colors: Mapping[str, str]
    axes: str
    spacing_mm: tuple[float, float, float]
    size: tuple[int, int]
    region: Region
    clip: Mapping[str, Clip]

    @property
    def num_classes(self) -> int:
        """Number of classes, background included."""
        return len(self.class_names)

    def clip_for(self, modality: str) -> Clip:
        """Intensity range for a modality."""
        return self.clip.get(modality, self.clip["default"])

    def to_dict(self) -> dict[str, Any]:
        """The task as JSON has it; `task_from_dict` undoes it."""
        return asdict(self)


def task_from_dict(content: Mapping[str, Any], where: object) -> Task:
    """A task from the content of a task file, or from what a data set or a run stores of its task.

    Args:
        content: As in the module's example.
        where: The file, for messages.

    Raises:
        InputError: Names every problem at once.
    """
    known = _without_notes(content)
    problems = list(_problems(known))
    if problems:
        numbered = "; ".join(f"({number}) {text}" for number, text in enumerate(problems, start=1))
        raise InputError(
            f"{len(problems)} problem{'s'[: len(problems) > 1]} in the task",
            where=where,
            fix=f"{numbered}; correct the file, docs/data.md explains every key",
        )
    classes = _foreground(known["class_names"])
    given = known.get("class_colors", {})
    rows, columns, slices = map(float, known["spacing_mm"])
    return Task(
        name=known["name"],
        network=known["network"],
        class_names=(BACKGROUND, *classes),
        table_classes=tuple(known.get("table_classes", classes)),
        class_colors={c: given.get(c, color) for c, color in zip(classes, distinct_colors(len(classes)), strict=True)},
        axes=known["axes"],
        spacing_mm=(rows, columns, slices),
        size=(known["size"][0], known["size"][1]),
        region=known["region"],
        clip={
            "default": DEFAULT_CLIP,
            **{m: Clip(float(c["low"]), float(c["high"]), c["unit"]) for m, c in known.get("clip", {}).items()},
        },
    )


def distinct_colors(number: int) -> list[str]:
    """So many colours "#rrggbb" for contours."""
    more = [colorsys.hsv_to_rgb(_GOLDEN_RATIO * i % 1, 0.65, 0.95) for i in range(number - len(PALETTE))]
    return [*PALETTE, *("#" + "".join(f"{round(255 * part):02x}" for part in rgb) for rgb in more)][:number]


def stored_task(value: object, where: object) -> Task:
    """The task that a data set or a run stores: the whole of it, or in old ones the name of one of `TASKS`.

    Raises:
        InputError: Neither.
    """
    if isinstance(value, Mapping):
        return task_from_dict(value, where)
    if not isinstance(value, str) or value not in TASKS:
        raise InputError(f"unknown task {value!r}", where=where, fix=f"expected {' or '.join(TASKS)}, or a whole task")
    return TASKS[value]


def get_task(name: str) -> Task:
    """One of the paper's tasks by its name, or a task file by its path.

    Raises:
        InputError: Neither, or a file with problems.
    """
    if name in TASKS:
        return TASKS[name]
    path = Path(name)
    if path.suffix != ".json":
        raise InputError(f"unknown task {name!r}: expected {', '.join(TASKS)}, or the path of a task file, *.json")
    task = _read(path)
    if task.name in TASKS and task != TASKS[task.name]:
        raise InputError(
            f"the name {task.name!r} is that of the paper's task, which differs ("
            f"{'; '.join(differences(TASKS[task.name], task)) or 'in order or colours'})",
            where=path,
            fix="give the task another name",
        )
    return task


def _read(path: Path) -> Task:
    try:
        content = read_json(path)
    except MALFORMED as error:
        raise InputError(
            f"not a task file ({error})", where=path, fix="expected a JSON object, as ummkd new-task writes it"
        ) from error
    task = task_from_dict(content, path)
    # Here and not in `task_from_dict`, because data and runs may hold a task with such a key, which had no effect.
    upper = [m for m in task.clip if m != m.lower()]
    if upper:
        raise InputError(
            f"clip of {', '.join(upper)}",
            where=path,
            fix=f"expected {', '.join(upper).lower()}, because modalities are in lower case; correct the file",
        )
    return task


def differences(stored: Task, asked: Task) -> list[str]:
    """What differs between two tasks, apart from colours and the order of columns, which decide no result."""
    shown = ("class_colors", "table_classes")
    pairs = ((f.name, getattr(stored, f.name), getattr(asked, f.name)) for f in fields(Task) if f.name not in shown)
    return [f"{name} is {_text(old)}, not {_text(new)}" for name, old, new in pairs if old != new]


def check_same_task(stored: Task, asked: Task, where: object, fix: str) -> None:
    """Refuses to mix tasks.

    Raises:
        InputError: The tasks differ; names the fields.
    """
    different = differences(stored, asked)
    if different:
        raise InputError("has another task", where=where, fix=f"{'; '.join(different)}; {fix}")


def _text(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_text(entry)}" for name, entry in value.items())
    if isinstance(value, Clip):
        return f"{value.low:g} to {value.high:g} ({value.unit})"
    if isinstance(value, tuple):
        return " × ".join(f"{v:g}" for v in value) if _are_numbers(value) else ", ".join(map(str, value))
    return str(value)


# --- checks ----------------------------------------------------------------------------------------------------------


def _without_notes(content: Mapping[str, Any]) -> dict[str, Any]:
    def without(part: Mapping[str, Any]) -> dict[str, Any]:
        return {k: without(v) if isinstance(v, Mapping) else v for k, v in part.items() if not k.startswith("_")}

    return without({key: value for key, value in content.items() if key != "notes"})


def _problems(content: Mapping[str, Any]) -> Iterator[str]:
    """Every problem of a task file's content, notes already left out."""
    keys = [f.name for f in fields(Task)]
    optional = ("table_classes", "class_colors", "clip")
    yield from _unknown(content, keys, "")
    yield from (f"no {key}" for key in keys if key not in content and key not in optional)
    checks = {
        "name": _name_problems,
        "network": lambda value: _choice_problems("network", value, tuple(NETWORKS)),
        "class_names": _class_problems,
        "axes": _axes_problems,
        "spacing_mm": _spacing_problems,
        "size": _size_problems,
        "region": lambda value: _choice_problems("region", value, get_args(Region)),
        "clip": _clip_problems,
    }
    for key, check in checks.items():
        if key in content:
            yield from check(content[key])
    names = content.get("class_names")
    if names is not None and not list(_class_problems(names)):  # otherwise there is nothing to compare with
        yield from _order_problems(content.get("table_classes"), _foreground(names))
        yield from _color_problems(content.get("class_colors"), _foreground(names))


def _unknown(found: Mapping[str, Any], known: Sequence[str], inside: str) -> Iterator[str]:
    for key in found:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"expected {', '.join(known)}"
            yield f"unknown key {key!r}{inside}: {hint}"


def _name_problems(value: object) -> Iterator[str]:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z][\w-]{0,49}", value, re.ASCII):
        yield f"name {value!r}: expected a letter, then letters, digits, '_' and '-', at most 50"


def _choice_problems(key: str, value: object, choices: Sequence[str]) -> Iterator[str]:
    if value not in choices:
        yield f"{key} {value!r}: expected {' or '.join(choices)}"


def _foreground(names: Sequence[str]) -> list[str]:
    return [name for name in names if name != BACKGROUND]


def _class_problems(value: object) -> Iterator[str]:
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        yield f"class_names {value!r}: expected a list of names"
        return
    for name in dict.fromkeys(value):
        if not name.isprintable() or name.strip() != name or not 0 < len(name) <= 60 or name.startswith("_"):
            yield f"class name {name!r}: expected 1 to 60 printable characters, no space around them and no '_' first"
        if name.lower() == BACKGROUND != name:
            yield f"class name {name!r}: expected {BACKGROUND!r}, first in the list, or left out"
        if name == "mean":  # the tables' column
            yield "class name 'mean': expected another name, because tables show the mean over classes under it"
        if value.count(name) > 1:
            yield f"class name {name!r} is there {value.count(name)} times: expected different names"
    if BACKGROUND in value[1:]:
        yield f"class_names: {BACKGROUND!r} is at position {value.index(BACKGROUND)}: expected it first, or left out"
    if not 0 < len(_foreground(value)) <= _MAX_CLASSES:
        yield f"class_names: {len(_foreground(value))} classes beside background: expected 1 to {_MAX_CLASSES}"


def _axes_problems(value: object) -> Iterator[str]:
    letters = list(value) if isinstance(value, str) else []
    if len(letters) != 3 or any(sum(c in pair for c in letters) != 1 for pair in _PATIENT_AXES):
        yield f"axes {value!r}: expected three letters like PLS, one of R and L, one of A and P, one of S and I"


def _are_numbers(value: object) -> bool:
    """Whether a value is a list of numbers of sensible size; NaN, true and false do not count as numbers."""
    return isinstance(value, list | tuple) and all(type(v) in (int, float) and -1e9 < v < 1e9 for v in value)


def _spacing_problems(value: object) -> Iterator[str]:
    if not _are_numbers(value) or len(value) != 3 or not all(0.05 <= v <= 50 for v in value):  # type: ignore[arg-type, attr-defined]
        yield f"spacing_mm {value!r}: expected three numbers from 0.05 to 50: rows, columns, slices"


def _size_problems(value: object) -> Iterator[str]:
    fits = isinstance(value, list | tuple) and len(value) == 2 and all(type(n) is int for n in value)
    if not fits or not all(0 < n <= LARGEST_SIZE and n % SIZE_MULTIPLE == 0 for n in value):  # type: ignore[attr-defined]
        yield f"size {value!r}: expected rows and columns, multiples of {SIZE_MULTIPLE} up to {LARGEST_SIZE}"


def _clip_problems(value: object) -> Iterator[str]:
    if not isinstance(value, Mapping):
        yield f"clip {value!r}: expected an object with an intensity range by modality"
        return
    for modality, entry in value.items():
        inside = f"clip of {modality!r}"
        if not modality.isidentifier():
            yield f"{inside}: expected the name of a modality like ct or t1_in, or default"
        if not isinstance(entry, Mapping):
            yield f"{inside} is {entry!r}: expected an object with low, high and unit"
            continue
        keys = [f.name for f in fields(Clip)]
        yield from _unknown(entry, keys, f" in {inside}")
        yield from (f"{inside}: no {key}" for key in keys if key not in entry)
        if "unit" in entry:
            yield from _choice_problems(f"{inside}: unit", entry["unit"], get_args(Unit))
        if "low" not in entry or "high" not in entry:
            continue
        low, high = entry["low"], entry["high"]
        if not _are_numbers([low, high]) or low >= high:
            yield f"{inside} is from {low!r} to {high!r}: expected two numbers, low below high"
        elif entry.get("unit") == "percentile" and not 0 <= low < high <= 100:
            yield f"{inside} is from {low!r} to {high!r}: expected percentiles from 0 to 100"


def _order_problems(value: object, classes: Sequence[str]) -> Iterator[str]:
    if value is None:
        return
    if not isinstance(value, list | tuple) or sorted(map(str, value)) != sorted(classes):
        yield f"table_classes {value!r}: expected each of {', '.join(classes)} once"


def _color_problems(value: object, classes: Sequence[str]) -> Iterator[str]:
    if value is None:
        return
    if not isinstance(value, Mapping):
        yield f"class_colors {value!r}: expected an object with a colour by class name"
        return
    yield from _unknown(value, classes, " in class_colors")
    for name, color in value.items():
        if color not in _COLOR_NAMES and not re.fullmatch("#[0-9a-fA-F]{6}", str(color)):
            yield f"class_colors: {name!r} is {color!r}: expected #rrggbb or one of {', '.join(_COLOR_NAMES)}"


TASKS: Mapping[str, Task] = MappingProxyType(
    {path.stem: _read(path) for path in sorted(Path(__file__).with_name("task_files").glob("*.json"))}
)
"""The paper's tasks by name."""
