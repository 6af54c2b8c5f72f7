"""Agreement with the authors' own code; where the numbers come from is said in golden/README.md."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from ummkd_tf import UnpairedSegmenter
from ummkd_tf.evaluation.metrics import dice_coefficient
from ummkd_tf.fast.adam import Adam
from ummkd_tf.fast.convolutions import Conv2D
from ummkd_tf.model import losses
from ummkd_tf.model.elements import phase_shift
from ummkd_tf.model.layers import BatchNorm
from ummkd_tf.released.weights import RELEASED_MODALITY, convert, load_released_weights, phase_shift_channels, tf1_names

GOLDEN = Path(__file__).parent / "golden"
LOSS = 5e-6  # absolute
STATISTIC = 3e-6  # relative
GRADIENT = 1e-3  # of the tensor's maximum


@cache
def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def under(values: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}


def assert_close_to_maximum(actual, expected, share, name=""):
    limit = share * np.abs(expected).max()
    worst = np.abs(np.asarray(actual) - expected).max()
    assert worst <= limit, f"{name}: off by {worst:.3g}, allowed {limit:.3g}"


# --- losses ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", ["2d", "3d"])
@pytest.mark.parametrize("case", ["all", "absent1", "absent2"])
def test_losses_and_their_gradients(rank, case):
    data = under(golden(f"losses_{rank}"), f"{case}/")
    logits = {side: tf.constant(data[f"{side}_logits"]) for side in ("source", "target")}
    one_hot = {side: tf.one_hot(data[f"{side}_label"], 5) for side in logits}
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(logits)
        kd = losses.knowledge_distillation_loss(logits, one_hot)
        half_kd = kd / 2  # their code averages the two directions of Eq. 4
        dice = {side: losses.soft_dice_loss(logits[side], one_hot[side]) for side in logits}
        cross_entropy = {side: losses.weighted_cross_entropy(logits[side], one_hot[side]) for side in logits}
        segmentation = {side: dice[side] + cross_entropy[side] for side in logits}
    assert float(half_kd) == pytest.approx(data["kd_loss"], abs=LOSS)
    for side in logits:
        assert float(dice[side]) == pytest.approx(data[f"{side}_dice_loss"], abs=LOSS)
        assert float(cross_entropy[side]) == pytest.approx(data[f"{side}_ce_weighted_loss"], abs=LOSS)
        q = losses.class_knowledge(logits[side], one_hot[side])
        np.testing.assert_allclose(q, data[f"{side}_prob"], atol=1e-6)
    scalars = {"kd": dict.fromkeys(logits, half_kd), "dice": dice, "ce": cross_entropy, "seg": segmentation}
    compared = 0
    for kind, by_side in scalars.items():
        for side in logits:
            expected = data.get(f"grad_{kind}_wrt_{side}_logits")
            if expected is not None:
                actual = tape.gradient(by_side[side], logits[side])
                assert_close_to_maximum(actual, expected, GRADIENT, f"{kind} {side}")
                compared += 1
    assert compared >= 4


# --- single operations -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", ["bs2", "bs3_rect"])
def test_phase_shift_is_theirs_after_permuting_channels(group):
    data = under(golden("phase_shift"), f"{group}/")
    factor, channels = int(data["r"]), int(data["n_channel"])
    shape = (*data["input_shape"][:3], factor**2 * channels) if len(data["input_shape"]) == 4 else None
    inputs = data.get("input", np.arange(np.prod(shape), dtype=np.float32).reshape(shape))
    ours = phase_shift(inputs[..., phase_shift_channels(factor, channels)], factor)
    np.testing.assert_array_equal(ours, data["output"])


@pytest.mark.parametrize("rank", ["bn2d", "bn3d"])
def test_batch_norm(rank):
    data = under(golden("misc_ops"), f"{rank}/")
    layer = BatchNorm()
    layer.build((None,) * (data["x"].ndim - 1) + (3,))
    for name in ("gamma", "beta", "moving_mean", "moving_variance"):
        getattr(layer, name).assign(data[f"before/{name}"])
    np.testing.assert_allclose(layer(data["x"], training=False), data["out_inference"], rtol=2e-5, atol=2e-6)
    x = tf.constant(data["x"])
    with tf.GradientTape() as tape:
        tape.watch(x)
        outputs = layer(x, training=True)
        total = tf.reduce_sum(outputs * x + outputs**2 / 2)  # what the recorded gradients were taken of
    np.testing.assert_allclose(outputs, data["out_training"], rtol=2e-5, atol=2e-6)
    for name in ("moving_mean", "moving_variance"):
        np.testing.assert_allclose(getattr(layer, name), data[f"after/{name}"], rtol=STATISTIC)
    gradients = tape.gradient(total, [x, layer.gamma.value, layer.beta.value])
    for name, gradient in zip(("x", "gamma", "beta"), gradients, strict=True):
        assert_close_to_maximum(gradient, data[f"grad_{name}"], GRADIENT, name)


def test_symmetric_padding_mirrors_the_border():
    data = under(golden("misc_ops"), "sym/")
    for size in (3, 5):
        border = [size // 2, size // 2]
        padded = tf.pad(data["x"], [[0, 0], border, border, [0, 0]], mode="SYMMETRIC")
        outputs = tf.nn.conv2d(padded, data[f"w{size}"], 1, "VALID")
        np.testing.assert_allclose(outputs, data[f"out{size}"], rtol=2e-5, atol=2e-6)


def test_labels_outside_the_classes_are_ignored():
    data = under(golden("misc_ops"), "label_decomp/")
    np.testing.assert_array_equal(tf.one_hot(data["input"].astype(np.int32), 5), data["output"])


def test_dice_of_label_volumes():
    data = under(golden("misc_ops"), "eval_dice/")
    dice = [dice_coefficient(data["pred"] == c, data["gt"] == c) for c in range(1, 5)]
    np.testing.assert_allclose(dice, data["output"], atol=1e-6)


# --- whole networks --------------------------------------------------------------------------------------------------

NETWORKS = {
    "dilated2d": {
        "file": "net2d_fb4_s32",
        "weights": "net2d_fb4_weights",
        "rate": 1e-3,
        "l2_on": "kernels",
        "l2": 0.5e-4,
    },
    "unet3d": {"file": "net3d_fb4", "weights": "net3d_fb4_weights", "rate": 1e-4, "l2_on": "all", "l2": 1e-4},
}


@cache
def batch(network):
    data = golden(NETWORKS[network]["file"])
    images = {m: tf.constant(data[side]) for m, side in RELEASED_MODALITY.items()}
    labels = {m: tf.constant(data[f"{side}_label"]) for m, side in RELEASED_MODALITY.items()}
    return images, labels


@pytest.fixture(params=[False, True], ids=["plain", "fast"])
def fast(request, monkeypatch):
    """With Winograd's convolutions also in layers as narrow as these."""
    monkeypatch.setattr(Conv2D, "winograd_channels", 1)
    return request.param


