"""Clock: where a run stands. Immutable; everything that depends on time is a function of it."""

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Clock:
    """`step` optimizer steps are done, of `epochs` epochs with `steps_per_epoch` steps each."""

    step: int
    steps_per_epoch: int
    epochs: int

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.epochs * self.steps_per_epoch

    @property
    def epoch(self) -> int:
        """The epoch, from 0, that the next step belongs to; at a run's end, the number of epochs."""
        return self.step // self.steps_per_epoch

    @property
    def progress(self) -> float:
        """Share of the run that is done, 0 to 1."""
        return self.step / self.steps

    @property
    def at_epoch_end(self) -> bool:
        return self.step > 0 and self.step % self.steps_per_epoch == 0

    @property
    def done(self) -> bool:
        return self.step >= self.steps

    def tick(self) -> "Clock":
        return replace(self, step=self.step + 1)
