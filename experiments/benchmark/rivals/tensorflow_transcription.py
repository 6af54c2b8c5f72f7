"""The training step of setting `ours` as the authors' TF 1.8 graph has it, in one `tf.function`: the stand-in for it.

Raw operations, one forward pass per modality, their variable names (`ummkd_tf/released/weights.py`) and their order of
channels before the phase shift. Loss and learning rate are those of recipe `paper`, the 3D decoder is `paper`;
`tests/test_benchmark_rivals.py` compares the numbers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

import tensorflow as tf
from numpy.typing import NDArray

from experiments.benchmark.batches import random_batch

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

SCOPES = {"ct": "target", "mr": "source"}
CLASSES = 5
KD_WEIGHT, TEMPERATURE, L2_WEIGHT = 0.5, 2.0, 1e-4
DECAY, EPSILON = 0.90, 1e-3


class Graph:
    """Variables by name, created where they are first used (their `tf.get_variable` with AUTO_REUSE), and the layers.

    Attributes:
        variables: Name → variable.
        trainable: Those the optimizer changes.
    """

    def __init__(self) -> None:
        self.variables: dict[str, tf.Variable] = {}

    @property
    def trainable(self) -> list[tf.Variable]:
        return [v for v in self.variables.values() if v.trainable]

    def variable(
        self, name: str, shape: Sequence[int], initial: Callable[[Sequence[int]], tf.Tensor], trainable: bool = True
    ) -> tf.Variable:
        if name not in self.variables:
            with tf.init_scope():
                self.variables[name] = tf.Variable(initial(shape), trainable=trainable, name=name)
        return self.variables[name]

    def kernel(self, name: str, shape: Sequence[int]) -> tf.Variable:
        return self.variable(name, shape, lambda s: tf.random.truncated_normal(s, stddev=0.01))

    def batch_norm(self, x: tf.Tensor, scope: str) -> tf.Tensor:
        """Training mode of `tf.contrib.layers.batch_norm`: fused for rank 4, separate operations for rank 5."""
        channels = [x.shape[-1]]
        beta = self.variable(f"{scope}/beta", channels, tf.zeros)
        gamma = self.variable(f"{scope}/gamma", channels, tf.ones)
        moving_mean = self.variable(f"{scope}/moving_mean", channels, tf.zeros, trainable=False)
        moving_variance = self.variable(f"{scope}/moving_variance", channels, tf.ones, trainable=False)
        if x.shape.rank == 4:
            y, mean, variance = tf.compat.v1.nn.fused_batch_norm(x, gamma, beta, epsilon=EPSILON)
        else:
            mean, variance = tf.nn.moments(x, [0, 1, 2, 3])
            y = tf.nn.batch_normalization(x, mean, variance, beta, gamma, EPSILON)
        moving_mean.assign_sub((moving_mean - mean) * (1.0 - DECAY))
        moving_variance.assign_sub((moving_variance - variance) * (1.0 - DECAY))
        return y


def leaky_relu(x: tf.Tensor) -> tf.Tensor:
    """TF 1.8's `tf.nn.leaky_relu`, which had no kernel of its own."""
    return tf.maximum(0.2 * x, x)


