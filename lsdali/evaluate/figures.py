"""From what runs predict to rows of figures: metrics, temperatures, the ensemble, reliability. Pure functions."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lsdali.data.sampling.sampler import stratified
from lsdali.evaluate.binning import binned_metrics
from lsdali.evaluate.runs import Predicted
from lsdali.metric_names import with_errors
from lsdali.metrics import (
    bin_gaps,
    brier,
    class_accuracies,
    classwise_error,
    equal_bins,
    excess_aurc,
    label_errors,
    measure,
    reliability,
    risks,
    score,
)
from lsdali.posthoc import IBLS, WIDE_BOUNDS, ensemble, fit_temperature

SCORED_AT_ONCE = 4096  # samples scored at a time
POINTS = 200  # of a risk-coverage curve
CALIBRATE_ON = {
    "half": "half of the samples evaluated, drawn with seed 0 in the classes' own proportions",
    "held_out": "the training samples that the run held out",
    "same": "the samples evaluated: the figures flatter",
    "ibls": "the samples evaluated, within the bounds that IBLS publishes: the figures flatter",
}
"""Samples that a temperature may be fitted on."""


@dataclass(frozen=True)
class Row:
    """The figures of one network, or of their ensemble, on some samples."""

    name: str
    samples: str  # which, in words
    metrics: dict[str, float]
    reliability: list[dict[str, float | None]]  # of the 15 bins of ece
    risk: list[tuple[float, float]]  # coverage and risk in %
    per_class: list[float | None]  # accuracy in %; None for a class without a sample
    scaled: bool = False  # by fitted temperatures
    temperature: float | None = None


@dataclass(frozen=True)
class Calibration:
    """A run's fitted temperature, and the samples that are left to evaluate it on."""

    temperature: float
    bounds: tuple[float, float]
    samples: int  # that it was fitted on
    rest: Tensor | None  # [M] int64, the samples left to evaluate it on; None: all


def calibrate(how: str, part: Predicted, held_out: Predicted | None) -> Calibration:
    """Return the temperature of a run in one of the ways of CALIBRATE_ON.

    `held_out` is what it says of samples kept from training.
    """
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


def rows(
    parts: Sequence[Predicted], calibrations: Sequence[Calibration], bins: Sequence[str], *, together: bool
) -> list[Row]:
    """Return all runs, and their ensemble if they are `together`: as they are, then with the temperatures, if any.

    Where a part of the samples was used to fit them, the rest is evaluated without and with them. The ensemble of
    scaled networks is the mean of their scaled softmax outputs.
    """
    everything = [torch.arange(len(part.labels)) for part in parts]
    out = group(parts, "all", everything, (), bins, together=together)
    if calibrations and calibrations[0].rest is not None:
        kept = [found.rest for found in calibrations if found.rest is not None]
        out += group(parts, "other half", kept, (), bins, together=together)
        out += group(parts, "other half", kept, calibrations, bins, together=together)
    elif calibrations:
        out += group(parts, "all", everything, calibrations, bins, together=together)
    return out


def group(
    parts: Sequence[Predicted],
    samples: str,
    kept: Sequence[Tensor],
    calibrations: Sequence[Calibration],
    bins: Sequence[str],
    *,
    together: bool,
) -> list[Row]:
    """Return one row a run, on the samples kept of each, with its temperature if there are any; then the ensemble's."""
    scale = [found.temperature for found in calibrations] or [1.0] * len(parts)
    logits = [part.logits[keep].double() / t for part, keep, t in zip(parts, kept, scale, strict=True)]
    labels = [part.labels[keep] for part, keep in zip(parts, kept, strict=True)]
    out = [row(part.name, samples, x, y, bins) for part, x, y in zip(parts, logits, labels, strict=True)]
    if together:
        out.append(row(f"ensemble of {len(parts)}", samples, ensemble(logits), labels[0], bins))
    temperatures = [*(found.temperature for found in calibrations), None]
    return [replace(line, scaled=True, temperature=t) for line, t in zip(out, temperatures)] if calibrations else out


