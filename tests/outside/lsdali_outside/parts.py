"""What recipes get with `uses: [lsdali_outside.parts]`."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from nvidia.dali import fn
from pydantic import Field
from torch import nn

from lsdali.batch import Batch
from lsdali.clock import Clock
from lsdali.data.sampling.augment.base import Augmentation, Choices, Fraction
from lsdali.data.sets.catalog import Folder
from lsdali.events import Evaluated, Event
from lsdali.functional import cross_entropy
from lsdali.loggers.base import LoggerConfig
from lsdali.methods.base import Loss, Method
from lsdali.methods.shared.features import FeatureLoss
from lsdali.models.blocks import GlobalAvgPool
from lsdali.models.student import Forward, Network
from lsdali.optim.configs import Common


class Poly1(Method):
    """Poly-1 loss: cross-entropy plus epsilon * (1 - p) (Leng et al., 2022)."""

    class Config(Method.Config):
        """Poly-1 loss."""

        name: Literal["poly1"] = "poly1"
        epsilon: float = Field(1.0, ge=0)
        """Weight of 1 - p; 0 is cross-entropy."""

    config: Config

    def loss(self, student: Forward, batch: Batch, clock: Clock) -> Loss:
        logits = student(batch.images).logits
        missing = batch.per_label(lambda labels: 1 - logits.softmax(1).gather(1, labels[:, None]).mean())
        hard = batch.per_label(lambda labels: cross_entropy(logits, labels))
        return Loss(hard + self.config.epsilon * missing, logits.detach(), {"ce": hard.detach()})


def outside_net(classes: int) -> Network:
    """A network of two layers."""
    stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU())
    stage = nn.Sequential(nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU())
    return Network(stem, {"only": stage}, GlobalAvgPool(), nn.Linear(32, classes), {"only": 32})


class OutsideFolder(Folder):
    """Class folders by another name."""

    name: Literal["outside_folder"] = "outside_folder"  # type: ignore[assignment]


class Invert(Augmentation):
    """Some images become negatives."""

    name: Literal["invert"] = "invert"
    probability: Fraction = 0.5
    """How many of the images are changed."""

    @property
    def columns(self) -> int:
        return 1

    def choices(self, u: np.ndarray, side: int) -> Choices:
        return ((u[:, 0] < self.probability).astype(np.int32),)


def invert(x: Any, config: Invert, inputs: Any, side: int) -> Any:
    """255 - x for the chosen images."""
    if inputs[0] > 0:
        x = fn.cast_like(255 - x, x)
    return x


class Adagrad(Common):
    """Rates that fall with the sum of squared gradients (Duchi et al., 2011)."""

    name: Literal["adagrad"] = "adagrad"

    def arguments(self) -> dict[str, Any]:
        return {}


class Halving(Common):
    """Half a step of SGD."""

    name: Literal["halving"] = "halving"

    def arguments(self) -> dict[str, Any]:
        return {}


class HalfSGD(torch.optim.Optimizer):
    """Half a step of SGD."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.data.sub_(p.grad, alpha=group["lr"] / 2)


class DiaryConfig(LoggerConfig):
    """A line for each evaluation."""

    name: Literal["diary"] = "diary"
    file: str = "diary.txt"
    """The file in the run folder."""

    def open(self, folder: Path) -> "Diary":
        return Diary(folder, self.file)


class Diary:
    """Writes epoch and top-1."""

    def __init__(self, folder: Path, file: str) -> None:
        self.place, self.file = folder, file

    def write(self, event: Event) -> None:
        if isinstance(event, Evaluated):
            with (self.place / self.file).open("a") as file:
                file.write(f"{event.epoch} {event.metrics['top1']}\n")

    def close(self) -> None:
        """Keep nothing open."""


class Overlap(FeatureLoss):
    """One less the cosine of two maps of the same shape."""

    name: Literal["overlap"] = "overlap"
    weight: float = 2.0

    def distance(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        return 1 - torch.cosine_similarity(student.flatten(1), teacher.flatten(1)).mean()


METHODS = {"poly1": Poly1}
FEATURE_LOSSES = {"overlap": Overlap}
MODELS = {"outside_net": outside_net}
DATASETS = {"outside_folder": OutsideFolder}
AUGMENTATIONS = {"invert": Invert}
EFFECTS = {"invert": invert}
OPTIMIZERS = {"adagrad": Adagrad, "halving": Halving}
LOGGERS = {"diary": DiaryConfig}
TORCH = {"adagrad": torch.optim.Adagrad, "halving": HalfSGD}
