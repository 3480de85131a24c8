"""The measures of the figures, as pure functions of features, logits, labels and matrices."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lsdali.errors import UserError
from lsdali.functional import accumulate_correct, class_averages
from lsdali.posthoc import centroids


def diffusion(before: Tensor, after: Tensor, target: int, similar: Sequence[int], others: Sequence[int]) -> Any:
    """Return two sets of class centroids [K, D] -> how the target class's distances to others have changed, in %.

    Our definition; the paper of LS-KD (Chandrasegaran et al. 2022) describes the effect in words. d(k) is the distance
    between the centroids of the target and of class k. The index of a set of classes is the mean over it of
    100 (d_after - d_before) / d_before; the scale-free one first divides each d by its mean over both sets. Systematic
    diffusion: below 0 for similar classes, above 0 for the others.
    """
    sets = {"similar": [*similar], "dissimilar": [*others]}
    old, new = ((points - points[target]).double().norm(dim=1) for points in (before, after))
    both = [*similar, *others]
    found: dict[str, Any] = {"before": old[both].tolist(), "after": new[both].tolist()}
    for name, ratio in (("index", new / old), ("index_scale_free", new / old * old[both].mean() / new[both].mean())):
        found[name] = {which: 100 * (ratio[chosen] - 1).mean().item() for which, chosen in sets.items()}
    return found


def class_spread(features: Tensor, labels: Tensor, classes: int) -> dict[str, Any]:
    """Map [N, D], [N] -> how far samples lie from their class's centroid, and how far classes lie from each other.

    Of each class: `spread`, the mean distance of its samples from its centroid; `nearest`, the class with the nearest
    centroid; `separability`, that distance divided by the spread. Over all: `fisher`, the trace of the scatter between
    classes over that within them, each sample counting once (Fisher 1936).
    """
    x = features.double()
    middles = centroids(x, labels, classes)
    away = (x - middles[labels]).norm(dim=1)
    counts = torch.bincount(labels, minlength=classes)
    own = torch.bincount(labels, away, classes) / counts
    distances = torch.cdist(middles, middles, compute_mode="donot_use_mm_for_euclid_dist")
    distances.fill_diagonal_(torch.inf)
    least, nearest = distances.min(1)
    between = (counts * (middles - x.mean(0)).square().sum(1)).sum()
    return {
        "spread": own.tolist(),
        "separability": (least / own).tolist(),
        "nearest": nearest.tolist(),
        "fisher": (between / away.square().sum()).item(),
    }


def right_means(logits: Tensor, labels: Tensor) -> Tensor:
    """Map [N, K], [N] -> [K, K]: the mean softmax output of each class's right samples.

    Uniform for a class without any.
    """
    classes = logits.shape[1]
    sums = torch.zeros((classes, classes), dtype=torch.float64)
    counts = torch.zeros(classes, dtype=torch.float64)
    accumulate_correct(sums, counts, logits.double(), labels)
    return class_averages(sums, counts)


def nearest_classes(matrix: Tensor, count: int) -> list[list[int]]:
    """Map [K, K] -> the `count` classes with the most of each row's mass, besides the class itself."""
    others = matrix.clone()
    others.fill_diagonal_(-torch.inf)
    return others.argsort(dim=1, descending=True, stable=True)[:, : min(count, len(matrix) - 1)].tolist()


def human_matrix(p: Tensor) -> Tensor:
    """Map [N, K] shares of human votes -> [K, K]: their mean over the images whose most frequent vote is the class.

    As the code of OLS does with CIFAR-10H. Raises UserError if some class is never the most frequent.
    """
    p = p.double()
    votes, classes = p.argmax(1), p.shape[1]
    if missing := sorted({*range(classes)} - {*votes.tolist()}):
        raise UserError(f"--human: no image has class {missing[0]} as its most frequent vote")
    return centroids(p, votes, classes)


def matrix_distance(human: Tensor, matrix: Tensor) -> Mapping[str, float]:
    """Map [K, K] twice -> mean over classes of the cross-entropy -sum H ln S and of KL(H || S), in nats."""
    h, s = human.double(), matrix.double()
    crossed = -torch.xlogy(h, s).sum(1).mean()
    own = torch.xlogy(h, h).sum(1).mean()
    return {"soft_cross_entropy": crossed.item(), "kl": (crossed + own).item()}
