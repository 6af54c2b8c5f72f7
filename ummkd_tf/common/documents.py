"""Files that describe something (JSON) or pack arrays (.npz), read without trusting them.

No pickle, no code, and no more memory than a file of that size can stand for.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ummkd_tf.common.errors import InputError

MALFORMED = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError)
"""What taking a malformed document apart raises."""

DEFLATE_RATIO = 1032
"""Deflate never shrinks more than this (zlib, "Technical Details"): a file that claims more is damaged or a trap."""

_LARGEST_DOCUMENT = 64 * 2**20
_MEMBER_KINDS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_HEADER_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        OSError, ValueError, RecursionError: Not readable, or no JSON object; all are among `MALFORMED`.
    """
    if not path.exists():  # Python's own words hold an error number and the path once more
        raise FileNotFoundError("no such file")
    with open(path, encoding="utf-8") as stream:
        text = stream.read(_LARGEST_DOCUMENT)
    content = json.loads(text, object_pairs_hook=_distinct)
    if not isinstance(content, dict):
        raise ValueError(f"a JSON {type(content).__name__}, expected an object")
    return content


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; Python's own parser would take the last of two entries for one key."""
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)!r} stands there twice")
    return content


def strings(value: Any) -> tuple[str, ...]:
    """A JSON list of strings.

    Raises:
        TypeError: Anything else.
    """
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise TypeError(f"{str(value)[:80]}: expected a list of strings")
    return tuple(value)


MAX_NAME = 100
"""Characters of a case id: with a suffix and a folder's prefix, every file system takes it."""


def plain_name(name: str) -> str:
    """A case id that can be a file's name, so that no name in a document leads out of its folder.

    Raises:
        InputError: A path separator, a control character, a leading dot, or too long for a file.
    """
    if not name.isprintable() or Path(name).name != name or name.startswith(".") or not name:
        raise InputError(f"case id {name!r}: expected a plain name without path separators; rename the case")
    if len(name) > MAX_NAME:
        raise InputError(f"case id {name!r}: {len(name)} characters: expected at most {MAX_NAME}; rename the case")
    return name


def read_npz(path: Path, names: Sequence[str] | None = None) -> dict[str, NDArray]:
    """Arrays of a `.npz` file; every byte of each enters its CRC.

    `numpy.load` stops where an array's own header says, so a damaged header can hide the CRC from it.

    Args:
        path: The file.
        names: Arrays wanted; all by default.

    Returns:
        Read-only arrays by name.

    Raises:
        KeyError: A wanted array is not there.
        FileNotFoundError: No such file.
        InputError: Damaged, or not plain arrays.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            wanted = list(members if names is None else names)
            arrays = {name: _array(archive, members[name]) for name in wanted if name in members}
    except FileNotFoundError:
        raise
    except Exception as error:  # zipfile, zlib and numpy raise many kinds for damaged files
        raise InputError(
            "not a readable .npz file of plain arrays", where=path, fix="copy or download it again"
        ) from error
    if len(arrays) < len(wanted):
        raise KeyError(next(name for name in wanted if name not in arrays))
    return arrays


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> NDArray:
    if info.compress_type not in _MEMBER_KINDS or info.file_size > DEFLATE_RATIO * info.compress_size:
        raise ValueError(f"{info.filename}: packed in an unknown way")
    with archive.open(info) as member:
        content = member.read(info.file_size)  # all of it, so that the CRC is compared, and no more
    stream = io.BytesIO(content)
    shape, by_column, dtype = _HEADER_READERS[np.lib.format.read_magic(stream)](stream)
    count = math.prod(shape)
    if dtype.hasobject or min(shape, default=0) < 0 or count * dtype.itemsize != len(content) - stream.tell():
        raise ValueError(f"{info.filename}: header and content do not fit")
    values = np.frombuffer(content, dtype, count, stream.tell())
    return values.reshape(shape, order="F" if by_column else "C")
