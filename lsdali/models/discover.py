"""Find what methods need in any module: the classifier, and the stages whose maps shrink."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lsdali.errors import UserError, first_line

SIDES = (64, 224, 32, 28, 299, 384)
"""Sides in pixels of the images that a module is tried with, in this order."""


@dataclass(frozen=True)
class Parts:
    """The parts of a module, by the names of its submodules."""

    classes: int  # logits that it gives
    classifier: str | None  # a linear layer, or a convolution of single positions
    channels: dict[str, int]  # of the map that leaves each stage, in order
    positionwise: bool  # whether the features are the mean of the last stage's map


@dataclass(frozen=True)
class Call:
    """The output of one submodule in a pass, after later changes in place."""

    name: str
    output: Tensor
    elementwise: bool  # whether its input had the shape of its output


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Yield Evaluation mode inside; after it each submodule is in the mode that it was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


@torch.no_grad()
def probe(module: nn.Module, side: int) -> Any:
    """Return what a module gives for two random images of this side, always the same ones.

    Its state is left as it was.
    """
    like = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0)).to(like.device, like.dtype)
    with evaluating(module), torch.random.fork_rng(devices=[]):
        return module(images)


def replace(module: nn.Module, name: str, part: nn.Module) -> None:
    """Put another submodule in the place of the one of this name."""
    above, _, last = name.rpartition(".")
    module.get_submodule(above)._modules[last] = part


def watch(module: nn.Module, side: int) -> tuple[Any, list[Call], dict[str, int]]:
    """Return a pass over the images of `probe`.

    Its result, each submodule's last tensor in the order of calls, and counts.
    """
    calls: dict[str, Call] = {}
    counts: dict[str, int] = {}

    def keep(name: str) -> Any:
        def hook(part: nn.Module, given: Any, output: Any) -> None:
            counts[name] = counts.get(name, 0) + 1
            if isinstance(output, Tensor):
                same = len(given) > 0 and isinstance(given[0], Tensor) and given[0].shape == output.shape
                calls.pop(name, None)
                calls[name] = Call(name, output, same)

        return hook

    handles = [part.register_forward_hook(keep(name)) for name, part in module.named_modules() if name]
    try:
        out = probe(module, side)
    finally:
        for handle in handles:
            handle.remove()
    return out, list(calls.values()), counts


def first_pass(module: nn.Module, name: str) -> tuple[int, Any, list[Call], dict[str, int]]:
    """Return the first side of images that the module takes, and what `watch` saw.

    Raises UserError if it takes none.
    """
    faults: dict[int, str] = {}
    for side in SIDES:
        try:
            return side, *watch(module, side)
        except Exception as fault:  # whatever a foreign module raises
            faults[side] = first_line(fault)
    raise UserError(
        f"'{name}' takes no images [2, 3, N, N] with N of {', '.join(map(str, SIDES))}; at 224 it says: {faults[224]}"
    )


def find_parts(module: nn.Module, name: str, stages: Sequence[str] | None, classifier: str | None) -> Parts:
    """Return the parts of a module; those that are named, or those that a pass over random images shows.

    Raises UserError if the module gives no logits [B, K], or a name is not what it is said to be.
    """
    side, out, calls, counts = first_pass(module, name)
    if not isinstance(out, Tensor) or out.ndim != 2 or len(out) != 2:
        what = f"a tensor {list(out.shape)}" if isinstance(out, Tensor) else f"a {type(out).__name__}"
        raise UserError(f"'{name}' gives {what} for 2 images, where logits [2, K] are needed")
    once = {part: count for part, count in counts.items() if count == 1}
    if classifier is not None:
        check_classifier(module, name, classifier)
    candidates = [classifier] if classifier is not None else last_linear(module, calls)
    head, features = None, None
    for candidate in candidates:
        features = features_before(module, candidate, side, out) if candidate in once else None
        head = candidate if features is not None else None
    if classifier is not None and head is None:
        raise UserError(f"model.classifier: what '{classifier}' gives is not what '{name}' returns")
    maps = named_stages(name, stages, calls, once) if stages else found_stages(module, calls, once, features)
    channels = {part: x.shape[1] for part, x in maps.items()}
    last = list(maps.values())[-1] if maps else None
    positionwise = features is not None and last is not None and is_mean(features, last)
    return Parts(out.shape[1], head, channels, positionwise)


def is_mean(features: Tensor, last: Tensor) -> bool:
    """Return whether features [B, C] are the mean of the positions of a map [B, C, H, W]."""
    return features.shape == last.shape[:2] and torch.allclose(features, last.mean((2, 3)), rtol=1e-4, atol=1e-5)


# ---- classifier


def classifies(part: nn.Module) -> bool:
    return isinstance(part, nn.Linear) or (isinstance(part, nn.Conv2d) and part.kernel_size == (1, 1))


def check_classifier(module: nn.Module, name: str, classifier: str) -> None:
    """Raise UserError if a module has no such part, or it is not a linear layer."""
    parts = dict(module.named_modules())
    if classifier not in parts or not classifies(parts[classifier]):
        linear = [part for part, layer in parts.items() if isinstance(layer, nn.Linear)]
        what = "there is no such part" if classifier not in parts else "it is not a linear layer"
        raise UserError(
            f"model.classifier '{classifier}': {what} in '{name}'; its last linear layers are "
            f"{', '.join(linear[-3:]) or 'none'}"
        )


def last_linear(module: nn.Module, calls: Sequence[Call]) -> list[str]:
    """Return the name of the linear layer that ran last, if there is one."""
    return [call.name for call in calls if classifies(module.get_submodule(call.name))][-1:]


def features_before(module: nn.Module, classifier: str, side: int, out: Tensor) -> Tensor | None:
    """Return what a classifier reads [2, D]; None if something else lies between it and the module's output."""
    layer = module.get_submodule(classifier)
    replace(module, classifier, nn.Identity())
    try:
        features = probe(module, side)
    except Exception:  # a module that reads its classifier's numbers
        return None
    finally:
        replace(module, classifier, layer)
    if not isinstance(features, Tensor) or features.ndim != 2:
        return None
    numbers = dict(layer.named_parameters())
    if "weight" not in numbers or features.shape[1] != numbers["weight"].flatten(1).shape[1]:
        return None
    with torch.no_grad():
        again = torch.nn.functional.linear(features, numbers["weight"].flatten(1), numbers.get("bias"))
    return features if torch.allclose(again, out, rtol=1e-4, atol=1e-5) else None


