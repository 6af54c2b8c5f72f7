"""What holds whatever the input (hypothesis): readers, samplers, losses. Metrics' are in test_metrics.py."""

from __future__ import annotations

import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from raw_data import write_slice
from test_sampling import case

from ummkd_tf.data.cases import read_case, write_case
from ummkd_tf.data.sampling import PATCH_DEPTH, PatchExamples, SliceExamples, UnpairedSampler, chunk, chunk_starts
from ummkd_tf.model import losses
from ummkd_tf.scans.geometry import Grid, reorient
from ummkd_tf.scans.preprocessing import Prepared
from ummkd_tf.scans.reading import read_volume
from ummkd_tf.tasks import TASKS

few_examples = settings(max_examples=25, deadline=None)
shapes = st.tuples(*[st.integers(1, 6)] * 3)
spacings = st.tuples(*[st.floats(0.3, 12)] * 3)
origins = st.tuples(*[st.floats(-500, 500)] * 3)
seeds = st.integers(0, 2**31)


def turned(spacing, origin, turn):
    """Affine with axes in another order and direction."""
    affine = np.zeros((4, 4))
    for axis, (world, flip) in enumerate(turn):
        affine[world, axis] = -spacing[axis] if flip else spacing[axis]
    affine[:3, 3], affine[3, 3] = origin, 1
    return affine


turns = st.tuples(st.permutations(range(3)), st.tuples(*[st.booleans()] * 3)).map(lambda t: list(zip(*t, strict=True)))


# --- readers ---------------------------------------------------------------------------------------------------------


@few_examples
@given(shapes, spacings, origins, turns, st.sampled_from(["u1", "<i2", ">i2", "<f4", "<f8"]), seeds)
def test_every_reader_sees_the_same_voxels_at_the_same_place(shape, spacing, origin, turn, dtype, seed):
    array = np.random.default_rng(seed).integers(0, 200, shape).astype(dtype)
    affine = turned(spacing, origin, turn)
    with tempfile.TemporaryDirectory() as folder:
        nib.save(nib.Nifti1Image(array, affine), f"{folder}/a.nii.gz")
        image = sitk.ReadImage(f"{folder}/a.nii.gz")  # ITK turns world coordinates to LPS by itself
        sitk.WriteImage(image, f"{folder}/b.nrrd")
        sitk.WriteImage(image, f"{folder}/c.mha")
        volumes = [read_volume(f"{folder}/{name}") for name in ("a.nii.gz", "b.nrrd", "c.mha")]
    for volume in volumes:
        np.testing.assert_array_equal(volume.array, array)
        np.testing.assert_allclose(volume.affine, affine, rtol=1e-4, atol=1e-3)


