"""Initialisation of networks: by name, and residual branches that start at zero."""

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor, nn

from lsdali.errors import UserError
from lsdali.models.blocks import init_kaiming_in, init_kaiming_out, init_torch

Init = Literal["torch", "kaiming_out", "kaiming_in"]

INITS: dict[str, Callable[[nn.Module], None]] = {
    "torch": init_torch,
    "kaiming_out": init_kaiming_out,
    "kaiming_in": init_kaiming_in,
}


class BranchDrop:
    """A hook on the last norm of a residual branch, which drops whole samples in training (Huang et al. 2016)."""

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def __call__(self, norm: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
        from torchvision.ops import stochastic_depth

        kept: Tensor = stochastic_depth(output, self.rate, "row", norm.training)
        return kept


def drop_branches(network: nn.Module, rate: float) -> None:
    """Let torchvision's residual blocks drop their branches, at rates that rise from 0 to `rate`, as timm's do."""
    from torchvision.models.resnet import BasicBlock, Bottleneck

    blocks = [block for block in network.modules() if isinstance(block, (BasicBlock, Bottleneck))]
    for number, block in enumerate(blocks):
        last = block.bn3 if isinstance(block, Bottleneck) else block.bn2
        last.register_forward_hook(BranchDrop(rate * number / max(len(blocks) - 1, 1)))


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
