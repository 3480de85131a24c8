"""Auxiliary classifiers on earlier stages, for methods with several exits."""

from typing import Any, Literal

from torch import Tensor

from lsdali.errors import UserError
from lsdali.methods.base import Method, MethodContext
from lsdali.models.aux_heads import ConvolutionalHead, StageHead
from lsdali.models.student import AuxHead, Outputs

HeadKind = Literal["linear", "convolutional"]


class Exits:
    """Heads on the last `count` stages before the last one, the latest first."""

    def __init__(
        self, context: MethodContext, count: int, kind: HeadKind = "linear", key: str = "method.exits"
    ) -> None:
        """Raises UserError if there are fewer such stages; `key` is what said how many."""
        (_, self.width), *earlier = reversed(context.channels.items()) if context.channels else [("", 0)]
        if count > len(earlier):
            raise UserError(f"{key} is {count}, but {len(earlier)} come before the last stage")
        self.stages = dict(earlier[:count])
        self.classes, self.kind = context.classes, kind

    def heads(self) -> dict[str, StageHead]:
        """Return new ones, by the names that they have among the auxiliary heads."""
        return {f"exit_{name}": self.head(name, back) for back, name in enumerate(self.stages, 1)}

    def head(self, stage: str, back: int) -> StageHead:
        """Build a head on a stage that comes `back` before the last one.

        The stride is twice that of the stages between them.
        """
        if self.kind == "linear":
            return StageHead(stage, self.stages[stage], self.classes)
        return ConvolutionalHead(stage, self.stages[stage], self.classes, self.width, 2 ** (back + 1))

    def logits(self, out: Outputs) -> list[Tensor]:
        """Return [B, K] each."""
        return [out.aux_heads[f"exit_{name}"] for name in self.stages]


class MethodWithExits(Method):
    """A method whose config has `exits` and `head`."""

    def __init__(self, config: Any, context: MethodContext) -> None:
        super().__init__(config, context)
        self.exits = Exits(context, config.exits, config.head)

    def aux_heads(self) -> dict[str, AuxHead]:
        return {**self.exits.heads()}
