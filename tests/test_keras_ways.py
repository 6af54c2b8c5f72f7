"""Keras's own ways with the model: `save`, `load_model`, `export`, `fit`, and NumPy for the losses."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from toy_networks import toy3d

from ummkd_tf import Adam, UnpairedSegmenter, losses
from ummkd_tf.model.absent_classes import updated_memory


def narrow() -> UnpairedSegmenter:
    keras.utils.set_random_seed(0)
    return UnpairedSegmenter(network=toy3d(), num_classes=3, width=2, initialization="glorot")


def images() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {m: rng.normal(size=(1, 16, 16, 8, 1)).astype(np.float32) for m in ("ct", "mr")}


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


def toy_batch() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    x = {m: rng.normal(size=(1, 4, 4, 4, 1)).astype(np.float32) for m in ("ct", "mr")}
    return x, {m: (v[..., 0] > 0).astype(np.int32) for m, v in x.items()}


class Warmup(keras.callbacks.Callback):
    """Of all three numbers; in epoch 0 the loss is that of the segmentation alone."""

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self.model.kd_weight = 100.0 * epoch
        self.model.l2_weight = 0.25 * epoch
        self.model.temperature = 2.0 / (1.0 + epoch)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras, of its own variables
def test_a_callback_changes_the_loss_of_a_step_that_is_traced_already(tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    model = UnpairedSegmenter(network=toy3d(), num_classes=2, width=2, initialization="glorot")
    variables, parameters = list(model.named_variables()), model.count_params()
    model.compile(keras.optimizers.SGD(0.0), temperature=2.0)  # nothing moves
    x, y = toy_batch()
    terms = model.fit(x, y, epochs=2, callbacks=[Warmup()], verbose=0).history
    first, second = (sum(terms[f"{m}_segmentation_loss"][epoch] for m in x) for epoch in (0, 1))
    assert terms["loss"][0] == pytest.approx(first)
    distilled, decayed = 0.5 * 100.0 * terms["kd_loss"][1], 0.25 * terms["l2_loss"][1]
    assert terms["loss"][1] == pytest.approx(second + distilled + decayed)
    assert min(distilled, decayed) > 0.01  # each is seen
    # z is small: so Eq. 4, quadratic in z / T, is four times as large at half of T.
    assert terms["kd_loss"][1] == pytest.approx(4 * terms["kd_loss"][0], rel=0.2)
    assert (model.kd_weight, model.l2_weight, model.temperature) == (100.0, 0.25, 1.0)
    assert (list(model.named_variables()), model.count_params()) == (variables, parameters)
    model.save(tmp_path / "x.keras")
    assert keras.models.load_model(tmp_path / "x.keras").l2_weight == 0.25


def test_what_would_have_no_effect_is_refused() -> None:
    model = UnpairedSegmenter(network=toy3d(), num_classes=2, width=2)
    assert not hasattr(model, "kd_weight")
    for name, value in {"loss": "mse", "metrics": ["accuracy"], "loss_weights": [1], "weighted_metrics": []}.items():
        with pytest.raises(TypeError, match=f"compile got {name}: "):
            model.compile(**{name: value})
    model.compile(loss=None)
    x, y = toy_batch()
    for method in (model.fit, model.evaluate, model.train_on_batch):
        with pytest.raises(ValueError, match="sample_weight or class_weight"):
            method(x, y, sample_weight=np.ones(1))


def test_losses_take_numpy_and_lists() -> None:
    logits, one_hot = np.array([[[0.0, 2.0], [1.0, 0.0]]]), np.array([[[0, 1], [1, 0]]])  # [batch, space, classes]
    tensors = tf.constant(logits, tf.float32), tf.constant(one_hot, tf.float32)
    for loss in (losses.soft_dice_loss, losses.weighted_cross_entropy, losses.class_logits, losses.class_knowledge):
        np.testing.assert_allclose(loss(logits, one_hot), loss(*tensors), rtol=1e-6)
        np.testing.assert_allclose(loss(logits.tolist(), one_hot.tolist()), loss(*tensors), rtol=1e-6)
    both = losses.knowledge_distillation_loss({"a": logits, "b": -logits}, {"a": one_hot, "b": one_hot})
    assert float(both) > 0
    assert updated_memory(np.zeros((2, 2)), logits, one_hot).shape == (2, 2)
