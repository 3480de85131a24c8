"""The projection of LS-KD as its sheet: two runs a row, first on training images, then on validation images."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lsdali import dist
from lsdali.errors import UserError
from lsdali.evaluate.plane import plane
from lsdali.evaluate.runs import Run
from lsdali.figure.drawing import PANEL, legend, scatter

SPLITS = {"train": "training", "val": "validation"}


def numbers(runs: Sequence[Run], args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Return points, labels and centroids of each run and split, in a plane that each run has for both. Collective."""
    with dist.raise_together():
        if len(runs) > 1 and len(runs) % 2:
            raise UserError(f"projection has two runs a row, as without and with smoothing; these are {len(runs)}")
    found = [plane(run, args.overrides, args.classes, device) for run in runs]
    panels = [{"title": title, **part} for title, part in zip(args.titles, found, strict=True)]
    return {"figure": args.name, "classes": args.classes, "runs": panels}


def panels(found: Mapping[str, Any]) -> list[list[tuple[str, Mapping[str, Any]]]]:
    """Return the panels of each row: title and content, as LS-KD arranges them."""
    runs = found["runs"]
    width = min(2, len(runs))
    out = []
    for start in range(0, len(runs), width):
        pair = runs[start : start + width]
        out.append([(f"{run['title']}, {SPLITS[split]}", run[split]) for split in SPLITS for run in pair])
    return out


def size(found: Mapping[str, Any]) -> tuple[float, float]:
    sheet = panels(found)
    return PANEL * len(sheet[0]), PANEL * len(sheet) + 0.4


def draw(figure: Any, found: Mapping[str, Any]) -> None:
    sheet = panels(found)
    grid = figure.subplots(len(sheet), len(sheet[0]), squeeze=False)
    for line, row in zip(grid, sheet, strict=True):
        for axes, (title, part) in zip(line, row, strict=True):
            scatter(axes, part["points"], part["labels"], found["classes"], part["centroids"])
            axes.set_title(title, fontsize=8)
            axes.tick_params(labelsize=7)
            axes.set_aspect("equal", adjustable="datalim")
    legend(figure, grid[0][0])