# ---- stages


def is_map(call: Call) -> bool:
    """Return whether a part gives maps [B, C, H, W] for square images."""
    shape = call.output.shape
    return len(shape) == 4 and shape[0] == 2 and shape[2] == shape[3]


def named_stages(name: str, stages: Sequence[str], calls: Sequence[Call], once: dict[str, int]) -> dict[str, Tensor]:
    """Return the map of each named stage. Raises UserError if one is no part that gives one map in each pass."""
    maps = {call.name: call.output for call in calls if is_map(call) and call.name in once}
    for stage in stages:
        if stage not in maps:
            near = [part for part in maps if "." not in part] or list(maps)
            raise UserError(
                f"model.stages: '{stage}' is no part of '{name}' that gives one map [B, C, H, W]; such parts are "
                f"{', '.join(near[:12]) or 'none'}"
            )
    order = [part for part in maps if part in stages]
    if list(stages) != order:
        raise UserError(f"model.stages: '{name}' runs them in another order: {', '.join(order)}")
    return {stage: maps[stage] for stage in stages}


def found_stages(
    module: nn.Module, calls: Sequence[Call], once: dict[str, int], features: Tensor | None
) -> dict[str, Tensor]:
    """Return the last part at each size of map, of the parts of the level that shows most sizes.

    Nothing if all show one.

    Where the classifier reads the mean of a later map of the last size, such as after a norm, that one is the last.
    """
    maps = [call for call in calls if is_map(call) and call.name in once]
    best: dict[str, Tensor] = {}
    for level in levels(module, maps):
        for whole in (True, False):
            found = by_side(module, level, whole)
            if len(found) > max(len(best), 1):
                best = found
                break
    if not best or features is None or is_mean(features, list(best.values())[-1]):
        return best
    last = list(best)[-1]
    after = maps[next(n for n, call in enumerate(maps) if call.name == last) + 1 :]
    for call in after:
        if call.output.shape[2:] == best[last].shape[2:] and is_mean(features, call.output):
            return {**{name: x for name, x in best.items() if name != last}, call.name: call.output}
    return best


def levels(module: nn.Module, maps: Sequence[Call], prefix: str = "", depth: int = 3) -> Iterator[list[Call]]:
    """Yield the parts of a module that give maps, in the order of calls.

    Then those of each of its parts, down to `depth`.
    """
    names = list(children_of(module, prefix))
    yield [call for call in maps if call.name in names]
    for name in names if depth > 1 else ():
        yield from levels(module.get_submodule(name.removeprefix(prefix)), maps, f"{name}.", depth - 1)


def children_of(module: nn.Module, prefix: str) -> Iterator[str]:
    """Yield the names of a module's parts.

    a list or dict of modules, which is never called, stands for what it holds.
    """
    for name, child in module.named_children():
        if type(child).forward is nn.ModuleList.forward:
            yield from children_of(child, f"{prefix}{name}.")
        else:
            yield prefix + name


def weight_of(part: nn.Module) -> int:
    return sum(p.numel() for p in part.parameters())


def by_side(module: nn.Module, level: Sequence[Call], whole: bool) -> dict[str, Tensor]:
    """Return the last map of each side, largest first, if a part with weights (and with parts, if `whole`) made one.

    A part with parts of its own is a block; single layers before the blocks are a stem. Nothing if a map grows
    again: such a module is no sequence of stages.
    """
    sides: dict[int, list[Call]] = {}
    for call in level:
        part = module.get_submodule(call.name)
        heavy = weight_of(part) > 0 and (not whole or len(list(part.children())) > 0)
        side = call.output.shape[2]
        if heavy or (side in sides and call.elementwise):
            if any(smaller < side for smaller in sides):
                return {}
            sides.setdefault(side, []).append(call)
    return {group[-1].name: group[-1].output for group in sides.values()}
