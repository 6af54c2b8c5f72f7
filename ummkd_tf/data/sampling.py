"""Unpaired training batches: "half of the batch CT, the other half MRI" (Sec. III-C).

A batch is a pure function of (seed, step): nothing else is remembered between steps, so a resumed run sees the same
batches, whatever the number of threads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ummkd_tf.common.errors import InputError
from ummkd_tf.data.augmentation import Augmentation
from ummkd_tf.data.cases import Case

PATCH_DEPTH = 8
"""Slices of a 3D patch (Sec. IV-A: 256×256×8)."""

Example = tuple[NDArray[np.float32], NDArray[np.uint8]]
"""Network input `[height, width, 3]` or `[height, width, depth, 1]` with its class map `[height, width(, depth)]`."""

Batch = tuple[dict[str, NDArray[np.float32]], dict[str, NDArray[np.uint8]]]
"""(images, class maps) by modality, as `UnpairedSegmenter.fit` takes them."""

_AUGMENTATION = 1
"""Last number in the seed of an example's own generator; not 0, because for NumPy the seeds [a, b] and [a, b, 0] are
equal."""


class Examples(Protocol):
    """Where the examples of one modality come from."""

    def draw(self, rng: np.random.Generator) -> Example:
        """One random example."""

    def origin(self, rng: np.random.Generator) -> str:
        """Where `draw` would take its example from, with the same generator."""

    def labels(self) -> Iterable[NDArray[np.uint8]]:
        """Every class map there is, one case or record at a time."""


class SliceExamples:
    """Three adjacent slices and the label of the middle one (Sec. IV-A, Network-1), uniform over all slices.

    Args:
        cases: Training cases of one modality.
    """

    def __init__(self, cases: Sequence[Case]) -> None:
        self._cases = [_slice_by_slice(case) for case in cases]
        self._slices = [(case, k) for case in self._cases for k in range(case.image.shape[2])]

    def _choose(self, rng: np.random.Generator) -> tuple[Case, int]:
        return self._slices[rng.integers(len(self._slices))]

    def draw(self, rng: np.random.Generator) -> Example:
        case, k = self._choose(rng)
        return adjacent_slices(case.image, k), case.label[:, :, k]

    def origin(self, rng: np.random.Generator) -> str:
        case, k = self._choose(rng)
        return f"{case.case_id}, slice {k}"

    def labels(self) -> Iterable[NDArray[np.uint8]]:
        return (case.label for case in self._cases)


class PatchExamples:
    """Patches of eight slices as the authors draw them: half from the chunks used in testing, half centred at random
    inside the labelled slices (docs/reproduction.md#patches).

    Args:
        cases: Training cases of one modality.
    """

    def __init__(self, cases: Sequence[Case]) -> None:
        self._cases = [_slice_by_slice(case) for case in cases]
        self._labelled = [np.flatnonzero(case.label.any(axis=(0, 1))) for case in self._cases]

    def _choose(self, rng: np.random.Generator) -> tuple[Case, int]:
        number = rng.integers(len(self._cases))
        case, labelled = self._cases[number], self._labelled[number]
        depth = case.image.shape[2]
        if rng.random() < 0.5 or not labelled.size:
            start = int(rng.choice(chunk_starts(depth)))
        else:
            center = rng.integers(labelled[0], labelled[-1] + 1)
            start = int(np.clip(center - PATCH_DEPTH // 2, 0, max(0, depth - PATCH_DEPTH)))
        return case, start

    def draw(self, rng: np.random.Generator) -> Example:
        case, start = self._choose(rng)
        return chunk(case.image, start)[..., np.newaxis], chunk(case.label, start)

    def origin(self, rng: np.random.Generator) -> str:
        case, start = self._choose(rng)
        return f"{case.case_id}, slices {start}-{min(start + PATCH_DEPTH, case.image.shape[2]) - 1}"

    def labels(self) -> Iterable[NDArray[np.uint8]]:
        return (case.label for case in self._cases)


def adjacent_slices(image: NDArray, k: int) -> NDArray:
    """Slices k-1, k, k+1 as channels `[rows, columns, 3]`; at the ends the edge slice stands in for its neighbour."""
    return _slices(image, np.clip([k - 1, k, k + 1], 0, image.shape[2] - 1))


def chunk_starts(depth: int, step: int = PATCH_DEPTH) -> list[int]:
    """First slices of the chunks that cover a volume, `step` apart; the last chunk is aligned to the end.

    With the step of 8 slices there are ceil(depth / 8), and only the last one overlaps another.
    """
    last = max(0, depth - PATCH_DEPTH)
    return [*range(0, last, step), last]


def chunk(volume: NDArray, start: int) -> NDArray:
    """Eight slices from `start`; a thinner volume repeats its last slice."""
    return _slices(volume, np.minimum(np.arange(start, start + PATCH_DEPTH), volume.shape[2] - 1))


def _slices(volume: NDArray, numbers: NDArray[np.int64]) -> NDArray:
    """`volume[:, :, numbers]`, copied slice by slice: several times faster from `_slice_by_slice`."""
    result = np.empty((*volume.shape[:2], len(numbers)), volume.dtype)
    for position, number in enumerate(numbers):
        result[:, :, position] = volume[:, :, number]
    return result


def _slice_by_slice(case: Case) -> Case:
    """The same case, stored slice by slice in memory, because an example takes a few slices of a volume."""

    def stored(volume: NDArray) -> NDArray:
        return np.moveaxis(np.ascontiguousarray(np.moveaxis(volume, 2, 0)), 0, 2)

    return replace(case, image=stored(case.image), label=stored(case.label))


class UnpairedSampler:
    """Draws the same number of examples from every modality, independently.

    Args:
        examples: Modality → its examples, in the model's order.
        batch_size: Examples per modality.
        seed: Two samplers with one seed give the same batches.
        augmentation: Changes each example, at random. Which examples are drawn does not depend on it.
    """

    def __init__(
        self, examples: Mapping[str, Examples], batch_size: int, seed: int, augmentation: Augmentation | None = None
    ) -> None:
        self.examples, self.batch_size, self.seed = dict(examples), batch_size, seed
        self.augmentation = augmentation

    def _sources(self, step: int) -> Iterator[tuple[str, Examples, np.random.Generator]]:
        for number, (modality, examples) in enumerate(self.examples.items()):
            yield modality, examples, np.random.default_rng([self.seed, step, number])

    def batch(self, step: int) -> Batch:
        """The batch of a step."""
        images, labels = {}, {}
        for modality, examples, rng in self._sources(step):
            drawn = [examples.draw(rng) for _ in range(self.batch_size)]
            if self.augmentation:
                drawn = [self.augmentation(*e, self._own_generator(step, modality, i)) for i, e in enumerate(drawn)]
            images[modality] = np.stack([image for image, _ in drawn])
            labels[modality] = np.stack([label for _, label in drawn])
        return images, labels

    def _own_generator(self, step: int, modality: str, number: int) -> np.random.Generator:
        """The random generator of one example of a batch."""
        return np.random.default_rng([self.seed, step, list(self.examples).index(modality), number, _AUGMENTATION])

    def origins(self, step: int) -> dict[str, list[str]]:
        """Where the examples of a step's batch come from, by modality."""
        return {m: [e.origin(rng) for _ in range(self.batch_size)] for m, e, rng in self._sources(step)}

    def batches(self, start: int, stop: int, num_threads: int = 1) -> Iterator[Batch]:
        """The batches of steps start … stop-1, prepared ahead of their use."""
        with ThreadPoolExecutor(num_threads) as pool:
            ahead = [pool.submit(self.batch, step) for step in range(start, min(stop, start + 2 * num_threads))]
            for step in range(start, stop):
                batch = ahead.pop(0).result()
                following = step + 2 * num_threads
                if following < stop:
                    ahead.append(pool.submit(self.batch, following))
                yield batch


def check_classes(examples: Mapping[str, Examples], class_names: Sequence[str]) -> None:
    """Every class is somewhere in the training data of every modality.

    Args:
        examples: Modality → its examples.
        class_names: Names by label value, background first.

    Raises:
        InputError: A modality lacks a class, so it could not be learnt there.
    """
    for modality, source in examples.items():
        missing = set(range(1, len(class_names)))
        for label in source.labels():
            missing -= set(np.unique(label).tolist())
            if not missing:
                break
        if missing:
            names = ", ".join(class_names[c] for c in sorted(missing))
            raise InputError(
                f"no training example of {modality} holds {names}: expected every class in every modality; "
                "choose another split, or check the label map of the preparation"
            )
