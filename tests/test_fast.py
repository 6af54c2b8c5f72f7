"""The optimized operations do what the plain ones do: only float32's rounding differs."""

from __future__ import annotations

from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf

from ummkd_tf import UnpairedSegmenter
from ummkd_tf.common import processor
from ummkd_tf.fast import winograd
from ummkd_tf.fast.adam import Adam
from ummkd_tf.fast.convolutions import Conv2D, Conv3D
from ummkd_tf.fast.recompute import leaky_relu, recomputed
from ummkd_tf.model import operations
from ummkd_tf.model.architectures import Block, Conv, Filters, Network, StageRow, make_regions
from ummkd_tf.model.networks import check_network
from ummkd_tf.model.operations import PLAIN


def normal(*shape, seed=0):
    return tf.constant(np.random.default_rng(seed).normal(size=shape), tf.float32)


@pytest.mark.parametrize(("size", "dilation"), [((8, 8), 1), ((9, 7), 1), ((10, 12), 2), ((11, 8), 2), ((13, 10), 3)])
def test_winograd_is_the_direct_convolution(size, dilation):
    """Result and both gradients, also where tiles do not fill the image."""
    images, kernel = normal(2, *size, 5), normal(3, 3, 5, 4, seed=1)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch((images, kernel))
        direct = tf.nn.conv2d(images, kernel, 1, "VALID", dilations=dilation)
        fast = winograd.convolve(images, kernel, dilation)
        weights = normal(*direct.shape, seed=2)
        sums = [tf.reduce_sum(weights * y) for y in (direct, fast)]
    np.testing.assert_allclose(fast, direct, atol=2e-5)
    for by_direct, by_fast in zip(*(tape.gradient(s, (images, kernel)) for s in sums), strict=True):
        np.testing.assert_allclose(by_fast, by_direct, atol=1e-4)


def test_winograd_of_some_filters_after_the_others(monkeypatch):
    """Five filters, two at once: the same result and gradients as all at once."""
    images, kernel = normal(2, 8, 9, 3), normal(3, 3, 3, 5, seed=1)
    found = []
    for at_once in (5, 2):
        monkeypatch.setattr(winograd, "_FILTERS_AT_ONCE", at_once)
        with tf.GradientTape() as tape:
            tape.watch((images, kernel))
            result = winograd.convolve(images, kernel)
        found.append([result, *tape.gradient(result, (images, kernel), normal(*result.shape, seed=2))])
    for together, in_turn in zip(*found, strict=True):
        np.testing.assert_allclose(in_turn, together, atol=1e-5)


def test_winograd_of_whole_numbers_is_exact():
    """Entries 0…3 and kernels of even numbers: no rounding, and the middle of a box of nine ones times two is 18."""
    images = tf.ones((1, 5, 5, 1))
    np.testing.assert_array_equal(winograd.convolve(images, tf.fill((3, 3, 1, 1), 2.0)), tf.fill((1, 3, 3, 1), 18.0))


@pytest.mark.parametrize(
    ("sides", "channels", "filters", "blocks"), [((3, 3, 3), 32, 16, 2), ((3, 3, 1), 48, 32, 6), ((3, 3, 3), 3, 5, 1)]
)
def test_gradient_by_a_3d_kernel_in_blocks(sides, channels, filters, blocks, monkeypatch, tmp_path):
    """As on a processor with AVX2 alone: result and gradients are those of Keras's layer."""
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
    images, counts, found = normal(2, 6, 5, 4, channels), [], []
    for flags in ("avx2", "avx2 avx512f"):
        (tmp_path / "cpuinfo").write_text(f"flags : fpu {flags}\n", encoding="utf-8")
        keras.utils.set_random_seed(0)
        layer = Conv3D(filters, sides, padding="same", use_bias=False)
        layer.build(images.shape)

        @tf.function(autograph=False)
        def differentiate(x, layer=layer):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = layer(x)
            return [y, *tape.gradient(y, (x, *layer.trainable_weights), normal(*y.shape, seed=1))]

        found.append(differentiate(images))
        graph = differentiate.get_concrete_function(images).graph
        counts.append(sum(op.type == "Conv3DBackpropFilterV2" for op in graph.get_operations()))
    assert counts == [blocks, 1]
    for in_blocks, whole in zip(*found, strict=True):
        np.testing.assert_allclose(in_blocks, whole, rtol=1e-4, atol=1e-4)


