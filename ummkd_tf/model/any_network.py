"""The paper's scheme for any Keras model: shared kernels, normalization layers of each modality's own (Sec. III-A)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import keras
import tensorflow as tf

from ummkd_tf.common.files import last_line
from ummkd_tf.model.architectures import Network
from ummkd_tf.model.checks import check_modality_names, check_present
from ummkd_tf.model.keras_hooks import RANDOM_STATE
from ummkd_tf.model.layers import BatchNorm
from ummkd_tf.model.operations import PLAIN
from ummkd_tf.model.segmenter import UnpairedModel, UnpairedSegmenter
from ummkd_tf.settings import SETTINGS

NORMALIZATIONS = (
    BatchNorm,
    keras.layers.BatchNormalization,
    keras.layers.GroupNormalization,
    keras.layers.LayerNormalization,
    keras.layers.RMSNormalization,
)
KERAS_SETTINGS = ("ours", "chilopod", "individual")
"""Settings that need no stages: everything is separate, or the normalization layers alone are."""


def per_modality(
    model: keras.Model, modalities: Sequence[str], setting: Literal["ours", "chilopod", "individual"] = "ours"
) -> PerModalityModel:
    """A functional Keras model of images for several modalities.

    Every layer with weights is shared, except that each modality has its own copy of every normalization layer. All
    start with the weights that `model` has, which stays as it is.

    Args:
        model: Functional or sequential, images [batch, *space, channels] → logits [batch, *space, num_classes] before
            the softmax; 2D or 3D.
        modalities: Names.
        setting: "ours", with the distillation loss; "chilopod", without; "individual", nothing shared.

    Returns:
        A model that is called, compiled, trained, saved and exported as `UnpairedSegmenter` is.

    Raises:
        ValueError: Not such a model, without normalization layers, or no plain names.

    Example:
        model = ummkd_tf.per_modality(my_keras_unet, ("ct", "mr"))
        model.compile(keras.optimizers.Adam(1e-3), kd_weight=0.5)
        model.fit(sampler.batches(0, 1000))
    """
    return PerModalityModel(model, modalities, setting)


def network_of_keras(model: keras.Model) -> dict[str, Any]:
    """A Keras model as the argument `network` of a run or an exported model: its layers, which JSON can hold.

    Raises:
        ValueError: As `per_modality`; or layers that Keras does not know without the file that defines them.
    """
    _check(model)
    described = {"name": model.name, "keras_model": keras.saving.serialize_keras_object(model)}
    _keras_model(described)
    return described


def stand_in(model: keras.Model) -> Network:
    """What training and prediction ask of a network: its rank and channels. Keras's layers check sizes themselves."""
    return Network(model.name, model.input_shape[-1], len(model.input_shape) - 2, (), {}, 1, 0.0)


def model_of(arguments: Mapping[str, Any], fast: bool | None = None) -> UnpairedModel:
    """The model of a run or an exported model.

    Args:
        arguments: Of `UnpairedSegmenter`; or network (as `network_of_keras`), setting, modalities and num_classes.
        fast: As for `UnpairedSegmenter`.

    Raises:
        ValueError, TypeError, KeyError: Arguments of no model.
    """
    network = arguments["network"]
    if not isinstance(network, Mapping) or "keras_model" not in network:
        return UnpairedSegmenter(**{"fast": fast, **arguments})
    model = PerModalityModel(_keras_model(network), arguments.get("modalities", ("ct", "mr")), arguments["setting"])
    if model.num_classes != arguments["num_classes"]:
        raise ValueError(f"{network['name']} ends in {model.num_classes} channels, not {arguments['num_classes']}")
    return model


def _keras_model(network: Mapping[str, Any]) -> keras.Model:
    try:  # Keras's safe mode: no code comes out of the file. A copy, because Keras empties what it reads.
        return keras.saving.deserialize_keras_object(copy.deepcopy(network["keras_model"]))
    except Exception as error:
        raise ValueError(
            f"{network.get('name')}: {last_line(error)}: expected Keras's own layers, without Lambda"
        ) from error


