"""The sources of a recipe's teacher."""

from typing import Annotated, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from lsdali.batch import Normal
from lsdali.config import Config, PathText
from lsdali.models import ModelConfig
from lsdali.models.pretrained import Which


class Scaled(Config):
    """Base of all teachers."""

    digest: str | None = None
    """SHA-256 of the network's weights, as in the summary of an lsdali run; null takes any."""
    temperature: float = Field(1.0, gt=0, le=1e9)
    """That of temperature scaling (Guo et al. 2017), as lsdali.evaluate --temperature fits it: the teacher's logits are
    divided by it first."""
    cache: PathText | None = None
    """Folder of the teacher's answers to the crops of every epoch, as `lsdali cache` makes it; null: the teacher runs
    in every step. An ensemble has one for all of its members."""


class FromRun(Scaled):
    """Base of teachers that lsdali has trained."""

    weights: Which = "model"
    """The model's own weights, or their moving average (ema)."""


class CheckpointTeacher(FromRun):
    """A network trained by lsdali."""

    source: Literal["checkpoint"] = "checkpoint"
    path: PathText
    """A checkpoint file of the teacher's run."""


class RunTeacher(FromRun):
    """A network trained by lsdali, by its run folder."""

    source: Literal["run"] = "run"
    path: PathText
    """The run folder, or a checkpoint file."""
    checkpoint: Literal["best", "last"] = "best"
    """Which checkpoint of the folder."""


class TorchvisionTeacher(Scaled):
    """A network with torchvision's weights."""

    source: Literal["torchvision"] = "torchvision"
    model: str
    """torchvision's name, such as resnet50."""
    weights: str
    """torchvision's name of the weights, such as IMAGENET1K_V1."""


class TimmTeacher(Scaled):
    """A network with timm's weights."""

    source: Literal["timm"] = "timm"
    model: str
    """timm's name, such as vit_small_patch16_224."""
    tag: str | None = None
    """timm's name of the training run, such as augreg_in1k; null is timm's default."""


Share = Annotated[float, Field(ge=0, le=1e9)]
RGB = Annotated[tuple[Share, Share, Share], Field(strict=False)]


class Given(Scaled):
    """Base of teachers whose normalisation is unknown."""

    model: ModelConfig
    """The network, as in a recipe."""
    mean: RGB | None = None
    """Mean of each channel (red, green, blue) of its images, in 0 .. 1; null: that of data.mean."""
    std: RGB | None = None
    """Standard deviation of each channel; null: that of data.std."""

    @model_validator(mode="after")
    def both_or_none(self) -> Self:
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std are given together, or neither")
        return self

    @property
    def normal(self) -> Normal | None:
        """How its images were normalised, if the recipe says so."""
        return None if self.mean is None or self.std is None else (self.mean, self.std)


class FileTeacher(Given):
    """A network whose weights lie in a file, as `model.weights` reads it."""

    source: Literal["file"] = "file"
    path: PathText
    """The file: safetensors, a state dict, or a trainer's checkpoint."""
    which: Which = "model"
    """The model's own weights, or their moving average if the file holds one."""


class UsesTeacher(Given):
    """A network whose builder returns it trained, such as one of your own package."""

    source: Literal["uses"] = "uses"


SingleTeacher = Annotated[
    CheckpointTeacher | RunTeacher | TorchvisionTeacher | TimmTeacher | FileTeacher | UsesTeacher,
    Field(discriminator="source"),
]


class EnsembleTeacher(Scaled):
    """Several teachers: the mean of their probabilities, as its logarithm."""

    source: Literal["ensemble"] = "ensemble"
    of: Annotated[tuple[SingleTeacher, ...], Field(strict=False, min_length=2)]
    """The teachers; all know the same classes."""

    @model_validator(mode="after")
    def one_cache(self) -> Self:
        if any(part.cache is not None for part in self.of):
            raise ValueError("the members of an ensemble have no cache of their own; give one to the ensemble")
        return self


TeacherConfig = Annotated[
    CheckpointTeacher | RunTeacher | TorchvisionTeacher | TimmTeacher | FileTeacher | UsesTeacher | EnsembleTeacher,
    Field(discriminator="source"),
]
