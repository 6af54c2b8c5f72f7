"""The table of settings, generic over all seven: counts, sharing, statistics, forward passes."""

from __future__ import annotations

import doctest
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from ummkd_tf import SETTINGS, UnpairedSegmenter
from ummkd_tf.model import layers
from ummkd_tf.model.architectures import NETWORKS
from ummkd_tf.model.elements import Dropout, make_initializer
from ummkd_tf.model.layers import BatchNorm, PerModality, make_norm

# docs/reproduction.md#network-2d and #network-3d; trainable, width 16, 5 classes.
COUNTS = {
    ("dilated2d", "paper"): {
        "individual": 78_645_296,
        "joint": 39_322_648,
        "joint_kd": 39_322_648,
        "y_shaped": 39_988_136,
        "x_shaped": 65_956_656,
        "chilopod": 39_342_840,
        "ours": 39_342_840,
    },
    ("unet3d", "paper"): {
        "individual": 3_831_658,
        "joint": 1_915_829,
        "joint_kd": 1_915_829,
        "y_shaped": 2_124_293,
        "x_shaped": 3_388_522,
        "chilopod": 1_918_741,
        "ours": 1_918_741,
    },
    ("unet3d", "released"): {
        "individual": 2 * 2_201_589,
        "joint": 2_201_589,
        "joint_kd": 2_201_589,
        # Y and X from their separate parts: the encoders of the two decoders are the same (208,464).
        "y_shaped": 2_201_589 + 208_464,
        "chilopod": 2_204_565,
        "ours": 2_204_565,
    },
}


def small(network, setting, num_classes=2, **arguments):
    # Two classes, because group_10 of the 2D network has 512 channels per class whatever the width.
    return UnpairedSegmenter(
        network=network, setting=setting, width=4, dropout=0.0, num_classes=num_classes, **arguments
    )


def batch(network, modalities=("ct", "mr"), size=16, examples=2, seed=0):
    """Two modalities of opposite contrast, with labels of both classes."""
    rng = np.random.default_rng(seed)
    space = (size, size) if network == "dilated2d" else (size, size, 8)
    channels = NETWORKS[network].input_channels
    images, labels = {}, {}
    for number, modality in enumerate(modalities):
        labels[modality] = rng.integers(0, 2, (examples, *space))
        contrast = labels[modality] * (1.0 if number % 2 else -1.0) + 3 * number
        noise = rng.normal(0, 0.3, (examples, *space, channels))
        images[modality] = tf.constant(contrast[..., np.newaxis] + noise, tf.float32)
    return images, labels


def shapes_only():
    """For models whose variables need no values: they are built at once."""
    return keras.StatelessScope(initialize_variables=False)


@pytest.mark.parametrize(
    ("network", "decoder", "setting", "count"),
    [(*key, setting, count) for key, counts in COUNTS.items() for setting, count in counts.items()],
)
def test_parameter_counts(network, decoder, setting, count):
    with shapes_only():
        model = UnpairedSegmenter(network=network, decoder=decoder, setting=setting)
    assert sum(math.prod(v.shape) for v in model.trainable_variables) == count


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_counts_print_as_in_the_papers_param_column(network, setting):
    """Table I prints twice the rounded 39.32M for Individual; everything else is plain rounding."""
    count = COUNTS[network, "paper"][setting]
    printed = f"{count / 1e6:.2f}M" if network == "dilated2d" else f"{count / 1e3:.0f}K"
    if (network, setting) == ("dilated2d", "individual"):
        printed = f"{2 * round(count / 2e6, 2):.2f}M"
    assert printed == NETWORKS[network].paper_parameters[setting]


def test_the_example_of_per_modality_runs():
    assert doctest.testmod(layers).failed == 0 < doctest.testmod(layers).attempted


