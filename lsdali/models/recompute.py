"""Gradient checkpointing: blocks whose activations are computed again in the backward pass (Chen et al. 2016).

The second pass sees the same random numbers and leaves BatchNorm's running statistics alone, so that weights and
statistics are those of a run that keeps everything.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lsdali.errors import UserError


class Recomputed:
    """Mixin in front of a block's class that recomputes its activations."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Run the block; if a gradient is wanted, keep its inputs alone."""
        run = super().forward  # type: ignore[misc]
        if not (self.training and torch.is_grad_enabled()):
            return run(*args, **kwargs)
        return checkpoint(run, *args, use_reentrant=False, context_fn=partial(passes, self), **kwargs)


def passes(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return what surrounds the first and the second pass of a block."""
    return nullcontext(), untracked(block)


@contextmanager
def untracked(block: nn.Module) -> Iterator[None]:
    """Give the BatchNorms of a block copies of their running statistics inside, which are thrown away after it."""
    norms = [m for m in block.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    kept = [dict(norm._buffers) for norm in norms]
    for norm in norms:
        norm._buffers.update({name: None if x is None else x.clone() for name, x in norm._buffers.items()})
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            norm._buffers.update(buffers)


def units(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the blocks of a network: modules with parts of their own that stand in a sequence."""
    listed = isinstance(module, (nn.Sequential, nn.ModuleList)) or type(module).forward is nn.ModuleDict.forward
    for child in module.children():
        parts = [part for part in child.children() if any(True for _ in part.parameters())]
        plain = isinstance(child, (nn.Sequential, nn.ModuleList)) or type(child).forward is nn.ModuleDict.forward
        if listed and parts and not plain:
            yield child
        else:
            yield from units(child)


def recompute_blocks(network: nn.Module, name: str) -> None:
    """Let every block of a network compute its activations again; names and parameters stay.

    Raises UserError if it has no blocks.
    """
    found = list(units(network))
    if not found:
        raise UserError(
            f"model.gradient_checkpointing: '{name}' has no blocks that could be computed again; leave the key out"
        )
    for block in found:
        kind = type(block)
        block.__class__ = type(f"Recomputed{kind.__name__}", (Recomputed, kind), {"__module__": kind.__module__})
