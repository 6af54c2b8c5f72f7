"""The losses on numbers that can be checked by hand; agreement with the authors' code is in test_golden.py."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from toy_networks import toy3d

from ummkd_tf import SETTINGS, UnpairedSegmenter
from ummkd_tf.model import losses
from ummkd_tf.model.absent_classes import count_alone, updated_memory


def one_hot(labels, classes=2):
    return tf.one_hot(labels, classes)


LABELS = np.array([[[0, 1]]])  # [batch 1, height 1, width 2]: one background pixel, one of class 1
UNDECIDED = tf.zeros((1, 1, 2, 2))  # p = ½ everywhere
SURE = 100.0 * (one_hot(LABELS) - 0.5)  # p = the reference


def test_soft_dice_by_hand():
    # Each class: 2 · ½ · 1 / (2 · ¼ + 1) = 2/3.
    assert float(losses.soft_dice_loss(UNDECIDED, one_hot(LABELS))) == pytest.approx(-2 / 3, abs=1e-6)
    assert float(losses.soft_dice_loss(SURE, one_hot(LABELS))) == pytest.approx(-1, abs=1e-6)
    assert float(losses.soft_dice_loss(-SURE, one_hot(LABELS))) == pytest.approx(0, abs=1e-6)


def test_weighted_cross_entropy_by_hand():
    # Both weights are 1 - ½ = ½, so each pixel costs ½ · ln 2.
    assert float(losses.weighted_cross_entropy(UNDECIDED, one_hot(LABELS))) == pytest.approx(0.5 * np.log(2))
    # One pixel in four is class 1: weights 1/4 (three background pixels) and 3/4; mean over four pixels.
    labels = np.array([[[0, 0], [0, 1]]])
    expected = (3 * 0.25 + 1 * 0.75) / 4 * np.log(2)
    assert float(losses.weighted_cross_entropy(tf.zeros((1, 2, 2, 2)), one_hot(labels))) == pytest.approx(expected)
    # A probability of 0 is clipped to 0.005.
    assert float(losses.weighted_cross_entropy(-SURE, one_hot(LABELS))) == pytest.approx(-0.5 * np.log(0.005))


def test_soft_dice_of_a_class_without_voxel_or_probability():
    """Classes 0 and 1 are perfect; of class 2 there is nothing at all: 0, and not 0 / 0."""
    sure = 1000.0 * (one_hot(LABELS, 3) - 0.5)
    assert float(losses.soft_dice_loss(sure, one_hot(LABELS, 3))) == pytest.approx(-2 / 3)


def test_voxels_of_no_class_by_hand():
    """Four pixels with p = ½ everywhere: one of class 0, one of class 1, two whose label is no class."""
    logits, reference = tf.zeros((1, 2, 2, 2)), one_hot(np.array([[[0, 1], [-1, 5]]]))
    # Dice, each class: 2 · ½ · 1 / (4 · ¼ + 1) = ½.
    assert float(losses.soft_dice_loss(logits, reference)) == pytest.approx(-0.5)
    # Both weights are 1 - ½, because two pixels are labelled; the mean is over four.
    assert float(losses.weighted_cross_entropy(logits, reference)) == pytest.approx(2 * 0.5 * np.log(2) / 4)


def test_class_knowledge_by_hand():
    # Two pixels of class 0 with logits (4, 0) and (0, 0): z_0 = (2, 0), and with T = 2 q_0 = softmax(1, 0).
    logits = tf.constant([[[[4.0, 0.0], [0.0, 0.0], [0.0, 2 * np.log(3)]]]])
    q = losses.class_knowledge(logits, one_hot([[[0, 0, 1]]]), temperature=2.0)
    np.testing.assert_allclose(q, [[np.e / (np.e + 1), 1 / (np.e + 1)], [0.25, 0.75]], atol=1e-5)


def test_absent_class_is_uniform():
    q = losses.class_knowledge(SURE, one_hot(np.array([[[0, 0]]])))
    np.testing.assert_allclose(q[1], [0.5, 0.5])


def kd(logits_a, logits_b, labels_a=LABELS, labels_b=LABELS, **arguments):
    pair = ({"ct": logits_a, "mr": logits_b}, {"ct": one_hot(labels_a), "mr": one_hot(labels_b)})
    return float(losses.knowledge_distillation_loss(*pair, **arguments))


def test_distillation_by_hand():
    # T = 1. Class 0: qa = (¾, ¼), qb = (½, ½); class 1 alike in both.
    # KL(a||b) + KL(b||a) = sum (qa - qb)(ln qa - ln qb) = ¼ ln(3/2) - ¼ ln(1/2) = ¼ ln 3; mean over C = 2.
    a = tf.constant([[[[np.log(3.0), 0.0], [0.0, 0.0]]]], tf.float32)
    assert kd(a, UNDECIDED, temperature=1.0) == pytest.approx(0.25 * np.log(3) / 2, rel=1e-4)


def test_distillation_is_zero_for_equal_symmetric_and_has_no_temperature_factor():
    rng = np.random.default_rng(0)
    a, b = (tf.constant(rng.normal(size=(1, 1, 2, 2)), tf.float32) for _ in range(2))
    assert kd(a, a) == pytest.approx(0, abs=1e-7)
    assert kd(a, b) == pytest.approx(kd(b, a), rel=1e-5)
    assert kd(a, b) > 0
    assert kd(2 * a, 2 * b, temperature=2.0) == pytest.approx(kd(a, b, temperature=1.0), rel=1e-4)


def test_absent_class_uniform_or_skipped():
    only_background = np.array([[[0, 0]]])
    a = tf.constant([[[[0.0, 0.0], [0.0, 2 * np.log(3.0)]]]], tf.float32)
    # CT has class 1 with q = (¼, ¾); MR lacks it, so uniform: ¼ ln 3 / 2. Class 0 is alike.
    assert kd(a, UNDECIDED, LABELS, only_background) == pytest.approx(0.25 * np.log(3) / 2, rel=1e-4)
    assert kd(a, UNDECIDED, LABELS, only_background, absent="skip") == pytest.approx(0, abs=1e-6)
    # CT's class 0 has q = (¾, ¼), MR's (½, ½): ¼ ln 3, over the one class that both have; and without such a class, 0.
    a = tf.constant([[[[2 * np.log(3.0), 0.0], [0.0, 0.0]]]], tf.float32)
    assert kd(a, UNDECIDED, LABELS, only_background, absent="skip") == pytest.approx(0.25 * np.log(3), rel=1e-4)
    assert kd(a, UNDECIDED, 1 - only_background, only_background, absent="skip") == 0


def test_absent_class_from_memory():
    """CT holds class 1 with q = (¼, ¾), MR lacks it: MR's memory says the same, or, never seen, uniform."""
    only_background = np.array([[[0, 0]]])
    a = tf.Variable([[[[0.0, 0.0], [0.0, 2 * np.log(3.0)]]]], dtype=tf.float32)
    nothing, same = tf.zeros((2, 2)), tf.constant([[9.0, 9.0], [0.0, 2 * np.log(3.0)]], tf.float32)
    arguments = {"labels_a": LABELS, "labels_b": only_background, "absent": "memory"}
    assert kd(a, UNDECIDED, **arguments, memory={"ct": 5 + nothing, "mr": same}) == pytest.approx(0, abs=1e-6)
    unseen = kd(a, UNDECIDED, **arguments, memory={"ct": 5 + nothing, "mr": nothing})
    assert unseen == pytest.approx(0.25 * np.log(3) / 2, rel=1e-4)
    with pytest.raises(ValueError, match="expected the memory"):
        kd(a, UNDECIDED, **arguments)


