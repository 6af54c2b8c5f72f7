"""Whole volumes: every slice predicted once, in its place."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.eager.polymorphic_function import polymorphic_function as tracing

from ummkd_tf.common.errors import InputError
from ummkd_tf.data.sampling import chunk_starts
from ummkd_tf.evaluation.inference import Predictor, largest_components
from ummkd_tf.evaluation.overlap import check_overlap, gaussian_weights


class Stub:
    """A model that gives class 1 the probability ½ + the brightness of the voxel (or middle slice) it sees."""

    num_classes = 2

    def __init__(self, rank):
        self.network = type("Network", (), {"rank": rank})()

    def __call__(self, images):
        ((modality, x),) = images.items()
        value = x[..., 0] if self.network.rank == 3 else x[..., 1]
        return {modality: tf.stack([-value, value], -1)}


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("depth", [1, 5, 8, 9, 21])
def test_every_slice_is_predicted_in_its_place(rank, depth):
    image = np.random.default_rng(depth).normal(size=(8, 8, depth)).astype(np.float32)
    probabilities = Predictor(Stub(rank), batch_size=2).probabilities(image, "ct")
    assert probabilities.shape == (8, 8, depth, 2)
    np.testing.assert_allclose(probabilities[..., 1], 1 / (1 + np.exp(-2 * image)), atol=1e-6)


def test_many_networks_one_after_the_other_are_no_reason_for_a_warning(caplog, monkeypatch):
    """As of an ensemble, or of a figure's seven settings; TensorFlow warns of functions that are traced often."""
    # A new one, because it warns twice and no more, and another test may have caused that.
    monkeypatch.setattr(tracing, "_frequent_tracing_detector_manager", tracing._FrequentTracingDetectorManager())
    image = np.zeros((8, 8, 8), np.float32)
    for _ in range(8):
        Predictor(Stub(3)).probabilities(image, "ct")
    assert not caplog.records


def test_enlarged_probabilities_stay_in_place_and_sum_to_one():
    image = np.full((8, 8, 3), -3, np.float32)
    image[4:, :, :] = 3
    probabilities = Predictor(Stub(3)).probabilities(image, "mr", factor=4)
    assert probabilities.shape == (32, 32, 3, 2)
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)
    np.testing.assert_array_equal(probabilities.argmax(-1)[:, 0, 0], np.arange(32) >= 16)


class FirstSlice(Stub):
    """Class 1 in the first slice of a chunk alone."""

    def __call__(self, images):
        ((modality, x),) = images.items()
        value = tf.constant([40.0] + 7 * [-40.0]) * tf.ones_like(x[..., 0])
        return {modality: tf.stack([-value, value], -1)}


def test_overlapping_chunks_are_averaged_with_gaussian_weights():
    """12 slices, chunks from 0 and 4: slice 4 is the fifth of one and the first of the other, with weights 0.88 and
    0.0022; the third slice is seen once.
    """
    weights = np.exp(-0.5 * (np.arange(8) - 3.5) ** 2)
    np.testing.assert_allclose(gaussian_weights(8), weights, rtol=1e-6)
    assert chunk_starts(12, 4) == [0, 4]
    probabilities = Predictor(FirstSlice(3)).probabilities(np.zeros((2, 2, 12), np.float32), "ct", overlap=0.5)
    expected = np.zeros(12)
    expected[0], expected[4] = 1, weights[0] / (weights[0] + weights[4])
    np.testing.assert_allclose(probabilities[0, 0, :, 1], expected, atol=1e-6)
    later_counts = Predictor(FirstSlice(3)).probabilities(np.zeros((2, 2, 12), np.float32), "ct")
    assert np.flatnonzero(later_counts[0, 0, :, 1] > 0.5).tolist() == [0, 4]


@pytest.mark.parametrize("rank", [2, 3])
def test_overlap_leaves_every_slice_in_its_place(rank):
    image = np.random.default_rng(0).normal(size=(8, 8, 21)).astype(np.float32)
    probabilities = Predictor(Stub(rank)).probabilities(image, "ct", overlap=0.75)
    np.testing.assert_allclose(probabilities[..., 1], 1 / (1 + np.exp(-2 * image)), atol=1e-5)


def test_overlap_must_leave_a_step():
    with pytest.raises(InputError, match=r"overlap 1: expected a share from 0 to 0\.875"):
        Predictor(Stub(3)).probabilities(np.zeros((8, 8, 9), np.float32), "ct", overlap=1)
    check_overlap(0.875)


def test_the_step_between_chunks_is_rounded():
    """0.3 of eight slices are 2.4: chunks of 14 slices begin six apart, at 0 and 6."""
    probabilities = Predictor(FirstSlice(3)).probabilities(np.zeros((2, 2, 14), np.float32), "ct", overlap=0.3)
    assert np.flatnonzero(probabilities[0, 0, :, 1] > 1e-3).tolist() == [0, 6]


def test_largest_components_by_hand():
    """Class 1 has parts of two and one, class 2 one; diagonal neighbours are apart."""
    labels = np.array([[1, 1, 0, 2], [0, 0, 1, 0]], np.uint8)[:, :, np.newaxis]
    assert largest_components(labels)[:, :, 0].tolist() == [[1, 1, 0, 2], [0, 0, 0, 0]]
    assert labels[1, 2, 0] == 1  # the input stays
