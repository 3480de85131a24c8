"""Tables: means, spreads, marks and the three written forms, from summaries made up here."""

import csv
import io
import json
import math
import statistics

import pytest
from rich.console import Console

from lsdali.sweep.cells import Cell
from lsdali.sweep.schema import Sweep
from lsdali.sweep.tables import Entry, Grid, grid
from lsdali.sweep.write import to_csv, to_latex, to_markdown, to_terminal
from tests.sweep.conftest import Open

TEXT = """
seeds: [0, 1, 2]
stages:
  train:
    recipe: RECIPES/ce.yaml
    axes:
      network: {points: {small_net: {}, big: {model.width: 32}}}
      method: {points: {CE: {}, LS: {method: {name: ls}}, ZLS: {method: {name: zls}}}}
tables:
  top-1:
    stages: [train]
    rows: [network, method]
    figures: {top-1 err %: {of: best.top1, error: true}, ECE: {of: last.ece, scale: 0.01, digits: 3}}
    best_of: [method]
    published:
      - {source: "a paper, Table 1", by: [method], figures: [top-1 err %], values: {CE: [24.1], ZLS: [20.1 ± 0.3]}}
"""
TOP1 = {"CE": (75.0, 76.0, 77.0), "LS": (75.5, 76.0, 76.5), "ZLS": (79.0, 79.5, 80.0)}


def trained(cells: list[Cell], top1: dict[str, tuple[float, ...]]) -> list[Cell]:
    """The cells whose method has a figure for their seed, with a summary."""
    done = []
    for cell in cells:
        values = top1[cell.labels["method"]]
        if cell.seed < len(values):
            cell.folder.mkdir(parents=True)
            summary = {"best": {"top1": values[cell.seed]}, "last": {"ece": 4.0 + cell.seed}}
            (cell.folder / "summary.json").write_text(json.dumps(summary))
            done.append(cell)
    return done


def made(sweep: Sweep, cells: list[Cell], done: list[Cell]) -> Grid:
    ((caption, table),) = sweep.tables.items()
    return grid(caption, table, cells, done)


def test_means_spreads_and_the_best(opened: Open) -> None:
    sweep, cells = opened(TEXT)
    found = made(sweep, cells, trained(cells, TOP1))
    entry = found.entries[(("big", "ZLS"), (), "top-1 err %")]
    assert entry.mean == pytest.approx(100 - statistics.fmean(TOP1["ZLS"]))
    assert entry.std == pytest.approx(statistics.stdev(TOP1["ZLS"]))
    assert entry.text() == "20.50 ± 0.50 (3)"
    assert entry.published == "20.1 ± 0.3"
    assert [key for key, e in found.entries.items() if e.best] == [
        ((network, "ZLS"), (), "top-1 err %") for network in ("small_net", "big")
    ]
    assert found.entries[(("big", "LS"), (), "ECE")].text() == "0.050 ± 0.010 (3)"


@pytest.mark.parametrize(
    ("zls", "text"),
    [
        ((76.5, 77.5, 78.5), "22.50 ± 1.00 (3)"),  # better on average, but within the spread
        ((79.0,), "21.00 (1 of 3)"),  # one seed has no spread
        ((), ""),
    ],
)
def test_no_best_within_the_spread_or_by_one_seed(opened: Open, zls: tuple[float, ...], text: str) -> None:
    sweep, cells = opened(TEXT)
    found = made(sweep, cells, trained(cells, {**TOP1, "ZLS": zls}))
    assert found.entries[(("big", "ZLS"), (), "top-1 err %")].text() == text
    assert not any(entry.best for entry in found.entries.values())


def test_a_selecting_stage_shows_the_run_that_each_seed_chose(opened: Open) -> None:
    text = TEXT.replace("tables:", "    select: {over: [network], by: best.top1}\ntables:").replace(
        "[network, method]", "[method]"
    )
    sweep, cells = opened(text)
    done = trained(cells, TOP1)
    better = next(c for c in cells if c.labels == {"network": "big", "method": "CE"} and c.seed == 1)
    (better.folder / "summary.json").write_text(json.dumps({"best": {"top1": 90.0}, "last": {"ece": 4.0}}))
    found = made(sweep, cells, done)
    assert found.entries[(("CE",), (), "top-1 err %")].values == (25.0, 10.0, 23.0)


def test_the_written_forms_agree(opened: Open) -> None:
    sweep, cells = opened(TEXT)
    found = made(sweep, cells, trained(cells, TOP1))
    markdown = to_markdown(found).splitlines()
    assert markdown[2] == "| network | method | top-1 err % | published | ECE |"
    assert markdown[6] == "| small_net | ZLS | **20.50 ± 0.50 (3)** | 20.1 ± 0.3 | 0.050 ± 0.010 (3) |"
    assert markdown[4] == "| small_net | CE | 24.00 ± 1.00 (3) | 24.10 | 0.050 ± 0.010 (3) |"
    assert markdown[-1] == "Published: a paper, Table 1"
    latex = to_latex(found).splitlines()
    assert r"small\_net & ZLS & \textbf{20.50 $\pm$ 0.50 (3)} & 20.1 $\pm$ 0.3 & 0.050 $\pm$ 0.010 (3) \\" in latex
    assert latex.count(r"\midrule") == 2  # under the headings, and between the two networks
    rows = list(csv.DictReader(io.StringIO(to_csv(found))))
    assert len(rows) == 12
    row = next(r for r in rows if r["network"] == "big" and r["method"] == "ZLS" and r["figure"] == "top-1 err %")
    assert float(row["mean"]) == pytest.approx(20.5)
    assert float(row["std"]) == pytest.approx(0.5)
    assert (row["seeds"], row["published"], row["best"]) == ("3", "20.1 ± 0.3", "1")
    console = Console(width=100, record=True)
    to_terminal(found, console)
    shown = console.export_text()
    assert all(text in shown for text in ("20.50 ± 0.50 (3)", "20.1 ± 0.3", "Published: a paper, Table 1"))


def test_an_infinite_value_has_no_spread() -> None:
    entry = Entry({}, "NLL", 2, (math.inf, 2.5), 2, "")
    assert entry.mean == math.inf
    assert math.isnan(entry.std)
    assert entry.text().startswith("inf ")
