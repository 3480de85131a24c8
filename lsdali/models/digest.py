"""A digest of weights."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def weights_digest(weights: nn.Module | Mapping[str, Tensor]) -> str:
    """Return the hexadecimal SHA-256 of the sorted names, types, shapes and bytes of a module's or a dict's tensors.

    The same weights give the same digest on any device and in any memory layout.
    """
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights
    sha = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach()
        sha.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        sha.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()
