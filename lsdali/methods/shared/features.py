"""Feature distillation: a student's maps should resemble its teacher's, beside what a method asks of the logits."""

from collections.abc import Mapping
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from lsdali import dist, parts
from lsdali.config import Config
from lsdali.errors import UserError
from lsdali.functional import as_float32, attention_distance, hint_distance, relation_distances
from lsdali.models.student import AuxHead, Outputs


class StageMap(AuxHead):
    """A head that returns the map of its stage unchanged."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source

    def forward(self, stages: dict[str, Tensor], classifier: nn.Module) -> Tensor:
        """Return [B, C, H, W]."""
        return as_float32(stages[self.source])


class Regressor(StageMap):
    """A 1x1 convolution from the student's channels to the teacher's, trained with the student."""

    def __init__(self, source: str, channels: int, taught: int) -> None:
        super().__init__(source)
        self.convolution = nn.Conv2d(channels, taught, 1)

    def forward(self, stages: dict[str, Tensor], classifier: nn.Module) -> Tensor:
        """Return [B, D, H, W]."""
        return as_float32(self.convolution(stages[self.source]))


class FeatureLoss(Config):
    """Base of losses between a map of the student and one of the teacher."""

    name: str
    weight: float = Field(ge=0, le=1e9)
    """Weight of the sum over the stages."""

    def head(self, source: str, channels: int, taught: int) -> AuxHead:
        """Return what reads the student's stage `source`, inside its forward; channels are the student's and the
        teacher's."""
        return StageMap(source)

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Map what the head gave, and the teacher's map [B, D, H, W], both float32 -> [].

        If it compares samples, `dist.whole_batch` has those of all ranks.
        """
        raise NotImplementedError


class Hint(FeatureLoss):
    """FitNets (Romero et al. 2015): the mean square difference, after a 1x1 convolution that is trained as well."""

    name: Literal["fitnet"] = "fitnet"
    weight: float = Field(100.0, ge=0, le=1e9)
    """Weight of the sum over the stages; 100 in the comparison of Tian et al. 2020 (CRD)."""

    def head(self, source: str, channels: int, taught: int) -> AuxHead:
        return Regressor(source, channels, taught)

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        return hint_distance(student, teacher)


class AttentionTransfer(FeatureLoss):
    """Attention transfer (Zagoruyko and Komodakis 2017): where a map is large, not what it says there."""

    name: Literal["attention"] = "attention"
    weight: float = Field(1000.0, ge=0, le=1e9)
    """Weight of the sum over the stages; published: 1000."""

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        return attention_distance(student, teacher)


class Relational(FeatureLoss):
    """RKD (Park et al. 2019): distances and angles among the samples of a batch, of the maps' means over positions."""

    name: Literal["relational"] = "relational"
    weight: float = Field(1.0, ge=0, le=1e9)
    """Weight of the sum over the stages."""
    distances: float = Field(25.0, ge=0, le=1e9)
    """Weight of the distances; published: 25."""
    angles: float = Field(50.0, ge=0, le=1e9)
    """Weight of the angles; published: 50. They need memory for batch^2 (batch + channels) numbers; 0: none."""

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        means = [dist.whole_batch(x.mean((2, 3))) for x in (student, teacher)]
        lengths, angles = relation_distances(means[0], means[1], angles=self.angles > 0)
        return self.distances * lengths + self.angles * angles


FEATURE_LOSSES: dict[str, type[FeatureLoss]] = {
    "fitnet": Hint,
    "attention": AttentionTransfer,
    "relational": Relational,
}
parts.opened("FEATURE_LOSSES", FEATURE_LOSSES, "feature loss", parts.tagged(FeatureLoss, lambda kind: kind))

if TYPE_CHECKING:
    Compared = FeatureLoss
else:
    Compared = Annotated[reduce(or_, FEATURE_LOSSES.values()), Field(discriminator="name")]

Stages = Annotated[tuple[str, ...], Field(strict=False, min_length=1)]


class FeatureConfig(Config):
    """The maps to compare, and the loss."""

    stages: Stages
    """Stages of the student, such as [layer2, layer3]; the error for a wrong name lists all stages."""
    teacher_stages: Stages | None = None
    """The teacher's stages, one for each of `stages`; null: those of the same names."""
    loss: Compared
    """The loss between two maps. Maps of different sizes are compared at the smaller size, by means over positions."""

    @model_validator(mode="after")
    def in_pairs(self) -> Self:
        if self.teacher_stages is not None and len(self.teacher_stages) != len(self.stages):
            raise ValueError(f"{len(self.stages)} stages, but {len(self.teacher_stages)} teacher_stages: give pairs")
        return self


class FeatureMatch:
    """The pairs of stages of one run."""

    def __init__(self, config: FeatureConfig, student: Mapping[str, int], teacher: Mapping[str, int]) -> None:
        """`student` and `teacher` have the channels of their stages. Raises UserError for a stage that is not there."""
        self.config, self._channels = config, (student, teacher)
        self.pairs = list(zip(config.stages, config.teacher_stages or config.stages, strict=True))
        for names, channels, key, whose in (
            (config.stages, student, "stages", "the student"),
            (config.teacher_stages or config.stages, teacher, "teacher_stages", "the teacher"),
        ):
            for name in names:
                if name not in channels:
                    there = ", ".join(channels) or "none with maps"
                    raise UserError(f"method.features.{key}: {whose} has no stage '{name}'; its stages are {there}")

    def heads(self) -> dict[str, AuxHead]:
        """Return what reads the student's stages, by the names among its auxiliary heads."""
        student, teacher = self._channels
        return {f"feature_{own}": self.config.loss.head(own, student[own], teacher[of]) for own, of in self.pairs}

    def loss(self, out: Outputs, maps: Mapping[str, Tensor]) -> Tensor:
        """Return the weighted sum over the pairs, [], from the student's outputs and the teacher's maps."""
        with torch.autocast(out.logits.device.type, enabled=False):
            distances = [
                self.config.loss.distance(out.aux_heads[f"feature_{own}"], as_float32(maps[of]))
                for own, of in self.pairs
            ]
            return self.config.loss.weight * torch.stack(distances).sum()
