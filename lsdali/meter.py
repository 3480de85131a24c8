"""Losses and times of a run between two reports."""

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lsdali import dist
from lsdali.skips import Skips

SKIPPED = "skipped"  # beside the terms of a step: [] float, 1 where it has updated nothing, the same on every rank


@dataclass
class Meter:
    """Loss terms since the last report, kept on the device, and where the time went."""

    terms: list[dict[str, Tensor]] = field(default_factory=list)
    since: float = field(default_factory=time.perf_counter)
    images: int = 0  # of all ranks
    waited: float = 0.0  # for data, on the host
    marks: list[tuple[Any, Any]] = field(default_factory=list)  # on a GPU, events before and after each batch
    aside: float = 0.0  # evaluating and saving
    skips: Skips = field(default_factory=Skips)

    def add(self, terms: dict[str, Tensor]) -> None:
        """Take in the terms of a step."""
        self.terms.append(terms)
        if SKIPPED in terms:
            self.skips.add(terms[SKIPPED])

    def data_seconds(self) -> float:
        """Return the time spent waiting for data; call it after `read`, when the device has passed every mark.

        A GPU waits for DALI's in its stream, of which the host knows nothing: its own time counts there.
        """
        if self.marks:
            return float(sum(before.elapsed_time(after) for before, after in self.marks)) / 1000
        return self.waited

    @property
    def names(self) -> list[str]:
        return sorted(self.terms[0].keys() - {SKIPPED})

    def values(self) -> Tensor:
        """Return [steps, terms] of this rank."""
        return torch.stack([torch.stack([t[n].float() for n in self.names]) for t in self.terms])

    def read(self) -> tuple[dict[str, float], list[int]]:
        """Return the mean of every term over ranks and the steps that were not skipped, and which were, from 0.

        The one place where training waits for the device.
        """
        values = self.values()
        skipped = torch.stack([t.get(SKIPPED, values.new_zeros(())).to(values) for t in self.terms])
        kept = (1 - skipped).sum()
        means = torch.where(skipped[:, None] > 0, 0, values).sum(0) / kept
        read = dist.all_mean(torch.cat([means, skipped])).tolist()
        count = len(self.names)
        return dict(zip(self.names, read[:count], strict=True)), [n for n, x in enumerate(read[count:]) if x > 0]

    def causes(self, skipped: list[int], step: int) -> list[str]:
        """Return a sentence for each skipped step: its number, and which terms were not finite where; a collective.

        `step` is the number of steps done when the last of these was.
        """
        values = self.values()[skipped].tolist()
        wrong = [[f"{n} is {x}" for n, x in zip(self.names, row, strict=True) if x - x != 0] for row in values]
        ranks = dist.gather_objects(wrong)
        first = step - len(self.terms)
        sentences = []
        for k, number in enumerate(skipped):
            found = [f"{', '.join(rank[k])} on rank {n}" for n, rank in enumerate(ranks) if rank[k]]
            what = "; ".join(found) or "the gradient is not finite"
            sentences.append(f"step {first + number + 1} was skipped: {what}")
        return sentences


def mark(device: torch.device) -> Any:
    """Return an event at the present point of the GPU's work; None on a CPU."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event
