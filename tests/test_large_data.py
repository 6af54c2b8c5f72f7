"""Data beyond memory: slices from disk through a bounded cache, and the index that tells what a case holds."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pytest
from memory_case import MemoryCase

from experiments.benchmark import cases as cases_part
from experiments.benchmark.results import Measurement
from experiments.benchmark.timing import Timing
from ummkd_tf.common.errors import InputError
from ummkd_tf.data import index as index_module
from ummkd_tf.data.cache import Cache, owned
from ummkd_tf.data.cases import write_case
from ummkd_tf.data.dataset import Dataset, write_dataset
from ummkd_tf.data.index import INDEX, CaseContent, LabelContent, read_index
from ummkd_tf.data.reduction import reduce_image, reduce_label
from ummkd_tf.data.sampling import PatchExamples, SliceExamples, UnpairedSampler, check_classes
from ummkd_tf.runs import environment
from ummkd_tf.scans.geometry import Grid
from ummkd_tf.scans.preprocessing import Prepared
from ummkd_tf.tasks import TASKS

TASK = dataclasses.replace(TASKS["abdomen"], size=(32, 32))
PLANE = 32 * 32 * 4  # bytes of a slice of an image


def write(folder, depth=11):
    """Per modality two training cases, one of validation and one of test; organs in slices 2 to 5."""
    split = {"train": [], "validation": [], "test": []}
    for number, (modality, part) in enumerate((m, p) for m in ("ct", "mr") for p in ("train", *split)):
        rng, shape = np.random.default_rng(number), (32, 32, depth + number)
        label = np.zeros(shape, np.uint8)
        label[:, :, 2:6] = rng.integers(0, 5, (32, 32, 4))
        label[0, 0, [2, 5]] = 1  # whatever was drawn
        grid, case_id = Grid(np.diag([*TASK.spacing_mm, 1.0]), shape), f"{modality}_{number}"
        prepared = Prepared(rng.standard_normal(shape, np.float32), label, grid, grid, label)
        path = folder / "cases" / f"{case_id}.h5"
        write_case(path, prepared, case_id=case_id, modality=modality, task=TASK, source={case_id: "none"})
        split[part].append(case_id)
    modality_of = {c: c.split("_")[0] for ids in split.values() for c in ids}
    write_dataset(folder, task=TASK, case_modality=modality_of, split=split, split_name="noise")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    write(folder)
    return folder


@pytest.fixture
def dataset(written, tmp_path):
    return Dataset.load(shutil.copytree(written, tmp_path / "data"))


# --- the cache -------------------------------------------------------------------------------------------------------


def test_what_was_not_used_for_longest_goes_first():
    cache = Cache(3 * 8)
    for key in "abc":
        cache.put(key, np.full(1, ord(key), np.float64))
    assert cache.used == 24 and cache.room == 0
    assert cache.get("a") == [97]  # b is now the oldest
    cache.put("d", np.zeros(2))
    assert [key for key in "abcd" if cache.get(key) is not None] == ["a", "d"]
    assert cache.used == 24
    cache.put("large", np.zeros(4))  # for which everything would have to go
    assert cache.get("large") is None and len(cache) == 2


def test_what_is_kept_cannot_be_changed_and_holds_no_more_memory_than_counted():
    volume, cache = np.zeros((4, 4, 8)), Cache()
    plane = owned(volume[:, :, 3])
    assert plane.base is None and plane.flags.c_contiguous
    cache.put("a", plane)
    with pytest.raises(ValueError, match="read-only"):
        cache.get("a")[0] = 1


def test_threads_share_a_cache():
    cache, started = Cache(40 * 8), threading.Barrier(4)

    def work(seed):
        started.wait()
        for key in np.random.default_rng(seed).integers(0, 100, 500).tolist():
            found = cache.get(key)
            assert found is None or found == [key]
            cache.put(key, np.full(1, key, np.float64))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert cache.used == 40 * 8 and len(cache) == 40


# --- batches ---------------------------------------------------------------------------------------------------------


def flat(sampler, steps=3):
    return [np.concatenate([np.ravel(a) for part in sampler.batch(s) for a in part.values()]) for s in range(steps)]


@pytest.mark.parametrize(
    ("rank", "kind", "factor"),
    [(2, SliceExamples, 1), (2, SliceExamples, 4), (3, PatchExamples, 1), (3, PatchExamples, 2)],
)
def test_batches_do_not_depend_on_the_cache(rank, kind, factor, dataset):
    """From disk with no cache, a small one and a large one: the bits of whole cases in memory."""
    cases = {m: [dataset.case(c, factor) for c in dataset.ids("train", m)] for m in dataset.modalities}
    whole = {m: kind([MemoryCase(c.image, c.label) for c in cases[m]]) for m in dataset.modalities}
    expected = flat(UnpairedSampler(whole, 2, seed=0))
    for capacity in (0, 5 * PLANE // factor**2, np.inf):
        cache = Cache(capacity)
        stored = {m: dataset.examples(m, rank, factor, cache) for m in dataset.modalities}
        np.testing.assert_array_equal(flat(UnpairedSampler(stored, 2, seed=0)), expected)
        assert cache.used <= capacity and (capacity == 0) == (len(cache) == 0)


def test_only_slices_that_are_drawn_are_read_and_each_once(dataset, monkeypatch):
    read = []
    monkeypatch.setattr("ummkd_tf.data.stored_case.reduce_image", lambda image, _: read.append(image.shape) or image)
    examples = dataset.examples("ct", 2)
    for _ in range(3):
        examples.draw(np.random.default_rng(0))
    assert read == [(32, 32, 1)] * 3


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_a_slice_is_reduced_as_in_its_volume(factor):
    """To the last bit; and to the mean of the block."""
    rng = np.random.default_rng(factor)
    image, label = rng.standard_normal((24, 24, 5), np.float32), rng.integers(0, 5, (24, 24, 5), np.uint8)
    for reduce, volume in ((reduce_image, image), (reduce_label, label)):
        single = np.concatenate([reduce(volume[:, :, k : k + 1], factor) for k in range(5)], axis=2)
        np.testing.assert_array_equal(single, reduce(volume, factor))
    np.testing.assert_allclose(reduce_image(image, factor)[0, 0], image[:factor, :factor].mean((0, 1)), atol=1e-6)


def test_whole_case_takes_free_room_only(dataset):
    (case, _), expected = dataset.stored_cases("validation", factor=2), dataset.case("ct_2", 2)
    for cache in (case.cache, Cache(PLANE)):
        before = cache.room
        loaded = dataclasses.replace(case, cache=cache).load()
        for name in ("image", "label"):
            np.testing.assert_array_equal(getattr(loaded, name), getattr(expected, name))
        assert loaded.grid.shape == expected.grid.shape and loaded.original.shape == expected.original.shape
        np.testing.assert_array_equal(loaded.grid.affine, expected.grid.affine)
        assert cache.used == (0 if before < np.inf else loaded.image.nbytes + loaded.label.nbytes)


# --- the index -------------------------------------------------------------------------------------------------------


def test_index_tells_what_a_case_holds(dataset):
    dataset.examples("ct", 3)
    path, every = dataset.path("ct_0"), (0, 1, 2, 3, 4)
    assert read_index(dataset.directory) == {
        "ct_0": CaseContent(path.stat().st_size, (32, 32, 11), {1: LabelContent(every, (2, 5))}),
        "ct_1": CaseContent(dataset.path("ct_1").stat().st_size, (32, 32, 12), {1: LabelContent(every, (2, 5))}),
    }
    dataset.examples("ct", 3, factor=2)
    assert list(read_index(dataset.directory)["ct_0"].factors) == [1, 2]


def test_data_with_an_index_opens_without_any_case_file(dataset, monkeypatch):
    dataset.examples("ct", 3), dataset.examples("mr", 3)
    monkeypatch.setattr(index_module, "read_case", None)
    monkeypatch.setattr("ummkd_tf.data.stored_case.opened_case", None)
    check_classes({m: dataset.examples(m, 3) for m in dataset.modalities}, TASK.class_names)


@pytest.mark.parametrize("size", ["same", "other"])
def test_a_file_that_changed_is_looked_at_again(size, dataset):
    dataset.examples("ct", 2)
    path, before = dataset.path("ct_0"), read_index(dataset.directory)["ct_1"]
    whole, times = path.stat().st_size, path.stat()
    with h5py.File(path, "r+") as file:
        file["label"][:] = 3
        if size == "other":
            file["more"] = np.zeros(1000)
    assert (path.stat().st_size == whole) == (size == "same")
    if size == "other":  # as a copy that keeps times
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert dataset.stored_cases("test", "ct")  # which writes an index that is newer
    assert dataset.stored_cases("train", "ct")[0].labelled == (0, 10)
    assert read_index(dataset.directory)["ct_1"] == before


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content.update(format=2),
        lambda content: content.update(cases=[1]),
        lambda content: content["cases"]["ct_0"].pop("shape"),
        lambda content: content["cases"]["ct_0"].update(shape=[32, 32]),
        lambda content: content["cases"]["ct_0"].update(shape=[32, 32, 10**12]),
        lambda content: content["cases"]["ct_0"]["factors"]["1"].update(labelled=[2, 99]),
        lambda content: content["cases"]["ct_0"]["factors"]["1"].update(classes=["liver"]),
        lambda content: content["cases"]["ct_0"].update(num_bytes=-1),
    ],
)
def test_a_damaged_index_is_made_anew(damage, dataset):
    dataset.examples("ct", 2)
    path = dataset.directory / INDEX
    good = path.read_text(encoding="utf-8")
    content = json.loads(good)
    damage(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    dataset.examples("ct", 2)
    assert path.read_text(encoding="utf-8") == good


def test_data_that_cannot_be_written_to_are_read_all_the_same(dataset, monkeypatch):
    def refused(*_):
        raise InputError("could not be written")

    monkeypatch.setattr(index_module, "write_index", refused)
    assert dataset.examples("ct", 2).draw(np.random.default_rng(0))[0].shape == (32, 32, 3)


# --- damage ----------------------------------------------------------------------------------------------------------


def test_damage_that_only_reading_shows_is_one_clear_line(dataset):
    examples, path = dataset.examples("ct", 3), dataset.path("ct_0")
    size = path.stat().st_size
    with h5py.File(path, "r") as file:
        offset = file["image"].id.get_chunk_info(4).byte_offset
    content = bytearray(path.read_bytes())
    content[offset + 20] ^= 255
    times = path.stat()
    path.write_bytes(bytes(content))
    with pytest.raises(InputError, match=f"^{path}: damaged or incomplete case file"):  # already when it is opened
        dataset.examples("ct", 3)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # as if the disk had done it
    assert path.stat().st_size == size
    with pytest.raises(InputError, match=f"^{path}: damaged or incomplete case file"):
        for seed in range(20):
            examples.draw(np.random.default_rng(seed))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": 7}, r"label value 7, but task abdomen has values 0 to 4: prepare the data again"),
        ({"image": np.nan}, "the image has NaN or infinite voxels"),
    ],
)
def test_voxels_that_no_network_takes(change, message, dataset):
    for case_id in ("ct_0", "ct_1"):
        with h5py.File(dataset.path(case_id), "r+") as file:
            for name, value in change.items():
                file[name][:, :, :] = value
    with pytest.raises(InputError, match=message):
        dataset.examples("ct", 3).draw(np.random.default_rng(0))


def test_another_case_of_the_same_size_of_file(dataset):
    stored = dataset.stored_cases("train", "ct")[0]
    with pytest.raises(InputError, match=r"ct_0.h5: \(32, 32, 11\) voxels, but index.json says \(32, 32, 9\)"):
        dataclasses.replace(stored, shape=(32, 32, 9)).slices([0], [0])
    with pytest.raises(InputError, match="holds case 'ct_0' of modality 'ct': expected 'ct_5' of 'ct'"):
        dataclasses.replace(stored, case_id="ct_5").slices([0], [0])


# --- memory of the machine, and the benchmark's part -----------------------------------------------------------------


def test_free_memory_of_a_control_group(tmp_path):
    """1000 allowed and 700 used, of which 100 are file contents that can be dropped."""
    for name, text in (("memory.max", "1000\n"), ("memory.current", "700\n"), ("memory.stat", "inactive_file 100\n")):
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert environment._free_in_group(tmp_path) == 400
    (tmp_path / "memory.max").write_text("max\n", encoding="utf-8")
    assert environment._free_in_group(tmp_path) is None
    assert environment.free_memory() > 0


@pytest.mark.parametrize(("gpu", "cores", "threads"), [(False, 16, 1), (True, 4, 4), (True, 16, 8)])
def test_a_gpu_gets_more_threads_that_prepare_batches(monkeypatch, gpu, cores, threads):
    monkeypatch.setattr(environment, "has_gpu", lambda: gpu)
    monkeypatch.setattr(environment, "available_cores", lambda: cores)
    assert environment.batch_threads() == threads


def test_many_cases_for_the_benchmark(tmp_path):
    cases_part.write_many(tmp_path, 8, depth=3)
    dataset = Dataset.load(tmp_path)
    assert [len(dataset.ids(part)) for part in ("train", "validation", "test")] == [4, 2, 2]
    written = (tmp_path / INDEX).read_bytes()
    (tmp_path / INDEX).unlink()
    for part in dataset.split:
        for factor in (1, 2, 4):
            dataset.stored_cases(part, factor=factor)
    assert (tmp_path / INDEX).read_bytes() == written
    assert dataset.case("mr_0003").case_id == "mr_0003"


def test_aims_of_many_cases():
    values = {"opened s": 0.5, "peak GiB": 2.0, "input × warm": 30.0, "input × cold": 4.0}
    small = Measurement("x", "16 cases", Timing((1.0,)), values)
    large = Measurement("x", "2000 cases", Timing((1.3,)), {**values, "peak GiB": 3.0})
    found = cases_part.aims([small, large], cases_part.FULL)
    assert [aim.met for aim in found] == [True, True, False, True, True]
    assert found[1].measured == "x: 1.07"
