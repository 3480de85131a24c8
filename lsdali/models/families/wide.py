"""Wide ResNets (Zagoruyko and Komodakis 2016)."""

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from lsdali.models.blocks import assemble_network, conv1x1, conv3x3, init_kaiming_out
from lsdali.models.student import Network


class WideBlock(nn.Module):
    """BN-ReLU-3x3-BN-ReLU-dropout-3x3; the shortcut is x, or a 1x1 convolution of relu(BN(x)) if widths change."""

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.conv2 = conv3x3(outputs, outputs)
        self.shortcut = None if inputs == outputs else conv1x1(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] -> [B, C', H/stride, W/stride]."""
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
    network = assemble_network(conv3x3(3, 16), stages, classes)
    init_kaiming_out(network)
    nn.init.zeros_(network.classifier.bias)
    return network


class BiasedBlock(nn.Module):
    """BN-ReLU-3x3-BN-ReLU-3x3 with the stride in the second convolution; if widths change, a 1x1 of x itself."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, stride, padding=1)
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] -> [B, C', H/stride, W/stride]."""
        inner = self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))
        out: Tensor = inner + self.shortcut(x)
        return out


def resnet32_wide(classes: int) -> Network:
    """What IBLS (Maher and Kull 2021) trained under this name: WRN-34-10 with its own block, all convolutions biased.

    The last BN has momentum 0.9 (in torch's sense: it nearly forgets all batches but the last) and belongs to the last
    stage with its ReLU. Default torch initialisation; from 4 px.
    """
    stages: dict[str, tuple[nn.Module, int]] = {}
    inputs = 16
    for number, outputs in enumerate((160, 320, 640)):
        layers: list[nn.Module] = [BiasedBlock(inputs, outputs, 1 if number == 0 else 2)]
        layers += [BiasedBlock(outputs, outputs, 1) for _ in range(4)]
        if number == 2:
            layers += [nn.BatchNorm2d(outputs, momentum=0.9), nn.ReLU()]
        stages[f"stage{number + 1}"] = (nn.Sequential(*layers), outputs)
        inputs = outputs
    return assemble_network(nn.Conv2d(3, 16, 3, padding=1), stages, classes)


SIZES = ((16, 1), (16, 2), (40, 1), (40, 2), (40, 4), (28, 10))

NETWORKS: dict[str, Callable[..., Network]] = {
    **{f"wrn_{depth}_{times}": partial(wide_resnet, depth, times) for depth, times in SIZES},
    "resnet32_wide": resnet32_wide,
}
"""Builders (classes, dropout=...); resnet32_wide takes no dropout."""
