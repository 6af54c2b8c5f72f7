"""A case that stays on disk: slices are read when they are needed, and kept in a bounded memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ummkd_tf.common.errors import InputError
from ummkd_tf.data.cache import Cache, owned
from ummkd_tf.data.cases import Case, OpenCase, check_identity, check_values, checked_image, opened_case, reduced_grid
from ummkd_tf.data.index import INDEX, LabelContent
from ummkd_tf.data.reduction import reduce_image, reduce_label
from ummkd_tf.tasks import Task


@dataclass(frozen=True)
class StoredCase:
    """A prepared case, reduced in the plane, whose voxels are read slice by slice.

    The cache holds reduced slices, so that a reduced preset needs less memory.

    Attributes:
        path: Its file.
        case_id: Unique in the data set.
        modality: Its modality's name.
        task: Its task.
        shape: Rows, columns and slices in the file.
        content: Of its reduced class map.
        factor: In-plane reduction.
        recipe: Of its data set; "" where it is not known.
        cache: Keeps slices, also those of other cases.
    """

    path: Path
    case_id: str
    modality: str
    task: Task
    shape: tuple[int, int, int]
    content: LabelContent
    factor: int
    recipe: str
    cache: Cache

    @property
    def depth(self) -> int:
        """Number of slices."""
        return self.shape[2]

    @property
    def classes(self) -> tuple[int, ...]:
        """Values of the class map."""
        return self.content.classes

    @property
    def labelled(self) -> tuple[int, int] | None:
        """First and last slice with any class but background; None where there is none."""
        return self.content.labelled

    def slices(self, image: Sequence[int], label: Sequence[int]) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """These slices of the image and those of the class map, `[rows, columns, slices]`.

        Raises:
            InputError: A damaged file, or not the file that the index describes.
        """
        return self._read(image, label, keep=True)

    def load(self) -> Case:
        """The whole case. It uses only free room in the cache, so that no slice is removed for it.

        Raises:
            InputError: As `slices`.
        """
        every = range(self.depth)
        rows, columns, slices = self.shape
        size = rows * columns * slices // self.factor**2 * 5  # float32 and uint8
        image, label = self._read(every, every, keep=self.cache.room >= size)
        with self._opened() as file:
            return Case(
                case_id=self.case_id,
                modality=self.modality,
                grid=reduced_grid(file.grid, self.factor),
                original=file.original,
                notes=file.notes,
                image=image,
                label=label,
            )

    def _read(self, image: Sequence[int], label: Sequence[int], keep: bool) -> tuple[NDArray, NDArray]:
        wanted = {("image", int(k)) for k in image} | {("label", int(k)) for k in label}
        kept = {key: self.cache.get((self.path, self.factor, *key)) for key in wanted}
        planes = {key: plane for key, plane in kept.items() if plane is not None}
        missing = sorted(wanted - planes.keys())
        if missing:
            with self._opened() as file:
                for name, k in missing:
                    plane = planes[name, k] = self._plane(file, name, k)
                    if keep:
                        self.cache.put((self.path, self.factor, name, k), plane)

        def stacked(name: str, numbers: Sequence[int]) -> NDArray:
            # In the arrays of `planes` each slice is contiguous in memory, from which copying is several times faster.
            return np.stack([planes[name, int(k)] for k in numbers], axis=2)

        return stacked("image", image), stacked("label", label)

    def _plane(self, file: OpenCase, name: str, k: int) -> NDArray:
        if name == "label":
            label = check_values(file.label[:, :, k : k + 1], self.task, self.path)
            return owned(reduce_label(label, self.factor)[:, :, 0])
        image = checked_image(file.image[:, :, k : k + 1], self.path)
        return owned(reduce_image(image, self.factor)[:, :, 0])

    @contextlib.contextmanager
    def _opened(self) -> Iterator[OpenCase]:
        with opened_case(self.path, self.factor) as file:
            check_identity(file, self.case_id, self.modality, self.path, self.recipe)
            if file.image.shape != self.shape:
                raise InputError(
                    f"{file.image.shape} voxels, but {INDEX} says {self.shape}",
                    where=self.path,
                    fix=f"expected the file that was prepared; delete {INDEX} beside dataset.json",
                )
            yield file
