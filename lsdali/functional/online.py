"""Statistics of a class's own predictions (Zhang et al. 2021, arXiv 2011.12562)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lsdali.functional.labels import as_float32


def accumulate_correct(sums: Tensor, counts: Tensor, logits: Tensor, labels: Tensor) -> None:
    """Add a batch to `sums` [K, K] and `counts` [K] in place: softmax and 1, in the label's row, of each right sample.

    logits [B, K], labels [B] int64. Samples whose arg-max (the lowest of equals) is not the label add nothing.
    """
    right = (logits.argmax(1) == labels).to(sums.dtype)
    sums.index_add_(0, labels, (F.softmax(as_float32(logits), 1) * right[:, None]).to(sums.dtype))
    counts.index_add_(0, labels, right)


def class_averages(sums: Tensor, counts: Tensor) -> Tensor:
    """Map [K, K], [K] -> [K, K] rows summing to 1.

    They are the mean of each class, uniform for a class without a right sample.
    """
    mean = sums / counts.clamp(min=1)[:, None]
    return torch.where(counts[:, None] > 0, mean, 1 / len(counts))


def table_distance(human: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """Map [K, K], [K, K] -> [], [].

    They are the soft cross-entropy and KL divergence of a table's rows from people's, means over rows.

    Row k of `human` is the mean of what people say of images of class k (CIFAR-10H; Peterson et al. 2019), row k of
    `table` is a network's, such as OLS collects; Zhang et al. 2021 compare them so. A human 0 adds nothing; a table's 0
    where people's is not makes both infinite.
    """
    human, table = as_float32(human), as_float32(table)
    cross = -torch.xlogy(human, table).sum(1).mean()
    return cross, cross + torch.xlogy(human, human).sum(1).mean()


def freeze_confident_rows(new: Tensor, old: Tensor, counts: Tensor, sharp: float) -> Tensor:
    """Map [K, K], [K, K], [K] -> [K, K].

    Each row is the old one if its greatest entry is at least `sharp`, the new one elsewhere.

    A class without a right sample takes its new row even so (the fine-grained code's order of the two tests).
    """
    kept = (old.amax(1) >= sharp) & (counts > 0)
    return torch.where(kept[:, None], old, new)


def most_confident_rows(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Map [B, K] -> [K], [K, K]: each class's greatest probability in the batch, and the prediction that has it.

    The prediction of the most certain sample of class i estimates row i of the noise matrix (Patrini et al. 2017,
    arXiv 1609.03683, section 4.3).
    """
    p = F.softmax(as_float32(logits), 1)
    best, sample = p.max(0)
    return best, p[sample]
