"""Keras's own ways with the model: `save`, `load_model`, `export`, `fit`, and NumPy for the losses."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from ummkd_tf import Adam, UnpairedSegmenter, losses
from ummkd_tf.model.absent_classes import updated_memory


def narrow(network: str = "unet3d", **arguments) -> UnpairedSegmenter:
    keras.utils.set_random_seed(0)
    return UnpairedSegmenter(network=network, num_classes=3, width=2, initialization="glorot", **arguments)


def images(network: str = "unet3d") -> dict[str, np.ndarray]:
    shape = (1, 16, 16, 8, 1) if network == "unet3d" else (1, 16, 16, 3)
    rng = np.random.default_rng(0)
    return {m: rng.normal(size=shape).astype(np.float32) for m in ("ct", "mr")}


@pytest.fixture(scope="module")
def trained() -> UnpairedSegmenter:
    """Weights and statistics that are not those of a new model."""
    model = narrow()
    model.compile(keras.optimizers.Adam(1e-2, epsilon=1e-8), kd_weight=0.7, l2_on="kernels", absent="memory")
    x = images()
    model.optimize(
        {m: tf.constant(v) for m, v in x.items()}, {m: tf.constant(v[..., 0] > 0, tf.int32) for m, v in x.items()}
    )
    return model


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras, of its own variables
def test_a_keras_file_restores_outputs_and_compilation(trained: UnpairedSegmenter, tmp_path: Path) -> None:
    trained.save(tmp_path / "x.keras")
    loaded = keras.models.load_model(tmp_path / "x.keras")
    for m, logits in trained(images()).items():
        np.testing.assert_allclose(loaded(images())[m], logits, atol=1e-6)
    assert (loaded.kd_weight, loaded.l2_on, loaded.absent) == (0.7, "kernels", "memory")
    for m, remembered in trained.memory.items():
        assert np.any(remembered != 0)
        np.testing.assert_array_equal(loaded.memory[m], remembered)
    np.testing.assert_allclose(loaded.optimizer.learning_rate, 1e-2)
    for ours, theirs in zip(loaded.optimizer.variables, trained.optimizer.variables, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras, of its own variables
def test_a_model_with_the_paper_s_optimizer_is_loaded(tmp_path: Path) -> None:
    model = narrow()
    model.compile(Adam(1e-2))
    model.save(tmp_path / "x.keras")
    loaded = keras.models.load_model(tmp_path / "x.keras").optimizer
    assert type(loaded) is Adam and (loaded.epsilon, loaded.name, loaded.use_ema) == (1e-8, "adam", False)
    np.testing.assert_allclose(loaded.learning_rate, 1e-2)
    with pytest.raises(ValueError, match="amsgrad=True: expected keras"):
        Adam(1e-2, amsgrad=True)


def test_a_saved_model_has_one_signature_per_modality(trained: UnpairedSegmenter, tmp_path: Path) -> None:
    trained.export(str(tmp_path / "saved"), verbose=False)
    loaded = tf.saved_model.load(str(tmp_path / "saved"))
    assert {"serve_ct", "serve_mr"} <= set(loaded.signatures)
    for m, x in images().items():
        np.testing.assert_allclose(getattr(loaded, f"serve_{m}")(x), trained({m: x})[m], atol=1e-6)
    with pytest.raises(ValueError, match="expected 'tf_saved_model'"):
        trained.export(str(tmp_path / "x.onnx"), format="onnx")


def test_fit_on_a_list_says_what_to_pass() -> None:
    model = narrow()
    model.compile()
    with pytest.raises(TypeError, match=r"list of 1: expected .* a generator"):
        model.fit([(images(), {m: np.zeros((1, 16, 16, 8), int) for m in ("ct", "mr")})])


def test_losses_take_numpy_and_lists() -> None:
    logits, one_hot = np.array([[[0.0, 2.0], [1.0, 0.0]]]), np.array([[[0, 1], [1, 0]]])  # [batch, space, classes]
    tensors = tf.constant(logits, tf.float32), tf.constant(one_hot, tf.float32)
    for loss in (losses.soft_dice_loss, losses.weighted_cross_entropy, losses.class_logits, losses.class_knowledge):
        np.testing.assert_allclose(loss(logits, one_hot), loss(*tensors), rtol=1e-6)
        np.testing.assert_allclose(loss(logits.tolist(), one_hot.tolist()), loss(*tensors), rtol=1e-6)
    both = losses.knowledge_distillation_loss({"a": logits, "b": -logits}, {"a": one_hot, "b": one_hot})
    assert float(both) > 0
    assert updated_memory(np.zeros((2, 2)), logits, one_hot).shape == (2, 2)
