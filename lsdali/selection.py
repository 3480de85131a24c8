"""Select the best evaluation of a run, and stop a run early. Pure functions of a record that is saved."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from lsdali.config import Config
from lsdali.metric_names import METRICS

MetricName = Literal["top1", "top5", "nll", "ece", "ece_pskd", "aurc"]


class Select(Config):
    """Which evaluation is the best one, in best.pt and summary.json."""

    metric: MetricName = "top1"
    """The validation metric whose best value decides; among equal values, the first."""


class Stop(Config):
    """Early stopping."""

    metric: MetricName = "nll"
    """The validation metric to watch."""
    patience: int = Field(10, ge=1, le=1_000_000)
    """Stop if this metric has not improved for so many epochs."""


def note(record: dict[str, Any], weights: str, entry: Mapping[str, Any], select: Select) -> bool:
    """Add an evaluation (metrics and epoch) to the record; return whether it is the best of these weights so far."""
    best = record.get(weights, {}).get("best")
    better = best is None or METRICS[select.metric].better(entry[select.metric], best[select.metric])
    record[weights] = {"last": entry, "best": entry if better else best}
    return better


def watch_metric(record: dict[str, Any], entry: Mapping[str, Any], stop: Stop | None) -> None:
    """Keep in the record the best value of the metric that `stop` watches, and for how many epochs it has stood."""
    if stop is None:
        return
    value, epoch, old = entry[stop.metric], entry["epoch"], record.get("stop")
    if old is None or METRICS[stop.metric].better(value, old["value"]):
        record["stop"] = {"value": value, "epoch": epoch, "waited": 0}
    else:
        record["stop"] = {**old, "waited": epoch - old["epoch"]}


def stopped(record: Mapping[str, Any], stop: Stop | None) -> bool:
    """Return whether the run that the record is of ends here by `stop`."""
    return stop is not None and "stop" in record and record["stop"]["waited"] >= stop.patience
