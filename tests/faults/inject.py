"""`python -m tests.faults.inject FAULT RANK STEP RECIPE ...`: lsdali.train with a fault in one rank's step."""

import os
import sys
import time
from collections.abc import Callable

from lsdali.train import main
from lsdali.trainer import Trainer


def exception() -> None:
    raise RuntimeError("a fault of ours")


def ten_years_on() -> None:
    """Move the clock that tells the date."""
    now = time.time
    time.time = lambda: now() + 10 * 365 * 86400


FAULTS: dict[str, Callable[[], object]] = {
    "exception": exception,
    "exit": lambda: os._exit(0),
    "clock": ten_years_on,
}


def inject(fault: str, rank: str, step: int) -> None:
    """Let the fault happen before a step, on the first start of the workers alone."""
    inner, done = Trainer.step, []
    if os.environ.get("RANK", "0") != rank or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
        return

    def step_with_fault(self: Trainer, batch: object) -> object:
        if not done and self.clock.step >= step:
            done.append(fault)
            FAULTS[fault]()
        return inner(self, batch)  # type: ignore[arg-type]

    Trainer.step = step_with_fault  # type: ignore[method-assign,assignment]


if __name__ == "__main__":
    inject(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    sys.exit(main(sys.argv[4:]))
