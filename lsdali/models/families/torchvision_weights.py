"""torchvision's weights, and its networks that are not taken apart here: `torchvision/<name>`."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lsdali.batch import Normal
from lsdali.errors import UserError
from lsdali.models.families.torchvision import THEIRS, TORCHVISION, take_apart, torchvision_name
from lsdali.models.names import unknown
from lsdali.models.student import Network
from lsdali.models.wrapped import as_network


def known_torchvision(name: str) -> None:
    """Raise UserError for a name `torchvision/<name>` that torchvision has no classifier of."""
    from torchvision import models

    bare = name.removeprefix(THEIRS)
    if bare not in TORCHVISION and bare not in (names := models.list_models(module=models)):
        raise UserError(unknown("torchvision model", bare, [*TORCHVISION, *names]))


def torchvision_module(name: str, classes: int) -> nn.Module:
    """Any classifier of torchvision, untrained and whole: `torchvision/<name>`."""
    from torchvision.models import get_model

    bare = torchvision_name(name)
    # Inception and GoogLeNet: their auxiliary classifiers would change what they give in training.
    single = bare in ("googlenet", "inception_v3")
    options = {"aux_logits": False, "init_weights": True} if single else {}
    module: nn.Module = get_model(bare, weights=None, num_classes=classes, **options)
    return module


def from_torchvision(name: str, weights: str, classes: int) -> Network:
    """The network `name` with torchvision's weights of that name, such as IMAGENET1K_V1.

    Weights are looked for in torch.hub's folder ($TORCH_HOME/hub/checkpoints) and fetched if missing.

    Raises UserError for a name or weights that torchvision does not have, weights for another number of
    classes, or weights that cannot be fetched.
    """
    from torchvision.models import get_model

    entry = weights_entry(name, weights)
    trained = len(entry.meta["categories"])
    if trained != classes:
        raise UserError(f"torchvision's {name} {weights} knows {trained} classes, but the data set has {classes}")
    module = fetched(entry, lambda: get_model(torchvision_name(name), weights=entry))
    bare = name.removeprefix(THEIRS)
    return take_apart(module, bare) if bare in TORCHVISION else as_network(module, classes, name=name)


def torchvision_state(name: str, weights: str) -> dict[str, Tensor]:
    """Return torchvision's weights of that name, with its names of the tensors. Raises as `from_torchvision` does."""
    entry = weights_entry(name, weights)
    state: dict[str, Tensor] = fetched(entry, lambda: entry.get_state_dict(progress=False, check_hash=True))
    return state


def torchvision_normal(name: str, weights: str) -> Normal:
    """Return how the images that these weights were trained on were normalised."""
    change = weights_entry(name, weights).transforms()
    return tuple(change.mean), tuple(change.std)


def weights_entry(name: str, weights: str) -> Any:
    from torchvision.models import get_model_weights

    known_torchvision(name)
    # Without the alias DEFAULT, which means other weights in other versions of torchvision.
    theirs = torchvision_name(name)
    known = {} if theirs == "densenet264" else {e.name: e for e in get_model_weights(theirs)}
    if weights not in known:
        have = ", ".join(known) or "none for this network"
        raise UserError(f"there is no set of torchvision's {name} weights '{weights}'; torchvision has: {have}")
    return known[weights]


def fetched(entry: Any, fetch: Callable[[], Any]) -> Any:
    try:
        return fetch()
    except (OSError, RuntimeError) as fault:
        folder = f"{torch.hub.get_dir()}/checkpoints"
        raise UserError(f"cannot get {entry.url} ({fault}); put that file into {folder} by hand") from fault