def released_model(network, kd_weight=0.5, fast=False):
    row = NETWORKS[network]
    decoder = "released" if network == "unet3d" else "paper"
    model = UnpairedSegmenter(network=network, setting="ours", width=4, decoder=decoder, dropout=0.0, fast=fast)
    load_released_weights(model, golden(row["weights"]))
    adam = Adam if fast else keras.optimizers.Adam
    model.compile(adam(row["rate"], epsilon=1e-8), kd_weight=kd_weight, l2_on=row["l2_on"], l2_weight=row["l2"])
    return model


@pytest.mark.parametrize("network", NETWORKS)
def test_every_released_variable_has_its_place(network):
    model = UnpairedSegmenter(
        network=network, setting="chilopod", width=4, decoder="released" if network == "unet3d" else "paper"
    )
    assert set(tf1_names(model).values()) == set(golden(NETWORKS[network]["weights"]))


@pytest.mark.parametrize("network", NETWORKS)
def test_inference(network, fast):
    data = under(golden(NETWORKS[network]["file"]), "inference/")
    model = released_model(network, fast=fast)
    images, labels = batch(network)
    logits = model(images)
    terms = model.batch_losses(images, labels, training=False)
    for modality, side in RELEASED_MODALITY.items():
        assert_close_to_maximum(logits[modality], data[f"{side}_logits"], 2e-5)
        assert float(terms[f"{modality}_dice_loss"]) == pytest.approx(data[f"loss/{side}_dice"], abs=LOSS)
        assert float(terms[f"{modality}_cross_entropy"]) == pytest.approx(data[f"loss/{side}_ce"], abs=LOSS)


@pytest.mark.parametrize("network", NETWORKS)
def test_every_stage_in_inference(network):
    data = under(golden(NETWORKS[network]["file"]), "inference/source_stage/")
    model = released_model(network)
    x = batch(network)[0]["mr"]
    outputs = {}
    for stage in model.stages:
        x = outputs[stage.row.name] = stage(x, modality="mr", skip=outputs.get(stage.row.skip))
    compared = 0
    for number, stage in enumerate(model.stages):
        actual = outputs[stage.row.name]
        if network == "dilated2d":
            expected = data.get(stage.row.name)
            if number + 1 < len(model.stages) and model.stages[number + 1].row.pool:
                actual = tf.nn.max_pool2d(actual, 2, 2, "SAME")  # their stage ends with the pool, ours begins with it
        else:
            expected = data.get(stage.row.name.replace("_", "") + "_2")
        if expected is not None:
            assert_close_to_maximum(actual, expected, 2e-5, stage.row.name)
            compared += 1
    assert compared == {"dilated2d": 9, "unet3d": 4}[network]


