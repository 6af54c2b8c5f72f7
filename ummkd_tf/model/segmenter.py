"""The model: one network for several unpaired modalities (Sec. III), with its training step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from ummkd_tf.model import losses
from ummkd_tf.model.architectures import Initialization, Network, Normalization, get_network, network_to_dict
from ummkd_tf.model.layers import (
    PLAIN,
    Operations,
    Stage,
    StageOptions,
    Tensors,
)
from ummkd_tf.settings import SETTINGS, SHARED, AbsentClass, Setting, are_modality_names

try:  # The one place where speed is put in. Without the folder fast/ the program works all the same, more slowly.
    from ummkd_tf import fast as _fast
except ImportError:
    _fast = None  # type: ignore[assignment]


class UnpairedModel(keras.Model):
    """Trains with Eq. 5 whatever gives logits by modality: `UnpairedSegmenter`, or `per_modality` of any Keras model.

    A subclass sets `modalities`, `num_classes`, `setting`, `operations` and `network`, calls `track_losses`, and
    defines `call` and `variables_of`.
    """

    modalities: tuple[str, ...]
    num_classes: int
    setting: Setting
    operations: Operations
    network: Network

    def track_losses(self) -> None:
        """Makes a running mean for each loss term; the last thing a subclass's `__init__` does."""
        terms = ["loss", "kd_loss", "alone", "l2_loss", "gradient_norm"]
        terms += [
            f"{m}_{part}" for m in self.modalities for part in ("segmentation_loss", "dice_loss", "cross_entropy")
        ]
        self._trackers = {term: keras.metrics.Mean(name=term) for term in terms}
        self._training_pass = tf.function(partial(self.__call__, training=True), reduce_retracing=True)

    def variables_of(self, modalities: Mapping[str, Any] | Sequence[str]) -> list[keras.Variable]:
        """Variables that a batch of these modalities uses: the shared ones and their own."""
        raise NotImplementedError

    def compile(
        self,
        optimizer: Any = "adam",
        *,
        kd_weight: float = 0.5,
        temperature: float = 2.0,
        absent: AbsentClass = "uniform",
        l2_weight: float = 1e-4,
        l2_on: Literal["all", "kernels"] = "all",
        **kwargs: Any,
    ) -> None:
        """Configures Eq. 5.

        Args:
            optimizer: Keras optimizer; the paper's is Adam with epsilon 1e-8.
            kd_weight: alpha. Used by the settings that distill; the others only report the loss.
            temperature: T of Eq. 3.
            absent: What a class does that a batch lacks, see `losses.knowledge_distillation_loss`.
            l2_weight: eta.
            l2_on: Whether the L2 term holds all trainable variables (paper) or kernels only (released 2D code).
            **kwargs: Passed to `keras.Model.compile`, e.g. `jit_compile`.
        """
        super().compile(optimizer=optimizer, **kwargs)  # mixed_float16: Keras wraps the optimizer to scale the loss
        # In the order of `optimize`, because Keras averages weights by their position.
        self.optimizer.build([v for v in self.variables_of(self.modalities) if v.trainable])
        self.kd_weight, self.temperature, self.absent = kd_weight, temperature, absent
        self.l2_weight, self.l2_on = l2_weight, l2_on
        # A proxy, because Keras takes no new variables into a built model; checkpoints hold them by modality.
        square = np.zeros((self.num_classes, self.num_classes), np.float32)
        remembered = self.modalities if absent == "memory" else ()
        self.memory = MappingProxyType({m: keras.Variable(square, trainable=False, name=m) for m in remembered})
        self._compiled_with = {
            "kd_weight": kd_weight,
            "temperature": temperature,
            "absent": absent,
            "l2_weight": l2_weight,
            "l2_on": l2_on,
            "jit_compile": self.jit_compile,
        }

    def get_compile_config(self) -> dict[str, Any] | None:
        """What a `.keras` file stores of `compile`; what absent="memory" remembers is in a run's checkpoints alone."""
        if not self.compiled:
            return None
        return {**self._compiled_with, "optimizer": keras.saving.serialize_keras_object(self.optimizer)}

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Undoes `get_compile_config`."""
        self.compile(**{**config, "optimizer": keras.saving.deserialize_keras_object(config["optimizer"])})

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

    def batch_losses(
        self, images: Mapping[str, tf.Tensor], labels: Mapping[str, tf.Tensor], *, training: bool
    ) -> dict[str, tf.Tensor]:
        """Every term of Eq. 5 for one batch.

        Args:
            images: As for calling the model.
            labels: Modality → integer class maps [batch, *space]; a value outside 0..C-1 is ignored.
            training: As for calling the model.

        Returns:
            Scalars: "loss" (Eq. 5); for each modality "<m>_dice_loss", "<m>_cross_entropy" and their sum
            "<m>_segmentation_loss"; with two modalities or more "kd_loss" (Eq. 4, unweighted) and "alone" (number of
            classes that one modality's batch holds and another's lacks); "l2_loss" (unweighted).
        """
        return self._with_l2(*self._data_losses(images, labels, training=training), self._decayed(images))

    def _data_losses(
        self, images: Mapping[str, tf.Tensor], labels: Mapping[str, tf.Tensor], *, training: bool
    ) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        """The terms of `batch_losses` without L2, and their weighted sum."""
        logits = {m: tf.cast(x, tf.float32) for m, x in self(images, training=training).items()}
        one_hot = {m: tf.one_hot(tf.cast(labels[m], tf.int32), self.num_classes) for m in logits}
        terms: dict[str, tf.Tensor] = {}
        total = tf.constant(0.0)
        for m in logits:
            terms[f"{m}_dice_loss"] = losses.soft_dice_loss(logits[m], one_hot[m])
            terms[f"{m}_cross_entropy"] = losses.weighted_cross_entropy(logits[m], one_hot[m])
            terms[f"{m}_segmentation_loss"] = terms[f"{m}_dice_loss"] + terms[f"{m}_cross_entropy"]
            total += terms[f"{m}_segmentation_loss"]
        if len(logits) > 1:
            memory = {m: v.value for m, v in self.memory.items()}
            terms["kd_loss"] = losses.knowledge_distillation_loss(
                logits, one_hot, self.temperature, self.absent, memory
            )
            terms["alone"] = losses.count_alone(one_hot)
            if self.setting.distill:
                total += 0.5 * self.kd_weight * terms["kd_loss"]
        if training:
            for m, v in self.memory.items():
                if m in logits:
                    v.assign(losses.updated_memory(v.value, logits[m], one_hot[m]))
        return terms, total

    def _with_l2(
        self, terms: Mapping[str, tf.Tensor], total: tf.Tensor, decayed: Sequence[keras.Variable]
    ) -> dict[str, tf.Tensor]:
        l2_loss = 2.0 * tf.add_n([tf.nn.l2_loss(v.value) for v in decayed])
        return {**terms, "l2_loss": l2_loss, "loss": total + self.l2_weight * l2_loss}

    def _decayed(self, present: Mapping[str, Any]) -> list[keras.Variable]:
        """Variables of the L2 term that the present modalities use."""
        return [v for v in self.variables_of(present) if v.trainable and (self.l2_on == "all" or v.name == "kernel")]

    def optimize(self, images: Mapping[str, tf.Tensor], labels: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """One optimizer step; returns the terms of `batch_losses` before it, and "gradient_norm".

        Variables and optimizer slots of a modality that is not in the batch stay as they are. Where a term is not
        finite, everything stays as it is. With float16, gradients that a scaled loss made overflow leave only that
        scale changed: it is halved, and "gradient_norm" is 0, since nothing was applied.

        Raises:
            ValueError: As calling the model; or 3D images of two voxels at the coarsest level, in bfloat16.
        """
        self._check_bfloat16(images)
        trainable = [v for v in self.variables_of(images) if v.trainable]
        state = [(v, tf.identity(v.value)) for v in (*self.non_trainable_variables, *self.memory.values())]
        scale = self.optimizer.scale_loss(tf.constant(1.0))  # 1, except with float16
        with tf.GradientTape() as tape:
            terms, total = self._data_losses(images, labels, training=True)
            scaled_total = scale * total
        gradients = tape.gradient(scaled_total, [v.value for v in trainable])
        decayed = self._decayed(images)
        terms = self._with_l2(terms, total, decayed)
        # L2's own gradients, 2 · eta · v: known without the tape.
        numbers, factor = {id(v) for v in decayed}, scale * (2.0 * self.l2_weight)
        gradients = [
            self.operations.add_scaled(gradient, v, factor) if id(v) in numbers else gradient
            for gradient, v in zip(gradients, trainable, strict=True)
        ]
        norm = tf.linalg.global_norm(gradients) / scale
        overflow = (scale > 1.0) & ~tf.math.is_finite(norm)
        terms["gradient_norm"] = tf.where(overflow, 0.0, norm)

        def apply() -> None:  # halves the scale where there is an overflow
            self.optimizer.apply(gradients, trainable)

        def undo() -> None:  # the forward pass has moved running statistics and the memory
            for v, value in state:
                v.assign(value)

        finite = tf.reduce_all(tf.math.is_finite(tf.stack(list(terms.values()))))
        tf.cond(finite, apply, lambda: None)
        tf.cond(finite & ~overflow, lambda: None, undo)
        return terms

    def _check_bfloat16(self, images: Mapping[str, tf.Tensor]) -> None:
        """Refuses 3D images for which TensorFlow's gradient is wrong (2.21, on a CPU): 2×2 at the coarsest level."""
        least = 3 * self.network.multiple
        if self.network.rank == 2 or self.compute_dtype != "bfloat16":
            return
        for modality, x in images.items():
            if any(size is not None and size < least for size in x.shape[1:3]):
                raise ValueError(
                    f"{modality} images of size {tuple(x.shape[1:-1])}: TensorFlow's bfloat16 gradient is wrong "
                    f"for two voxels at the coarsest level; use {least} rows and columns or more, or float32"
                )

    def estimate_statistics(self, batches: Iterable[Mapping[str, tf.Tensor]]) -> None:
        """Replaces the running statistics of batch normalization by their mean over batches, at the present weights.

        Our choice, for short trainings with large learning rates: the running mean then belongs partly to weights that
        are gone. Weights, gradients and the random state of dropout stay as they are.

        Args:
            batches: Training images, as for calling the model.
        """
        layers = [layer for layer in self._flatten_layers() if hasattr(layer, "moving_mean")]
        # With what one batch leaves of itself, when the statistics start from zero.
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

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Keras hook: `optimize` on one batch `(images, labels)`."""
        images, labels, _ = keras.utils.unpack_x_y_sample_weight(data)
        return self._track(self.optimize(images, labels))

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Keras hook: `batch_losses` on one batch `(images, labels)`, in inference mode."""
        images, labels, _ = keras.utils.unpack_x_y_sample_weight(data)
        return self._track(self.batch_losses(images, labels, training=False))

    def predict_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Keras hook: logits."""
        images, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        return self(images, training=False)

    def _track(self, terms: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        for name, value in terms.items():
            self._trackers[name].update_state(value)
        return {name: self._trackers[name].result() for name in terms}


@keras.saving.register_keras_serializable(package="ummkd_tf")
class UnpairedSegmenter(UnpairedModel):
    """Segments unpaired images of several modalities with one compact network.

    All seven settings of the paper are this class with another row of `settings.SETTINGS`. A stage with separate
    normalization runs once per modality. A stage with shared normalization runs once on all modalities concatenated,
    so that its batch statistics are those of both together (docs/reproduction.md#joint-batches).

    Mixed precision is Keras's: after `keras.config.set_dtype_policy("mixed_bfloat16")` or "mixed_float16", convolutions
    and activations have 16 bits; variables, statistics and losses keep 32.

    Args:
        network: "dilated2d" (Network-1) or "unet3d" (Network-2), or a table of stages of your own.
        setting: A key of `SETTINGS`.
        modalities: Names; also the order of concatenation.
        num_classes: C, background included.
        width: Base width w (the paper: 16).
        normalization: "batch", "instance", "layer" or "group" (Table V).
        decoder: "paper" or "released" (3D only; docs/reproduction.md#decoder).
        dropout: Share of activations dropped in training; None for the network's own (2D 0.25, 3D 0).
        initialization: Of kernels: "released" (normal, deviation 0.01) or "glorot", for short trainings.
        fast: Use the faster and smaller operations of `ummkd_tf.fast`, whose results differ by float32's rounding.
            They suit CPUs; None: where no GPU is visible.

    Call arguments:
        images: Modality → float images; [batch, height, width, 3] (three adjacent slices) for the 2D network,
            [batch, height, width, depth, 1] for the 3D one. Any subset of the modalities.
        training: Whether to normalize with batch statistics and drop out.

    Returns:
        Modality → logits [batch, *space, num_classes].

    Example:
        model = UnpairedSegmenter(network="unet3d", setting="ours")
        model.compile(optimizer=keras.optimizers.Adam(1e-4, epsilon=1e-8))
        model.fit(sampler.batches(0, 1000))      # ({"ct": images, "mr": images}, {"ct": labels, "mr": labels})
        logits = model({"mr": images})["mr"]
    """

    def __init__(
        self,
        network: str | Network | Mapping[str, Any] = "unet3d",
        setting: str = "ours",
        modalities: Sequence[str] = ("ct", "mr"),
        num_classes: int = 5,
        width: int = 16,
        normalization: Normalization = "batch",
        decoder: str = "paper",
        dropout: float | None = None,
        initialization: Initialization = "released",
        fast: bool | None = None,
        name: str = "segmenter",
    ) -> None:
        super().__init__(name=name)
        if setting not in SETTINGS:
            raise ValueError(f"unknown setting {setting!r}: expected one of {', '.join(SETTINGS)}")
        names = tuple(modalities)
        if not are_modality_names(names):
            raise ValueError(f"modalities {names!r}: expected different plain names, none of them {SHARED!r}")
        if num_classes < 2 or width < 1:
            raise ValueError(f"num_classes={num_classes}, width={width}: expected at least 2 and 1")
        self.network = get_network(network, decoder)
        self.setting = SETTINGS[setting]
        self.modalities = names
        self.num_classes = num_classes
        self._config = {
            "network": network if isinstance(network, str) else network_to_dict(self.network),
            "setting": setting,
            "modalities": names,
            "num_classes": num_classes,
            "width": width,
            "normalization": normalization,
            "decoder": decoder,
            "dropout": dropout,
            "initialization": initialization,
            "fast": fast,
        }
        self.operations = _operations(fast)
        self.stages = [
            Stage(
                row,
                StageOptions(
                    width=width,
                    num_classes=num_classes,
                    modalities=names,
                    separate_kernels=row.name in self.network.regions[self.setting.separate_kernels],
                    separate_norms=row.name in self.network.regions[self.setting.separate_norms],
                    normalization=normalization,
                    initialization=initialization,
                    dropout=self.network.dropout if dropout is None else dropout,
                    operations=self.operations,
                ),
            )
            for row in self.network.stages
        ]
        self.track_losses()
        self.build()

    def build(self, input_shape: Any = None) -> None:
        """Creates all variables; the network is fully convolutional, so no input shape is needed."""
        space = (None,) * (self.network.rank + 1)
        channels = {"": self.network.input_channels}
        previous = ""
        for stage in self.stages:
            row = stage.row
            stage.build((*space, channels[previous]), skip_channels=channels[row.skip] if row.skip else 0)
            previous = row.name
            channels[previous] = stage.filters

    def get_config(self) -> dict[str, Any]:
        return {**self._config, "name": self.name}

    def variables_of(self, modalities: Mapping[str, Any] | Sequence[str]) -> list[keras.Variable]:
        others = set(self.modalities) - set(modalities)
        return [v for stage in self.stages for v in stage.variables if v.path.split("/")[-2] not in others]

    def call(self, images: Mapping[str, tf.Tensor], training: bool = False) -> dict[str, tf.Tensor]:
        present = self._present(images)
        sizes = {m: tf.shape(images[m])[0] for m in present}
        current: Tensors = {(m,): images[m] for m in present}
        outputs: dict[str, Tensors] = {}
        for stage in self.stages:
            separate = stage.options.separate_norms
            skips = _regroup(outputs[stage.row.skip], separate, sizes) if stage.row.skip else {}

            def run(group: tuple[str, ...], x: tf.Tensor, stage: Stage = stage, skips: Tensors = skips) -> tf.Tensor:
                modality = group[0] if stage.options.separate_norms else SHARED
                return stage(x, modality=modality, skip=skips.get(group), training=training)

            current = self.operations.run_modalities(stage, run, _regroup(current, separate, sizes))
            outputs[stage.row.name] = current
        return {m: logits for (m,), logits in _regroup(current, True, sizes).items()}

    def _present(self, images: Mapping[str, tf.Tensor]) -> list[str]:
        """Modalities of a batch in the model's order.

        Raises:
            ValueError: Unknown modality, wrong rank or channels, or a size that pooling does not allow.
        """
        unknown = set(images) - set(self.modalities)
        if unknown or not images:
            raise ValueError(f"images of {sorted(images)}: expected modalities among {self.modalities}")
        rank, multiple = self.network.rank, self.network.multiple
        for modality, x in images.items():
            if x.shape.rank != rank + 2 or x.shape[-1] != self.network.input_channels:
                raise ValueError(
                    f"{modality} images of shape {tuple(x.shape)}: {self.network.name} expects rank {rank + 2} with "
                    f"{self.network.input_channels} channels last"
                )
            if any(size is not None and size % multiple for size in x.shape[1:-1]):
                raise ValueError(
                    f"{modality} images of size {tuple(x.shape[1:-1])}: every side must be a multiple of {multiple}"
                )
        return [m for m in self.modalities if m in images]


def _regroup(streams: Tensors, separate: bool, sizes: Mapping[str, tf.Tensor]) -> Tensors:
    """Splits concatenated modalities, or concatenates separate ones, along the batch axis, where needed."""
    if separate and any(len(group) > 1 for group in streams):
        ((group, x),) = streams.items()
        return {(m,): part for m, part in zip(group, tf.split(x, [sizes[m] for m in group]), strict=True)}
    if not separate and len(streams) > 1:
        return {tuple(m for group in streams for m in group): tf.concat(list(streams.values()), 0)}
    return streams


def _operations(fast: bool | None) -> Operations:
    if fast is None:
        fast = _fast is not None and not tf.config.list_physical_devices("GPU")
    if not fast:
        return PLAIN
    if _fast is None:
        raise ValueError("fast=True: ummkd_tf/fast is not installed: expected fast=False or None")
    return Operations(**_fast.OPERATIONS)
