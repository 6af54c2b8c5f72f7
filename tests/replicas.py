"""One device against two replicas: the same batches must give the same training.

    python tests/replicas.py toy3d:ours:ct,mr:memory:float32 …

With two logical devices of one process ("mirrored"); or, where TF_CONFIG says so, as one of two workers, of which the
first compares. In a process of its own, because logical devices are made before TensorFlow starts.
"""

from __future__ import annotations

import os
import sys

import keras
import numpy as np
import tensorflow as tf
from toy_networks import toy

from ummkd_tf import UnpairedSegmenter
from ummkd_tf.model import layers
from ummkd_tf.model.elements import Dropout
from ummkd_tf.model.operations import PLAIN
from ummkd_tf.runs import checkpoints
from ummkd_tf.runs.devices import Devices

# Smooth: where leaky ReLU bends, rounding makes another gradient of the same activation, on one device too (3D, joint:
# images changed by 1e-6 move a moment of Adam by 5e-3 in four steps, and two replicas the same moment as much).
layers.leaky_relu = tf.nn.silu
TOYS = {"toy2d": toy(2, 0.0), "toy3d": toy(3, 0.0)}
# At 16², the 2D network would normalize over eight values, and there one device moves away
# from itself by 5e-4 when its images change by 1e-6.
SHAPES = {2: (2, 32, 32, 3), 3: (2, 16, 16, 8, 1)}
STEPS = 5
TOLERANCE = 1e-4


def batch(rank: int, modalities: tuple[str, ...], step: int):
    """Different contrast and different classes in each modality; the second example lacks one."""
    rng = np.random.default_rng(step)
    images, labels = {}, {}
    for number, m in enumerate(modalities):
        x = rng.normal(number, 1 + number, SHAPES[rank]).astype(np.float32)
        images[m] = x
        center = x[..., 1] if rank == 2 else x[..., 0]
        labels[m] = np.digitize(center, [number - 0.5, number + 1]).astype(np.int32)
        labels[m][1:][labels[m][1:] == 2] = 0
    return images, labels


def make(network: str, setting: str, modalities: tuple[str, ...], absent: str) -> UnpairedSegmenter:
    keras.utils.set_random_seed(0)
    kind = TOYS.get(network, network)
    sizes = {"num_classes": 3, "width": 2, "dropout": 0.0, "initialization": "glorot", "fast": False}
    model = UnpairedSegmenter(kind, setting, modalities, **sizes)
    # A large epsilon: with 1e-8, a gradient that is nothing but rounding makes a whole step of either sign, and
    # Adam hides it where a gradient is a multiple of the right one.
    model.compile(keras.optimizers.Adam(1e-3, epsilon=1e-3), absent=absent)
    return model


def state(model: UnpairedSegmenter, devices: Devices) -> dict[str, np.ndarray]:
    """As a checkpoint has it; every replica of this process has the same."""
    found = {}
    for name, v in checkpoints._variables(model).items():
        first, *others = (x.numpy() for x in devices.strategy.experimental_local_results(v.value))
        for other in others:
            np.testing.assert_array_equal(other, first, err_msg=name)
        found[name] = first
    return found


