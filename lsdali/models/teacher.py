"""Teacher: a frozen network that methods ask for logits. Named in the recipe with its digest, never saved."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from lsdali.batch import Normal
from lsdali.errors import UserError
from lsdali.functional import as_float32
from lsdali.models import build_network
from lsdali.models.checkpoint_net import open_network, same_classes
from lsdali.models.digest import weights_digest
from lsdali.models.families.timm import from_timm
from lsdali.models.families.torchvision_weights import from_torchvision, torchvision_normal
from lsdali.models.pretrained import FileWeights, Which, load_weights
from lsdali.models.student import Network
from lsdali.models.teacher_configs import (
    CheckpointTeacher,
    EnsembleTeacher,
    FileTeacher,
    RunTeacher,
    TeacherConfig,
    TimmTeacher,
    TorchvisionTeacher,
    UsesTeacher,
)
from lsdali.state import checkpoint
from lsdali.state.find import find_checkpoint


class Teacher:
    """A frozen network in evaluation mode; not a Module, so it enters no parameters or state of others.

    Its logits are divided by `temperature`. `normal` is how the images that it was trained on were normalised; None: in
    the same way as the images that it is given.
    """

    channels: Mapping[str, int] = MappingProxyType({})
    """Channels of each of its stages, in order; empty if it gives no maps."""

    def __init__(self, network: Network, temperature: float = 1.0, normal: Normal | None = None) -> None:
        self._network = network.eval().requires_grad_(requires_grad=False)
        self.classes, self.image_size = network.classes, network.image_size
        self.channels = network.channels
        self.digest = weights_digest(network)
        self._temperature, self._normal = temperature, normal
        self._change: tuple[Tensor, Tensor] | None = None  # factor and summand [3, 1, 1]

    def fault_at(self, size: int) -> str | None:
        """Return why images of this side in pixels cannot be read; None if they can."""
        return self._network.fault_at(size)

    def expect(self, given: Normal) -> None:
        """Expect images that are normalised in this way from now on."""
        if self._normal is None or self._normal == given:
            self._change = None
            return
        (mean, std), (own_mean, own_std) = torch.tensor(given), torch.tensor(self._normal)
        device = next(self._network.parameters()).device
        parts = (std / own_std, (mean - own_mean) / own_std)
        self._change = parts[0].view(3, 1, 1).to(device), parts[1].view(3, 1, 1).to(device)

    def normalisations(self) -> list[Normal | None]:
        """Return how its images were normalised, or those of each member."""
        return [self._normal]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> logits [B, K], without gradient."""
        return self._cooled(self._network(self._changed(images)))

    @torch.no_grad()
    def look(self, images: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the same logits for images [B, 3, H, W], and the map that leaves each stage, without gradient."""
        maps, _, logits = self._network.parts(self._changed(images))
        return self._cooled(logits), maps

    def _changed(self, images: Tensor) -> Tensor:
        """The images as this teacher's were normalised."""
        return images if self._change is None else images * self._change[0] + self._change[1]

    def _cooled(self, logits: Tensor) -> Tensor:
        return logits if self._temperature == 1 else as_float32(logits) / self._temperature


class TeacherEnsemble(Teacher):
    """Several teachers as one: the logarithm of the mean of their probabilities, divided by `temperature`."""

    def __init__(self, teachers: Sequence[Teacher], temperature: float = 1.0) -> None:
        self._teachers, self._temperature = teachers, temperature
        self.classes, self.image_size = teachers[0].classes, None
        self.digest = hashlib.sha256(" ".join(teacher.digest for teacher in teachers).encode()).hexdigest()

    def fault_at(self, size: int) -> str | None:
        """Return why images of this side in pixels cannot be read by one of the teachers; None if all can."""
        for teacher in self._teachers:
            if teacher.image_size not in (None, size):
                return f"one of the teachers takes {teacher.image_size} px only"
            if (fault := teacher.fault_at(size)) is not None:
                return fault
        return None

    def expect(self, given: Normal) -> None:
        """Expect images that are normalised in this way from now on."""
        for teacher in self._teachers:
            teacher.expect(given)

    def normalisations(self) -> list[Normal | None]:
        return [normal for teacher in self._teachers for normal in teacher.normalisations()]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> logits [B, K], without gradient."""
        shares = torch.stack([as_float32(teacher(images)).log_softmax(1) for teacher in self._teachers])
        return (shares.logsumexp(0) - math.log(len(shares))) / self._temperature


def load_teacher(config: TeacherConfig, classes: int, device: torch.device, names: Sequence[str] = ()) -> Teacher:
    """Return the teacher that a recipe names, on the device; torch's random numbers are left as they were.

    Raises UserError if it cannot be found or read, knows another number of classes or, as far as `names` tell, other
    ones, or has another digest.
    """
    if isinstance(config, EnsembleTeacher):
        members = [load_teacher(part, classes, device, names) for part in config.of]
        teacher: Teacher = TeacherEnsemble(members, config.temperature)
    else:
        with torch.random.fork_rng(devices=[]):
            network, normal = open_teacher(config, classes, names)
        teacher = Teacher(network.to(device).to(memory_format=torch.channels_last), config.temperature, normal)
    if config.digest is not None and config.digest != teacher.digest:
        raise UserError(
            f"the teacher '{title(config)}' has digest {teacher.digest}, but the recipe asks for {config.digest}: "
            "these are other weights"
        )
    return teacher


def title(config: Any) -> str:
    """Return what a sentence calls a teacher."""
    match config:
        case TorchvisionTeacher():
            return f"{config.model} {config.weights}"
        case TimmTeacher():
            return f"{config.model}.{config.tag}" if config.tag else config.model
        case UsesTeacher():
            return config.model.name
        case EnsembleTeacher():
            return ", ".join(title(part) for part in config.of)
    return str(config.path)


def open_teacher(config: Any, classes: int, names: Sequence[str]) -> tuple[Network, Normal | None]:
    """Return a teacher's network on the CPU, and how its images were normalised; None if that is not known."""
    match config:
        case CheckpointTeacher():
            return network_from_checkpoint(Path(config.path), classes, names, config.weights)
        case RunTeacher():
            path = find_checkpoint(Path(config.path), config.checkpoint)
            return network_from_checkpoint(path, classes, names, config.weights)
        case TorchvisionTeacher():
            network = from_torchvision(config.model, config.weights, classes)
            return network, torchvision_normal(config.model, config.weights)
        case TimmTeacher():
            return from_timm(title(config), classes)
        case UsesTeacher():
            return build_network(config.model, classes), config.normal
    return network_from_file(config, classes), config.normal


def network_from_file(config: FileTeacher, classes: int) -> Network:
    """The network of a file of weights, on the CPU. Raises UserError if they are another's or of other classes."""
    network, said = build_network(config.model, classes), list[str]()
    try:
        load_weights(network, config.model.name, FileWeights(path=config.path, which=config.which), said.append)
    except UserError as fault:
        reason = str(fault).partition("; model.weights.others")[0].removeprefix("model.weights: ")
        raise UserError(f"method.teacher: {reason}") from fault
    if any("begins untrained" in line for line in said):
        raise UserError(f"the teacher '{config.path}' has another number of classes than the data set's {classes}")
    return network


def network_from_checkpoint(
    path: Path, classes: int, names: Sequence[str] = (), weights: Which = "model"
) -> tuple[Network, Normal]:
    """Return the network saved in a checkpoint file, on the CPU, and how its images were normalised."""
    saved = read_checkpoint(path)
    if saved["classes"] != classes:
        raise UserError(f"the teacher '{path}' knows {saved['classes']} classes, but the data set has {classes}")
    same_classes(saved, names, f"the teacher '{path}'")
    network = open_network(saved, f"the teacher '{path}'", weights)
    data = saved["recipe"]["data"]
    return network, (tuple(data["mean"]), tuple(data["std"]))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint file. Nothing in it can run code."""
    if not path.is_file():
        raise UserError(
            f"the teacher's checkpoint '{path}' "
            + ("is a folder; name the file in it" if path.is_dir() else "does not exist")
        )
    wrong = checkpoint.fault(path)
    if wrong is not None:
        way = "; others' weights are a teacher of source: file, with its model"
        raise UserError(f"the teacher '{path}' is {wrong}{way if wrong == checkpoint.FOREIGN else ''}")
    return checkpoint.read(path)
