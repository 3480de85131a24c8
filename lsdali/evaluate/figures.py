"""From what runs predict to rows of figures: metrics, temperatures, the ensemble, reliability. Pure functions."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lsdali.data.sampling.sampler import stratified
from lsdali.evaluate.runs import Predicted
from lsdali.metrics import equal_bins, measure, reliability, score
from lsdali.posthoc import IBLS, WIDE_BOUNDS, ensemble, fit_temperature

CHUNK = 4096  # samples scored at a time
CALIBRATE_ON = {
    "half": "half of the samples evaluated, drawn with seed 0 in the classes' own proportions",
    "held_out": "the training samples that the run held out",
    "same": "the samples evaluated: the figures flatter",
    "ibls": "the samples evaluated, within the bounds that IBLS publishes: the figures flatter",
}
"""What a temperature may be fitted on."""


@dataclass(frozen=True)
class Row:
    """The figures of one network, or of their ensemble, on some samples."""

    name: str
    samples: str  # which, in words
    metrics: dict[str, float]
    reliability: list[dict[str, float | None]]  # of the 15 bins of ece
    scaled: bool = False  # by fitted temperatures
    temperature: float | None = None


@dataclass(frozen=True)
class Calibration:
    """A run's temperature, and what it is for."""

    temperature: float
    bounds: tuple[float, float]
    samples: int  # that it was fitted on
    rest: Tensor | None  # [M] int64, the samples left to evaluate it on; None: all


def calibrate(how: str, part: Predicted, held_out: Predicted | None) -> Calibration:
    """The temperature of a run in one of the ways of FITS; `held_out` is what it says of samples kept from training."""
    bounds, rest, logits, labels = WIDE_BOUNDS, None, part.logits, part.labels
    if held_out is not None:
        logits, labels = held_out.logits, held_out.labels
    elif how == "half":
        chosen = torch.zeros(len(labels), dtype=torch.bool)
        chosen[torch.from_numpy(stratified(labels.numpy(), len(labels) // 2))] = True
        logits, labels, rest = logits[chosen], labels[chosen], (~chosen).nonzero()[:, 0]
    elif how == "ibls":
        bounds = IBLS
    return Calibration(fit_temperature(logits, labels, bounds), bounds, len(labels), rest)


def rows(parts: Sequence[Predicted], calibrations: Sequence[Calibration], *, together: bool) -> list[Row]:
    """All runs, and their ensemble where they are `together`: as they are, then with the temperatures, if any.

    Where a part of the samples was used to fit them, the rest is evaluated without and with them. The ensemble of
    scaled networks is the mean of their scaled softmax outputs.
    """
    everything = [torch.arange(len(part.labels)) for part in parts]
    out = group(parts, "all", everything, (), together)
    if calibrations and calibrations[0].rest is not None:
        kept = [found.rest for found in calibrations if found.rest is not None]
        out += group(parts, "other half", kept, (), together)
        out += group(parts, "other half", kept, calibrations, together)
    elif calibrations:
        out += group(parts, "all", everything, calibrations, together)
    return out


def group(
    parts: Sequence[Predicted],
    samples: str,
    kept: Sequence[Tensor],
    calibrations: Sequence[Calibration],
    together: bool,
) -> list[Row]:
    """One row a run, on the samples kept of each, with its temperature if there are any; then the ensemble's."""
    scale = [found.temperature for found in calibrations] or [1.0] * len(parts)
    logits = [part.logits[keep].double() / t for part, keep, t in zip(parts, kept, scale, strict=True)]
    labels = [part.labels[keep] for part, keep in zip(parts, kept, strict=True)]
    out = [row(part.name, samples, x, y) for part, x, y in zip(parts, logits, labels, strict=True)]
    if together:
        out.append(row(f"ensemble of {len(parts)}", samples, ensemble(logits), labels[0]))
    temperatures = [*(found.temperature for found in calibrations), None]
    return [replace(line, scaled=True, temperature=t) for line, t in zip(out, temperatures)] if calibrations else out


def row(name: str, samples: str, logits: Tensor, labels: Tensor) -> Row:
    starts = range(0, len(labels), CHUNK)
    parts = [score(logits[i : i + CHUNK], labels[i : i + CHUNK]) for i in starts]
    scores = torch.cat([torch.empty(0, 4), *parts])
    return Row(name, samples, measure(scores), reliability(scores[:, 3], scores[:, 0], equal_bins(15)))
