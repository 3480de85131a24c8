"""Images that are moved, noisy or attacked: pure functions of batches and of a network in evaluation mode.

Budgets are in grey levels, of 255. What is drawn for an image is a function of its number in the data set, so that no
figure depends on batches or on the number of processes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from lsdali.batch import Batch, Normal
from lsdali.data.sampling.sampler import uniforms
from lsdali.functional import as_float32

OFFSETS, START, GAUSSIAN = 106, 107, 108  # streams of random numbers
Classify = Callable[[Tensor], Tensor]  # [B, 3, H, W] -> logits [B, K]


@dataclass(frozen=True)
class Levels:
    """Grey levels in normalised images: a level, the least and the greatest value of each colour, [3, 1, 1]."""

    level: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, normal: Normal, device: torch.device) -> "Levels":
        mean, std = (torch.tensor(values, device=device)[:, None, None] for values in normal)
        return cls(1 / 255 / std, -mean / std, (1 - mean) / std)

    def clip(self, images: Tensor) -> Tensor:
        """Keep every value between black and white."""
        return torch.maximum(torch.minimum(images, self.high), self.low)


def drawn(batch: Batch, stream: int, draw: Callable[[np.random.Generator, tuple[int, ...]], Any]) -> Tensor:
    """Return [B, 3, H, W] random numbers, those of each image from a generator of its own (Philox)."""
    shape = tuple(batch.images.shape[1:])
    parts = [draw(np.random.Generator(np.random.Philox(key=[stream, n])), shape) for n in batch.index.tolist()]
    return torch.from_numpy(np.stack(parts)).to(batch.images.device)


def gaussian(batch: Batch, levels: Levels, sigma: float) -> Tensor:
    """Add normal noise of so many grey levels to each value; clip to black and white."""
    noise = drawn(batch, GAUSSIAN, lambda random, shape: random.standard_normal(shape, np.float32))
    return levels.clip(as_float32(batch.images) + sigma * levels.level * noise)


def loss_slope(network: Classify, images: Tensor, labels: Tensor) -> Tensor:
    """Return the gradient of each image's log loss, [B, 3, H, W]. The network's own gradients stay as they are."""
    with torch.enable_grad():
        images = images.detach().requires_grad_()
        loss = cross_entropy(as_float32(network(images)), labels, reduction="sum")
        (slope,) = torch.autograd.grad(loss, images)
    return slope


def fgsm(network: Classify, batch: Batch, levels: Levels, size: float) -> Tensor:
    """Move every value by `size` grey levels in the direction that raises the loss (Goodfellow et al. 2015)."""
    images = as_float32(batch.images)
    return levels.clip(images + size * levels.level * loss_slope(network, images, batch.labels).sign())


def pgd(network: Classify, batch: Batch, levels: Levels, size: float, step: float, steps: int) -> Tensor:
    """Projected gradient steps inside the cube of `size` grey levels, from a random start in it (Madry et al. 2018)."""
    images = as_float32(batch.images)
    reach = size * levels.level
    start = drawn(batch, START, lambda random, shape: random.uniform(-1, 1, shape).astype(np.float32))
    moved = levels.clip(images + reach * start)
    for _ in range(steps):
        moved = moved + step * levels.level * loss_slope(network, moved, batch.labels).sign()
        moved = levels.clip(torch.maximum(torch.minimum(moved, images + reach), images - reach))
    return moved


def random_crops(batch: Batch, size: int) -> tuple[Tensor, Tensor]:
    """Cut two crops of each image, `size` pixels a side, at offsets 0 to S - size - 1, as in the code of OLS."""
    span = batch.images.shape[2] - size
    offsets = (uniforms(0, 0, batch.index.numpy(), 4, OFFSETS) * span).astype(np.int64)
    return crops_at(batch.images, offsets[:, :2], size), crops_at(batch.images, offsets[:, 2:], size)


def crops_at(images: Tensor, offsets: NDArray[np.int64], size: int) -> Tensor:
    """Map [B, 3, S, S] and [B, 2] offsets down and across -> [B, 3, size, size]."""
    cut = [image[:, y : y + size, x : x + size] for image, (y, x) in zip(images, offsets.tolist(), strict=True)]
    return torch.stack(cut).contiguous(memory_format=torch.channels_last)


def diagonal(images: Tensor, size: int) -> list[Tensor]:
    """Map [B, 3, S, S] -> the crops at the offsets (0, 0), (1, 1), ..., (S - size, S - size)."""
    return [images[:, :, k : k + size, k : k + size] for k in range(images.shape[2] - size + 1)]
