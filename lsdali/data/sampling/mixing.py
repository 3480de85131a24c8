"""Mixing: mixup and CutMix on the device, after the loader.

Samples 2j and 2j + 1 of a batch are each other's partners: the order is shuffled, so neighbours are random pairs, and a
pair never crosses ranks. lam and the box of a step are functions of (seed, step). So the mixed images
are the same on any number of ranks and in any micro-batches.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
from pydantic import Field
from torch import Tensor

from lsdali.batch import Batch, Mixture, TrainData
from lsdali.config import Config
from lsdali.data.sampling.sampler import uniforms

_MIX = 104  # stream of random numbers


class Mixup(Config):
    """Zhang et al. 2018: each image is a weighted sum of two, and so is its target."""

    name: Literal["mixup"] = "mixup"
    alpha: float = Field(gt=0, le=1e9)
    """lam, the weight of the first image, is drawn from Beta(alpha, alpha), once for a step; published: 0.2, 1.0."""
    probability: float = Field(1.0, gt=0, le=1)
    """Share of the steps whose images are mixed."""


class CutMix(Config):
    """Yun et al. 2019: a box of each image is its partner's; the targets are weighted by area."""

    name: Literal["cutmix"] = "cutmix"
    alpha: float = Field(1.0, gt=0, le=1e9)
    """The area that stays is drawn from Beta(alpha, alpha), once for a step; published: 1.0."""
    probability: float = Field(1.0, gt=0, le=1)
    """Share of the steps whose images are mixed; published: 0.5 (CIFAR), 1.0 (ImageNet)."""


class Switch(Config):
    """Mixup in some steps and CutMix in the others (as timm and torchvision's references do)."""

    name: Literal["switch"] = "switch"
    mixup: float = Field(0.2, gt=0, le=1e9)
    """alpha of mixup; published: 0.1 (A3), 0.2 (A1, A2, torchvision's references), 0.8 (DeiT)."""
    cutmix: float = Field(1.0, gt=0, le=1e9)
    """alpha of CutMix; published: 1.0."""
    share: float = Field(0.5, ge=0, le=1)
    """Share of the mixed steps that have CutMix."""
    probability: float = Field(1.0, gt=0, le=1)
    """Share of the steps whose images are mixed."""


Mix = Mixup | CutMix | Switch
MixConfig = Annotated[Mix, Field(discriminator="name")]


@dataclass(frozen=True)
class MixedBatches:
    """A training loader whose batches are mixed. Each rank's share of a batch must be even."""

    source: TrainData
    config: Mix
    seed: int

    def epoch(self, step: int) -> Iterator[Batch]:
        """Yield batches from global step `step` to its epoch's end."""
        for number, batch in enumerate(self.source.epoch(step), step):
            chance, first, y, x = uniforms(self.seed, number, np.zeros(1, np.int64), 4, _MIX)[0].tolist()
            if chance >= self.config.probability:
                yield batch
                continue
            cut, alpha = self.kind(chance / self.config.probability)
            lam = draw_lam(alpha, first)
            yield cutmix(batch, box(lam, y, x, batch.images.shape[2:])) if cut else mixup(batch, lam)

    def kind(self, chance: float) -> tuple[bool, float]:
        """Return whether a mixed step has CutMix rather than mixup, and its alpha; `chance` is uniform in [0, 1)."""
        if isinstance(self.config, Switch):
            cut = chance < self.config.share
            return cut, self.config.cutmix if cut else self.config.mixup
        return isinstance(self.config, CutMix), self.config.alpha


def draw_lam(alpha: float, u: float) -> float:
    """Map a number in [0, 1) -> one of Beta(alpha, alpha)."""
    from scipy.special import betaincinv

    return float(betaincinv(alpha, alpha, u))


def box(lam: float, y: float, x: float, size: tuple[int, ...]) -> tuple[slice, slice]:
    """Return rows and columns that the partner fills.

    They are 1 - lam of the image, centred at (y, x) in [0, 1), cut at its edge.

    As clovaai/CutMix-PyTorch (train.py): sides and centre are rounded down to pixels.
    """
    spans = []
    for length, centre in zip(size, (y, x), strict=True):
        side, middle = int(length * (1 - lam) ** 0.5), int(length * centre)
        spans.append(slice(max(middle - side // 2, 0), min(middle + side // 2, length)))
    return spans[0], spans[1]


def mixup(batch: Batch, lam: float) -> Batch:
    """Return lam x + (1 - lam) partner."""
    images, partner = batch.images * lam, batch.images * (1 - lam)
    images[0::2] += partner[1::2]
    images[1::2] += partner[0::2]
    return replace(batch, images=images, mixture=Mixture(swapped(batch.labels), lam))


def cutmix(batch: Batch, where: tuple[slice, slice]) -> Batch:
    """Return the partner's pixels inside the box, whose area then decides lam."""
    rows, columns = where
    images = batch.images.clone()
    images[0::2, :, rows, columns] = batch.images[1::2, :, rows, columns]
    images[1::2, :, rows, columns] = batch.images[0::2, :, rows, columns]
    area = (rows.stop - rows.start) * (columns.stop - columns.start)
    lam = 1 - area / (images.shape[2] * images.shape[3])
    return replace(batch, images=images, mixture=Mixture(swapped(batch.labels), lam))


def swapped(x: Tensor) -> Tensor:
    """Map [B, ...] -> [B, ...]: samples 2j and 2j + 1 change places."""
    return x.view(-1, 2, *x.shape[1:]).flip(1).flatten(0, 1)