def per_modality_layers(model):
    """(stage, layer) of everything that can be shared; the layer's name is "conv" or "norm"."""
    found = []
    for stage in model.stages:
        for layer in stage._flatten_layers():
            if isinstance(layer, PerModality):
                found.append((stage, layer))
    return found


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_sharing_by_identity_and_after_updates(network, setting):
    """Shared layers are one object for both modalities, separate ones two whose variables differ after a step.

    A further step on CT alone leaves everything of MR as it is, though Adam has momentum for it.
    """
    model = small(network, setting)
    model.compile(keras.optimizers.Adam(1e-2))
    images, labels = batch(network)
    row = SETTINGS[setting]
    separate = {
        "conv": NETWORKS[network].regions[row.separate_kernels],
        "norm": NETWORKS[network].regions[row.separate_norms],
    }

    def state():
        return {v.path: v.numpy() for v in (*model.variables, *model.optimizer.variables)}

    start = state()
    model.optimize(images, labels)
    layers = per_modality_layers(model)
    assert len(layers) >= 2 * len(model.stages) - 2
    for stage, layer in layers:
        expected_separate = stage.row.name in separate[layer.name]
        assert layer.separate == expected_separate
        if not expected_separate:
            assert set(layer.sublayers) == {"shared"}
            assert all("/ct/" not in v.path and "/mr/" not in v.path for v in layer.variables)
        else:
            ct, mr = layer.sublayers["ct"], layer.sublayers["mr"]
            assert ct is not mr
            for a, b in zip(ct.variables, mr.variables, strict=True):
                assert a.path.replace("/ct/", "/mr/") == b.path
                assert np.any(a.numpy() != b.numpy()), a.path
    both = state()
    still = [v.path for v in model.trainable_variables if np.all(start[v.path] == both[v.path])]
    assert not still, "every trainable variable takes part in a step with both modalities"

    model.optimize({"ct": images["ct"]}, {"ct": labels["ct"]})
    ct_only = state()
    of_mr = [p for p in both if "/mr/" in p or "_mr_" in p]
    assert (len(of_mr) > 0) == (setting not in ("joint", "joint_kd"))
    for path in of_mr:
        np.testing.assert_array_equal(both[path], ct_only[path], err_msg=path)
    assert sum(np.any(both[p] != ct_only[p]) for p in both) > 10


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_variable_paths_are_unique_and_name_the_modality(network, setting):
    with shapes_only():
        model = UnpairedSegmenter(network=network, setting=setting, width=4, num_classes=2)  # with dropout's state
    paths = [v.path for v in model.variables]
    assert len(set(paths)) == len(paths)
    first = "segmenter/encoder_1/unit_1/norm/" if network == "unet3d" else "segmenter/group_1/block_1/unit_1/norm/"
    gammas = [p for p in paths if p.startswith(first) and p.endswith("/gamma")]
    owners = {p.split("/")[-2] for p in gammas}
    joint = setting in ("joint", "joint_kd")
    assert owners == ({"shared"} if joint else {"ct", "mr"})


@pytest.mark.parametrize("network", NETWORKS)
def test_individual_is_two_independent_trainings(network):
    """CT's half of a joint step equals a step on CT alone, bit for bit in what it computes."""
    both, alone = small(network, "individual"), small(network, "individual")
    for a, b in zip(both.variables, alone.variables, strict=True):
        b.assign(a)
    images, labels = batch(network)
    for model, modalities in ((both, ("ct", "mr")), (alone, ("ct",))):
        model.compile(keras.optimizers.Adam(1e-3, epsilon=1e-8))
        model.optimize({m: images[m] for m in modalities}, {m: labels[m] for m in modalities})
    for a, b in zip(both.variables, alone.variables, strict=True):
        if "/ct/" in a.path:
            np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=0, atol=1e-6, err_msg=a.path)


