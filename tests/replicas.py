"""One device against two replicas: the same batches must give the same training.

Run by test_replicas.py in a process of its own, because logical devices are made before TensorFlow starts.
"""

from __future__ import annotations

import sys

import keras
import numpy as np
import tensorflow as tf

from ummkd_tf import UnpairedSegmenter
from ummkd_tf.runs import checkpoints
from ummkd_tf.runs.devices import Devices

SHAPES = {"unet3d": (16, 16, 8, 1), "dilated2d": (16, 16, 3)}
STEPS = 5
TOLERANCE = 1e-4


def batch(network: str, modalities: tuple[str, ...], step: int):
    """Different contrast and different classes in each modality; the second example lacks one."""
    rng = np.random.default_rng(step)
    images, labels = {}, {}
    for number, m in enumerate(modalities):
        x = rng.normal(number, 1 + number, (2, *SHAPES[network])).astype(np.float32)
        images[m] = x
        center = x[..., 0] if network == "unet3d" else x[..., 1]
        labels[m] = np.digitize(center, [number - 0.5, number + 1]).astype(np.int32)
        labels[m][1:][labels[m][1:] == 2] = 0
    return images, labels


def make(network: str, setting: str, modalities: tuple[str, ...], absent: str) -> UnpairedSegmenter:
    keras.utils.set_random_seed(0)
    model = UnpairedSegmenter(
        network, setting, modalities, num_classes=3, width=2, dropout=0.0, initialization="glorot", fast=False
    )
    model.compile(keras.optimizers.Adam(1e-3, epsilon=1e-8), absent=absent)
    return model


def state(model: UnpairedSegmenter) -> dict[str, np.ndarray]:
    """As a checkpoint has it."""
    return {name: v.numpy() for name, v in checkpoints._variables(model).items()}


def differences(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> dict[str, float]:
    """By variable, as a share of the largest value; a value near 0 counts as 0.001."""
    assert ours.keys() == theirs.keys()
    return {name: np.abs(v - theirs[name]).max() / (np.abs(v).max() + 1e-3) for name, v in ours.items()}


def train(model: UnpairedSegmenter, network: str, modalities: tuple[str, ...], devices: Devices) -> list[dict]:
    """Terms of every step."""
    step = devices.step_function(model)
    terms = [step(batch(network, modalities, number), False)[0] for number in range(STEPS)]
    return [{name: float(value) for name, value in of_step.items()} for of_step in terms]


def compare(network: str, setting: str, modalities: tuple[str, ...], absent: str, devices: Devices) -> None:
    one = make(network, setting, modalities, absent)
    expected = train(one, network, modalities, Devices())
    with devices.scope():
        two = make(network, setting, modalities, absent)
    found = train(two, network, modalities, devices)
    for step, (a, b) in enumerate(zip(expected, found, strict=True)):
        for name in a:
            np.testing.assert_allclose(b[name], a[name], TOLERANCE, 1e-6, err_msg=f"{name} of step {step}")
    for name, difference in differences(state(one), state(two)).items():
        assert difference < TOLERANCE, (name, difference)
    print(f"same: {network} {setting} {','.join(modalities)} {absent}", flush=True)


if __name__ == "__main__":
    cpus = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpus[0], [tf.config.LogicalDeviceConfiguration()] * 2)
    mirrored = Devices("mirrored")  # once: TensorFlow numbers what is exchanged anew for each strategy of a process
    assert mirrored.replicas == 2
    for arguments in sys.argv[1:]:
        network, setting, modalities, absent = arguments.split(":")
        compare(network, setting, tuple(modalities.split(",")), absent, mirrored)
