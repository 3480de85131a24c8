"""Pretrained weights: torchvision's, timm's, or a file; every tensor is accounted for."""

import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from lsdali.config import Config, PathText
from lsdali.errors import UserError
from lsdali.models.digest import weights_digest
from lsdali.models.families.timm import PREFIX, timm_state
from lsdali.models.families.torchvision import THEIRS, TORCHVISION
from lsdali.models.families.torchvision_weights import torchvision_state, weights_entry
from lsdali.models.student import Network
from lsdali.state.checkpoint import read as read_checkpoint
from lsdali.state.find import find_checkpoint
from lsdali.state.foreign import no_weights, read_around_objects, read_torch, refusal

Which = Literal["model", "ema"]

AVERAGE = re.compile(r"(^|_)(ema|swa|averaged?)($|_)", re.IGNORECASE)
WRAPPED = re.compile(r"(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


class Weights(Config):
    """Base of all sources of weights."""

    digest: str | None = None
    """SHA-256 of the weights as they are read (of names, types, shapes and bytes); null takes any."""
    others: Literal["refuse", "report"] = "refuse"
    """What to do if tensors are missing, or unknown to the network: refuse the weights, or report each and go on."""
    which: Which = "model"
    """The model's own weights, or their moving average if the file holds one (state_dict_ema, model_ema ...)."""
    classifier: Literal["fitting", "new"] = "fitting"
    """fitting: take the classifier, which must have as many classes; new: start with an untrained one."""

    def check_compatible(self, name: str) -> None:
        """Raise ValueError if the source has nothing for the network `name`."""

    @abstractmethod
    def read(self, name: str) -> tuple[Mapping[str, Any], str]:
        """Return the tensors by their names, perhaps inside wrappers, and what to call them in a sentence."""


class TorchvisionWeights(Weights):
    """torchvision's weights for the network."""

    source: Literal["torchvision"] = "torchvision"
    weights: str
    """torchvision's name of them, such as IMAGENET1K_V1."""

    def check_compatible(self, name: str) -> None:
        if name not in TORCHVISION and not name.startswith(THEIRS):
            raise ValueError(f"torchvision has no weights for '{name}'; it has for its own networks only")
        try:
            weights_entry(name, self.weights)
        except UserError as fault:
            raise ValueError(str(fault)) from fault

    def read(self, name: str) -> tuple[Mapping[str, Any], str]:
        return torchvision_state(name, self.weights), f"torchvision's {name} {self.weights}"


class TimmWeights(Weights):
    """timm's weights for the network."""

    source: Literal["timm"] = "timm"
    tag: str | None = None
    """timm's name of the training run, such as a1_in1k; null is timm's default."""

    def check_compatible(self, name: str) -> None:
        if not name.startswith(PREFIX):
            raise ValueError(f"timm's weights are for networks named timm/..., and this one is '{name}'")

    def read(self, name: str) -> tuple[Mapping[str, Any], str]:
        bare = name.removeprefix(PREFIX) + (f".{self.tag}" if self.tag else "")
        return timm_state(bare), f"timm's {bare}"


class FileWeights(Weights):
    """A file: safetensors, or what torch saved: a state dict, or a trainer's checkpoint with one somewhere inside.

    Of all the state dicts in a file, the one is taken whose names, without a common prefix, the network knows best.
    Nothing in the file can run code.
    """

    source: Literal["file"] = "file"
    path: PathText
    """Path of the file."""

    def read(self, name: str) -> tuple[Mapping[str, Any], str]:
        return read_file(Path(self.path)), f"'{self.path}'"


class RunWeights(Weights):
    """A run of lsdali, by its folder or a checkpoint file."""

    source: Literal["run"] = "run"
    path: PathText
    """The run folder, or a checkpoint file."""
    checkpoint: Literal["best", "last"] = "best"
    """Which checkpoint of the folder."""

    def read(self, name: str) -> tuple[Mapping[str, Any], str]:
        path = find_checkpoint(Path(self.path), self.checkpoint)
        parts = read_checkpoint(path)["parts"]
        averages = {"ema": parts["ema"]["weights"]} if "ema" in parts else {}
        return {"model": parts["student"], **averages}, f"'{path}'"


WeightsConfig = Annotated[TorchvisionWeights | TimmWeights | FileWeights | RunWeights, Field(discriminator="source")]


def read_file(path: Path) -> Mapping[str, Any]:
    """Return the content of a file by its keys. Raises UserError if it cannot be read or has no keys."""
    if not path.exists():
        raise UserError(f"model.weights: the file '{path}' does not exist")
    try:
        if why := no_weights(path):
            raise UserError(f"model.weights: the file '{path}' cannot be read: {why}")
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return dict(arrays)
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        content = read_or_read_around(path)
    except UserError:
        raise
    except Exception as fault:  # whatever the readers raise on foreign bytes
        raise UserError(f"model.weights: the file '{path}' cannot be read: {refusal(fault)}") from fault
    if not isinstance(content, Mapping | list | tuple):
        raise UserError(f"model.weights: the file '{path}' holds a {type(content).__name__}, not tensors by name")
    return content if isinstance(content, Mapping) else {str(number): part for number, part in enumerate(content)}


def read_or_read_around(path: Path) -> Any:
    """Return a file's content without the objects in it, if there are tensors beside them. Raises what torch does."""
    try:
        return read_torch(path)
    except Exception:
        with suppress(Exception):
            content = read_around_objects(path)
            if isinstance(content, Mapping) and find_states(content):
                return content
        raise


DEEPEST_WRAPPER = 20  # levels of wrappers that are looked into; a dictionary may hold itself


def find_states(content: Mapping[Any, Any], path: tuple[str, ...] = ()) -> dict[tuple[str, ...], dict[str, Tensor]]:
    """Return every mapping of names to tensors inside a file's content, by the keys and positions that lead to it."""
    tensors = {str(key): as_tensor(value) for key, value in content.items() if len(path) < DEEPEST_WRAPPER}
    state = {key: value for key, value in tensors.items() if value is not None}
    found = {path: state} if state else {}
    for key, value in content.items():
        inner = dict(enumerate(value)) if isinstance(value, list | tuple) else value
        if isinstance(inner, Mapping) and len(path) < DEEPEST_WRAPPER and value is not content:
            found |= find_states(inner, (*path, str(key)))
    return found


def as_tensor(value: Any) -> Tensor | None:
    """Return a tensor, or NumPy's numbers as one; None for anything else."""
    if isinstance(value, Tensor):
        return value
    return torch.from_numpy(value) if isinstance(value, np.ndarray) and value.dtype.kind in "fiu" else None


def is_average(path: tuple[str, ...]) -> bool:
    """Return whether the keys that lead to a state say that it is an average of weights."""
    return any(AVERAGE.search(key) for key in path)


def best_prefix(known: Collection[str], state: Mapping[str, Tensor]) -> tuple[int, str]:
    """Return the prefix of the state's names without which most of them are known, and how many those are."""
    counts: Counter[str] = Counter()
    for key in state:
        parts = key.split(".")
        for depth in range(len(parts)):
            if ".".join(parts[depth:]) in known:
                counts["".join(f"{part}." for part in parts[:depth])] += 1
    (prefix, count), *_ = counts.most_common(1) or [("", 0)]
    return count, prefix


def pick_state(network: Network, content: Mapping[str, Any], title: str, which: Which) -> tuple[dict[str, Tensor], str]:
    """Return the state inside a trainer's wrappers that fits the network best, and the prefix of its names there.

    Raises UserError, which lists what was found, if no tensor has a name of the network or there is no such average.
    """
    known = network.state_dict().keys() | network.aliases.keys()
    states = {path: without_wrappers(state) for path, state in find_states(content).items()}
    fits = {path: best_prefix(known, state) for path, state in states.items()}
    fitting = [path for path, (count, _) in fits.items() if count]
    if not fitting:
        names = [key for state in states.values() for key in state]
        keys = shorten(list(map(str, content))) or "none"
        found = f"its tensors are {shorten(names)}" if names else f"its keys are {keys}"
        raise UserError(f"the weights {title} hold no tensor of the network; {found}")
    chosen = [path for path in fitting if is_average(path) == (which == "ema")]
    if not chosen and which == "ema":
        raise UserError(f"the weights {title} hold no average of weights; leave out model.weights.which")
    path = max(chosen or fitting, key=lambda path: fits[path][0])
    return states[path], fits[path][1]


def without_wrappers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state without what compilation, sharding and recomputing put into names."""
    return {WRAPPED.sub("", key): value for key, value in state.items()}


def load_weights(network: Network, name: str, config: WeightsConfig, log: Callable[[str], None]) -> None:
    """Put the weights of a recipe into a network. torch's random numbers are left as they were.

    A classifier for another number of classes stays as it was initialised, and so does any if the recipe wants a
    new one; this is said.

    Raises:
        UserError: the weights cannot be read, have another digest, or do not fit the network; the tensors are named.
    """
    with torch.random.fork_rng(devices=[]):
        content, title = config.read(name)
    whole, prefix = pick_state(network, content, title, config.which)
    state = {key.removeprefix(prefix): value for key, value in whole.items() if key.startswith(prefix)}
    if len(state) < len(whole):
        left = [key for key in whole if not key.startswith(prefix)]
        log(f"the weights {title} are those named {prefix}...; left where they are: {shorten(left)}")
    digest = weights_digest(state)
    if config.digest is not None and config.digest != digest:
        raise UserError(
            f"the weights {title} have digest {digest}, but the recipe asks for {config.digest}: "
            "these are other weights"
        )
    found = renamed(network, state)
    own = network.state_dict()
    head = own.keys() & found.keys() & {"classifier.weight", "classifier.bias"}
    replaced = {key for key in head if config.classifier == "new" or found[key].shape != own[key].shape}
    if replaced:
        trained = len(found["classifier.weight"]) if "classifier.weight" in found else 0
        log(f"the weights {title} know {trained} classes: the classifier for {network.classes} begins untrained")
    found = {key: value for key, value in found.items() if key not in replaced}
    complaints = mismatches(own, found, replaced)
    if complaints and config.others == "refuse":
        short = "; ".join(f"{what}: {shorten(keys)}" for what, keys in complaints.items())
        raise UserError(
            f"the weights {title} do not fit '{name}' ({short}); "
            "model.weights.others: report would go on without these tensors"
        )
    for what, keys in complaints.items():
        log(f"the weights {title}, {what}: {', '.join(keys)}")
    fitting = {key: value for key, value in found.items() if key in own and own[key].shape == value.shape}
    if not fitting:
        raise UserError(f"the weights {title} hold no tensor of '{name}'")
    if wrong := [key for key, value in fitting.items() if not value.isfinite().all()]:
        raise UserError(f"the weights {title} are not finite in {shorten(wrong)}: their training had diverged")
    network.load_state_dict({**own, **fitting})


def renamed(network: Network, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors by the network's own names; weights of 1x1 convolutions become those of a linear layer."""
    own = network.state_dict()
    foreign = sum(key in network.aliases for key in state) > sum(key in own for key in state)
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        name = network.aliases.get(key, key) if foreign else key
        linear = name in own and own[name].ndim == 2 and value.ndim == 4 and value.shape[2:] == (1, 1)
        out[name] = value.flatten(1) if linear else value
    return out


def mismatches(own: Mapping[str, Tensor], found: Mapping[str, Tensor], replaced: set[str]) -> dict[str, list[str]]:
    """Return tensors that are missing, unknown, or of another shape, by what is wrong.

    Counts of batches may be missing.
    """
    both = [key for key in found if key in own]
    wrong = {
        "missing": [k for k in own if k not in found and k not in replaced and not k.endswith("num_batches_tracked")],
        "not in the network": [k for k in found if k not in own],
        "of another shape": [f"{k} {list(found[k].shape)}" for k in both if found[k].shape != own[k].shape],
    }
    return {what: keys for what, keys in wrong.items() if keys}


def shorten(names: list[str], most: int = 5) -> str:
    """Return up to five of the names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
