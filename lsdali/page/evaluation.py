"""The JSON of `lsdali evaluate` to figures: reliability, risk and coverage, gains of the classes."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lsdali.errors import UserError
from lsdali.metric_names import METRICS
from lsdali.page.figures import Panel, PlotLine, curve_figure, gains_figure, reliability_figure

LARGEST = 8  # classes with the largest gains and losses in a table


@dataclass(frozen=True)
class Gain:
    """How the accuracy of each class changes from the first row to another one on the same samples."""

    name: str
    svg: str
    classes: list[tuple[str, float]]  # those that change most, in points


@dataclass(frozen=True)
class Evaluation:
    """The content of a page about one evaluation."""

    title: str
    found: Mapping[str, Any]
    columns: list[str]
    cells: list[list[str]]
    diagrams: list[tuple[str, str]]  # caption and SVG
    panels: list[Panel]
    gains: list[Gain]


def read_evaluation(path: Path) -> Evaluation:
    """Read a file. Raises UserError if it is not what `lsdali evaluate --json` writes."""
    try:
        return evaluation(json.loads(path.read_bytes()), str(path))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise UserError(f"{path} is not a file that lsdali evaluate --json has written; it is left out") from None


def evaluation(found: Mapping[str, Any], title: str) -> Evaluation:
    rows = found["rows"]
    names = list(dict.fromkeys(name for row in rows for name in row["metrics"]))
    cells = [[row["name"], row["samples"], heat(row), *(value(row["metrics"], name) for name in names)] for row in rows]
    return Evaluation(
        title=title,
        found=found,
        columns=["run", "samples", "temperature", *(METRICS[n].title if n in METRICS else n for n in names)],
        cells=cells,
        diagrams=[(caption(row), reliability_figure(row["reliability"])) for row in rows],
        panels=[*risk_panel(rows), *ensemble_panel(found.get("ensembles", []))],
        gains=class_gains(rows, found.get("classes", [])),
    )


def value(metrics: Mapping[str, float], name: str) -> str:
    if name not in metrics:
        return "-"
    digits = 0 if name == "n" else METRICS[name].digits if name in METRICS else 3
    return f"{metrics[name]:.{digits}f}"


def heat(row: Mapping[str, Any]) -> str:
    """Return a row's temperature in words."""
    if row["temperature"] is None:
        return "each its own" if row["scaled"] else "-"
    return f"{row['temperature']:.4f}"


def caption(row: Mapping[str, Any]) -> str:
    scaled = f"temperature {heat(row)}" if row["scaled"] else "as trained"
    return f"{row['name']}, {row['samples']}, {scaled}: ECE {row['metrics']['ece']:.2f} %"


def risk_panel(rows: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """Return error among the most confident samples against their share, of the rows as trained."""
    have = [row for row in compared(rows) if row.get("risk")]
    if not have:
        return []
    curves = [
        PlotLine([x for x, _ in row["risk"]], [y for _, y in row["risk"]], style) for style, row in enumerate(have)
    ]
    svg = curve_figure("Risk and coverage", "samples covered, most confident first (%)", "error of those (%)", curves)
    return [Panel([row["name"] for row in have], [svg])]


def ensemble_panel(ensembles: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """Return metrics against the number of checkpoints in the ensemble."""
    if not ensembles:
        return []
    svgs = []
    for name in ("error1", "nll", "ece"):
        curves = [
            PlotLine([m["members"] for m in one["curve"]], [m["metrics"][name] for m in one["curve"]], style)
            for style, one in enumerate(ensembles)
        ]
        svgs.append(curve_figure("Ensembles of the newest checkpoints", "checkpoints", METRICS[name].title, curves))
    return [Panel([one["run"] for one in ensembles], svgs)]


def compared(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the rows as trained, on the samples that the first row is of."""
    return [row for row in rows if not row["scaled"] and row["samples"] == rows[0]["samples"]]


def class_gains(rows: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> list[Gain]:
    """Compare each other row with the first one."""
    first, *others = compared(rows)
    out = []
    for row in others:
        known = zip(classes, first.get("per_class", []), row.get("per_class", []))
        values = [(name, after - before) for name, before, after in known if before is not None and after is not None]
        if values:
            title = f"{row['name']} against {first['name']}"
            most = [pair for pair in sorted(values, key=lambda pair: -abs(pair[1])) if pair[1]][:LARGEST]
            out.append(Gain(title, gains_figure("Gains of the classes", [change for _, change in values]), most))
    return out