def table(rank, *stages, skip=None):
    """A network of some rows of layers, of which the last one may join the first one's output, and an output."""
    rows = [StageRow(f"stage_{n}", tuple(layers)) for n, layers in enumerate(stages)]
    rows[-1] = replace(rows[-1], skip=skip)
    logits = Conv(Filters(per_class=1), (1,) * rank, "conv", use_bias=True)
    rows.append(StageRow("output", (logits,)))
    regions = make_regions([row.name for row in rows], green="stage_1", blue=("stage_1", "stage_1"))
    network = Network("own", 3 if rank == 2 else 1, rank, tuple(rows), regions, multiple=1, dropout=0.0)
    check_network(network)
    return network


def conv(rank, order, width=1, **more):
    return Conv(Filters(per_width=width), (3,) * rank, order, **more)


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("order", ["conv", "conv-norm-act", "norm-act-conv"])
@pytest.mark.parametrize("kind", ["mixed", "skip", "mirrored skip", "block"])
def test_a_table_of_one_s_own_is_the_same_network(kind, order, rank):
    """Logits and gradients of every order of layers behind every other, with biases and skips."""
    first, unit = conv(rank, "conv-norm-act"), conv(rank, order, use_bias=True, symmetric_pad=kind == "mirrored skip")
    if kind == "mixed":
        own = table(rank, (first,), (first, unit, conv(rank, "norm-act-conv"), first))
    elif kind == "block":
        own = table(rank, (first,), (first, Block(conv(rank, order, width=2, use_bias=True))), skip="stage_0")
    else:
        own = table(rank, (first,), (first, unit, first), skip="stage_0")
    assert_fast_is_plain(own, width=2)


def test_a_wide_convolution_keeps_its_bias():
    """Where Winograd's way would be taken."""
    wide = Conv2D.winograd_channels
    assert_fast_is_plain(table(2, (conv(2, "conv", wide),), (conv(2, "conv", wide, use_bias=True),)), width=1)


def assert_fast_is_plain(network, width):
    shape = (2, 8, 8, 3) if network.rank == 2 else (2, 8, 8, 4, 1)
    images = {m: normal(*shape, seed=i) for i, m in enumerate(("ct", "mr"))}
    found = []
    for fast in (False, True):
        keras.utils.set_random_seed(0)
        model = UnpairedSegmenter(network, width=width, num_classes=2, initialization="glorot", fast=fast)
        for v in model.trainable_variables:
            if v.name in ("bias", "beta"):
                v.assign(normal(*v.shape))
        with tf.GradientTape() as tape:
            logits = model(images, training=True)
            total = tf.add_n([tf.reduce_sum(tf.sin(x)) for x in logits.values()])
        gradients = tape.gradient(total, [v.value for v in model.trainable_variables])
        assert all(g is not None for g in gradients)
        found.append([*logits.values(), *gradients])
    for plain, quick in zip(*found, strict=True):
        np.testing.assert_allclose(quick, plain, rtol=1e-3, atol=1e-3)


