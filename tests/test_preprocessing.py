"""From a scan to the task's grid and back: each step by hand, and the chain by its properties."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from scipy.spatial.transform import Rotation

from ummkd_tf.common.errors import InputError
from ummkd_tf.data.reduction import enlarge_in_plane, reduce_image, reduce_label
from ummkd_tf.scans import preprocessing
from ummkd_tf.scans.geometry import Grid, Volume, crop, reorient, straightened
from ummkd_tf.scans.preprocessing import (
    body_box,
    classes_of_same_volume,
    clip_intensity,
    find_body,
    label_centroid,
    normalize,
    prepare_scan,
    resample_label,
    restore,
    task_grid,
)
from ummkd_tf.tasks import TASKS, Clip, get_task

ABDOMEN, CARDIAC = get_task("abdomen"), get_task("cardiac")
EYE = np.eye(4)


def spaced(i, j, k, origin=(0, 0, 0)):
    affine = np.diag([i, j, k, 1.0])
    affine[:3, 3] = origin
    return affine


# --- intensities -----------------------------------------------------------------------------------------------------


def test_clip_in_the_images_unit_and_in_percentiles():
    values = np.arange(101.0)
    assert clip_intensity(values, Clip(-5, 40)).tolist() == [*range(41), *[40] * 60]
    assert clip_intensity(values, Clip(0, 98, "percentile")).tolist() == [*range(99), 98, 98]  # top 2 % cut


def test_normalize_by_hand():
    """Scanned voxels 0 and 4 have mean 2 and deviation 2; the voxel outside the scan is as dark as the darkest."""
    result = normalize(np.array([0.0, 4.0, np.nan]), np.array([True, True, False]), Clip(-10, 10))
    assert result.tolist() == [-1, 1, -1]
    assert result.dtype == np.float32


def test_normalize_wants_contrast():
    with pytest.raises(InputError, match="every voxel has the value 10 after clipping"):
        normalize(np.array([20.0, 30.0]), np.array([True, True]), Clip(-10, 10))


# --- the window ------------------------------------------------------------------------------------------------------


def test_body_box_leaves_margins_and_table_out():
    """Voxels of 10 mm: the margin of 10 mm is one voxel."""
    values = np.zeros((20, 30, 4), np.float32)
    values[4:11, 10:21] = 100  # body: rows 4–10, columns 10–20
    values[17:18, 0:8] = 80  # table: 32 voxels, a tenth of the body's 308
    assert find_body(values) == (slice(4, 11), slice(10, 21), slice(0, 4))
    assert body_box(Volume(values, spaced(10, 10, 10)), Clip(0, 100)) == (slice(3, 12), slice(9, 22), slice(None))


def two_limbs():
    """Thighs of 80 mm in voxels of 5 mm, 160 mm apart, each with a bone of another class; a table of a tenth of one."""
    x, y = np.meshgrid(np.arange(-200, 200, 5.0), np.arange(-80, 80, 5.0), indexing="ij")
    image, label = np.zeros((*x.shape, 10), np.float32), np.zeros((*x.shape, 10), np.uint8)
    for c, center in ((1, -80), (2, 80)):
        distance = np.hypot(x - center, y)
        image[distance < 40], image[distance < 12], label[distance < 12] = 300, 500, c
    image[30:50, 30] = 300  # 20 voxels a slice, where a thigh has 193
    affine = spaced(5, 5, 8, (-200, -80, 0))
    return Volume(image, affine), Volume(label, affine)


def test_both_limbs_are_the_body_and_the_table_is_not():
    image, _ = two_limbs()
    assert np.count_nonzero(image.array[:40, :28, 0]) == np.count_nonzero(image.array[40:, :28, 0]) == 193
    # From −80 − 35 to 80 + 35 mm, and from −35 to 35 mm.
    assert find_body(image.array) == (slice(17, 64), slice(9, 24), slice(0, 10))


def test_both_limbs_are_prepared_alike_with_a_label_and_without():
    image, label = two_limbs()
    task = dataclasses.replace(ABDOMEN, axes="RAS", size=(192, 64))
    trained, predicted = (prepare_scan(image, given, task, "mr") for given in (label, None))
    assert np.array_equal(trained.image, predicted.image)
    for c in (1, 2):
        assert predicted.image[trained.label == c].mean() > 2


def test_body_box_of_a_blank_scan_is_all_of_it():
    blank = Volume(np.zeros((4, 6, 2), np.float32), EYE)
    assert body_box(blank, Clip(0, 1)) == (slice(0, 4), slice(0, 6), slice(None))


def test_body_box_of_fine_voxels_is_that_of_coarse_ones_within_the_margin():
    """A body of 80 × 120 mm in voxels of 1 mm: every third one is looked at; the box leaves 10 to 14 mm around it."""
    values = np.zeros((160, 200, 9), np.float32)
    values[41:121, 52:172] = 50
    rows, columns, _ = body_box(Volume(values, EYE), Clip(0, 100))
    for side, start, stop in ((rows, 41, 121), (columns, 52, 172)):
        assert 10 <= start - side.start <= 14 and 10 <= side.stop - stop <= 14


def mr_with_a_dark_liver(noise=0.0):
    """An upright patient of 360 × 240 mm, voxels of 4 × 4 × 8 mm, RAS: fat 60, tissue 300, fluid 1500, and on the
    patient's right a liver of 90, outside of which there is fat alone. In heavy noise, air is Rayleigh distributed.
    """
    x, y = np.meshgrid(np.arange(-220, 220, 4.0), np.arange(-160, 160, 4.0), indexing="ij")

    def ellipse(center, radii):
        return (((np.stack([x, y], -1) - center) / radii) ** 2).sum(-1) < 1

    plane, label = np.zeros(x.shape, np.float32), np.zeros(x.shape, np.uint8)
    for center, radii, value in (
        ((0, 0), (180, 120), 60),  # fat
        ((0, 0), (155, 95), 300),
        ((95, 10), (65, 75), 90),  # liver
        ((-40, 20), (30, 40), 1500),
    ):
        plane[ellipse(center, radii)] = value
    label[ellipse((95, 10), (65, 75))] = 1
    shape, rng = (*x.shape, 12), np.random.default_rng(0)
    image = np.hypot(plane[..., None] + noise * rng.normal(size=shape), noise * rng.normal(size=shape))
    affine = spaced(4, 4, 8, (-220, -160, 0))
    return Volume(image.astype(np.float32), affine), Volume(label[..., None].repeat(12, -1), affine)


@pytest.mark.parametrize("noise", [0, 15])
@pytest.mark.parametrize("labelled", [True, False], ids=["for training", "for prediction"])
def test_dark_liver_stays_in_the_picture(noise, labelled, caplog):
    """A tenth of the intensity range, 150, cut fat and liver off and left their labels on black."""
    image, label = mr_with_a_dark_liver(noise)
    prepared = prepare_scan(image, label if labelled else None, ABDOMEN, "mr")
    liver = resample_label(label, prepared.grid, 5) == 1
    assert (prepared.image[liver] > prepared.image.min()).mean() > 0.999
    assert prepared.image[liver].std() < 0.2 + noise / 60  # one organ, one brightness: nothing of it is blackened
    fat = resample_label(Volume((image.array > 30).astype(np.uint8), image.affine), prepared.grid, 5) == 1
    if not noise:
        assert (prepared.image[fat] > prepared.image.min()).mean() > 0.97
    assert "labelled voxels" not in caplog.text


def test_image_and_label_that_rounding_puts_on_two_sides_of_a_diagonal_stay_together():
    """At 45° the noise of a header decides which of the patient's axes an index is named after."""
    turn = Rotation.from_euler("z", 45, degrees=True).as_matrix() * (2, 2, 8)
    image = np.full((60, 50, 6), -1000, np.float32)
    image[5:-5, 5:-5] = np.random.default_rng(0).normal(40, 5, (50, 40, 6))
    label = np.zeros(image.shape, np.uint8)
    label[8:20, 9:15, 1:5] = 1
    image[label == 1] = 150
    affines = []
    for sign in (-1, 1):
        affine = np.eye(4)
        affine[:3, :3] = Rotation.from_euler("z", sign * 1e-6).as_matrix() @ turn
        affines.append(affine)
    assert Grid(affines[0], image.shape).axes != Grid(affines[1], image.shape).axes
    for first, second in (affines, affines[::-1]):
        prepared = prepare_scan(Volume(image, first), Volume(label, second), ABDOMEN, "ct")
        organ = ndimage.binary_erosion(prepared.label == 1)
        assert organ.any() and prepared.image[organ].mean() > 0.9 * prepared.image.max()