def test_memory_gets_no_gradient_and_gives_one_to_the_other_modality():
    memory = {"ct": tf.zeros((2, 2)), "mr": tf.Variable([[1.0, 0.0], [0.0, 3.0]])}
    logits = {"ct": tf.Variable(UNDECIDED), "mr": tf.Variable(UNDECIDED)}
    references = {"ct": one_hot(LABELS), "mr": one_hot(np.array([[[0, 0]]]))}
    with tf.GradientTape() as tape:
        loss = losses.knowledge_distillation_loss(dict(logits), references, absent="memory", memory=memory)
    of_ct, of_memory = tape.gradient(loss, [logits["ct"], memory["mr"]])
    assert of_memory is None
    assert np.abs(of_ct[0, 0, 1]).max() > 0.01  # class 1 is drawn towards what MR remembers


def test_memory_is_a_running_mean_of_the_batches_that_hold_a_class():
    def z(value):
        return tf.fill((1, 1, 2, 2), float(value))

    both, only_background = one_hot(LABELS), one_hot(np.array([[[0, 0]]]))
    memory = updated_memory(tf.zeros((2, 2)), z(2), only_background)
    np.testing.assert_allclose(memory, [[2, 2], [0, 0]], atol=1e-5)  # class 1 was never seen
    memory = updated_memory(memory, z(4), both)
    np.testing.assert_allclose(memory, [[2.2, 2.2], [4, 4]], atol=1e-5)  # 0.9 · 2 + 0.1 · 4; the first value as it is
    memory = updated_memory(memory, z(0), only_background)
    np.testing.assert_allclose(memory, [[1.98, 1.98], [4, 4]], atol=1e-5)


