"""Weights of classes: given, or from how many training images each class has."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from lsdali.config import Config, PathText
from lsdali.errors import UserError
from lsdali.label_noise import read_numbers
from lsdali.methods.base import Method

PerClass = NDArray[np.float64]
Counts = NDArray[np.int64]


class Labelled(Protocol):
    """The labels and classes of the training samples."""

    @property
    def labels(self) -> NDArray[np.int64]: ...

    @property
    def classes(self) -> tuple[str, ...]: ...


class GivenWeights(Config):
    """Weights that the recipe lists."""

    name: Literal["given"] = "given"
    values: Annotated[tuple[Annotated[float, Field(gt=0, le=1e9)], ...], Field(strict=False, min_length=2)]
    """One weight a class, above 0, in the order of the classes."""

    def weights(self, counts: Counts) -> PerClass:
        """Return [K]."""
        return np.array(self.values, np.float64)


class WeightsFile(Config):
    """Weights from a file."""

    name: Literal["file"] = "file"
    file: PathText
    """NumPy's .npy, .json with a list, or text; one weight a class, above 0, in the order of the classes."""

    def weights(self, counts: Counts) -> PerClass:
        """Return [K]. Raises UserError for a file that cannot be read."""
        return read_numbers(Path(self.file), "class_weights.file", "numbers").ravel()


class InverseFrequency(Config):
    """N / (K n) for a class with n of the N training images of K classes, as scikit-learn's `balanced`."""

    name: Literal["inverse"] = "inverse"

    def weights(self, counts: Counts) -> PerClass:
        """Return [K]."""
        return np.asarray(counts.sum() / (len(counts) * counts), np.float64)


class EffectiveNumber(Config):
    """(1 - beta) / (1 - beta^n), scaled to a mean of 1 over classes (Cui et al. 2019, arXiv 1901.05555)."""

    name: Literal["effective"] = "effective"
    beta: float = Field(0.9999, ge=0, lt=1)
    """0: all classes weigh the same; towards 1: as `inverse`. Published: 0.9 to 0.9999."""

    def weights(self, counts: Counts) -> PerClass:
        """Return [K]."""
        raw = (1 - self.beta) / (1 - self.beta**counts)
        return np.asarray(raw / raw.mean(), np.float64)


ClassWeights = Annotated[GivenWeights | WeightsFile | InverseFrequency | EffectiveNumber, Field(discriminator="name")]


def class_weights(config: ClassWeights, labels: NDArray[np.int64], names: Sequence[str], classes: int) -> PerClass:
    """Return [K], the weight of each class, for training labels [N] in use.

    Raises UserError if the weights do not fit the classes, and if a class has no image to count.
    """
    counts = np.bincount(labels, minlength=classes)
    if isinstance(config, InverseFrequency | EffectiveNumber) and not counts.all():
        k = int(np.flatnonzero(counts == 0)[0])
        raise UserError(
            f"class_weights: class {names[k] if k < len(names) else k} has no training image to weigh it by; "
            "leave the class out with data.classes, or give the weights"
        )
    found = config.weights(counts)
    if len(found) != classes:
        raise UserError(f"class_weights: {len(found)} weights are given for {classes} classes")
    if wrong := np.flatnonzero(~(np.isfinite(found) & (found > 0))).tolist():
        raise UserError(f"class_weights: weight {wrong[0]} (from 0) is {found[wrong[0]]:g}; weights are above 0")
    return found


def recipe_weights(
    config: ClassWeights | None,
    method: Any,
    methods: Mapping[str, type[Method]],
    train: Labelled,
    classes: int,
    device: torch.device,
) -> Tensor | None:
    """Return [K] float64, what a recipe's class_weights are for the training labels in use; None if it has none.

    `method` is the recipe's part of that name. Raises UserError for a method that has no use for them.
    """
    if config is None:
        return None
    if not methods[method.name].weighs_classes:
        able = ", ".join(name for name, kind in methods.items() if kind.weighs_classes)
        raise UserError(
            f"class_weights and the method '{method.name}' do not go together: they are those of a loss on given "
            "labels, and this one has other targets or terms; write data.order: balanced to read every class equally "
            f"often, or use one of {able}"
        )
    found = class_weights(config, np.asarray(train.labels), train.classes, classes)
    return torch.from_numpy(found).to(device)
