"""Networks of one's own: a table of stages, or any functional Keras model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from programs import program
from residual_unet import residual_unet

from ummkd_tf import UnpairedSegmenter, per_modality
from ummkd_tf.data.dataset import Dataset
from ummkd_tf.evaluation.inference import Predictor
from ummkd_tf.model.any_network import KERAS_SETTINGS
from ummkd_tf.model.architectures import NETWORKS, Block
from ummkd_tf.model.networks import check_network, network_from_dict, network_to_dict
from ummkd_tf.model.segmenter import UnpairedModel
from ummkd_tf.runs.checkpoints import Progress, restore, write_checkpoint
from ummkd_tf.runs.exported import load_model
from ummkd_tf.runs.loading import load_run

MODALITIES = ("ct", "t1", "t2")


def batch() -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
    rng = np.random.default_rng(0)
    images = {m: rng.normal(size=(1, 16, 16, 4, 1)).astype(np.float32) for m in MODALITIES}
    labels = {m: (x[..., 0] > 0).astype(np.int32) + (x[..., 0] > 1) for m, x in images.items()}
    return {m: tf.constant(x) for m, x in images.items()}, {m: tf.constant(y) for m, y in labels.items()}


@pytest.fixture
def network() -> keras.Model:
    keras.utils.set_random_seed(0)
    return residual_unet(3, width=4, levels=2)


@pytest.mark.usefixtures("eager")
def test_kernels_are_shared_and_norms_are_not(network: keras.Model) -> None:
    model = per_modality(network, MODALITIES)
    count = {
        kind: sum(v.shape.num_elements() for v in network.variables if v.name in kind)
        for kind in (("kernel", "bias"), ("gamma", "beta", "moving_mean", "moving_variance"))
    }
    kernels, norms = count.values()
    assert model.count_params() == kernels + 3 * norms
    paths = [v.path for v in model.variables_of(MODALITIES)]
    assert len(set(paths)) == len(paths)  # checkpoints name variables by path
    images, _ = batch()
    for m, logits in model(images).items():  # starts as the network it was made of
        np.testing.assert_allclose(logits, network(images[m]), atol=1e-6)


@pytest.mark.usefixtures("eager")
def test_it_trains_with_the_paper_s_losses(network: keras.Model) -> None:
    model = per_modality(network, MODALITIES)
    model.compile(keras.optimizers.Adam(1e-2), kd_weight=0.5)
    images, labels = batch()
    losses = [float(model.optimize(images, labels)["loss"]) for _ in range(6)]
    assert losses[-1] < losses[0]
    assert {"kd_loss", "t1_dice_loss"} <= set(model.batch_losses(images, labels, training=False))
    before = {v.path: v.numpy() for v in model.variables}
    model.optimize({"t1": images["t1"]}, {"t1": labels["t1"]})
    moved = [v.path for v in model.variables if not np.array_equal(before[v.path], v.numpy())]
    # The shared kernels and its own layers, and no other modality's.
    assert any("kernel" in path for path in moved) and any("_t1/" in path for path in moved)
    assert not any(f"_{m}/" in path for path in moved for m in ("ct", "t2"))


def test_running_statistics_follow_the_layers_own_momentum(network: keras.Model) -> None:
    model = per_modality(network, ("ct", "mr"))
    x = {"ct": np.random.default_rng(0).normal(3, 2, size=(1, 16, 16, 4, 1)).astype(np.float32)}
    model.estimate_statistics([x])
    norm = next(layer for layer in model.networks["ct"].layers if layer.name.startswith("batch_normalization"))
    before = keras.Model(model.networks["ct"].inputs[0], norm.input)(x["ct"])
    np.testing.assert_allclose(norm.moving_mean, np.mean(before, axis=(0, 1, 2, 3)), atol=1e-4)
    other = next(layer for layer in model.networks["mr"].layers if layer.name.startswith("batch_normalization"))
    np.testing.assert_array_equal(other.moving_mean, 0)  # not in the batches


def small_network(*, frozen: bool = False) -> keras.Model:
    """A separable convolution, a normalization, which can be frozen, and a plain convolution; 2D, two classes."""
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.SeparableConv2D(4, 3, padding="same")(inputs)
    x = keras.layers.BatchNormalization(trainable=not frozen, name="first_norm")(x)
    x = keras.layers.BatchNormalization(name="last_norm")(x)
    return keras.Model(inputs, keras.layers.Conv2D(2, 3, padding="same")(x))


def small_batch() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    images = {m: rng.normal(size=(2, 8, 8, 3)).astype(np.float32) for m in ("ct", "mr")}
    return images, {m: (x[..., 0] > 0).astype(np.int32) for m, x in images.items()}


def test_statistics_of_a_frozen_normalization_stay() -> None:
    """Keras uses them in training, too, so no batch gives them others."""
    network = small_network(frozen=True)
    network.get_layer("first_norm").moving_variance.assign([1.0, 2.0, 3.0, 4.0])
    model = per_modality(network, ("ct", "mr"))
    model.estimate_statistics([small_batch()[0]])
    first, last = (model.networks["ct"].get_layer(f"{name}_norm_ct") for name in ("first", "last"))
    np.testing.assert_array_equal(first.moving_variance, [1.0, 2.0, 3.0, 4.0])
    assert not np.any(np.asarray(last.moving_variance) == 1.0)  # estimated


@pytest.mark.usefixtures("eager")
def test_l2_on_kernels_knows_those_of_separable_convolutions() -> None:
    model = per_modality(small_network(), ("ct", "mr"))
    model.compile(keras.optimizers.Adam(1e-2), l2_on="kernels", l2_weight=0.5)
    kernels = [v for v in model.variables if "kernel" in v.path]
    assert len(kernels) == 3  # depthwise, pointwise, and the plain convolution's
    expected = sum(float(np.sum(np.square(v))) for v in kernels)
    assert float(model.optimize(*small_batch())["l2_loss"]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.usefixtures("eager")
def test_gradients_are_accumulated_over_whole_batches_alone() -> None:
    model = per_modality(small_network(), ("ct", "mr"))
    model.compile(keras.optimizers.Adam(1e-2, gradient_accumulation_steps=2))
    images, labels = small_batch()
    before = [v.numpy() for v in model.trainable_variables]
    with pytest.raises(ValueError, match="expected every batch to have ct, mr, found mr"):
        model.optimize({"mr": images["mr"]}, {"mr": labels["mr"]})
    for step in range(2):
        model.optimize(images, labels)
        moved = [not np.array_equal(v, x) for v, x in zip(model.trainable_variables, before, strict=True)]
        assert any(moved) == (step == 1)


@pytest.mark.usefixtures("eager")
def test_a_fixed_loss_scale_lets_no_broken_gradient_through() -> None:
    model = per_modality(small_network(), ("ct", "mr"))
    model.compile(keras.optimizers.Adam(1e-2, loss_scale_factor=1024.0))
    model.operations = replace(model.operations, add_scaled=lambda gradient, *_: float("nan") * gradient)
    before = [v.numpy() for v in model.variables]
    assert np.isnan(float(model.optimize(*small_batch())["gradient_norm"]))
    for v, x in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(v, x)


@pytest.mark.usefixtures("eager")
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras, of its own variables
def test_it_is_saved_and_exported(network: keras.Model, tmp_path: Path) -> None:
    model = per_modality(network, ("ct", "mr"))
    model.compile(keras.optimizers.Adam(1e-2))
    images, labels = ({m: part[m] for m in ("ct", "t1")} for part in batch())
    images["mr"], labels["mr"] = images.pop("t1"), labels.pop("t1")
    model.optimize(images, labels)
    model.save(tmp_path / "x.keras")
    model.export(str(tmp_path / "saved"), verbose=False)
    loaded, saved = keras.models.load_model(tmp_path / "x.keras"), tf.saved_model.load(str(tmp_path / "saved"))
    for m, logits in model(images).items():
        np.testing.assert_allclose(loaded(images)[m], logits, atol=1e-6)
        np.testing.assert_allclose(getattr(saved, f"serve_{m}")(images[m]), logits, atol=1e-6)


def test_it_predicts_whole_volumes(network: keras.Model) -> None:
    image = np.random.default_rng(0).normal(size=(16, 16, 11)).astype(np.float32)
    probabilities = Predictor(per_modality(network, ("ct", "mr"))).probabilities(image, "ct")
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)


def test_unsuitable_models_are_told() -> None:
    inputs = keras.Input((16, 16, 3))
    with pytest.raises(ValueError, match="no normalization layer"):
        per_modality(keras.Model(inputs, keras.layers.Conv2D(2, 3, padding="same")(inputs)), ("ct", "mr"))
    normalized = keras.layers.BatchNormalization()(inputs)
    softmax = keras.layers.Conv2D(2, 3, activation="softmax")(normalized)
    with pytest.raises(ValueError, match="ends in probabilities"):
        per_modality(keras.Model(inputs, softmax), ("ct", "mr"))
    logits = keras.layers.Conv2D(2, 3, padding="same")(normalized)
    for probabilities in (keras.layers.Softmax()(logits), keras.ops.softmax(logits), keras.ops.sigmoid(logits)):
        with pytest.raises(ValueError, match="ends in probabilities"):
            per_modality(keras.Model(inputs, probabilities), ("ct", "mr"))
    pooled = keras.layers.GlobalAveragePooling2D()(normalized)
    with pytest.raises(ValueError, match="expected images → logits"):
        per_modality(keras.Model(inputs, pooled), ("ct", "mr"))
    part = keras.Model(inputs, normalized, name="encoder")
    nested = keras.Model(inputs, keras.layers.Conv2D(2, 3, padding="same")(part(inputs)))
    with pytest.raises(ValueError, match="encoder holds layers"):
        per_modality(nested, ("ct", "mr"))
    with pytest.raises(ValueError, match="setting 'joint': expected ours, chilopod, individual"):
        per_modality(residual_unet(2, width=2, levels=2), ("ct", "mr"), "joint")
    for names in (("ct", "ct"), ("ct", "shared")):
        with pytest.raises(ValueError, match="different plain names, none of them 'shared'"):
            per_modality(residual_unet(2, width=2, levels=2), names)


MY_NET = """
from ummkd_tf.model.architectures import Conv, Filters, Network, StageRow, make_regions