@keras.saving.register_keras_serializable(package="ummkd_tf")
class PerModalityModel(UnpairedModel):
    """See `per_modality`.

    Call arguments:
        images: Modality → images; any subset of the modalities.
        training: As for Keras's layers.

    Returns:
        Modality → logits.
    """

    def __init__(
        self, model: keras.Model, modalities: Sequence[str], setting: str = "ours", name: str = "per_modality"
    ) -> None:
        super().__init__(name=name)
        if setting not in KERAS_SETTINGS:
            raise ValueError(
                f"setting {setting!r}: expected {', '.join(KERAS_SETTINGS)}; others need a table of stages"
            )
        check_modality_names(modalities)
        _check(model)
        self.modalities, self.setting, self.operations = tuple(modalities), SETTINGS[setting], PLAIN
        self.num_classes = int(model.output_shape[-1])
        self.network = stand_in(model)
        # Not the model itself: Keras would count its weights as ours.
        described = keras.saving.serialize_keras_object(model)
        self._config = {"model": described, "modalities": self.modalities, "setting": setting}
        shared: dict[int, keras.layers.Layer] | None = None if setting == "individual" else {}
        self.networks = {m: _clone(model, m, shared) for m in self.modalities}
        self.track_losses()
        self.built = True

    def call(self, images: Mapping[str, tf.Tensor], training: bool = False) -> dict[str, tf.Tensor]:
        check_present(images, self.modalities)
        return {m: self.networks[m](images[m], training=training) for m in self.modalities if m in images}

    def variables_of(self, modalities: Mapping[str, Any] | Sequence[str]) -> list[keras.Variable]:
        """Variables that a batch of these modalities uses: the shared ones and their own."""
        used = [v for m in self.modalities if m in modalities for v in self.networks[m].variables]
        return list({id(v): v for v in used}.values())

    def named_variables(self) -> dict[str, keras.Variable]:
        """By path; but random states, as of Dropout, by their layer: Keras numbers them over a whole process."""
        names: dict[int, str] = {}
        for layer in (layer for network in self.networks.values() for layer in network.layers):
            states = [v for v in layer.variables if v.name == RANDOM_STATE]
            names |= {id(v): f"{layer.name}/{number}/{RANDOM_STATE}" for number, v in enumerate(states)}
        return {names.get(id(v), v.path): v for v in self.variables_of(self.modalities)}

    def get_config(self) -> dict[str, Any]:
        return {**self._config, "name": self.name}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> PerModalityModel:
        return cls(**{**config, "model": keras.saving.deserialize_keras_object(config["model"])})


def _check(model: keras.Model) -> None:
    if not isinstance(model, keras.Model) or not hasattr(model, "input_shape"):
        raise ValueError(f"{model!r}: expected a functional Keras model, keras.Model(inputs, outputs)")
    shapes = model.input_shape, model.output_shape
    if not all(isinstance(shape, tuple) and len(shape) in (4, 5) for shape in shapes) or shapes[1][-1] is None:
        raise ValueError(
            f"{model.name}: {shapes[0]} → {shapes[1]}: expected images → logits, channels and classes last"
        )
    norms = [layer for layer in model._flatten_layers(include_self=False) if isinstance(layer, NORMALIZATIONS)]
    if not norms:
        raise ValueError(f"{model.name}: has no normalization layer: expected some, since they are what modalities own")
    own = {id(layer) for layer in model.layers}
    inner = [layer.name for layer in model.layers if isinstance(layer, keras.Model)]
    inner += [norm.name for norm in norms if id(norm) not in own]
    if inner:  # a copy of the outer layer would be shared with the normalization in it
        raise ValueError(f"{model.name}: {inner[0]} holds layers or lies in one: expected all layers in one model")
    last = model.outputs[0]._keras_history.operation  # the layer, or what keras.ops.softmax and the like have made
    activation = getattr(last, "activation", None)
    ends = activation in (keras.activations.softmax, keras.activations.sigmoid)
    if ends or type(last).__name__ in ("Softmax", "Sigmoid"):
        raise ValueError(f"{model.name}: ends in probabilities: expected logits, without the activation")


def _clone(model: keras.Model, modality: str, shared: dict[int, keras.layers.Layer] | None) -> keras.Model:
    """The model with normalization layers of a modality's own and every other layer from `shared`, which it fills.

    None: every layer is its own.
    """

    def layer_of(layer: keras.layers.Layer) -> keras.layers.Layer:
        if shared is None or isinstance(layer, NORMALIZATIONS):
            return _copy(layer, f"{layer.name}_{modality}")
        if id(layer) not in shared:
            shared[id(layer)] = _copy(layer, layer.name)
        return shared[id(layer)]

    clone = keras.models.clone_model(model, clone_function=layer_of)
    for ours, theirs in zip(clone.layers, model.layers, strict=True):
        ours.set_weights(theirs.get_weights())
    return clone


def _copy(layer: keras.layers.Layer, name: str) -> keras.layers.Layer:
    return layer.__class__.from_config({**layer.get_config(), "name": name})
