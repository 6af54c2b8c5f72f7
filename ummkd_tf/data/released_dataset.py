"""A data set made of the authors' released records and test volumes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import ClassVar

import numpy as np

from ummkd_tf.common.documents import MALFORMED, read_json, strings
from ummkd_tf.common.errors import InputError
from ummkd_tf.common.files import write_whole
from ummkd_tf.data.cache import Cache
from ummkd_tf.data.cases import Case, Checksums
from ummkd_tf.data.dataset import RELEASED, Dataset
from ummkd_tf.data.reduction import reduce_image, reduce_label
from ummkd_tf.data.sampling import Example, Examples
from ummkd_tf.released.records import MODALITIES, TASK, OutsideLabel, read_record, without_outside
from ummkd_tf.tasks import TASKS, stored_task

RECORD_PARTS = ("train", "validation")


def read_example(path: Path, factor: int, outside: OutsideLabel) -> Example:
    """`read_record` for a network: reduced in the plane by `factor`, `OUTSIDE` as chosen."""
    image, label = read_record(path)
    if outside == "background":
        label = without_outside(label)
    return reduce_image(image, factor), reduce_label(label[..., np.newaxis], factor)[..., 0]


class RecordExamples:
    """Training records of one modality, uniform over all; read from disk whenever they are drawn.

    Args:
        paths: Record files.
        factor: In-plane reduction.
        outside: What label `OUTSIDE` is.
    """

    def __init__(self, paths: Sequence[Path], factor: int, outside: OutsideLabel) -> None:
        self._paths, self._factor, self._outside = list(paths), factor, outside

    def _choose(self, rng: np.random.Generator) -> Path:
        return self._paths[rng.integers(len(self._paths))]

    def draw(self, rng: np.random.Generator) -> Example:
        return read_example(self._choose(rng), self._factor, self._outside)

    def origin(self, rng: np.random.Generator) -> str:
        return self._choose(rng).name

    def classes(self) -> Iterable[Collection[int]]:
        return (np.unique(without_outside(read_record(path)[1])).tolist() for path in self._paths)


@dataclass(frozen=True)
class ReleasedDataset(Dataset):
    """A folder of released records with their test volumes; ids of train and validation are records.

    Attributes:
        raw: Folder of the records; an id is a record's path below it.
        outside: What label `OUTSIDE` is in training. In evaluation it is none of the structures.
        sha256: Checksum over all records and test volumes.
    """

    raw: Path
    outside: OutsideLabel
    sha256: str

    unit: ClassVar[str] = "records"

    def check_copies(self) -> None:
        """Nothing: the release has copies of its own, which preparation notes."""

    @classmethod
    def load(cls, directory: str | Path) -> ReleasedDataset:
        """Reads `released.json` and checks that its files are there.

        Raises:
            InputError: No or another description, or a missing file.
        """
        directory = Path(directory)
        path = directory / RELEASED
        try:
            content = read_json(path)
            records = {
                m: {part: strings(parts[part]) for part in RECORD_PARTS} for m, parts in content["records"].items()
            }
            cases = content["cases"]
            dataset = cls(
                directory=directory,
                task=stored_task(content["task"], path),
                modalities=strings(content["modalities"]),
                case_modality={r: m for m, parts in records.items() for part in RECORD_PARTS for r in parts[part]}
                | {c: str(entry["modality"]) for c, entry in cases.items()},
                split={part: tuple(r for parts in records.values() for r in parts[part]) for part in RECORD_PARTS}
                | {"test": tuple(cases)},
                split_name=str(content["split_name"]),
                source="released records",
                raw=Path(content["raw"]),
                outside=content["label_5"],
                sha256=str(content["sha256"]),
            )
        except InputError:
            raise
        except MALFORMED as error:
            raise InputError(
                f"not a description of released data ({error!r})", where=path, fix="prepare the data again"
            ) from error
        if dataset.outside not in ("ignored", "background"):
            raise InputError(
                f"label_5 is {dataset.outside!r}", where=path, fix="expected ignored or background; correct it"
            )
        for record in (*dataset.split["train"], *dataset.split["validation"]):
            steps = PurePosixPath(record)
            if steps.is_absolute() or ".." in steps.parts or max(map(len, steps.parts), default=256) > 255:
                raise InputError(
                    f"record {record!r}", where=path, fix=f"expected a path below {dataset.raw}; prepare the data again"
                )
            if not (dataset.raw / record).is_file():
                raise InputError(
                    "missing record", where=dataset.raw / record, fix="restore it or prepare the data again"
                )
        for case_id in dataset.split["test"]:
            if not dataset.path(case_id).is_file():
                raise InputError("missing case file", where=dataset.path(case_id), fix="prepare the data again")
        return dataset

    @property
    def scans(self) -> list[str]:
        """Ids of the test volumes: the others are single slices."""
        return self.ids("test")

    def records(self, part: str, modality: str) -> list[Path]:
        """Record files of a part and modality."""
        return [self.raw / record for record in self.ids(part, modality)]

    def case(self, case_id: str, factor: int = 1, *, original_label: bool = False) -> Case:
        """Reads one test volume, reduced in the plane by `factor`.

        Raises:
            InputError: The id is a record's.
        """
        if case_id not in self.split["test"]:
            raise InputError("a single slice", where=case_id, fix="only the test part has volumes; use --part=test")
        return super().case(case_id, factor, original_label=original_label)

    def _slices(self, modality: str, factor: int, cache: Cache | None) -> Examples:
        # Each record is a small file, which is read whenever it is drawn.
        return RecordExamples(self.records("train", modality), factor, self.outside)

    def _patches(self, *_: object) -> Examples:
        raise InputError(
            "released records are slices with their neighbours",
            where=self.directory,
            fix="expected the 2D network, which needs no volumes; give --network=dilated2d",
        )

    @property
    def checksums(self) -> Mapping[str, Checksums]:
        """Nothing: `split_checksum` holds the files' contents."""
        return {}

    @property
    def split_checksum(self) -> str:
        """sha256 over the split, the files' contents, and what label 5 is."""
        return hashlib.sha256(json.dumps([self.split, self.sha256, self.outside], sort_keys=True).encode()).hexdigest()


def write_description(
    directory: Path,
    *,
    raw: Path,
    records: Mapping[str, Mapping[str, Sequence[str]]],
    cases: Mapping[str, Mapping[str, str]],
    split_name: str,
    outside: OutsideLabel,
    sha256: str,
) -> None:
    """Writes `released.json`.

    Args:
        directory: Folder of the description and of `cases/`.
        raw: Folder of the records.
        records: Paths below `raw` by modality and part.
        cases: "modality" and "source" by test case.
        split_name: Where the parts come from.
        outside: What label `OUTSIDE` is in training.
        sha256: Checksum over all files.
    """
    content = {
        "task": TASKS[TASK].to_dict(),
        "modalities": list(MODALITIES),
        "label_5": outside,
        "raw": str(raw.absolute()),
        "split_name": split_name,
        "sha256": sha256,
        "cases": cases,
        "records": records,
    }
    write_whole(directory / RELEASED, json.dumps(content, indent=1) + "\n")
