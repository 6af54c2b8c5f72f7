"""Unpaired training batches: "half of the batch as CT and the other half as MRI" (Sec. III-C).

A batch is a pure function of (seed, step): nothing else is remembered between steps, so a resumed run sees the same
batches, whatever the number of threads.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ummkd_tf.common.errors import InputError
from ummkd_tf.data.augmentation import Augmentation
from ummkd_tf.data.stored_case import StoredCase

PATCH_DEPTH = 8
"""Slices of a 3D patch (Sec. IV-A: 256×256×8)."""

LABELLED_SHARE = 0.5
"""The authors' share of 3D patches that are drawn around the labelled slices."""

LabelledPatches = Literal["inside", "centered"]
"""Where a patch around the labelled slices lies: inside them as a whole, as the authors draw, or with its centre."""

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
        """Where `draw` would take its example from, with the same generator, which it leaves as `draw` does."""

    def classes(self) -> Iterable[Collection[int]]:
        """Values of every class map there is, one case or record at a time."""


class SliceExamples:
    """Three adjacent slices and the label of the middle one (Sec. IV-A, Network-1).

    Uniform over all slices: our choice, because neither paper nor upload draws slices from volumes.

    Args:
        cases: Training cases of one modality.
    """

    def __init__(self, cases: Sequence[StoredCase]) -> None:
        self._cases = list(cases)
        self._ends = np.cumsum([case.depth for case in self._cases])  # of each case, all slices in a row

    def _choose(self, rng: np.random.Generator) -> tuple[StoredCase, int]:
        position = rng.integers(int(self._ends[-1]))
        number = int(np.searchsorted(self._ends, position, side="right"))
        case = self._cases[number]
        return case, int(position - self._ends[number] + case.depth)

    def draw(self, rng: np.random.Generator) -> Example:
        case, k = self._choose(rng)
        image, label = case.slices(_adjacent(k, case.depth), [k])
        return image, label[:, :, 0]

    def origin(self, rng: np.random.Generator) -> str:
        case, k = self._choose(rng)
        return f"{case.case_id}, slice {k}"

    def classes(self) -> Iterable[Collection[int]]:
        return (case.classes for case in self._cases)


