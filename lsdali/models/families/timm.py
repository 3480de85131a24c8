"""Any network of timm as a Network: `timm/<name>`. timm is imported only if a recipe names one."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from lsdali.batch import Normal
from lsdali.errors import UserError, first_line
from lsdali.models.student import Network
from lsdali.models.wrapped import as_network

PREFIX = "timm/"


def timm() -> Any:
    """Return the package. Raises UserError with the remedy if it is missing."""
    try:
        import timm as package
    except ImportError as fault:
        raise UserError("networks named timm/... need the package timm: pip install lsdali[timm]") from fault
    return package


def known_timm(name: str) -> None:
    """Raise UserError for a name `timm/<name>` that timm does not have."""
    models = timm().list_models()
    bare = name.removeprefix(PREFIX)
    if bare not in models:
        near = get_close_matches(bare, models, n=1)
        hint = f"did you mean '{near[0]}'?" if near else "timm.list_models() lists them"
        raise UserError(f"there is no timm model '{bare}'; {hint}")


class PlaceHead(nn.Module):
    """timm's own head on single positions: each becomes a map of 1x1. [..., C] -> [..., D]."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = (inner,)  # in a tuple, so that its parts are not registered twice

    def forward(self, x: Tensor) -> Tensor:
        inner: Any = self.inner[0]
        flat: Tensor = inner.forward_head(x.reshape(-1, x.shape[-1], 1, 1), pre_logits=True)
        return flat.view(*x.shape[:-1], -1)


class TimmNetwork(Network):
    """A timm network whose linear classifier is the Network's.

    Its stages are what `forward_intermediates` gives, and `final` if the last features are another map. Networks
    whose last features are no map [B, C, H, W] (ViT, Swin) have no stages: `channels` is empty.
    """

    def __init__(self, inner: Any, channels: Mapping[str, int], dropout: float) -> None:
        theirs = {id(value): key for key, value in inner.state_dict(keep_vars=True).items()}
        classifier = inner.get_classifier()
        inner.reset_classifier(0)
        super().__init__(nn.Identity(), {}, nn.Identity(), classifier, channels, dropout=dropout)
        self.inner = inner
        self._readout = (nn.Sequential(PlaceHead(inner), classifier),)
        self.aliases = {theirs[id(v)]: key for key, v in self.state_dict(keep_vars=True).items() if id(v) in theirs}
        if inner.default_cfg.get("fixed_input_size"):
            self.image_size = inner.default_cfg["input_size"][1]

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """Map [B, 3, H, W] -> maps by stage; of networks without stages the last features alone."""
        if not self.channels:
            return {"final": self.inner.forward_features(images)}
        final, between = self.inner.forward_intermediates(images)
        named = {f"stage{n + 1}": x for n, x in enumerate(between)}
        return {**named, "final": final} if "final" in self.channels else named

    def features(self, maps: Mapping[str, Tensor]) -> Tensor:
        """Return [B, D], what the classifier reads."""
        out: Tensor = self.dropout(self.inner.forward_head(list(maps.values())[-1], pre_logits=True))
        return out


def timm_module(name: str, classes: int, drop_path: float | None = None) -> Any:
    """Return the module `timm/<name>`, untrained and whole. Raises UserError for an unknown name or option."""
    known_timm(name)
    bare = name.removeprefix(PREFIX)
    options = {} if drop_path is None else {"drop_path_rate": drop_path}
    try:
        return timm().create_model(bare, num_classes=classes, **options)
    except TypeError as fault:
        raise UserError(f"timm's {bare} takes no drop_path: {fault}") from fault


def build_timm(name: str, classes: int, dropout: float | None = None, drop_path: float | None = None) -> nn.Module:
    """Return the network `timm/<name>`, untrained; whole if its head is not one linear layer.

    `dropout` acts before that.

    Raises UserError for an unknown name, and options that it does not know.
    """
    inner = timm_module(name, classes, drop_path)
    bare = name.removeprefix(PREFIX)
    if dropout is not None and not isinstance(inner.get_classifier(), nn.Linear):
        raise UserError(f"the classifier of timm's {bare} is not one linear layer: leave out model.dropout")
    return in_parts(inner, bare, classes, dropout or 0.0)


def in_parts(inner: Any, bare: str, classes: int, dropout: float = 0.0) -> nn.Module:
    """Return timm's module as a Network; as it is where its head is not one linear layer."""
    if not isinstance(inner.get_classifier(), nn.Linear):
        return inner  # type: ignore[no-any-return]
    network = TimmNetwork(inner, timm_channels(bare, classes), dropout)
    network.positionwise = bool(network.channels) and places_fit(network)
    return network


@torch.no_grad()
def timm_channels(bare: str, classes: int) -> dict[str, int]:
    """Return the width of every stage, found with a twin without numbers; empty if there are no maps."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        twin = timm().create_model(bare, num_classes=classes).eval()
        images = torch.empty(1, *twin.default_cfg["input_size"])
        last = twin.forward_features(images)
        if last.ndim != 4 or last.shape[1] != twin.num_features or not hasattr(twin, "forward_intermediates"):
            return {}
        final, between = twin.forward_intermediates(images)
    channels = {f"stage{n + 1}": x.shape[1] for n, x in enumerate(between)}
    return channels if final is between[-1] else {**channels, "final": final.shape[1]}


@torch.no_grad()
def places_fit(network: Network) -> bool:
    """Return whether the head can read a map of one position."""
    weight = network.classifier.weight
    width = list(network.channels.values())[-1]
    training = network.training
    try:
        network.eval().readout(torch.zeros(1, 1, 1, width, device=weight.device))
    except (RuntimeError, ValueError):
        return False
    finally:
        network.train(training)
    return True


def timm_trained(bare: str) -> Any:
    """Return timm's module with its pretrained weights. Raises UserError if they cannot be had."""
    try:
        return timm().create_model(bare, pretrained=True)
    except Exception as fault:  # timm passes on whatever its download raises
        raise UserError(f"cannot get timm's weights of {bare}: {first_line(fault)}") from fault


def timm_state(bare: str) -> dict[str, Tensor]:
    """Return timm's pretrained weights of a network, with timm's names. Raises UserError if they cannot be had."""
    state: dict[str, Tensor] = timm_trained(bare).state_dict()
    return state


def from_timm(bare: str, classes: int) -> tuple[Network, Normal]:
    """Return timm's trained network of that name (and tag), and how its images were normalised.

    Raises UserError if it cannot be had or knows another number of classes.
    """
    inner = timm_trained(bare)
    if inner.num_classes != classes:
        raise UserError(f"timm's {bare} knows {inner.num_classes} classes, but the data set has {classes}")
    change = inner.pretrained_cfg
    network = as_network(in_parts(inner, bare, classes), classes, name=PREFIX + bare)
    return network, (tuple(change["mean"]), tuple(change["std"]))
