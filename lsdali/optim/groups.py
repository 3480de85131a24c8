"""Parameter groups: which parameters are decayed."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from torch import nn

from lsdali.errors import UserError

Decay = Literal["weights", "all"]

# `_NormBase` is the common parent of every BatchNorm, SyncBatchNorm and InstanceNorm.
NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def parameter_groups(
    model: nn.Module,
    weight_decay: float,
    decay: Decay,
    *,
    head: Iterable[nn.Parameter] = (),
    backbone_lr_scale: float = 1.0,
    layers: Mapping[int, int] | None = None,
    layer_decay: float = 1.0,
) -> list[dict[str, Any]]:
    """Return groups that hold each trainable parameter once, shared ones too, in the model's order.

    "weights" spares the parameters of norm layers and all with fewer than two dimensions (biases, scales);
    "all" decays everything, as many published recipes do. With a scale other than 1, each group is split: parameters
    outside `head` come with `lr_scale`, a factor on their learning rate. With `layers` (a number for each parameter by
    its id), that factor is `layer_decay` to the power of the layers above.
    Raises UserError if nothing is trainable.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise UserError("the model has no trainable parameter: the optimizer needs at least one")
    norms = {id(p) for m in model.modules() if isinstance(m, NORMS) for p in m.parameters(recurse=False)}
    spared = {id(p) for p in trained if p.ndim <= 1 or id(p) in norms} if decay == "weights" else set()
    groups = [
        {"params": [p for p in trained if id(p) not in spared], "weight_decay": weight_decay},
        {"params": [p for p in trained if id(p) in spared], "weight_decay": 0.0},
    ]
    if backbone_lr_scale != 1.0:
        groups = split_by_rate(groups, {id(p) for p in head}, backbone_lr_scale)
    if layers is not None:
        groups = split_by_layer(groups, layers, layer_decay)
    return [group for group in groups if group["params"]]


def split_by_rate(groups: list[dict[str, Any]], head: set[int], scale: float) -> list[dict[str, Any]]:
    """Return each group in two: parameters outside the head with their `lr_scale`, and those in it."""
    out: list[dict[str, Any]] = []
    for group in groups:
        outside = [p for p in group["params"] if id(p) not in head]
        inside = [p for p in group["params"] if id(p) in head]
        out += [{**group, "params": outside, "lr_scale": scale}, {**group, "params": inside}]
    return out


def split_by_layer(groups: list[dict[str, Any]], layers: Mapping[int, int], decay: float) -> list[dict[str, Any]]:
    """Return each group in one for each layer, lowest first, with its `lr_scale`."""
    top = max(layers.values())
    out: list[dict[str, Any]] = []
    for group in groups:
        for layer in range(top + 1):
            params = [p for p in group["params"] if layers[id(p)] == layer]
            out.append({**group, "params": params, "lr_scale": decay ** (top - layer)})
    return out
