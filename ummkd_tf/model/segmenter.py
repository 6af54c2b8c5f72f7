"""The model: one network for several unpaired modalities (Sec. III), with its training step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from ummkd_tf.model import losses
from ummkd_tf.model.absent_classes import count_alone, updated_memory
from ummkd_tf.model.architectures import Initialization, Network, Normalization
from ummkd_tf.model.checks import check_accumulation, check_arguments, check_bfloat16, present_modalities
from ummkd_tf.model.finite import apply_if_finite
from ummkd_tf.model.keras_hooks import Adjustable, KerasHooks, images_and_labels
from ummkd_tf.model.layers import Stage, StageOptions
from ummkd_tf.model.networks import get_network, network_to_dict
from ummkd_tf.model.operations import Operations, Tensors, choose_operations
from ummkd_tf.model.replicas import loss_share, replica_sums, take_summed_gradients
from ummkd_tf.settings import SETTINGS, AbsentClass, Setting


class UnpairedModel(KerasHooks):
    """Trains with Eq. 5 whatever gives logits by modality: `UnpairedSegmenter`, or `per_modality` of any Keras model.

    A subclass sets `modalities`, `num_classes`, `setting`, `operations` and `network`, calls `track_losses`, and
    defines `call` and `variables_of`.
    """

    num_classes: int
    setting: Setting
    operations: Operations
    kd_weight, temperature, l2_weight = Adjustable(), Adjustable(), Adjustable()

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
        """Configures Eq. 5. `kd_weight`, `temperature` and `l2_weight` may be set between steps, as attributes.

        Args:
            optimizer: Keras optimizer; the paper's is Adam with epsilon 1e-8.
            kd_weight: alpha of Eq. 5, which adds alpha/2 times Eq. 4; settings that do not distill only report it.
            temperature: T of Eq. 3.
            absent: How the loss treats a class that a batch lacks, see `losses.knowledge_distillation_loss`.
            l2_weight: eta.
            l2_on: "all": every trainable variable (in 3D also the output's bias, which the paper's sum lacks);
                "kernels": as in the released 2D code.
            **kwargs: Passed to `keras.Model.compile`, e.g. `jit_compile`.

        Raises:
            TypeError: Keras's `loss`, `loss_weights`, `metrics` or `weighted_metrics`, which would have no effect.
        """
        super().compile(optimizer=optimizer, **kwargs)  # mixed_float16: Keras wraps the optimizer to scale the loss
        take_summed_gradients(self.optimizer)
        # In the order of `optimize`, because Keras averages weights by their position.
        self.optimizer.build([v for v in self.variables_of(self.modalities) if v.trainable])
        self.kd_weight, self.temperature, self.absent = kd_weight, temperature, absent
        self.l2_weight, self.l2_on = l2_weight, l2_on
        # A proxy, because Keras takes no new variables into a built model; checkpoints hold them by modality.
        square = np.zeros((self.num_classes, self.num_classes), np.float32)
        remembered = self.modalities if absent == "memory" else ()
        self.memory = MappingProxyType({m: keras.Variable(square, trainable=False, name=m) for m in remembered})

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
        return self._with_l2(*self._data_losses(images, labels, training=training), self._l2_variables(images))

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
            terms["alone"] = count_alone(one_hot)
            if self.setting.distill:
                total += 0.5 * self.kd_weight * terms["kd_loss"]
        if training:
            for m, v in self.memory.items():
                if m in logits:
                    v.assign(updated_memory(v.value, logits[m], one_hot[m]))
        return terms, total

    def _with_l2(
        self, terms: Mapping[str, tf.Tensor], total: tf.Tensor, l2_variables: Sequence[keras.Variable]
    ) -> dict[str, tf.Tensor]:
        l2_loss = 2.0 * tf.add_n([tf.nn.l2_loss(v.value) for v in l2_variables])
        return {**terms, "l2_loss": l2_loss, "loss": total + self.l2_weight * l2_loss}

    def _l2_variables(self, present: Mapping[str, Any]) -> list[keras.Variable]:
        """Variables of the L2 term that the present modalities use."""
        every = self.l2_on == "all"  # else kernels, of which Keras calls some "depthwise_kernel" or the like
        return [v for v in self.variables_of(present) if v.trainable and (every or v.name.endswith("kernel"))]

    def optimize(self, images: Mapping[str, tf.Tensor], labels: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """One optimizer step; returns the terms of `batch_losses` before it, and "gradient_norm".

        Variables and optimizer slots of a modality that is not in the batch stay as they are; only averages do not,
        because with `use_ema` Keras averages all variables at every step. Where a term is not finite, everything stays
        as it is. With float16, gradients that a scaled loss made overflow leave only that scale changed: it is halved,
        and "gradient_norm" is 0, since nothing was applied.

        Raises:
            ValueError: As calling the model; 3D images of two voxels at the coarsest level, in bfloat16; or a modality
                is missing where the optimizer accumulates gradients.
        """
        check_accumulation(images, self.modalities, self.optimizer)
        check_bfloat16(images, self.network, self.compute_dtype)
        trainable = [v for v in self.variables_of(images) if v.trainable]
        state = [(v, tf.identity(v.value)) for v in (*self.non_trainable_variables, *self.memory.values())]
        scale = self.optimizer.scale_loss(tf.constant(1.0))  # 1, except with float16
        with tf.GradientTape() as tape:
            terms, total = self._data_losses(images, labels, training=True)
            scaled_total = loss_share(scale * total)
        gradients = replica_sums(tape.gradient(scaled_total, [v.value for v in trainable]))
        l2_variables = self._l2_variables(images)
        terms = self._with_l2(terms, total, l2_variables)
        # The gradient of eta · Σ v² is 2 · eta · v: known without the tape.
        with_l2, factor = {id(v) for v in l2_variables}, scale * (2.0 * self.l2_weight)
        gradients = [
            self.operations.add_scaled(gradient, v, factor) if id(v) in with_l2 else gradient
            for gradient, v in zip(gradients, trainable, strict=True)
        ]
        return apply_if_finite(self.optimizer, gradients, trainable, terms, scale=scale, state=state)

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Keras hook: `optimize` on one batch `(images, labels)`."""
        return self._track(self.optimize(*images_and_labels(data)))


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
            They suit CPUs; None: on a single device, where no GPU is visible.

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
        check_arguments(setting, modalities, num_classes, width)
        self.network = get_network(network, decoder)
        self.setting = SETTINGS[setting]
        self.modalities = tuple(modalities)
        self.num_classes = num_classes
        self._config = {
            "network": network if isinstance(network, str) else network_to_dict(self.network),
            "setting": setting,
            "modalities": self.modalities,
            "num_classes": num_classes,
            "width": width,
            "normalization": normalization,
            "decoder": decoder,
            "dropout": dropout,
            "initialization": initialization,
            "fast": fast,
        }
        self.operations = choose_operations(fast)
        self.stages = [
            Stage(
                row,
                StageOptions(
                    width=width,
                    num_classes=num_classes,
                    modalities=self.modalities,
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
        present = present_modalities(images, self.modalities, self.network)
        sizes = {m: tf.shape(images[m])[0] for m in present}
        current: Tensors = {(m,): images[m] for m in present}
        outputs: dict[str, Tensors] = {}
        for stage in self.stages:
            separate = stage.options.separate_norms
            skips = _regroup(outputs[stage.row.skip], separate, sizes) if stage.row.skip else {}
            inputs = _regroup(current, separate, sizes)
            current = outputs[stage.row.name] = self.operations.run_stage(stage, inputs, skips, training=training)
        return {m: logits for (m,), logits in _regroup(current, True, sizes).items()}


def _regroup(streams: Tensors, separate: bool, sizes: Mapping[str, tf.Tensor]) -> Tensors:
    """Splits concatenated modalities, or concatenates separate ones, along the batch axis, where needed."""
    if separate and any(len(group) > 1 for group in streams):
        ((group, x),) = streams.items()
        return {(m,): part for m, part in zip(group, tf.split(x, [sizes[m] for m in group]), strict=True)}
    if not separate and len(streams) > 1:
        return {tuple(m for group in streams for m in group): tf.concat(list(streams.values()), 0)}
    return streams
