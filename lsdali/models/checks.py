"""Check before the first step what a network can do: heads, image sizes, classes."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

from lsdali.disk import in_words
from lsdali.errors import UserError
from lsdali.models import ModelConfig, build_network
from lsdali.models.student import AuxHead, Network
from lsdali.models.teacher import Teacher
from lsdali.state.shared import free_bytes


def check_aux_heads(network: Network, model: str, aux_heads: Mapping[str, AuxHead], method: str) -> None:
    """Raise UserError if the network `model` has nothing that the method's auxiliary heads could read."""
    if aux_heads and not network.channels:
        raise UserError(f"the method '{method}' reads maps of images between stages, and '{model}' has none")
    if any(head.classifies_positions for head in aux_heads.values()) and not network.positionwise:
        raise UserError(
            f"the method '{method}' classifies single positions of the last map, "
            f"and the classifier of '{model}' cannot read them"
        )


def check_image_size(network: Network | Teacher, model: str, sizes: Iterable[int]) -> None:
    """Raise UserError if the network does not take images of one of `sizes`, in pixels."""
    sizes = set(sizes)
    if network.image_size is not None:
        if wrong := sizes - {network.image_size}:
            raise UserError(
                f"'{model}' takes images of {network.image_size} px only, and the data has {max(wrong)}: "
                "set data.train.size and data.eval.size"
            )
        return
    for size in sorted(sizes):
        fault = network.fault_at(size)
        if fault is not None:
            raise UserError(
                f"'{model}' does not take images of {size} px ({fault}): set data.train.size and data.eval.size"
            )


def check_features(network: Network, model: str, reads_features: bool, method: str) -> None:
    """Raise UserError if the method reads features and the network's classifier is not known."""
    if reads_features and network.width == 0:
        raise UserError(
            f"the method '{method}' reads the features before the classifier, and that of '{model}' was not found: "
            "name it (model.classifier)"
        )


def check_memory(model: ModelConfig, classes: int) -> None:
    """Raise UserError if the weights that `width` or `classes` ask for have no room, before they are made."""
    if model.width is None and model.classes is None:
        return
    with torch.device("meta"):
        network = build_network(model, classes)
    size = sum(p.numel() * p.element_size() for p in network.parameters())
    if 3 * size > (free := free_bytes()):  # with gradients and a moment
        raise UserError(
            f"model: {model.name} with width {model.width or 'as published'} and {classes} classes has weights of "
            f"{in_words(size)}, of which training needs three times as much, and {in_words(free)} are free: "
            "give a smaller width or fewer classes"
        )


def count_classes(wanted: int | None, classes: Sequence[str], root: Path | str) -> int:
    """Return the model's number of classes: `wanted` (model.classes) if it is large enough, else the data's.

    Raises UserError if the data has more classes than are wanted, or a single one.
    """
    found = len(classes)
    if wanted is not None and wanted < found:
        raise UserError(
            f"model.classes: the data in {root} has {found} classes and the model only {wanted}; "
            f"leave the key out or give at least {found}"
        )
    if (wanted or found) < 2:
        raise UserError(f"the data in {root} has one class, {classes[0]}; a classifier needs two or more")
    return wanted or found
