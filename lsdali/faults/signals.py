"""Signals: the first asks a run to stop, a second one ends the process at once."""

import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

CAUGHT = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
SAME = 3.0  # seconds in which further signals count as the first: Slurm and torchrun both send it to the workers
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


@contextmanager
def caught(tell: Callable[[str], None], end: Callable[[int], None] = os._exit) -> Iterator[None]:
    """Call `tell`, inside the block, with the name of the first signal, and `end` with 128 + n for a second one.

    Both are called in a thread of their own, which the kernel wakes through a pipe: they do not wait for the main
    thread, which may be inside a collective. A signal that is ignored (nohup) stays ignored. Use it in the main thread.
    """
    read, write = os.pipe()
    os.set_blocking(write, False)
    before = {number: signal.getsignal(number) for number in CAUGHT}
    wakeup = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    thread = threading.Thread(target=_listen, args=(read, tell, end), name="signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        os.close(write)
        thread.join()
        os.close(read)


def _listen(read: int, tell: Callable[[str], None], end: Callable[[int], None]) -> None:
    first = 0.0
    while numbers := os.read(read, 1):
        number = numbers[0]
        if number not in CAUGHT:
            continue
        if not first:
            first = time.monotonic()
            tell(signal.Signals(number).name)
        elif time.monotonic() - first > SAME:
            end(128 + number)


def end_with_parent() -> None:
    """Ask the kernel for SIGTERM when the parent (torchrun's agent) dies, so that no worker is left behind."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
