"""Distances between a student's maps and a teacher's, for feature distillation.

B batch, C and D channels, H x W positions.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lsdali.functional.labels import as_float32


def same_side(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Map [B, C, H, W], [B, D, H', W'] -> both at the smaller height and width, by means over positions."""
    size = min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3])
    small = [as_float32(x) if x.shape[2:] == size else F.adaptive_avg_pool2d(as_float32(x), size) for x in (a, b)]
    return small[0], small[1]


def hint_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Map [B, C, H, W] twice -> []: the mean square difference (FitNets, Romero et al. 2015)."""
    a, b = same_side(student, teacher)
    return (a - b).square().mean()


def attention_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Map [B, C, H, W], [B, D, H, W] -> []: the mean square difference of attention maps.

    A map's attention is the mean of its squares over channels, with length 1 over all positions (Zagoruyko and
    Komodakis 2017).
    """
    a, b = same_side(student, teacher)
    own, theirs = (F.normalize(x.square().mean(1).flatten(1), dim=1) for x in (a, b))
    return (own - theirs).square().mean()


def relative_distances(x: Tensor) -> Tensor:
    """Map [B, C] -> [B, B]: Euclidean distances, divided by their mean over pairs of two samples."""
    norms = x.square().sum(1)
    apart = (norms[:, None] + norms - 2 * x @ x.mT).clamp(min=1e-12).sqrt()
    apart = apart * (1 - torch.eye(len(x), dtype=x.dtype, device=x.device))
    return apart * (len(x) * (len(x) - 1)) / apart.sum()


def cosines_between(x: Tensor) -> Tensor:
    """Map [B, C] -> [B, B, B]: at sample j, the cosine of the angle from i to k; 0 if two of them are one."""
    ways = F.normalize(x - x[:, None], dim=2)  # [j, i, C], from j to i
    return ways @ ways.mT


def relation_distances(student: Tensor, teacher: Tensor, *, angles: bool = True) -> tuple[Tensor, Tensor]:
    """Map [B, C], [B, D], B >= 2 -> [] each: Huber losses of pairwise distances and of angles (RKD, Park et al. 2019).

    Without `angles`, which need memory for B^2 (B + C) numbers, the second is 0.
    """
    own, theirs = as_float32(student), as_float32(teacher)
    lengths = F.smooth_l1_loss(relative_distances(own), relative_distances(theirs))
    if not angles:
        return lengths, torch.zeros_like(lengths)
    return lengths, F.smooth_l1_loss(cosines_between(own), cosines_between(theirs))
