"""The optimizer's part of a recipe."""

from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from lsdali.config import Config
from lsdali.optim.groups import Decay

Implementation = Literal["auto", "torch-fused", "foreach", "loop", "apex"]
FractionBelowOne = Annotated[float, Field(ge=0, lt=1)]


class Common(Config):
    """What every optimizer has."""

    lr: float = Field(gt=0)
    """Peak learning rate; the schedule scales it."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Coefficient of the weight decay."""
    decay: Decay = "weights"
    """`weights` spares norm layers and biases; `all` decays every parameter."""
    implementation: Implementation = "auto"
    """`auto` is torch-fused; `apex` needs NVIDIA apex with its compiled kernels and a GPU."""
    clip: float | None = Field(default=None, gt=0)
    """Largest allowed norm of the whole gradient; null: no clipping."""
    backbone_lr_scale: float = Field(default=1.0, ge=0)
    """Factor on the learning rate of everything but the classifier and the method's own heads, for fine-tuning."""


class SGD(Common):
    """Stochastic gradient descent with momentum."""

    name: Literal["sgd"] = "sgd"
    momentum: FractionBelowOne = 0.9
    """Momentum; 0: none."""

    def arguments(self) -> dict[str, Any]:
        return {"momentum": self.momentum}


class Nesterov(Common):
    """Stochastic gradient descent with Nesterov momentum (Sutskever et al., 2013)."""

    name: Literal["nesterov"] = "nesterov"
    momentum: float = Field(default=0.9, gt=0, lt=1)
    """Nesterov's momentum."""

    def arguments(self) -> dict[str, Any]:
        return {"momentum": self.momentum, "nesterov": True}


class Adam(Common):
    """Weight decay is added to the gradient (L2)."""

    name: Literal["adam"] = "adam"
    betas: Annotated[tuple[FractionBelowOne, FractionBelowOne], Field(strict=False)] = (0.9, 0.999)
    """Decay rates of the running means of the gradient and of its square."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the denominator of the update, against division by 0."""

    def arguments(self) -> dict[str, Any]:
        return {"betas": self.betas, "eps": self.eps}


class AdamW(Common):
    """Weight decay is decoupled from the gradient (Loshchilov and Hutter, ICLR 2019)."""

    name: Literal["adamw"] = "adamw"
    betas: Annotated[tuple[FractionBelowOne, FractionBelowOne], Field(strict=False)] = (0.9, 0.999)
    """Decay rates of the running means of the gradient and of its square."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the denominator of the update, against division by 0."""

    def arguments(self) -> dict[str, Any]:
        return {"betas": self.betas, "eps": self.eps}


OptimizerConfig = Annotated[SGD | Nesterov | Adam | AdamW, Field(discriminator="name")]

OPTIMIZERS: dict[str, type[SGD | Nesterov | Adam | AdamW]] = {
    "sgd": SGD,
    "nesterov": Nesterov,
    "adam": Adam,
    "adamw": AdamW,
}

TORCH: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "nesterov": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}
