"""The live line of a run in a terminal: it fits any width, and leaves out what matters least first."""

import time
from dataclasses import dataclass, field

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

LONGEST_BAR = 40
SHORTEST_BAR = 8
LEAST_FIRST = ("wait", "lr", "rate", "bar", "loss", "left", "doing", "epoch")
"""Parts that a narrow terminal leaves out, the first one first; the step stays."""


@dataclass
class Progress:
    """The progress of a run, as one line."""

    epoch: int = 1  # that is being trained, from 1
    epochs: int = 0
    step: int = 0  # steps done
    steps: int = 0
    loss: str = ""
    lr: str = ""
    rate: str = ""
    wait: str = ""
    doing: str = ""  # beside training: evaluating, saving
    marks: list[tuple[float, int]] = field(default_factory=list)  # time and steps done, of the last reports

    def seconds_left(self, now: float) -> float | None:
        """Return how long the rest takes at the speed since the oldest mark; None while that is not known."""
        if not self.marks or self.step <= self.marks[0][1]:
            return None
        then, step = self.marks[0]
        return (now - then) / (self.step - step) * (self.steps - self.step)

    def parts(self, now: float) -> dict[str, str]:
        """Return the columns by name, without the bar, in the order in which they stand."""
        left = self.seconds_left(now)
        return {
            "epoch": f"epoch {self.epoch}/{self.epochs}",
            "bar": "",
            "step": f"step {self.step}/{self.steps}",
            "doing": self.doing,
            "loss": self.loss,
            "lr": self.lr,
            "rate": self.rate,
            "wait": self.wait,
            "left": "" if left is None else f"{clock_time(left)} left",
        }

    def line(self, width: int, now: float) -> str:
        """Return the line, `width` columns at most."""
        parts = {name: text for name, text in self.parts(now).items() if text or name == "bar"}
        for name in ("", *LEAST_FIRST):
            parts.pop(name, None)
            texts = [text for key, text in parts.items() if key != "bar"]
            taken = len("  ".join(texts))
            if "bar" not in parts:
                if taken <= width:
                    break
            elif (room := width - taken - 2) >= SHORTEST_BAR:
                parts["bar"] = self.drawn(min(room, LONGEST_BAR))
                break
        return "  ".join(parts.values())[:width]

    def drawn(self, length: int) -> str:
        """Return a bar of so many columns."""
        done = round(length * self.step / max(self.steps, 1))
        return "━" * done + "╌" * (length - done)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(self.line(options.max_width, time.monotonic()), no_wrap=True, overflow="crop")


def clock_time(seconds: float) -> str:
    """Return hours, minutes and seconds."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def live(console: Console, progress: Progress) -> Live:
    """Return the line on a terminal, drawn anew by a thread; what the console prints scrolls above it."""
    return Live(progress, console=console, refresh_per_second=5, redirect_stdout=False, redirect_stderr=False)
