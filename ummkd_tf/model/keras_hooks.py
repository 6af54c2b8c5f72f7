"""What Keras and files ask of a model, for `fit`, `evaluate`, `predict`, `save` and `export`; nothing of the method."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from ummkd_tf.model.architectures import Network
from ummkd_tf.model.layers import BatchNorm

RANDOM_STATE = "seed_generator_state"
"""Keras's name for the random state of a dropout layer."""

_WITHOUT_EFFECT = ("loss", "loss_weights", "metrics", "weighted_metrics")
_OF_COMPILE = ("kd_weight", "temperature", "absent", "l2_weight", "l2_on", "jit_compile")


class Adjustable:
    """A number of the loss that may be set between two steps, also by a callback.

    It is a variable, because a traced step would keep a Python number for ever. It is not a weight of the model: it is
    neither saved with the weights nor counted as a parameter.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, model: keras.Model, owner: type) -> Any:
        """A Python number; in a traced step, a tensor."""
        try:
            variable = vars(model)[self.name]
        except (KeyError, TypeError):  # a model without compile, or the class
            raise AttributeError(f"{self.name}: expected a compiled model") from None
        return float(variable.numpy()) if tf.executing_eagerly() else tf.cast(variable.value, tf.float32)

    def __set__(self, model: keras.Model, value: float) -> None:
        if self.name in vars(model):
            vars(model)[self.name].assign(value)
        else:  # float64, which gives back the number that was set; past Keras, which would count it as a weight
            vars(model)[self.name] = keras.Variable(value, trainable=False, dtype="float64", name=self.name)


def images_and_labels(data: Any) -> tuple[Any, Any]:
    """A batch as Keras passes it on.

    Raises:
        ValueError: It has sample weights.
    """
    images, labels, weights = keras.utils.unpack_x_y_sample_weight(data)
    if weights is not None:
        raise ValueError("sample_weight or class_weight: no loss of the paper has such weights; leave them out")
    return images, labels


class KerasHooks(keras.Model):
    """Base of `UnpairedModel`."""

    modalities: tuple[str, ...]
    network: Network
    memory: Mapping[str, keras.Variable]

    def track_losses(self) -> None:
        """Makes a running mean for each loss term; a subclass's `__init__` calls it once `modalities` is set."""
        terms = ["loss", "kd_loss", "alone", "l2_loss", "gradient_norm"]
        terms += [
            f"{m}_{part}" for m in self.modalities for part in ("segmentation_loss", "dice_loss", "cross_entropy")
        ]
        self._trackers = {term: keras.metrics.Mean(name=term) for term in terms}
        self._training_pass = tf.function(partial(self.__call__, training=True), reduce_retracing=True)

    def named_variables(self) -> dict[str, keras.Variable]:
        """Every weight, statistic and random state by a name that is the same in every process."""
        return {v.path: v for v in self.variables_of(self.modalities)}

    def compile(self, optimizer: Any, **kwargs: Any) -> None:
        """As `keras.Model.compile`.

        Raises:
            TypeError: Arguments that would have no effect, because the losses are those of Eq. 5.
        """
        given = [name for name in _WITHOUT_EFFECT if kwargs.get(name) is not None]
        if given:
            raise TypeError(
                f"compile got {', '.join(given)}: the losses are the paper's, and they are reported; leave it out"
            )
        super().compile(optimizer, **kwargs)

    def get_compile_config(self) -> dict[str, Any] | None:
        """What a `.keras` file stores of `compile`, and what absent="memory" remembers."""
        if not self.compiled:
            return None
        return {
            **{name: getattr(self, name) for name in _OF_COMPILE},
            "optimizer": keras.saving.serialize_keras_object(self.optimizer),
            "memory": {m: v.numpy().tolist() for m, v in self.memory.items()},
        }

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Undoes `get_compile_config`."""
        optimizer = keras.saving.deserialize_keras_object(config["optimizer"])
        self.compile(optimizer, **{name: config[name] for name in _OF_COMPILE})
        for m, value in config.get("memory", {}).items():
            self.memory[m].assign(value)

    def fit(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.fit`, with batches `(images, labels)` of dicts by modality.

        Raises:
            TypeError: A list, which Keras takes for a model with several inputs.
        """
        if isinstance(x, list | tuple):
            raise TypeError(
                f"fit got a {type(x).__name__} of {len(x)}: expected what gives batches (images, labels): "
                "a generator, e.g. (batch for batch in batches) with steps_per_epoch, a keras.utils.PyDataset or a "
                "tf.data.Dataset; or one dict of images and y= one dict of labels"
            )
        return super().fit(x, *args, **kwargs)

    def export(self, filepath: str, format: Literal["tf_saved_model"] = "tf_saved_model", **kwargs: Any) -> None:
        """Writes a TensorFlow SavedModel, which runs without this package, with one signature per modality.

        Signature `serve_<modality>` takes images [batch, *space, channels] and returns logits [batch, *space,
        classes], as calling the model does; their softmax are the probabilities.

        Args:
            filepath: Folder to write.
            format: "tf_saved_model" alone; other formats have no signature per modality.
            **kwargs: `verbose`, as in `keras.Model.export`.

        Raises:
            ValueError: Another format.
        """
        if format != "tf_saved_model":
            raise ValueError(f"export to {format!r}: expected 'tf_saved_model', which has one signature per modality")
        archive = keras.export.ExportArchive()
        archive.track(self)
        shape = (None,) * (self.network.rank + 1) + (self.network.input_channels,)
        for m in self.modalities:
            archive.add_endpoint(
                f"serve_{m}",
                lambda x, m=m: self({m: x}, training=False)[m],
                input_signature=[tf.TensorSpec(shape, tf.float32)],
            )
        archive.write_out(filepath, verbose=kwargs.get("verbose", True))

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """Running means of all loss terms, which Keras resets between epochs."""
        return list(self._trackers.values())

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Keras hook: `batch_losses` on one batch `(images, labels)`, in inference mode."""
        return self._track(self.batch_losses(*images_and_labels(data), training=False))

    def predict_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Keras hook: logits."""
        images, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        return self(images, training=False)

    def _track(self, terms: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        for name, value in terms.items():
            self._trackers[name].update_state(value)
        return {name: self._trackers[name].result() for name in terms}

    def estimate_statistics(self, batches: Iterable[Mapping[str, tf.Tensor]]) -> None:
        """Replaces the running statistics of batch normalization by their mean over batches, at the present weights.

        Our choice, for short trainings with large learning rates: the running mean then belongs partly to weights that
        are gone. Weights, gradients and the random state of dropout stay as they are.

        Args:
            batches: Training images, as for calling the model.
        """
        # A frozen layer of Keras normalizes with its statistics in training, too, so nothing would fill them again.
        layers = [
            layer
            for layer in self._flatten_layers()
            if hasattr(layer, "moving_mean") and (layer.trainable or isinstance(layer, BatchNorm))
        ]
        # When the statistics start from zero, one batch leaves this share of its own in them.
        shares = {id(v): 1.0 - layer.momentum for layer in layers for v in (layer.moving_mean, layer.moving_variance)}
        if not shares:
            return
        before = {id(v): v.numpy() for v in self.non_trainable_variables}
        means: dict[int, list] = {number: [] for number in shares}
        for images in batches:
            running = [v for v in self.variables_of(images) if id(v) in shares]
            for v in running:
                v.assign(np.zeros(v.shape))
            self._training_pass(images)
            for v in running:
                means[id(v)].append(v.numpy() / shares[id(v)])
        for v in self.non_trainable_variables:
            seen = means.get(id(v))
            v.assign(np.mean(seen, axis=0, dtype=np.float64) if seen else before[id(v)])
