"""Hard, smoothed and softened labels: targets and losses."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Mass = Literal["all", "others"]


def as_float32(x: Tensor) -> Tensor:
    """Return `x` in float32, or untouched if it is float64."""
    return x if x.dtype == torch.float64 else x.float()


def label_mean(values: Tensor, labels: Tensor, weight: Tensor | None) -> Tensor:
    """Map [B], [B] int64, [K] or None -> []: mean over the batch of weight[label] times the value.

    With `weight` the classes' weights over their mean in the batch, it is the weighted mean of torch's `weight=`.
    """
    return values.mean() if weight is None else (values * weight[labels].to(values.dtype)).mean()


def cross_entropy(logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
    """Map [B, K], [B] int64 -> []: mean over the batch of -log p[label]; `weight` [K] as in `label_mean`."""
    if weight is None:
        return F.cross_entropy(as_float32(logits), labels)
    return label_mean(F.cross_entropy(as_float32(logits), labels, reduction="none"), labels, weight)


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Map [B, K], [B, K] -> []: mean over the batch of -sum_k target log p."""
    return -(as_float32(target) * F.log_softmax(as_float32(logits), 1)).sum(1).mean()


def smoothing_share(smoothing: float, classes: int, mass: Mass) -> float:
    """Return what label smoothing of strength a gives to every class but the label (Szegedy et al. 2016, section 7).

    "all":    a/K, and a/K also on top of the label's 1 - a: what PyTorch's `label_smoothing` does.
    "others": a/(K - 1), and 1 - a stays on the label: what the ZLS code does.
    """
    return smoothing / (classes if mass == "all" else classes - 1)


def smooth_targets(labels: Tensor, classes: int, smoothing: float, mass: Mass = "all") -> Tensor:
    """Map [B] int64 -> [B, K] float32: `smoothing_share` on every class but the label, rows summing to 1."""
    share = smoothing_share(smoothing, classes, mass)
    return F.one_hot(labels, classes) * (1 - share * classes) + share


def label_smoothing(
    logits: Tensor, labels: Tensor, smoothing: float, mass: Mass = "all", weight: Tensor | None = None
) -> Tensor:
    """Map [B, K], [B] int64 -> []: `soft_cross_entropy` against `smooth_targets`, without building them.

    `weight` [K], as in `label_mean`, multiplies each class's part of the sum, as torch's `weight=` does.
    """
    log_p = F.log_softmax(as_float32(logits), 1)
    if weight is not None:
        log_p = log_p * weight.to(log_p.dtype)
    classes = log_p.shape[1]
    share = smoothing_share(smoothing, classes, mass)
    on_label = log_p.gather(1, labels[:, None]).squeeze(1)
    return -((1 - share * classes) * on_label + share * log_p.sum(1)).mean()


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Map [B], [B] bool -> []: mean of the values where the mask holds, 0 if it holds nowhere."""
    kept = mask.to(values.dtype)
    return (values * kept).sum() / kept.sum().clamp(min=1)


def distillation_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Map [B, K], [B, K] logits -> []: T^2 times the batch mean of KL(teacher at T || student at T).

    Hinton et al. 2015, section 2. The gradient is T/B (softmax(student/T) - softmax(teacher/T)).
    """
    log_p = F.log_softmax(as_float32(student) / temperature, 1)
    log_q = F.log_softmax(as_float32(teacher) / temperature, 1)
    return temperature**2 * F.kl_div(log_p, log_q, reduction="batchmean", log_target=True)
