"""Clock: the position of a run. Immutable; everything that depends on time is a function of it."""

from dataclasses import dataclass, replace
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class PerEpoch:
    """A positive integer for each epoch: `first`, then the value of the latest change."""

    first: int
    changes: tuple[tuple[int, int], ...] = ()  # (epoch, number), epochs rising from 1 on

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """(first epoch, number) of each stretch of epochs."""
        return (0, self.first), *self.changes

    def at(self, epoch: int) -> int:
        """Return the number of one epoch."""
        return next(number for first, number in reversed(self.spans) if first <= epoch)

    def before(self, epoch: int) -> int:
        """Return the sum over all earlier epochs."""
        ends = [*(first for first, _ in self.changes), epoch]
        return sum(n * max(min(end, epoch) - first, 0) for (first, n), end in zip(self.spans, ends, strict=True))

    def weighted(self, other: "PerEpoch", epoch: int) -> int:
        """Return the sum of the products with another one over all earlier epochs."""
        starts = sorted({first for first, _ in (*self.spans, *other.spans) if first < epoch})
        return sum(self.at(first) * other.at(first) * (end - first) for first, end in pairwise([*starts, epoch]))

    def locate(self, count: int) -> tuple[int, int]:
        """Return the epoch that `count` falls into, with epochs laid end to end, and how far into it."""
        first, number = next((e, n) for e, n in reversed(self.spans) if self.before(e) <= count)
        epoch, into = divmod(count - self.before(first), number)
        return first + epoch, into


@dataclass(frozen=True, slots=True)
class Clock:
    """The position of a run: `step` optimizer steps are done, of `epochs` epochs with so many steps each."""

    step: int
    steps_per_epoch: PerEpoch
    epochs: int

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.steps_per_epoch.before(self.epochs)

    @property
    def epoch(self) -> int:
        """The epoch, from 0, that the next step belongs to; at a run's end, the number of epochs."""
        return self.steps_per_epoch.locate(self.step)[0]

    @property
    def progress(self) -> float:
        """Share of the run that is done, 0 to 1, in epochs."""
        epoch, into = self.steps_per_epoch.locate(self.step)
        length = self.steps_per_epoch.at(epoch)
        return (epoch * length + into) / (self.epochs * length)

    @property
    def at_epoch_end(self) -> bool:
        return self.step > 0 and self.steps_per_epoch.locate(self.step)[1] == 0

    @property
    def done(self) -> bool:
        return self.step >= self.steps

    def tick(self) -> "Clock":
        return replace(self, step=self.step + 1)
