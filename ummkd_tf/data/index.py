"""`index.json` beside `dataset.json`: what a sampler must know about each case before it reads voxels.

<data_dir>/index.json   {"format": 1, "cases": {case id: {
                            "num_bytes": size of the file,
                            "shape": [rows, columns, slices],
                            "factors": {in-plane reduction: {
                                "classes": values of the class map,
                                "labelled": [first, last] slice that holds more than background, or null}}}}}

Preparation writes it. Cases that it lacks, whose file is newer than the index or of another size, are read and checked
once when they are first trained on. It can be deleted at any time.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ummkd_tf.common.documents import MALFORMED, read_json
from ummkd_tf.common.errors import InputError
from ummkd_tf.common.files import write_json
from ummkd_tf.common.progress import progress
from ummkd_tf.data.cases import CASES, labelled_slices, read_case
from ummkd_tf.data.reduction import reduce_label
from ummkd_tf.scans.checks import MAX_VOXELS

INDEX = "index.json"
FACTORS = (1, 2, 4)
"""In-plane reductions that preparation notes: the presets'. Another is added when it is first asked for."""

_FORMAT = 1
_MANY = 100  # cases; from this number on, a progress bar shows that they are examined


@dataclass(frozen=True)
class LabelContent:
    """What a class map holds, reduced in the plane.

    Attributes:
        classes: Values that it has.
        labelled: First and last slice that holds more than background; None where there is none.
    """

    classes: tuple[int, ...]
    labelled: tuple[int, int] | None


@dataclass(frozen=True)
class CaseContent:
    """What one case file holds.

    Attributes:
        num_bytes: Size of the file.
        shape: Rows, columns and slices, unreduced.
        factors: In-plane reduction → content of the class map.
    """

    num_bytes: int
    shape: tuple[int, int, int]
    factors: Mapping[int, LabelContent]


def content_of(path: Path, factors: Iterable[int], label: NDArray[np.uint8] | None = None) -> CaseContent:
    """What a case file holds; reductions that do not divide its rows and columns are left out.

    Args:
        path: The file.
        factors: In-plane reductions.
        label: Its class map, where it is known; by default the file is read and checked.

    Raises:
        InputError: As `read_case`.
    """
    label = read_case(path).label if label is None else label
    rows, columns, _ = label.shape
    contents = {}
    for factor in factors:
        if rows % factor == columns % factor == 0:
            coarse = reduce_label(label, factor)
            contents[factor] = LabelContent(tuple(np.unique(coarse).tolist()), labelled_slices(coarse))
    return CaseContent(path.stat().st_size, label.shape, contents)


def read_index(directory: Path) -> dict[str, CaseContent]:
    """What is known of the cases of a data set; damaged entries are left out."""
    try:
        content = read_json(directory / INDEX)
        cases = dict(content["cases"]) if content["format"] == _FORMAT else {}
    except MALFORMED:
        return {}
    index = {}
    for case_id, entry in cases.items():
        with contextlib.suppress(*MALFORMED):
            index[case_id] = _parsed(entry)
    return index


def _parsed(entry: Mapping[str, Any]) -> CaseContent:
    rows, columns, depth = map(_count, entry["shape"])
    if not 0 < rows * columns * depth <= MAX_VOXELS:
        raise ValueError(f"{entry['shape']} voxels")
    factors = {}
    for factor, content in entry["factors"].items():
        labelled = None if content["labelled"] is None else tuple(map(_count, content["labelled"]))
        if labelled is not None and not (len(labelled) == 2 and labelled[0] <= labelled[1] < depth):
            raise ValueError(f"labelled {labelled} of {depth}")
        factors[int(factor)] = LabelContent(tuple(map(_count, content["classes"])), labelled)
    return CaseContent(_count(entry["num_bytes"]), (rows, columns, depth), factors)


def _count(value: Any) -> int:
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r}: expected a number from 0")
    return value


def write_index(directory: Path, index: Mapping[str, CaseContent]) -> None:
    """Writes `index.json`.

    Raises:
        InputError: As `replacing`.
    """
    write_json(
        directory / INDEX, {"format": _FORMAT, "cases": {case_id: asdict(index[case_id]) for case_id in sorted(index)}}
    )


def _current(directory: Path, index: Mapping[str, CaseContent]) -> dict[str, CaseContent]:
    """The entries of cases whose files are as they were when the index was written."""
    if not index:
        return {}
    written = (directory / INDEX).stat().st_mtime_ns
    with os.scandir(directory / CASES) as files:
        found = {entry.name: entry.stat() for entry in files}
    return {
        case_id: content
        for case_id, content in index.items()
        if (file := found.get(f"{case_id}.h5")) and file.st_size == content.num_bytes and file.st_mtime_ns < written
    }


Each = Callable[[Callable[[Path], CaseContent], Sequence[Path]], Iterable[CaseContent]]


def _each(look: Callable[[Path], CaseContent], paths: Sequence[Path]) -> Iterable[CaseContent]:
    return progress(map(look, paths), total=len(paths), desc="index", unit="case", disable=len(paths) < _MANY)


def contents(
    directory: Path,
    paths: Mapping[str, Path],
    factors: Collection[int],
    *,
    known: Mapping[str, CaseContent] = MappingProxyType({}),
    each: Each | None = None,
) -> dict[str, CaseContent]:
    """What is in these cases; cases that the index lacks are examined and added to it.

    Args:
        directory: Folder of the data set. Where it cannot be written to, the index stays as it is.
        paths: File by case id.
        factors: In-plane reductions that are needed.
        known: What is known of some cases, for all of these factors, from writing their files.
        each: Goes through the files that must be looked at, e.g. in several processes.

    Raises:
        InputError: As `read_case`.
    """
    index = {**_current(directory, read_index(directory)), **known}
    unknown = {c: path for c, path in paths.items() if c not in index or not set(factors) <= set(index[c].factors)}
    if unknown:
        look = partial(content_of, factors=tuple(factors))
        found = (each or _each)(look, list(unknown.values()))
        for case_id, content in zip(unknown, found, strict=True):
            before = index[case_id].factors if case_id in index else {}
            index[case_id] = replace(content, factors={**before, **content.factors})
    if unknown or known:
        with contextlib.suppress(InputError):
            write_index(directory, index)
    return {case_id: index[case_id] for case_id in paths}
