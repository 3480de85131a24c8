"""Accuracy and calibration of a whole data set: exact, and the same on any number of ranks and in any batch
size.

`MetricAccumulator` keeps five fp64 numbers and the index of each sample and gathers them once; every metric is then
a pure function of the whole data set in the order of its index. So nothing depends on how it was cut.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lsdali import dist
from lsdali.batch import Batch
from lsdali.errors import UserError

Bins = tuple[Tensor, Tensor]  # lower, upper edges [M] each; a bin holds lower < confidence <= upper


def equal_bins(count: int) -> Bins:
    """Return `count` equal bins over [0, 1] without gaps; the outer two are open-ended: 0 is in the first."""
    edges = torch.linspace(0, 1, count + 1, dtype=torch.float64)
    edges[0], edges[-1] = -torch.inf, torch.inf
    return edges[:-1], edges[1:]


def pskd_bins(width: float = 0.1) -> Bins:
    """Return the bins of PS-KD (Kim et al., ICCV 2021), as its code makes them.

    Upper edges are multiples of the width, lower edges upper - width, both rounded: some neighbours leave a
    gap of one unit in the last place (0.2 to 0.20000000000000004), and what is in it, or above 1, is in no
    bin.
    """
    upper = width + width * torch.arange(round(1 / width), dtype=torch.float64)
    return upper - width, upper


def ibls_bins(count: int) -> Bins:
    """Return `count` equal bins as IBLS's later code has them (netcal 1.1): closed below, [lower, upper).

    1 is in the last.
    """
    edges = torch.from_numpy(np.nextafter(np.linspace(0, 1, count + 1), -np.inf))
    edges[0], edges[-1] = -torch.inf, torch.inf
    return edges[:-1], edges[1:]


def mass_bins(confidence: Tensor, count: int) -> Bins:
    """Map [N] -> `count` bins that hold nearly equally many samples: their edges are quantiles (Nguyen, O'Connor 2015).

    Equal confidences share a bin, so that some bins may be empty.
    """
    edges = torch.from_numpy(np.quantile(confidence.double().cpu().numpy(), np.linspace(0, 1, count + 1)))
    edges[0], edges[-1] = -torch.inf, torch.inf
    return edges[:-1], edges[1:]


def binned(confidence: Tensor, right: Tensor, bins: Bins) -> tuple[Tensor, Tensor, Tensor]:
    """Map [N], [N], M bins -> [M] int64, [M], [M]: samples of each bin, sum of their confidence, how many are right."""
    lower, upper = (edge.to(confidence.device) for edge in bins)
    confidence = confidence.double().contiguous()
    bin_of = torch.bucketize(confidence, upper)  # the first bin that does not end below; M for none
    outside = (bin_of == len(upper)) | (confidence <= lower[bin_of.clamp(max=len(lower) - 1)])
    bin_of = bin_of.masked_fill(outside, len(lower))  # the last one is for those in no bin
    weights = (None, confidence, right.double())
    counts, sums, rights = (torch.bincount(bin_of, w, len(lower) + 1)[:-1] for w in weights)
    return counts, sums, rights


def calibration_error(confidence: Tensor, right: Tensor, bins: Bins) -> Tensor:
    """Map [N], [N], bins -> []: ECE in %, sum over bins |sum of right - confidence| / N (Guo et al., 2017).

    Samples in no bin add nothing, but count in N.
    """
    _, sums, rights = binned(confidence, right, bins)
    return 100 * (rights - sums).abs().sum() / len(confidence)


def bin_gaps(confidence: Tensor, right: Tensor, bins: Bins) -> Tensor:
    """Map [N], [N], bins -> [at most M]: |accuracy - mean confidence| in % of each bin that is not empty.

    Its greatest is the MCE (Naeini et al., 2015), its mean the ACE as netcal has it, and IBLS's code with it.
    """
    counts, sums, rights = binned(confidence, right, bins)
    full = counts > 0
    return 100 * ((rights - sums).abs() / counts)[full]


def classwise_error(p: Tensor, labels: Tensor, bins: Bins) -> Tensor:
    """Map [N, K], [N], bins -> [].

    It is the mean over classes of the ECE in % of p[:, k] for "the label is k" (Kull 2019).
    """
    errors = [calibration_error(p[:, k], labels == k, bins) for k in range(p.shape[1])]
    return torch.stack(errors).mean()


def label_errors(confidence: Tensor, right: Tensor, labels: Tensor, bins: Bins) -> list[float]:
    """Map [N], [N], [N], bins -> the ECE in % of the samples of each label that occurs.

    Their mean is what IBLS's code calls class-wise ECE.
    """
    own = [labels == k for k in np.unique(labels.cpu().numpy()).tolist()]
    return [calibration_error(confidence[rows], right[rows], bins).item() for rows in own]


def brier(p: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return the means of sum_k (p_k - y_k)^2 (Brier 1950) and of (1 - p_label)^2, IBLS's, from [N, K] and [N]."""
    own = p.gather(1, labels[:, None])[:, 0]
    whole = (p**2).sum(1) - own**2 + (1 - own) ** 2
    return _mean(whole).item(), _mean((1 - own) ** 2).item()


def class_accuracies(right: Tensor, labels: Tensor, classes: int) -> list[float | None]:
    """Map [N], [N] -> the accuracy in % on each class; None for one without a sample."""
    counts, rights = (torch.bincount(labels, w, classes).tolist() for w in (None, right.double()))
    return [100 * hits / n if n else None for n, hits in zip(counts, rights, strict=True)]


def reliability(confidence: Tensor, right: Tensor, bins: Bins) -> list[dict[str, float | None]]:
    """Map [N], [N], M bins -> M rows: lower and upper edge, count, mean confidence and accuracy; None for an empty bin.

    A sample is in one bin. (The curve of the code that preceded IBLS's adds each sample to all bins above it too.)
    """
    columns = (*bins, *binned(confidence, right, bins))
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [
        {
            "lower": max(lower, 0.0),
            "upper": min(upper, 1.0),
            "count": n,
            "confidence": total / n if n else None,
            "accuracy": rights / n if n else None,
        }
        for lower, upper, n, total, rights in rows
    ]


def risks(confidence: Tensor, right: Tensor, index: Tensor) -> Tensor:
    """Map [N], [N], [N] -> [N] fp64: the share of errors among the i most confident samples, i = 1, ..., N.

    Of equal confidences the larger index comes first: the order the reference gives if its unstable sort happens
    to be stable.
    """
    order = index.argsort(descending=True)
    order = order[confidence[order].argsort(descending=True, stable=True)]
    return _running_mean(1 - right[order].double())


def aurc(confidence: Tensor, right: Tensor, index: Tensor) -> Tensor:
    """Map [N], [N], [N] -> []: area under the risk-coverage curve x 1000, the mean of `risks` (Geifman 2019)."""
    return 1000 * _mean(risks(confidence, right, index))


def excess_aurc(confidence: Tensor, right: Tensor, index: Tensor) -> Tensor:
    """Map [N], [N], [N] -> []: E-AURC x 1000: AURC less that of the best order, which has every error last."""
    best = right.double().sort(descending=True).values
    return aurc(confidence, right, index) - 1000 * _mean(_running_mean(1 - best))


def _mean(x: Tensor) -> Tensor:
    """[N] -> [], on the host by NumPy, in one order: torch's depends on the number of threads, which torchrun sets."""
    return torch.tensor(x.cpu().numpy().mean(), dtype=x.dtype)


def _running_mean(x: Tensor) -> Tensor:
    """[N] -> [N]: the mean of the first 1, 2, ..., N, in the memory of x."""
    return x.cumsum_(0).div_(torch.arange(1, len(x) + 1, dtype=x.dtype, device=x.device))


def label_rank(logits: Tensor, labels: Tensor) -> Tensor:
    """Map [B, K], [B] -> [B] int64: how many classes come before the label; in the top k means rank < k.

    Of equal logits the smaller class comes first, as argmax has it. So a network that says the same of
    every class is right by chance only, and ties of 16-bit logits flatter nobody.
    """
    own = logits.gather(1, labels[:, None])
    earlier = torch.arange(logits.shape[1], device=logits.device) < labels[:, None]
    return ((logits > own) | ((logits == own) & earlier)).sum(1)


def score(logits: Tensor, labels: Tensor) -> Tensor:
    """Map [B, K], [B] -> [B, 4] fp64: in the top 1, in the top 5 (0 or 1), NLL (nats), confidence. Never waits.

    A row of logits without a softmax (a NaN, a +inf, or -inf everywhere) counts as wrong for every k, with
    confidence 0 and an infinite NLL. So does a row whose label has the logit -inf, with its own confidence.
    """
    log_p = logits.detach().double().log_softmax(1)
    broken = log_p.isnan().any(1)
    nll = -log_p.gather(1, labels[:, None])[:, 0].masked_fill(broken, -torch.inf)
    confidence = log_p.amax(1).exp().masked_fill(broken, 0.0)
    beyond = logits.shape[1] + 5  # outside every top k
    rank = label_rank(logits, labels).masked_fill(nll.isinf(), beyond)
    return torch.stack([rank < 1, rank < 5, nll, confidence], 1).double()


def measure(scores: Tensor) -> dict[str, float]:
    """Return top1, top5 (%), nll (nats), ece, ece_pskd (%), aurc (x 1000) and n of [N, 4] of `score`, in their order.

    `ece` has 15 bins of equal width, `ece_pskd` the ten of `pskd_bins`. top5 is 100 with five classes or fewer.
    Raises UserError if there is no sample.
    """
    if len(scores) == 0:
        raise UserError("nothing was evaluated: the data set has no valid sample")
    top1, top5, nll, confidence = scores.unbind(1)
    return {
        "top1": 100 * _mean(top1).item(),
        "top5": 100 * _mean(top5).item(),
        "nll": _mean(nll).item(),
        "ece": calibration_error(confidence, top1, equal_bins(15)).item(),
        "ece_pskd": calibration_error(confidence, top1, pskd_bins()).item(),
        "aurc": aurc(confidence, top1, torch.arange(len(scores))).item(),
        "n": float(len(scores)),
    }


class MetricAccumulator:
    """Metrics of one pass over a data set. Each valid sample must be seen once, on one rank."""

    def __init__(self, classes: int, device: torch.device) -> None:
        self._classes = classes
        self._scores = [torch.empty((0, 5), dtype=torch.float64, device=device)]
        self._index = [torch.empty(0, dtype=torch.int64)]

    def update(self, logits: Tensor, batch: Batch) -> None:
        """Add the [B, K] logits of a batch. Never waits for the device; padding is dropped in `result`.

        Raises UserError if the logits are not of this many classes.
        """
        if logits.shape != (len(batch), self._classes):
            wanted = [len(batch), self._classes]
            raise UserError(f"the logits have the shape {list(logits.shape)}; the data set asks for {wanted}")
        self._scores.append(torch.cat([batch.valid[:, None], score(logits, batch.labels)], 1))
        # The index stays on the host until the end: a copy to the device here would wait for the queue.
        self._index.append(batch.index)

    def result(self) -> dict[str, float]:
        """Return the figures of `measure`. Collective; equal on every rank.

        Raises UserError for no valid sample anywhere.
        """
        scores = torch.cat(self._scores)
        index = torch.cat(self._index).to(scores.device)
        valid = scores[:, 0].bool()
        rows = dist.all_rows(torch.cat([scores[valid, 1:], index[valid, None].double()], 1)).cpu()
        return measure(rows[rows[:, 4].argsort(), :4])


@torch.no_grad()
def predictions(
    network: Callable[[Tensor], Tensor],
    batches: Iterable[Batch],
    autocast: Callable[[], AbstractContextManager[Any]],
) -> Iterator[tuple[Tensor, Batch]]:
    """Yield the logits [B, K] of each batch, and the batch; the network is in evaluation mode."""
    for batch in batches:
        with autocast():
            logits = network(batch.images)
        yield logits, batch
