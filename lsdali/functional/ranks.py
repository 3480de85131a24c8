"""From votes to ranks, from ranks to targets, and the loss off the label (Liang et al. 2022, arXiv 2207.12980)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lsdali.functional.labels import as_float32


def count_votes(votes: Tensor, classes: int) -> Tensor:
    """Map [B, L] int64 class numbers -> [B, K] int64: how many positions voted for each class."""
    counts = votes.new_zeros(len(votes), classes)
    return counts.scatter_add_(1, votes, torch.ones_like(votes))


def vote_rank(counts: Tensor, positions: int) -> Tensor:
    """Map [B, K] int64 votes of each class, at most `positions` -> [B, K] int64 rank, most votes first.

    Competition rank: r = 1 + number of classes with more votes, so equal counts share the smallest rank
    (Liang et al. 2022, arXiv 2207.12980; `competition_rank` gives the same). A count is one of 0 .. L, so a
    histogram of counts replaces the sort: O(B (K + L)) time and memory.
    """
    with_count = counts.new_zeros(len(counts), positions + 1)  # [B, L + 1]: classes that have this many votes
    with_count.scatter_add_(1, counts, torch.ones_like(counts))
    at_most = with_count.cumsum(1)
    return 1 + counts.shape[1] - at_most.gather(1, counts)


def competition_rank(scores: Tensor) -> Tensor:
    """Map [B, K] real scores -> [B, K] int64: 1 + number of classes with a greater score, by one sort a row."""
    ascending = scores.sort(1).values
    not_greater = torch.searchsorted(ascending, scores.contiguous(), right=True)
    return 1 + scores.shape[1] - not_greater


def tie_size(rank: Tensor) -> Tensor:
    """Map [B, K] int64 competition ranks -> [B, K] int64: how many classes share each class's rank."""
    position = rank - 1
    holders = torch.zeros_like(rank).scatter_add_(1, position, torch.ones_like(rank))  # [B, K]: classes at every rank
    return holders.gather(1, position)


# ---- weights of ranks (Liang et al. 2022; `zipf_utils.py` of its code): [B, n] ranks from 1 -> [B, n] weights


def zipf_weights(rank: Tensor, power: float = 1.0) -> Tensor:
    """Return r^-power."""
    return as_float32(rank).pow(-power)


def linear_weights(rank: Tensor, classes: int, smallest: float) -> Tensor:
    """Return (K - r) g + s with g = 2 (1 - K s) / (K (K - 1)): from s + (K - 1) g at rank 1 down to s at rank K.

    With `smallest` s at most 1/K and no ties, the K weights sum to 1; s = 1/K makes them equal.
    """
    slope = 2 * (1 - classes * smallest) / (classes * (classes - 1))
    return (classes - as_float32(rank)) * slope + smallest


def exponential_weights(rank: Tensor, rate: float) -> Tensor:
    """Return exp(-rate (r - 1))."""
    return torch.exp(-rate * (as_float32(rank) - 1))


def unbiased_zipf_weights(rank: Tensor, tied: Tensor, classes: int, power: float, left: float, right: float) -> Tensor:
    """Map [B, n] ranks, [B, n] numbers of classes that share each -> mean of x^-power over the classes' cells.

    [left, right] is cut into K equal cells; t classes tied at rank r own the cells r to r + t - 1. The published code
    averages over ties for votes alone, and gives each class the cell r elsewhere; without ties that is the same.
    """
    cell = (right - left) / classes
    tied = as_float32(tied)
    start = left + (as_float32(rank) - 1) * cell
    # The difference of two powers, nearly equal for narrow cells and for powers near 1, would lose digits.
    length = torch.log1p(tied * cell / start)
    if power == 1:
        return length / tied
    return start.pow(1 - power) * torch.expm1((1 - power) * length) / ((1 - power) * tied)


def sorted_weights(rank: Tensor, draws: Tensor) -> Tensor:
    """Map [B, K] int64 ranks, [B, K] draws -> [B, K]: rank r takes the r-th greatest draw of its row.

    The published `sorted_pareto` means this and gathers with argsort(r) instead of r - 1.
    """
    return draws.sort(1, descending=True).values.gather(1, rank - 1)