def test_up_convolution_leaves_odd_slices_empty():
    """Kernel 1 and stride 2 along z: every odd slice is exactly zero before its norm, as released."""
    data = under(golden("net3d_fb4"), "inference/source_stage/")
    model = released_model("unet3d")
    up = next(s for s in model.stages if s.row.name == "decoder_3").parts[0]
    outputs = up.conv(data["encoder4_2"], modality="mr")
    assert_close_to_maximum(outputs, data["deconv3_before_bn"], 2e-5)
    assert not np.any(outputs[:, :, :, 1::2])
    assert np.any(outputs[:, :, :, 0::2])


@pytest.mark.parametrize("network", NETWORKS)
def test_training_step(network, fast):
    """Losses, gradients, moving statistics and one Adam step."""
    data = golden(NETWORKS[network]["file"])
    model = released_model(network, kd_weight=0.5 if network == "dilated2d" else 0.0, fast=fast)
    images, labels = batch(network)
    trainable = model.trainable_variables
    with tf.GradientTape() as tape:
        terms = model.batch_losses(images, labels, training=True)
    gradients = dict(
        zip((v.path for v in trainable), tape.gradient(terms["loss"], [v.value for v in trainable]), strict=True)
    )
    recorded = under(data, "training/loss/")
    for modality, side in RELEASED_MODALITY.items():
        assert float(terms[f"{modality}_dice_loss"]) == pytest.approx(recorded[f"{side}_dice"], abs=LOSS)
        assert float(terms[f"{modality}_cross_entropy"]) == pytest.approx(recorded[f"{side}_ce"], abs=LOSS)
    if network == "dilated2d":
        assert float(terms["kd_loss"] / 2) == pytest.approx(recorded["kd"], abs=LOSS)
        assert float(terms["l2_loss"] / 2) == pytest.approx(recorded["L2"], rel=5e-4)  # TF 1.8's l2_loss, see README
    else:
        assert float(0.5 * terms["kd_loss"] / 2) == pytest.approx(recorded["weighted_kd"], abs=LOSS)
        assert float(terms["l2_loss"] / 2) == pytest.approx(recorded["L2_all_trainables_once"], rel=5e-4)

    # Some tensors' gradients are stored whole, all as norms.
    for path, expected in convert(model, under(data, "training/grad/")).items():
        assert_close_to_maximum(gradients[path], expected, GRADIENT, path)
    names = tf1_names(model)
    norms = under(data, "training/grad_norm/")
    assert len(norms) == len(trainable)
    for variable in trainable:
        norm = np.linalg.norm(np.ravel(gradients[variable.path]))
        assert norm == pytest.approx(norms[names[variable.path]], rel=GRADIENT), variable.path

    statistics = convert(model, under(data, "training/moving_after_1_forward/"))
    assert len(statistics) == sum(v.name.startswith("moving_") for v in model.variables)
    ours = {v.path: v.numpy() for v in model.variables}
    for path, expected in statistics.items():
        assert_close_to_maximum(ours[path], expected, STATISTIC, path)  # some means nearly cancel to zero

    load_released_weights(model, golden(NETWORKS[network]["weights"]))
    model.optimize(images, labels)
    after = {v.path: v.numpy() for v in model.variables}
    rate = NETWORKS[network]["rate"]
    entries = flipped = 0
    for path, expected in convert(model, under(data, "adam1/var_after/")).items():
        difference = np.abs(after[path] - expected)
        entries += difference.size
        flipped += int((difference > 0.02 * rate).sum())
        assert difference.max() <= 2.1 * rate, path
    assert entries > 10_000
    assert flipped < 2e-3 * entries  # Adam's first step is close to lr · sign(g): entries with g ≈ 0 may flip


@pytest.mark.parametrize("network", NETWORKS)
def test_three_steps(network, fast):
    data = golden(NETWORKS[network]["file"])
    names = [name.decode() for name in data["adam_history/loss_names"]]
    history = data["adam_history/losses_after_0_1_2_3_steps"]
    model = released_model(network, kd_weight=0.5 if network == "dilated2d" else 0.0, fast=fast)
    images, labels = batch(network)
    for row in history[:3]:
        terms = model.optimize(images, labels)
        for modality, side in RELEASED_MODALITY.items():
            expected = row[names.index(f"{side}_dice")] + row[names.index(f"{side}_ce")]
            assert float(terms[f"{modality}_segmentation_loss"]) == pytest.approx(expected, rel=1e-3, abs=1e-3)