class PatchExamples:
    """Patches of eight slices: each is either a chunk as in testing, or at random around the labelled slices
    (docs/reproduction.md#patches).

    Args:
        cases: Training cases of one modality.
        labelled_share: Share of patches around the labelled slices, 0 to 1.
        labelled_patches: Where these lie.
    """

    def __init__(
        self,
        cases: Sequence[StoredCase],
        labelled_share: float = LABELLED_SHARE,
        labelled_patches: LabelledPatches = "inside",
    ) -> None:
        self._cases = [(case, case.labelled) for case in cases]
        self._labelled_share, self._labelled_patches = labelled_share, labelled_patches

    def _choose(self, rng: np.random.Generator) -> tuple[StoredCase, int]:
        case, labelled = self._cases[rng.integers(len(self._cases))]
        if rng.random() < 1 - self._labelled_share or labelled is None:
            start = int(rng.choice(chunk_starts(case.depth)))
        else:
            center = rng.integers(*_centers(*labelled, self._labelled_patches))
            start = int(np.clip(center - PATCH_DEPTH // 2, 0, max(0, case.depth - PATCH_DEPTH)))
        return case, start

    def draw(self, rng: np.random.Generator) -> Example:
        case, start = self._choose(rng)
        numbers = _from_start(start, case.depth)
        image, label = case.slices(numbers, numbers)
        return image[..., np.newaxis], label

    def origin(self, rng: np.random.Generator) -> str:
        case, start = self._choose(rng)
        return f"{case.case_id}, slices {start}-{min(start + PATCH_DEPTH, case.depth) - 1}"

    def classes(self) -> Iterable[Collection[int]]:
        return (case.classes for case, _ in self._cases)


def _centers(first: int, last: int, labelled_patches: LabelledPatches) -> tuple[int, int]:
    """First centre of a patch, and the one behind the last, around labelled slices from `first` to `last`."""
    half = PATCH_DEPTH // 2
    low, high = first + half + 1, last - half  # the authors' bounds, which leave out the first slice and the last two
    if labelled_patches == "inside" and low < high:
        return low, high
    # For too few slices: our choice, because the authors' program ends with an error there.
    return first, last + 1


def adjacent_slices(image: NDArray, k: int) -> NDArray:
    """Slices k-1, k, k+1 as channels `[rows, columns, 3]`; at the ends the edge slice stands in for its neighbour."""
    return np.take(image, _adjacent(k, image.shape[2]), axis=2)


def _adjacent(k: int, depth: int) -> list[int]:
    return [max(0, k - 1), k, min(k + 1, depth - 1)]


def chunk_starts(depth: int, step: int = PATCH_DEPTH) -> list[int]:
    """First slices of the chunks that cover a volume, `step` apart; the last chunk is aligned to the end.

    With the step of 8 slices there are ceil(depth / 8), and only the last one overlaps another.
    """
    last = max(0, depth - PATCH_DEPTH)
    return [*range(0, last, step), last]


def chunk(volume: NDArray, start: int) -> NDArray:
    """Eight slices from `start` of a volume [rows, columns, slices]; a thinner one repeats its last slice."""
    return np.take(volume, _from_start(start, volume.shape[2]), axis=2)


def _from_start(start: int, depth: int) -> list[int]:
    return [min(k, depth - 1) for k in range(start, start + PATCH_DEPTH)]


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

    def batch(self, step: int, part: tuple[int, int] = (0, 1)) -> Batch:
        """The batch of a step, or one of its equal parts: number and count of parts; the whole by default."""
        images, labels = {}, {}
        size = self.batch_size // part[1]
        wanted = range(part[0] * size, (part[0] + 1) * size)
        for modality, examples, rng in self._sources(step):
            for _ in range(wanted.start):  # what others draw is not read
                examples.origin(rng)
            drawn = [examples.draw(rng) for _ in wanted]
            if self.augmentation:
                own = (self._own_generator(step, modality, i) for i in wanted)
                drawn = [self.augmentation(*e, generator) for e, generator in zip(drawn, own, strict=True)]
            images[modality] = np.stack([image for image, _ in drawn])
            labels[modality] = np.stack([label for _, label in drawn])
        return images, labels

    def _own_generator(self, step: int, modality: str, number: int) -> np.random.Generator:
        """The random generator of one example of a batch."""
        return np.random.default_rng([self.seed, step, list(self.examples).index(modality), number, _AUGMENTATION])

    def origins(self, step: int) -> dict[str, list[str]]:
        """Where the examples of a step's batch come from, by modality."""
        return {m: [e.origin(rng) for _ in range(self.batch_size)] for m, e, rng in self._sources(step)}

    def batches(self, start: int, stop: int, num_threads: int = 1, part: tuple[int, int] = (0, 1)) -> Iterator[Batch]:
        """The batches of steps start … stop-1, or a part of each (see `batch`), prepared ahead of their use."""
        with ThreadPoolExecutor(num_threads) as pool:
            ahead = [pool.submit(self.batch, step, part) for step in range(start, min(stop, start + 2 * num_threads))]
            for step in range(start, stop):
                batch = ahead.pop(0).result()
                following = step + 2 * num_threads
                if following < stop:
                    ahead.append(pool.submit(self.batch, following, part))
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
        for classes in source.classes():
            missing -= set(classes)
            if not missing:
                break
        if missing:
            names = ", ".join(class_names[c] for c in sorted(missing))
            raise InputError(
                f"no training example of {modality} holds {names}: expected every class in every modality; "
                "choose another split, or check the label map of the preparation"
            )