def test_body_box_is_enlarged_for_labels_outside_and_says_so(caplog):
    """An organ almost without signal at the edge of the body: 4, where the body has 100."""
    array, label = np.zeros((60, 50, 12), np.float32), np.zeros((60, 50, 12), np.uint8)
    array[20:52, 6:44] = np.random.default_rng(0).uniform(90, 110, (32, 38, 12))
    label[10:25, 20:30] = 1
    array[10:20, 20:30] = 4
    affine = spaced(5, 5, 5)
    prepared = prepare_scan(Volume(array, affine), Volume(label, affine), ABDOMEN, "mr")
    assert "960 labelled voxels lie outside of what looks like the body" in caplog.text  # rows 10–17: 8 × 10 × 12
    assert (prepared.image[prepared.label == 1] > prepared.image.min()).mean() > 0.95


def test_window_around_the_image_centre():
    """The centre of the image stays the centre of the window, wherever body and organs lie."""
    array = np.zeros((40, 60, 4), np.float32)
    array[2:12, 40:55] = np.linspace(100, 200, 15)[:, None]
    image = Volume(array, spaced(2.0, 2.0, 8.0, origin=(-70, 30, 5)))
    task = dataclasses.replace(ABDOMEN, axes="RAS", size=(64, 32), region="image_center")
    label = Volume((array > 0).astype(np.uint8), image.affine)
    for given_label in (None, label):
        grid = prepare_scan(image, given_label, task, "mr").grid
        np.testing.assert_allclose(
            grid.world((np.array(grid.shape) - 1) / 2), image.grid.world((np.array(array.shape) - 1) / 2)
        )
        assert grid.shape[:2] == (64, 32)
    assert (
        abs(
            prepare_scan(image, None, dataclasses.replace(task, region="body"), "mr").grid.world([0, 0, 0])[0]
            - grid.world([0, 0, 0])[0]
        )
        > 20
    )


