"""The content of a checkpoint to the parts of a run, and what of it does not fit; the same on every rank."""

from collections.abc import Iterator, Mapping
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor

from lsdali import dist
from lsdali.errors import SharedError, UserError
from lsdali.state.checkpoint import ROWS, Stateful, finite


class WrongContent(SharedError):
    """An intact checkpoint does not fit this run; the same on every rank."""


def restore(parts: Mapping[str, Stateful], states: Mapping[str, Any]) -> None:
    """Give each part its state back; a collective.

    Raises:
        WrongContent: the checkpoint has other parts than this run, or one of them holds what this run cannot take. The
            parts are then to be given another checkpoint's states, all of them.
    """
    if parts.keys() != states.keys():
        raise WrongContent(
            f"wrong inside: it holds the parts {', '.join(sorted(map(str, states)))}, but this run has "
            f"{', '.join(sorted(parts))}"
        )
    for name, part in parts.items():
        own = part.state_dict()
        try:
            with dist.raise_together():
                give_state(name, part, own, states[name])
        except SharedError as error:
            raise WrongContent(f"wrong inside: {error}") from None


def give_state(name: str, part: Stateful, own: Mapping[str, Any], state: Any) -> None:
    """Give one part its state. Raises UserError if it does not fit."""
    try:
        for where, before, saved in both(name, own, state):
            if before.shape != saved.shape or before.is_floating_point() != saved.is_floating_point():
                raise UserError(f"{where} is {shape_and_type(saved)}, and {shape_and_type(before)} in this run")
        if name not in ROWS and not finite(state):
            raise UserError(f"its part {name} holds numbers that are not finite")
        part.load_state_dict(state)
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever a strange content leads to
        said = shorten(str(error), 200, placeholder=" ...")
        raise UserError(f"its part {name} cannot be read ({type(error).__name__}: {said})") from None


def shape_and_type(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}"


def both(where: str, own: Any, saved: Any) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield the name and the two tensors of each place where two states have one."""
    if isinstance(own, Tensor) and isinstance(saved, Tensor):
        yield where, own, saved
    elif isinstance(own, Mapping) and isinstance(saved, Mapping):
        for key in own.keys() & saved.keys():
            yield from both(f"{where}.{key}", own[key], saved[key])
    elif isinstance(own, list) and isinstance(saved, list) and len(own) == len(saved):
        for number, pair in enumerate(zip(own, saved, strict=True)):
            yield from both(f"{where}.{number}", *pair)
