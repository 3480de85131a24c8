"""A network as a recipe trains it."""

from collections.abc import Mapping

import torch

from lsdali.models import ModelConfig
from lsdali.models.checks import check_aux_heads
from lsdali.models.frozen import freeze
from lsdali.models.recompute import recompute_blocks
from lsdali.models.student import AuxHead, Network, Student


def open_student(
    network: Network, config: ModelConfig, aux_heads: Mapping[str, AuxHead], device: torch.device, method: str
) -> Student:
    """Return the network, which has its weights, and the auxiliary heads of the method, on the device.

    The loaders deliver channels-last images; it is the faster format on GPUs, and on the CPU too.
    Raises UserError if the network has nothing for the heads to read, or cannot do what its config asks for.
    """
    check_aux_heads(network, config.name, aux_heads, method)
    frozen = freeze(network, config.freeze, config.name)
    if config.gradient_checkpointing:
        recompute_blocks(network, config.name)
    return Student(network, aux_heads, frozen).to(device).to(memory_format=torch.channels_last)
