"""Runs that are hurt, then continued by the same command, and compared with one that nothing happened to."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.faults.forked import Fault, Forked
from tests.harness import events, summary

Figures = tuple[Any, ...]
Unbroken = Callable[[int], Figures]
"""What a run on so many ranks ends with, if nothing happens to it."""


def figures(run: Path) -> Figures:
    return tuple(summary(run)[key] for key in ("digest", "last", "ema"))


class Story:
    """A run into one folder: hurt, then continued by the same command."""

    def __init__(self, recipe: Path, run: Path, ranks: int, *changes: str, **options: Any) -> None:
        self.run, self.ranks = run, ranks
        self.variables = {"LSDALI_CACHE": str(recipe.parent / "cache"), **options.pop("variables", {})}
        self.options = options
        self.arguments = [str(recipe), f"run_dir={run}", *changes]
        self.starts = 0

    def start(self, *faults: Fault, **options: Any) -> Forked:
        self.starts += 1
        logs = self.run.with_name(f"{self.run.name}-logs{self.starts}")
        return Forked(logs, self.ranks, self.arguments, faults, self.variables, **{**self.options, **options})

    def goes_on(self, expected: Figures) -> bool:
        """Whether the same command ends as a run does that nothing happened to."""
        again = self.start()
        assert not any(again.ends()), again.text
        return figures(self.run) == expected


def steps(run: Path) -> list[int]:
    return [line["step"] for line in events(run, "trained")]


def again(run: Path) -> int:
    """How many steps were trained twice."""
    return len(steps(run)) - len(set(steps(run)))


def row(what: str, statuses: Sequence[int], seconds: float, run: Path, text: str, equal: bool | None) -> None:
    told = next((line for line in text.splitlines() if line.startswith(("error", "stopped", "Fatal", "step "))), "")
    same = {True: "yes", False: "NO", None: "-"}[equal]
    print(f"\n| {what} | {told[:150]} | {list(statuses)} | {same} | {seconds:.1f} | {again(run)} |", flush=True)
