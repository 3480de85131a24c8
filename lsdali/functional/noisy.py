"""Losses for labels that may be wrong, as the code of Zhang et al. 2021 (arXiv 2011.12562) collects them.

[B, K] logits, [B] int64 labels -> [] throughout; `weight` [K] is that of `label_mean`. `clamp` c is what that code does
to probabilities: it keeps them in [c, 1 - c], with no gradient outside, so a label with a probability below c is never
learned. None is exact.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lsdali.functional.labels import as_float32, label_mean


def log_probabilities(logits: Tensor, clamp: float | None = None) -> Tensor:
    """Map [B, K] -> [B, K]."""
    if clamp is None:
        return F.log_softmax(as_float32(logits), 1)
    return F.softmax(as_float32(logits), 1).clamp(clamp, 1 - clamp).log()


def symmetric_cross_entropy(
    logits: Tensor, labels: Tensor, forward: float, reverse: float, zero: float, weight: Tensor | None = None
) -> Tensor:
    """Return forward * CE + reverse * reverse CE (Wang et al. 2019, arXiv 1908.06112).

    Log 0 in the label is log `zero`, so reverse CE is -sum_k p[k] log(label[k]) = -log(zero) (1 - p[label]).
    """
    log_p = F.log_softmax(as_float32(logits), 1).gather(1, labels[:, None]).squeeze(1)
    wrong = -label_mean(torch.expm1(log_p), labels, weight)
    return forward * -label_mean(log_p, labels, weight) + reverse * -math.log(zero) * wrong


def clamped_symmetric_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    forward: float,
    reverse: float,
    zero: float,
    clamp: float,
    weight: Tensor | None = None,
) -> Tensor:
    """Return the same as the OLS code has it: p in [clamp, 1], and the label in [zero, 1] in both parts.

    So every wrong class adds zero * -log p to the first part.
    """
    p = F.softmax(as_float32(logits), 1).clamp(clamp, 1)
    label = F.one_hot(labels, p.shape[1]).to(p.dtype).clamp(zero, 1)
    there = label_mean((label * p.log()).sum(1), labels, weight)
    back = label_mean((p * label.log()).sum(1), labels, weight)
    return forward * -there + reverse * -back


def generalised_cross_entropy(logits: Tensor, labels: Tensor, q: float, weight: Tensor | None = None) -> Tensor:
    """Return (1 - p[label]^q) / q: cross-entropy for q -> 0, mean absolute error at 1 (Zhang and Sabuncu 2018)."""
    log_p = F.log_softmax(as_float32(logits), 1).gather(1, labels[:, None]).squeeze(1)
    return label_mean(-torch.expm1(q * log_p) / q, labels, weight)


def class_prior_kl(logits: Tensor) -> Tensor:
    """Return -(1/K) sum_k log(batch mean of p[k]): against collapse to few classes (Tanaka et al. 2018)."""
    log_p = F.log_softmax(as_float32(logits), 1)
    return -(torch.logsumexp(log_p, 0) - math.log(len(log_p))).mean()


def entropy(logits: Tensor) -> Tensor:
    """Return the mean entropy of the predictions."""
    log_p = F.log_softmax(as_float32(logits), 1)
    return -(log_p.exp() * log_p).sum(1).mean()


def soft_bootstrap(
    logits: Tensor, labels: Tensor, trust: float, clamp: float | None = None, weight: Tensor | None = None
) -> Tensor:
    """Return CE against trust * label + (1 - trust) * p; the gradient passes through both p (Reed et al. 2015)."""
    log_p = log_probabilities(logits, clamp)
    own = (log_p.exp() * log_p).sum(1)
    on_label = log_p.gather(1, labels[:, None]).squeeze(1)
    return -label_mean(trust * on_label + (1 - trust) * own, labels, weight)


def hard_bootstrap(
    logits: Tensor, labels: Tensor, trust: float, clamp: float | None = None, weight: Tensor | None = None
) -> Tensor:
    """Return CE against trust * label + (1 - trust) * one-hot of the arg-max (Reed et al. 2015)."""
    log_p = log_probabilities(logits, clamp)
    on_label, on_guess = (log_p.gather(1, k[:, None]).squeeze(1) for k in (labels, log_p.argmax(1)))
    return -label_mean(trust * on_label + (1 - trust) * on_guess, labels, weight)


def forward_correction(logits: Tensor, labels: Tensor, noise: Tensor, clamp: float | None = None) -> Tensor:
    """Return -log (p M)[label] (Patrini et al. 2017, arXiv 1609.03683).

    noise [K, K] is M: row = true class, column = label seen, rows summing to 1. Every class must be seen at times.
    """
    log_p = log_probabilities(logits, clamp)
    return -torch.logsumexp(log_p + noise.T[labels].to(log_p.dtype).log(), 1).mean()


def backward_correction(logits: Tensor, labels: Tensor, inverse: Tensor, clamp: float | None = None) -> Tensor:
    """Return -sum_k M^-1[label, k] log p[k], which has the mean of the clean loss.

    It may be negative (Patrini et al. 2017).

    inverse [K, K] is M^-1.
    """
    log_p = log_probabilities(logits, clamp)
    return -(inverse[labels].to(log_p.dtype) * log_p).sum(1).mean()


def confusion(x: Tensor, norm_over: int) -> Tensor:
    """Map [B, K] -> []: 1/B times the sum of the norms of (first half - second half); a last odd row is left out.

    `norm_over` 1: a norm for each pair, over the classes (Dubey et al. 2018, arXiv 1705.08016);
    0: a norm for each class, over the pairs.
    """
    half = len(x) // 2
    difference = as_float32(x[:half]) - as_float32(x[half : 2 * half])
    norms: Tensor = torch.linalg.vector_norm(difference, dim=norm_over)
    return norms.sum() / len(x)
