"""Targets from predictions: of a teacher, of the batch, of an earlier epoch.

B batch, K classes, C channels, k kept classes.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lsdali.functional.labels import as_float32, smooth_targets

Strength = Literal["constant", "sure", "unsure"]


def soft_kl(logits: Tensor, target: Tensor) -> Tensor:
    """Map [B, K], [B, K] rows summing to 1 -> [B]: KL(target || softmax); 0 log 0 = 0."""
    return F.kl_div(F.log_softmax(as_float32(logits), 1), as_float32(target), reduction="none").sum(1)


def progressive_target(labels: Tensor, history: Tensor, trust: Tensor) -> Tensor:
    """Map [B] int64, [B, K], [B] a -> [B, K]: (1 - a) one-hot + a history (PS-KD, Kim et al. 2021)."""
    a = trust[:, None]
    return (a * as_float32(history)).scatter_add(1, labels[:, None], (1 - a).to(as_float32(history).dtype))


def topk_pack(probabilities: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """Map [B, K] -> the `keep` greatest of each row [B, k], and their classes [B, k] int64."""
    values, classes = as_float32(probabilities).topk(keep, 1)
    return values, classes


def topk_unpack(values: Tensor, classes: Tensor, count: int) -> Tensor:
    """Map [B, k], [B, k] int64 -> [B, K]: the kept probabilities.

    What they leave of 1 is spread evenly over the other classes.
    """
    kept = as_float32(values)
    rest = (1 - kept.sum(1, keepdim=True)).clamp(min=0) / max(count - kept.shape[1], 1)
    return rest.expand(-1, count).scatter(1, classes, kept)


def virtual_teacher(labels: Tensor, classes: int, correct: float) -> Tensor:
    """Map [B] int64 -> [B, K]: `correct` on the label, the rest evenly on the others (TF-KD, Yuan et al. 2020)."""
    return smooth_targets(labels, classes, 1 - correct, "others")


def ensemble_targets(logits: Tensor, features: Tensor, temperature: float, propagation: float) -> Tensor:
    """Map [B, K], [B, C] -> [B, K], without gradient: (1 - w) (I - w A)^-1 softmax(logits / T).

    BAKE (Ge et al. 2021): each sample's prediction becomes a mixture of its batch's, weighted by A, the row
    softmax of the cosines between features, a sample's own left out. Rows sum to 1. I - w A is strictly
    diagonally dominant for w < 1, so the solution exists.
    """
    with torch.no_grad(), torch.autocast(logits.device.type, enabled=False):
        unit = F.normalize(as_float32(features.detach()), dim=1)
        own = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
        affinity = (unit @ unit.mT).masked_fill(own, -1e9).softmax(1)
        soft = F.softmax(as_float32(logits.detach()) / temperature, 1).to(unit.dtype)
        system = torch.eye(len(unit), dtype=unit.dtype, device=unit.device) - propagation * affinity
        # solve() would wait for the device to report a singular matrix
        mixed: Tensor = torch.linalg.solve_ex(system, soft).result
        return (1 - propagation) * mixed


# ---- instance-based label smoothing (Maher and Kull 2021, arXiv 2110.05355, and its two repositories)


def instance_strength(teacher: Tensor, labels: Tensor, smoothing: float, temperature: float, by: Strength) -> Tensor:
    """Map [B, K] logits, [B] int64 -> [B]: the mass taken from the label. p is the teacher's probability of it at T.

    "constant": a; "sure": a p; "unsure": a (1 - p).
    """
    p = F.softmax(as_float32(teacher) / temperature, 1).gather(1, labels[:, None]).squeeze(1)
    return smoothing * {"constant": torch.ones_like(p), "sure": p, "unsure": 1 - p}[by]


def quadratic_strength(teacher: Tensor, labels: Tensor, shift: float, coefficient: float, most: float) -> Tensor:
    """Map [B, K] logits, [B] int64 -> [B]: the mass taken from the label, min(most, P2 (p - P1)^2).

    p is the teacher's probability of the label, P1 the shift, P2 the coefficient. Inferred from the appendix of
    Maher and Kull 2021 (text, and figure 6, whose curves end at 0.2 for small p), not checked against their Equation 3.
    """
    p = F.softmax(as_float32(teacher), 1).gather(1, labels[:, None]).squeeze(1)
    return (coefficient * (p - shift).square()).clamp(max=most)


def teacher_spread(teacher: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Map [B, K] logits, [B] int64 -> [B, K], 0 on the label, rows summing to 1: the teacher's softmax at T without it.

    The same as p / (1 - p[label]) off the label, also if that is 0 / 0 in floating point.
    """
    return F.softmax((as_float32(teacher) / temperature).scatter(1, labels[:, None], -torch.inf), 1)


def smoothed_evenly(strength: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Map [B], [B] int64 -> [B, K]: 1 - strength on the label, the rest evenly on the others."""
    share = (strength / (classes - 1))[:, None].expand(-1, classes)
    return share.scatter(1, labels[:, None], 1 - strength[:, None])


def smoothed_by_teacher(strength: Tensor, spread: Tensor, labels: Tensor) -> Tensor:
    """Map [B], [B, K] with 0 on the label, [B] int64 -> [B, K].

    It holds 1 - strength on the label, strength x spread elsewhere.
    """
    return (strength[:, None] * spread).scatter(1, labels[:, None], 1 - strength[:, None])


def smoothed_by_dissimilarity(teacher: Tensor, labels: Tensor, smoothing: float, temperature: float) -> Tensor:
    """Map [B, K] logits, [B] int64 -> [B, K]: a (1 - q) / (1 - q[label]) off the label and 1 - a on it.

    q is the softmax at T. This is the class-based smoothing of IBLS's code (utils/loss.py): the more
    alike a class is, the less it gets, and rows sum to 1 + a (K - 3 + 2 q[label]) / (1 - q[label]),
    which grows without bound with q[label].
    """
    label = labels[:, None]
    q = F.softmax(as_float32(teacher) / temperature, 1)
    rest = q.scatter(1, label, 0.0).sum(1, keepdim=True)  # 1 - q[label], also where that rounds to 0
    return (smoothing * (1 - q) / rest).scatter(1, label, 1 - smoothing)


def logit_target(teacher: Tensor, labels: Tensor, smoothing: float, shift: Literal["always", "negative"]) -> Tensor:
    """Map [B, K] logits, [B] int64 -> [B, K], rows summing to 1: smoothing in proportion to shifted logits.

    g is the logits less the row's minimum ("negative": only if that is below 0). The label loses
    a g[label] / sum g, which the others share in proportion to g, or evenly if all of theirs are 0.
    """
    logits = as_float32(teacher)
    low = logits.amin(1, keepdim=True)
    g = logits - (low if shift == "always" else low.clamp(max=0))
    classes, label = g.shape[1], labels[:, None]
    total, mine = g.sum(1, keepdim=True), g.gather(1, label)
    strength = smoothing * torch.where(total > 0, mine / total, 1 / classes)
    others = g.scatter(1, label, 0.0)
    left = others.sum(1, keepdim=True)
    spread = torch.where(left > 0, others / left, 1 / (classes - 1))
    return (strength * spread).scatter(1, label, 1 - strength)
