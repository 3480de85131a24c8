"""The slow twin of lsdali.models.families.san: windows unfolded as [B, C, k k, H W], and nothing but sums over them."""

import torch
import torch.nn.functional as F

from lsdali.models.families.san import coordinates


def windows(x, kernel):
    """[B, C, H, W] -> [B, C, k k, H W]: the window around every place, mirrored at the border."""
    half = kernel // 2
    mirrored = F.pad(x, (half, half, half, half), mode="reflect")
    return F.unfold(mirrored, kernel).view(*x.shape[:2], kernel * kernel, -1)


def attend(values, weights, kernel):
    """[B, C, H, W], [B, C/8, k k, H W] -> [B, C, H, W]: channel c has weights c mod C/8."""
    around = windows(values, kernel)
    grouped = around.view(values.shape[0], 8, -1, *around.shape[2:])
    return (grouped * weights[:, None]).sum(3).view(values.shape)


def pairwise(module, x):
    places = module.position(coordinates(x))
    apart = module.query(x).flatten(2)[:, :, None] - windows(module.key(x), module.kernel)
    moved = places.flatten(2)[:, :, None] - windows(places, module.kernel)
    pairs = torch.cat([apart, moved.expand(x.shape[0], -1, -1, -1)], 1)  # [B, R + 2, k k, H W]
    return attend(module.value(x), module.weight(pairs).softmax(2), module.kernel)


def patchwise(module, x):
    patch = windows(module.key(x), module.kernel).reshape(x.shape[0], -1, *x.shape[2:])  # [B, R k k, H, W]
    weights = module.weight(torch.cat([module.query(x), patch], 1))  # [B, C'/8 k k, H, W]
    weights = weights.reshape(x.shape[0], -1, module.kernel**2, x.shape[2] * x.shape[3])
    return attend(module.value(x), weights, module.kernel)
