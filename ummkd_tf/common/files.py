"""Files: written whole or not at all, and listed in file-name order."""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ummkd_tf.common.errors import InputError

UNFINISHED = ".writing-"
"""How the names of temporary folders begin; a killed process leaves them behind."""


def write_whole(path: str | Path, text: str) -> None:
    """Writes a text in UTF-8, whole or not at all; see `replacing`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON whole or not at all; NaN becomes null, since JSON has none."""
    with replacing(path) as temporary:
        temporary.write_text(
            json.dumps(_without_nan(content), indent=2, ensure_ascii=False, default=str) + "\n",
            encoding="utf-8",
            errors="backslashreplace",  # a path that is not valid Unicode: \\udcXX, which JSON reads back
        )


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and value != value else value


def check_exists(path: Path) -> None:
    """Refuses a path that leads nowhere.

    Raises:
        InputError: There is nothing, or a link to nothing.
    """
    if path.exists():
        return
    if path.is_symlink():
        raise InputError("a link to a file that is not there", where=path, fix="restore the file, or remove the link")
    raise InputError("no such file or folder", where=path, fix="check the path")


def files_in_order(folder: str | Path) -> list[Path]:
    """Visible regular files of a folder in file-name order, where 2 comes before 10.

    Raises:
        InputError: The folder cannot be listed, or holds a link to a file that is not there.
    """
    try:
        visible = [p for p in Path(folder).iterdir() if not p.name.startswith(".")]
        for path in visible:
            if path.is_symlink():
                check_exists(path)
        files = [p for p in visible if p.is_file()]
    except OSError as error:
        raise InputError(f"{error.strerror}", where=folder, fix="check the path and its permissions") from error
    # Every second token is a number.
    return sorted(files, key=lambda p: [int(t) if n % 2 else t for n, t in enumerate(re.split(r"([0-9]+)", p.name))])


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Gives a temporary file beside `path` (same suffixes) and renames it to `path` when the block ends well.

    Nothing is left behind when it does not, so a file is there whole or as it was before.

    Raises:
        InputError: The folder cannot be written to, or the disk is full.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # In a folder of its own, so that libraries that look at the suffixes see the final name.
        with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=path.parent) as folder:
            temporary = Path(folder) / path.name
            yield temporary
            with open(temporary, "rb+") as stream:
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        folder_descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder_descriptor)  # the rename itself
        finally:
            os.close(folder_descriptor)
    except OSError as error:
        reason = error.strerror or last_line(error)
        raise InputError(
            f"could not be written ({reason})", where=path, fix="make room or check permissions"
        ) from error


def last_line(error: Exception) -> str:
    """The last line of an exception's text, where libraries say what went wrong; its type where there is none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:160]
