"""OLS's matrix: the mean prediction for each class's right samples, as a heat map, and which classes are nearest."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lsdali import dist
from lsdali.errors import UserError
from lsdali.evaluate.runs import Run
from lsdali.figure.drawing import PANEL
from lsdali.figure.measures import human_matrix, matrix_distance, nearest_classes, right_means
from lsdali.figure.reading import outputs_of

NEAREST = 3  # classes that are named for each
MOST_NAMED = 30  # classes; with more of them the axes have no names


def numbers(runs: Sequence[Run], args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Return the matrix of each run, the classes nearest to each, and the distance from human votes. Collective."""
    with dist.raise_together():
        votes = None if args.human is None else read_votes(Path(args.human))
    panels: list[dict[str, Any]] = []
    names: list[str] = []
    for run, title in zip(runs, args.titles, strict=True):
        matrix, names = matrix_of(run, args, device)
        with dist.raise_together():
            nearest = nearest_names(nearest_classes(matrix, NEAREST), names)
            panel = {"title": title, "matrix": matrix.tolist(), "nearest": nearest}
            if votes is not None:
                if votes.shape[1] != len(matrix):
                    raise UserError(f"--human has votes for {votes.shape[1]} classes, and {run.name} has {len(matrix)}")
                panel["human"] = matrix_distance(human_matrix(votes), matrix)
        panels.append(panel)
    human = {} if votes is None else {"human": human_matrix(votes).tolist()}
    return {"figure": args.name, "from": args.collect or "checkpoint", "classes": names, **human, "runs": panels}


def matrix_of(run: Run, args: argparse.Namespace, device: torch.device) -> tuple[Tensor, list[str]]:
    """Return [K, K] of the checkpoint's own, or collected from a split in evaluation mode.

    And the names of the classes.
    """
    if args.collect is not None:
        found = outputs_of(run, args.overrides, None, args.collect, None, "logits", device)
        return right_means(found.values, found.labels), found.names
    state = run.content["parts"]["method"]
    with dist.raise_together():
        if "matrix" not in state or run.content["recipe"]["method"]["name"] not in ("ols", "ols_deep"):
            raise UserError(f"{run.name} keeps no matrix of OLS: add --collect val, which makes one for any network")
    matrix = state["matrix"].double().cpu()
    return matrix, list(run.content.get("names") or map(str, range(len(matrix))))


def nearest_names(nearest: Sequence[Sequence[int]], names: Sequence[str]) -> dict[str, list[str]]:
    return {name: [names[k] for k in row] for name, row in zip(names, nearest, strict=True)}


def read_votes(path: Path) -> Tensor:
    """Return [N, K] shares of votes. Raises UserError if the file holds none."""
    try:
        votes = np.load(path)
    except (OSError, ValueError, EOFError) as fault:
        raise UserError(f"--human {path} cannot be read: give cifar10h-probs.npy of CIFAR-10H ({fault})") from None
    if not isinstance(votes, np.ndarray) or votes.ndim != 2 or not np.allclose(votes.sum(1), 1, atol=1e-3):
        raise UserError(f"--human {path}: expected [images, classes] shares of votes, each row of sum 1")
    return torch.from_numpy(votes)


def size(found: Mapping[str, Any]) -> tuple[float, float]:
    return 1.4 * PANEL * (len(found["runs"]) + ("human" in found)) + 0.6, 1.5 * PANEL


def draw(figure: Any, found: Mapping[str, Any]) -> None:
    from matplotlib.colors import LogNorm

    shown = [(run["title"], run["matrix"]) for run in found["runs"]]
    shown += [("human votes", found["human"])] if "human" in found else []
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    for axes, (title, matrix) in zip(panels, shown, strict=True):
        image = axes.imshow(matrix, cmap="viridis", norm=LogNorm(1e-4, 1, clip=True), interpolation="nearest")
        axes.set(title=title, xlabel="probability of", ylabel="class")
        if len(matrix) <= MOST_NAMED:
            axes.set_xticks(range(len(matrix)), found["classes"], rotation=90, fontsize=7)
            axes.set_yticks(range(len(matrix)), found["classes"], fontsize=7)
    figure.colorbar(image, ax=[*panels], shrink=0.7, label="mean probability")
