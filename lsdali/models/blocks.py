"""Shared parts of the families: small convolutions, pool, stochastic depth, initialisation, and assembly."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsdali.models.student import Network


def conv3x3(inputs: int, outputs: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, groups=groups, bias=False)


def conv1x1(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)


def as_linear(convolution: nn.Conv2d) -> nn.Linear:
    """Return a linear layer with the numbers of a 1x1 convolution."""
    has_bias = convolution.bias is not None
    linear = nn.Linear(convolution.in_channels, convolution.out_channels, bias=has_bias, device="meta")
    linear.weight = nn.Parameter(convolution.weight.detach().flatten(1))
    if convolution.bias is not None:
        linear.bias = nn.Parameter(convolution.bias.detach())
    return linear


def mean_over_positions(x: Tensor) -> Tensor:
    """Map [B, C, H, W] -> [B, C]."""
    return x.movedim(1, -1).flatten(1, 2).mean(1)


class GlobalAvgPool(nn.Module):
    """Mean over all positions: AdaptiveAvgPool2d(1) and Flatten, except that the gradient is channels last too.

    torch's own lies channels first, and every operation back to the next convolution would read two layouts.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] -> [B, C]."""
        return mean_over_positions(x)


def assemble_network(
    stem: nn.Module, stages: Mapping[str, tuple[nn.Module, int]], classes: int, *, dropout: float = 0.0
) -> Network:
    """Build a Network from its stages and their widths, with an average pool and a fresh linear classifier."""
    channels = {name: width for name, (_, width) in stages.items()}
    classifier = nn.Linear(list(channels.values())[-1], classes)
    return Network(stem, {n: m for n, (m, _) in stages.items()}, GlobalAvgPool(), classifier, channels, dropout=dropout)


class PadShortcut(nn.Module):
    """Option A of He et al. 2016: every stride-th pixel, zeros for the channels that are new; no weights."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (outputs - inputs) // 2
        self.after = outputs - inputs - self.before

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] -> [B, C', ceil(H/stride), ceil(W/stride)], half of the zeros in front."""
        # A pool of single pixels: a slice's backward pass would leave channels last.
        return F.pad(F.avg_pool2d(x, 1, self.stride), (0, 0, 0, 0, self.before, self.after))


class PoolPadShortcut(nn.Module):
    """Average pool over 2x2 positions (a last odd row or column too) if the stride is 2, zero channels at the end."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride, self.new = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] -> [B, C', ceil(H/stride), ceil(W/stride)]."""
        if self.stride > 1:
            x = F.avg_pool2d(x, self.stride, ceil_mode=True)
        return F.pad(x, (0, 0, 0, 0, 0, self.new))


class PadTo(nn.Module):
    """Zeros around images that are smaller than `size`, as LeCun et al. set 28 px digits into a field of 32 px."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] -> [B, C, max(H, size), max(W, size)]."""
        high, wide = max(self.size - x.shape[2], 0), max(self.size - x.shape[3], 0)
        return F.pad(x, (wide // 2, wide - wide // 2, high // 2, high - high // 2))


def keep_gate(rate: float, like: Tensor) -> Tensor:
    """Return one draw for the whole batch from the device's generator: [] bool, False with probability `rate`."""
    return torch.rand((), device=like.device) >= rate


# ---- initialisation


def init_kaiming_out(module: nn.Module) -> None:
    """Draw convolutions from N(0, 2 / fan-out) (He et al. 2015), norms 1 and 0, biases 0.

    Linear layers as torch makes them.

    The fan-out is kernel area times outputs, whatever the groups: the "n" of the old Torch recipes.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            _zero_bias(part)
        elif isinstance(part, nn.BatchNorm2d):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)


def init_kaiming_in(module: nn.Module) -> None:
    """Draw convolutions and linear layers from N(0, 2 / fan-in) (He et al. 2015), norms 1 and 0, biases 0."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(part.weight)
            _zero_bias(part)
        elif isinstance(part, nn.BatchNorm2d):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)


def init_torch(module: nn.Module) -> None:
    """Draw every layer as torch itself makes it: uniform, by fan-in."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            part.reset_parameters()


def _zero_bias(part: nn.Conv2d | nn.Linear) -> None:
    if part.bias is not None:
        nn.init.zeros_(part.bias)
