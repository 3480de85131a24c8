"""A profile of some training steps, as a Chrome trace in the run folder."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, model_validator
from torch.profiler import ProfilerActivity

from lsdali import dist
from lsdali.batch import Batch, TrainData
from lsdali.config import Config
from lsdali.errors import UserError, first_line

Step = Annotated[int, Field(ge=1, le=1_000_000_000)]


class ProfileConfig(Config):
    """Which training steps are profiled on rank 0."""

    steps: Annotated[tuple[Step, Step], Field(strict=False)]
    """First and last step to profile, counted from 1. The file is profile/steps-A-B.json in the run folder, for
    Perfetto or chrome://tracing. Results do not change; these steps are slower."""

    @model_validator(mode="after")
    def _in_order(self) -> "ProfileConfig":
        if self.steps[0] > self.steps[1]:
            raise ValueError(f"profile.steps: the first step comes after the last: {list(self.steps)}")
        return self


def profiled(
    train: TrainData, config: ProfileConfig | None, steps: int, folder: Path, tell: Callable[[str], None]
) -> TrainData:
    """Return the training batches of a run of so many steps; taking them profiles the steps asked for.

    Raises UserError if the run ends before the last of these.
    """
    if config is None:
        return train
    if config.steps[1] > steps:
        raise UserError(f"log.profile.steps {list(config.steps)}: this run has {steps} steps")
    return ProfiledBatches(train, config, folder, tell) if dist.is_main() else train


class ProfiledBatches:
    """Batches between which a profile begins and ends. A run that resumes inside the range profiles the rest of it."""

    def __init__(self, train: TrainData, config: ProfileConfig, folder: Path, tell: Callable[[str], None]) -> None:
        self.train, self.config, self.tell = train, config, tell
        first, last = config.steps
        self.path = folder / f"profile/steps-{first}-{last}.json"
        self.running: Any = None
        self.stack = ExitStack()

    def epoch(self, step: int) -> Iterator[Batch]:
        """Yield the batches from a step on, as the loader does."""
        batches = iter(self.train.epoch(step))
        while True:
            self.at(step)
            batch = next(batches, None)
            if batch is None:
                return
            yield batch
            step += 1

    def at(self, done: int) -> None:
        """Begin or end the profile after this number of steps."""
        first, last = self.config.steps
        if self.running is None and first - 1 <= done < last:
            gpu = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
            self.running = self.stack.enter_context(torch.profiler.profile(activities=[ProfilerActivity.CPU, *gpu]))
        elif self.running is not None and done == last:
            self.stack.close()
            self.write()
            self.running = None

    def write(self) -> None:
        """Write the trace; a disk that is full costs the trace alone."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.running.export_chrome_trace(str(self.path))
        except (OSError, RuntimeError) as fault:
            self.tell(f"the profile {self.path} could not be written: {first_line(fault)}")
        else:
            self.tell(f"the profile of these steps is in {self.path}")
