"""NVIDIA apex's fused optimizers, if they are really there."""

import importlib
import math
from typing import Any

import torch

from lsdali.errors import UserError
from lsdali.optim.configs import OptimizerConfig, Timm

APEX_CLASSES = {
    "sgd": "FusedSGD",
    "nesterov": "FusedSGD",
    "adam": "FusedAdam",
    "adamw": "FusedAdam",
    "lamb": "FusedLAMB",
    "novograd": "FusedNovoGrad",
}
# Theirs differ from what the names say: FusedAdam decays as AdamW does, whatever it is called, and FusedLAMB clips the
# gradient to norm 1 (its kernel would divide by a bound of 0).
OWN_DEFAULTS: dict[str, dict[str, Any]] = {
    "adam": {"adam_w_mode": False},
    "adamw": {"adam_w_mode": True},
    "lamb": {"max_grad_norm": math.inf},
}


def build_apex(groups: list[dict[str, Any]], config: OptimizerConfig, device: torch.device) -> torch.optim.Optimizer:
    """Return the apex optimizer of this name.

    Raises UserError if apex, its kernels or a GPU are missing, and on bf16 parameters, which FusedSGD would leave
    untouched without a word and FusedLAMB refuses in the first step.
    """
    optimizers = _module("apex.optimizers")
    _module("amp_C")
    if device.type != "cuda":
        raise UserError(f"optimizer.implementation: apex runs on CUDA only and this is the {device.type}; use auto")
    dtypes = {p.dtype for group in groups for p in group["params"]}
    kind = APEX_CLASSES[config.name]
    if kind in ("FusedSGD", "FusedLAMB") and torch.bfloat16 in dtypes:
        raise UserError(
            f"optimizer.implementation: apex's {kind} never updates bf16 parameters; use auto, or parameters in fp32"
        )
    assert not isinstance(config, Timm)
    arguments = {"lr": config.lr, **config.arguments(), **OWN_DEFAULTS.get(config.name, {})}
    built: torch.optim.Optimizer = getattr(optimizers, kind)(groups, **arguments)
    return built


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except Exception as error:  # an unrelated package of the same name may fail in any way
        raise UserError(
            f"optimizer.implementation: apex needs the module {name}, which cannot be imported"
            f" ({type(error).__name__}); `apex` on PyPI is an unrelated package, NVIDIA's is built from"
            " source with its CUDA extensions or comes in the NGC image; without it, use auto"
        ) from error
