"""Weights and buffers of a module as parts of a checkpoint. Running statistics differ between ranks inside an epoch."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lsdali import dist


class ModuleState:
    """The student's weights and buffers as one part, for checkpoints that another number of ranks can read.

    Between two epoch ends each rank has its own running statistics. Their mean is what is saved beside the weights,
    without touching the live ones, so that a save never changes a run; RankBuffers saves each rank's own.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def _own(self) -> dict[str, Tensor]:
        return {name: b for name, b in self.module.named_buffers() if b.is_floating_point()}

    def state_dict(self) -> dict[str, Any]:
        own = {name: buffer.detach().cpu() for name, buffer in self._own().items()}
        ranks = dist.gather_objects(own)
        mean = {name: torch.stack([r[name].double() for r in ranks]).mean(0).to(b.dtype) for name, b in own.items()}
        return {**self.module.state_dict(), **mean}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.module.load_state_dict(current_names(state))


class RankBuffers(ModuleState):
    """Each rank's own floating-point buffers; on another number of ranks the mean, already loaded, stays."""

    def state_dict(self) -> dict[str, Any]:
        flat = {name: b.detach().cpu() for name, b in self._own().items()}
        return {"ranks": dist.gather_objects(flat) if dist.world() > 1 else []}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if len(state["ranks"]) != dist.world():
            return
        mine = current_names(state["ranks"][dist.rank()])
        for name, buffer in self._own().items():
            buffer.copy_(mine[name])


def current_names(state: Mapping[str, Any]) -> dict[str, Any]:
    """Rename what checkpoints written before version 0.2 call `probes`."""
    return {f"aux_heads.{k.removeprefix('probes.')}" if k.startswith("probes.") else k: v for k, v in state.items()}
