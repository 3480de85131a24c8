"""Which operations of a training step change the memory layout of images or maps: each of them is a copy."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def layout(x: Tensor) -> str | None:
    """`last` where the channels of [B, C..., H, W] lie closest together, `first` where a row of places does.

    None where the sizes do not tell: with one channel or one place both are the same.
    """
    if x.ndim < 4 or x.numel() == 0:
        return None
    dense = [(size, stride) for size, stride in zip(x.shape, x.stride(), strict=True)]
    channels = [stride for size, stride in dense[1:-2] if size > 1 and stride]
    places = [stride for size, stride in dense[-2:] if size > 1 and stride]
    if not channels or not places:
        return None
    if max(channels) < min(places):
        return "last"
    return "first" if max(places) < min(channels) else None


COPYING = ("clone", "_to_copy", "copy_", "convolution", "convolution_backward")
"""What copies whole maps where layouts differ: copies, and convolutions, which bring their inputs into one layout.
Other operations read each map as it lies."""


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations that read one layout and read or write another, by name and where they were called.

    Forward and backward both; what a kernel copies inside itself shows as its inputs being in two layouts.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: Counter[tuple[str, str]] = Counter()
        self.inside: list[nn.Module] = []
        self.hooks = [hook for part in module.modules() for hook in self.follow(part)]

    def follow(self, part: nn.Module) -> Iterator[Any]:
        yield part.register_forward_pre_hook(lambda m, _: self.inside.append(m))
        yield part.register_forward_hook(lambda *_: void(self.inside.pop()))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.is_view:  # reads nothing
            return out
        tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)]
        if {"first", "last"} <= {layout(x) for x in tensors}:
            self.found[str(func).removeprefix("aten.").removesuffix(".default"), self.caller()] += 1
        return out

    def caller(self) -> str:
        """Whose code called: the innermost module that is not one of torch's own layers."""
        if not self.inside:
            return "backward"
        for part in reversed(self.inside):
            if not type(part).__module__.startswith("torch.nn"):
                return f"{type(part).__module__.split('.')[0]} {type(part).__name__}"
        return "torch"


def void(_: object) -> None:
    """Forward hooks that return nothing leave the output alone."""


def conversions(module: nn.Module, images: Tensor) -> Counter[tuple[str, str]]:
    """Operations of one forward and backward pass that mix layouts, by name and calling code; images [B, 3, H, W].

    Module and images are brought into channels last first. The sum of all outputs is differentiated.
    """
    module.to(memory_format=torch.channels_last)
    images = images.to(memory_format=torch.channels_last)
    watch = Watch(module)
    try:
        with watch:
            out = module(images)
            tensors = [x for x in tree_leaves(out) if isinstance(x, Tensor) and x.requires_grad]
            torch.stack([x.sum() for x in tensors]).sum().backward()  # type: ignore[no-untyped-call]
    finally:
        for hook in watch.hooks:
            hook.remove()
    return watch.found
