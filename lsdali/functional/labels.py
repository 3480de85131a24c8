"""Label mathematics: pure functions from logits, labels and votes to targets and losses.

Everything is computed in float32 whatever comes in (float64 stays float64), so autocast cannot reach it. No
function waits for the device, has shapes that depend on data, or builds anything of size [K, K].

B batch, K classes, L places (locations of a feature map).
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Mass = Literal["all", "others"]


def lift(x: Tensor) -> Tensor:
    """`x` in float32, or untouched where it is float64."""
    return x if x.dtype == torch.float64 else x.float()


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """[B, K], [B] int64 -> []: mean over the batch of -log p[label]."""
    return F.cross_entropy(lift(logits), labels)


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """[B, K], [B, K] -> []: mean over the batch of -sum_k target log p."""
    return -(lift(target) * F.log_softmax(lift(logits), 1)).sum(1).mean()


def smoothing_share(smoothing: float, classes: int, mass: Mass) -> float:
    """What label smoothing of strength a gives to every class but the label (Szegedy et al. 2016, section 7).

    "all":    a/K, and a/K also on top of the label's 1 - a: what PyTorch's `label_smoothing` does.
    "others": a/(K - 1), and 1 - a stays on the label: what the ZLS code does.
    """
    return smoothing / (classes if mass == "all" else classes - 1)


def smooth_targets(labels: Tensor, classes: int, smoothing: float, mass: Mass = "all") -> Tensor:
    """[B] int64 -> [B, K] float32: `smoothing_share` on every class but the label, rows summing to 1."""
    share = smoothing_share(smoothing, classes, mass)
    return F.one_hot(labels, classes).float() * (1 - share * classes) + share


def label_smoothing(logits: Tensor, labels: Tensor, smoothing: float, mass: Mass = "all") -> Tensor:
    """[B, K], [B] int64 -> []: `soft_cross_entropy` against `smooth_targets`, without building them."""
    log_p = F.log_softmax(lift(logits), 1)
    classes = log_p.shape[1]
    share = smoothing_share(smoothing, classes, mass)
    on_label = log_p.gather(1, labels[:, None]).squeeze(1)
    return -((1 - share * classes) * on_label + share * log_p.sum(1)).mean()


def count_votes(votes: Tensor, classes: int) -> Tensor:
    """[B, L] int64 class numbers -> [B, K] int64: how many places voted for each class."""
    counts = votes.new_zeros(len(votes), classes)
    return counts.scatter_add_(1, votes, torch.ones_like(votes))


def vote_rank(counts: Tensor, places: int) -> Tensor:
    """[B, K] int64 votes of each class, at most `places` -> [B, K] int64 rank, most votes first.

    Competition rank: r = 1 + number of classes with more votes, so equal counts share the smallest rank
    (Liang et al. 2022, arXiv 2207.12980; `competition_rank` gives the same). A count is one of 0 .. L, so a
    histogram of counts replaces the sort: O(B (K + L)) time and memory.
    """
    with_count = counts.new_zeros(len(counts), places + 1)  # [B, L + 1]: classes that have this many votes
    with_count.scatter_add_(1, counts, torch.ones_like(counts))
    at_most = with_count.cumsum(1)
    return 1 + counts.shape[1] - at_most.gather(1, counts)


def competition_rank(scores: Tensor) -> Tensor:
    """[B, K] real scores -> [B, K] int64: 1 + number of classes with a greater score, by one sort a row."""
    ascending = scores.sort(1).values
    not_greater = torch.searchsorted(ascending, scores.contiguous(), right=True)
    return 1 + scores.shape[1] - not_greater


def zipf_target(rank: Tensor, labels: Tensor, power: float = 1.0) -> Tensor:
    """[B, K] ranks from 1 (integers give float32), [B] int64 -> [B, K], 0 on the label, rows summing to 1.

    p[k] = r[k]^-power / sum over m != label of r[m]^-power (Liang et al. 2022, as its code has it). The label
    is ranked with the others and dropped afterwards, so the ranks keep a hole where it stood.
    """
    weight = lift(rank).pow(-power).scatter(1, labels[:, None], 0.0)
    return weight / weight.sum(1, keepdim=True)


def off_label_kl(logits: Tensor, target: Tensor, labels: Tensor) -> Tensor:
    """[B, K], [B, K] with 0 on the label, [B] int64 -> [B]: KL(target || softmax over all but the label).

    The Zipf term of Liang et al. 2022. Its gradient is softmax - target off the label and exactly 0 on it;
    0 log 0 = 0.
    """
    label = labels[:, None]
    log_q = F.log_softmax(lift(logits).scatter(1, label, -torch.inf), 1)
    log_q = log_q.scatter(1, label, 0.0)  # 0 times -inf would be nan
    return F.kl_div(log_q, lift(target), reduction="none").sum(1)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """[B], [B] bool -> []: mean of the values where the mask holds, 0 where it holds nowhere."""
    kept = mask.to(values.dtype)
    return (values * kept).sum() / kept.sum().clamp(min=1)


def distillation_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """[B, K], [B, K] logits -> []: T^2 times the batch mean of KL(teacher at T || student at T).

    Hinton et al. 2015, section 2. The gradient is T/B (softmax(student/T) - softmax(teacher/T)).
    """
    log_p = F.log_softmax(lift(student) / temperature, 1)
    log_q = F.log_softmax(lift(teacher) / temperature, 1)
    return temperature**2 * F.kl_div(log_p, log_q, reduction="batchmean", log_target=True)
