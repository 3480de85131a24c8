"""A training step in channels last brings no map into another layout; the one exception is named."""

from collections import Counter

import pytest
import torch
from torch import nn

from benchmarks.layouts import COPYING, conversions, layout
from lsdali.models import CIFAR, ModelConfig, build_network
from lsdali.models.aux_heads import DenseVotes, StageHead
from lsdali.models.families.san import NETWORKS as SAN
from lsdali.models.student import Student

NAMES = [
    *("resnet18", "resnet50", "resnext50_32x4d", "densenet121", "mobilenet_v2", "mobilenet_v3_small"),
    *("efficientnet_b0", "convnext_tiny", "squeezenet1_1", "vgg11", "san10_pairwise", "san10_patchwise"),
    *("cifar_resnet18", "resnet20", "resnet110_sd", "cifar_densenet40", "resnext29_32x4d", "wrn_16_2"),
    *("cifar_vgg8_bn", "cifar_mobilenet_v2_half", "cifar_shufflenet_v2", "lenet", "convnet", "shallow_cnn"),
]

# VGG's linear layer reads the last map row by row.
KNOWN = {"vgg11": {("clone", "lsdali Student"): 1}}


@pytest.mark.parametrize("name", NAMES)
def test_no_copies_between_layouts(name):
    network = build_network(ModelConfig(name=name), 7)
    stage, width = next(iter(network.channels.items()))
    aux_heads = {"votes": DenseVotes()} if network.positionwise else {}
    student = Student(network, {**aux_heads, "exit": StageHead(stage, width, 7)})
    side = 32 if name in CIFAR else 128 if name in SAN else 64
    found = conversions(student, torch.randn(2, 3, side, side))
    assert {key: n for key, n in found.items() if key[0] in COPYING} == KNOWN.get(name, {})
    forward = {place for op, place in found if place != "backward"}
    assert not forward - {place for op, place in KNOWN.get(name, {})}


def test_the_layout_of_a_tensor():
    x = torch.empty(2, 3, 4, 5)
    assert layout(x) == "first"
    assert layout(x.to(memory_format=torch.channels_last)) == "last"
    assert layout(x.to(memory_format=torch.channels_last)[:, 1:, ::2]) == "last"
    assert layout(x[:, :1]) is layout(x[:, :, :1, :1]) is layout(x[0]) is None
    assert layout(torch.empty(1, 1, 1, 1).expand(2, 3, 4, 5)) is None


def test_what_copies_is_found():
    class Turns(nn.Conv2d):
        def forward(self, x):
            return super().forward(x.contiguous())

    found = conversions(nn.Sequential(Turns(3, 4, 3), nn.ReLU()), torch.randn(2, 3, 8, 8))
    place = f"{__name__.partition('.')[0]} Turns"
    assert found >= Counter({("clone", place): 1, ("convolution", place): 1})
