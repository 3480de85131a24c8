"""SAN: networks of self-attention over small windows (Zhao, Jia and Koltun, CVPR 2020), in plain PyTorch."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsdali.models.blocks import assemble, conv1x1, init_kaiming_out
from lsdali.models.student import Network

SHARE = 8
"""Channels that share one attention weight."""


def windows(x: Tensor, kernel: int) -> Tensor:
    """[B, C, H, W] -> [B, C, k k, H W]: the window around every place, mirrored at the border."""
    half = kernel // 2
    padded = F.pad(x, (half, half, half, half), mode="reflect")
    return F.unfold(padded, kernel).view(*x.shape[:2], kernel * kernel, -1)


def attend(values: Tensor, weights: Tensor, kernel: int) -> Tensor:
    """[B, C, H, W], [B, C/8, k k, H W] -> [B, C, H, W]: weighted sums of windows; channel c has weights c mod C/8."""
    around = windows(values, kernel)
    grouped = around.view(values.shape[0], SHARE, -1, *around.shape[2:])  # [B, 8, C/8, k k, H W]
    return (grouped * weights[:, None]).sum(3).view(values.shape)


class Pairwise(nn.Module):
    """Weights from the difference of two places and of their positions, for each pair by itself (equation 2)."""

    def __init__(self, inputs: int, relation: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.query = nn.Conv2d(inputs, relation, 1)
        self.key = nn.Conv2d(inputs, relation, 1)
        self.value = nn.Conv2d(inputs, outputs, 1)
        self.position = nn.Conv2d(2, 2, 1)
        self.weight = nn.Sequential(
            nn.BatchNorm2d(relation + 2),
            nn.ReLU(),
            conv1x1(relation + 2, relation),
            nn.BatchNorm2d(relation),
            nn.ReLU(),
            nn.Conv2d(relation, outputs // SHARE, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H, W]."""
        places = self.position(positions(x))  # [1, 2, H, W]
        apart = self.query(x).flatten(2)[:, :, None] - windows(self.key(x), self.kernel)
        moved = places.flatten(2)[:, :, None] - windows(places, self.kernel)
        pairs = torch.cat([apart, moved.expand(x.shape[0], -1, -1, -1)], 1)  # [B, R + 2, k k, H W]
        return attend(self.value(x), self.weight(pairs), self.kernel)


class Patchwise(nn.Module):
    """Weights of a whole window from the place and all of its window at once (equation 4)."""

    def __init__(self, inputs: int, relation: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.query = nn.Conv2d(inputs, relation, 1)
        self.key = nn.Conv2d(inputs, relation, 1)
        self.value = nn.Conv2d(inputs, outputs, 1)
        seen, weights = relation * (kernel * kernel + 1), outputs // SHARE
        self.weight = nn.Sequential(
            nn.BatchNorm2d(seen),
            nn.ReLU(),
            conv1x1(seen, weights),
            nn.BatchNorm2d(weights),
            nn.ReLU(),
            nn.Conv2d(weights, weights * kernel * kernel, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H, W]."""
        patch = windows(self.key(x), self.kernel).reshape(x.shape[0], -1, *x.shape[2:])
        weights = self.weight(torch.cat([self.query(x), patch], 1))  # [B, C'/8 k k, H, W]
        weights = weights.reshape(x.shape[0], -1, self.kernel**2, x.shape[2] * x.shape[3])
        return attend(self.value(x), weights, self.kernel)


Attention = type[Pairwise] | type[Patchwise]


def positions(like: Tensor) -> Tensor:
    """[1, 2, H, W]: column and row of every place, from -1 to 1."""
    high, wide = like.shape[2:]
    columns = torch.linspace(-1, 1, wide, device=like.device, dtype=like.dtype).expand(high, wide)
    rows = torch.linspace(-1, 1, high, device=like.device, dtype=like.dtype)[:, None].expand(high, wide)
    return torch.stack([columns, rows])[None]


class AttentionBlock(nn.Module):
    """x + 1x1(relu(BN(attention(relu(BN(x)))))), the attention at a quarter of the width."""

    def __init__(self, attention: Attention, channels: int, kernel: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.attention = attention(channels, channels // 16, channels // 4, kernel)
        self.bn2 = nn.BatchNorm2d(channels // 4)
        self.conv = nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        inner = self.attention(F.relu(self.bn1(x)))
        out: Tensor = x + self.conv(F.relu(self.bn2(inner)))
        return out


def san(attention: Attention, blocks: tuple[int, ...], classes: int) -> Network:
    """Five stages of 64, 256, 512, 1024, 2048 channels, each after a 2x2 max-pool; from 128 px.

    Windows of 3x3 places in the first stage and 7x7 in the others; the last map must be 4x4 at least to mirror them.
    Convolutions start as N(0, 2 / fan-out), our choice; the paper names none.
    """
    stages: dict[str, tuple[nn.Module, int]] = {}
    inputs = 64
    for number, (count, width) in enumerate(zip(blocks, (64, 256, 512, 1024, 2048), strict=True)):
        kernel = 7 if number else 3
        layers: list[nn.Module] = [nn.MaxPool2d(2), conv1x1(inputs, width)]
        layers += [AttentionBlock(attention, width, kernel) for _ in range(count)]
        layers += [nn.BatchNorm2d(width), nn.ReLU()]
        stages[f"stage{number + 1}"] = (nn.Sequential(*layers), width)
        inputs = width
    stem = nn.Sequential(conv1x1(3, 64), nn.BatchNorm2d(64), nn.ReLU())
    network = assemble(stem, stages, classes)
    init_kaiming_out(network)
    return network


LAYERS = {10: (2, 1, 2, 4, 1), 15: (3, 2, 3, 5, 2), 19: (3, 3, 4, 6, 3)}

SAN: dict[str, Callable[..., Network]] = {
    **{f"san{depth}_pairwise": partial(san, Pairwise, blocks) for depth, blocks in LAYERS.items()},
    **{f"san{depth}_patchwise": partial(san, Patchwise, blocks) for depth, blocks in LAYERS.items()},
}
"""Builders (classes)."""
