"""Augmentation: image and classes change together, sides stay, and a batch depends on (seed, step) alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from ummkd_tf.data.augmentation import AUGMENTATIONS, Augmentation, _nearest, in_plane_matrix
from ummkd_tf.data.sampling import UnpairedSampler
from ummkd_tf.output.pictures import batch_figure
from ummkd_tf.tasks import TASKS

SPATIAL = Augmentation(rotation=15, scaling=0.12, shift=0.06, elastic=0.02)
LIVER, RIGHT_KIDNEY, LEFT_KIDNEY = 1, 2, 3


def patch(rng, size=64, depth=8):
    """A dark picture, brighter in two kidneys: the right one on the left, as in axial slices of axes PLS."""
    label = np.zeros((size, size, depth), np.uint8)
    label[28:36, 12:20] = RIGHT_KIDNEY
    label[28:36, 44:52] = LEFT_KIDNEY
    return (label + rng.normal(0, 0.1, label.shape) - 1).astype(np.float32)[..., np.newaxis], label


class Patches:
    def draw(self, rng):
        return patch(rng)

    def origin(self, rng):
        return ""

    def labels(self):
        return []


class Limits:
    """Draws the limit of every change, as a random generator would by chance."""

    def uniform(self, low, high, shape):
        return np.full(shape, high)

    def random(self):
        return 0.0

    def standard_normal(self, shape, dtype):
        return np.zeros(shape, dtype)


def sampler(augmentation, seed=0):
    return UnpairedSampler({"ct": Patches(), "mr": Patches()}, 2, seed, augmentation)


def bytes_of(batch):
    return [array.tobytes() for part in batch for array in part.values()]


@pytest.mark.parametrize("augmentation", [Augmentation(), Augmentation(probability=0.5)])
def test_no_limits_change_nothing(augmentation):
    image, label = patch(np.random.default_rng(0))
    changed = augmentation(image, label, np.random.default_rng(1))
    np.testing.assert_array_equal(changed[0], image)
    np.testing.assert_array_equal(changed[1], label)


def test_probability_zero_changes_nothing():
    image, label = patch(np.random.default_rng(0))
    changed = Augmentation(15, 0.1, 0.1, 0.02, 0.2, 0.2, 0.3, 0.1, probability=0)(
        image, label, np.random.default_rng(1)
    )
    np.testing.assert_array_equal(changed[0], image)
    np.testing.assert_array_equal(changed[1], label)


def test_without_augmentation_the_batches_are_those_of_before():
    assert bytes_of(sampler(None).batch(3)) == bytes_of(sampler(Augmentation()).batch(3))


@pytest.mark.parametrize("augmentation", [SPATIAL, AUGMENTATIONS["practice"], AUGMENTATIONS["strong"]])
def test_a_point_moves_with_its_intensity(augmentation):
    """A bright cube of one class: where the class is afterwards, the image is bright, in every slice alike."""
    for seed in range(30):
        label = np.zeros((64, 64, 8), np.uint8)
        row, column = np.random.default_rng(seed).integers(16, 44, 2)
        label[row : row + 5, column : column + 5] = LIVER
        image = 10 * label[..., np.newaxis].astype(np.float32)
        changed, classes = augmentation(image, label, np.random.default_rng(seed))
        assert classes.any()
        bright = changed[..., 0] > (changed.min() + changed.max()) / 2
        for z in range(8):
            of_image, of_label = (np.mean(np.nonzero(m[..., z]), axis=1) for m in (bright, classes))
            np.testing.assert_allclose(of_image, of_label, atol=0.5)


@pytest.mark.parametrize("channels", [1, 3])
def test_quarter_turn_and_shift_by_hand(channels):
    """By 90°, row 0 of a 3×3 picture becomes a column, and the corner voxel keeps its class."""
    image = np.repeat(np.arange(9, dtype=np.float32).reshape(3, 3, 1), channels, 2)
    label = np.arange(9, dtype=np.uint8).reshape(3, 3)
    turned, classes = Augmentation(rotation=90)(image, label, Limits())
    expected = np.array([[6, 3, 0], [7, 4, 1], [8, 5, 2]])
    np.testing.assert_allclose(turned[..., 0], expected, atol=1e-5)
    np.testing.assert_array_equal(classes, expected)
    moved, classes = Augmentation(shift=1 / 3)(image, label, Limits())
    np.testing.assert_array_equal(classes, [[0, 0, 0], [0, 0, 1], [0, 3, 4]])
    np.testing.assert_allclose(moved[..., channels - 1], [[0, 0, 0], [0, 0, 1], [0, 3, 4]], atol=1e-5)
    # All control points move by one voxel: the picture shifts the other way.
    moved, classes = Augmentation(elastic=1 / 3)(image, label, Limits())
    np.testing.assert_array_equal(classes[:1, :1], [[4]])
    np.testing.assert_allclose(moved[:1, :1, channels - 1], [[4]], atol=1e-5)


def test_quarter_turn_where_columns_are_three_times_as_far_apart_as_rows():
    """The voxel of 1 × 3 mm, 3 mm below the middle, becomes three voxels 3 mm, one column, beside it."""
    label = np.zeros((7, 3), np.uint8)
    label[6, 1] = 1
    image = label[..., np.newaxis].astype(np.float32)
    turned, classes = Augmentation(rotation=90, spacing_mm=(1.0, 3.0))(image, label, Limits())
    expected = np.zeros((7, 3))
    expected[2:5, 0] = 1
    np.testing.assert_array_equal(classes, expected)
    np.testing.assert_allclose(turned[..., 0].T, [[0, 1 / 3, 2 / 3, 1, 2 / 3, 1 / 3, 0], [0] * 7, [0] * 7], atol=1e-5)


@pytest.mark.parametrize("spacing_mm", [(1.5, 1.5), (1.0, 3.0), (2.0, 0.7)])
def test_a_rotation_in_millimetres_keeps_lengths_and_angles(spacing_mm):
    """And has the same bits as without a spacing where rows and columns are equally far apart."""
    matrix = in_plane_matrix(15, 0.25, spacing_mm)
    in_mm = np.diag(spacing_mm) @ matrix @ np.diag(1 / np.array(spacing_mm))
    np.testing.assert_allclose(in_mm, in_plane_matrix(15, 0.25), atol=1e-12)
    np.testing.assert_allclose(np.linalg.svd(in_mm)[1], 0.8)
    assert (matrix.tobytes() == in_plane_matrix(15, 0.25).tobytes()) == (spacing_mm[0] == spacing_mm[1])


def test_sides_stay():
    """200 draws of each: no reflection, the left kidney stays on its side, and no new class appears."""
    image, label = patch(np.random.default_rng(0), depth=1)
    for augmentation in AUGMENTATIONS.values():
        rng = np.random.default_rng(5)
        for _ in range(200):
            assert np.linalg.det(in_plane_matrix(*rng.uniform(-1, 1, 2) * (augmentation.rotation, 0.5))) > 0
            _, classes = augmentation(image, label, rng)
            assert set(np.unique(classes)) == {0, RIGHT_KIDNEY, LEFT_KIDNEY}
            right, left = (np.nonzero(classes == c)[1].mean() for c in (RIGHT_KIDNEY, LEFT_KIDNEY))
            assert left - right > 20


def test_no_axis_is_mirrored():
    """Of three organs, each off the middle along an axis of its own; 50 draws of each augmentation."""
    label = np.zeros((32, 32, 8), np.uint8)
    label[14:18, 14:18, 3:5], label[26:30, 14:18, 3:5] = 1, 2
    label[14:18, 26:30, 3:5], label[14:18, 14:18, 6:8] = 3, 4
    image = label[..., np.newaxis].astype(np.float32)
    for augmentation in AUGMENTATIONS.values():
        rng = np.random.default_rng(5)
        for _ in range(50):
            changed, classes = augmentation(image, label, rng)
            middle, *others = (np.mean(np.nonzero(classes == c), axis=1) for c in (1, 2, 3, 4))
            assert np.linalg.det(np.array(others) - middle) > 0
            for c in (2, 3, 4):  # the image goes with it
                assert changed[classes == c].mean() > changed[classes == 0].mean()


def test_slices_of_a_patch_change_alike():
    image, label = patch(np.random.default_rng(0))
    image[:] = image[:, :, :1]
    changed, classes = SPATIAL(image, label, np.random.default_rng(3))
    assert np.any(changed != image)
    assert np.ptp(changed, axis=2).max() == 0 and np.ptp(classes, axis=2).max() == 0


@pytest.mark.parametrize("shape", [(17, 24), (24, 17, 8)])
def test_nearest_classes_are_those_of_scipy(shape):
    """Also on the edges, in the middle between two voxels, and outside."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 5, shape).astype(np.uint8)
    places = rng.uniform(-3, 27, (2, *shape[:2]))
    places[:, :4] = np.round(2 * places[:, :4]) / 2
    found = _nearest(label, places)
    assert found.dtype == np.uint8 and np.mean(found > 0) > 0.3
    for k in np.ndindex(shape[2:]):
        expected = ndimage.map_coordinates(label[:, :, *k], places, order=0, mode="constant", cval=0)
        np.testing.assert_array_equal(found[:, :, *k], expected)


