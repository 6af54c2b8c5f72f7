"""The table of raw data sets; the choices of every program's --source come from it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from data_prep.sources import btcv, chaos, csv_list, mmwhs
from data_prep.sources.raw_case import Found, Problem, RawCase
from ummkd_tf.common.errors import InputError, listed
from ummkd_tf.tasks import TASKS, Task, get_task

PHANTOM = "phantom.json"  # data_prep.phantom writes it beside the scans


@dataclass(frozen=True)
class RawOptions:
    """What the user said about the raw data.

    Attributes:
        raw: Raw folder.
        raw_ct: Raw folder of the CT, where it lies elsewhere.
        raw_mr: Raw folder of the MR, where it lies elsewhere.
        sequence: Key of `chaos.SEQUENCES`.
        csv: CSV file of own data.
        label_map: JSON file of own data's label values.
        task: Name or file of the task own data is prepared for.
    """

    raw: Path | None = None
    raw_ct: Path | None = None
    raw_mr: Path | None = None
    sequence: str = "t2spir"
    csv: Path | None = None
    label_map: Path | None = None
    task: str | None = None

    def folder(self, flag: str = "raw") -> Path:
        """Folder of one flag, or else of --raw.

        Raises:
            InputError: Neither is given.
        """
        folder = getattr(self, flag) or self.raw
        if folder is None:
            raise InputError("--raw: no folder given: expected the one the data set lies in")
        return folder


def has_phantoms(cases: Iterable[RawCase]) -> bool:
    """Whether a scan lies somewhere below a folder with the phantom generator's manifest."""
    folders = {folder for case in cases for folder in case.image.resolve().parents}
    return any((folder / PHANTOM).is_file() for folder in folders)


@dataclass(frozen=True)
class Source:
    """A raw data set.

    Attributes:
        name: Flag value.
        task: Name of the task it is prepared for, or None where the user says.
        modalities: In the order batches use, or () where the cases say.
        summary: One line for --help.
        parts: Functions that look through the folders.
        known: Numbers of all cases that were published with labels, by modality.
    """

    name: str
    task: str | None
    modalities: tuple[str, ...]
    summary: str
    parts: tuple[Callable[[RawOptions], Found], ...]
    known: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def task_for(self, options: RawOptions) -> Task:
        """The task this source is prepared for.

        Raises:
            InputError: --task is missing, or is not the source's.
        """
        if self.task and options.task and options.task != self.task:
            raise InputError(f"--task={options.task}: expected {self.task} for {self.name}; leave --task out")
        name = self.task or options.task
        if name is None:
            raise InputError(
                f"no task: --source={self.name} can be prepared for any; give --task={'|'.join(TASKS)} or a task file"
            )
        return get_task(name)

    def described(self, options: RawOptions, cases: Iterable[RawCase]) -> str:
        """What `dataset.json` says of it, of options that decide which scans are taken, and of phantoms among them."""
        sequence = options.sequence if _chaos in self.parts and options.sequence != RawOptions.sequence else ""
        return " ".join(filter(None, ("phantom" if has_phantoms(cases) else "", self.name, sequence)))

    def find(self, options: RawOptions) -> Found:
        """Looks through the raw folders; whatever is wrong with one is among the problems."""
        found = [_attempt(part, options) for part in self.parts]
        cases = [case for part in found for case in part.cases]
        problems = [problem for part in found for problem in part.problems]
        notes = [note for part in found for note in part.notes]
        if not has_phantoms(cases):
            notes += self._incomplete({case.case_id for case in cases})
        return Found(cases, problems, found[0].split, notes)

    def _incomplete(self, found: Collection[str]) -> Iterator[str]:
        """Notes on downloads that lack some of the published cases."""
        for modality, numbers in self.known.items():
            missing = [number for number in numbers if f"{modality}_{number}" not in found]
            if 0 < len(missing) < len(numbers):
                there = len(numbers) - len(missing)
                yield f"{modality}: {there} of {len(numbers)} known cases; not there: {listed(missing, 10)}"


def _attempt(part: Callable[[RawOptions], Found], options: RawOptions) -> Found:
    try:
        return part(options)
    except InputError as error:
        return Found((), (Problem.of(error),))


def _btcv(options: RawOptions) -> Found:
    return btcv.find(options.folder("raw_ct"))


def _chaos(options: RawOptions) -> Found:
    return chaos.find(options.folder("raw_mr"), options.sequence)


def _mmwhs_ct(options: RawOptions) -> Found:
    return mmwhs.find(options.folder("raw_ct"), "ct")


def _mmwhs_mr(options: RawOptions) -> Found:
    return mmwhs.find(options.folder("raw_mr"), "mr")


def _own(options: RawOptions) -> Found:
    if options.csv is None:
        raise InputError("--csv: no file given: expected a CSV that lists your scans")
    return csv_list.find(options.csv, get_task(options.task or ""), options.label_map)


SOURCES: Mapping[str, Source] = MappingProxyType(
    {
        source.name: source
        for source in (
            Source("btcv", "abdomen", ("ct",), f"BTCV CT, {btcv.TREE}", (_btcv,), {"ct": btcv.IDS}),
            Source("chaos", "abdomen", ("mr",), f"CHAOS MR, {chaos.TREE}", (_chaos,), {"mr": chaos.IDS}),
            Source(
                "abdomen",
                "abdomen",
                ("ct", "mr"),
                "BTCV (RAW/btcv) and CHAOS (RAW/chaos) together",
                (_btcv, _chaos),
                {"ct": btcv.IDS, "mr": chaos.IDS},
            ),
            Source(
                "mmwhs",
                "cardiac",
                ("ct", "mr"),
                f"MM-WHS CT and MR, {mmwhs.TREE}",
                (_mmwhs_ct, _mmwhs_mr),
                {"ct": mmwhs.IDS, "mr": mmwhs.IDS},
            ),
            Source("csv", None, (), f"own data, listed in --csv with columns {csv_list.COLUMNS}", (_own,)),
            # Not raw scans: data_prep.release checks and describes them.
            Source(
                "released",
                "cardiac",
                ("ct", "mr"),
                "the authors' records: {ct,mr}_{train,val}_list, the records they name, test volumes *{ct,mr}*.npz",
                (),
            ),
        )
    }
)
