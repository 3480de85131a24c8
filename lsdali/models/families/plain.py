"""Networks without shortcuts for small images: VGG, LeNet, and the shallow student of the IBLS paper."""

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from lsdali.models.blocks import PadTo, assemble_network, init_kaiming_out
from lsdali.models.student import Network

WIDTHS = (64, 128, 256, 512, 512)


def vgg(convolutions: tuple[int, ...], norm: Callable[[int], nn.Module], classes: int) -> Network:
    """VGG (Simonyan and Zisserman 2015) in five stages, one linear layer after an average pool; from 8 px.

    `norm` is BatchNorm2d or Identity. A max-pool stands before stages 2, 3 and 4, and before stage 5 if images are
    64 px or larger; the last map is pooled by its mean. So OLS and the distillation papers have it, except that they
    pool before stage 5 at 64 px alone. Convolutions start as N(0, 2 / fan-out), the classifier as N(0, 0.01 squared).
    """
    stages: dict[str, tuple[nn.Module, int]] = {}
    inputs = 3
    for number, (count, width) in enumerate(zip(convolutions, WIDTHS, strict=True)):
        layers: list[nn.Module] = [nn.MaxPool2d(2) if number < 4 else PoolLargeMaps()] if number else []
        for _ in range(count):
            layers += [nn.Conv2d(inputs, width, 3, padding=1), norm(width), nn.ReLU()]
            inputs = width
        stages[f"stage{number + 1}"] = (nn.Sequential(*layers), width)
    network = assemble_network(nn.Identity(), stages, classes)
    init_kaiming_out(network)
    nn.init.normal_(network.classifier.weight, std=0.01)
    nn.init.zeros_(network.classifier.bias)
    return network


class PoolLargeMaps(nn.Module):
    """A 2x2 max-pool of maps from 8 positions in height on, which images from 64 px on have after three halvings."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] -> [B, C, H/2, W/2] if H >= 8, else x."""
        return F.max_pool2d(x, 2) if x.shape[2] >= 8 else x


def lenet(kernel: int, side: int, classes: int) -> Network:
    """LeNet-5 (LeCun et al. 1998) with ReLU and max-pools, for 3 channels; from 1 px, smaller images padded to 32.

    C5 is a convolution over `side` positions each way, as in the paper, where kernel and side are 5: on 32 px it is the
    fully connected layer of 400 inputs, and on larger images it is applied at every position and averaged. F6 is the
    neck. IBLS's `convnet` has kernels of 3x3, so C5 reads 576 inputs.
    """
    stages: dict[str, tuple[nn.Module, int]] = {
        "stage1": (nn.Sequential(nn.Conv2d(3, 6, kernel), nn.ReLU(), nn.MaxPool2d(2)), 6),
        "stage2": (nn.Sequential(nn.Conv2d(6, 16, kernel), nn.ReLU(), nn.MaxPool2d(2)), 16),
        "stage3": (nn.Sequential(nn.Conv2d(16, 120, side), nn.ReLU()), 120),
    }
    body = assemble_network(PadTo(32), stages, classes)
    neck = nn.Sequential(nn.Linear(120, 84), nn.ReLU())
    return Network(body.stem, dict(body.stages.items()), body.pool, nn.Linear(84, classes), body.channels, neck=neck)


def shallow_cnn(classes: int, dropout: float = 0.5) -> Network:
    """The five-layer student of IBLS (Maher and Kull 2021): 3x3 convolutions of 32, 64, 128 with BN, two linear layers.

    The first linear layer (2048 to 128) is written as a 4x4 convolution with BN: the same on 32 px; larger images have
    it at every position and average it, smaller ones are padded to 32.
    """
    stages: dict[str, tuple[nn.Module, int]] = {}
    inputs = 3
    for number, width in enumerate((32, 64, 128)):
        layers = [nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width), nn.MaxPool2d(2), nn.ReLU()]
        stages[f"stage{number + 1}"] = (nn.Sequential(*layers), width)
        inputs = width
    stages["stage4"] = (nn.Sequential(nn.Conv2d(128, 128, 4), nn.BatchNorm2d(128), nn.ReLU()), 128)
    return assemble_network(PadTo(32), stages, classes, dropout=dropout)


def mlp(classes: int) -> Network:
    """The network of IBLS's synthetic study (Maher and Kull 2021): five hidden layers of 64 with ReLU, for one pixel.

    A layer is a 1x1 convolution, which starts as torch's linear layer does; on larger images it acts at every position
    and the last map is averaged.
    """
    stages = {f"stage{k}": (nn.Sequential(nn.Conv2d(64, 64, 1), nn.ReLU()), 64) for k in range(1, 5)}
    return assemble_network(nn.Sequential(nn.Conv2d(3, 64, 1), nn.ReLU()), stages, classes)


DEPTHS = {8: (1, 1, 1, 1, 1), 11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}

NETWORKS: dict[str, Callable[..., Network]] = {
    **{f"cifar_vgg{depth}": partial(vgg, counts, nn.Identity) for depth, counts in DEPTHS.items()},
    **{f"cifar_vgg{depth}_bn": partial(vgg, counts, nn.BatchNorm2d) for depth, counts in DEPTHS.items()},
    "lenet": partial(lenet, 5, 5),
    "convnet": partial(lenet, 3, 6),
    "shallow_cnn": shallow_cnn,
    "mlp": mlp,
}
"""Builders (classes); shallow_cnn takes dropout=..."""
