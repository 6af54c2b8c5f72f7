"""A folder of prepared cases and its split."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np

from ummkd_tf.common.documents import MALFORMED, read_json, strings
from ummkd_tf.common.errors import InputError
from ummkd_tf.common.files import write_whole
from ummkd_tf.data.cache import Cache
from ummkd_tf.data.cases import (
    CASES,
    FORMAT,
    Case,
    Checksums,
    case_file,
    check_factor,
    check_identity,
    check_recipe,
    check_values,
    preparation_version,
    read_case,
    read_checksums,
    recipe_checksum,
)
from ummkd_tf.data.index import contents
from ummkd_tf.data.sampling import LABELLED_SHARE, Examples, LabelledPatches, PatchExamples, SliceExamples
from ummkd_tf.data.stored_case import StoredCase
from ummkd_tf.scans import preprocessing
from ummkd_tf.settings import SHARED, are_modality_names
from ummkd_tf.tasks import Task, stored_task

DATASET, RELEASED = "dataset.json", "released.json"
PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Dataset:
    """A folder of prepared cases.

    Attributes:
        directory: The folder.
        task: Row of the task table.
        modalities: Names, in the order batches use.
        case_modality: Modality of every case.
        split: Case ids by part ("train", "validation", "test").
        split_name: Where the split comes from.
        source: Where the scans come from; "phantom …" for generated ones.
        preparation: Version of the steps (`preprocessing.VERSION`) that prepared them; 0 for an unknown one.
        recipe: `recipe_checksum` of what prepared them, to which each case is held; "" where it is not known.
    """

    directory: Path
    task: Task
    modalities: tuple[str, ...]
    case_modality: Mapping[str, str]
    split: Mapping[str, tuple[str, ...]]
    split_name: str
    source: str
    preparation: int = field(default=preprocessing.VERSION, kw_only=True)
    recipe: str = field(default="", kw_only=True)

    unit: ClassVar[str] = "cases"  # what the ids of the train part stand for

    @classmethod
    def load(cls, directory: str | Path) -> Dataset:
        """Reads `dataset.json` and checks it against the case files.

        Raises:
            InputError: No data set, a missing case file, or an inconsistent split.
        """
        directory = Path(directory)
        path = directory / DATASET
        if not path.is_file():
            raise InputError(
                "no prepared data set",
                where=path,
                fix="run ummkd prepare first, or check --data_dir",
            )
        try:
            content = read_json(path)
            task = stored_task(content["task"], path)
            dataset = cls(
                directory=directory,
                task=task,
                modalities=strings(content["modalities"]),
                case_modality={c: str(entry["modality"]) for c, entry in content["cases"].items()},
                split={part: strings(content["split"][part]) for part in PARTS},
                split_name=content["split_name"],
                source=str(content.get("source", "")),
                preparation=preparation_version(content["recipe"], task),
                recipe=str(content["recipe"]),
            )
        except InputError:
            raise
        except MALFORMED as error:
            raise InputError(
                f"not a data set description ({error!r})", where=path, fix="prepare the data again"
            ) from error
        check_split(dataset.split, dataset.case_modality, dataset.modalities, path)
        for case_id in dataset.case_modality:
            if not dataset.path(case_id).is_file():
                raise InputError("missing case file", where=dataset.path(case_id), fix="prepare the data again")
        return dataset

    def path(self, case_id: str) -> Path:
        """HDF5 file of a case.

        Raises:
            InputError: As `case_file`.
        """
        return case_file(self.directory / CASES, case_id)

    def case(self, case_id: str, factor: int = 1, *, original_label: bool = False) -> Case:
        """Reads one case, see `read_case`.

        Raises:
            InputError: As `read_case`, or the file holds another case, or what the task does not have.
        """
        case = read_case(self.path(case_id), factor, original_label=original_label)
        check_identity(case, case_id, self.case_modality[case_id], self.path(case_id), self.recipe)
        check_values(case.label, self.task, self.path(case_id))
        return case

    def check_size(self, case_id: str, shape: Sequence[int]) -> None:
        """Checks that slices have the task's size, which every network and batch needs.

        Raises:
            InputError: Slices of another size.
        """
        if tuple(shape[:2]) != self.task.size:
            raise InputError(
                f"slices of {tuple(shape[:2])}",
                where=self.path(case_id),
                fix=f"expected {self.task.size} in task {self.task.name}; prepare the data again",
            )

    def check_copies(self) -> None:
        """Refuses a scan that lies in the data set twice, by its voxels: it could be trained and tested on.

        Raises:
            InputError: Names the cases.
        """
        by_content: dict[str, list[str]] = {}
        for case_id in (case_id for part in PARTS for case_id in self.split[part]):
            by_content.setdefault(self.checksums[case_id].image or case_id, []).append(case_id)
        twice = next((ids for ids in by_content.values() if len(ids) > 1), None)
        if twice:
            raise InputError(
                f"{' and '.join(twice)} are the same scan, voxel for voxel",
                where=self.directory,
                fix="expected every scan once, or it could be in training and in test; prepare again without one",
            )

    def ids(self, part: str, modality: str | None = None) -> list[str]:
        """Case ids of a part, of one modality or of all in the order of `modalities`."""
        wanted = self.modalities if modality is None else (modality,)
        return [c for m in wanted for c in self.split[part] if self.case_modality[c] == m]

    @property
    def scans(self) -> list[str]:
        """Ids of all cases that are whole volumes, of every part and of none."""
        return list(self.case_modality)

    def examples(
        self,
        modality: str,
        rank: int,
        factor: int = 1,
        cache: Cache | None = None,
        labelled_share: float = LABELLED_SHARE,
        labelled_patches: LabelledPatches = "inside",
    ) -> Examples:
        """Training examples of a modality, read from disk when they are drawn.

        Args:
            modality: Its name.
            rank: 2 for the 2D network, else 3.
            factor: In-plane reduction.
            cache: Keeps what was read, for all modalities alike; by default as much as there is.
            labelled_share: Share of 3D patches around the labelled slices.
            labelled_patches: Where these lie.
        """
        if rank == 2:
            return self._slices(modality, factor, cache)
        return self._patches(modality, factor, cache, labelled_share, labelled_patches)

    def _slices(self, modality: str, factor: int, cache: Cache | None) -> Examples:
        return SliceExamples(self.stored_cases("train", modality, factor, cache))

    def _patches(
        self, modality: str, factor: int, cache: Cache | None, labelled_share: float, labelled_patches: LabelledPatches
    ) -> Examples:
        return PatchExamples(self.stored_cases("train", modality, factor, cache), labelled_share, labelled_patches)

    def stored_cases(
        self, part: str, modality: str | None = None, factor: int = 1, cache: Cache | None = None
    ) -> list[StoredCase]:
        """Cases of a part, whose voxels stay on disk until they are needed.

        Args:
            part: "train", "validation" or "test".
            modality: One, or None for all.
            factor: In-plane reduction.
            cache: Keeps what was read; by default as much as there is.

        Raises:
            InputError: Slices of another size, or classes that the task does not have.
        """
        cache = Cache() if cache is None else cache
        paths = {case_id: self.path(case_id) for case_id in self.ids(part, modality)}
        cases = []
        for case_id, content in contents(self.directory, paths, (factor,)).items():
            self.check_size(case_id, content.shape)
            check_factor(content.shape, factor, paths[case_id])
            label = content.factors[factor]
            check_values(np.array(label.classes), self.task, paths[case_id])
            cases.append(
                StoredCase(
                    path=paths[case_id],
                    case_id=case_id,
                    modality=self.case_modality[case_id],
                    task=self.task,
                    shape=content.shape,
                    content=label,
                    factor=factor,
                    recipe=self.recipe,
                    cache=cache,
                )
            )
        return cases

    @property
    def is_phantom(self) -> bool:
        """Whether its scans were generated, which whatever shows them says."""
        return self.source.startswith("phantom")

    @cached_property
    def checksums(self) -> Mapping[str, Checksums]:
        """Which scan and label map each case id stands for.

        Raises:
            InputError: As `read_checksums`, or a case that was prepared otherwise.
        """
        found = {case_id: read_checksums(self.path(case_id)) for case_id in self.case_modality}
        for case_id, of_case in found.items():
            check_recipe(of_case.recipe, self.recipe, self.path(case_id))
        return found

    @property
    def split_checksum(self) -> str:
        """sha256 of the split, so that two runs can be shown to use the same one."""
        return hashlib.sha256(json.dumps(self.split, sort_keys=True).encode()).hexdigest()


def write_dataset(
    directory: Path,
    *,
    task: Task,
    case_modality: Mapping[str, str],
    split: Mapping[str, Sequence[str]],
    split_name: str,
    modalities: Iterable[str] | None = None,
    source: str = "",
) -> None:
    """Writes `dataset.json` for the cases prepared in `directory`.

    Raises:
        InputError: As `check_split`.
    """
    path = directory / DATASET
    names = tuple(modalities) if modalities is not None else tuple(dict.fromkeys(sorted(case_modality.values())))
    check_split(split, case_modality, names, path)
    content = {
        "format": FORMAT,
        "task": task.to_dict(),
        "modalities": list(names),
        "recipe": recipe_checksum(task),
        "source": source,
        "cases": {c: {"modality": case_modality[c], "file": f"{CASES}/{c}.h5"} for c in sorted(case_modality)},
        "split_name": split_name,
        "split": {part: list(split.get(part, ())) for part in PARTS},
    }
    write_whole(path, json.dumps(content, indent=2) + "\n")


def check_split(
    split: Mapping[str, Sequence[str]], case_modality: Mapping[str, str], modalities: Sequence[str], where: object
) -> None:
    """Checks that modality names are valid, no case is listed twice or unknown, and every part has every modality.

    Raises:
        InputError: Otherwise.
    """
    if not are_modality_names(modalities):
        raise InputError(
            f"modalities {', '.join(modalities) or 'none'}",
            where=where,
            fix=(
                f"expected different plain names like ct and mr, and not {SHARED}; rename them where the data come"
                " from, and prepare again"
            ),
        )
    seen: dict[str, str] = {}
    for part in PARTS:
        for case_id in split.get(part, ()):
            if case_id not in case_modality:
                raise InputError(
                    f"the split's {part} part names {case_id!r}, which is not among the cases", where=where
                )
            if case_modality[case_id] not in modalities:
                raise InputError(
                    f"{case_id!r} in the {part} part is of modality {case_modality[case_id]!r}",
                    where=where,
                    fix=f"expected {' or '.join(modalities)}; prepare the data again",
                )
            if case_id in seen:
                raise InputError(
                    f"case {case_id!r} is in {seen[case_id]} and in {part}", where=where, fix="keep it in one part"
                )
            seen[case_id] = part
        for modality in modalities:
            if not any(case_modality[c] == modality for c in split.get(part, ())):
                raise InputError(
                    f"the {part} part has no {modality} case",
                    where=where,
                    fix="expected at least one; add cases or choose another split",
                )
