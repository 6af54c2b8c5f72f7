"""The benchmark's rivals compute what `UnpairedSegmenter` computes: counts, loss terms and gradients."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from experiments.benchmark.rivals import tensorflow_transcription
from ummkd_tf import UnpairedSegmenter
from ummkd_tf.released.weights import phase_shift_channels, tf1_names

COUNTS = {"dilated2d": 39_342_840, "unet3d": 1_918_741}
TERMS = ("ct_dice_loss", "ct_cross_entropy", "mr_dice_loss", "mr_cross_entropy", "kd_loss", "l2_loss", "loss")
WIDTH, SIZE, BATCH = 2, 16, 2

networks = pytest.mark.parametrize("network", sorted(COUNTS))


def make_batch(network: str) -> tuple[dict[str, NDArray], dict[str, NDArray]]:
    random = np.random.default_rng(1)
    *space, channels = (SIZE, SIZE, 3) if network == "dilated2d" else (SIZE, SIZE, 8, 1)
    images = {m: random.standard_normal((BATCH, *space, channels), dtype=np.float32) for m in ("ct", "mr")}
    labels = {m: random.integers(0, 5, (BATCH, *space)) for m in ("ct", "mr")}
    return images, labels


def make_model(network: str) -> UnpairedSegmenter:
    """Glorot kernels and uneven norms, so that no term is trivial and an exchange of two variables shows."""
    keras.utils.set_random_seed(1)
    model = UnpairedSegmenter(network, "ours", width=WIDTH, dropout=0.0, initialization="glorot")
    random = np.random.default_rng(2)
    for v in model.trainable_variables:
        if v.name != "kernel":
            v.assign(v.numpy() + random.uniform(-0.3, 0.3, v.shape))
    model.compile(keras.optimizers.Adam(1e-4, epsilon=1e-8))
    return model


def our_terms(model: UnpairedSegmenter, images: dict[str, NDArray], labels: dict[str, NDArray]) -> dict[str, float]:
    """Loss terms and norm of the gradient of one training step, which changes the model."""
    return {term: float(value) for term, value in model.optimize(images, labels).items()}


def check(ours: dict[str, float], rival: dict[str, float], gradients: list[NDArray]) -> None:
    for term in TERMS:
        assert rival[term] == pytest.approx(ours[term], rel=1e-4), term
    norm = np.sqrt(sum(np.sum(np.square(g, dtype=np.float64)) for g in gradients))
    assert norm == pytest.approx(ours["gradient_norm"], rel=1e-3)


@networks
def test_tensorflow_counts(network: str) -> None:
    with tf.Graph().as_default():  # which gives no values to the variables
        trainable = tensorflow_transcription.make_graph(network, 16).trainable
    assert sum(int(np.prod(v.shape)) for v in trainable) == COUNTS[network]


@networks
def test_torch_counts(network: str) -> None:
    torch = pytest.importorskip("torch")
    from experiments.benchmark.rivals import pytorch

    with torch.device("meta"):
        assert sum(p.numel() for p in pytorch.make_network(network, 16).parameters()) == COUNTS[network]


@networks
def test_tensorflow_terms(network: str) -> None:
    images, labels = make_batch(network)
    model = make_model(network)
    rival = tensorflow_transcription.TrainingStep(network, WIDTH, images, labels, dropout=0.0)
    names = tf1_names(model)
    assert set(names.values()) == set(rival.graph.variables)
    for v in model.variables:
        if v.path in names:
            value = v.numpy()
            if "/group_10/" in v.path:
                value = value[..., np.argsort(phase_shift_channels(8, value.shape[-1] // 64))]
            rival.graph.variables[names[v.path]].assign(value)
    terms, gradients = rival.gradients(rival.images, rival.labels)
    check(our_terms(model, images, labels), {k: float(x) for k, x in terms.items()}, [np.asarray(g) for g in gradients])
    first, second = (float(rival.optimize(rival.images, rival.labels)) for _ in range(2))
    assert second < first


@networks
def test_torch_terms(network: str) -> None:
    torch = pytest.importorskip("torch")
    from experiments.benchmark.rivals import pytorch

    torch.set_num_threads(1)  # tensors this small only wait for a second thread
    images, labels = make_batch(network)
    model = make_model(network)
    module = pytorch.make_network(network, WIDTH, dropout=0.0)
    load_torch(module, model)
    rival = pytorch.TrainingStep(module, images, labels)
    terms = rival.losses()
    terms["loss"].backward()
    gradients = [p.grad.numpy() for p in module.parameters()]
    check(our_terms(model, images, labels), {k: x.item() for k, x in terms.items()}, gradients)
    first, second = rival(), rival()
    assert second < first


def load_torch(module, model: UnpairedSegmenter) -> None:  # type: ignore[no-untyped-def]
    """Copies the weights in order: both list kernels and norms from input to output."""
    import torch
    from torch import nn

    variables = [v for stage in model.stages for v in stage.trainable_variables]
    convs = [layer for layer in module.modules() if isinstance(layer, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose3d))]
    parameters = {
        "shared/kernel": [c.weight for c in convs],
        "shared/bias": [c.bias for c in convs if c.bias is not None],
        **{f"{m}/{name}": [] for m in ("ct", "mr") for name in ("gamma", "beta")},
    }
    for layer in module.modules():
        if isinstance(layer, nn.ModuleDict):
            for m, norm in layer.items():
                parameters[f"{m}/gamma"].append(norm.weight)
                parameters[f"{m}/beta"].append(norm.bias)
    with torch.no_grad():
        for owner, values in parameters.items():
            for v, parameter in zip([v for v in variables if v.path.endswith(owner)], values, strict=True):
                value = v.numpy()
                if "/group_10/" in v.path:  # from TensorFlow's channel order before the phase shift to PyTorch's
                    value = value.reshape(*value.shape[:-1], 64, -1).swapaxes(-1, -2).reshape(value.shape)
                if value.ndim > 1:
                    value = np.moveaxis(value, (-1, -2), (0, 1))
                parameter.copy_(torch.from_numpy(np.ascontiguousarray(value)))
