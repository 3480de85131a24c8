"""torchvision's ResNets, taken apart into a Network. The numbers are torchvision's own."""

import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from lsdali.errors import UserError
from lsdali.models.names import unknown
from lsdali.models.student import Network

NAMES = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
STAGES = ("layer1", "layer2", "layer3", "layer4")


def take_apart(model: Any) -> Network:
    """A torchvision ResNet -> the same modules as a Network."""
    stem = nn.Sequential(OrderedDict((part, getattr(model, part)) for part in ("conv1", "bn1", "relu", "maxpool")))
    stages = {name: getattr(model, name) for name in STAGES}
    width = model.fc.in_features
    channels = {name: width // 2 ** (3 - i) for i, name in enumerate(STAGES)}
    return Network(stem, stages, nn.Sequential(model.avgpool, nn.Flatten(1)), model.fc, channels)


def from_torchvision_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A torchvision ResNet's state dict -> the state dict of its Network."""
    rename = (("^(conv1|bn1)", r"stem.\1"), ("^layer", "stages.layer"), ("^fc", "classifier"))
    out: dict[str, Tensor] = {}
    for name, value in state.items():
        for old, new in rename:
            name = re.sub(old, new, name)
        out[name] = value
    return out


def from_torchvision(name: str, weights: str | None, classes: int) -> Network:
    """The network `name`, untrained or with torchvision's weights of that name, such as IMAGENET1K_V1.

    Weights are looked for in torch.hub's folder ($TORCH_HOME/hub/checkpoints) and fetched if missing.

    Raises UserError for a name or weights that torchvision does not have, weights for another number of
    classes, or weights that cannot be fetched.
    """
    if name not in NAMES:
        raise UserError(unknown("torchvision model", name, NAMES))
    if weights is None:
        return take_apart(torchvision.models.get_model(name, weights=None, num_classes=classes))
    # Without the alias DEFAULT, which means other weights in other versions of torchvision.
    known = {entry.name: entry for entry in torchvision.models.get_model_weights(name)}
    if weights not in known:
        have = ", ".join(known)
        raise UserError(f"there is no set of torchvision's {name} weights '{weights}'; torchvision has: {have}")
    entry = known[weights]
    trained = len(entry.meta["categories"])
    if trained != classes:
        raise UserError(f"torchvision's {name} {weights} knows {trained} classes, but the data set has {classes}")
    try:
        return take_apart(torchvision.models.get_model(name, weights=entry))
    except (OSError, RuntimeError) as fault:
        folder = f"{torch.hub.get_dir()}/checkpoints"
        raise UserError(f"cannot get {entry.url} ({fault}); put that file into {folder} by hand") from fault


IMAGENET: dict[str, Callable[[int], Network]] = {name: partial(from_torchvision, name, None) for name in NAMES}
"""Builders (classes)."""
