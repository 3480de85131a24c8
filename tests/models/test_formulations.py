"""Every family for small images against a second formulation with the same weights, at 32 and 64 px."""

from functools import partial

import pytest
import torch
from torch import nn

from lsdali.models import CIFAR
from lsdali.models.families import cifar_resnet, dense, pyramid
from tests.models import formulations as second

FORMULATIONS = {
    "preact_resnet10": partial(second.preact, blocks=(1, 1, 1, 1)),
    "preact_resnet18": second.preact,
    "preact_resnet34": partial(second.preact, blocks=(3, 4, 6, 3)),
    "preact_resnet18_he": second.textbook_preact,
    "cifar_resnet18": partial(second.resnet, blocks=(2, 2, 2, 2), shortcut="projection", outputs=64),
    "cifar_resnet50": partial(second.resnet, blocks=(3, 4, 6, 3), shortcut="projection", outputs=256, convolutions=3),
    "resnet20": partial(second.resnet, blocks=(3, 3, 3), shortcut="zeros", outputs=16),
    "resnet56_bottleneck": partial(second.resnet, blocks=(6, 6, 6), shortcut="projection", outputs=64, convolutions=3),
    "resnet8x4": partial(second.resnet, blocks=(1, 1, 1), shortcut="projection", outputs=64),
    "cifar_densenet40": partial(second.densenet, blocks=(6, 6, 6)),
    "densenet_plain": second.plain_densenet,
    "resnext29_8x64d": partial(second.resnext, groups=8),
    "resnext29_32x4d": partial(second.resnext, groups=32),
    "wrn_16_2": partial(second.wide, blocks=(2, 2, 2)),
    "wrn_40_1": partial(second.wide, blocks=(6, 6, 6)),
    "resnet32_wide": second.biased_wide,
    "cifar_vgg8": partial(second.vgg, convolutions=(1, 1, 1, 1, 1), norm=False),
    "cifar_vgg8_bn": partial(second.vgg, convolutions=(1, 1, 1, 1, 1), norm=True),
    "cifar_vgg11": partial(second.vgg, convolutions=(1, 1, 2, 2, 2), norm=False),
    "cifar_vgg13_bn": partial(second.vgg, convolutions=(2, 2, 2, 2, 2), norm=True),
    "cifar_vgg16": partial(second.vgg, convolutions=(2, 2, 3, 3, 3), norm=False),
    "cifar_vgg19_bn": partial(second.vgg, convolutions=(2, 2, 4, 4, 4), norm=True),
    "lenet": second.lenet,
    "convnet": second.lenet,
    "shallow_cnn": second.shallow,
    "cifar_mobilenet_v2_half": second.mobilenet,
    "cifar_shufflenet_v2": second.shufflenet,
    "cifar_inception_v4": second.inception,
}

# Shorter twins of networks that are made of the same parts.
SHORT = {
    "resnet110_sd": (
        partial(cifar_resnet.stochastic_depth, 20),
        partial(second.resnet, blocks=(3, 3, 3), shortcut="means", outputs=16),
    ),
    "cifar_densenet121": (partial(dense.densenet, 12, (2, 3, 2, 1)), partial(second.densenet, blocks=(2, 3, 2, 1))),
    "pyramidnet200": (partial(pyramid.pyramidnet, 0.0, 29, 24), partial(second.pyramid, blocks=(3, 3, 3))),
    "pyramidnet200_shakedrop": (
        partial(pyramid.pyramidnet, 0.5, 29, 24),
        partial(second.pyramid, blocks=(3, 3, 3), keep=lambda number: 1 - 0.5 * number / 9),
    ),
}


def with_lively_norms(network):
    """Running statistics and scales that differ from channel to channel, and leave the size of maps as it is."""
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.running_mean, -0.2, 0.2)
            nn.init.uniform_(part.running_var, 0.5, 1.5)
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.uniform_(part.bias, -0.2, 0.2)
    return network.eval()


@pytest.mark.parametrize("name", [*FORMULATIONS, *SHORT])
@torch.no_grad()
def test_logits_are_those_of_the_second_formulation(name):
    torch.manual_seed(0)
    build, formulation = SHORT[name] if name in SHORT else (CIFAR[name], FORMULATIONS[name])
    network = with_lively_norms(build(10))
    for pixels in (32, 64):
        images = torch.randn(1, 3, pixels, pixels)
        tensors = second.Tensors(network)
        expected = formulation(tensors, images)
        assert not tensors.left
        error = (network(images) - expected).norm() / expected.norm()
        assert error < 1e-4, (pixels, float(error))
