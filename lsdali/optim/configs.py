"""The optimizer's part of a recipe."""

from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field, model_validator
from typing_extensions import Self

from lsdali import parts
from lsdali.config import Config
from lsdali.optim.groups import Decay

Implementation = Literal["auto", "torch-fused", "foreach", "loop", "apex"]
TIMM = "timm/"  # before the name of an algorithm
FractionBelowOne = Annotated[float, Field(ge=0, lt=1)]


class Common(Config):
    """Base of all optimizers."""

    lr: float = Field(gt=0, le=1e9)
    """Peak learning rate; the schedule scales it."""
    weight_decay: float = Field(default=0.0, ge=0, le=1e9)
    """Coefficient of the weight decay."""
    decay: Decay = "weights"
    """`weights` spares norm layers and biases; `all` decays every parameter."""
    implementation: Implementation = "auto"
    """`auto` is torch-fused; `apex` needs NVIDIA apex with its compiled kernels and a GPU. With precision fp16, foreach
    and loop wait for the device at each step; apex would too, and is refused."""
    clip: float | None = Field(default=None, gt=0, le=1e9)
    """Maximum norm of the whole gradient; null: no clipping."""
    backbone_lr_scale: float = Field(default=1.0, ge=0, le=1e9)
    """Factor on the learning rate of everything but the classifier and the method's own heads, for fine-tuning."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Factor on the learning rate from each layer to the one below it (Clark et al. 2020; timm's rule): the classifier
    has the full rate, the stem the smallest. 1: equal rates."""

    @model_validator(mode="after")
    def _one_scale(self) -> Self:
        if self.layer_decay != 1 and self.backbone_lr_scale != 1:
            raise ValueError("layer_decay and backbone_lr_scale are two ways to the same end: give one of them")
        return self


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
    eps: float = Field(default=1e-8, gt=0, le=1e9)
    """Added to the denominator of the update, against division by 0."""

    def arguments(self) -> dict[str, Any]:
        return {"betas": self.betas, "eps": self.eps}


class AdamW(Common):
    """Weight decay is decoupled from the gradient (Loshchilov and Hutter, ICLR 2019)."""

    name: Literal["adamw"] = "adamw"
    betas: Annotated[tuple[FractionBelowOne, FractionBelowOne], Field(strict=False)] = (0.9, 0.999)
    """Decay rates of the running means of the gradient and of its square."""
    eps: float = Field(default=1e-8, gt=0, le=1e9)
    """Added to the denominator of the update, against division by 0."""

    def arguments(self) -> dict[str, Any]:
        return {"betas": self.betas, "eps": self.eps}


class LARS(Common):
    """Layer-wise rates for SGD in large batches (You, Gitman and Ginsburg, arXiv 1708.03888)."""

    name: Literal["lars"] = "lars"
    implementation: Literal["auto", "foreach"] = "auto"
    """Both are this project's own implementation, which updates all tensors at once."""
    momentum: FractionBelowOne = 0.9
    """Share of the last update that is kept."""
    trust: float = Field(default=1e-3, gt=0, le=1e9)
    """The paper's eta: how far one step may move a tensor, as a share of its norm."""
    eps: float = Field(default=1e-8, gt=0, le=1e9)
    """Added to the denominator of the layer's rate."""

    def arguments(self) -> dict[str, Any]:
        return {"momentum": self.momentum, "trust": self.trust, "eps": self.eps}


class LAMB(Common):
    """Layer-wise rates for Adam in large batches (You et al., ICLR 2020). Its authors also clip: `clip: 1.0`."""

    name: Literal["lamb"] = "lamb"
    implementation: Literal["auto", "foreach", "apex"] = "auto"
    """`auto` and `foreach` are this project's own; `apex` is FusedLAMB and needs apex's compiled kernels and a GPU."""
    betas: Annotated[tuple[FractionBelowOne, FractionBelowOne], Field(strict=False)] = (0.9, 0.999)
    """Decay rates of the means of the gradient and of its square."""
    eps: float = Field(default=1e-6, gt=0, le=1e9)
    """Added to the root of the mean square."""

    def arguments(self) -> dict[str, Any]:
        return {"betas": self.betas, "eps": self.eps}


class NovoGrad(Common):
    """Adam with one second moment for each tensor (Ginsburg et al., arXiv 1905.11286)."""

    name: Literal["novograd"] = "novograd"
    implementation: Literal["apex"] = "apex"
    """FusedNovoGrad; without apex, `name: timm/novograd`."""
    betas: Annotated[tuple[FractionBelowOne, FractionBelowOne], Field(strict=False)] = (0.95, 0.98)
    """Decay rates of the means of the gradient and of a layer's squared norm."""
    eps: float = Field(default=1e-8, gt=0, le=1e9)
    """Added to the root of the mean squared norm."""

    def arguments(self) -> dict[str, Any]:
        return {"betas": self.betas, "eps": self.eps}


class Timm(Common):
    """An optimizer of the package timm; `name: timm/lion` is short for name timm and algorithm lion."""

    name: Literal["timm"] = "timm"
    implementation: Literal["auto"] = "auto"
    """timm's own choice. With precision fp16 these wait for the device at each step."""
    algorithm: str
    """Its name in `timm.optim.list_optimizers()`, such as lion, muon or adan."""
    options: dict[str, Any] = {}
    """Further arguments of the algorithm, such as betas."""


def without_prefix(given: Any) -> Any:
    """Return `timm/NAME` as name timm and algorithm NAME."""
    if isinstance(given, dict) and str(given.get("name")).startswith(TIMM):
        return {**given, "name": "timm", "algorithm": given["name"].removeprefix(TIMM)}
    return given


OptimizerConfig = Annotated[
    SGD | Nesterov | Adam | AdamW | LARS | LAMB | NovoGrad | Timm,
    Field(discriminator="name"),
    BeforeValidator(without_prefix),
]

OPTIMIZERS: dict[str, type[Common]] = {
    "sgd": SGD,
    "nesterov": Nesterov,
    "adam": Adam,
    "adamw": AdamW,
    "lars": LARS,
    "lamb": LAMB,
    "novograd": NovoGrad,
    "timm": Timm,
}

TORCH: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "nesterov": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}

parts.opened("OPTIMIZERS", OPTIMIZERS, "optimizer", parts.tagged(Common, lambda kind: kind), "TORCH")
parts.opened("TORCH", TORCH, "class of an optimizer", parts.callable_entry)
