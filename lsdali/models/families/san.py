"""SAN: networks of self-attention over small windows (Zhao, Jia and Koltun, CVPR 2020), in plain PyTorch."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsdali.models.blocks import assemble_network, conv1x1, init_kaiming_out
from lsdali.models.student import Network

SHARE = 8
"""Channels that share one attention weight."""


def padded(x: Tensor, kernel: int) -> Tensor:
    """Map [B, H, W, C] -> [B, H + k - 1, W + k - 1, C], mirrored at the border."""
    half = kernel // 2
    return F.pad(x.movedim(-1, 1), (half, half, half, half), mode="reflect").movedim(1, -1)


def windows(x: Tensor, kernel: int) -> list[Tensor]:
    """Map [B, H + k - 1, W + k - 1, ...] -> k k views [B, H, W, ...]: the n-th neighbour of every position, row by row.

    Views, because the backward pass would keep k k copies of each map.
    """
    high, wide = x.shape[1] - kernel + 1, x.shape[2] - kernel + 1
    rows = [x[:, i : i + high] for i in range(kernel)]
    return [row[:, :, j : j + wide] for row in rows for j in range(kernel)]


def attend(values: Tensor, weights: Sequence[Tensor], kernel: int) -> Tensor:
    """Map [B, H, W, C], k k times [B, H, W, C/8] -> [B, H, W, C]: weighted sums; channel c has weights c mod C/8."""
    around = windows(torch.unflatten(padded(values, kernel), 3, (SHARE, -1)), kernel)  # each [B, H, W, 8, C/8]
    # The terms of half precision add up in float32.
    out = torch.zeros_like(around[0], dtype=torch.promote_types(values.dtype, torch.float32))
    for value, weight in zip(around, weights, strict=True):
        out = out + value * weight[:, :, :, None]
    return out.to(values.dtype).flatten(3)


class Attention(nn.Module):
    """Base of both kinds of weights: query, key and value of every position."""

    def __init__(self, inputs: int, relation: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.query = nn.Conv2d(inputs, relation, 1)
        self.key = nn.Conv2d(inputs, relation, 1)
        self.value = nn.Conv2d(inputs, outputs, 1)


class Pairwise(Attention):
    """Weights from the difference of two pixels and of their coordinates (equation 2), softmax over the neighbours.

    The softmax is that of the published code (hszhao/SAN), which has none for patches.
    """

    def __init__(self, inputs: int, relation: int, outputs: int, kernel: int) -> None:
        super().__init__(inputs, relation, outputs, kernel)
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
        """Map [B, C, H, W] -> [B, C', H, W]."""
        at = self.position(coordinates(x)).movedim(1, -1).expand(x.shape[0], -1, -1, -1)  # [B, H, W, 2]
        query, key = (torch.cat([part(x).movedim(1, -1), at], 3) for part in (self.query, self.key))
        around = torch.stack(windows(padded(key, self.kernel), self.kernel), 1)  # [B, k k, H, W, R + 2]
        pairs = (query[:, None] - around).flatten(1, 2)  # the k k maps of an image below each other, as one tall map
        weights = self.weight(pairs.movedim(-1, 1)).movedim(1, -1)  # [B, k k H, W, C'/8]
        each = torch.unflatten(weights, 1, (self.kernel**2, -1)).softmax(1).unbind(1)
        return attend(self.value(x).movedim(1, -1), each, self.kernel).movedim(-1, 1)


class Patchwise(Attention):
    """Weights of a whole window from the position and all of its window at once (equation 4)."""

    def __init__(self, inputs: int, relation: int, outputs: int, kernel: int) -> None:
        super().__init__(inputs, relation, outputs, kernel)
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
        """Map [B, C, H, W] -> [B, C', H, W]."""
        query, key, value = (part(x).movedim(1, -1) for part in (self.query, self.key, self.value))
        # As published, channel r k k + n of the patch is channel r of the n-th neighbour.
        patch = padded(key, self.kernel).unfold(1, self.kernel, 1).unfold(2, self.kernel, 1).flatten(3)
        hidden = torch.cat([query, patch], 3).movedim(-1, 1)
        *layers, last = self.weight
        size = self.kernel**2
        for layer in layers:
            hidden = layer(hidden)
        # As published, output g k k + n weighs the n-th neighbour. Here the layer's few rows are turned, not its maps.
        rows, bias = (torch.unflatten(p, 0, (-1, size)).transpose(0, 1).flatten(0, 1) for p in last.parameters())
        weights = F.conv2d(hidden, rows, bias).movedim(1, -1)  # [B, H, W, k k C'/8]
        return attend(value, torch.unflatten(weights, 3, (size, -1)).unbind(3), self.kernel).movedim(-1, 1)


def coordinates(like: Tensor) -> Tensor:
    """Return [1, 2, H, W] in channels last: column and row of every position, from -1 to 1."""
    high, wide = like.shape[2:]
    columns = torch.linspace(-1, 1, wide, device=like.device, dtype=like.dtype).expand(high, wide)
    rows = torch.linspace(-1, 1, high, device=like.device, dtype=like.dtype)[:, None].expand(high, wide)
    return torch.stack([columns, rows], -1)[None].permute(0, 3, 1, 2)


class AttentionBlock(nn.Module):
    """x + 1x1(relu(BN(attention(relu(BN(x)))))), the attention at a quarter of the width."""

    def __init__(self, attention: type[Attention], channels: int, kernel: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.attention = attention(channels, channels // 16, channels // 4, kernel)
        self.bn2 = nn.BatchNorm2d(channels // 4)
        self.conv = nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] -> [B, C, H, W]."""
        inner = self.attention(F.relu(self.bn1(x)))
        out: Tensor = x + self.conv(F.relu(self.bn2(inner)))
        return out


def san(attention: type[Attention], blocks: tuple[int, ...], classes: int) -> Network:
    """Five stages of 64, 256, 512, 1024, 2048 channels, each after a 2x2 max-pool; from 128 px.

    Windows of 3x3 positions in the first stage and 7x7 in the others; the last map must be 4x4 at least to mirror them.
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
    network = assemble_network(stem, stages, classes)
    init_kaiming_out(network)
    return network


LAYERS = {10: (2, 1, 2, 4, 1), 15: (3, 2, 3, 5, 2), 19: (3, 3, 4, 6, 3)}

NETWORKS: dict[str, Callable[..., Network]] = {
    **{f"san{depth}_pairwise": partial(san, Pairwise, blocks) for depth, blocks in LAYERS.items()},
    **{f"san{depth}_patchwise": partial(san, Patchwise, blocks) for depth, blocks in LAYERS.items()},
}
"""Builders (classes)."""
