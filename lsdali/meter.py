"""What a run measures of itself between two reports."""

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lsdali import dist


@dataclass
class Meter:
    """Loss terms since the last report, kept on the device, and where the time went."""

    terms: list[dict[str, Tensor]] = field(default_factory=list)
    since: float = field(default_factory=time.perf_counter)
    images: int = 0  # of all ranks
    waited: float = 0.0  # for data, on the host
    marks: list[tuple[Any, Any]] = field(default_factory=list)  # on a GPU, events before and after each batch
    aside: float = 0.0  # evaluating and saving

    def data_seconds(self) -> float:
        """Return the time spent waiting for data; call it after `means`, when the device has passed every mark.

        A GPU waits for DALI's in its stream, of which the host knows nothing: its own time counts there.
        """
        if self.marks:
            return float(sum(before.elapsed_time(after) for before, after in self.marks)) / 1000
        return self.waited

    def means(self) -> dict[str, float]:
        """The mean of every term over steps and ranks; the one place where training waits for the device."""
        names = sorted(self.terms[0])
        values = torch.stack([torch.stack([t[n].float() for n in names]) for t in self.terms]).mean(0)
        return dict(zip(names, dist.all_mean(values).tolist(), strict=True))


def mark(device: torch.device) -> Any:
    """Return an event at the present point of the GPU's work; None on a CPU."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event
