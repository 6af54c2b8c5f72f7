"""The tables of a folder of label maps: volumes.csv for people, volumes.json for the next prediction into it."""

from __future__ import annotations

import contextlib
import csv
import fcntl
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ummkd_tf.common.documents import MALFORMED, read_json
from ummkd_tf.common.errors import InputError
from ummkd_tf.common.files import replacing, write_json
from ummkd_tf.output.label_files import write_label_files

if TYPE_CHECKING:
    from ummkd_tf.evaluation.scan_prediction import ScanPredictor

VOLUMES = "volumes.csv"
_OTHER_NAMES = "choose another --output, or give the scans other names in a CSV"
_JSON, _LOCK = "volumes.json", ".volumes.lock"
_DECIDES = ("weights_sha256", "task", "overlap", "largest_component")  # of what is told of a model; not its folder


@dataclass(frozen=True)
class ScanToSegment:
    """One scan to segment: its name, which its files take, its place and its modality."""

    name: str
    path: Path
    modality: str


class VolumeTables:
    """The tables of a folder, which also hold what the same model and options have segmented there before.

    They are written again after each scan, so that they hold what is done, however the program ends. Another process
    may write there, too, as for the other modality.

    Args:
        folder: Of the label maps.
        scans: Those to be segmented now.
        predictor: What segments them; entries that another one made, or other options, are dropped.
        sources: The runs or the model it comes from.

    Attributes:
        files: Names of the files written, once there are any.
    """

    def __init__(
        self, folder: Path, scans: Sequence[ScanToSegment], predictor: ScanPredictor, sources: Sequence[str]
    ) -> None:
        self._folder, self._scans, self._task = folder, scans, predictor.task
        self._about = {
            "model": predictor.title,
            "run_dirs": list(sources),
            "weights_sha256": list(predictor.weights_sha256),
            "task": predictor.task.name,
            "overlap": predictor.overlap,
            "largest_component": predictor.largest_component,
        }
        self._entries: dict[str, dict[str, Any]] = {}
        self.files: list[str] = []

    def kept(self, places: Mapping[str, Mapping[str, Path]]) -> list[str]:
        """Names of the scans that are done: listed as such, by the same model and options, and with all files."""
        alike, entries = self._read()
        if not alike:
            return []

        def is_done(scan: ScanToSegment) -> bool:
            entry = entries.get(scan.name, {})
            return (
                (entry.get("status", "done"), entry.get("modality")) == ("done", scan.modality)
                and _is_same_file(Path(str(entry.get("image"))), scan.path)
                and entry.get("image_state") == state_of(scan.path)
                and all(path.exists() for path in places[scan.name].values())
            )

        return [scan.name for scan in self._scans if is_done(scan)]

    def add(self, name: str, entry: dict[str, Any]) -> None:
        """Adds a scan, and writes the tables.

        Args:
            name: The scan's.
            entry: "modality", "image", "image_state" (of `state_of`), "windows", "classes" (name → label, voxels and
                ml), "status", "notes".
        """
        self._entries[name] = entry
        label_files = write_label_files(self._folder, self._task)
        with _waiting_for(self._folder / _LOCK):
            alike, entries = self._read()
            if alike:
                entries = {**entries, **self._entries}
            else:
                left = [name for name in entries if name not in {scan.name for scan in self._scans}]
                if left:
                    print(f"{self._folder}: segmented otherwise, so no longer in {VOLUMES}: {', '.join(left)}")
                entries = self._entries
            path = self._folder / VOLUMES
            with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as stream:
                writer = csv.writer(stream)
                writer.writerow(("scan", "modality", "class", "label", "voxels", "ml", "status", "notes"))
                writer.writerows(_rows(entries))
            write_json(self._folder / _JSON, {**self._about, "scans": entries})
        self.files = [VOLUMES, _JSON, *(file.name for file in label_files)]

    def _read(self) -> tuple[bool, dict[str, dict[str, Any]]]:
        """Whether the folder's entries were made by the same model and options, and the entries."""
        try:
            about = read_json(self._folder / _JSON)
            entries = dict(about.pop("scans"))
            _rows(entries)
        except MALFORMED:  # none yet, or a damaged one, which is written anew
            return True, {}
        return all(about.get(name) == self._about[name] for name in _DECIDES), entries


def _rows(entries: Mapping[str, Mapping[str, Any]]) -> list[tuple[object, ...]]:
    """Lines of volumes.csv: one for each class of a scan, or one without a class where the scan failed."""
    rows: list[tuple[object, ...]] = []
    for name, entry in entries.items():
        classes = [(c, e["label"], e["voxels"], f"{e['ml']:.3f}") for c, e in entry["classes"].items()]
        # Entries of earlier versions have neither status nor notes; they were done.
        end = entry.get("status", "done"), "; ".join(entry.get("notes", ()))
        rows += [(name, entry["modality"], *values, *end) for values in classes or [("", "", "", "")]]
    return rows


@contextlib.contextmanager
def _waiting_for(lock: Path) -> Iterator[None]:
    """Waits until no other process holds a lock file, and holds it."""
    with open(lock, "a", encoding="utf-8") as stream:
        # Some network file systems have no locks; there, one process at a time is safe.
        with contextlib.suppress(OSError):
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def check_names_are_free(
    scans: Sequence[ScanToSegment], output: Path, places: Mapping[str, Mapping[str, Path]]
) -> None:
    """Refuses to replace what the folder holds of another scan, e.g. of the other modality with the same name.

    Args:
        scans: Those to be segmented.
        output: The folder.
        places: The files of each scan, by its name.

    Raises:
        InputError: Names the scan.
    """
    try:
        earlier = read_json(output / _JSON)["scans"]
        found = {scan.name: earlier[scan.name] for scan in scans if scan.name in earlier}
        known = {name: (e["modality"], Path(e["image"]), e.get("image_state")) for name, e in found.items()}
    except MALFORMED:  # none yet, or a damaged one
        return
    for scan in scans:
        if scan.name not in known:
            continue
        modality, image, state = known[scan.name]
        if image.is_absolute() and image.exists():
            same = _is_same_file(image, scan.path)
        else:  # moved or gone; or as earlier versions wrote it, from a working folder that is not known
            same = state in (None, state_of(scan.path))
        another = modality != scan.modality or not same
        if another and places[scan.name]["labels"].exists():  # there is none of a scan that failed
            raise InputError(
                f"{scan.name}: holds the label map of another scan of that name ({modality} {image})",
                where=output,
                fix=_OTHER_NAMES,
            )
    # The probabilities of "a" and the label map of "a_probabilities" are files of one name.
    owners = {output / f"{name}{end}.nii.gz": name for end in ("_probabilities", "") for name in earlier}
    for scan in scans:
        for path in places[scan.name].values():
            owner = owners.get(path, scan.name)
            if owner != scan.name and path.exists():
                raise InputError(f"is a file of the scan {owner}, segmented before", where=path, fix=_OTHER_NAMES)


def state_of(image: Path) -> str:
    """How many files a scan has, their bytes and their newest change: other when it has been replaced."""
    files = [path for path in (image.rglob("*") if image.is_dir() else [image]) if path.is_file()]
    found = [file.stat() for file in files]
    newest = datetime.fromtimestamp(max((file.st_mtime for file in found), default=0.0), UTC)
    return f"{len(found)} files, {sum(file.st_size for file in found)} bytes, {newest.isoformat()}"


def _is_same_file(one: Path, other: Path) -> bool:
    """Whether two paths are equal or lead to one file."""
    return one == other or (one.exists() and other.exists() and one.samefile(other))
