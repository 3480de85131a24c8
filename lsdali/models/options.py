"""Initialisation of networks: by name, and residual branches that start at zero."""

from collections.abc import Callable
from typing import Any, Literal

from torch import nn

from lsdali.errors import UserError
from lsdali.models.blocks import init_kaiming_in, init_kaiming_out, init_torch

Init = Literal["torch", "kaiming_out", "kaiming_in"]

INITS: dict[str, Callable[[nn.Module], None]] = {
    "torch": init_torch,
    "kaiming_out": init_kaiming_out,
    "kaiming_in": init_kaiming_in,
}


def zero_last_norms(network: nn.Module, name: str) -> None:
    """Set the scale of the last norm of every residual branch to 0 (Goyal et al. 2017): blocks begin as identities.

    Raises UserError if no residual branch of the network ends with a norm.
    """
    from torchvision.models.resnet import BasicBlock, Bottleneck

    found = False
    for block in network.modules():
        begin: Any = getattr(block, "zero_init_last", None)
        if isinstance(block, BasicBlock):
            nn.init.zeros_(block.bn2.weight)
        elif isinstance(block, Bottleneck):
            nn.init.zeros_(block.bn3.weight)
        elif begin is not None:
            begin()
        else:
            continue
        found = True
    if not found:
        raise UserError(f"model.zero_gamma: no residual branch of '{name}' ends with a norm; leave the key out")
