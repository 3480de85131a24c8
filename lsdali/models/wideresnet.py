"""Wide ResNets (Zagoruyko and Komodakis 2016)."""

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from lsdali.models.blocks import assemble, conv1x1, conv3x3, init_kaiming_out
from lsdali.models.student import Network


class WideBlock(nn.Module):
    """BN-ReLU-3x3-BN-ReLU-dropout-3x3; the shortcut is x, or a 1x1 convolution of relu(BN(x)) where widths change."""

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.conv2 = conv3x3(outputs, outputs)
        self.shortcut = None if inputs == outputs else conv1x1(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H/stride, W/stride]."""
        active = F.relu(self.bn1(x))
        inner = self.conv2(self.dropout(F.relu(self.bn2(self.conv1(active)))))
        out: Tensor = inner + (x if self.shortcut is None else self.shortcut(active))
        return out


def wide_resnet(depth: int, times: int, classes: int, dropout: float = 0.0) -> Network:
    """Depth 6n+4: 3x3 stem of 16, three stages of n blocks with 16, 32, 64 times `times` channels; from 4 px.

    The last BN and ReLU belong to the last stage. `dropout` acts between the convolutions of a block, as in the paper.
    Convolutions start as N(0, 2 / fan-out), the classifier's bias as 0.
    """
    count = (depth - 4) // 6
    stages: dict[str, tuple[nn.Module, int]] = {}
    inputs = 16
    for number in range(3):
        outputs = 16 * times * 2**number
        layers: list[nn.Module] = [WideBlock(inputs, outputs, 1 if number == 0 else 2, dropout)]
        layers += [WideBlock(outputs, outputs, 1, dropout) for _ in range(count - 1)]
        if number == 2:
            layers += [nn.BatchNorm2d(outputs), nn.ReLU()]
        stages[f"stage{number + 1}"] = (nn.Sequential(*layers), outputs)
        inputs = outputs
    network = assemble(conv3x3(3, 16), stages, classes)
    init_kaiming_out(network)
    nn.init.zeros_(network.classifier.bias)
    return network


SIZES = ((16, 1), (16, 2), (40, 1), (40, 2), (40, 4), (28, 10))

WIDE: dict[str, Callable[..., Network]] = {
    f"wrn_{depth}_{times}": partial(wide_resnet, depth, times) for depth, times in SIZES
}
"""Builders (classes, dropout=...)."""
