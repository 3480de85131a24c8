"""Skip steps that are not finite, and count them, without waiting for the device in a step."""

from collections import deque
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

BEHIND = 2  # steps after which a GPU's flag is read: it has passed them, since its queue holds no more


class Buffers:
    """The student's floating-point buffers (BatchNorm's running statistics), as they were before a step.

    The forward pass of a step that is skipped has already written them.
    """

    def __init__(self) -> None:
        self._live: list[Tensor] = []  # flat views
        self._before = self._after = torch.empty(0)

    def keep(self, student: nn.Module) -> None:
        if not self._live:
            self._live = [b.detach().view(-1) for b in student.buffers() if b.is_floating_point()]
        if self._live:
            self._before = torch.cat(self._live)

    @torch.no_grad()
    def undo(self, skipped: Tensor) -> None:
        """Put them back if `skipped` ([] float) is 1. A GPU decides that itself."""
        if not self._live or (not skipped.is_cuda and not skipped):
            return
        flat = torch.where(skipped > 0, self._before, torch.cat(self._live))
        torch._foreach_copy_(self._live, torch.split(flat, [b.numel() for b in self._live]))


class Skips:
    """The number of skipped steps, the same on every rank at the same step.

    The flag of a GPU is read `BEHIND` steps later, from pinned memory.
    """

    def __init__(self) -> None:
        self.count = 0
        self._flags: deque[tuple[Tensor, Any]] = deque()

    def add(self, skipped: Tensor) -> None:
        """Note the flag of a step, [] float."""
        if not skipped.is_cuda:
            self.count += bool(skipped)
            return
        pinned = torch.empty((), dtype=skipped.dtype, pin_memory=True)
        pinned.copy_(skipped, non_blocking=True)
        passed = torch.cuda.Event()  # type: ignore[no-untyped-call]
        passed.record()
        self._flags.append((pinned, passed))
        if len(self._flags) > BEHIND:
            first, event = self._flags.popleft()
            event.synchronize()
            self.count += bool(first)


def observe(method: Any, seen: Iterable[tuple[Any, Tensor]], skipped: Tensor | None) -> None:
    """Let a method observe the parts of a step, if the step was not skipped ([] float, 1 if it was).

    On a GPU nobody on the host knows that: the rows of its memory carry the flag, and its own tensors are put back.
    Without a flag (fp16) numbers that are not finite are replaced by 0.
    """
    if skipped is None:
        for part, observed in seen:
            method.observe(part, observed.nan_to_num(0, 0, 0))
        return
    if not skipped.is_cuda:
        if not skipped:
            for part, observed in seen:
                method.observe(part, observed)
        return
    before = {name: value.clone() for name, value in vars(method).items() if isinstance(value, Tensor)}
    if method.memory is not None:
        method.memory.skipped = skipped
    for part, observed in seen:
        method.observe(part, observed)
    for name, value in before.items():
        live = getattr(method, name)
        live.copy_(torch.where(skipped > 0, value, live))
