"""Networks for small images, as the self-distillation papers use them on CIFAR and TinyImageNet."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from lsdali.models.student import Network


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)


class PreActBlock(nn.Module):
    """Pre-activation block (He et al. 2016b), but the shortcut reads relu(BN(x)), never x.

    So the PS-KD and ZLS code have it; the usual block adds x itself where the shape stays.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = conv3x3(outputs, outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H/stride, W/stride]."""
        active = F.relu(self.bn1(x))
        inner = F.relu(self.bn2(self.conv1(active)))
        out: Tensor = self.conv2(inner) + self.shortcut(active)
        return out


def preact_resnet18(classes: int, width: int = 64) -> Network:
    """Stem of one 3x3 convolution, four stages of two blocks, `width` to 8 `width` channels; from 8 px.

    The raw sum of the last block is pooled: no BatchNorm and no ReLU after it. Default torch initialisation.
    """
    stem = nn.Sequential(conv3x3(3, width), nn.BatchNorm2d(width), nn.ReLU())
    stages: dict[str, nn.Module] = {}
    channels: dict[str, int] = {}
    inputs = width
    for number in range(4):
        name, outputs, stride = f"stage{number + 1}", width * 2**number, 1 if number == 0 else 2
        stages[name] = nn.Sequential(PreActBlock(inputs, outputs, stride), PreActBlock(outputs, outputs, 1))
        channels[name] = inputs = outputs
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1))
    return Network(stem, stages, pool, nn.Linear(inputs, classes), channels)


CIFAR: dict[str, Callable[..., Network]] = {"preact_resnet18": preact_resnet18}
"""Builders (classes, width=...)."""
