"""Teacher: a frozen network that methods ask for logits. Named in the recipe with its digest, never saved."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from lsdali.batch import Normal
from lsdali.config import Config, PathText
from lsdali.errors import UserError
from lsdali.functional import as_float32
from lsdali.models.checkpoint_net import open_network, same_classes
from lsdali.models.digest import weights_digest
from lsdali.models.families.torchvision_weights import from_torchvision, torchvision_normal
from lsdali.models.student import Network
from lsdali.state import checkpoint


class Scaled(Config):
    """What every teacher has."""

    digest: str | None = None
    """SHA-256 of the network's weights, as in the summary of an lsdali run; null takes any."""
    temperature: float = Field(1.0, gt=0)
    """That of temperature scaling (Guo et al. 2017), as lsdali.evaluate --temperature fits it: the teacher's logits are
    divided by it before anything else is done to them."""


class CheckpointTeacher(Scaled):
    """A network trained by lsdali."""

    source: Literal["checkpoint"] = "checkpoint"
    path: PathText
    """A checkpoint file of the teacher's run."""


class TorchvisionTeacher(Scaled):
    """A network with torchvision's weights."""

    source: Literal["torchvision"] = "torchvision"
    model: str
    """torchvision's name, such as resnet50."""
    weights: str
    """torchvision's name of the weights, such as IMAGENET1K_V1."""


TeacherConfig = Annotated[CheckpointTeacher | TorchvisionTeacher, Field(discriminator="source")]


class Teacher:
    """A frozen network in evaluation mode. No module, so that it lands in nobody's parameters or state.

    Its logits are divided by `temperature`. `normal` is how the images that it was trained on were normalised; None:
    as those that it is given.
    """

    def __init__(self, network: Network, temperature: float = 1.0, normal: Normal | None = None) -> None:
        self._network = network.eval().requires_grad_(requires_grad=False)
        self.classes, self.image_size = network.classes, network.image_size
        self.digest = weights_digest(network)
        self._temperature, self._normal = temperature, normal
        self._change: tuple[Tensor, Tensor] | None = None  # factor and summand [3, 1, 1]

    def fault_at(self, size: int) -> str | None:
        """Why images of this side in pixels cannot be read; None where they can."""
        return self._network.fault_at(size)

    def expect(self, given: Normal) -> None:
        """From now on, images come normalised in this way."""
        if self._normal is None or self._normal == given:
            self._change = None
            return
        (mean, std), (own_mean, own_std) = torch.tensor(given), torch.tensor(self._normal)
        device = next(self._network.parameters()).device
        parts = (std / own_std, (mean - own_mean) / own_std)
        self._change = parts[0].view(3, 1, 1).to(device), parts[1].view(3, 1, 1).to(device)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> logits [B, K], without gradient."""
        if self._change is not None:
            images = images * self._change[0] + self._change[1]
        logits: Tensor = self._network(images)
        return logits if self._temperature == 1 else as_float32(logits) / self._temperature


def load_teacher(config: TeacherConfig, classes: int, device: torch.device, names: Sequence[str] = ()) -> Teacher:
    """The teacher that a recipe names, on the device; torch's random numbers are left as they were.

    Raises UserError where it cannot be found or read, knows another number of classes or, as far as `names` tell, other
    ones, or has another digest.
    """
    with torch.random.fork_rng(devices=[]):
        if isinstance(config, CheckpointTeacher):
            network, normal = network_from_checkpoint(Path(config.path), classes, names)
        else:
            network = from_torchvision(config.model, config.weights, classes)
            normal = torchvision_normal(config.model, config.weights)
    teacher = Teacher(network.to(device).to(memory_format=torch.channels_last), config.temperature, normal)
    if config.digest is not None and config.digest != teacher.digest:
        name = config.path if isinstance(config, CheckpointTeacher) else f"{config.model} {config.weights}"
        raise UserError(
            f"the teacher '{name}' has digest {teacher.digest}, but the recipe asks for {config.digest}: "
            "these are other weights"
        )
    return teacher


def network_from_checkpoint(path: Path, classes: int, names: Sequence[str] = ()) -> tuple[Network, Normal]:
    """The network saved in a checkpoint file, on the CPU, and how its images were normalised."""
    saved = read_checkpoint(path)
    if saved["classes"] != classes:
        raise UserError(f"the teacher '{path}' knows {saved['classes']} classes, but the data set has {classes}")
    same_classes(saved, names, f"the teacher '{path}'")
    network = open_network(saved, f"the teacher '{path}'")
    data = saved["recipe"]["data"]
    return network, (tuple(data["mean"]), tuple(data["std"]))


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