def build():
    def conv(kernel, width):
        return Conv(Filters(per_width=width), kernel, "conv-norm-act")

    cube = (3, 3, 3)
    up = Conv(Filters(per_width=1), (2, 2, 2), "conv-norm-act", up=True)
    stages = (
        StageRow("encoder", (conv(cube, 1),)),
        StageRow("bottom", (conv(cube, 2),), pool=True),
        StageRow("decoder", (up, conv(cube, 1)), skip="encoder"),
        StageRow("output", (Conv(Filters(per_class=1), (1, 1, 1), "conv", use_bias=True),)),
    )
    regions = make_regions([s.name for s in stages], green="bottom", blue=("bottom", "bottom"))
    return Network("my_net", 1, 3, stages, regions, multiple=2, dropout=0.0)
"""


@pytest.mark.usefixtures("eager")
def test_a_table_of_stages_in_a_file(tmp_path: Path, prepared_dataset: Dataset) -> None:
    (tmp_path / "my_net.py").write_text(MY_NET, encoding="utf-8")
    network = f"--network={tmp_path / 'my_net.py'}:build"
    done = program("experiments.train", "--describe", network)
    assert "my_net" in done.stdout and "bottom" in done.stdout, done.stderr
    flags = ("--preset=tiny", "--steps=1", f"--data_dir={prepared_dataset.directory}", f"--run_dir={tmp_path / 'run'}")
    done = program("experiments.train", network, *flags)
    assert done.returncode == 0, done.stderr
    # The run and what is exported hold the whole table: nobody needs the file.
    (tmp_path / "my_net.py").unlink()
    assert program("experiments.export", f"--run_dir={tmp_path / 'run'}", f"--out={tmp_path / 'model'}").returncode == 0
    content = json.loads((tmp_path / "model" / "model.json").read_text(encoding="utf-8"))
    assert UnpairedSegmenter(**content["model"]).network.name == "my_net"
    done = program("experiments.train", "--describe", network)
    assert (done.returncode, "expected dilated2d, unet3d, or a Python file" in done.stderr) == (1, True)


MY_KERAS_NET = """
import keras
from keras import layers