def difference(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> tuple[float, str]:
    """The largest of all variables and its name, as a share of the variable's largest value.

    A value below 0.001 counts as 0.001.
    """
    assert ours.keys() == theirs.keys()
    return max((np.abs(v - theirs[n]).max() / max(np.abs(v).max(), 1e-3), n) for n, v in ours.items())


def train(model: UnpairedSegmenter, devices: Devices) -> tuple[list[dict], dict]:
    """Terms of every step, and the state at last; a step that is not finite changes nothing of it."""
    function = devices.step_function(model)

    def step(images, labels):
        number, count = devices.part
        own = ({m: np.split(a, count)[number] for m, a in arrays.items()} for arrays in (images, labels))
        return {name: float(value) for name, value in function(tuple(own), False)[0].items()}

    terms = [step(*batch(model.network.rank, model.modalities, number)) for number in range(STEPS)]
    last = state(model, devices)
    images, labels = batch(model.network.rank, model.modalities, STEPS)
    images[model.modalities[0]][1] = np.nan  # in the second replica's share alone
    assert np.isnan(step(images, labels)["loss"])
    assert difference(last, state(model, devices))[0] == 0
    return terms, last


def compare(arguments: str, devices: Devices) -> None:
    network, setting, names, absent, precision = arguments.split(":")
    keras.config.set_dtype_policy(precision)
    modalities = tuple(names.split(","))
    with devices.scope():
        several = make(network, setting, modalities, absent)
    found, after = train(several, devices)
    if not devices.chief:
        return
    one = make(network, setting, modalities, absent)
    tf.config.run_functions_eagerly(True)  # a few steps of one device take less time than tracing them
    expected, after_one = train(one, Devices())
    # Adam makes of gradients that are almost 0 steps of either sign: in 16 bits, weights part after a few steps.
    tolerance = TOLERANCE if precision == "float32" else 2e-2
    largest = 0.0
    for step, (a, b) in enumerate(zip(expected, found, strict=True)):
        for name in a:
            np.testing.assert_allclose(b[name], a[name], tolerance, 1e-6, err_msg=f"{name} of step {step}")
            largest = max(largest, abs(b[name] - a[name]) / (abs(a[name]) + 1e-6))
    worst = difference(after_one, after)
    assert precision != "float32" or worst[0] < TOLERANCE, worst
    if network in TOYS:  # the whole batch on the first device, whose statistics all replicas get
        for model in (one, several):
            images = batch(model.network.rank, modalities, 0)[0]
            model.estimate_statistics([{m: tf.constant(x) for m, x in images.items()}])
        worst = max(worst, difference(state(one, Devices()), state(several, devices)))
        assert precision != "float32" or worst[0] < TOLERANCE, worst
    tf.config.run_functions_eagerly(False)
    print(f"same: {arguments} losses {largest:.1e} variables {worst[0]:.1e}", flush=True)


def check_dropout(devices: Devices) -> None:
    """Replicas drop different activations, and their random state stays the same."""
    with devices.scope():
        layer = Dropout(0.5)
        layer.build((1, 100))
    outputs = devices.strategy.run(lambda: layer(tf.ones((1, 1000)), training=True))
    first, second = (x.numpy() != 0 for x in devices.strategy.experimental_local_results(outputs))
    assert 400 < (first == second).sum() < 600


def check_local_batch_norm(devices: Devices) -> None:
    """Every replica normalizes alone, and all have the same running statistics: the means of theirs."""
    with devices.scope():
        model = UnpairedSegmenter(TOYS["toy2d"], "ours", num_classes=3, width=2, dropout=0.0)
        model.compile()
    assert model.operations is PLAIN  # the optimized operations are made for one device
    for layer in model._flatten_layers():
        if isinstance(layer, layers.BatchNorm):
            layer.synchronized = False
    images, labels = batch(2, ("ct", "mr"), 0)
    unit = model.stages[0].units[0]
    outputs = unit.conv.of("ct")(images["ct"])
    devices.step_function(model)((images, labels), False)
    state(model, devices)
    norm = unit.norm.of("ct")
    variances = [np.var(example, (0, 1), ddof=1) for example in outputs]  # unbiased, as TF 1's in 2D
    np.testing.assert_allclose(norm.moving_mean.numpy(), 0.1 * np.mean(outputs, (0, 1, 2)), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(norm.moving_variance.numpy(), 0.9 + 0.1 * np.mean(variances, 0), rtol=1e-4)


if __name__ == "__main__":
    if "TF_CONFIG" in os.environ:
        two = Devices("multi_worker")
        two.check_same("settings", sys.argv, "bug")
    else:
        cpus = tf.config.list_physical_devices("CPU")
        tf.config.set_logical_device_configuration(cpus[0], [tf.config.LogicalDeviceConfiguration()] * 2)
        two = Devices("mirrored")  # one: TensorFlow numbers what is exchanged anew for each strategy of a process
        check_dropout(two)
        check_local_batch_norm(two)
    assert two.replicas == 2
    failed = False
    for setting in sys.argv[1:]:
        try:
            compare(setting, two)
        except AssertionError as error:
            print(f"different: {setting}: {error}", flush=True)
            failed = True
    sys.exit(failed)
