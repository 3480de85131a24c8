"""torchvision's networks, taken apart into Networks. The numbers are torchvision's own.

torchvision is imported when a network is built: its import takes longer than torch's, and recipes need only names.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsdali.models.blocks import GlobalAvgPool, as_linear
from lsdali.models.families.dense import with_raw_transitions
from lsdali.models.options import drop_branches
from lsdali.models.student import Network

THEIRS = "torchvision/"
"""How names of any network of torchvision begin."""

RESNETS = (
    *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2"),
)

# Where the stages begin among the children of torchvision's `features`; before the first lies the stem. A stage ends
# where the side of the map is halved next; the DenseNets' end with their transition.
STARTS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("densenet121", "densenet161", "densenet169", "densenet201", "densenet264"), (4, 6, 8, 10)),
    "mobilenet_v2": (2, 4, 7, 14),
    "mobilenet_v3_large": (2, 4, 7, 13),
    "mobilenet_v3_small": (1, 2, 4, 9),
    **dict.fromkeys((f"efficientnet_b{n}" for n in range(8)), (2, 3, 4, 6)),
    **dict.fromkeys(("convnext_tiny", "convnext_small", "convnext_base", "convnext_large"), (1, 2, 4, 6)),
    "squeezenet1_0": (3, 6, 11),
    "squeezenet1_1": (3, 5, 8),
}

BLURRED = tuple(f"vgg{depth}{norm}_blur" for depth in (16, 19) for norm in ("", "_bn"))
VGGS = (*(f"vgg{depth}{norm}" for depth in (11, 13, 16, 19) for norm in ("", "_bn")), *BLURRED)


def torchvision_name(name: str) -> str:
    """Return what torchvision calls the network; a blur has no weights, so those of the network without it fit."""
    return name.removeprefix(THEIRS).removesuffix("_blur")


class PlusBlur(nn.Module):
    """Mean of each position and its four neighbours, zero outside; OLS has it before each max-pool of a VGG."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] -> [B, C, H, W]."""
        column = F.avg_pool2d(x, (3, 1), 1, (1, 0))
        row = F.avg_pool2d(x, (1, 3), 1, (0, 1))
        return 0.6 * (column + row) - 0.2 * x


class PositionwiseNetwork(Network):
    """SqueezeNet (Iandola et al. 2016): classifies every position of the last map, then averages relu of the logits.

    Its 1x1 convolution is the linear classifier here, with the same numbers. Places vote before that ReLU, which
    would tie all classes without support.
    """

    convolves = True

    def features(self, maps: Mapping[str, Tensor]) -> Tensor:
        """Return [B, C], the mean of what the classifier reads, from the maps of all stages."""
        pooled: Tensor = self.pool(list(maps.values())[-1])
        return pooled

    def logits(self, maps: Mapping[str, Tensor], features: Tensor) -> Tensor:
        """Return [B, K]."""
        positions = self.dropout(list(maps.values())[-1]).movedim(1, -1)
        out: Tensor = self.classifier(positions).relu().mean((1, 2))
        return out


def take_apart(model: Any, name: str) -> Network:
    """Turn a torchvision model into the same modules as a Network, which knows torchvision's names of its tensors."""
    theirs = {id(value): key for key, value in model.state_dict(keep_vars=True).items()}
    network = take_resnet(model) if name in RESNETS else take_features(model, name)
    ours = network.state_dict(keep_vars=True)
    aliases = {theirs[id(value)]: key for key, value in ours.items() if id(value) in theirs}
    if isinstance(network, PositionwiseNetwork):
        aliases |= {f"classifier.1.{part}": f"classifier.{part}" for part in ("weight", "bias")}
    network.aliases = aliases
    network.channels = measure_channels(network)
    return network


def take_resnet(model: Any) -> Network:
    stem = nn.Sequential(OrderedDict((part, getattr(model, part)) for part in ("conv1", "bn1", "relu", "maxpool")))
    stages = {name: getattr(model, name) for name in ("layer1", "layer2", "layer3", "layer4")}
    return Network(stem, stages, GlobalAvgPool(), model.fc, {})


def take_vgg(model: Any, name: str) -> Network:
    """Take a VGG apart: each stage except the first begins with a max-pool, and the last ends with one more.

    The head reads all 7x7 positions of the last map at once: its two hidden layers are the neck, and single positions
    have no votes.
    """
    layers: list[nn.Module] = []
    stages: dict[str, nn.Module] = {}
    *features, last_pool = model.features.children()
    for layer in features:
        if isinstance(layer, nn.MaxPool2d):
            stages[f"stage{len(stages) + 1}"] = nn.Sequential(*layers)
            layers = []
        layers.extend(with_blur(layer, name))
    stages[f"stage{len(stages) + 1}"] = nn.Sequential(*layers, *with_blur(last_pool, name))
    *hidden, dropout, classifier = model.classifier.children()
    pool = nn.Sequential(model.avgpool, nn.Flatten(1))
    neck = nn.Sequential(*hidden)
    network = Network(nn.Identity(), stages, pool, classifier, {}, neck=neck, dropout=dropout.p)
    network.positionwise = False
    return network


