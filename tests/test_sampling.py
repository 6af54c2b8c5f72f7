"""Batches: a pure function of (seed, step), with the authors' way of choosing slices."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from memory_case import MemoryCase
from recorded_runs import run_config

from ummkd_tf.common.errors import InputError
from ummkd_tf.data.augmentation import AUGMENTATIONS
from ummkd_tf.data.cache import Cache
from ummkd_tf.data.sampling import (
    PatchExamples,
    SliceExamples,
    UnpairedSampler,
    adjacent_slices,
    check_classes,
    chunk,
    chunk_starts,
)
from ummkd_tf.runs.session import make_sampler


def case(depth, labelled=range(0), name="a"):
    """Every voxel holds its slice number; labelled slices are of class 1."""
    image = np.broadcast_to(np.arange(depth, dtype=np.float32), (8, 8, depth)).copy()
    label = np.zeros((8, 8, depth), np.uint8)
    label[:, :, list(labelled)] = 1
    return MemoryCase(image, label, name)


@pytest.mark.parametrize(
    ("depth", "starts"), [(1, [0]), (8, [0]), (9, [0, 1]), (16, [0, 8]), (17, [0, 8, 9]), (24, [0, 8, 16])]
)
def test_chunks_cover_the_volume_and_the_last_is_aligned_to_the_end(depth, starts):
    assert chunk_starts(depth) == starts
    assert len(starts) == -(-depth // 8)
    covered = {z for start in starts for z in range(start, min(start + 8, depth))}
    assert covered == set(range(depth))


def test_thin_volume_repeats_its_last_slice():
    np.testing.assert_array_equal(chunk(case(3).image, 0)[0, 0], [0, 1, 2, 2, 2, 2, 2, 2])


def test_edge_slices_repeat_their_neighbour():
    image = case(4).image
    assert [adjacent_slices(image, k)[0, 0].tolist() for k in range(4)] == [[0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 3]]


def test_label_belongs_to_the_middle_slice():
    examples = SliceExamples([case(10, labelled=[4])])
    for seed in range(40):
        image, label = examples.draw(np.random.default_rng(seed))
        assert label.max() == (image[0, 0, 1] == 4)


def test_slices_are_uniform_over_all_slices_of_all_cases():
    examples = SliceExamples([case(30), case(10)])
    rng = np.random.default_rng(0)
    middle = np.array([examples.draw(rng)[0][0, 0, 1] for _ in range(4000)])
    assert np.mean(middle >= 10) == pytest.approx(20 / 40, abs=0.03)  # only the long case has these slices


@pytest.mark.parametrize("given", [(), (0.0,), (0.25,), (1.0,)])
def test_some_patches_are_chunks_and_the_others_around_labelled_slices(given):
    examples = PatchExamples([case(40, labelled=[20])], *given)
    rng = np.random.default_rng(0)
    starts = [int(examples.draw(rng)[0][0, 0, 0, 0]) for _ in range(4000)]
    # Centred on slice 20: start 16, which is also one of the five chunks.
    share = given[0] if given else 0.5
    assert np.mean(np.array(starts) == 16) == pytest.approx(share + (1 - share) / 5, abs=0.03)
    assert set(starts) == ({16} if share == 1 else {0, 8, 16, 24, 32})


@pytest.mark.parametrize(("labelled", "starts"), [([1], {0}), ([20, 21], {16, 17}), ([39], {32})])
def test_patches_around_labelled_slices_end_with_the_volume(labelled, starts):
    """Each labelled slice is the fifth of a patch, unless the patch would begin before slice 0 or end after 39."""
    examples = PatchExamples([case(40, labelled)], 1.0)
    drawn = [examples.draw(np.random.default_rng(seed))[0][0, 0, :, 0].tolist() for seed in range(20)]
    assert {slices[0] for slices in drawn} == starts
    assert all(slices == list(range(int(slices[0]), int(slices[0]) + 8)) for slices in drawn)


@pytest.mark.parametrize(
    ("labelled", "kind", "starts"),
    [
        (range(10, 31), "inside", (11, 21)),  # slices 11-18 to 21-28: never 10, 29 or 30, as the authors draw
        (range(10, 31), None, (11, 21)),
        (range(10, 31), "centered", (6, 26)),  # each labelled slice is a patch's fifth
        (range(10, 21), "inside", (11, 11)),  # of 11 slices, one patch: 11-18
        (range(10, 20), "inside", (6, 15)),  # 10 are too few, so their centres are taken
    ],
)
def test_patches_around_labelled_slices_lie_inside_them(labelled, kind, starts):
    examples = PatchExamples([case(40, labelled)], 1.0, *([kind] if kind else []))
    rng = np.random.default_rng(0)
    drawn = np.array([examples.draw(rng)[0][0, 0, 0, 0] for _ in range(1000)])
    first, last = starts
    np.testing.assert_array_equal(np.unique(drawn), np.arange(first, last + 1))
    assert np.bincount(drawn.astype(int))[first:].min() > 0.6 * 1000 / (last - first + 1)  # uniform


@pytest.mark.parametrize("kind", ["inside", "centered"])
def test_where_a_runs_patches_lie_is_what_its_config_says(prepared_dataset, kind, monkeypatch):
    """In a scan of 40 slices, because those of the data set are too thin for a difference."""
    cases = [MemoryCase(np.zeros((4, 4, 40), np.float32), np.ones((4, 4, 40), np.uint8) * range(40) % 5, "a")]
    monkeypatch.setattr(type(prepared_dataset), "stored_cases", lambda *_: cases)
    sampler = make_sampler(prepared_dataset, run_config(labelled_share=1.0, labelled_patches=kind), 3, Cache())
    for step in range(10):
        examples = {m: PatchExamples(cases, 1.0, kind) for m in ("ct", "mr")}
        assert sampler.origins(step) == UnpairedSampler(examples, sampler.batch_size, sampler.seed).origins(step)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_share_of_a_run_s_config_is_what_its_batches_have(prepared_dataset, share):
    cases = {m: prepared_dataset.stored_cases("train", m, 4) for m in ("ct", "mr")}
    expected, other = (
        UnpairedSampler({m: PatchExamples(c, s) for m, c in cases.items()}, 8, seed=0).origins(0)
        for s in (share, 1 - share)
    )
    config = run_config(labelled_share=share, labelled_patches="inside", batch_size=8, seed=0)
    assert make_sampler(prepared_dataset, config, 3, Cache()).origins(0) == expected != other


def test_a_run_rotates_on_its_tasks_spacing(prepared_dataset):
    task = replace(prepared_dataset.task, spacing_mm=(1.0, 3.0, 8.0))
    drawn = make_sampler(replace(prepared_dataset, task=task), run_config(augmentation="affine"), 3, Cache())
    assert drawn.augmentation == replace(AUGMENTATIONS["affine"], spacing_mm=(1.0, 3.0))


def test_patch_and_label_are_the_same_slices():
    examples = PatchExamples([case(30, labelled=range(11, 14))])
    for seed in range(30):
        image, label = examples.draw(np.random.default_rng(seed))
        assert image.shape == (8, 8, 8, 1) and label.shape == (8, 8, 8)
        np.testing.assert_array_equal(label[0, 0] == 1, (image[0, 0, :, 0] >= 11) & (image[0, 0, :, 0] < 14))


def sampler(seed, batch_size=3):
    rng = np.random.default_rng(1)
    cases = {m: [case(int(rng.integers(9, 30)), labelled=[3, 4]) for _ in range(4)] for m in ("ct", "mr")}
    return UnpairedSampler({m: PatchExamples(c) for m, c in cases.items()}, batch_size, seed)


def flat(batch):
    return np.concatenate([np.ravel(a) for part in batch for a in part.values()])


def test_batches_depend_on_seed_and_step_only():
    first, second = sampler(7), sampler(7)
    np.testing.assert_array_equal(flat(first.batch(5)), flat(second.batch(5)))
    assert np.any(flat(first.batch(5)) != flat(first.batch(6)))
    assert np.any(flat(first.batch(5)) != flat(sampler(8).batch(5)))


def test_same_batches_with_any_number_of_threads_and_from_any_step():
    one = [flat(b) for b in sampler(0).batches(0, 9)]
    two = [flat(b) for b in sampler(0).batches(0, 9, num_threads=2)]
    late = [flat(b) for b in sampler(0).batches(6, 9, num_threads=2)]
    assert len(one) == len(two) == 9
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(one[6:], late, strict=True):
        np.testing.assert_array_equal(a, b)


def test_half_of_the_batch_is_of_each_modality_and_draws_are_independent():
    images, labels = sampler(0, batch_size=4).batch(0)
    assert {m: len(x) for m, x in images.items()} == {m: len(y) for m, y in labels.items()} == {"ct": 4, "mr": 4}
    assert np.any(images["ct"] != images["mr"])


def test_origins_name_what_a_batch_was_cut_from():
    """Every voxel holds its slice number, so the batch itself says where it comes from."""
    cases = [case(30, labelled=range(10, 14)), case(12, name="b")]
    patches = UnpairedSampler({"ct": PatchExamples(cases)}, batch_size=4, seed=0)
    slices = UnpairedSampler({"ct": SliceExamples(cases)}, batch_size=4, seed=0)
    for step in range(5):
        found = [int(image[0, 0, 0, 0]) for image in patches.batch(step)[0]["ct"]]
        assert [int(text.split()[-1].split("-")[0]) for text in patches.origins(step)["ct"]] == found
        found = [int(image[0, 0, 1]) for image in slices.batch(step)[0]["ct"]]
        assert [int(text.split()[-1]) for text in slices.origins(step)["ct"]] == found
    for source in (patches, slices):
        assert {text.split(",")[0] for step in range(9) for text in source.origins(step)["ct"]} == {"a", "b"}


def test_a_class_that_a_modality_lacks_is_an_error():
    both = {"ct": PatchExamples([case(9), case(9, labelled=[3])]), "mr": SliceExamples([case(9, labelled=[0])])}
    check_classes(both, ["background", "liver"])
    with pytest.raises(InputError, match="no training example of ct holds spleen: expected every class"):
        check_classes(both, ["background", "liver", "spleen"])
    with pytest.raises(InputError, match="no training example of mr holds liver"):
        check_classes({**both, "mr": SliceExamples([case(9)])}, ["background", "liver"])