def phase_shift(x: tf.Tensor, factor: int) -> tf.Tensor:
    """Their phase shift, one output channel after another: rows, then columns, are split and joined again."""
    batch, height, width, channels = x.shape
    outputs = []
    for part in tf.split(x, channels // factor**2, -1):
        part = tf.reshape(part, [batch, height, width, factor, factor])
        part = tf.transpose(part, [0, 1, 2, 4, 3])
        part = tf.concat([tf.squeeze(row, 1) for row in tf.split(part, height, 1)], 2)
        part = tf.concat([tf.squeeze(column, 1) for column in tf.split(part, width, 1)], 2)
        outputs.append(tf.reshape(part, [batch, height * factor, width * factor, 1]))
    return tf.concat(outputs, 3)


def symmetric_conv2d(x: tf.Tensor, kernel: tf.Variable) -> tf.Tensor:
    """Convolution of the image mirrored at its border."""
    rows, columns = kernel.shape[0] // 2, kernel.shape[1] // 2
    x = tf.pad(x, [[0, 0], [rows, rows], [columns, columns], [0, 0]], "SYMMETRIC")
    return tf.nn.conv2d(x, kernel, [1, 1, 1, 1], "VALID")


def dilated2d(graph: Graph, x: tf.Tensor, modality: str, width: int, dropout: float) -> tf.Tensor:
    """Network-1: [N, h, w, 3] to logits [N, h, w, classes]."""
    w = width

    def kernel(group: int, number: int, shape: Sequence[int]) -> tf.Variable:
        suffix = f"_{number}" if number else ""
        return graph.kernel(f"segmenter/group_{group}/kernel/Variable{suffix}", shape)

    def norm(x: tf.Tensor, group: int, number: str) -> tf.Tensor:
        return graph.batch_norm(x, f"segmenter/group_{group}/{SCOPES[modality]}bn_{group}_{number}")

    def unit(x: tf.Tensor, group: int, number: str, weights: tf.Variable, rate: int = 1) -> tf.Tensor:
        x = leaky_relu(norm(x, group, number))
        if rate == 1:
            x = tf.nn.conv2d(x, weights, [1, 1, 1, 1], "SAME")
        else:
            x = tf.nn.atrous_conv2d(x, weights, rate, "SAME")
        return tf.nn.dropout(x, dropout) if dropout else x

    def block(x: tf.Tensor, group: int, number: int, channels: int, first: int, rate: int = 1) -> tf.Tensor:
        inputs = x.shape[-1]
        inner = unit(x, group, f"{number}_1", kernel(group, first, [3, 3, inputs, channels]), rate)
        inner = unit(inner, group, f"{number}_2", kernel(group, first + 1, [3, 3, channels, channels]), rate)
        if channels > inputs:
            x = tf.pad(x, [[0, 0], [0, 0], [0, 0], [inputs // 2, inputs // 2]])
        return x + inner

    def pool(x: tf.Tensor) -> tf.Tensor:
        return tf.nn.max_pool(x, [1, 2, 2, 1], [1, 2, 2, 1], "SAME")

    x = tf.nn.conv2d(x, kernel(1, 0, [3, 3, x.shape[-1], w]), [1, 1, 1, 1], "SAME")
    x = pool(block(x, 1, 1, w, first=1))
    x = pool(block(x, 2, 1, 2 * w, first=0))
    for group, channels in ((3, 4 * w), (4, 8 * w), (5, 16 * w), (6, 16 * w), (7, 32 * w), (8, 32 * w)):
        rate = 2 if group == 8 else 1
        x = block(x, group, 1, channels, first=0, rate=rate)
        x = block(x, group, 2, channels, first=2, rate=rate)
        if group == 3:
            x = pool(x)
    for number in (1, 2):
        x = unit(x, 9, str(number), kernel(9, number - 1, [3, 3, 32 * w, 32 * w]))
    x = symmetric_conv2d(x, kernel(10, 0, [3, 3, 32 * w, 8 * 8 * 8 * CLASSES]))
    x = phase_shift(leaky_relu(norm(x, 10, "1")), 8)
    return symmetric_conv2d(x, graph.kernel("segmenter/output/kernel/Variable", [5, 5, 8 * CLASSES, CLASSES]))


Kernel = tuple[int, int, int]
CUBE: Kernel = (3, 3, 3)
FLAT: Kernel = (3, 3, 1)


def unet3d(graph: Graph, x: tf.Tensor, modality: str, width: int) -> tf.Tensor:
    """Network-2 with decoder `paper`: [N, h, w, d, 1] to logits [N, h, w, d, classes]."""
    w = width

    def norm(x: tf.Tensor, name: str) -> tf.Tensor:
        return leaky_relu(graph.batch_norm(x, f"joint/{name}/{name}/{SCOPES[modality]}/batch_norm"))

    def conv(x: tf.Tensor, name: str, size: Kernel, channels: int) -> tf.Tensor:
        kernel = graph.kernel(f"joint/{name}/{name}_conv/kernel", [*size, x.shape[-1], channels])
        return norm(tf.nn.conv3d(x, kernel, [1, 1, 1, 1, 1], "SAME"), name)

    def deconv(x: tf.Tensor, name: str, size: Kernel, channels: int) -> tf.Tensor:
        batch, *space, inputs = x.shape
        kernel = graph.variable(
            f"joint/{name}/{name}_deconv/filter",
            [*size, channels, inputs],
            lambda shape: tf.random.normal(shape, stddev=0.01),
        )
        shape = [batch, *(2 * n for n in space), channels]
        return norm(tf.nn.conv3d_transpose(x, kernel, shape, [1, 2, 2, 2, 1], "SAME"), name)

    skips: list[tf.Tensor] = []
    for level, size in ((1, CUBE), (2, CUBE), (3, FLAT), (4, FLAT)):
        if skips:
            x = tf.nn.max_pool3d(x, [1, 2, 2, 2, 1], [1, 2, 2, 2, 1], "SAME")
        x = conv(x, f"encoder{level}_1", size, 2 ** (level - 1) * w)
        x = conv(x, f"encoder{level}_2", size, 2**level * w)
        skips.append(x)
    for level, up_size, up, size, channels in (
        (3, (2, 2, 1), 8 * w, FLAT, 8 * w),
        (2, FLAT, 8 * w, CUBE, 4 * w),
        (1, (2, 2, 2), 2 * w, CUBE, 2 * w),
    ):
        x = tf.concat([deconv(x, f"deconv{level}", up_size, up), skips[level - 1]], 4)
        x = conv(x, f"decoder{level}_1", size, channels)
        x = conv(x, f"decoder{level}_2", size, channels)
    kernel = graph.kernel("joint/seg_logits/kernel", [1, 1, 1, x.shape[-1], CLASSES])
    bias = graph.variable("joint/seg_logits/bias", [CLASSES], tf.zeros)
    return tf.nn.bias_add(tf.nn.conv3d(x, kernel, [1, 1, 1, 1, 1], "SAME"), bias)


def forward(graph: Graph, network: str, x: tf.Tensor, modality: str, width: int, dropout: float) -> tf.Tensor:
    """Logits of one modality in training mode."""
    return (
        dilated2d(graph, x, modality, width, dropout) if network == "dilated2d" else unet3d(graph, x, modality, width)
    )


def segmentation_losses(logits: tf.Tensor, one_hot: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Soft Dice and weighted cross-entropy of one modality."""
    probabilities = tf.nn.softmax(logits)
    dice, cross_entropy = 0.0, 0.0
    for c in range(CLASSES):
        p, y = probabilities[..., c], one_hot[..., c]
        dice += 2.0 * tf.reduce_sum(p * y) / (tf.reduce_sum(p * p) + tf.reduce_sum(y) + 1e-7)
        weight = 1.0 - tf.reduce_sum(y) / tf.reduce_sum(one_hot)
        cross_entropy += -1.0 * weight * y * tf.math.log(tf.clip_by_value(p, 0.005, 1.0))
    return -1.0 * dice / CLASSES, tf.reduce_mean(cross_entropy)


def distillation_loss(logits: Sequence[tf.Tensor], one_hot: Sequence[tf.Tensor]) -> tf.Tensor:
    """Eq. 2–4 for two modalities."""
    total = 0.0
    for c in range(CLASSES):
        a, b = (_class_knowledge(x, y[..., c]) for x, y in zip(logits, one_hot, strict=True))
        total += tf.reduce_sum(a * tf.math.log(a / b)) + tf.reduce_sum(b * tf.math.log(b / a))
    return total / CLASSES


def _class_knowledge(logits: tf.Tensor, indicator: tf.Tensor) -> tf.Tensor:
    mask = tf.tile(indicator[..., tf.newaxis], [1] * (logits.shape.rank - 1) + [CLASSES])
    mean = tf.reduce_sum(logits * mask, list(range(logits.shape.rank - 1))) / (tf.reduce_sum(indicator) + 1e-6)
    return tf.nn.softmax(mean / TEMPERATURE)


class TrainingStep:
    """Variables, optimizer and one fixed batch.

    Args:
        network: "dilated2d" or "unet3d".
        width: Base width w.
        images: Modality → [N, *space, channels].
        labels: Modality → integer class maps [N, *space].
        dropout: Share of activations dropped; the 2D network's.
    """

    def __init__(
        self,
        network: str,
        width: int,
        images: Mapping[str, NDArray],
        labels: Mapping[str, NDArray],
        dropout: float = 0.25,
    ) -> None:
        self.network, self.width, self.dropout = network, width, dropout
        self.images = {m: tf.constant(x) for m, x in images.items()}
        self.labels = {m: tf.constant(y) for m, y in labels.items()}
        self.graph = make_graph(network, width)
        self.slots = [(v, tf.Variable(tf.zeros_like(v)), tf.Variable(tf.zeros_like(v))) for v in self.graph.trainable]
        self.powers = tf.Variable(0.9), tf.Variable(0.999)
        self._step = tf.function(self.optimize, autograph=False)

    def losses(self, images: Mapping[str, tf.Tensor], labels: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Every term of Eq. 5."""
        logits, one_hot, terms = [], [], {}
        total = 0.0
        for m in SCOPES:
            logits.append(forward(self.graph, self.network, images[m], m, self.width, self.dropout))
            one_hot.append(tf.one_hot(labels[m], CLASSES))
            terms[f"{m}_dice_loss"], terms[f"{m}_cross_entropy"] = segmentation_losses(logits[-1], one_hot[-1])
            total += terms[f"{m}_dice_loss"] + terms[f"{m}_cross_entropy"]
        terms["kd_loss"] = distillation_loss(logits, one_hot)
        terms["l2_loss"] = 2.0 * sum(tf.nn.l2_loss(v) for v in self.graph.trainable)
        terms["loss"] = total + 0.5 * KD_WEIGHT * terms["kd_loss"] + L2_WEIGHT * terms["l2_loss"]
        return terms

    def gradients(
        self, images: Mapping[str, tf.Tensor], labels: Mapping[str, tf.Tensor]
    ) -> tuple[dict[str, tf.Tensor], list[tf.Tensor]]:
        """Terms of Eq. 5, and the gradients of their sum in the order of `graph.trainable`."""
        with tf.GradientTape() as tape:
            terms = self.losses(images, labels)
        return terms, tape.gradient(terms["loss"], self.graph.trainable)

    def optimize(self, images: Mapping[str, tf.Tensor], labels: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """One step of Adam by the kernel that TF 1's optimizer calls."""
        terms, gradients = self.gradients(images, labels)
        for (variable, first, second), gradient in zip(self.slots, gradients, strict=True):
            tf.raw_ops.ResourceApplyAdam(
                var=variable.handle,
                m=first.handle,
                v=second.handle,
                beta1_power=self.powers[0],
                beta2_power=self.powers[1],
                lr=1e-4,
                beta1=0.9,
                beta2=0.999,
                epsilon=1e-8,
                grad=gradient,
            )
        for power, beta in zip(self.powers, (0.9, 0.999), strict=True):
            power.assign(power * beta)
        return terms["loss"]

    def __call__(self) -> float:
        """One training step; returns its loss."""
        return float(self._step(self.images, self.labels))


def make_graph(network: str, width: int) -> Graph:
    """A graph with all its variables, which one trace on the smallest image creates."""
    graph = Graph()

    def trace(image: tf.Tensor) -> list[tf.Tensor]:
        return [forward(graph, network, image, m, width, dropout=0.0) for m in SCOPES]

    shape = [1, 8, 8, 3] if network == "dilated2d" else [1, 8, 8, 8, 1]
    tf.function(trace, autograph=False).get_concrete_function(tf.TensorSpec(shape, tf.float32))
    return graph


def make_step(network: str, batch_size: int, size: int, width: int) -> Callable[[], float]:
    """A training step on random images and labels.

    Args:
        network: "dilated2d" or "unet3d".
        batch_size: Examples per modality.
        size: Rows and columns; the 3D network's depth is 8.
        width: Base width w.
    """
    tf.random.set_seed(0)
    images, labels = random_batch(network, batch_size, size, tuple(SCOPES))
    return TrainingStep(network, width, images, labels)
