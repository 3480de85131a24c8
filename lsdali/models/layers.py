"""Layer numbers of parameters, for learning rates that fall with the depth."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from torch import nn

from lsdali.errors import UserError
from lsdali.models.student import Network, Student


def depths(student: Student, name: str) -> dict[int, int]:
    """Return the layer of each parameter by its id: 0 for the stem, the greatest for the classifier and all heads.

    A layer is a block of a stage, in order. timm's networks have the layers that timm groups them by.
    Raises UserError if nobody knows the blocks of the network `name`.
    """
    network = student.network
    matcher = getattr(getattr(network, "inner", None), "group_matcher", None)
    if matcher is None and not network.channels:
        raise UserError(f"optimizer.layer_decay: the blocks of '{name}' are not known; name model.stages")
    by_name = by_blocks(network) if matcher is None else by_timm(network, matcher)
    top = max(by_name.values())
    parameters = dict(network.named_parameters())
    return {id(p): top for p in student.parameters()} | {id(parameters[key]): n for key, n in by_name.items()}


def by_timm(network: Network, matcher: Any) -> dict[str, int]:
    """Return the layer of each parameter of a timm network, by timm's own rule."""
    from timm.models import group_parameters

    own = {name for name, _ in network.named_parameters()}
    theirs = [(name, None) for name, ours in network.aliases.items() if ours in own]
    whole = SimpleNamespace(named_parameters=lambda: iter(theirs))  # with the classifier, which was taken out
    found = group_parameters(whole, matcher(coarse=False), reverse=True)
    return {network.aliases[name]: layer for name, layer in found.items()}


def by_blocks(network: Network) -> dict[str, int]:
    """Return the layer of each parameter, by the blocks of the stages."""
    places = [name for name, _ in blocks(network)]
    layer_of: dict[str, int] = {}
    layer = 0
    out: dict[str, int] = {}
    for name, _ in network.named_parameters():
        place = next((place for place in places if name.startswith(f"{place}.")), None)
        if place is not None:
            layer = layer_of.setdefault(place, len(layer_of) + 1)
        elif len(layer_of) == len(places):
            layer = len(places) + 1
        out[name] = layer
    return {name: len(places) + 1 if name.startswith("classifier.") else n for name, n in out.items()}


def blocks(network: Network) -> Iterator[tuple[str, nn.Module]]:
    """Yield name and module of each block with parameters, stage by stage; a stage that is no sequence is one block."""
    for stage in network.channels:
        prefix = f"stages.{stage}" if stage in network.stages else f"inner.{stage}"
        module = network.get_submodule(prefix)
        listed = isinstance(module, (nn.Sequential, nn.ModuleList))
        parts = [(f"{prefix}.{key}", child) for key, child in module.named_children()] if listed else [(prefix, module)]
        yield from ((place, part) for place, part in parts if any(True for _ in part.parameters()))