def with_blur(layer: nn.Module, name: str) -> list[nn.Module]:
    return [PlusBlur(), layer] if name in BLURRED and isinstance(layer, nn.MaxPool2d) else [layer]


def take_features(model: Any, name: str) -> Network:
    """Take apart a model that is a list of layers `features` and a `classifier`."""
    from torchvision.models import ConvNeXt, DenseNet, SqueezeNet

    if name in VGGS:
        return take_vgg(model, name)
    starts = STARTS[name]
    layers = list(model.features.children())
    if isinstance(model, DenseNet):
        layers.append(nn.ReLU())  # a function call in torchvision
    ends = (*starts[1:], len(layers))
    stages = {f"stage{n + 1}": nn.Sequential(*layers[a:b]) for n, (a, b) in enumerate(zip(starts, ends, strict=True))}
    stem = nn.Sequential(*layers[: starts[0]])
    if isinstance(model.classifier, nn.Linear):
        network = Network(stem, stages, GlobalAvgPool(), model.classifier, {})
        return with_raw_transitions(network) if isinstance(model, DenseNet) else network
    head = list(model.classifier.children())
    rates = [part.p for part in head if isinstance(part, nn.Dropout)]
    dropout = rates[0] if rates else 0.0
    if isinstance(model, SqueezeNet):
        return PositionwiseNetwork(stem, stages, GlobalAvgPool(), as_linear(head[1]), {}, dropout=dropout)
    neck: nn.Module | None = None
    if isinstance(model, ConvNeXt):
        neck = as_vector_norm(head[0])
    elif isinstance(head[0], nn.Linear):  # MobileNetV3's hidden layer
        neck = nn.Sequential(head[0], nn.Hardswish())
    return Network(stem, stages, GlobalAvgPool(), head[-1], {}, neck=neck, dropout=dropout)


def as_vector_norm(norm: nn.LayerNorm) -> nn.LayerNorm:
    """Return a LayerNorm over channels for [B, C, H, W], with the same parameters, for [..., C]."""
    out = nn.LayerNorm(norm.normalized_shape, eps=norm.eps)
    out.weight, out.bias = norm.weight, norm.bias
    return out


@torch.no_grad()
def measure_channels(network: Network) -> dict[str, int]:
    """Return the width of every stage, found with one small image of zeros."""
    training, device = network.training, network.classifier.weight.device
    maps = network.eval().maps(torch.zeros(1, 3, 64, 64, device=device))
    network.train(training)
    return {name: x.shape[1] for name, x in maps.items()}


def untrained(name: str, classes: int, **options: Any) -> Network:
    """Build an untrained network; options without a value are left to torchvision."""
    from torchvision.models import DenseNet, get_model

    given = {key: value for key, value in options.items() if value is not None}
    if name == "densenet264":
        model: Any = DenseNet(32, (6, 12, 64, 48), 64, num_classes=classes, **given)
    else:
        model = get_model(torchvision_name(name), weights=None, num_classes=classes, **given)
    return take_apart(model, name)


# A builder's own parameters say which keys of a recipe it can honour.


def residual(name: str, classes: int, drop_path: float | None = None) -> Network:
    """ResNet (He et al. 2016), ResNeXt (Xie et al. 2017), Wide ResNet (Zagoruyko and Komodakis 2016).

    With `drop_path`, residual branches are dropped at a rate of 0 in the first block to this in the last.
    """
    network = untrained(name, classes)
    if drop_path:
        drop_branches(network, drop_path)
    return network


def dense(name: str, classes: int, dropout: float | None = None) -> Network:
    """DenseNet (Huang et al. 2017); `dropout` acts on the new channels of each layer. The last ReLU is in stage4."""
    return untrained(name, classes, drop_rate=dropout)


def with_dropout(name: str, classes: int, dropout: float | None = None) -> Network:
    """MobileNetV2 (Sandler et al. 2018), MobileNetV3 (Howard et al. 2019), SqueezeNet (Iandola et al. 2016), VGG
    (Simonyan and Zisserman 2015)."""
    return untrained(name, classes, dropout=dropout)


def efficientnet(name: str, classes: int, dropout: float | None = None, drop_path: float | None = None) -> Network:
    """EfficientNet (Tan and Le 2019)."""
    return untrained(name, classes, dropout=dropout, stochastic_depth_prob=drop_path)


def convnext(name: str, classes: int, drop_path: float | None = None) -> Network:
    """ConvNeXt (Liu et al. 2022); its LayerNorm before the classifier is the neck."""
    return untrained(name, classes, stochastic_depth_prob=drop_path)


def torchvision_builder(name: str) -> Callable[..., Network]:
    kinds = {"densenet": dense, "efficientnet": efficientnet, "convnext": convnext}
    kinds |= {"mobilenet": with_dropout, "squeezenet": with_dropout, "vgg": with_dropout}
    kind: Any = next((build for start, build in kinds.items() if name.startswith(start)), residual)
    return partial(kind, name)


TORCHVISION: dict[str, Callable[..., Network]] = {
    name: torchvision_builder(name) for name in (*RESNETS, *STARTS, *VGGS)
}
"""Builders (classes), and what else each takes: dropout=..., drop_path=..."""
NETWORKS = TORCHVISION
