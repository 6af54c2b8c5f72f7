"""The training step of setting `ours` in PyTorch, written as one would write it there.

Networks, losses and optimizer are those of recipe `paper`; `tests/test_benchmark_rivals.py` compares the numbers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from itertools import pairwise

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from experiments.benchmark.batches import random_batch

MODALITIES = ("ct", "mr")


CLASSES = 5
KD_WEIGHT, TEMPERATURE, L2_WEIGHT = 0.5, 2.0, 1e-4


class NormActivation(nn.Module):
    """One batch normalization per modality (Eq. 1), then leaky ReLU."""

    def __init__(self, kind: Callable[..., nn.Module], channels: int) -> None:
        super().__init__()
        self.norms = nn.ModuleDict({m: kind(channels, eps=1e-3, momentum=0.1) for m in MODALITIES})

    def forward(self, x: Tensor, modality: str) -> Tensor:
        return F.leaky_relu(self.norms[modality](x), 0.2, inplace=True)


class Unit2d(nn.Module):
    """Norm, activation, convolution 3×3, dropout."""

    def __init__(self, inputs: int, outputs: int, dropout: float, dilation: int = 1) -> None:
        super().__init__()
        self.norm = NormActivation(nn.BatchNorm2d, inputs)
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation, bias=False)
        self.dropout = nn.Dropout(dropout, inplace=True)

    def forward(self, x: Tensor, modality: str) -> Tensor:
        return self.dropout(self.conv(self.norm(x, modality)))


class Block2d(nn.Module):
    """Two units plus the identity, whose channels are zero-padded on both sides where they grow."""

    def __init__(self, inputs: int, outputs: int, dropout: float, dilation: int = 1) -> None:
        super().__init__()
        self.first = Unit2d(inputs, outputs, dropout, dilation)
        self.second = Unit2d(outputs, outputs, dropout, dilation)
        self.grown = (outputs - inputs) // 2

    def forward(self, x: Tensor, modality: str) -> Tensor:
        identity = F.pad(x, (0, 0, 0, 0, self.grown, self.grown)) if self.grown else x
        return self.second(self.first(x, modality), modality).add_(identity)


def symmetric_pad(x: Tensor, pad: int) -> Tensor:
    """Mirrors the border including its edge, which `F.pad` cannot for more than one pixel."""
    for axis in (2, 3):
        head, tail = x.narrow(axis, 0, pad), x.narrow(axis, x.shape[axis] - pad, pad)
        x = torch.cat([head.flip(axis), x, tail.flip(axis)], axis)
    return x


class DilatedResNet(nn.Module):
    """Network-1: [N, 3, h, w] to logits [N, classes, h, w]."""

    def __init__(self, width: int, dropout: float = 0.25) -> None:
        super().__init__()
        w, channels = width, width
        self.stem = nn.Conv2d(3, w, 3, padding=1, bias=False)
        groups = [[w], [2 * w], [4 * w] * 2, [8 * w] * 2 + [16 * w] * 4 + [32 * w] * 2]
        self.body = nn.ModuleList()
        for number, group in enumerate(groups):
            if number:
                self.body.append(nn.MaxPool2d(2))
            for outputs in group:
                self.body.append(Block2d(channels, outputs, dropout))
                channels = outputs
        self.body.extend(Block2d(channels, channels, dropout, dilation=2) for _ in range(2))
        self.body.extend(Unit2d(channels, channels, dropout) for _ in range(2))
        self.wide = nn.Conv2d(channels, 64 * 8 * CLASSES, 3, bias=False)
        self.norm = NormActivation(nn.BatchNorm2d, 64 * 8 * CLASSES)
        self.logits = nn.Conv2d(8 * CLASSES, CLASSES, 5, bias=False)

    def forward(self, x: Tensor, modality: str) -> Tensor:
        x = self.stem(x)
        for layer in self.body:
            x = layer(x) if isinstance(layer, nn.MaxPool2d) else layer(x, modality)
        x = self.wide(F.pad(x, (1, 1, 1, 1), mode="replicate"))
        x = F.pixel_shuffle(self.norm(x, modality), 8)
        return self.logits(symmetric_pad(x, 2))


Kernel = tuple[int, int, int]
CUBE: Kernel = (3, 3, 3)
FLAT: Kernel = (3, 3, 1)


class Unit3d(nn.Module):
    """Convolution, norm, activation."""

    def __init__(self, inputs: int, outputs: int, kernel: Kernel) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, kernel, padding="same", bias=False)
        self.norm = NormActivation(nn.BatchNorm3d, outputs)

    def forward(self, x: Tensor, modality: str) -> Tensor:
        return self.norm(self.conv(x), modality)


class Up3d(nn.Module):
    """Transposed convolution that doubles every axis (TensorFlow's SAME: the surplus is cut at the end)."""

    def __init__(self, inputs: int, outputs: int, kernel: Kernel) -> None:
        super().__init__()
        missing = tuple(int(k == 1) for k in kernel)
        self.conv = nn.ConvTranspose3d(inputs, outputs, kernel, stride=2, output_padding=missing, bias=False)
        self.norm = NormActivation(nn.BatchNorm3d, outputs)

    def forward(self, x: Tensor, modality: str) -> Tensor:
        height, width, depth = (2 * size for size in x.shape[2:])
        return self.norm(self.conv(x)[:, :, :height, :width, :depth], modality)


class UNet3d(nn.Module):
    """Network-2 with decoder `paper`: [N, 1, h, w, d] to logits [N, classes, h, w, d]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        w = width
        encoder = [(CUBE, 1, w, 2 * w), (CUBE, 2 * w, 2 * w, 4 * w), (FLAT, 4 * w, 4 * w, 8 * w)]
        encoder.append((FLAT, 8 * w, 8 * w, 16 * w))
        decoder = [((2, 2, 1), 16 * w, 8 * w, FLAT, 8 * w, 8 * w), (FLAT, 8 * w, 8 * w, CUBE, 4 * w, 4 * w)]
        decoder.append(((2, 2, 2), 4 * w, 2 * w, CUBE, 2 * w, 2 * w))
        self.encoder = nn.ModuleList(
            nn.ModuleList(Unit3d(*channels, kernel) for channels in pairwise((inputs, middle, outputs)))
            for kernel, inputs, middle, outputs in encoder
        )
        self.pool = nn.MaxPool3d(2, ceil_mode=True)
        self.decoder = nn.ModuleList(
            nn.ModuleList(
                [Up3d(inputs, up, up_kernel), Unit3d(up + skip, outputs, kernel), Unit3d(outputs, outputs, kernel)]
            )
            for up_kernel, inputs, up, kernel, outputs, skip in (
                (*row[:-1], skip) for row, skip in zip(decoder, (8 * w, 4 * w, 2 * w), strict=True)
            )
        )
        self.logits = nn.Conv3d(2 * w, CLASSES, 1)

    def forward(self, x: Tensor, modality: str) -> Tensor:
        skips: list[Tensor] = []
        for level, units in enumerate(self.encoder):
            x = self.pool(x) if level else x
            for unit in units:
                x = unit(x, modality)
            skips.append(x)
        for (up, *units), skip in zip(self.decoder, reversed(skips[:-1]), strict=True):
            x = torch.cat([up(x, modality), skip], 1)
            for unit in units:
                x = unit(x, modality)
        return self.logits(x)


def segmentation_losses(logits: Tensor, one_hot: Tensor) -> tuple[Tensor, Tensor]:
    """Soft Dice and weighted cross-entropy of one modality, on [voxels, classes]."""
    probabilities = logits.softmax(1)
    counts = one_hot.sum(0)
    union = probabilities.square().sum(0) + counts
    dice = -(2 * (probabilities * one_hot).sum(0) / (union + 1e-7)).mean()
    weights = 1 - counts / counts.sum()
    cross_entropy = -(weights * one_hot * probabilities.clamp(0.005, 1).log()).sum(1).mean()
    return dice, cross_entropy


def distillation_loss(logits: list[Tensor], one_hot: list[Tensor]) -> Tensor:
    """Eq. 2–4, on [voxels, classes] of the two modalities."""
    a, b = (
        (y.T @ x / (y.sum(0)[:, None] + 1e-6) / TEMPERATURE).log_softmax(1)
        for x, y in zip(logits, one_hot, strict=True)
    )
    return ((a.exp() - b.exp()) * (a - b)).sum(1).mean()


def make_network(network: str, width: int, dropout: float = 0.25) -> nn.Module:
    """A network with the released initialization; `dropout` is the 2D network's."""
    module = DilatedResNet(width, dropout) if network == "dilated2d" else UNet3d(width)
    for layer in module.modules():
        if isinstance(layer, nn.ConvTranspose3d):
            nn.init.normal_(layer.weight, std=0.01)
        elif isinstance(layer, (nn.Conv2d, nn.Conv3d)):
            nn.init.trunc_normal_(layer.weight, std=0.01, a=-0.02, b=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return module


class TrainingStep:
    """Network, optimizer and one fixed batch.

    Args:
        module: From `make_network`.
        images: Modality → [N, *space, channels].
        labels: Modality → integer class maps [N, *space].
        amp: Convolutions in bfloat16 (automatic mixed precision).
        compiled: Network compiled with `torch.compile`.
    """

    def __init__(
        self,
        module: nn.Module,
        images: Mapping[str, NDArray],
        labels: Mapping[str, NDArray],
        *,
        amp: bool = False,
        compiled: bool = False,
    ) -> None:
        # Settings: oneDNN (on by default), channels-last, all cores, in-place activations, fused Adam (fastest of the
        # three by a little). Not torch.compile: 27-52 s to compile, then 4-5 % off a small 3D step; on the 2D network
        # it fails at the backward pass of the replicate padding (PyTorch 2.13, CPU).
        layout = torch.channels_last if images["ct"].ndim == 4 else torch.channels_last_3d
        device, self.amp = "cuda" if torch.cuda.is_available() else "cpu", amp
        self.module = module.to(device, memory_format=layout).train()
        self.network = torch.compile(self.module) if compiled else self.module
        self.images = {
            m: torch.from_numpy(x).movedim(-1, 1).to(device).contiguous(memory_format=layout) for m, x in images.items()
        }
        self.labels = {m: torch.from_numpy(y).to(device).long() for m, y in labels.items()}
        self.optimizer = torch.optim.Adam(self.module.parameters(), lr=1e-4, eps=1e-8, fused=True)

    def losses(self) -> dict[str, Tensor]:
        """Every term of Eq. 5."""
        logits, one_hot, terms = [], [], {}
        total: Tensor | float = 0.0
        for m in MODALITIES:
            with torch.autocast(self.images[m].device.type, torch.bfloat16, enabled=self.amp):
                of_m = self.network(self.images[m], m)
            logits.append(of_m.float().movedim(1, -1).flatten(end_dim=-2))
            one_hot.append(F.one_hot(self.labels[m].flatten(), CLASSES).float())
            terms[f"{m}_dice_loss"], terms[f"{m}_cross_entropy"] = segmentation_losses(logits[-1], one_hot[-1])
            total = total + terms[f"{m}_dice_loss"] + terms[f"{m}_cross_entropy"]
        terms["kd_loss"] = distillation_loss(logits, one_hot)
        terms["l2_loss"] = torch.stack([p.square().sum() for p in self.module.parameters()]).sum()
        terms["loss"] = total + 0.5 * KD_WEIGHT * terms["kd_loss"] + L2_WEIGHT * terms["l2_loss"]
        return terms

    def __call__(self) -> float:
        """One training step; returns its loss."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.losses()["loss"]
        loss.backward()
        self.optimizer.step()
        return loss.item()


def make_step(
    network: str, batch_size: int, size: int, width: int, *, amp: bool = False, compiled: bool = False
) -> Callable[[], float]:
    """A training step on random images and labels.

    Args:
        network: "dilated2d" or "unet3d".
        batch_size: Examples per modality.
        size: Rows and columns; the 3D network's depth is 8.
        width: Base width w.
        amp: As `TrainingStep`.
        compiled: As `TrainingStep`.
    """
    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    images, labels = random_batch(network, batch_size, size, tuple(MODALITIES))
    return TrainingStep(make_network(network, width), images, labels, amp=amp, compiled=compiled)
