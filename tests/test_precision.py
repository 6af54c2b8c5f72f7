"""Mixed precision: 16 bits inside, float32 variables and losses, and a scaled loss that leaves no trace."""

from __future__ import annotations

from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf

from ummkd_tf import UnpairedSegmenter
from ummkd_tf.common import processor
from ummkd_tf.fast.adam import Adam
from ummkd_tf.runs import devices
from ummkd_tf.runs.checkpoints import Progress, restore, write_checkpoint

SPACES = {"dilated2d": (32, 32, 3), "unet3d": (32, 32, 8, 1)}


@pytest.fixture
def make_model():
    """Makes the same compiled model in any precision."""

    def make(precision, network="dilated2d"):
        keras.config.set_dtype_policy(precision)
        keras.utils.set_random_seed(0)
        model = UnpairedSegmenter(network, width=2, num_classes=2, dropout=0.0, initialization="glorot")
        model.compile(Adam(1e-3), l2_weight=0.5)
        return model

    yield make
    keras.config.set_dtype_policy("float32")


def batch(network="dilated2d"):
    rng = np.random.default_rng(0)
    images = {m: tf.constant(rng.normal(size=(2, *SPACES[network])).astype(np.float32)) for m in ("ct", "mr")}
    labels = {m: tf.cast(x[..., 0] > 0.3, tf.int32) for m, x in images.items()}
    return images, labels


@pytest.mark.parametrize(
    ("precision", "network", "rel"),
    # 8 and 11 binary digits. TensorFlow has no 3D max-pooling of float16 on a CPU.
    [("mixed_bfloat16", "dilated2d", 0.1), ("mixed_bfloat16", "unet3d", 0.1), ("mixed_float16", "dilated2d", 0.05)],
)
def test_a_step_is_that_of_float32_to_the_digits_of_16_bits(make_model, precision, network, rel):
    """Every loss term and the gradient's norm, half of it L2's; so loss scaling cancels."""
    images, labels = batch(network)
    whole, mixed = make_model("float32", network), make_model(precision, network)
    assert mixed(images)["ct"].dtype == precision.removeprefix("mixed_")
    assert all(v.dtype == "float32" for v in mixed.trainable_variables)
    expected, found = whole.optimize(images, labels), mixed.optimize(images, labels)
    for name, value in expected.items():
        assert found[name].dtype == tf.float32
        assert float(found[name]) == pytest.approx(float(value), rel=rel, abs=0.01), name
    for ours, theirs in zip(mixed.non_trainable_variables, whole.non_trainable_variables, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=rel, atol=rel)


def test_bfloat16_refuses_images_for_which_tensorflows_gradient_is_garbage(make_model):
    """Measured on a CPU, TensorFlow 2.21: 3D kernels, two voxels along an axis of the plane."""
    images, labels = ({m: x[:, :16] for m, x in part.items()} for part in batch("unet3d"))
    with pytest.raises(ValueError, match="use 24 rows and columns or more, or float32"):
        make_model("mixed_bfloat16", "unet3d").optimize(images, labels)


def test_overflow_of_the_scaled_loss_halves_the_scale_and_changes_nothing_else(make_model):
    images, labels = batch()
    model = make_model("mixed_float16")
    model.optimizer.dynamic_scale.assign(2.0**100)
    before = [v.numpy() for v in (*model.variables, *model.optimizer.inner_optimizer.variables)]
    terms = model.optimize(images, labels)
    assert float(terms["gradient_norm"]) == 0.0 and np.isfinite(float(terms["loss"]))
    assert float(model.optimizer.dynamic_scale) == 2.0**99
    for value, v in zip(before, (*model.variables, *model.optimizer.inner_optimizer.variables), strict=True):
        np.testing.assert_array_equal(v, value, err_msg=v.path)
    model.optimizer.dynamic_scale.assign(2.0**10)
    assert float(model.optimize(images, labels)["gradient_norm"]) > 0.0
    assert int(model.optimizer.iterations) == 1


def test_gradients_that_are_not_finite_at_scale_1_are_no_overflow(make_model):
    """Otherwise a broken run would go on for ever without a step."""
    images, labels = batch()
    model = make_model("mixed_float16")
    model.optimizer.dynamic_scale.assign(1.0)
    model.operations = replace(model.operations, add_scaled=lambda gradient, *_: float("inf") * gradient)
    terms = model.optimize(images, labels)
    assert np.isfinite(float(terms["loss"])) and not np.isfinite(float(terms["gradient_norm"]))
    assert int(model.optimizer.iterations) == 0


def test_a_checkpoint_holds_the_loss_scale(make_model, tmp_path):
    model = make_model("mixed_float16")
    model.optimizer.dynamic_scale.assign(512.0)
    model.optimizer.step_counter.assign(7)
    model.optimizer.inner_optimizer.iterations.assign(9)
    write_checkpoint(tmp_path / "c.npz", model, Progress(9))
    again = make_model("mixed_float16")
    restore(tmp_path / "c.npz", again, with_optimizer=True)
    assert float(again.optimizer.dynamic_scale) == 512.0
    assert int(again.optimizer.step_counter) == 7
    assert int(again.optimizer.iterations) == 9


@pytest.mark.parametrize(
    ("network", "capabilities", "words", "expected"),
    [
        ("unet3d", [], "AuthenticAMD avx512_bf16", "mixed_bfloat16"),
        ("unet3d", [], "AuthenticAMD avx512f", "float32"),
        ("unet3d", [], "GenuineIntel avx512_bf16 amx_bf16", "mixed_bfloat16"),
        ("unet3d", [], "GenuineIntel avx512_bf16", "float32"),
        ("unet3d", [], None, "float32"),
        ("unet3d", [(8, 0)], None, "mixed_bfloat16"),
        ("unet3d", [(9, 0), (7, 5)], "AuthenticAMD avx512_bf16", "float32"),
        ("dilated2d", [(9, 0)], "AuthenticAMD avx512_bf16", "float32"),
    ],
)
def test_auto_takes_16_bits_where_they_are_fast_and_studied(
    monkeypatch, tmp_path, network, capabilities, words, expected
):
    """GPUs by compute capability, else the CPU by what Linux says of it; other systems have no such file."""
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda _: capabilities)
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda gpu: {"compute_capability": gpu})
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
    if words:
        (tmp_path / "cpuinfo").write_text(f"{words}\n", encoding="utf-8")
    assert devices.auto_precision(network) == expected


@pytest.mark.parametrize(
    ("precision", "flags", "warned"),
    [
        ("mixed_bfloat16", "fpu avx2", True),
        ("mixed_bfloat16", "fpu avx512_bf16", False),
        ("float32", "fpu avx2", False),
    ],
)
def test_slow_16_bits_are_warned_of(monkeypatch, tmp_path, caplog, precision, flags, warned):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda _: [])
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text(f"flags\t\t: {flags}\n", encoding="utf-8")
    devices.check_precision(precision)
    assert ["25 times as long as" in record.getMessage() for record in caplog.records] == [True] * warned
