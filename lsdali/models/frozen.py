"""Frozen parts of a network."""

from collections.abc import Sequence

from torch import nn

from lsdali.errors import UserError
from lsdali.models.student import Network


def freeze(network: Network, names: Sequence[str], model: str) -> tuple[str, ...]:
    """Let named parts take no gradient; return the modules in them that must stay in evaluation mode, by name.

    A name is that of a stage, or how the names of tensors begin, here or at the network's publisher.
    Raises UserError for a name of nothing.
    """
    theirs = {ours: name for name, ours in network.aliases.items()}
    frozen: set[str] = set()
    for name in names:
        tensors = [key for key in network.state_dict() if any(begins(key, place) for place in (name, f"stages.{name}"))]
        tensors += [ours for ours, alias in theirs.items() if begins(alias, name)]
        if not tensors:
            there = ", ".join(part_names(network))
            raise UserError(f"model.freeze: '{model}' has no part '{name}'; its parts are {there}")
        frozen.update(tensors)
    for key, parameter in network.named_parameters():
        if key in frozen:
            parameter.requires_grad = False
    return tuple(name for name, module in network.named_modules() if name and holds_only(name, module, frozen))


def begins(key: str, place: str) -> bool:
    """Return whether a tensor's name is a place's, or one below it."""
    return key == place or key.startswith(f"{place}.")


def holds_only(name: str, module: nn.Module, frozen: set[str]) -> bool:
    """Return whether a module has tensors of its own, and all of them are frozen."""
    own = [*module._parameters, *(key for key in module._buffers if key not in module._non_persistent_buffers_set)]
    own = [key for key in own if getattr(module, key) is not None]
    return bool(own) and all(f"{name}.{key}" in frozen for key in own)


def part_names(network: Network) -> list[str]:
    """Return the names to offer: those of the stages, and of what is beside them at the publisher or here."""
    outer = [key.partition(".")[0] for key in network.state_dict()]
    theirs = [name.partition(".")[0] for name in network.aliases]
    return list(dict.fromkeys([*(theirs or outer), *network.stages, *network.channels, "classifier"]))
