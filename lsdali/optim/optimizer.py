"""The optimizer: one face for torch's and apex's, and the choice between them."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lsdali.errors import UserError
from lsdali.optim.apex import build_apex
from lsdali.optim.configs import TORCH, OptimizerConfig
from lsdali.optim.groups import parameter_groups

FLAGS: dict[str, dict[str, bool]] = {
    "torch-fused": {"fused": True},
    "foreach": {"foreach": True},
    "loop": {"foreach": False},
}


class Optimizer:
    """An optimizer whose options are the recipe's, whatever a checkpoint says.

    `inner` is torch's or apex's own object, for those who need its class.
    """

    def __init__(self, inner: torch.optim.Optimizer, kind: str, clip: float | None, reason: str) -> None:
        self.inner = inner
        self._kind = kind  # "torch adam": optimizers of one kind read each other's states
        self._clip = clip
        self._reason = reason

    def describe(self) -> str:
        """One line: what was chosen, why, and what it decays."""
        return f"{self._reason}; {', '.join(map(describe_group, self.inner.param_groups))}"

    def parameters(self) -> list[nn.Parameter]:
        return [p for group in self.inner.param_groups for p in group["params"]]

    def set_lr(self, lr: float) -> None:
        for group in self.inner.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)

    def step(self, scaler: torch.amp.GradScaler | None = None) -> None:
        """Clip by the global norm where the recipe asks for it, then update. With a scaler, gradients are
        unscaled before the clipping, and nothing is updated if one of them is not finite.
        """
        if self._clip is not None:
            if scaler is not None:
                scaler.unscale_(self.inner)
            nn.utils.clip_grad_norm_(self.parameters(), self._clip)
        if scaler is None:
            self.inner.step()
        else:
            scaler.step(self.inner)

    def zero(self) -> None:
        """Forget the gradients. Done by hand because apex's `zero_grad` takes no argument."""
        for p in self.parameters():
            p.grad = None

    def state_dict(self) -> dict[str, Any]:
        return {"kind": self._kind, **self.inner.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take moments and step counts; keep this optimizer's own options (fused, foreach, decay ...).

        torch would take the options too, and so fall back to the implementation that wrote the checkpoint.
        Raises UserError on a state of another kind, or of other parameters.
        """
        if state["kind"] != self._kind:
            raise UserError(
                f"the checkpoint's optimizer is {state['kind']!r} and the recipe's is {self._kind!r}; set"
                " optimizer.name and optimizer.implementation to those that wrote the checkpoint"
            )
        own, saved = self.inner.state_dict()["param_groups"], state["param_groups"]
        if [len(g["params"]) for g in own] != [len(g["params"]) for g in saved]:
            raise UserError(
                "the checkpoint's optimizer has other parameter groups than the recipe's; model and"
                " optimizer.decay must be those that wrote the checkpoint"
            )
        # apex counts steps in the group: that is state, not an option.
        counts = [{"step": g["step"]} if "step" in g else {} for g in saved]
        groups = [{**mine, **count} for mine, count in zip(own, counts, strict=True)]
        moments = {number: _step_on_host(entry) for number, entry in state["state"].items()}
        self.inner.load_state_dict({"state": moments, "param_groups": groups})


def describe_group(group: Mapping[str, Any]) -> str:
    rate = f" and learning rate x {group['lr_scale']:g}" if "lr_scale" in group else ""
    return f"{len(group['params'])} tensors with decay {group['weight_decay']:g}{rate}"


def _step_on_host(entry: Mapping[str, Any]) -> dict[str, Any]:
    """foreach and loop count steps on the host; torch itself moves the count to the device for fused ones."""
    step = entry.get("step")
    return {**entry, "step": step.cpu()} if isinstance(step, Tensor) else dict(entry)


def build_optimizer(
    model: nn.Module, config: OptimizerConfig, device: torch.device, head: Iterable[nn.Parameter] = ()
) -> Optimizer:
    """The recipe's optimizer over the model's trainable parameters, which are on `device` already.

    `head` are those to which `backbone_lr_scale` does not apply.

    Raises UserError where apex is asked for and is not usable, and where nothing is trainable.
    """
    scale = config.backbone_lr_scale
    groups = parameter_groups(model, config.weight_decay, config.decay, head=head, backbone_lr_scale=scale)
    implementation = config.implementation
    reason = f"{config.name} by {implementation}, as the recipe asks"
    if implementation == "auto":
        implementation = "torch-fused"
        reason = f"{config.name} by torch-fused, the fewest kernels a step on {device.type}"
    if implementation == "apex":
        return Optimizer(build_apex(groups, config, device), f"apex {config.name}", config.clip, reason)
    arguments = {"lr": config.lr, **config.arguments(), **FLAGS[implementation]}
    return Optimizer(TORCH[config.name](groups, **arguments), f"torch {config.name}", config.clip, reason)
