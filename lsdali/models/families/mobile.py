"""MobileNetV2 and ShuffleNetV2 for small images, as the distillation papers and OLS have them."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lsdali.models.blocks import assemble_network, conv1x1, conv3x3, init_kaiming_out
from lsdali.models.student import Network


def conv_bn(convolution: nn.Conv2d, *, relu: bool = True) -> nn.Sequential:
    layers = [convolution, nn.BatchNorm2d(convolution.out_channels)]
    return nn.Sequential(*layers, nn.ReLU()) if relu else nn.Sequential(*layers)


def depthwise(channels: int, stride: int) -> nn.Conv2d:
    return conv3x3(channels, channels, stride, groups=channels)


class InvertedResidual(nn.Module):
    """Sandler et al. 2018: 1x1 to `times` the width, depthwise 3x3, linear 1x1; x is added if the shape stays."""

    def __init__(self, inputs: int, outputs: int, stride: int, times: int) -> None:
        super().__init__()
        inner = inputs * times
        self.branch = nn.Sequential(
            conv_bn(conv1x1(inputs, inner)),
            conv_bn(depthwise(inner, stride)),
            conv_bn(conv1x1(inner, outputs), relu=False),
        )
        self.add = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] -> [B, C', H/stride, W/stride]."""
        out: Tensor = self.branch(x)
        return x + out if self.add else out


# times, channels at full width, blocks, stride; a new stage begins at each stride of 2 and with the last 1x1
GROUPS = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def mobilenet_v2_half(classes: int) -> Network:
    """MobileNetV2 at half width with fewer strides (2 in the stem, then 1, 2, 2, 2); from 16 px.

    ReLU, not ReLU6. Stage 4 ends with the 1x1 convolution to 1280 channels that the classifier reads. Convolutions
    start as N(0, 2 / fan-out), the classifier as N(0, 0.01 squared).
    """
    stem = conv_bn(conv3x3(3, 16, 2))
    stages: list[tuple[list[nn.Module], int]] = []
    inputs = 16
    for times, full, count, stride in GROUPS:
        outputs = full // 2
        blocks = [
            InvertedResidual(inputs if n == 0 else outputs, outputs, stride if n == 0 else 1, times)
            for n in range(count)
        ]
        if stride == 2 or not stages:
            stages.append(([], outputs))
        stages[-1] = ([*stages[-1][0], *blocks], outputs)
        inputs = outputs
    stages[-1] = ([*stages[-1][0], conv_bn(conv1x1(inputs, 1280))], 1280)
    named = {f"stage{n + 1}": (nn.Sequential(*layers), width) for n, (layers, width) in enumerate(stages)}
    network = assemble_network(stem, named, classes)
    init_kaiming_out(network)
    nn.init.normal_(network.classifier.weight, std=0.01)
    nn.init.zeros_(network.classifier.bias)
    return network


class ShuffleUnit(nn.Module):
    """Ma et al. 2018: half of the channels pass, the other half go through 1x1, depthwise 3x3, 1x1; then a shuffle."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = shuffle_branch(channels // 2, channels // 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] -> [B, C, H, W]."""
        kept, changed = x.chunk(2, 1)
        return shuffle(kept, self.branch(changed))


class ShuffleDown(nn.Module):
    """Halves the side: both branches read every channel and give half of the new ones; then a shuffle."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.left = nn.Sequential(
            conv_bn(depthwise(inputs, 2), relu=False),
            conv_bn(conv1x1(inputs, outputs // 2)),
        )
        self.right = shuffle_branch(inputs, outputs // 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] -> [B, C', H/2, W/2]."""
        return shuffle(self.left(x), self.right(x))


def shuffle_branch(inputs: int, width: int, stride: int) -> nn.Module:
    return nn.Sequential(
        conv_bn(conv1x1(inputs, width)),
        conv_bn(depthwise(width, stride), relu=False),
        conv_bn(conv1x1(width, width)),
    )


def shuffle(left: Tensor, right: Tensor) -> Tensor:
    """Map two [B, C, H, W] -> [B, 2 C, H, W], their channels in turn; one copy, in channels last."""
    return torch.stack([left.movedim(1, -1), right.movedim(1, -1)], -1).flatten(-2).movedim(-1, 1)


def shufflenet_v2(classes: int) -> Network:
    """ShuffleNetV2 1x (Ma et al. 2018) with a 1x1 stem of 24 channels and no max-pool; from 8 px.

    Stage 3 ends with the 1x1 convolution to 1024 channels that the classifier reads. Default torch initialisation.
    """
    stem = conv_bn(conv1x1(3, 24))
    stages: dict[str, tuple[nn.Module, int]] = {}
    inputs = 24
    for number, (outputs, count) in enumerate(((116, 3), (232, 7), (464, 3))):
        layers: list[nn.Module] = [ShuffleDown(inputs, outputs), *(ShuffleUnit(outputs) for _ in range(count))]
        inputs = outputs
        if number == 2:
            layers.append(conv_bn(conv1x1(outputs, 1024)))
            outputs = 1024
        stages[f"stage{number + 1}"] = (nn.Sequential(*layers), outputs)
    return assemble_network(stem, stages, classes)


NETWORKS: dict[str, Callable[..., Network]] = {
    "cifar_mobilenet_v2_half": mobilenet_v2_half,
    "cifar_shufflenet_v2": shufflenet_v2,
}
"""Builders (classes)."""