def test_classes_alone_are_counted():
    """Of background, 1, 2, 3: class 1 is in CT alone, class 2 in MR alone, class 3 nowhere."""
    references = {"ct": one_hot([[[0, 1]]], 4), "mr": one_hot([[[0, 2]]], 4)}
    assert float(count_alone(references)) == 2
    assert float(count_alone({"ct": references["ct"], "mr": references["ct"]})) == 0


def test_three_modalities_are_the_mean_of_their_pairs():
    rng = np.random.default_rng(1)
    logits = {m: tf.constant(rng.normal(size=(1, 1, 2, 2)), tf.float32) for m in ("ct", "mr", "pet")}
    references = dict.fromkeys(logits, one_hot(LABELS))
    three = float(losses.knowledge_distillation_loss(logits, references))
    pairs = [kd(logits[a], logits[b]) for a, b in (("ct", "mr"), ("ct", "pet"), ("mr", "pet"))]
    assert three == pytest.approx(np.mean(pairs), rel=1e-5)
    with pytest.raises(ValueError, match="at least two, got 1"):
        losses.knowledge_distillation_loss({"ct": SURE}, {"ct": one_hot(LABELS)})


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_16_bit_logits_lose_only_what_their_rounding_loses(dtype):
    """More voxels than float16 can count (65504), or bfloat16 add one by one (256)."""
    rng = np.random.default_rng(4)
    shape = (1, 512, 512)
    logits = tf.cast(rng.normal(size=(*shape, 2)), dtype)
    rounded, reference = tf.cast(logits, tf.float32), one_hot(rng.integers(0, 2, shape))
    for loss in (losses.soft_dice_loss, losses.weighted_cross_entropy, losses.class_knowledge):
        np.testing.assert_array_equal(loss(logits, reference), loss(rounded, reference))
    both = dict.fromkeys("ab", reference)
    found = losses.knowledge_distillation_loss({"a": logits, "b": -logits}, both)
    assert found == losses.knowledge_distillation_loss({"a": rounded, "b": -rounded}, both)


def test_what_is_no_one_hot_reference_is_refused():
    label_map = np.zeros((1, 1, 2, 1), int)  # would be broadcast
    for loss in (losses.soft_dice_loss, losses.weighted_cross_entropy, losses.class_knowledge):
        with pytest.raises(ValueError, match=r"\(1, 1, 2, 1\) for logits of shape \(1, 1, 2, 2\): .* tf.one_hot"):
            loss(UNDECIDED, label_map)
    both = {"ct": UNDECIDED, "mr": UNDECIDED}
    with pytest.raises(ValueError, match=r"reference of shape \(1, 1, 2\) for .* one-hot \[batch"):
        losses.knowledge_distillation_loss(both, {"ct": one_hot(LABELS), "mr": LABELS})
    with pytest.raises(
        ValueError, match=r"logits of \['ct', 'mr'\], one-hot references of \['ct'\]: expected the same"
    ):
        losses.knowledge_distillation_loss(both, {"ct": one_hot(LABELS)})


def test_2d_and_3d_alike():
    rng = np.random.default_rng(2)
    flat = tf.constant(rng.normal(size=(1, 4, 2, 3)), tf.float32)
    labels = rng.integers(0, 3, (1, 4, 2))
    deep, deep_labels = tf.reshape(flat, (1, 2, 2, 2, 3)), labels.reshape(1, 2, 2, 2)
    for loss in (losses.soft_dice_loss, losses.weighted_cross_entropy, losses.class_knowledge):
        np.testing.assert_allclose(loss(flat, one_hot(labels, 3)), loss(deep, one_hot(deep_labels, 3)), rtol=1e-6)


