"""Logits or features of some classes in two dimensions, by t-SNE or PCA; as IBLS shows three classes of CIFAR-10."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lsdali import dist
from lsdali.errors import UserError
from lsdali.evaluate.runs import Run
from lsdali.figure.drawing import PANEL, legend, scatter
from lsdali.figure.reading import outputs_of
from lsdali.posthoc import principal_plane


def numbers(runs: Sequence[Run], args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Return points and labels of each run. Collective."""
    panels = []
    for run, title in zip(runs, args.titles, strict=True):
        found = outputs_of(run, args.overrides, args.classes, args.split, args.most, args.of, device)
        with dist.raise_together():
            points = tsne(found.values, args.perplexity, args.seed) if args.name == "tsne" else pca(found.values)
        panels.append({"title": title, "points": points.tolist(), "labels": found.labels.tolist()})
    settings = {"of": args.of, "split": args.split, "classes": args.classes}
    if args.name == "tsne":
        settings |= {"perplexity": args.perplexity, "seed": args.seed}
    return {"figure": args.name, **settings, "runs": panels}


def tsne(values: Tensor, perplexity: float, seed: int) -> Tensor:
    """Map [N, D] -> [N, 2] by scikit-learn's t-SNE with its defaults, from the seed; the same on every rank.

    Raises UserError if there are too few images for the perplexity.
    """
    if len(values) <= perplexity:
        raise UserError(f"--perplexity {perplexity:g} needs more than {len(values)} images: give a smaller one")
    if not dist.is_main():
        return torch.zeros((len(values), 2))
    from sklearn.manifold import TSNE

    found = TSNE(perplexity=perplexity, random_state=seed).fit_transform(values.numpy())
    return torch.from_numpy(found)


def pca(values: Tensor) -> Tensor:
    """Map [N, D] -> [N, 2], the principal components."""
    mean, axes = principal_plane(values.double())
    return (values.double() - mean) @ axes.T


def size(found: Mapping[str, Any]) -> tuple[float, float]:
    return PANEL * len(found["runs"]), PANEL + 0.4


def draw(figure: Any, found: Mapping[str, Any]) -> None:
    panels = figure.subplots(1, len(found["runs"]), squeeze=False)[0]
    name = {"tsne": "t-SNE", "pca": "PCA"}[found["figure"]]
    for axes, run in zip(panels, found["runs"], strict=True):
        scatter(axes, run["points"], run["labels"], found["classes"])
        axes.set(title=run["title"], xlabel=f"{name} 1 of {found['of']}", ylabel=f"{name} 2")
    legend(figure, panels[0])
