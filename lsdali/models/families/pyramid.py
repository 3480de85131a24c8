"""PyramidNet (Han et al. 2017), with and without ShakeDrop (Yamada et al. 2019)."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from lsdali.models.blocks import PoolPadShortcut, assemble_network, conv1x1, conv3x3, init_kaiming_out, keep_gate
from lsdali.models.student import Network


class ShakeDrop(nn.Module):
    """Multiplies a branch, in a block and batch drawn with probability `drop`, by noise: forward U(-1, 1) a sample,
    backward an independent U(0, 1) a sample. In evaluation, by 1 - drop.

    The draws come from torch's own generator of the device, which a checkpoint holds.
    """

    def __init__(self, drop: float) -> None:
        super().__init__()
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] -> [B, C, H, W]."""
        if not self.training:
            return x * (1 - self.drop)
        keep = keep_gate(self.drop, x)
        noise = torch.rand(2, x.shape[0], 1, 1, 1, device=x.device, dtype=x.dtype)
        alpha, beta = 2 * noise[0] - 1, noise[1]
        # The value is alpha x, the derivative beta.
        shaken = (alpha * x).detach() + beta * (x - x.detach())
        return torch.where(keep, x, shaken)


class PyramidBlock(nn.Module):
    """BN-1x1-BN-ReLU-3x3-BN-ReLU-1x1-BN; the shortcut pools and adds zero channels; no ReLU after the sum."""

    def __init__(self, inputs: int, width: int, stride: int, shake: float) -> None:
        super().__init__()
        outputs = 4 * width
        self.branch = nn.Sequential(
            nn.BatchNorm2d(inputs),
            conv1x1(inputs, width),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            conv3x3(width, width, stride),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            conv1x1(width, outputs),
            nn.BatchNorm2d(outputs),
        )
        self.shake = ShakeDrop(shake) if shake else nn.Identity()
        self.shortcut = PoolPadShortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] -> [B, 4 width, ceil(H/stride), ceil(W/stride)]."""
        out: Tensor = self.shake(self.branch(x)) + self.shortcut(x)
        return out

    def zero_init_last(self) -> None:
        last = self.branch[-1]
        assert isinstance(last, nn.BatchNorm2d)
        nn.init.zeros_(last.weight)


def pyramidnet(shake: float, depth: int, alpha: int, classes: int) -> Network:
    """Bottlenecks whose width grows by alpha / blocks each, from 16; 3x3 stem and BN without ReLU; from 4 px.

    The probability of ShakeDrop in block i of n, counted from 1, is `shake` i / n. The last BN and ReLU belong to
    the last stage. Convolutions start as N(0, 2 / fan-out).
    """
    count = (depth - 2) // 9
    total = 3 * count
    stem = nn.Sequential(conv3x3(3, 16), nn.BatchNorm2d(16))
    stages: dict[str, tuple[nn.Module, int]] = {}
    inputs, done = 16, 0
    for number in range(3):
        blocks: list[nn.Module] = []
        for number_in_stage in range(count):
            done += 1
            width = round(16 + alpha * done / total)
            stride = 2 if number > 0 and number_in_stage == 0 else 1
            blocks.append(PyramidBlock(inputs, width, stride, shake * done / total))
            inputs = 4 * width
        if number == 2:
            blocks += [nn.BatchNorm2d(inputs), nn.ReLU()]
        stages[f"stage{number + 1}"] = (nn.Sequential(*blocks), inputs)
    network = assemble_network(stem, stages, classes)
    init_kaiming_out(network)
    return network


def pyramidnet200_shakedrop(classes: int, drop_path: float = 0.5) -> Network:
    """`drop_path` is the largest probability of ShakeDrop, that of the last block."""
    return pyramidnet(drop_path, 200, 240, classes)


NETWORKS: dict[str, Callable[..., Network]] = {
    "pyramidnet200": partial(pyramidnet, 0.0, 200, 240),
    "pyramidnet200_shakedrop": pyramidnet200_shakedrop,
    "pyramidnet164": partial(pyramidnet, 0.0, 164, 270),
}
"""Builders (classes); those with ShakeDrop take drop_path=..."""
