"""DenseNets for small images (Huang et al. 2017)."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsdali.models.blocks import assemble_network, conv1x1, conv3x3
from lsdali.models.student import Network


class DenseLayer(nn.Module):
    """BN-ReLU-1x1-BN-ReLU-3x3; its `growth` new channels go in front of those it read."""

    def __init__(self, inputs: int, growth: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv1x1(inputs, 4 * growth)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = conv3x3(4 * growth, growth)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] -> [B, growth + C, H, W]."""
        new = self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))
        return torch.cat([self.dropout(new), x], 1)


def transition(inputs: int) -> list[nn.Module]:
    """Return layers that halve channels and side."""
    return [nn.BatchNorm2d(inputs), nn.ReLU(), conv1x1(inputs, inputs // 2), nn.AvgPool2d(2)]


def densenet(growth: int, blocks: tuple[int, ...], classes: int, dropout: float = 0.0) -> Network:
    """DenseNet-BC with a 3x3 stem of 2 `growth` channels, compression 1/2; from 8 px with four blocks.

    A stage is a dense block and what follows it: the transition, or after the last block BN and ReLU. `dropout` acts
    on the new channels of each layer, as in the paper. Default torch initialisation, as ZLS, OLS and PS-KD used it.
    """
    channels = 2 * growth
    stem = conv3x3(3, channels)
    stages: dict[str, tuple[nn.Module, int]] = {}
    for number, count in enumerate(blocks):
        layers: list[nn.Module] = []
        for _ in range(count):
            layers.append(DenseLayer(channels, growth, dropout))
            channels += growth
        if number < len(blocks) - 1:
            layers += transition(channels)
            channels //= 2
        else:
            layers += [nn.BatchNorm2d(channels), nn.ReLU()]
        stages[f"stage{number + 1}"] = (nn.Sequential(*layers), channels)
    return with_raw_transitions(assemble_network(stem, stages, classes))


def with_raw_transitions(network: Network) -> Network:
    """Say of all stages but the last that they end with a convolution and a pool."""
    network.raw_stages = frozenset(list(network.stages)[:-1])
    return network


class PlainLayer(nn.Module):
    """BN-ReLU-3x3 with bias; its `growth` new channels go behind those it read."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(inputs, eps=1e-3)
        self.conv = nn.Conv2d(inputs, growth, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] -> [B, C + growth, H, W]."""
        return torch.cat([x, self.conv(F.relu(self.bn(x)))], 1)


def plain_densenet(classes: int) -> Network:
    """DenseNet with the stem of ImageNet, without bottlenecks, growth 32, four blocks of four layers; for 96 px.

    As IBLS used it on FashionMNIST (mmaher22/Instance-based-smoothing), for three channels instead of one. Convolutions
    have a bias; transitions halve the channels, and sides upwards. Default torch initialisation.
    """
    growth, channels = 32, 64
    stem = nn.Sequential(
        nn.Conv2d(3, channels, 7, 2, 3), nn.BatchNorm2d(channels, eps=1e-3), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
    )
    stages: dict[str, tuple[nn.Module, int]] = {}
    for number in range(4):
        layers: list[nn.Module] = []
        for _ in range(4):
            layers.append(PlainLayer(channels, growth))
            channels += growth
        if number < 3:
            half = nn.Conv2d(channels, channels // 2, 1)
            layers += [nn.BatchNorm2d(channels, eps=1e-3), nn.ReLU(), half, nn.AvgPool2d(2, ceil_mode=True)]
            channels //= 2
        else:
            layers += [nn.BatchNorm2d(channels), nn.ReLU()]
        stages[f"stage{number + 1}"] = (nn.Sequential(*layers), channels)
    return with_raw_transitions(assemble_network(stem, stages, classes))


NETWORKS: dict[str, Callable[..., Network]] = {
    "cifar_densenet121": partial(densenet, 32, (6, 12, 24, 16)),
    "cifar_densenet121_k12": partial(densenet, 12, (6, 12, 24, 16)),
    "cifar_densenet40": partial(densenet, 12, (6, 6, 6)),
    "densenet_plain": plain_densenet,
}
"""Builders (classes, dropout=...)."""
