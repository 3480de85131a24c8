"""Random numbers of a method: functions of (seed, epoch, sample), so that a run can start anywhere, on any ranks."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lsdali.batch import Batch
from lsdali.clock import Clock
from lsdali.data.sampling.sampler import uniforms

Reals = NDArray[np.float64]

ZIPF_WEIGHTS, DISTURBED_LABELS = 201, 202  # streams; `data` uses those below 200


def draws(seed: int, clock: Clock, batch: Batch, k: int, stream: int) -> Reals:
    """Return [B, k] in [0, 1), on the host."""
    return uniforms(seed, clock.epoch, batch.index.numpy(), k, stream)


def half_normal(uniform: Reals) -> Reals:
    """Map [B, 2 k] uniform -> [B, k] absolute values of standard normal numbers (Box and Muller)."""
    radius, angle = np.split(uniform, 2, axis=1)
    half: Reals = np.abs(np.sqrt(-2 * np.log1p(-radius)) * np.cos(2 * np.pi * angle))
    return half


def lomax(uniform: Reals) -> Reals:
    """Map [B, k] uniform -> [B, k] of the Lomax distribution with shape 1: what NumPy calls pareto(1)."""
    return uniform / (1 - uniform)


def to_device(values: NDArray[np.generic], device: torch.device) -> Tensor:
    """Copy host -> device without waiting for the device. Real numbers become float32."""
    x = torch.from_numpy(values)
    x = x.float() if x.is_floating_point() else x
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x
