"""Post-activation ResNets for small images (He et al. 2016a), and those with stochastic depth (Huang et al. 2016)."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsdali.models.blocks import (
    PadShortcut,
    PoolPadShortcut,
    assemble_network,
    conv1x1,
    conv3x3,
    init_kaiming_in,
    init_kaiming_out,
    keep_gate,
)
from lsdali.models.student import Network


def projection(inputs: int, outputs: int, stride: int) -> nn.Module:
    """Return option B: a 1x1 convolution and BN."""
    return nn.Sequential(conv1x1(inputs, outputs, stride), nn.BatchNorm2d(outputs))


Shortcut = Callable[[int, int, int], nn.Module]


class Residual(nn.Module):
    """relu(branch(x) + shortcut(x)); with a drop rate above 0, stochastic depth: one draw a batch and block.

    In training the branch is left out with probability `drop`, and divided by 1 - drop if it stays.
    """

    def __init__(self, shortcut: nn.Module, drop: float) -> None:
        super().__init__()
        self.shortcut = shortcut
        self.drop = drop

    def branch(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] -> [B, C', H/stride, W/stride]."""
        inner = self.branch(x)
        if self.drop and self.training:
            # A product with a gate, not a branch of the program: nobody waits for the draw.
            inner = torch.where(keep_gate(self.drop, x), inner / (1 - self.drop), torch.zeros_like(inner))
        return F.relu(inner + self.shortcut(x))


class Basic(Residual):
    """Two 3x3 convolutions, each with BN."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, shortcut: Shortcut, drop: float = 0.0) -> None:
        same = stride == 1 and inputs == width
        super().__init__(nn.Identity() if same else shortcut(inputs, width, stride), drop)
        self.conv1 = conv3x3(inputs, width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width)
        self.bn2 = nn.BatchNorm2d(width)

    def branch(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return out

    def zero_init_last(self) -> None:
        nn.init.zeros_(self.bn2.weight)


class Bottleneck(Residual):
    """1x1, 3x3 with the stride, 1x1 to four times the width, each with BN."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, shortcut: Shortcut, drop: float = 0.0) -> None:
        outputs = 4 * width
        same = stride == 1 and inputs == outputs
        super().__init__(nn.Identity() if same else shortcut(inputs, outputs, stride), drop)
        self.conv1 = conv1x1(inputs, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv1x1(width, outputs)
        self.bn3 = nn.BatchNorm2d(outputs)

    def branch(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        out: Tensor = self.bn3(self.conv3(x))
        return out

    def zero_init_last(self) -> None:
        nn.init.zeros_(self.bn3.weight)


def resnet(
    block: type[Basic] | type[Bottleneck],
    blocks: tuple[int, ...],
    widths: tuple[int, ...],
    classes: int,
    *,
    shortcut: Shortcut = projection,
    drop_path: float = 0.0,
) -> Network:
    """widths[0] channels in the 3x3 stem, widths[1:] in the stages; all stages but the first halve the map.

    The drop rate of block i of n, counted from 1, is `drop_path` i / n.
    """
    stem = nn.Sequential(conv3x3(3, widths[0]), nn.BatchNorm2d(widths[0]), nn.ReLU())
    stages: dict[str, tuple[nn.Module, int]] = {}
    inputs, done = widths[0], 0
    for number, (count, width) in enumerate(zip(blocks, widths[1:], strict=True)):
        layers: list[nn.Module] = []
        for number_in_stage in range(count):
            done += 1
            stride = 2 if number > 0 and number_in_stage == 0 else 1
            layers.append(block(inputs, width, stride, shortcut, drop_path * done / sum(blocks)))
            inputs = width * block.expansion
        stages[f"stage{number + 1}"] = (nn.Sequential(*layers), inputs)
    return assemble_network(stem, stages, classes)


def wide(block: type[Basic] | type[Bottleneck], blocks: tuple[int, ...], classes: int, width: int = 64) -> Network:
    """The ImageNet nets' four stages of `width` to 8 `width`, with a 3x3 stem and no max-pool; from 8 px.

    Shortcuts are projections with BN; default torch initialisation, as PS-KD and IBLS trained them.
    """
    return resnet(block, blocks, (width, width, 2 * width, 4 * width, 8 * width), classes)


def deep(depth: int, classes: int) -> Network:
    """The 6n+2 nets of He et al. 2016a for CIFAR: widths 16, 32, 64, shortcuts without weights (option A); from 4 px.

    With them no 1x1 convolution has a stride. Convolutions and the classifier start as N(0, 2 / fan-in).
    """
    n = (depth - 2) // 6
    network = resnet(Basic, (n, n, n), (16, 16, 32, 64), classes, shortcut=PadShortcut)
    init_kaiming_in(network)
    return network


def deep_bottleneck(depth: int, classes: int) -> Network:
    """9n+2 layers in bottlenecks that end with 64, 128, 256 channels, shortcuts option B, as OLS has them; from 4 px.

    Convolutions start as N(0, 2 / fan-out).
    """
    n = (depth - 2) // 9
    network = resnet(Bottleneck, (n, n, n), (16, 16, 32, 64), classes)
    init_kaiming_out(network)
    return network


def times_four(depth: int, classes: int) -> Network:
    """The 8x4 and 32x4 nets of the distillation papers (Tian et al. 2020): stem 32, stages 64, 128, 256, option B."""
    n = (depth - 2) // 6
    network = resnet(Basic, (n, n, n), (32, 64, 128, 256), classes)
    init_kaiming_out(network)
    return network


def stochastic_depth(depth: int, classes: int, drop_path: float = 0.5) -> Network:
    """6n+2 layers with stochastic depth (Huang et al. 2016), drop rates rising to `drop_path`; pooled shortcuts."""
    n = (depth - 2) // 6
    network = resnet(Basic, (n, n, n), (16, 16, 32, 64), classes, shortcut=PoolPadShortcut, drop_path=drop_path)
    init_kaiming_in(network)
    return network


NETWORKS: dict[str, Callable[..., Network]] = {
    "cifar_resnet18": partial(wide, Basic, (2, 2, 2, 2)),
    "cifar_resnet34": partial(wide, Basic, (3, 4, 6, 3)),
    "cifar_resnet50": partial(wide, Bottleneck, (3, 4, 6, 3)),
    "cifar_resnet68": partial(wide, Basic, (3, 4, 23, 3)),  # what IBLS's first code calls ResNet101
    "cifar_resnet101": partial(wide, Bottleneck, (3, 4, 23, 3)),
    "cifar_resnet152": partial(wide, Bottleneck, (3, 8, 36, 3)),
    **{f"resnet{depth}": partial(deep, depth) for depth in (20, 32, 44, 56, 110)},
    "resnet56_bottleneck": partial(deep_bottleneck, 56),
    "resnet8x4": partial(times_four, 8),
    "resnet32x4": partial(times_four, 32),
    "resnet110_sd": partial(stochastic_depth, 110),
    "resnet152_sd": partial(stochastic_depth, 152),
}
"""Builders (classes); those of 64 channels take width=..., those with stochastic depth drop_path=..."""
