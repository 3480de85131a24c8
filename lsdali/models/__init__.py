"""The networks that a recipe can name."""

from collections.abc import Callable
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator
from typing_extensions import Self

from lsdali.config import Config
from lsdali.models.cifar import CIFAR
from lsdali.models.imagenet import IMAGENET
from lsdali.models.names import unknown
from lsdali.models.student import Network

MODELS: dict[str, Callable[..., Network]] = {**IMAGENET, **CIFAR}
"""Builders (classes), and (classes, width=...) for those in CIFAR."""


def known_model(name: str) -> str:
    if name not in MODELS:
        raise ValueError(unknown("model", name, MODELS))
    return name


class ModelConfig(Config):
    """Which network is trained."""

    name: Annotated[str, AfterValidator(known_model), Field(json_schema_extra={"enum": sorted(MODELS)})]
    """A name in MODELS."""
    width: Annotated[int, Field(ge=16)] | None = None
    """Channels of the first stage, for the networks for small images alone; null is the published width. With fewer
    than 16 channels torch's CPU kernels of strided 1x1 convolutions overrun their buffers (seen with torch 2.15)."""

    classes: Annotated[int, Field(ge=2)] | None = None
    """Outputs of the classifier; null: as many as the data has classes."""

    @model_validator(mode="after")
    def width_fits(self) -> Self:
        if self.width is not None and self.name not in CIFAR:
            raise ValueError(f"'{self.name}' has a fixed width; `width` is for {', '.join(sorted(CIFAR))}")
        return self


def build_network(config: ModelConfig, classes: int) -> Network:
    """An untrained network; draws its weights from torch's global generator."""
    if config.width is None:
        return MODELS[config.name](classes)
    return MODELS[config.name](classes, width=config.width)
