"""The tables of a report, and how they are written: terminal, CSV, Markdown, LaTeX."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lsdali.metric_names import METRICS, with_errors
from lsdali.report.groups import RunGroup, different_keys, mean_std
from lsdali.terminal import printable

METRIC_COLUMNS = ("top1", "error1", "top5", "nll", "ece", "ece_pskd", "aurc")
CHECKPOINTS = ("last", "best", "ema last", "ema best")


@dataclass
class ReportCell:
    text: str
    value: float | None = None  # sorts a column of numbers
    best: bool = False
    changed: bool = False

    def __post_init__(self) -> None:
        self.text = printable(self.text)


@dataclass
class ReportTable:
    columns: list[str]
    rows: list[list[ReportCell]] = field(default_factory=list)


def comparison(groups: Sequence[RunGroup]) -> ReportTable:
    """Return one row a group and checkpoint.

    It holds mean and standard deviation over the runs; the best value of a column is marked.
    """
    titles = [METRICS[name].title for name in METRIC_COLUMNS]
    left = ["runs", "method", "epochs", "figures of", "of epoch"]
    out = ReportTable([*left, *titles, "validated on", "images/s", "hours", "network", "seeds"])
    for group in groups:
        entries = [run.entries() for run in group.runs]
        for kind in CHECKPOINTS:
            have = [entry[kind] for entry in entries if kind in entry]
            if have:
                out.rows.append([*first_cells(group, kind, have), *metric_cells(have), *last_cells(group)])
        if not any(entries):
            gaps = [ReportCell("-") for _ in METRIC_COLUMNS]
            out.rows.append([*first_cells(group, "-", []), *gaps, *last_cells(group)])
    for name, column in zip(METRIC_COLUMNS, range(len(left), len(left) + len(METRIC_COLUMNS))):
        mark_best(out, column, higher=METRICS[name].higher)
    return out


def mark_best(table: ReportTable, column: int, *, higher: bool) -> None:
    """Mark the best value of a column if at least two rows have one."""
    values = [row[column].value for row in table.rows]
    known = [value for value in values if value is not None]
    if len(set(known)) < 2:
        return
    best = max(known) if higher else min(known)
    for row in table.rows:
        row[column].best = row[column].value == best


def first_cells(group: RunGroup, kind: str, have: Sequence[Mapping[str, float]]) -> list[ReportCell]:
    states = list(dict.fromkeys(run.state for run in group.runs))
    of = f"{kind} (by {group.runs[0].selected_by})" if kind.endswith("best") else kind
    epochs = sorted({int(entry["epoch"]) for entry in have})
    return [
        ReportCell(group.name),
        ReportCell(str(group.settings.get("method.name", "-"))),
        ReportCell("; ".join(states)),
        ReportCell(of if len(have) in (0, len(group.runs)) else f"{of}, {len(have)} of {len(group.runs)} runs"),
        ReportCell(", ".join(map(str, epochs)), float(epochs[0]) if epochs else None),
    ]


def metric_cells(have: Sequence[Mapping[str, float]]) -> list[ReportCell]:
    full = [with_errors(dict(entry)) for entry in have]
    return [
        mean_cell([entry[name] for entry in full if name in entry], METRICS[name].digits, complete=len(full))
        for name in METRIC_COLUMNS
    ]


def last_cells(group: RunGroup) -> list[ReportCell]:
    summaries = [run.summary for run in group.runs if run.summary is not None]
    rates = [s["images_per_second"] for s in summaries if "images_per_second" in s]
    hours = [s["wall_seconds"] / 3600 for s in summaries if "wall_seconds" in s]
    speed = [mean_cell(rates, 0, complete=len(rates)), mean_cell(hours, 2, complete=len(hours))]
    network = ReportCell(str(group.settings.get("model.name", "-")))
    return [validated_on(group), *speed, network, ReportCell(group.seeds)]


def validated_on(group: RunGroup) -> ReportCell:
    """Return the samples that chose a run's best epoch: a held-out part of the training data, or the official ones."""
    texts = dict.fromkeys(run.begun.get("data", {}).get("validation", "-") for run in group.runs)
    return ReportCell("; ".join(map(str, texts)))


def mean_cell(values: Sequence[float], digits: int, *, complete: int) -> ReportCell:
    """Return the mean of the values, with the standard deviation if there are several; a dash unless all are there."""
    if not values or len(values) < complete:
        return ReportCell("-")
    mean, std = mean_std(values)
    return ReportCell(f"{mean:.{digits}f}" + ("" if std is None else f" ± {std:.{digits}f}"), mean)


def recipe_differences(groups: Sequence[RunGroup]) -> ReportTable:
    """Return one row a group, one column a key that differs; marked if the value is not that of the first row."""
    keys = different_keys(groups)
    out = ReportTable(["runs", *keys])
    for group in groups:
        cells = [ReportCell(shown(group.settings.get(key, "-"))) for key in keys]
        for cell, first in zip(cells, out.rows[0][1:] if out.rows else cells):
            cell.changed = cell.text != first.text
        out.rows.append([ReportCell(group.name), *cells])
    return out


def shown(value: Any) -> str:
    return "null" if value is None else str(value)


def surroundings(groups: Sequence[RunGroup]) -> ReportTable:
    """Return where each run was carried out, as its last start told it."""
    packages = list(dict.fromkeys(name for g in groups for run in g.runs for name in run.begun.get("versions", {})))
    out = ReportTable(["run", "processes", "device", "parameters", "train images", "validation images", *packages])
    for run in (run for group in groups for run in group.runs):
        told, data = run.begun, run.begun.get("data", {})
        values = (told.get("world"), told.get("device"), told.get("parameters"), data.get("train"), data.get("val"))
        versions = [told.get("versions", {}).get(name) for name in packages]
        out.rows.append(
            [ReportCell(run.name), *(ReportCell("-" if v is None else str(v)) for v in (*values, *versions))]
        )
    return out


# ---- how a table is written


def as_csv(table: ReportTable) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows([cell.text for cell in row] for row in table.rows)
    return out.getvalue()


def as_markdown(table: ReportTable) -> str:
    def line(texts: Sequence[str]) -> str:
        return "| " + " | ".join(text.replace("\\", "\\\\").replace("|", "\\|") for text in texts) + " |"

    rows = [[f"**{cell.text}**" if cell.best else cell.text for cell in row] for row in table.rows]
    return "\n".join([line(table.columns), line(["---"] * len(table.columns)), *map(line, rows)]) + "\n"


TEX = {"\\": r"\textbackslash{}", "±": r"$\pm$", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
TEX |= {sign: "\\" + sign for sign in "&%$#_{}"}


def as_latex(table: ReportTable) -> str:
    """Return a tabular for the package booktabs."""

    def line(texts: Sequence[str]) -> str:
        return " & ".join(texts) + r" \\"

    def text(plain: str) -> str:
        return "".join(TEX.get(sign, sign) for sign in plain)

    rows = [[rf"\textbf{{{text(c.text)}}}" if c.best else text(c.text) for c in row] for row in table.rows]
    head = line([text(column) for column in table.columns])
    begin = rf"\begin{{tabular}}{{{'l' * len(table.columns)}}}"
    return "\n".join([begin, r"\toprule", head, r"\midrule", *map(line, rows), r"\bottomrule", r"\end{tabular}", ""])


WRITERS: dict[str, Callable[[ReportTable], str]] = {"csv": as_csv, "markdown": as_markdown, "latex": as_latex}