@pytest.mark.parametrize("network", NETWORKS)
def test_joint_normalizes_both_modalities_together(network):
    """With opposite means the joint statistics are those of the concatenated batch, not of either half."""
    model = small(network, "joint")
    images, _ = batch(network)
    first = next(layer for stage, layer in per_modality_layers(model) if layer.name == "norm")
    norm = first.sublayers["shared"]
    seen = {}
    original = norm.call
    norm.call = lambda x, **kwargs: seen.setdefault("out", original(seen.setdefault("in", x), **kwargs))
    model(images, training=True)
    assert seen["in"].shape[0] == sum(x.shape[0] for x in images.values())
    axes = list(range(seen["in"].shape.rank - 1))
    mean = tf.reduce_mean(seen["in"], axes)
    np.testing.assert_allclose(norm.moving_mean, 0.1 * mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(tf.reduce_mean(seen["out"], axes), 0, atol=1e-4)


@pytest.mark.parametrize("network", NETWORKS)
def test_joint_inference_stays_close_to_training(network, monkeypatch):
    """Joint batches: with one pass per modality through a shared norm, the two modes drift apart."""
    monkeypatch.setattr(BatchNorm, "momentum", 0.0)  # the moving statistics are those of the last batch
    model = small(network, "joint")
    for v in model.trainable_variables:  # larger kernels than at the start, so that a drift would show
        if v.name == "kernel":
            v.assign(v * 10)
    # In 2D the moving variance is unbiased, N/(N-1): a larger image keeps that difference small.
    images, _ = batch(network, size=64 if network == "dilated2d" else 16)

    def gap(training):
        inference = model(images)
        return max(
            float(tf.reduce_mean(tf.abs(tf.nn.softmax(training[m]) - tf.nn.softmax(inference[m])))) for m in images
        )

    together = gap(model(images, training=True))
    one_by_one = gap({m: model({m: images[m]}, training=True)[m] for m in images})
    assert together < 0.02
    assert one_by_one > 10 * together


@pytest.mark.parametrize("network", NETWORKS)
def test_one_modality_alone_gives_the_same_inference(network):
    for setting in ("joint", "y_shaped", "ours"):
        model = small(network, setting)
        images, _ = batch(network)
        together = model(images)
        for m in images:
            np.testing.assert_allclose(model({m: images[m]})[m], together[m], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("size", [(8, 8), (24, 40)])
def test_any_size_the_pooling_allows(network, size):
    model = small(network, "ours", num_classes=3)
    space = size if network == "dilated2d" else (*size, 8)
    images = {"mr": tf.zeros((1, *space, NETWORKS[network].input_channels))}
    assert model(images)["mr"].shape == (1, *space, 3)


@pytest.mark.parametrize("network", NETWORKS)
def test_wrong_inputs_are_named(network):
    model = small(network, "ours")
    images, _ = batch(network)
    with pytest.raises(ValueError, match=r"pet.*expected modalities among"):
        model({"pet": images["ct"]})
    with pytest.raises(ValueError, match="multiple of 8"):
        model({"ct": images["ct"][:, :12]})
    with pytest.raises(ValueError, match="channels last"):
        model({"ct": images["ct"][..., 0]})


@pytest.mark.parametrize("kind", ["batch", "instance", "layer", "group"])
def test_normalization_kinds_normalize_what_they_say(kind):
    x = tf.constant(np.random.default_rng(0).normal(3, 2, (2, 6, 6, 32)), tf.float32)
    layer = make_norm(kind, 32, "norm")
    layer.build(x.shape)
    y = layer(x, training=True).numpy()
    means = {
        "batch": y.mean((0, 1, 2)),
        "instance": y.mean((1, 2)),
        "layer": y.mean((1, 2, 3)),
        "group": y.reshape(2, 6, 6, 16, 2).mean((1, 2, 4)),
    }
    zero = {
        "batch": {"batch"},
        "instance": {"instance", "group", "layer", "batch"},
        "layer": {"layer"},
        "group": {"group", "layer"},
    }
    assert {other for other, mean in means.items() if np.abs(mean).max() < 1e-4} == zero[kind]
    assert sum(int(np.prod(v.shape)) for v in layer.trainable_variables) == 64


def test_three_modalities():
    model = UnpairedSegmenter(network="unet3d", setting="ours", modalities=("ct", "mr", "pet"), width=4)
    model.compile()
    images, labels = batch("unet3d", ("ct", "mr", "pet"))
    terms = model.optimize(images, labels)
    assert {"ct_segmentation_loss", "mr_segmentation_loss", "pet_segmentation_loss", "kd_loss"} <= set(terms)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"setting": "z_shaped"}, "unknown setting 'z_shaped'.*individual, joint"),
        ({"network": "vnet"}, "unknown network 'vnet'.*dilated2d, unet3d"),
        ({"network": "dilated2d", "decoder": "released"}, "belongs to unet3d"),
        ({"normalization": "spectral"}, "unknown normalization 'spectral'"),
        ({"modalities": ("ct", "ct")}, "different plain names"),
        ({"modalities": ("shared", "mr")}, "different plain names"),
        ({"num_classes": 1}, "num_classes=1"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        UnpairedSegmenter(**{"width": 4, **arguments})


@pytest.mark.parametrize("setting", ["joint", "ours"])
def test_estimated_statistics_are_the_mean_over_batches(setting):
    """Those of the first norm, whose input does not depend on other norms, by hand; and nothing else has moved."""
    model = small("unet3d", setting)
    batches = [{m: np.float32(x) + 0.5 * k for m, x in batch("unet3d")[0].items()} for k in range(3)]
    unit = model.stages[0].parts[0]
    norm = unit.norm.sublayers["mr" if setting == "ours" else "shared"]
    norm.moving_mean.assign(norm.moving_mean + 7.0)  # forgotten
    before = {v.path: v.numpy() for v in model.variables if v.name not in BatchNorm.running}
    model.estimate_statistics(batches)
    inputs = [
        unit.conv(images["mr"] if setting == "ours" else tf.concat(list(images.values()), 0), modality="shared")
        for images in batches
    ]
    np.testing.assert_allclose(norm.moving_mean, np.mean([np.mean(x, (0, 1, 2, 3)) for x in inputs], 0), atol=1e-4)
    np.testing.assert_allclose(norm.moving_variance, np.mean([np.var(x, (0, 1, 2, 3)) for x in inputs], 0), rtol=1e-3)
    for v in model.variables:
        if v.name not in BatchNorm.running:
            np.testing.assert_array_equal(v, before[v.path], err_msg=v.path)


def test_dropout_and_first_kernels_are_the_released_ones():
    """A quarter of the activations, in 2D alone; truncated normal kernels, normal ones going up, deviation 0.01."""
    assert {name: network.dropout for name, network in NETWORKS.items()} == {"dilated2d": 0.25, "unet3d": 0.0}
    kinds = {False: keras.initializers.TruncatedNormal, True: keras.initializers.RandomNormal}
    for up, kind in kinds.items():
        initializer = make_initializer("released", up)
        assert type(initializer) is kind and (initializer.mean, initializer.stddev) == (0.0, 0.01)
    layer = Dropout(0.25)
    layer.build((1, 100, 100, 1))
    dropped = layer(tf.ones((1, 100, 100, 1)), training=True).numpy()
    assert np.mean(dropped == 0) == pytest.approx(0.25, abs=0.02)
    np.testing.assert_allclose(dropped[dropped > 0], 4 / 3)
    epsilons = {norm: make_norm(norm, 24, "n").epsilon for norm in ("batch", "instance", "layer", "group")}
    assert epsilons == {"batch": 1e-3, "instance": 1e-6, "layer": 1e-6, "group": 1e-6}
    assert make_norm("group", 24, "n").groups == 8  # 16 does not divide it


def test_units_of_the_2d_network_drop_out_behind_their_convolution():
    """Two units in each of 14 blocks, and two in group_9; neither the first convolution nor the last two."""
    # Instance normalization is the same in training and in inference.
    model = UnpairedSegmenter("dilated2d", width=1, num_classes=2, normalization="instance")
    units = [unit for stage in model.stages for part in stage.parts for unit in getattr(part, "units", [part])]
    assert [unit.dropout.rate if unit.dropout else 0.0 for unit in units] == [0.0, *30 * [0.25], 0.0, 0.0]
    x = tf.constant(np.random.default_rng(0).normal(size=(1, 64, 64, 1)), tf.float32)
    plain, dropped = (units[1](x, modality="ct", training=training).numpy() for training in (False, True))
    kept = dropped != 0  # a convolution behind it would leave no zeros
    assert np.mean(kept) == pytest.approx(0.75, abs=0.03)
    np.testing.assert_allclose(dropped[kept], plain[kept] / 0.75, rtol=1e-4)
