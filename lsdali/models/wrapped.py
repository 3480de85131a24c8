"""Any module as a Network: its stages and its classifier are found, or named by the recipe."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from lsdali.errors import UserError, first_line
from lsdali.models.blocks import as_linear
from lsdali.models.discover import Parts, find_parts, probe, replace
from lsdali.models.student import Network


class Tap:
    """A forward hook that keeps what a stage gave. An object, so that copies of a module keep maps of their own."""

    def __init__(self, name: str, kept: dict[str, Tensor]) -> None:
        self.name, self.kept = name, kept

    def __call__(self, module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        self.kept[self.name] = output


class WrappedNetwork(Network):
    """A module that was not made for lsdali: it runs whole, and hooks keep its stages' maps.

    Its classifier, if it is known, is taken out and becomes the Network's, so it runs once and can vote. Without a
    classifier the module gives logits alone, and the features are [B, 0].
    """

    def __init__(self, inner: nn.Module, parts: Parts, classifier: nn.Linear | None, classes: int) -> None:
        theirs = {id(value): key for key, value in inner.state_dict(keep_vars=True).items()}
        convolves = parts.classifier is not None and isinstance(inner.get_submodule(parts.classifier), nn.Conv2d)
        if parts.classifier is not None:
            replace(inner, parts.classifier, nn.Identity())
        super().__init__(nn.Identity(), {}, nn.Identity(), classifier, parts.channels, classes=classes)
        self.inner, self.convolves = inner, convolves
        self.positionwise = parts.positionwise
        self._kept: dict[str, Tensor] = {}
        for name in parts.channels:
            inner.get_submodule(name).register_forward_hook(Tap(name, self._kept))
        ours = self.state_dict(keep_vars=True)
        self.aliases = {theirs[id(v)]: key for key, v in ours.items() if id(v) in theirs}
        if parts.classifier is not None:
            self.aliases |= {f"{parts.classifier}.{key}": f"classifier.{key}" for key in self.classifier.state_dict()}

    def parts(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Map [B, 3, H, W] -> the map that leaves each stage, features [B, D], logits [B, K]."""
        out = self.inner(images)
        if not isinstance(out, Tensor):
            raise UserError(f"the module gives a {type(out).__name__} in training, where logits [B, K] are needed")
        maps = {name: self._kept[name] for name in self.channels}
        self._kept.clear()  # else the last batch's graph would stay alive
        return (maps, out, self.classifier(out)) if self.width else (maps, out[:, :0], out)

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """Map [B, 3, H, W] -> the map that leaves each stage."""
        return self.parts(images)[0]

    @torch.no_grad()
    def fault_at(self, size: int) -> str | None:
        """Return why images of this side in pixels cannot be read; None if they can."""
        try:
            probe(self, size)
        except Exception as fault:  # whatever a foreign module raises
            return first_line(fault)
        return None


def as_network(
    module: nn.Module,
    classes: int,
    *,
    name: str = "the module",
    stages: Sequence[str] | None = None,
    classifier: str | None = None,
) -> Network:
    """Any module [B, 3, H, W] -> logits [B, K] as a Network for `classes`; a Network is returned as it is.

    `stages` and `classifier` are the names of submodules, found by a pass over random images if they are not given.
    A classifier for another number of classes is replaced by an untrained one. What was found is in `notes`.

    Raises UserError if the module gives no logits, a name is none of its parts, or no classifier is known that
    could be replaced for other classes.
    """
    if isinstance(module, Network):
        if stages is not None or classifier is not None:
            raise UserError(f"model.stages and model.classifier are known for '{name}': leave them out")
        return module
    parts = find_parts(module, name, stages, classifier)
    if parts.classifier is None and parts.classes != classes:
        raise UserError(
            f"'{name}' gives {parts.classes} logits for {classes} classes, and its classifier was not found: name it "
            "(model.classifier: fc)"
        )
    head, notes = None, list(notes_of(parts, name))
    if parts.classifier is not None:
        head = linear_of(module.get_submodule(parts.classifier))
        if head.out_features != classes:
            notes.append(f"'{name}' knows {head.out_features} classes: the classifier for {classes} begins untrained")
            head = nn.Linear(head.in_features, classes, bias=head.bias is not None, device=head.weight.device)
    network = WrappedNetwork(module, parts, head, classes)
    network.notes = tuple(notes)
    return network


def notes_of(parts: Parts, name: str) -> Sequence[str]:
    """Return what a run says of a module's parts."""
    stages = f"its stages are {', '.join(parts.channels)}" if parts.channels else "it has no stages with maps"
    votes = ", whose positions its classifier can read" if parts.positionwise else ""
    head = "no classifier was found" if parts.classifier is None else f"its classifier is {parts.classifier}"
    return (f"'{name}': {head}; {stages}{votes} (model.classifier and model.stages name others)",)


def linear_of(layer: nn.Module) -> nn.Linear:
    """Return a linear layer, or one with the numbers of a 1x1 convolution."""
    return layer if isinstance(layer, nn.Linear) else as_linear(cast(nn.Conv2d, layer))
