"""The arithmetic of a run: number formats of forward and backward, and the loss scaling that fp16 needs."""

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from lsdali.errors import UserError
from lsdali.optim.optimizer import Optimizer

Name = Literal["fp32", "tf32", "bf16", "fp16"]

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Scaler(torch.amp.GradScaler):
    """torch's loss scaler, which also counts the steps that it skipped, on the device."""

    skipped: Tensor | None = None  # [] float

    def count(self, optimizer: torch.optim.Optimizer) -> None:
        """Add one, after `step` and before `update`, if this step's gradients overflowed."""
        found = sum(self._per_optimizer_states[id(optimizer)]["found_inf_per_device"].values())
        self.skipped = found if self.skipped is None else self.skipped + found


class Precision:
    """`fp32`: full precision everywhere; `tf32`: matrix products and convolutions of fp32 numbers in
    TensorFloat-32; `bf16`, `fp16`: autocast, fp16 with loss scaling.

    Making one sets the process's TensorFloat-32 switches: on for tf32, off for the others.
    """

    def __init__(self, name: Name, device: torch.device) -> None:
        _check(name, device)
        self.name = name
        self.scaler = Scaler(device.type) if name == "fp16" else None
        self._device = device
        torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
        torch.backends.cudnn.allow_tf32 = name == "tf32"

    @property
    def half(self) -> bool:
        """Whether images come in 16 bit: where a GPU computes in them."""
        return self._device.type == "cuda" and self.name in AUTOCAST

    def autocast(self) -> torch.autocast:
        """Return the context of forward and loss."""
        return torch.autocast(self._device.type, dtype=AUTOCAST.get(self.name), enabled=self.name in AUTOCAST)

    def backward(self, loss: Tensor, share: float = 1.0) -> None:
        """Add the gradients of this share, [], of a loss. Call once for each micro-batch, outside `autocast`.

        Where the loss is not finite every gradient is NaN. So the reduction tells all ranks, and none of them updates.
        """
        weight = torch.where(loss.isfinite(), torch.full_like(loss, share), math.nan).detach()
        scaled = loss * weight if self.scaler is None else self.scaler.scale(loss * weight)
        scaled.backward()  # type: ignore[no-untyped-call]

    def step(self, optimizer: Optimizer) -> Tensor | None:
        """Unscale, clip, update, adapt the scale, forget the gradients.

        Return [] float on the device, 1 if a gradient was not finite and so nothing was updated; None in fp16.
        A step whose fp16 gradients overflowed changes no weight and halves the scale. It still is a step:
        clock and learning rate go on, so that what a step does stays a function of its number.
        """
        skipped = optimizer.step(self.scaler)
        if self.scaler is not None:
            self.scaler.count(optimizer.inner)
            self.scaler.update()
        optimizer.zero()
        return skipped

    @property
    def skipped(self) -> int:
        """Steps skipped by overflow. Reading it waits for the device."""
        if self.scaler is None or self.scaler.skipped is None:
            return 0
        return int(self.scaler.skipped.item())

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the scale; empty without loss scaling."""
        if self.scaler is None:
            return {}
        return {"scaler": self.scaler.state_dict(), "skipped": self.skipped}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if bool(state) != (self.scaler is not None):
            wrote = "with" if state else "without"
            raise UserError(
                f"precision: the checkpoint was written {wrote} loss scaling and {self.name} goes"
                f" {'without' if state else 'with'} it; take the precision that wrote it"
            )
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])
            self.scaler.skipped = torch.tensor(float(state["skipped"]), device=self._device)


def _check(name: Name, device: torch.device) -> None:
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        if name in ("tf32", "bf16") and major < 8:
            raise UserError(
                f"precision: {name} needs compute capability 8.0 (Ampere) or newer and this GPU has"
                f" {major}.{minor}; use fp16 or fp32"
            )
    elif name in ("fp16", "tf32"):
        raise UserError(f"precision: {name} needs a CUDA device and this is the {device.type}; use fp32 or bf16")