def row(name: str, samples: str, logits: Tensor, labels: Tensor, bins: Sequence[str]) -> Row:
    """Return all figures of one network: [N, K] logits, [N] labels, and the bins asked for beside the usual ones."""
    classes = logits.shape[1]
    starts = range(0, len(labels), SCORED_AT_ONCE)
    parts = [score(logits[i : i + SCORED_AT_ONCE], labels[i : i + SCORED_AT_ONCE]) for i in starts]
    scores = torch.cat([torch.empty((0, 4), dtype=torch.float64), *parts])
    metrics = with_errors(measure(scores))
    right, confidence = scores[:, 0], scores[:, 3]
    gaps = bin_gaps(confidence, right, equal_bins(15))
    p = logits.double().softmax(1).nan_to_num(0.0)  # of a row without a softmax
    whole, own = brier(p, labels)
    per_label = label_errors(confidence, right, labels, equal_bins(15))
    metrics |= {
        "eaurc": excess_aurc(confidence, right, torch.arange(len(labels))).item(),
        "brier": whole,
        "mce": gaps.max().item(),
        "ace": gaps.mean().item(),
        "cwece": classwise_error(p, labels, equal_bins(15)).item(),
        "brier_ibls": own,
        "cwece_ibls": sum(per_label) / len(per_label),
    }
    for asked in bins:
        metrics |= binned_metrics(confidence, right, asked)
    return Row(
        name,
        samples,
        metrics,
        reliability(confidence, right, equal_bins(15)),
        curve(confidence, right),
        class_accuracies(right, labels, classes),
    )


def curve(confidence: Tensor, right: Tensor) -> list[tuple[float, float]]:
    """Map [N], [N] -> (coverage, risk), both in %, at up to POINTS coverages: the curve that AURC is the area below."""
    risk = risks(confidence, right, torch.arange(len(right)))
    chosen = torch.linspace(0, len(risk) - 1, min(POINTS, len(risk))).round().long()
    return [(100 * (k + 1) / len(risk), 100 * risk[k].item()) for k in chosen.tolist()]


@dataclass(frozen=True)
class Ensemble:
    """The ensemble of one run's newest checkpoints."""

    run: str  # with what sets it apart from others of the run
    curve: list[dict[str, float]]  # the metrics of 1, 2, ... members
    line: Row  # of all of them


Member = tuple[Predicted, Calibration | None]


def looks(part: Predicted, found: Calibration | None) -> Iterator[tuple[str, str, Tensor, Tensor]]:
    """Yield name, samples, logits and labels of each way to evaluate a member: as trained, and with its temperature."""
    yield "", "all", part.logits.double(), part.labels
    if found is None:
        return
    scaled = part.logits.double() / found.temperature
    if found.rest is None:
        yield ", with temperatures", "all", scaled, part.labels
    else:
        labels = part.labels[found.rest]
        yield ", other half", "other half", part.logits[found.rest].double(), labels
        yield ", other half, with temperatures", "other half", scaled[found.rest], labels


def ensemble_curves(name: str, members: Iterable[Member], bins: Sequence[str]) -> list[Ensemble]:
    """Return the mean softmax output of the first 1, 2, ... members.

    They are read one after another, two held at most.

    With calibrations also that of the scaled members, each by its own temperature.
    """
    totals: dict[str, Tensor] = {}
    found: dict[str, Ensemble] = {}
    for count, (part, calibration) in enumerate(members, 1):
        for way, samples, logits, labels in looks(part, calibration):
            log_p = logits.log_softmax(1)
            total = totals[way] = log_p if count == 1 else totals[way].logaddexp(log_p)
            line = row(f"{name}, mean of the newest {count}", samples, total - math.log(count), labels, bins)
            before = found[way].curve if count > 1 else []
            line = replace(line, scaled=way.endswith("temperatures"))
            found[way] = Ensemble(name + way, [*before, line.metrics], line)
    return list(found.values())