# ---- targets


Weigh = Callable[[Tensor, Tensor], Tensor]
"""[B, n] ranks, [B, n] how many classes share each -> [B, n] weights of at least 0."""


def vote_target(
    votes: Tensor, labels: Tensor, classes: int, weigh: Weigh, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Map [B, L] int64, [B] int64 -> [B, K]: `off_label_target(weigh(vote_rank, tie_size), labels)`, much cheaper.

    A count is one of 0 .. L, and with it go rank, ties and weight; at most L classes have one above 0. So all is worked
    out for the counts, [B, L + 1], the sum of the weights too; [B, K] is filled once with the weight of no vote, and
    the voted classes are overwritten. Whole numbers in `dtype` are exact up to 2^24 classes.
    """
    label = labels[:, None]
    target = torch.zeros(len(votes), classes, dtype=dtype, device=votes.device)  # counts, at first
    counts = target.scatter_add_(1, votes, torch.ones_like(votes, dtype=dtype)).gather(1, votes)
    at = counts.long()
    holders = target.new_zeros(len(votes), votes.shape[1] + 1)  # [B, L + 1]: classes that have this many votes
    holders = holders.scatter_add_(1, at, 1 / counts).round()  # of the n votes of a class, each adds 1/n
    holders[:, 0] = classes - holders.sum(1)
    rank = 1 + classes - holders.cumsum(1)
    weights = weigh(rank, holders.clamp(min=1))
    others = holders.scatter_add(1, target.gather(1, label).long(), -torch.ones_like(label, dtype=dtype))
    total = (others * weights).sum(1, keepdim=True)
    share = torch.where(total > 0, weights / total, 1 / max(classes - 1, 1))
    target.copy_(share[:, :1].expand_as(target))
    return target.scatter_(1, votes, share.gather(1, at)).scatter_(1, label, 0.0)


def off_label_target(weights: Tensor, labels: Tensor) -> Tensor:
    """Map [B, K] weights of at least 0, [B] int64 -> [B, K], 0 on the label, rows summing to 1.

    The label is ranked with the others and dropped here, so the ranks keep a hole where it stood. Weights that are
    all 0 off the label count as equal.
    """
    label = labels[:, None]
    kept = as_float32(weights).scatter(1, label, 0.0)
    total = kept.sum(1, keepdim=True)
    equal = torch.full_like(kept, 1 / max(kept.shape[1] - 1, 1)).scatter(1, label, 0.0)
    return torch.where(total > 0, kept / total, equal)


def zipf_target(rank: Tensor, labels: Tensor, power: float = 1.0) -> Tensor:
    """Map [B, K] ranks from 1 (integers give float32), [B] int64 -> [B, K], 0 on the label, rows summing to 1.

    p[k] = r[k]^-power / sum over m != label of r[m]^-power (Liang et al. 2022, as its code has it).
    """
    return off_label_target(zipf_weights(rank, power), labels)


def label_and_others(target: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Map [B, K] with 0 on the label, [B] int64 -> [B, K].

    It holds 1 - smoothing on the label, the rest spread like the target.
    """
    return (smoothing * target).scatter(1, labels[:, None], 1 - smoothing)


def nearest(features: Tensor) -> Tensor:
    """Map [B, C] -> [B] int64: for each sample the other one of the batch whose features are nearest (Euclid)."""
    x = as_float32(features)
    # Not by a matrix product, which autocast would take into half precision.
    distance = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    return distance.fill_diagonal_(torch.inf).argmin(1)


def off_label_kl(logits: Tensor, target: Tensor, labels: Tensor) -> Tensor:
    """Map [B, K], [B, K] with 0 on the label, [B] int64 -> [B]: KL(target || softmax over all but the label).

    The Zipf term of Liang et al. 2022. Its gradient is softmax - target off the label and exactly 0 on it;
    0 log 0 = 0.
    """
    label = labels[:, None]
    log_q = F.log_softmax(as_float32(logits).scatter(1, label, -torch.inf), 1)
    log_q = log_q.scatter(1, label, 0.0)  # 0 times -inf would be nan
    return F.kl_div(log_q, as_float32(target), reduction="none").sum(1)