def test_what_is_recomputed_is_not_kept():
    """Twice exp(x)²: once forwards, once for the gradient 2 exp(x)², which asks nothing of the first."""

    @tf.function(autograph=False)
    def differentiate(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = recomputed(lambda x, again=False: tf.square(tf.exp(x)))(x)
        return tape.gradient(y, x)

    x = tf.constant([0.0, 1.0])
    np.testing.assert_allclose(differentiate(x), 2 * np.exp([0.0, 2.0]), rtol=1e-6)
    exponentials = [op for op in differentiate.get_concrete_function(x).graph.get_operations() if op.type == "Exp"]
    assert len(exponentials) == 2
    assert [op.type for op in exponentials[0].outputs[0].consumers()] == ["Square"]


def test_running_statistics_move_once_though_activations_are_recomputed():
    """From (0, 1) a tenth of the way to the first batch's own mean and variance, in both networks."""
    for network, shape in (("dilated2d", (2, 16, 16, 3)), ("unet3d", (2, 16, 16, 8, 1))):
        moved = []
        for fast in (False, True):
            keras.utils.set_random_seed(0)
            arguments = {"width": 4, "num_classes": 2, "dropout": 0.0, "initialization": "glorot"}
            model = UnpairedSegmenter(network, **arguments, fast=fast)
            model.compile("sgd")
            images = {m: normal(*shape, seed=i) for i, m in enumerate(model.modalities)}
            model.optimize(images, {m: tf.zeros(shape[:-1], tf.int32) for m in images})
            moved.append({v.path: v.numpy() for v in model.non_trainable_variables if v.name.startswith("moving")})
        assert moved[0].keys() == moved[1].keys()
        for path, plain in moved[0].items():
            assert np.any(plain != (0.0 if "mean" in path else 1.0)), path
            np.testing.assert_allclose(moved[1][path], plain, rtol=1e-3, atol=1e-5, err_msg=path)


def test_leaky_relu_and_its_gradient_are_tensorflows_bit_for_bit():
    x = tf.concat([normal(1000), [0.0, -0.0, 1e-38, -1e-38]], 0)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        ours, theirs = leaky_relu(x), tf.nn.leaky_relu(x, 0.2)
    np.testing.assert_array_equal(ours, theirs)
    weights = normal(1004, seed=1)
    np.testing.assert_array_equal(
        tape.gradient(ours, x, output_gradients=weights), tape.gradient(theirs, x, output_gradients=weights)
    )


def test_adam_is_kerass():
    """Three steps on gradients of very different size; TensorFlow takes 1 - beta_2 in float32, 1.3e-5 off."""
    start = [normal(4, 5), normal(7, seed=1)]
    results = []
    for adam in (Adam(1e-3), keras.optimizers.Adam(1e-3, epsilon=1e-8)):
        variables = [keras.Variable(x) for x in start]
        adam.build(variables)
        for step in range(3):
            adam.apply([normal(4, 5, seed=step), 1e-6 * normal(7, seed=step)], variables)
        results.append([v.numpy() for v in (*variables, *adam.variables)])
    assert len(results[0]) == len(results[1]) > 6
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-8)


@pytest.mark.parametrize("network", ["dilated2d", "unet3d"])
@pytest.mark.parametrize("setting", ["ours", "joint", "x_shaped"])
def test_a_fast_model_computes_what_a_plain_one_does(network, setting, monkeypatch):
    """Same weights: all loss terms to 1e-5; odd sizes at the coarsest level, and one modality alone."""
    monkeypatch.setattr(Conv2D, "winograd_channels", 4)
    space, channels = ((24, 40), 3) if network == "dilated2d" else ((24, 40, 8), 1)
    images = {m: normal(2, *space, channels, seed=i) for i, m in enumerate(("ct", "mr"))}
    labels = {m: tf.cast(normal(2, *space, seed=5) > 0.3, tf.int32) for m in images}
    models = []
    for fast in (False, True):
        keras.utils.set_random_seed(0)
        model = UnpairedSegmenter(
            network, setting, width=4, num_classes=2, dropout=0.0, initialization="glorot", fast=fast
        )
        model.compile("sgd")
        models.append(model)
    plain, fast = (model.batch_losses(images, labels, training=True) for model in models)
    for name, value in plain.items():
        assert float(fast[name]) == pytest.approx(float(value), rel=1e-5, abs=1e-6), name
    one = {"mr": images["mr"]}
    np.testing.assert_allclose(models[1](one)["mr"], models[0](one)["mr"], rtol=1e-3, atol=1e-4)


def test_without_the_folder_fast_the_program_works(monkeypatch):
    """Only the segmenter puts it in, and takes the plain operations where it is missing."""
    monkeypatch.setattr(operations, "_fast", None)
    assert UnpairedSegmenter("unet3d", width=1).operations is PLAIN
    with pytest.raises(ValueError, match=r"fast=True: ummkd_tf/fast is not installed"):
        UnpairedSegmenter("unet3d", width=1, fast=True)
