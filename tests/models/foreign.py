"""Small modules that know nothing of lsdali: torchvision's, timm's, and one that somebody wrote by hand."""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn


def torchvision_resnet(classes: int) -> nn.Module:
    from torchvision.models.resnet import BasicBlock, ResNet

    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=classes)


def torchvision_convnext(classes: int) -> nn.Module:
    """A LayerNorm lies between the mean of the positions and the classifier."""
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    return ConvNeXt([CNBlockConfig(16, 32, 1), CNBlockConfig(32, None, 1)], num_classes=classes)


def timm_vit(classes: int) -> nn.Module:
    from timm.models import VisionTransformer

    return VisionTransformer(16, 4, num_classes=classes, embed_dim=32, depth=2, num_heads=2, drop_rate=0.1)


class HandWritten(nn.Module):
    """Blocks in a list, an activation in place, and the last linear layer under a name of its own."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        widths = (3, 16, 24, 32)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
            for a, b in pairwise(widths)
        )
        self.drop = nn.Dropout(0.2)
        self.to_classes = nn.Linear(32, classes)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.to_classes(self.drop(x.mean((2, 3))))


class Temperature(nn.Module):
    """Its last linear layer is not what it returns."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.inner = HandWritten(classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) / 2


FOREIGN: dict[str, Callable[[int], nn.Module]] = {
    "their_resnet": torchvision_resnet,
    "their_convnext": torchvision_convnext,
    "their_vit": timm_vit,
    "my_own": HandWritten,
    "my_scaled": Temperature,
}


class Several(nn.Module):
    """Returns what is asked for instead of logits."""

    def __init__(self, out: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.layer, self.out = nn.Linear(3, 5), out

    def forward(self, x: Tensor) -> object:
        return self.out(self.layer(x.mean((2, 3))))


class Idle(HandWritten):
    """Has a layer that no output depends on."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.forgotten = nn.Linear(2, 2)


def seeded(build: Callable[[int], nn.Module], classes: int, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build(classes)
