"""The names of metrics: how tables and axes label them, and which direction is better."""

from typing import NamedTuple


class Metric(NamedTuple):
    label: str
    unit: str  # empty for a plain number
    digits: int  # after the point in tables
    higher: bool = False  # whether a higher value is better

    @property
    def title(self) -> str:
        """The label with its unit."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    def better(self, new: float, old: float) -> bool:
        """Return whether `new` is strictly better than `old`."""
        return new > old if self.higher else new < old


METRICS = {
    "top1": Metric("top-1", "%", 2, higher=True),
    "error1": Metric("top-1 error", "%", 2),
    "top5": Metric("top-5", "%", 2, higher=True),
    "error5": Metric("top-5 error", "%", 2),
    "nll": Metric("NLL", "nats", 4),
    "brier": Metric("Brier", "", 4),
    "ece": Metric("ECE", "%", 2),
    "ece_pskd": Metric("ECE PS-KD", "%", 2),
    "mce": Metric("MCE", "%", 2),
    "ace": Metric("ACE", "%", 2),
    "cwece": Metric("class-wise ECE", "%", 3),
    "aurc": Metric("AURC", "x1000", 2),
    "eaurc": Metric("E-AURC", "x1000", 2),
}


def with_errors(metrics: dict[str, float]) -> dict[str, float]:
    """Return the metrics with the error beside each accuracy: error1 after top1, error5 after top5 (%)."""
    out: dict[str, float] = {}
    for name, value in metrics.items():
        out[name] = value
        if name in ("top1", "top5"):
            out[f"error{name[3:]}"] = 100 - value
    return out