def test_outside_is_background_and_as_dark_as_the_image():
    image, label = patch(np.random.default_rng(0))
    label[label == 0] = LIVER
    changed, classes = Augmentation(rotation=15, shift=0.2)(image, label, np.random.default_rng(0))
    outside = classes == 0
    assert outside.any() and np.all(changed[outside][:, 0] <= image.max())
    assert np.mean(changed[outside] == image.min()) > 0.9  # the rest lies half a voxel inside


def test_intensities_by_hand():
    image = np.array([[-1.0, 0.0], [1.0, 3.0]], np.float32)[..., np.newaxis]
    label = np.zeros((2, 2), np.uint8)
    seen = set()
    for seed in range(50):
        changed, _ = Augmentation(intensity_scale=0.15, intensity_shift=0.1)(image, label, np.random.default_rng(seed))
        scale, offset = np.polyfit(image.ravel(), changed.ravel(), 1)
        assert abs(scale - 1) <= 0.1501 and abs(offset) <= 0.1001
        seen.add((scale > 1, offset > 0))
        bent, _ = Augmentation(gamma=0.3)(image, label, np.random.default_rng(seed))
        assert bent.min() == -1 and bent.max() == pytest.approx(3)
        assert 0.25 ** np.exp(0.3) <= (bent[0, 1, 0] + 1) / 4 <= 0.25 ** np.exp(-0.3)
        assert bent.dtype == changed.dtype == np.float32
    assert len(seen) == 4


