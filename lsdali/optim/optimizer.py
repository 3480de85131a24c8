"""The optimizer: one face for torch's and apex's, and the choice between them."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from lsdali.errors import UserError
from lsdali.optim import large_batch
from lsdali.optim.apex import build_apex
from lsdali.optim.configs import LAMB, LARS, TORCH, OptimizerConfig, Timm
from lsdali.optim.convert import as_kind
from lsdali.optim.groups import parameter_groups
from lsdali.optim.large_batch import LayerwiseOptimizer

LAYERWISE: dict[str, type[LayerwiseOptimizer]] = {"lars": large_batch.LarsOptimizer, "lamb": large_batch.LambOptimizer}
# Those that need apex or bitsandbytes, or a second backward pass.
UNUSABLE = ("fused", "bnb", "adahessian", "kron")  # kron draws from a generator that no checkpoint holds
FLAGS: dict[str, dict[str, bool]] = {
    "torch-fused": {"fused": True},
    "foreach": {"foreach": True},
    "loop": {"foreach": False},
}


MANY_GROUPS = 4  # are told in a sum


class Optimizer:
    """An optimizer whose options are the recipe's, whatever a checkpoint says.

    `inner` is torch's or apex's own object, for those who need its class.
    """

    def __init__(self, inner: torch.optim.Optimizer, kind: str, clip: float | None, reason: str) -> None:
        self.inner = inner
        self._kind = kind  # "torch adam": optimizers of one kind read each other's states
        self._clip = clip
        self._reason = reason
        self._options = [group.keys() for group in map(dict, inner.param_groups)]
        start_momentum(inner)

    def describe(self) -> str:
        """Return one line: what was chosen, why, and what it decays."""
        groups = self.inner.param_groups
        if len(groups) <= MANY_GROUPS:
            return f"{self._reason}; {', '.join(map(describe_group, groups))}"
        rates = [group.get("lr_scale", 1.0) for group in groups]
        tensors = sum(len(group["params"]) for group in groups)
        return f"{self._reason}; {tensors} tensors at learning rates x {min(rates):.3g} to {max(rates):.3g}"

    def parameters(self) -> list[nn.Parameter]:
        return [p for group in self.inner.param_groups for p in group["params"]]

    def set_lr(self, lr: float) -> None:
        for group in self.inner.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)

    def step(self, scaler: torch.amp.GradScaler | None = None) -> Tensor | None:
        """Clip by the global norm if the recipe asks for it, then update, unless a gradient is not finite.

        Return [] float on the device, 1 if nothing was updated; None with a scaler, which keeps its own count.
        Gradients are then unscaled before the clipping. Only fused optimizers update without waiting for the device,
        as with torch's own scaler.
        """
        if scaler is not None:
            if self._clip is not None:
                scaler.unscale_(self.inner)
                nn.utils.clip_grad_norm_(self.parameters(), self._clip)
            scaler.step(self.inner)
            return None
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters() if p.grad is not None])
        if self._clip is not None:
            nn.utils.clip_grads_with_norm_(self.parameters(), self._clip, norm)
        skipped = (~norm.isfinite()).float()
        if getattr(self.inner, "_step_supports_amp_scaling", False):
            self.inner.found_inf = skipped  # type: ignore[attr-defined]
            self.inner.step()
        elif not skipped:
            self.inner.step()
        return skipped

    def zero(self) -> None:
        """Forget the gradients. Done by hand because apex's `zero_grad` takes no argument."""
        for p in self.parameters():
            p.grad = None

    def state_dict(self) -> dict[str, Any]:
        return {"kind": self._kind, **self.inner.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take moments and step counts; keep this optimizer's own options (fused, foreach, decay ...).

        torch would take the options too, and so fall back to the implementation that wrote the checkpoint.
        States of apex's SGD and Adam become torch's, and the other way round.
        Raises UserError on a state of another kind, or of other parameters.
        """
        converted = as_kind(state, self._kind)
        if converted is None:
            raise UserError(
                f"the checkpoint's optimizer is {state['kind']!r} and the recipe's is {self._kind!r}; set"
                " optimizer.name and optimizer.implementation to those that wrote the checkpoint"
            )
        state = converted
        own, saved = self.inner.state_dict()["param_groups"], state["param_groups"]
        if [len(g["params"]) for g in own] != [len(g["params"]) for g in saved]:
            raise UserError(
                "the checkpoint's optimizer has other parameter groups than the recipe's; model and"
                " optimizer.decay must be those that wrote the checkpoint"
            )
        # What a group did not have at the start (apex and timm count steps there) is state, not an option.
        counts = [{k: g[k] for k in g.keys() - known} for g, known in zip(saved, self._options, strict=True)]
        groups = [{**mine, **count} for mine, count in zip(own, counts, strict=True)]
        moments = {number: _step_on_host(entry) for number, entry in state["state"].items()}
        self._check_moments(moments)
        self.inner.load_state_dict({"state": moments, "param_groups": groups})
        start_momentum(self.inner)

    def _check_moments(self, moments: Mapping[int, Mapping[str, Any]]) -> None:
        """Raises UserError for moments that cannot be those of these parameters; timm's have shapes of their own."""
        parameters = self.parameters()
        names = {name for entry in moments.values() for name in entry} - {*getattr(self.inner, "kept_with_first", ())}
        for number, entry in moments.items():
            if not isinstance(number, int) or not 0 <= number < len(parameters):
                raise UserError(f"the checkpoint's optimizer has moments of a parameter {number}, which there is not")
            if self._kind.startswith("timm"):
                continue
            if lacking := sorted(names - entry.keys()):
                raise UserError(f"the checkpoint's optimizer lacks {lacking[0]} of parameter {number}")
            shape = parameters[number].shape
            for name, x in entry.items():
                if isinstance(x, Tensor) and x.ndim and name != "step" and x.shape != shape:
                    raise UserError(
                        f"the checkpoint's optimizer has {name} {list(x.shape)} of parameter {number} {list(shape)}"
                    )


def start_momentum(inner: torch.optim.Optimizer) -> None:
    """Give fused SGD a momentum of zeros if it has none.

    torch would make it of uninitialised memory at the first step, and leave it so if fp16 gradients overflow there.
    From zeros the first step is the same to the bit.
    """
    for group in inner.param_groups:
        if group.get("fused") and group.get("momentum"):
            for p in group["params"]:
                if inner.state[p].get("momentum_buffer") is None:
                    inner.state[p]["momentum_buffer"] = torch.zeros_like(p)


def describe_group(group: Mapping[str, Any]) -> str:
    rate = f" and learning rate x {group['lr_scale']:g}" if "lr_scale" in group else ""
    return f"{len(group['params'])} tensors with decay {group['weight_decay']:g}{rate}"


def _step_on_host(entry: Mapping[str, Any]) -> dict[str, Any]:
    """foreach and loop count steps on the host; torch itself moves the count to the device for fused ones."""
    step = entry.get("step")
    return {**entry, "step": step.cpu()} if isinstance(step, Tensor) else dict(entry)


def build_optimizer(
    model: nn.Module,
    config: OptimizerConfig,
    device: torch.device,
    head: Iterable[nn.Parameter] = (),
    layers: Mapping[int, int] | None = None,
) -> Optimizer:
    """Return the recipe's optimizer over the model's trainable parameters, which are on `device` already.

    `head` are those to which `backbone_lr_scale` does not apply; `layers` has the number of each parameter's layer by
    its id, if `layer_decay` asks for it.

    Raises UserError if apex is asked for and is not usable, and if nothing is trainable.
    """
    groups = parameter_groups(
        model,
        config.weight_decay,
        config.decay,
        head=head,
        backbone_lr_scale=config.backbone_lr_scale,
        layers=layers,
        layer_decay=config.layer_decay,
    )
    implementation = config.implementation
    reason = f"{config.name} by {implementation}, as the recipe asks"
    if isinstance(config, Timm):
        name = f"timm {config.algorithm}"
        return Optimizer(build_timm_optimizer(groups, config), name, config.clip, f"{config.algorithm} by timm")
    if implementation == "apex":
        reason = f"{reason}; it waits for the device at each step, torch-fused does not"
        return Optimizer(build_apex(groups, config, device), f"apex {config.name}", config.clip, reason)
    arguments = {"lr": config.lr, **config.arguments()}
    if isinstance(config, LARS | LAMB):
        own = LAYERWISE[config.name](groups, **arguments)
        return Optimizer(own, f"own {config.name}", config.clip, f"{config.name} for all tensors at once")
    if implementation == "auto":
        implementation = "torch-fused"
        reason = f"{config.name} by torch-fused, the fewest kernels a step on {device.type}"
    flags = FLAGS[implementation]
    if not flags.keys() <= signature(TORCH[config.name]).parameters.keys():  # another package's
        if config.implementation != "auto":
            raise UserError(f"optimizer.implementation: {config.name} has no {implementation}; use auto")
        flags, reason = {}, f"{config.name} as its package has it"
    inner = TORCH[config.name](groups, **{**arguments, **flags})
    return Optimizer(inner, f"torch {config.name}", config.clip, reason)


def build_timm_optimizer(groups: list[dict[str, Any]], config: Timm) -> torch.optim.Optimizer:
    """Return timm's optimizer. Raises UserError if timm is missing, or knows no such algorithm or option."""
    try:
        from timm.optim import create_optimizer_v2, list_optimizers
    except ImportError as error:
        raise UserError(f"optimizer.name: timm/{config.algorithm} needs timm ({error}): pip install timm") from None
    usable = [name for name in list_optimizers() if not name.startswith(UNUSABLE)]
    if config.algorithm not in usable:
        near = get_close_matches(config.algorithm, usable, 1)
        hint = f"did you mean timm/{near[0]}?" if near else f"one of {', '.join(usable)}"
        raise UserError(f"optimizer.name: timm/{config.algorithm} cannot be used here; {hint}")
    arguments = {"lr": config.lr, "weight_decay": config.weight_decay, **config.options}
    try:
        built: torch.optim.Optimizer = create_optimizer_v2(groups, config.algorithm, **arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f"optimizer.options: timm/{config.algorithm} refuses {config.options}: {error}") from None
    return built