def build(num_classes):
    inputs = keras.Input((None, None, None, 1))
    x = layers.Conv3D(4, 3, padding="same", use_bias=False)(inputs)
    x = layers.Dropout(0.1)(layers.ReLU()(layers.BatchNormalization()(x)))
    return keras.Model(inputs, layers.Conv3D(num_classes, 1)(x), name="one_layer")


def with_code(num_classes):
    model = build(num_classes)
    return keras.Model(model.inputs[0], layers.Lambda(lambda x: 2 * x)(model.outputs[0]))


def of_two_classes():
    return build(2)


def frozen(num_classes):
    model = build(num_classes)
    model.layers[1].trainable = False
    return model
"""


@pytest.mark.usefixtures("eager")
def test_a_keras_model_goes_through_all_programs(tmp_path: Path, prepared_dataset: Dataset) -> None:
    file, run_dir, model = tmp_path / "my_net.py", tmp_path / "run", tmp_path / "model"
    file.write_text(MY_KERAS_NET, encoding="utf-8")
    train = ("--preset=tiny", "--steps=2", f"--data_dir={prepared_dataset.directory}", f"--run_dir={run_dir}")

    def done(name: str, *flags: str) -> str:
        result = program(name, *flags)
        assert result.returncode == 0, result.stderr
        return result.stdout

    # 1·27·4 kernels; gamma and beta of 4; 4·5 + 5 of the last layer.
    assert "trainable parameters: 149; 8 of them each modality's own, 133 shared" in done(
        "experiments.train", "--describe", f"--network={file}:build"
    )
    for function, flags, told in (
        ("with_code", (), "expected Keras's own layers, without Lambda"),
        ("of_two_classes", (), "5 channels out"),
        ("nothing", (), "no function nothing"),
        ("frozen", (), "is not trainable, and a run draws all weights anew: expected trainable layers"),
        ("build", ("--setting=x_shaped",), "a Keras model has no stages: expected ours, chilopod, individual"),
        ("build", ("--normalization=group",), "--normalization=group: a Keras model has its own"),
    ):
        refused = program("experiments.train", f"--network={file}:{function}", *train, *flags)
        assert refused.returncode == 1 and told in refused.stderr, refused.stderr
    for _ in range(2):  # the second continues the same run, which is finished
        done("experiments.train", f"--network={file}:build", *train)
    file.unlink()  # the run and the exported model hold the layers
    done("experiments.evaluate", f"--run_dir={run_dir}")
    done("experiments.export", f"--run_dir={run_dir}", f"--out={model}")
    assert "network: one_layer, setting ours" in (model / "MODEL_CARD.md").read_text(encoding="utf-8")
    trained, _, _ = load_run(run_dir)
    image = np.random.default_rng(0).normal(size=(16, 16, 11)).astype(np.float32)
    for m in trained.modalities:
        expected = Predictor(trained).probabilities(image, m)
        np.testing.assert_allclose(load_model(model).predictor.probabilities(image, m), expected, atol=1e-6)


@pytest.mark.parametrize("setting", KERAS_SETTINGS)
def test_checkpoints_of_a_model_that_drops_out_fit_every_process(setting: str, tmp_path: Path) -> None:
    """Keras counts random states over a process; a checkpoint must be read by one that has made others before."""

    def build(made_before: int) -> UnpairedModel:
        keras.utils.clear_session(free_memory=False)
        for _ in range(made_before):
            keras.random.SeedGenerator(0)
        inputs = keras.Input((8, 8, 3))
        x = keras.layers.Dropout(0.5)(keras.layers.BatchNormalization()(inputs))
        x = keras.layers.Dropout(0.5)(keras.layers.Conv2D(4, 3, padding="same")(x))
        model = per_modality(keras.Model(inputs, keras.layers.Conv2D(2, 3, padding="same")(x)), ("ct", "mr"), setting)
        model.compile(keras.optimizers.Adam(1e-2))
        return model

    first, second = build(0), build(3)
    assert {v.path for v in first.variables} != {v.path for v in second.variables}
    copies = 2 if setting == "individual" else 1
    states = [name for name in first.named_variables() if "seed_generator" in name]
    assert len(states) == 2 * copies and len(set(first.named_variables())) == len(first.variables)
    images = {m: np.ones((2, 8, 8, 3), np.float32) for m in ("ct", "mr")}
    first.optimize(images, {m: np.zeros((2, 8, 8), np.int32) for m in images})
    write_checkpoint(tmp_path / "x.npz", first, Progress(1))
    assert restore(tmp_path / "x.npz", second, with_optimizer=True) == Progress(1)
    for name, variable in second.named_variables().items():
        np.testing.assert_array_equal(variable, first.named_variables()[name])
    # The next step draws the same.
    np.testing.assert_array_equal(first(images, training=True)["ct"], second(images, training=True)["ct"])
    # What is used and not trained needs no random states, so those of a checkpoint may have any names.
    with np.load(tmp_path / "x.npz") as content:
        renamed = {name.replace("dropout", "seed_generator_7"): array for name, array in content.items()}
    np.savez(tmp_path / "old.npz", **renamed)
    restore(tmp_path / "old.npz", build(1), with_optimizer=False)


def test_individual_shares_nothing(network: keras.Model) -> None:
    model = per_modality(network, ("ct", "mr"), "individual")
    assert model.count_params() == 2 * network.count_params()
    paths = [v.path for v in model.variables_of(("ct", "mr"))]
    assert len(set(paths)) == len(paths) and not {v.path for v in model.variables_of(("ct",))} & {
        v.path for v in model.variables_of(("mr",))
    }
    per_modality(network, ("us",), "individual")


def test_a_table_is_checked_and_survives_json() -> None:
    for network in NETWORKS.values():
        again = network_from_dict(json.loads(json.dumps(network_to_dict(network))))
        assert again == replace(network, regions=dict(network.regions), paper_parameters={})
    good = NETWORKS["unet3d"]
    first, *others = good.stages
    up, *_ = good.stages[4].layers
    last = good.stages[-1]
    for wrong, message in (
        (replace(good, stages=(first, first, *others)), "different plain names"),
        (replace(good, stages=(replace(first, skip="output"), *others)), "expected an earlier stage"),
        (replace(good, rank=2), "expected layers with 2 sizes"),
        (replace(good, stages=(first, replace(last, layers=(Block(up), up)))), "expected blocks last"),
        (
            replace(good, stages=(first, replace(last, layers=(up,), skip="encoder_1"))),
            "skip in output: expected",
        ),
        (replace(good, stages=(first, replace(last, layers=(Block(up),) * 2, skip="encoder_1"))), "it joins between"),
        (replace(good, regions={}), "region 'nowhere' covers None: expected stages among encoder_1"),
        (
            replace(good, regions={**good.regions, "everywhere": ("encoder_1", "middle")}),
            r"region 'everywhere' covers \('encoder_1', 'middle'\): expected",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            check_network(wrong)