def test_crop_stays_in_place():
    volume = Volume(np.arange(24).reshape(4, 3, 2), spaced(2.0, 3.0, 5.0, origin=(10, 20, 30)))
    part = crop(volume, (slice(1, 3), slice(2, 3), slice(None)))
    assert part.array.shape == (2, 1, 2)
    np.testing.assert_allclose(part.grid.world([0, 0, 0]), volume.grid.world([1, 2, 0]))
    assert part.array[0, 0, 0] == volume.array[1, 2, 0]


def test_air_around_the_patient_changes_no_intensity():
    """The same body in a wider field of view is prepared to the same values."""
    image, label = scan_with_label()
    margin = 12
    wide = np.pad(image.array, [(margin, margin), (margin, margin), (0, 0)], constant_values=image.array.min())
    wide_label = np.pad(label.array, [(margin, margin), (margin, margin), (0, 0)])
    affine = image.affine.copy()
    affine[:3, 3] = image.grid.world([-margin, -margin, 0])
    narrow = prepare_scan(image, label, ABDOMEN, "ct")
    padded = prepare_scan(Volume(wide, affine), Volume(wide_label, affine), ABDOMEN, "ct")
    np.testing.assert_allclose(padded.image, narrow.image, atol=1e-4)
    np.testing.assert_array_equal(padded.label, narrow.label)


def test_label_centroid():
    classes = np.zeros((5, 5, 5), np.uint8)
    classes[1:4, 2, 0] = 4
    assert label_centroid(classes).tolist() == [2, 2, 0]
    with pytest.raises(InputError, match="no foreground voxel"):
        label_centroid(np.zeros((2, 2, 2)))


def test_task_grid_by_hand():
    """30 slices of 4 mm → 15 of 8 mm; the window's middle lies on the chosen centre and on the scan's mid-plane."""
    scan = Grid(spaced(2, 2, 4, origin=(10, 20, 30)), (100, 80, 30))
    grid = task_grid(scan, np.array([40.0, 50.0, 0.0]), ABDOMEN)
    assert grid.shape == (256, 256, 15)
    assert grid.spacing_mm == (1.5, 1.5, 8)
    assert grid.world((127.5, 127.5, 7)).tolist() == [10 + 80, 20 + 100, 30 + 4 * 14.5]


def test_task_grid_has_at_least_one_slice():
    assert task_grid(Grid(spaced(1, 1, 1), (9, 9, 2)), np.zeros(3), ABDOMEN).shape == (256, 256, 1)


# --- labels ----------------------------------------------------------------------------------------------------------


