"""Learning curves of groups of runs: one curve per figure, with a band over the seeds."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby

from lsdali.page.figures import Panel, PlotLine, curve_figure
from lsdali.report.groups import RunGroup, mean_std
from lsdali.report.runs import MODEL, RunRecord

Curve = Mapping[int, float]  # value of each epoch, counted from 1


def of_metric(name: str) -> Callable[[RunRecord], Curve]:
    """Return a validation metric after each epoch that was evaluated."""

    def read(run: RunRecord) -> Curve:
        rows = [line for line in run.evaluated if line["weights"] in MODEL and name in line["metrics"]]
        return {line["epoch"]: line["metrics"][name] for line in rows}

    return read


def error(run: RunRecord) -> Curve:
    return {epoch: 100 - value for epoch, value in of_metric("top1")(run).items()}


def of_training(name: str, scale: float = 1.0) -> Callable[[RunRecord], Curve]:
    """Return the mean over an epoch's log lines, each weighted by the steps that it stands for."""

    def read(run: RunRecord) -> Curve:
        previous, out = 0, {}
        for epoch, rows in groupby(run.trained, key=lambda line: int(line["epoch"])):
            total = steps = 0.0
            for line in rows:
                count = max(line["step"] - previous, 1)
                total, steps, previous = total + count * line[name], steps + count, line["step"]
            out[epoch] = scale * total / steps
        return out

    return read


FIGURES: dict[str, tuple[str, Callable[[RunRecord], Curve]]] = {
    "Validation error": ("top-1 error (%)", error),
    "Validation loss": ("NLL (nats)", of_metric("nll")),
    "Calibration": ("ECE (%)", of_metric("ece")),
    "Training loss": ("loss", of_training("loss")),
    "Throughput": ("images/s", of_training("images_per_second")),
    "Waiting for data": ("share of the time (%)", of_training("data_wait", 100)),
}


def line_of(group: RunGroup, style: int, read: Callable[[RunRecord], Curve]) -> PlotLine | None:
    """Return the mean of a group's runs at the epochs that all have, and one standard deviation to each side."""
    curves = [read(run) for run in group.runs]
    epochs = sorted(set.intersection(*(set(curve) for curve in curves)))
    epochs = [epoch for epoch in epochs if all(math.isfinite(curve[epoch]) for curve in curves)]
    if not epochs:
        return None
    points = [mean_std(curve[epoch] for curve in curves) for epoch in epochs]
    low = [mean - std for mean, std in points if std is not None]
    high = [mean + std for mean, std in points if std is not None]
    return PlotLine(epochs, [mean for mean, _ in points], style, low, high)


def curves(groups: Sequence[RunGroup]) -> Panel:
    """Return the figures; one without any curve is left out."""
    svgs = []
    for title, (label, read) in FIGURES.items():
        found = [line for style, group in enumerate(groups) if (line := line_of(group, style, read)) is not None]
        if found:
            svgs.append(curve_figure(title, "epoch", label, found))
    return Panel([group.name for group in groups], svgs)
