"""The base of methods with a teacher: its logits and, if the recipe compares features, its maps."""

from collections.abc import Mapping
from typing import Any

from pydantic import model_validator
from torch import Tensor
from typing_extensions import Self

from lsdali.batch import Batch
from lsdali.clock import Clock
from lsdali.methods.base import Method, MethodContext, ask, matching_teacher
from lsdali.methods.shared.features import FeatureConfig, FeatureMatch
from lsdali.models.student import AuxHead, Outputs
from lsdali.models.teacher_configs import TeacherConfig


class TaughtMethod(Method):
    """A method that compares the student with a teacher."""

    class Config(Method.Config):
        """The teacher, and the comparison of features."""

        teacher: TeacherConfig
        """The network whose prediction is the target."""
        features: FeatureConfig | None = None
        """Also compare maps of the two networks (FitNets, attention transfer, RKD ...); null: only the logits."""

        @model_validator(mode="after")
        def cache_has_no_maps(self) -> Self:
            if self.features is not None and self.teacher.cache is not None:
                raise ValueError("`teacher.cache` holds logits and no maps: leave it out, or leave out `features`")
            return self

    config: Any

    def __init__(self, config: Config, context: MethodContext) -> None:
        super().__init__(config, context)
        self.teacher = matching_teacher(config.teacher, context)
        self.features = None
        if config.features is not None:
            self.features = FeatureMatch(config.features, context.channels, self.teacher.channels)

    def aux_heads(self) -> dict[str, AuxHead]:
        return {} if self.features is None else self.features.heads()

    def ask(self, batch: Batch, clock: Clock) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the teacher's logits [B, K], and the maps of its stages where features are compared."""
        if self.features is None:
            return ask(self.teacher, batch, clock), {}
        return self.teacher.look(batch.images)

    def with_features(
        self, total: Tensor, terms: dict[str, Tensor], out: Outputs, maps: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return loss [] and terms with that of the features, if they are compared."""
        if self.features is None:
            return total, terms
        distance = self.features.loss(out, maps)
        return total + distance, {**terms, "features": distance}
