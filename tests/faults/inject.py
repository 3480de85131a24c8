"""`python -m tests.faults.inject FAULT RANK STEP RECIPE ...`: lsdali.train with a fault in one rank's step."""

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from lsdali.train import main
from lsdali.trainer import Trainer


def exception() -> None:
    raise RuntimeError("a fault of ours")


def ten_years_on() -> None:
    """Move the clock that tells the date."""
    now = time.time
    time.time = lambda: now() + 10 * 365 * 86400


def send(*names: str, apart: float = 0.1) -> None:
    """Send signals to this process; it is carried on by the kernel and a thread."""
    for name in names:
        os.kill(os.getpid(), getattr(signal, name))
        time.sleep(apart)


def spoil_images(trainer: Trainer, batch: Any) -> None:
    batch.images[0, 0, 0, 0] = float("nan")


def spoil_gradient(trainer: Trainer, batch: Any) -> None:
    """Make one gradient NaN in the next backward pass, before ranks add theirs up."""

    def hook(gradient: Any) -> Any:
        handle.remove()
        return gradient * float("nan")

    handle = next(trainer.student.parameters()).register_hook(hook)


def sleep_for_good(*_: Any) -> None:
    time.sleep(10**6)


FAULTS: dict[str, Callable[..., object]] = {
    "exception": lambda *_: exception(),
    "exit": lambda *_: os._exit(0),
    "clock": lambda *_: ten_years_on(),
    "abort": lambda *_: os.abort(),
    "two signals": lambda *_: send("SIGTERM", "SIGTERM", apart=6.0),
    "sleep": sleep_for_good,
    "nan in the images": spoil_images,
    "nan in a gradient": spoil_gradient,
    **{name: lambda *_, name=name: send(name) for name in ("SIGKILL", "SIGTERM", "SIGINT", "SIGSTOP")},
}


def inject(fault: str, rank: str, step: int) -> None:
    """Let the fault happen before a step, on the first start of the workers alone."""
    inner, done = Trainer.step, []
    if os.environ.get("RANK", "0") != rank or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
        return

    def step_with_fault(self: Trainer, batch: object) -> object:
        if not done and self.clock.step >= step:
            done.append(fault)
            FAULTS[fault](self, batch)
        return inner(self, batch)  # type: ignore[arg-type]

    Trainer.step = step_with_fault  # type: ignore[method-assign,assignment]


if __name__ == "__main__":
    inject(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    sys.exit(main(sys.argv[4:]))
