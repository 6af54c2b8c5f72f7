"""Part `input`: the input pipeline alone, from HDF5 files to batches."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from experiments.benchmark.results import OURS, Aim, Measurement, Part
from experiments.benchmark.timing import Timing, interleaved, timed
from ummkd_tf.data.augmentation import AUGMENTATIONS, Augmentation
from ummkd_tf.data.cache import Cache
from ummkd_tf.data.cases import CASES, case_file, write_case
from ummkd_tf.data.dataset import Dataset, write_dataset
from ummkd_tf.data.sampling import UnpairedSampler, adjacent_slices, chunk, chunk_starts
from ummkd_tf.scans.geometry import Grid
from ummkd_tf.scans.preprocessing import Prepared
from ummkd_tf.tasks import TASKS, Task

BATCHES = {"dilated2d": 8, "unet3d": 2}  # examples per modality, of the paper
PLAIN, COLD = "slices read from HDF5 at each step", f"{OURS}, cold"
AUGMENTED = f"{OURS}, with the augmentation of recipe practice"


def write(directory: Path, task: Task, depth: int, cases: int) -> Dataset:
    """Prepared cases of noise in both modalities, `cases` of each for training."""
    random = np.random.default_rng(0)
    grid = Grid(np.diag([*task.spacing_mm, 1.0]), (*task.size, depth))
    split: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for modality in ("ct", "mr"):
        for number in range(cases + 2):
            case_id = f"{modality}_{number}"
            shape = grid.shape if number < cases else (*task.size, 1)
            image = random.standard_normal(shape, dtype=np.float32)
            label = random.integers(0, task.num_classes, shape, dtype=np.uint8)
            prepared = Prepared(image, label, Grid(grid.affine, shape), Grid(grid.affine, shape), label)
            path = case_file(directory / CASES, case_id)
            write_case(path, prepared, case_id=case_id, modality=modality, task=task, source={case_id: "none"})
            split[("validation", "test")[number - cases] if number >= cases else "train"].append(case_id)
    modality_of = {c: c.split("_")[0] for ids in split.values() for c in ids}
    write_dataset(directory, task=task, case_modality=modality_of, split=split, split_name="benchmark")
    return Dataset.load(directory)


def measure(depth: int, cases: int, batches: int, rounds: int, steps: Part | None) -> Part:
    """Cold (files out of the page cache, nothing read) and warm, for both networks.

    Args:
        depth: Slices of a case of the 2D network; the 3D network's have an eighth.
        cases: Training cases per modality.
        batches: How many are drawn in each round.
        rounds: How often.
        steps: Result of part `step`, whose 2D training step is the demand.
    """
    rows: list[Measurement] = []
    for network, batch_size in BATCHES.items():
        task = next(t for t in TASKS.values() if t.network == network)
        slices = depth if network == "dilated2d" else max(8, depth // 8)
        with tempfile.TemporaryDirectory() as name:
            dataset = write(Path(name), task, slices, cases)
            case = f"{network} {batch_size}+{batch_size}, {task.size[0]}², {cases}+{cases} cases of {slices} slices"
            rows += _rows(case, dataset, 2 if network == "dilated2d" else 3, batch_size, batches, rounds)
    notes = [
        "Cold: every file is put out of the page cache as far as the system lets a user do that; from opening the data "
        "set to the first batch. Otherwise warm: cases in memory, as in training; seconds are those of one batch.",
    ]
    return Part("input", "Input pipeline", rows, _aims(rows, steps), notes)


def _rows(case: str, dataset: Dataset, rank: int, batch_size: int, batches: int, rounds: int) -> list[Measurement]:
    def sampler(cache: Cache | None = None, augmentation: Augmentation | None = None) -> UnpairedSampler:
        examples = {m: dataset.examples(m, rank, cache=cache) for m in dataset.modalities}
        return UnpairedSampler(examples, batch_size, seed=0, augmentation=augmentation)

    def cold() -> float:
        for path in dataset.directory.rglob("*.h5"):
            _evict(path)
        return timed(lambda: sampler().batch(0))()

    cache = Cache()
    for stored in dataset.stored_cases("train", cache=cache):
        stored.load()
    warm, augmented, numbers = sampler(cache), sampler(cache, AUGMENTATIONS["practice"]), itertools.count()

    def drawn(batches_of: UnpairedSampler, num_threads: int = 1) -> Callable[[], float]:
        def draw() -> None:
            start = next(numbers) * batches
            for _ in batches_of.batches(start, start + batches, num_threads):
                pass

        return timed(draw)

    def plain() -> None:
        for step in range(max(1, batches // 10)):
            _read_batch(dataset, rank, batch_size, step)

    runs = {
        OURS: (drawn(warm), batches),
        f"{OURS}, 2 threads": (drawn(warm, 2), batches),
        AUGMENTED: (drawn(augmented), batches),
        PLAIN: (timed(plain), max(1, batches // 10)),
        COLD: (cold, 1),
    }
    timings = interleaved({name: run for name, (run, _) in runs.items()}, rounds)
    rows = []
    for name, timing in timings.items():
        each = Timing(tuple(seconds / runs[name][1] for seconds in timing.seconds))
        rows.append(Measurement(case, name, each, {"batches/s": 1 / each.median}))
    return rows


def _evict(path: Path) -> None:
    if not hasattr(os, "posix_fadvise"):
        return
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _read_batch(dataset: Dataset, rank: int, batch_size: int, step: int) -> dict[str, NDArray[np.float32]]:
    """What one gets without keeping cases in memory: each example opens its file and reads its slices."""
    random = np.random.default_rng(step)
    batch = {}
    for modality in dataset.modalities:
        images, labels = [], []
        for _ in range(batch_size):
            with h5py.File(dataset.path(str(random.choice(dataset.ids("train", modality)))), "r") as file:
                depth = file["image"].shape[2]
                if rank == 2:
                    k = int(random.integers(depth))
                    first = max(0, k - 1)
                    images.append(adjacent_slices(file["image"][:, :, first : k + 2], k - first))
                    labels.append(file["label"][:, :, k])
                else:
                    start = int(random.choice(chunk_starts(depth)))
                    images.append(chunk(file["image"][:, :, start : start + 8], 0)[..., np.newaxis])
                    labels.append(chunk(file["label"][:, :, start : start + 8], 0))
        batch[modality] = np.stack(images)
        np.stack(labels)
    return batch


def _aims(rows: Sequence[Measurement], steps: Part | None) -> list[Aim]:
    warm = next(row for row in rows if row.case.startswith("dilated2d 8+8") and row.contender == OURS)
    supply = warm.values["batches/s"]
    text = "2D slices 8+8 warm: at least 50 batches/s"
    aims = [Aim(text, f"{warm.case}: {supply:.1f} batches/s", supply >= 50)]
    ways = ((OURS, 20, ""), (AUGMENTED, 20, ", augmented"), (COLD, 3, ", cold"))
    texts = [f"input at least {least}× what the 2D training step takes{how}" for _, least, how in ways]
    step = (
        next((r for r in steps.rows if r.contender == OURS and r.case.startswith("dilated2d 4+4")), None)
        if steps
        else None
    )
    if step is None:
        return [*aims, *(Aim(text, "needs part `step` in the same run", None) for text in texts)]
    demand = _examples_per_second(4, step.timing)
    by_contender = {row.contender: row for row in rows if row.case == warm.case}
    for text, (contender, least, _) in zip(texts, ways, strict=True):
        row = by_contender[contender]
        found = 16 * row.values["batches/s"]
        measured = f"{found:.0f} against {demand:.1f} examples/s: {found / demand:.0f}×"
        aims.append(Aim(text, measured, found >= least * demand))
    return aims


def _examples_per_second(batch_size: int, timing: Timing) -> float:
    return 2 * batch_size / timing.median