def test_noise_is_between_none_and_its_limit():
    """Deviations are uniform between 0 and 0.2: their mean is 0.1."""
    image, label = np.zeros((40, 40, 1), np.float32), np.zeros((40, 40), np.uint8)
    noisy = [Augmentation(noise=0.2)(image, label, np.random.default_rng(seed))[0] for seed in range(100)]
    deviations = [float(x.std()) for x in noisy]
    assert min(deviations) < 0.02 and 0.18 < max(deviations) < 0.22
    assert np.mean(deviations) == pytest.approx(0.1, abs=0.02)
    assert np.mean(noisy) == pytest.approx(0, abs=0.01)


def test_a_change_happens_with_its_probability():
    image, label = np.zeros((2, 2, 1), np.float32), np.zeros((2, 2), np.uint8)
    augmentation = Augmentation(intensity_shift=1.0, probability=0.2)
    changed = [augmentation(image, label, np.random.default_rng(seed))[0].any() for seed in range(1000)]
    assert np.mean(changed) == pytest.approx(0.2, abs=0.04)


def test_same_bytes_on_two_threads_and_from_a_later_step():
    augmentation = AUGMENTATIONS["strong"]
    one = [bytes_of(b) for b in sampler(augmentation).batches(0, 6)]
    assert one == [bytes_of(b) for b in sampler(augmentation).batches(0, 6, num_threads=2)]
    assert one[4:] == [bytes_of(b) for b in sampler(augmentation).batches(4, 6)]
    assert len({b for batch in one for b in batch}) == 24  # 6 steps, 2 modalities, image and label: all differ
    other = bytes_of(sampler(augmentation, seed=1).batch(0))
    assert not set(one[0]) & set(other)  # also of the labels, which differ by their augmentation alone


def test_examples_of_a_batch_change_independently():
    class Same(Patches):
        def draw(self, rng):
            return patch(np.random.default_rng(0))

    _, labels = UnpairedSampler({"ct": Same(), "mr": Same()}, 2, 0, SPATIAL).batch(0)
    four = [labels[m][i].tobytes() for m in ("ct", "mr") for i in range(2)]
    assert len(set(four)) == 4


@pytest.mark.parametrize("dimensions", [2, 3])
def test_preview_shows_every_example_with_its_contours(dimensions):
    images, labels = sampler(SPATIAL).batch(0)
    if dimensions == 2:
        images = {m: x[..., 3:6, 0] for m, x in images.items()}
        labels = {m: y[..., 4] for m, y in labels.items()}
    task = replace(TASKS["abdomen"], spacing_mm=(1.0, 2.0, 8.0))  # rows lie half as far apart as columns
    figure = batch_figure(images, labels, task)
    assert [axes.get_title() for axes in figure.axes] == ["ct", "ct", "mr", "mr"]
    shown = figure.axes[1].get_images()[0].get_array()
    np.testing.assert_array_equal(shown, images["ct"][1][..., 1] if dimensions == 2 else images["ct"][1][:, :, 0, 0])
    for axes in figure.axes:
        assert axes.get_aspect() == 0.5
        assert {text.get_text() for text in axes.texts} == {"2", "3", "A", "P", "R", "L"}
