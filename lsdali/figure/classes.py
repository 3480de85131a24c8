"""Distances of images from the centroid of their class, and of classes from each other."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lsdali.evaluate.runs import Run
from lsdali.figure.drawing import PANEL, legend
from lsdali.figure.measures import class_spread
from lsdali.figure.reading import outputs_of
from lsdali.page.figures import COLOURS


def numbers(runs: Sequence[Run], args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Return spread and separability of each class in the features of each run. Collective."""
    panels: list[dict[str, Any]] = []
    names: list[str] = []
    for run, title in zip(runs, args.titles, strict=True):
        found = outputs_of(run, args.overrides, args.classes, args.split, args.most, "features", device)
        names = found.names
        values = class_spread(found.values, found.labels, len(names))
        panels.append({"title": title, **values, "nearest": [names[k] for k in values["nearest"]]})
    return {"figure": args.name, "split": args.split, "classes": names, "runs": panels}


def size(found: Mapping[str, Any]) -> tuple[float, float]:
    return 2 * PANEL + 0.5, PANEL + 0.4


def draw(figure: Any, found: Mapping[str, Any]) -> None:
    panels = figure.subplots(1, 2)
    titles = {"spread": "spread", "separability": "separability"}
    labels = {"spread": "distance from own centroid", "separability": "distance to nearest class / spread"}
    for axes, (key, title) in zip(panels, titles.items(), strict=True):
        for k, run in enumerate(found["runs"]):
            axes.plot(sorted(run[key]), color=COLOURS[k % len(COLOURS)], label=run["title"], marker=".", linewidth=1)
        axes.set(title=title, xlabel="classes, sorted", ylabel=labels[key], ylim=(0, None))
    legend(figure, panels[0])
