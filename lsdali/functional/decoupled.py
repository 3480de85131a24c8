"""Losses that take a teacher's prediction apart: by label and other classes, by samples and classes, by logit scale.

B batch, K classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lsdali.functional.labels import as_float32
from lsdali.functional.teacher import soft_kl


def standardised(logits: Tensor) -> Tensor:
    """Map [B, K] -> [B, K]: each row less its mean, divided by its standard deviation (of a sample of K) + 1e-7.

    Sun et al. 2024 (arXiv 2403.01876), equations 12 and 13 and the code: a student need not copy the teacher's scale.
    """
    z = as_float32(logits)
    return (z - z.mean(1, keepdim=True)) / (z.std(1, keepdim=True) + 1e-7)


def without_label(logits: Tensor, labels: Tensor) -> Tensor:
    """Map [B, K], [B] int64 -> [B, K - 1]: the logits of all classes but the label, in order."""
    other = torch.arange(logits.shape[1] - 1, device=logits.device).expand(len(labels), -1)
    return logits.gather(1, other + (other >= labels[:, None]))


def decoupled_kl(logits: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Map [B, K], [B, K] logits, [B] int64 -> [B], [B].

    KL of target and non-target classes (Zhao et al. 2022, equation 6).

    The first compares how much is on the label, the second how the rest is shared among the other classes. With p the
    teacher's probability of the label at T, KL(teacher || student) is the first plus 1 - p times the second.
    """
    s, t = as_float32(logits) / temperature, as_float32(teacher) / temperature
    label = labels[:, None]
    s_rest, t_rest = without_label(s, labels), without_label(t, labels)
    # the log of what is on the label and of what is on the others, without 1 - p
    s_two = torch.cat([s.gather(1, label), s_rest.logsumexp(1, keepdim=True)], 1)
    t_two = torch.cat([t.gather(1, label), t_rest.logsumexp(1, keepdim=True)], 1)
    return soft_kl(s_two, t_two.softmax(1)), soft_kl(s_rest, t_rest.softmax(1))


def pearson_distance(x: Tensor, y: Tensor) -> Tensor:
    """Map [R, C], [R, C] -> [R].

    1 less the correlation of each row of x with that of y (Huang et al. 2022, equation 7).

    A row without variation has no correlation with anything: 1.
    """
    x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
    correlation: Tensor = (x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1) + 1e-8)
    return 1 - correlation


def gram_distance(x: Tensor, y: Tensor) -> Tensor:
    """Map [R, C], [R, C] -> [].

    Squared distance of x x^T from y y^T, divided by R (Jin et al. 2023, equations 5 and 7).
    """
    return (x @ x.mT - y @ y.mT).square().sum() / len(x)


def rank_shares(order_by: Tensor) -> Tensor:
    """Map [R, C] scores -> [R, C]: 1 / rank, the greatest score first, equal scores in their order (Zipf's law)."""
    order = order_by.argsort(dim=1, descending=True, stable=True)
    return 1 / (order.argsort(dim=1) + 1).to(order_by.dtype)


def normalised_cross_entropy(logits: Tensor, target: Tensor, labels: Tensor) -> Tensor:
    """Map [B, K] logits, [B, K - 1] rows summing to 1, [B] int64 -> [B].

    -sum target log p over the classes but the label.

    p is the softmax of those classes alone, so that both sides sum to 1 (Yang et al. 2023, equation 7).
    """
    log_p = F.log_softmax(without_label(as_float32(logits), labels), 1)
    return -(as_float32(target) * log_p).sum(1)
