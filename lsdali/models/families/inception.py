"""Inception-v4 (Szegedy et al. 2017) as IBLS trained it on CIFAR: layers and their order are those of its code.

From the paper it differs in the stem without strides, the border of the second reduction, the order of the 7x1 and 1x7
(3x1 and 1x3) convolutions, and average pools that count the zeros of the border.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lsdali.models.blocks import assemble_network
from lsdali.models.student import Network

Kernel = int | tuple[int, int]
ConvSpec = tuple[int, Kernel]
"""Channels and kernel of a convolution."""


class Branches(nn.Module):
    """Modules that read the same map; their channels are put behind each other."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] -> [B, C', H', W']."""
        return torch.cat([branch(x) for branch in self.branches], 1)


def conv(inputs: int, outputs: int, kernel: Kernel, stride: int = 1, padding: str | int = "same") -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def chain(inputs: int, *steps: ConvSpec) -> nn.Sequential:
    """Return convolutions one behind the other that keep the side."""
    layers: list[nn.Module] = []
    for outputs, kernel in steps:
        layers.append(conv(inputs, outputs, kernel))
        inputs = outputs
    return nn.Sequential(*layers)


def pooled(inputs: int, outputs: int) -> nn.Sequential:
    average = nn.AvgPool2d(3, 1, padding=1)
    return nn.Sequential(average, conv(inputs, outputs, 1))


def stem() -> nn.Module:
    """Return 384 channels, the side less 2."""
    return nn.Sequential(
        conv(3, 32, 3, padding=0),
        chain(32, (32, 3), (64, 3)),
        Branches(conv(64, 96, 3), nn.MaxPool2d(3, 1, padding=1)),
        Branches(chain(160, (64, 1), (64, (7, 1)), (64, (1, 7)), (96, 3)), chain(160, (64, 1), (96, 3))),
        Branches(nn.MaxPool2d(3, 1, padding=1), conv(192, 192, 3)),
    )


def block_a() -> nn.Module:
    return Branches(
        chain(384, (64, 1), (96, 3), (96, 3)),
        chain(384, (64, 1), (96, 3)),
        chain(384, (96, 1)),
        pooled(384, 96),
    )


def down_a() -> nn.Module:
    """Return 384 -> 1024 channels, half the side."""
    return Branches(
        nn.Sequential(chain(384, (192, 1), (224, 3)), conv(224, 256, 3, 2, 0)),
        conv(384, 384, 3, 2, 0),
        nn.MaxPool2d(3, 2),
    )


def block_b() -> nn.Module:
    return Branches(
        chain(1024, (384, 1)),
        chain(1024, (192, 1), (224, (1, 7)), (256, (7, 1))),
        chain(1024, (192, 1), (192, (1, 7)), (224, (7, 1)), (224, (1, 7)), (256, (7, 1))),
        pooled(1024, 128),
    )


def down_b() -> nn.Module:
    """Return 1024 -> 1536 channels, half the side."""
    return Branches(
        nn.Sequential(conv(1024, 192, 1), conv(192, 192, 3, 2, 1)),
        nn.Sequential(chain(1024, (256, 1), (256, (1, 7)), (320, (7, 1))), conv(320, 320, 3, 2, 1)),
        nn.MaxPool2d(3, 2, padding=1),
    )


def block_c() -> nn.Module:
    return Branches(
        chain(1536, (256, 1)),
        nn.Sequential(conv(1536, 384, 1), fork(384, (3, 1), (1, 3))),
        nn.Sequential(chain(1536, (384, 1), (448, (1, 3)), (512, (3, 1))), fork(512, (1, 3), (3, 1))),
        pooled(1536, 256),
    )


def fork(inputs: int, *kernels: Kernel) -> nn.Module:
    return Branches(*(conv(inputs, 256, kernel) for kernel in kernels))


def inception_v4(classes: int, dropout: float = 0.2) -> Network:
    """4, 7 and 3 blocks at the side less 2, its half and its quarter; from 11 px. Default torch initialisation."""
    stages: dict[str, tuple[nn.Module, int]] = {
        "stage1": (nn.Sequential(*(block_a() for _ in range(4))), 384),
        "stage2": (nn.Sequential(down_a(), *(block_b() for _ in range(7))), 1024),
        "stage3": (nn.Sequential(down_b(), *(block_c() for _ in range(3))), 1536),
    }
    return assemble_network(stem(), stages, classes, dropout=dropout)


NETWORKS: dict[str, Callable[..., Network]] = {"cifar_inception_v4": inception_v4}
"""Builders (classes, dropout=...)."""
