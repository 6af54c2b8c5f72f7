"""Whole volumes: every slice predicted once, in its place."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from ummkd_tf.evaluation.inference import Predictor


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


def test_enlarged_probabilities_stay_in_place_and_sum_to_one():
    image = np.full((8, 8, 3), -3, np.float32)
    image[4:, :, :] = 3
    probabilities = Predictor(Stub(3)).probabilities(image, "mr", factor=4)
    assert probabilities.shape == (32, 32, 3, 2)
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)
    np.testing.assert_array_equal(probabilities.argmax(-1)[:, 0, 0], np.arange(32) >= 16)