def test_same_grid_keeps_the_label():
    classes = np.random.default_rng(0).integers(0, 5, (9, 8, 7)).astype(np.uint8)
    assert np.array_equal(resample_label(Volume(classes, EYE), Grid(EYE, classes.shape), 5), classes)


def test_classes_of_same_volume_by_hand():
    """Occupancies sum to 2: the sure voxel, and of the three equal ones that beside it. Nothing where there is none."""
    occupancy = np.array([0.4, 1.0, 0.2, 0.2, 0.2, 0, 0, 0], np.float32).reshape(1, 8, 1, 1)
    assert classes_of_same_volume(occupancy).ravel().tolist() == [1, 1, 0, 0, 0, 0, 0, 0]
    full = np.array([1, 1, 0, 0], np.float32).reshape(1, 4, 1, 1)
    assert classes_of_same_volume(full).ravel().tolist() == [1, 1, 0, 0]


def test_no_label_stays_none():
    assert not resample_label(Volume(np.zeros((4, 4, 4), np.uint8), EYE), Grid(EYE, (3, 3, 3)), 5).any()


def test_label_beyond_the_window_is_left_out():
    classes = np.zeros((20, 20, 4), np.uint8)
    classes[15:, 15:] = 2
    assert not resample_label(Volume(classes, EYE), Grid(EYE, (8, 8, 4)), 5).any()
    assert (resample_label(Volume(classes, EYE), Grid(spaced(1, 1, 1, (12, 12, 0)), (8, 8, 4)), 5)[3:, 3:] == 2).all()


def ellipsoids(shape=(90, 80, 30), spacing=(1.3, 1.3, 7.7)):
    """Four classes; the first two touch."""
    z = np.moveaxis(np.indices(shape), 0, -1) * spacing
    classes = np.zeros(shape, np.uint8)
    for c, center, radii in (
        (1, (40, 50, 110), (30, 38, 70)),
        (2, (75, 50, 120), (18, 25, 60)),
        (3, (92, 80, 90), (12, 14, 50)),
        (4, (95, 30, 100), (15, 11, 45)),
    ):
        classes[(((z - center) / radii) ** 2).sum(axis=-1) < 1] = c
    return Volume(classes, spaced(*spacing))


@pytest.mark.parametrize("slice_mm", [8.0, 5.0, 12.0])
def test_every_class_keeps_its_volume(slice_mm):
    """Nearest-slice labels would miss by up to a tenth where 7.7 mm meet 8 mm (see `resample_label`)."""
    label = ellipsoids()
    grid = Grid(spaced(1.5, 1.5, slice_mm, (-3, -3, 1)), (85, 75, int(231 / slice_mm)))
    result = resample_label(label, grid, 5)
    before = np.bincount(label.array.ravel())[1:] * 1.3 * 1.3 * 7.7
    after = np.bincount(result.ravel())[1:] * 1.5 * 1.5 * slice_mm
    np.testing.assert_allclose(after, before, rtol=0.02)


@settings(max_examples=30, deadline=None)
@given(
    hnp.arrays(np.uint8, (5, 4, 3), elements=st.sampled_from([0, 1, 3])),
    st.tuples(*[st.floats(0.5, 2.5)] * 3),
    st.tuples(*[st.floats(-2, 2)] * 3),
)
def test_resampling_never_invents_a_label(classes, spacing, origin):
    result = resample_label(Volume(classes, EYE), Grid(spaced(*spacing, origin), (6, 6, 5)), 5)
    assert set(np.unique(result)) <= set(np.unique(classes)) | {0}


def test_restore_on_its_own_grid_is_the_largest_probability():
    probabilities = np.random.default_rng(0).dirichlet([1] * 5, (6, 5, 4)).astype(np.float32)
    grid = Grid(EYE, (6, 5, 4))
    assert np.array_equal(restore(probabilities, grid, grid), probabilities.argmax(-1))


def test_restore_is_background_beyond_the_window():
    one_hot = np.zeros((4, 4, 4, 5), np.float32)
    one_hot[..., 3] = 1
    restored = restore(one_hot, Grid(spaced(1, 1, 1, (2, 2, 2)), (4, 4, 4)), Grid(EYE, (8, 8, 8)))
    assert (restored[2:6, 2:6, 2:6] == 3).all()
    assert (restored == 3).sum() == 64


