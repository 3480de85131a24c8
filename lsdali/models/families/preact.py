"""Pre-activation ResNets for small images: as the self-distillation papers used them, and as He et al. wrote them."""

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from lsdali.models.blocks import assemble_network, conv1x1, conv3x3, init_kaiming_out
from lsdali.models.student import Network


class PreActBlock(nn.Module):
    """Pre-activation block (He et al. 2016b), but the shortcut reads relu(BN(x)), never x.

    So the PS-KD and ZLS code have it; the usual block adds x itself if the shape stays.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = conv3x3(outputs, outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else conv1x1(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] -> [B, C', H/stride, W/stride]."""
        active = F.relu(self.bn1(x))
        out: Tensor = self.inner(active) + self.shortcut(active)
        return out

    def inner(self, active: Tensor) -> Tensor:
        """Return the residual branch of relu(BN(x))."""
        out: Tensor = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return out


class IdentityBlock(PreActBlock):
    """Pre-activation block as He et al. 2016b have it: x itself is added if the shape stays."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] -> [B, C', H/stride, W/stride]."""
        active = F.relu(self.bn1(x))
        kept = x if isinstance(self.shortcut, nn.Identity) else self.shortcut(active)
        out: Tensor = self.inner(active) + kept
        return out


def build_stages(
    block: Callable[[int, int, int], nn.Module], blocks: tuple[int, ...], width: int
) -> dict[str, tuple[nn.Module, int]]:
    """Return stages of `width`, 2 `width`, 4 `width` ... channels; all but the first halve the map."""
    stages: dict[str, tuple[nn.Module, int]] = {}
    inputs = width
    for number, count in enumerate(blocks):
        outputs = width * 2**number
        layers = [block(inputs, outputs, 1 if number == 0 else 2)]
        layers += [block(outputs, outputs, 1) for _ in range(count - 1)]
        stages[f"stage{number + 1}"] = (nn.Sequential(*layers), outputs)
        inputs = outputs
    return stages


def preact_resnet(blocks: tuple[int, ...], classes: int, width: int = 64) -> Network:
    """Stem of one 3x3 convolution, BN and ReLU, four stages of `width` to 8 `width` channels; from 8 px.

    The raw sum of the last block is pooled: no BatchNorm and no ReLU after it. Default torch initialisation.
    """
    stem = nn.Sequential(conv3x3(3, width), nn.BatchNorm2d(width), nn.ReLU())
    return assemble_network(stem, build_stages(PreActBlock, blocks, width), classes)


def textbook_preact(blocks: tuple[int, ...], classes: int, width: int = 64) -> Network:
    """He et al. 2016b: a bare 3x3 stem, blocks that add x, and BN and ReLU after the last block; from 8 px.

    The last BN and ReLU belong to the last stage. Convolutions start as N(0, 2 / fan-out).
    """
    stages = build_stages(IdentityBlock, blocks, width)
    name, (last, channels) = list(stages.items())[-1]
    stages[name] = (nn.Sequential(*last.children(), nn.BatchNorm2d(channels), nn.ReLU()), channels)
    network = assemble_network(conv3x3(3, width), stages, classes)
    init_kaiming_out(network)
    return network


NETWORKS: dict[str, Callable[..., Network]] = {
    "preact_resnet10": partial(preact_resnet, (1, 1, 1, 1)),
    "preact_resnet18": partial(preact_resnet, (2, 2, 2, 2)),
    "preact_resnet34": partial(preact_resnet, (3, 4, 6, 3)),
    "preact_resnet18_he": partial(textbook_preact, (2, 2, 2, 2)),
}
"""Builders (classes, width=...)."""