@few_examples
@given(shapes, spacings, origins, turns, st.sampled_from(["RAS", "PLS", "ILP"]), seeds)
def test_reorienting_moves_no_voxel_in_the_world(shape, spacing, origin, turn, axes, seed):
    array = np.random.default_rng(seed).permutation(np.prod(shape)).reshape(shape).astype(np.float32)
    affine = turned(spacing, origin, turn)
    with tempfile.TemporaryDirectory() as folder:
        nib.save(nib.Nifti1Image(array, affine), f"{folder}/a.nii")
        volume = read_volume(f"{folder}/a.nii")
    moved = reorient(volume, axes)
    assert moved.grid.axes == axes
    for value in (0, array.size // 2, array.size - 1):
        places = [v.grid.world(np.argwhere(v.array == value)[0]) for v in (volume, moved)]
        np.testing.assert_allclose(*places, atol=1e-3)


@few_examples
@given(st.permutations(range(4)), st.booleans(), seeds)
def test_dicom_slices_are_ordered_by_position_whatever_their_names(names, downwards, seed):
    pixels = np.random.default_rng(seed).integers(0, 200, (5, 4, 4)).astype(np.int16)
    step = -10.0 if downwards else 10.0
    with tempfile.TemporaryDirectory() as folder:
        for k in range(4):
            write_slice(Path(folder, f"{names[k]}.dcm"), pixels[:, :, k], (0, 0, step * k))
        volume = read_volume(folder)
    for k in range(4):
        found = int(np.argmin([abs(volume.grid.world((0, 0, z))[2] - step * k) for z in range(4)]))
        np.testing.assert_array_equal(volume.array[:, :, found], pixels[:, :, k])


@few_examples
@given(shapes, spacings, origins, turns, seeds)
def test_a_case_comes_back_as_it_was_written(shape, spacing, origin, turn, seed):
    rng = np.random.default_rng(seed)
    image, label = rng.normal(size=shape).astype(np.float32), rng.integers(0, 5, shape).astype(np.uint8)
    grid = Grid(turned(spacing, origin, turn), shape)
    prepared = Prepared(image, label, grid, grid, label[::-1])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.h5")
        write_case(path, prepared, case_id="a", modality="mr", task=TASKS["abdomen"], source={"a.nii": "00"})
        read = read_case(path, original_label=True)
    np.testing.assert_array_equal(read.image, image)
    np.testing.assert_array_equal(read.label, label)
    np.testing.assert_array_equal(read.original_label, label[::-1])
    np.testing.assert_array_equal(read.grid.affine, grid.affine)


# --- samplers --------------------------------------------------------------------------------------------------------


@given(st.integers(1, 400))
def test_chunks_cover_every_slice_and_none_is_needless(depth):
    starts = chunk_starts(depth)
    covered = [z for start in starts for z in range(start, min(start + PATCH_DEPTH, depth))]
    assert set(covered) == set(range(depth)) and len(starts) == -(-depth // PATCH_DEPTH)
    assert chunk(np.zeros((1, 1, depth)), starts[-1]).shape[2] == PATCH_DEPTH


@few_examples
@given(
    st.lists(st.integers(1, 20), min_size=1, max_size=3), seeds, st.integers(0, 10**6), st.integers(1, 4), st.booleans()
)
def test_batches_depend_on_seed_and_step_alone(depths, seed, start, threads, patches):
    kind = PatchExamples if patches else SliceExamples
    cases = [case(depth, range(depth // 2, depth), name=f"case{n}") for n, depth in enumerate(depths)]
    sampler = UnpairedSampler({"ct": kind(cases), "mr": kind(cases[::-1])}, 2, seed)
    ahead = sampler.batches(start, start + 5, num_threads=threads)
    for step, (images, labels) in zip(range(start, start + 5), ahead, strict=True):
        again_images, again_labels = sampler.batch(step)
        for m in ("ct", "mr"):
            np.testing.assert_array_equal(images[m], again_images[m])
            np.testing.assert_array_equal(labels[m], again_labels[m])
            origins = sampler.origins(step)[m]
            first = [int(origin.split()[-1].split("-")[0]) for origin in origins]
            middle = 0 if patches else 1  # of a 3D patch the first slice, of three slices the middle one
            np.testing.assert_array_equal(images[m][:, 0, 0].reshape(2, -1)[:, middle], first)


# --- losses ----------------------------------------------------------------------------------------------------------

finite = st.floats(-20, 20, width=32)


@st.composite
def logits_and_labels(draw, classes=3):
    space = draw(st.sampled_from([(1, 3, 2), (2, 2, 2, 2)]))
    logits = draw(hnp.arrays(np.float32, (*space, classes), elements=finite))
    labels = draw(hnp.arrays(np.uint8, space, elements=st.integers(0, classes - 1)))
    return tf.constant(logits), tf.one_hot(labels, classes)


@few_examples
@given(logits_and_labels(), st.permutations(range(3)), finite)
def test_losses_do_not_depend_on_the_order_of_classes_or_a_common_shift(pair, order, shift):
    logits, one_hot = pair
    for loss in (losses.soft_dice_loss, losses.weighted_cross_entropy):
        value = float(loss(logits, one_hot))
        assert float(loss(tf.gather(logits, order, axis=-1), tf.gather(one_hot, order, axis=-1))) == pytest.approx(
            value, abs=1e-5
        )
        assert float(loss(logits + shift, one_hot)) == pytest.approx(value, abs=1e-4)


@few_examples
@given(logits_and_labels())
def test_losses_are_within_their_range(pair):
    assert -1 - 1e-6 <= float(losses.soft_dice_loss(*pair)) <= 0
    assert 0 <= float(losses.weighted_cross_entropy(*pair)) <= -np.log(0.005)
    np.testing.assert_allclose(tf.reduce_sum(losses.class_knowledge(*pair), -1), 1, atol=1e-5)


@few_examples
@given(logits_and_labels(), logits_and_labels(), st.floats(0.5, 8))
def test_distillation_is_symmetric_positive_and_zero_for_the_same(a, b, temperature):
    def loss(first, second):
        return float(
            losses.knowledge_distillation_loss(
                {"ct": first[0], "mr": second[0]}, {"ct": first[1], "mr": second[1]}, temperature
            )
        )

    assert loss(a, b) == pytest.approx(loss(b, a), rel=1e-4, abs=1e-6)
    assert loss(a, b) >= -1e-6
    assert loss(a, a) == pytest.approx(0, abs=1e-6)