def test_gradients_flow_into_both_modalities():
    logits = {"ct": tf.Variable(SURE), "mr": tf.Variable(UNDECIDED)}
    references = dict.fromkeys(logits, one_hot(LABELS))
    with tf.GradientTape() as tape:
        loss = losses.knowledge_distillation_loss(dict(logits), references)
    for gradient in tape.gradient(loss, list(logits.values())):
        assert np.abs(gradient).max() > 1e-4


@pytest.mark.parametrize("setting", SETTINGS)
def test_loss_terms_and_their_sum(setting):
    """Eq. 5, from its reported parts; only settings that distill add α/2 times the distillation loss."""
    rng = np.random.default_rng(3)
    labels = {m: rng.integers(0, 5, (1, 8, 8, 8)) for m in ("ct", "mr")}
    images = {
        m: tf.constant(y[..., np.newaxis] + rng.normal(size=(*y.shape, 1)), tf.float32) for m, y in labels.items()
    }
    keras.utils.set_random_seed(0)
    model = UnpairedSegmenter(network="unet3d", setting=setting, width=4, initialization="glorot")
    model.compile(kd_weight=0.7, l2_weight=1e-6)
    terms = {name: float(value) for name, value in model.batch_losses(images, labels, training=True).items()}
    squares = sum(float(np.sum(np.square(v.numpy()))) for v in model.trainable_variables)
    assert terms["l2_loss"] == pytest.approx(squares, rel=1e-5)
    for m in images:
        assert terms[f"{m}_segmentation_loss"] == pytest.approx(terms[f"{m}_dice_loss"] + terms[f"{m}_cross_entropy"])
    expected = terms["ct_segmentation_loss"] + terms["mr_segmentation_loss"] + 1e-6 * squares
    # Far above the tolerance, so that its weight and its absence are seen.
    assert 0.35 * terms["kd_loss"] > 3e-5 * abs(expected)
    expected += 0.35 * terms["kd_loss"] if setting in ("joint_kd", "ours") else 0.0
    assert terms["loss"] == pytest.approx(expected, rel=3e-6)


def toy_batch(classes_of_mr=2):
    rng = np.random.default_rng(0)
    images = {m: tf.constant(rng.normal(size=(1, 4, 4, 4, 1)), tf.float32) for m in ("ct", "mr")}
    return images, {m: rng.integers(0, c, (1, 4, 4, 4)) for m, c in (("ct", 2), ("mr", classes_of_mr))}


@pytest.mark.parametrize("l2_on", ["all", "kernels"])
def test_a_step_goes_down_the_gradient_of_the_reported_loss(l2_on, eager):
    """Plain gradient descent with rate 1 subtracts the derivative of Eq. 5, L2's 2 η v in it."""
    images, labels = toy_batch()
    model = UnpairedSegmenter(network=toy3d(), num_classes=2, width=2, initialization="glorot")
    model.compile(keras.optimizers.SGD(1.0), l2_weight=0.3, l2_on=l2_on)
    with tf.GradientTape() as tape:
        loss = model.batch_losses(images, labels, training=True)["loss"]
    gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])
    expected = [v.numpy() - g.numpy() for v, g in zip(model.trainable_variables, gradients, strict=True)]
    model.optimize(images, labels)
    for v, value in zip(model.trainable_variables, expected, strict=True):
        np.testing.assert_allclose(v, value, atol=1e-5, err_msg=v.path)


def test_the_choice_for_absent_classes_reaches_the_model_s_loss(eager):
    images, labels = toy_batch(classes_of_mr=1)
    model = UnpairedSegmenter(network=toy3d(), num_classes=2, width=2, initialization="glorot")
    references, found = {m: one_hot(y) for m, y in labels.items()}, []
    for absent in ("uniform", "skip"):
        model.compile(absent=absent)
        found.append(float(model.batch_losses(images, labels, training=False)["kd_loss"]))
        expected = losses.knowledge_distillation_loss(model(images), references, absent=absent)
        assert found[-1] == pytest.approx(float(expected), rel=1e-4)
    assert found[0] != pytest.approx(found[1], rel=0.01)
