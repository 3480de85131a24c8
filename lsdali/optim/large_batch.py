"""LARS and LAMB: SGD and Adam whose steps are scaled for each tensor, for large batches.

Every operation is over all tensors of a group at once. The norms stay on the device, and so does the answer to whether
fp16 gradients overflowed: a skipped step changes no weight and no moment, and nothing waits. Tensors that are not
decayed take plain steps, as in the papers' code (biases and norm layers).
"""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

ParameterGroup = dict[str, Any]
Keep = Tensor | float  # 1 for a step, 0 for one that is skipped; [] on the device


class LayerwiseOptimizer(torch.optim.Optimizer):
    """The base of both. A `torch.amp.GradScaler` sets `grad_scale` and `found_inf` during `step`, as for fused ones."""

    _step_supports_amp_scaling = True
    moments: ClassVar[tuple[str, ...]]
    kept_with_first: ClassVar[tuple[str, ...]] = ()
    """State of a whole group, in that of its first parameter."""

    def __init__(self, params: Any, lr: float, weight_decay: float = 0.0, **options: Any) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, **options})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient. There is no closure."""
        assert closure is None
        found = getattr(self, "found_inf", None)
        keep = 1.0 if found is None else 1 - found.double()
        for group in self.param_groups:
            if params := [p for p in group["params"] if p.grad is not None]:
                self.update(group, params, self._gradients(params), keep, *self._moments(params))

    def update(
        self, group: ParameterGroup, params: list[Tensor], grads: list[Tensor], keep: Keep, *moments: Any
    ) -> None:
        """Change parameters and moments; `grads` may be changed too."""
        raise NotImplementedError

    def _gradients(self, params: list[Tensor]) -> list[Tensor]:
        """Unscaled copies; zeros if one of the model's overflowed."""
        grads = [p.grad for p in params if p.grad is not None]
        scale, found = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        if scale is not None:
            grads = list(torch._foreach_mul(grads, scale.double().reciprocal().float()))
        if found is not None:
            return [torch.where(found > 0, 0, g) for g in grads]
        return list(torch._foreach_mul(grads, 1.0))

    def _moments(self, params: list[Tensor]) -> list[list[Tensor]]:
        for p in params:
            if self.moments[0] not in self.state[p]:
                self.state[p].update({name: torch.zeros_like(p) for name in self.moments})
        return [[self.state[p][name] for p in params] for name in self.moments]


def norms(tensors: list[Tensor]) -> Tensor:
    """Return [n] Euclidean norms."""
    return torch.stack(list(torch._foreach_norm(tensors)))


def ratio(of: Tensor, to: Tensor) -> list[Tensor]:
    """Return of / to for each tensor, [] each; 1 where either is 0."""
    return list(torch.where((of > 0) & (to > 0), of / to, 1.0).unbind())


class LarsOptimizer(LayerwiseOptimizer):
    """v = momentum v + eta |w| / (|g| + decay |w|) (g + decay w), then w = w - lr v.

    As in the paper (its algorithm 1), but with the rate outside the momentum, as torch's SGD and timm have it.
    """

    moments = ("momentum_buffer",)

    def update(
        self, group: ParameterGroup, params: list[Tensor], grads: list[Tensor], keep: Keep, *moments: Any
    ) -> None:
        decay, (buffers,) = group["weight_decay"], moments
        if decay:
            weight = norms(params)
            scale = ratio(group["trust"] * weight, norms(grads) + decay * weight + group["eps"])
            torch._foreach_add_(grads, params, alpha=decay)
            torch._foreach_mul_(grads, scale)
        torch._foreach_mul_(buffers, 1 - (1 - group["momentum"]) * keep)
        torch._foreach_add_(buffers, torch._foreach_mul(grads, keep))
        torch._foreach_add_(params, torch._foreach_mul(buffers, keep), alpha=-group["lr"])


class LambOptimizer(LayerwiseOptimizer):
    """u = Adam's step + decay w, then w = w - lr |w| / |u| u (algorithm 2 of the paper; phi is the identity)."""

    moments = ("exp_avg", "exp_avg_sq")
    kept_with_first = ("count",)

    def update(
        self, group: ParameterGroup, params: list[Tensor], grads: list[Tensor], keep: Keep, *moments: Any
    ) -> None:
        (beta1, beta2), decay, (first, second) = group["betas"], group["weight_decay"], moments
        torch._foreach_mul_(first, 1 - (1 - beta1) * keep)
        torch._foreach_add_(first, grads, alpha=1 - beta1)
        torch._foreach_mul_(second, 1 - (1 - beta2) * keep)
        torch._foreach_addcmul_(second, grads, grads, 1 - beta2)
        steps = self._count(group, keep)
        deviation = torch._foreach_sqrt(second)
        torch._foreach_div_(deviation, (1 - beta2**steps).sqrt().to(deviation[0].dtype))
        torch._foreach_add_(deviation, group["eps"])
        update = list(torch._foreach_div(first, (1 - beta1**steps).to(deviation[0].dtype)))
        torch._foreach_div_(update, deviation)
        if decay:
            torch._foreach_add_(update, params, alpha=decay)
            torch._foreach_mul_(update, ratio(norms(params), norms(update)))
        torch._foreach_mul_(update, keep)
        torch._foreach_add_(params, update, alpha=-group["lr"])

    def _count(self, group: ParameterGroup, keep: Keep) -> Tensor:
        """[] steps of the group that were not skipped, at least 1; kept with its first parameter."""
        first = group["params"][0]
        state = self.state[first]
        if "count" not in state:
            state["count"] = torch.zeros((), device=first.device)
        count: Tensor = state["count"].add_(keep)
        return count.double().clamp(min=1.0)  # in single precision 1 - 0.999 is off by 5e-5
