"""A CUDA device that is not there: its tensors have a shape, a type and a place, but no numbers.

torch's fake tensors refuse operations that mix devices or that need a number of the device on the host. So code runs
here as it would on a GPU, but for values, kernels, backward passes and time. Tensors of the host are real.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

CUDA = torch.device("cuda", 0)


class Host(TorchDispatchMode):
    """Works out for real what touches the host alone, and refuses copies from the device while `strict`."""

    strict = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, (Tensor, torch.device))]
        on_host = not any(isinstance(x, FakeTensor) or "cuda" in str(getattr(x, "device", x)) for x in given)
        with _disable_current_modes() if on_host else nullcontext():
            out = func(*args, **kwargs)
        if self.strict and not on_host:
            results = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
            goes_on = kwargs.get("non_blocking") or (func is torch.ops.aten.copy_.default and args[2:] == (True,))
            assert goes_on or all(x.is_cuda for x in results), f"{func} waits for the device"
        return out


class Event:
    """A point in the device's work, passed as soon as it is set."""

    def record(self, stream: Any = None) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True


@contextmanager
def made_up_cuda() -> Iterator[Host]:
    """Inside, `CUDA` can be used; set `strict` of what it gives for code that must not wait for the device."""
    host = Host()
    with pytest.MonkeyPatch.context() as patch, FakeTensorMode(allow_non_fake_inputs=True), host:
        patch.setattr(nn.Module, "to", moved)
        patch.setattr(Tensor, "pin_memory", lambda x: x)
        empty = torch.empty
        patch.setattr(torch, "empty", lambda *size, pin_memory=False, **others: empty(*size, **others))
        patch.setattr(torch.cuda, "Event", Event)
        yield host


def moved(module: nn.Module, device: Any = None, memory_format: Any = None) -> nn.Module:
    """`Module.to`, which cannot put fake tensors in the place of real ones."""

    def new(x: Tensor) -> Tensor:
        x = x.detach().to(device)
        return x if memory_format is None or x.dim() != 4 else x.contiguous(memory_format=memory_format)

    for part in module.modules():
        for name, p in part._parameters.items():
            part._parameters[name] = None if p is None else nn.Parameter(new(p), p.requires_grad)
        for name, b in part._buffers.items():
            part._buffers[name] = None if b is None else new(b)
    return module


@contextmanager
def half_precision() -> Iterator[None]:
    """fp16 autocast on the device; `torch.autocast` would find that there is none."""
    torch.set_autocast_enabled("cuda", True)  # noqa: FBT003
    torch.set_autocast_dtype("cuda", torch.float16)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        torch.set_autocast_enabled("cuda", False)  # noqa: FBT003
