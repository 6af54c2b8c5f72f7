"""The authors' list files, which name one record a line."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from ummkd_tf.common.errors import InputError

FilesByName = Mapping[str, Sequence[Path]]


def files_by_name(folder: str | Path) -> FilesByName:
    """All visible files below a folder, by file name.

    Raises:
        InputError: A folder that cannot be listed.
    """

    def fail(error: OSError) -> None:
        raise InputError(f"{error.strerror}", where=error.filename, fix="check the path and its permissions") from error

    found: dict[str, list[Path]] = {}
    for place, folders, names in os.walk(folder, onerror=fail):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                found.setdefault(name, []).append(Path(place, name))
    return found


def find_listed(path: str | Path, files: FilesByName, folder: str | Path) -> tuple[list[Path], list[InputError]]:
    """Files that a list file names, one a line; blank lines are left out, and nothing else is.

    The authors' lists hold paths of their own machines, so a line means the file of that name below `folder`; of
    several, the one whose folders agree best with the line. Nothing outside `folder` is ever looked at.

    Args:
        path: The list file.
        files: `files_by_name` of the folder.
        folder: Where the listed files lie.

    Returns:
        The files, and every problem: a list that cannot be read or is empty, a missing or ambiguous file, and a file
        named twice.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        return [], [InputError(f"not a readable text file ({error})", where=path, fix="expected one path a line")]
    named = {number: line.strip().replace("\\", "/") for number, line in enumerate(lines, start=1) if line.strip()}
    if not named:
        return [], [InputError("empty list", where=path, fix="expected one path a line; copy or unpack it again")]
    found: dict[Path, int] = {}
    problems = []
    for number, line in named.items():
        wanted = PurePosixPath(line)
        candidates = _best_matches(wanted, files.get(wanted.name, ()))
        text = None
        if not candidates:
            text = f"no file {wanted.name} below {folder}: expected every listed file; add it or remove the line"
        elif len(candidates) > 1:
            text = f"{len(candidates)} files {wanted.name} fit {line}: expected one; remove the others"
        elif candidates[0] in found:
            text = f"{wanted.name} is already in line {found[candidates[0]]}: expected every file once; remove one line"
        else:
            found[candidates[0]] = number
        if text:
            problems.append(InputError(f"{path} line {number}: {text}"))
    if not found and len(problems) > 1:
        fix = f"expected them as {PurePosixPath(named[min(named)]).name}; unpack the records there"
        problems = [InputError(f"none of its {len(named)} files is below {folder}", where=path, fix=fix)]
    return list(found), problems


def _best_matches(wanted: PurePosixPath, candidates: Iterable[Path]) -> list[Path]:
    """The candidates that share the most last folders with the wanted path."""

    def agreement(candidate: Path) -> int:
        pairs = zip(reversed(candidate.parts), reversed(wanted.parts), strict=False)
        return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))

    ranked = {candidate: agreement(candidate) for candidate in candidates}
    return [candidate for candidate, rank in ranked.items() if rank == max(ranked.values())]
