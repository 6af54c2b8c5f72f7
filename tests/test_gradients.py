"""Sizes and angles of the gradients of the loss's terms."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from toy_networks import toy3d

from experiments.gradients import ALONE, measure, rows
from ummkd_tf.model.segmenter import UnpairedSegmenter


def measured(setting, images, labels, alpha=0.5):
    keras.utils.set_random_seed(0)
    model = UnpairedSegmenter(network=toy3d(), setting=setting, width=2, num_classes=2, initialization="glorot")
    model.compile(l2_weight=0.0)
    return measure(model, {m: tf.constant(x) for m, x in images.items()}, labels, alpha)


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    images = {m: rng.normal(size=(1, 8, 8, 4, 1)).astype(np.float32) for m in ("ct", "mr")}
    labels = {m: rng.integers(0, 2, (1, 8, 8, 4)) for m in images}
    labels["mr"][:] = 0
    return images, labels


def test_networks_that_share_nothing_have_gradients_at_right_angles(batch):
    found = measured("individual", *batch)
    assert found["cos(ct, mr)"] == 0 and found["‖ct‖"] > 0 and found["‖mr‖"] > 0
    assert found[ALONE] == 1  # MR has no class 1


def test_equal_modalities_agree_and_have_nothing_to_distill(batch):
    images, labels = (dict.fromkeys(one, one["ct"]) for one in batch)
    found = measured("joint_kd", images, labels)
    assert found["cos(ct, mr)"] == pytest.approx(1, abs=1e-5)
    assert found["‖ct‖"] == pytest.approx(found["‖mr‖"], rel=1e-5)
    assert found["‖kd‖"] == pytest.approx(0, abs=1e-6) and found[ALONE] == 0


def test_distillation_counts_with_its_weight(batch):
    half, whole = (measured("ours", *batch, alpha=alpha) for alpha in (0.5, 1.0))
    assert whole["‖kd‖"] == pytest.approx(2 * half["‖kd‖"], rel=1e-5) and half["‖kd‖"] > 0
    assert whole["‖ct‖"] == pytest.approx(half["‖ct‖"], rel=1e-5)


def test_rows_are_means_of_their_batches():
    batches = [{"‖ct‖": size, ALONE: alone} for size, alone in ((1.0, 0.0), (3.0, 2.0), (2.0, 0.0), (5.0, 1.0))]
    assert [list(row.values()) for row in rows(300, batches)] == [
        ["300", "yes", "2", "4.000"],
        ["300", "no", "2", "1.500"],
    ]
    assert len(rows(300, batches[:1])) == 1


def test_gradients_are_those_of_eq_5():
    """Of α/2 of the distillation loss, and the angle to the sum of both segmentation losses."""
    rng = np.random.default_rng(0)
    images = {m: tf.constant(rng.normal(size=(1, 8, 8, 4, 1)), tf.float32) for m in ("ct", "mr")}
    labels = {m: rng.integers(0, 2, (1, 8, 8, 4)) for m in images}
    keras.utils.set_random_seed(0)
    model = UnpairedSegmenter(network=toy3d(), setting="ours", width=2, num_classes=2, initialization="glorot")
    model.compile(l2_weight=0.0)
    found = measure(model, images, labels, 0.7)
    variables = [v.value for v in model.trainable_variables]
    with tf.GradientTape(persistent=True) as tape:
        terms = model.batch_losses(images, labels, training=True)
        both = terms["ct_segmentation_loss"] + terms["mr_segmentation_loss"]
    kd, segmentation = (
        np.concatenate([np.ravel(g) for g in tape.gradient(term, variables, unconnected_gradients="zero")])
        for term in (terms["kd_loss"], both)
    )
    assert found["‖kd‖"] == pytest.approx(0.35 * np.linalg.norm(kd), rel=1e-4)
    cosine = kd @ segmentation / np.linalg.norm(kd) / np.linalg.norm(segmentation)
    assert found["cos(kd, ct + mr)"] == pytest.approx(cosine, abs=1e-4) and abs(cosine) > 0.01
