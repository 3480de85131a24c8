"""Teacher: a frozen network that methods ask for logits. Named in the recipe with its digest, never saved."""

from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from lsdali.config import Config
from lsdali.errors import UserError
from lsdali.models.imagenet import from_torchvision
from lsdali.models.saved import open_network
from lsdali.models.student import Network, weights_digest
from lsdali.state import checkpoint


class CheckpointTeacher(Config):
    """A network trained by lsdali."""

    source: Literal["checkpoint"] = "checkpoint"
    path: str
    """A checkpoint file of the teacher's run."""
    digest: str | None = None
    """SHA-256 of the network's weights, as in the summary of the teacher's run; null takes any."""


class TorchvisionTeacher(Config):
    """A network with torchvision's weights."""

    source: Literal["torchvision"] = "torchvision"
    model: str
    """torchvision's name, such as resnet50."""
    weights: str
    """torchvision's name of the weights, such as IMAGENET1K_V1."""
    digest: str | None = None
    """SHA-256 of the network's weights; null takes any."""


TeacherConfig = Annotated[CheckpointTeacher | TorchvisionTeacher, Field(discriminator="source")]


class Teacher:
    """A frozen network in evaluation mode. No module, so that it lands in nobody's parameters or state."""

    def __init__(self, network: Network) -> None:
        self._network = network.eval().requires_grad_(requires_grad=False)
        self.classes = network.classes
        self.digest = weights_digest(network)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> logits [B, K], without gradient."""
        logits: Tensor = self._network(images)
        return logits


def load_teacher(config: TeacherConfig, classes: int, device: torch.device) -> Teacher:
    """The teacher that a recipe names, on the device; torch's random numbers are left as they were.

    Raises UserError where it cannot be found or read, knows another number of classes, or has another digest.
    """
    with torch.random.fork_rng(devices=[]):
        if isinstance(config, CheckpointTeacher):
            network = network_from_checkpoint(Path(config.path), classes)
        else:
            network = from_torchvision(config.model, config.weights, classes)
    layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    teacher = Teacher(network.to(device).to(memory_format=layout))
    if config.digest is not None and config.digest != teacher.digest:
        name = config.path if isinstance(config, CheckpointTeacher) else f"{config.model} {config.weights}"
        raise UserError(
            f"the teacher '{name}' has digest {teacher.digest}, but the recipe asks for {config.digest}: "
            "these are other weights"
        )
    return teacher


def network_from_checkpoint(path: Path, classes: int) -> Network:
    """The network saved in a checkpoint file, on the CPU."""
    saved = read_checkpoint(path)
    if saved["classes"] != classes:
        raise UserError(f"the teacher '{path}' knows {saved['classes']} classes, but the data set has {classes}")
    return open_network(saved, f"the teacher '{path}'")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint file. Nothing in it can run code."""
    if not path.is_file():
        raise UserError(
            f"the teacher's checkpoint '{path}' "
            + ("is a folder; name the file in it" if path.is_dir() else "does not exist")
        )
    wrong = checkpoint.fault(path)
    if wrong is not None:
        raise UserError(f"the teacher '{path}' is {wrong}")
    return checkpoint.read(path)
