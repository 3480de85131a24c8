"""Soft ranks: ranks that follow the distances between scores, not their order alone (Blondel et al. 2020)."""

import torch
from torch import Tensor


def soft_rank(scores: Tensor, strength: float) -> Tensor:
    """Map [B, K] real scores -> [B, K] float32 (float64 stays float64): soft rank from 1, the greatest score first.

    The point of the permutahedron of (1, ..., K) that is nearest to -scores / strength (Blondel et al. 2020, arXiv
    2002.08871, equation 6 with the quadratic regulariser), which torchsort calls soft_rank(-scores). Each row sums to
    K (K + 1) / 2. Scores at least `strength` apart from their neighbours have their plain ranks; equal ones share the
    mean of theirs, not the smallest; a run of scores nearer to each other than that falls on a straight line through
    its mean rank with slope -1 / strength. No gradient is made.
    """
    with torch.no_grad():
        theta, order = (scores.double() / -strength).sort(1, descending=True)
        classes = scores.shape[1]
        ranks = torch.arange(classes, 0, -1, dtype=torch.float64, device=scores.device)
        soft = theta - falling_fit(theta - ranks)
        # Rounding may leave the polytope by some 1e-12, and weights of ranks need at least 1.
        out = torch.zeros_like(soft).scatter_(1, order, soft.clamp(1, classes))
        return out if scores.dtype == torch.float64 else out.float()


def falling_fit(y: Tensor) -> Tensor:
    """Map [B, K] float64 -> [B, K]: the nearest rows that never rise (isotonic regression with equal weights).

    Fits of neighbouring pieces are merged, twice as long each time. Merging raises what lies below one level x at the
    end of the left piece and lowers what lies above it at the start of the right one, so that what is added equals what
    is taken: the pooling of adjacent violators, but for all pieces of all rows at once, in log2(K) rounds and O(B K)
    memory.
    """
    rows, classes = y.shape
    length = 1 << max(classes - 1, 0).bit_length()
    # Less than any mean of the others, so that padding on the right is never pooled.
    fit = torch.cat([y, (y.amin(1, keepdim=True) - 1).expand(rows, length - classes)], 1)
    half = 1
    while half < length:
        left, right = fit.view(-1, 2, half).unbind(1)
        level = meeting_level(left, right)
        fit = torch.cat([left.maximum(level), right.minimum(level)], 1).view(rows, length)
        half *= 2
    return fit[:, :classes]


def meeting_level(left: Tensor, right: Tensor) -> Tensor:
    """Map [n, h], [n, h], both falling -> [n, 1]: x with sum of max(x - left, 0) = sum of max(right - x, 0).

    Where they do not overlap, any x between them will do; the greatest of `right` is taken. The difference of both
    sides rises with x and is linear between the values of the pieces. So it is evaluated at every value, and x lies
    above the greatest one at which it is not positive.
    """
    h = left.shape[1]
    low, high = left.flip(1), right.flip(1)  # rising, as searchsorted wants it
    lows, highs = sums(low), sums(high)
    every = highs[:, -1:]
    own = torch.arange(h, device=left.device)  # how many of its own piece lie before each value
    below, above = torch.searchsorted(low, high), torch.searchsorted(high, low, right=True)
    at_low = low * (own + h - above) - lows[:, :-1] - every + highs.gather(1, above)
    at_high = high * (below + h - own) - lows.gather(1, below) - every + highs[:, :-1]
    last, first = left[:, -1:], right[:, :1]
    start = greatest_within(low, at_low).maximum(greatest_within(high, at_high)).maximum(last)
    below, above = torch.searchsorted(low, start, right=True), torch.searchsorted(high, start, right=True)
    pooled = lows.gather(1, below) + every - highs.gather(1, above)
    return torch.where(last >= first, first, pooled / (below + h - above).clamp(min=1))


def greatest_within(values: Tensor, gap: Tensor) -> Tensor:
    """Map [n, h], [n, h] -> [n, 1]: the greatest value with a gap of at most 0, or -inf."""
    return values.masked_fill(gap > 0, -torch.inf).amax(1, keepdim=True)


def sums(x: Tensor) -> Tensor:
    """Map [n, h] -> [n, h + 1]: sums of the first 0, 1, ..., h."""
    return torch.nn.functional.pad(x.cumsum(1), (1, 0))
