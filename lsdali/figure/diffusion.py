"""The diffusion index: how a class's distance to similar and to other classes changes from one run to the next."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lsdali import dist
from lsdali.errors import UserError
from lsdali.evaluate.runs import Run
from lsdali.figure.drawing import PANEL, legend
from lsdali.figure.measures import diffusion
from lsdali.figure.reading import outputs_of
from lsdali.page.figures import COLOURS
from lsdali.posthoc import centroids

DEFINITION = (
    "our definition: the mean over classes of 100 (d - d of the first run) / d of the first run, d the distance "
    "between the centroids of the features of the target and of a class; scale-free: d divided by its mean over classes"
)


def numbers(runs: Sequence[Run], args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Return distances and indices of each run after the first, against the first. Collective."""
    names = [args.target, *args.similar, *args.dissimilar]
    with dist.raise_together():
        if len(runs) < 2:
            raise UserError("diffusion compares runs with the first one (as T = 2 with T = 1): name two or more")
        if len({*names}) < len(names):
            raise UserError("--target, --similar and --dissimilar name each class once")
    middles = [middles_of(run, args, names, device) for run in runs]
    similar = range(1, 1 + len(args.similar))
    others = range(1 + len(args.similar), len(names))
    found = [diffusion(middles[0], later, 0, similar, others) for later in middles[1:]]
    lines = [{"title": title, **line} for title, line in zip(args.titles[1:], found, strict=True)]
    return {
        "figure": args.name,
        "definition": DEFINITION,
        "split": args.split,
        "against": args.titles[0],
        "target": args.target,
        "similar": args.similar,
        "dissimilar": args.dissimilar,
        "runs": lines,
    }


def middles_of(run: Run, args: argparse.Namespace, names: Sequence[str], device: torch.device) -> Tensor:
    """Return [classes, D]: the centroids of the features of the named classes."""
    found = outputs_of(run, args.overrides, names, args.split, args.most, "features", device)
    return centroids(found.values.double(), found.labels, len(names))


def size(found: Mapping[str, Any]) -> tuple[float, float]:
    return 2 * PANEL + 0.5, PANEL + 0.4


def draw(figure: Any, found: Mapping[str, Any]) -> None:
    left, right = figure.subplots(1, 2, sharey=False)
    titles = [run["title"] for run in found["runs"]]
    for axes, key, title in ((left, "index", "diffusion index"), (right, "index_scale_free", "scale-free")):
        for k, which in enumerate(("similar", "dissimilar")):
            ticks = [tick + 0.4 * k - 0.2 for tick in range(len(titles))]
            axes.bar(ticks, [run[key][which] for run in found["runs"]], 0.4, color=COLOURS[k], label=which)
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_xticks(range(len(titles)), titles)
        axes.set(title=f"{title} of {found['target']}", ylabel=f"change from {found['against']} (%)")
    legend(figure, left)
