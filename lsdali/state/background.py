"""Writing while training goes on: a copy of the state that nothing changes, and a thread that works on it."""

import threading
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map


def snapshot(state: Any, steady: Iterable[Tensor] = ()) -> tuple[Any, Callable[[], None]]:
    """Return a copy of a nested state on the host, and what to call before reading it.

    Tensors of a GPU go to pinned memory behind the work that is queued there, and nobody waits for them here. Those
    that are `steady` stay what they are: their owner does not change them.
    """
    kept = {x.data_ptr() for x in steady}
    devices: set[torch.device] = set()

    def copied(x: Any) -> Any:
        if not isinstance(x, Tensor) or x.data_ptr() in kept:
            return x
        if x.device.type == "cpu":
            return x.detach().clone()
        devices.add(x.device)
        return torch.empty_like(x, device="cpu", pin_memory=True).copy_(x.detach(), non_blocking=True)

    copy = tree_map(copied, state)
    arrived = [torch.cuda.Event() for _ in devices]  # type: ignore[no-untyped-call]
    for event, device in zip(arrived, devices, strict=True):
        event.record(torch.cuda.current_stream(device))

    def ready() -> None:
        for event in arrived:
            event.synchronize()

    return copy, ready


class Background:
    """A thread that does one task at a time. Exceptions of a task are raised in the main thread."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Begin a piece of work; call `finish` before."""

        def guarded() -> None:
            try:
                work()
            except Exception as error:
                self._error = error

        self._thread = threading.Thread(target=guarded, name="save", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Let the work under way come to its end, however it ends."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def check(self) -> None:
        """Raise what the last task has raised; once."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def finish(self) -> None:
        """Wait for the end of the work, and raise what it raises."""
        self.wait()
        self.check()