@pytest.mark.parametrize(("slices", "spacing_mm"), [(99, 1.0), (100, 1.0), (33, 3.0), (97, 1.0), (12, 8.0), (2, 1.5)])
def test_both_ends_of_a_scan_can_get_a_class(slices, spacing_mm):
    """100 mm are twelve and a half slices of 8 mm: an organ that a scan cuts through keeps its volume."""
    scan = Grid(spaced(2, 2, spacing_mm), (32, 32, slices))
    task = dataclasses.replace(TASKS["abdomen"], size=(16, 16), spacing_mm=(4.0, 4.0, 8.0))
    grid = task_grid(scan, np.array([15.5, 15.5, 0]), task)
    everywhere = np.zeros((*grid.shape, 2), np.float32)
    everywhere[..., 1] = 1
    assert restore(everywhere, grid, scan).all()


def test_both_ends_of_an_oblique_scan_can_get_a_class_although_its_header_is_rounded():
    """Four decimals turn the scan's own grid by up to 0.1 mm against the task's, which follows the header."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("XZ", (10, 7), degrees=True).as_matrix().round(4) * (1.5, 1.5, 1)
    scan = Grid(affine, (150, 150, 100))
    own = straightened(scan)
    assert not scan.is_tilted and np.any(own.affine != scan.affine)
    grid = task_grid(scan, np.array([74.5, 74.5, 0]), ABDOMEN)
    everywhere = np.zeros((*grid.shape, 2), np.float32)
    everywhere[..., 1] = 1
    assert restore(everywhere, grid, own).all()


# --- reduced presets -------------------------------------------------------------------------------------------------


def test_reduce_by_hand():
    """Block means, and the most frequent class, the lower one at a tie."""
    image = np.array([[0, 2, 5, 5], [4, 6, 5, 5]], np.float32)[:, :, None]
    label = np.array([[1, 1, 4, 4], [1, 2, 3, 3]], np.uint8)[:, :, None]
    assert reduce_image(image, 2)[:, :, 0].tolist() == [[3, 5]]
    assert reduce_label(label, 2)[:, :, 0].tolist() == [[1, 3]]


def test_enlarge_undoes_reduce_between_block_centres():
    """Centres of the blocks of rows lie at 0.5 and 2.5 of the fine rows 0, 1, 2, 3."""
    fine = enlarge_in_plane(np.array([0.0, 2.0])[:, None, None].repeat(2, 1), 2)
    np.testing.assert_allclose(fine[:, 0, 0], [0, 0.5, 1.5, 2])
    assert fine.shape == (4, 4, 1)


# --- the chain -------------------------------------------------------------------------------------------------------


def scan_with_label(shape=(60, 50, 24), spacing=(4.0, 4.0, 5.0), seed=0):
    """A body with two organs, in RAS; smooth noise so that resampling has something to do."""
    rng = np.random.default_rng(seed)
    image = rng.uniform(0, 5, shape).astype(np.float32)
    image[8:52, 6:44] += 100
    classes = np.zeros(shape, np.uint8)
    classes[30:45, 15:30, 6:18] = 1
    classes[12:20, 20:28, 8:16] = 4
    image += 40.0 * (classes > 0)
    affine = spaced(*spacing, origin=(-120, -100, 40))
    return Volume(image, affine), Volume(classes, affine)


@pytest.mark.parametrize("task", [ABDOMEN, CARDIAC], ids=lambda task: task.name)
@pytest.mark.parametrize("axes", ["LPS", "LAS", "PIR", "SAL"])
def test_stored_axis_order_makes_no_difference(task, axes):
    scan, label = scan_with_label(spacing=(4.0, 1.0, 5.0))
    expected = prepare_scan(scan, label, task, "mr")
    found = prepare_scan(reorient(scan, axes), reorient(label, axes), task, "mr")
    np.testing.assert_allclose(found.grid.affine, expected.grid.affine, atol=1e-9)
    np.testing.assert_allclose(found.image, expected.image, atol=1e-3)
    assert (found.label != expected.label).mean() < 1e-4
    assert found.grid.axes == task.axes
    assert found.original.axes == axes


def test_images_are_interpolated_linearly():
    """A ramp of voxels of 4 mm is a ramp in voxels of 1.5 mm too."""
    array = np.arange(40, dtype=np.float32)[:, None, None].repeat(20, 1).repeat(4, 2)
    task = dataclasses.replace(ABDOMEN, axes="RAS", size=(64, 32), region="image_center")
    task = dataclasses.replace(task, clip={"default": Clip(0, 1000)})
    steps = np.diff(prepare_scan(Volume(array, spaced(4, 4, 8)), None, task, "mr").image, axis=0)
    assert steps.min() > 0
    np.testing.assert_allclose(steps, steps[0, 0, 0], rtol=1e-3)


@pytest.mark.parametrize("task", [ABDOMEN, CARDIAC], ids=lambda task: task.name)
def test_known_positions_survive_the_chain(task):
    """A marker at each corner of a box, and one in the middle: the prepared marker lies within half a voxel of it."""
    scan, label = scan_with_label(spacing=(4.0, 1.5, 8.0))
    task = dataclasses.replace(task, clip={"default": Clip(0, 1000)})  # so that the marker is not cut
    markers = np.array([(i, j, k) for i in (18, 42) for j in (14, 36) for k in (5, 18)] + [(30, 25, 12)])
    for index in markers:
        array = np.zeros_like(scan.array)
        array[8:52, 6:44] = 100.0
        array[tuple(index)] = 200.0
        prepared = prepare_scan(Volume(array, scan.affine), label, task, "mr")
        bright = np.argwhere(prepared.image > prepared.image.max() - 1e-3).mean(axis=0)
        offset = prepared.grid.index(scan.grid.world(index)) - bright
        assert np.abs(offset).max() <= 0.5 + 1e-6


def test_prepared_scan_is_a_z_score_on_the_tasks_grid():
    scan, label = scan_with_label()
    prepared = prepare_scan(scan, label, ABDOMEN, "mr")
    assert prepared.image.shape == prepared.label.shape == (256, 256, 15)  # 24 slices of 5 mm
    assert prepared.image.dtype == np.float32
    assert prepared.label.dtype == prepared.original_label.dtype == np.uint8
    rows = np.flatnonzero((prepared.image != prepared.image.min()).any(axis=(1, 2)))
    inside = prepared.image[rows[0] : rows[-1] + 1]
    assert inside.max() == prepared.image.max()
    assert np.array_equal(prepared.original_label, label.array)
    # The body is at [8:52, 6:44]; the mean is taken over its box and a margin of three voxels, 12 mm, alone.
    grid = prepared.grid
    world = grid.world(np.moveaxis(np.indices(grid.shape), 0, -1))
    index = scan.grid.index(world)
    body = ((index > [4.5, 2.5, -0.5]) & (index < [54.5, 46.5, scan.array.shape[2] - 0.5])).all(axis=-1)
    assert prepared.image[body].mean() == pytest.approx(0, abs=0.01)
    assert prepared.image[body].std() == pytest.approx(1, abs=0.01)
    assert (prepared.image[~body] == prepared.image.min()).mean() > 0.99


def test_heart_window_is_centred_on_the_label():
    scan, label = scan_with_label()
    prepared = prepare_scan(scan, label, CARDIAC, "ct")
    center = prepared.grid.index(label.grid.world(np.argwhere(label.array).mean(axis=0)))
    np.testing.assert_allclose(center[:2], 127.5, atol=1e-6)


def test_scan_without_a_label_gets_the_same_image_for_a_body_window():
    scan, label = scan_with_label()
    alone = prepare_scan(scan, None, ABDOMEN, "ct")
    assert alone.label is alone.original_label is None
    assert np.array_equal(alone.image, prepare_scan(scan, label, ABDOMEN, "ct").image)


def test_label_of_another_scan_is_refused():
    scan, label = scan_with_label()
    with pytest.raises(InputError, match=r"label and image do not fit: the label has shape \(60, 50, 23\)"):
        prepare_scan(scan, Volume(label.array[:, :, :-1], label.affine), ABDOMEN, "ct")


def test_reference_label_returns_as_it_was_up_to_resampling():
    scan, label = scan_with_label()
    prepared = prepare_scan(scan, label, ABDOMEN, "ct")
    one_hot = np.eye(5, dtype=np.float32)[prepared.label]
    restored = restore(one_hot, prepared.grid, prepared.original)
    for c in (1, 4):
        both = ((restored == c) & (label.array == c)).sum()
        assert 2 * both / ((restored == c).sum() + (label.array == c).sum()) > 0.9
    assert set(np.unique(restored)) == {0, 1, 4}


def test_version_is_part_of_what_must_be_prepared_again():
    """A reminder: whoever changes a step of this file raises VERSION, and this number with it."""
    assert preprocessing.VERSION == 6
