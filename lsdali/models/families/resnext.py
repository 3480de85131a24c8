"""ResNeXt-29 for small images (Xie et al. 2017)."""

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from lsdali.models.blocks import assemble_network, conv1x1, conv3x3, init_kaiming_in, init_kaiming_out
from lsdali.models.student import Network


class NextBlock(nn.Module):
    """1x1, grouped 3x3 with the stride, 1x1, each with BN; ReLU after the sum."""

    def __init__(self, inputs: int, inner: int, outputs: int, stride: int, groups: int) -> None:
        super().__init__()
        self.conv1 = conv1x1(inputs, inner)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = conv3x3(inner, inner, stride, groups)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = conv1x1(inner, outputs)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs or stride != 1:
            self.shortcut = nn.Sequential(conv1x1(inputs, outputs, stride), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] -> [B, C', H/stride, W/stride]."""
        inner = F.relu(self.bn1(self.conv1(x)))
        inner = F.relu(self.bn2(self.conv2(inner)))
        return F.relu(self.bn3(self.conv3(inner)) + self.shortcut(x))

    def zero_init_last(self) -> None:
        nn.init.zeros_(self.bn3.weight)


def resnext_stages(groups: int, width: int, outputs: int) -> dict[str, tuple[nn.Module, int]]:
    """Build three stages of three blocks; inner and outer width double from stage to stage."""
    stages: dict[str, tuple[nn.Module, int]] = {}
    inputs = 64
    for number in range(3):
        inner, wide = groups * width * 2**number, outputs * 2**number
        layers = [NextBlock(inputs, inner, wide, 1 if number == 0 else 2, groups)]
        layers += [NextBlock(wide, inner, wide, 1, groups) for _ in range(2)]
        stages[f"stage{number + 1}"] = (nn.Sequential(*layers), wide)
        inputs = wide
    return stages


def published_resnext(groups: int, width: int, classes: int) -> Network:
    """The paper's net, as PS-KD trained it: 3x3 stem of 64, stages of 256, 512, 1024 channels; from 4 px.

    Convolutions start as N(0, 2 / fan-out), the classifier as N(0, 2 / fan-in) with bias 0.
    """
    stem = nn.Sequential(conv3x3(3, 64), nn.BatchNorm2d(64), nn.ReLU())
    network = assemble_network(stem, resnext_stages(groups, width, 256), classes)
    init_kaiming_out(network)
    init_kaiming_in(network.classifier)
    return network


def narrow(groups: int, width: int, classes: int) -> Network:
    """As OLS trained it: a 1x1 stem of 64 channels, and blocks that only double their inner width; from 4 px.

    Default torch initialisation.
    """
    stem = nn.Sequential(conv1x1(3, 64), nn.BatchNorm2d(64), nn.ReLU())
    return assemble_network(stem, resnext_stages(groups, width, 2 * groups * width), classes)


NETWORKS: dict[str, Callable[..., Network]] = {
    "resnext29_8x64d": partial(published_resnext, 8, 64),
    "resnext29_2x64d": partial(narrow, 2, 64),
    "resnext29_4x64d": partial(narrow, 4, 64),
    "resnext29_32x4d": partial(narrow, 32, 4),
}
"""Builders (classes)."""
