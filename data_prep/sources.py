"""The table of raw data sets; the choices of every program's --source come from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from data_prep import btcv, chaos
from data_prep.raw import Found, Problem
from ummkd_tf.errors import InputError


@dataclass(frozen=True)
class Options:
    """What the user said about the raw data.

    Attributes:
        raw: Raw folder.
        raw_ct: Raw folder of the CT, where it lies elsewhere.
        raw_mr: Raw folder of the MR, where it lies elsewhere.
        sequence: Key of `chaos.SEQUENCES`.
    """

    raw: Path | None = None
    raw_ct: Path | None = None
    raw_mr: Path | None = None
    sequence: str = "t2spir"

    def folder(self, flag: str = "raw") -> Path:
        """Folder of one flag, or else of --raw.

        Raises:
            InputError: Neither is given.
        """
        folder = getattr(self, flag) or self.raw
        if folder is None:
            raise InputError("no raw folder: expected the data set's folder; give --raw=DIR")
        return folder


@dataclass(frozen=True)
class Source:
    """A raw data set.

    Attributes:
        name: Flag value.
        task: Name of the task it is prepared for.
        modalities: In the order batches use.
        summary: One line for --help.
        parts: Functions that look through the folders.
    """

    name: str
    task: str
    modalities: tuple[str, ...]
    summary: str
    parts: tuple[Callable[[Options], Found], ...]

    def find(self, options: Options) -> Found:
        """Looks through the raw folders; whatever is wrong with one is among the problems."""
        found = [_attempt(part, options) for part in self.parts]
        cases = [case for part in found for case in part.cases]
        problems = [problem for part in found for problem in part.problems]
        counts = Counter(case.case_id for case in cases)
        problems += [
            Problem(str(case.image), f"the same case twice ({case.case_id})", "keep one of them")
            for case in {case.case_id: case for case in cases}.values()
            if counts[case.case_id] > 1
        ]
        return Found(cases, problems)


def _attempt(part: Callable[[Options], Found], options: Options) -> Found:
    try:
        return part(options)
    except InputError as error:
        return Found((), (Problem.parse(error),))


def _btcv(options: Options) -> Found:
    return btcv.find(options.folder("raw_ct"))


def _chaos(options: Options) -> Found:
    return chaos.find(options.folder("raw_mr"), options.sequence)


SOURCES: Mapping[str, Source] = MappingProxyType(
    {
        source.name: source
        for source in (
            Source("btcv", "abdomen", ("ct",), f"BTCV CT, {btcv.TREE}", (_btcv,)),
            Source("chaos", "abdomen", ("mr",), f"CHAOS MR, {chaos.TREE}", (_chaos,)),
            Source("abdomen", "abdomen", ("ct", "mr"), "BTCV (RAW/btcv) and CHAOS (RAW/chaos) together", (_btcv, _chaos)),
        )
    }
)
