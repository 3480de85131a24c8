"""Networks whose depth and width stand in their names, such as wrn_22_6."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from lsdali.errors import UserError
from lsdali.models.families.cifar_resnet import deep, deep_bottleneck
from lsdali.models.families.pyramid import pyramidnet
from lsdali.models.families.wide import wide_resnet
from lsdali.models.student import Network

DEEPEST, WIDEST = 2000, 1000


@dataclass(frozen=True)
class Sized:
    """Networks of one kind. A depth is `per` n + `rest`."""

    name: str  # with D for the depth and W for what decides the width
    per: int
    rest: int
    build: Callable[..., Network]  # (depth, [width,] classes)

    @property
    def pattern(self) -> str:
        return self.name.replace("D", r"(\d+)").replace("W", r"(\d+)")

    def builder(self, name: str) -> Callable[..., Network] | None:
        """Return what builds a name, None for names of other kinds. Raises UserError for depths that it cannot have."""
        match = re.fullmatch(self.pattern, name)
        if match is None:
            return None
        depth, *widths = (int(number[:9]) for number in match.groups())
        if (depth - self.rest) % self.per or not self.per + self.rest <= depth <= DEEPEST:
            steps = max((depth - self.rest) // self.per, 1)
            low = min(steps, (DEEPEST - self.rest) // self.per - 1) * self.per + self.rest
            raise UserError(f"{name}: its depth is {self.per}n + {self.rest}, such as {low} or {low + self.per}")
        if any(not 1 <= width <= WIDEST for width in widths):
            raise UserError(f"{name}: its width is a number from 1 to {WIDEST}")
        return partial(self.build, depth, *widths)


def pyramid(depth: int, alpha: int, classes: int) -> Network:
    """PyramidNet of depth D in bottlenecks; W is alpha, what the widths grow by in all."""
    return pyramidnet(0.0, depth, alpha, classes)


SIZED = (
    Sized("wrn_D_W", 6, 4, wide_resnet),
    Sized("resnetD_basic", 6, 2, deep),
    Sized("resnetD_bottleneck", 9, 2, deep_bottleneck),
    Sized("pyramidnetD_W", 9, 2, pyramid),
)


def sized(name: str) -> Callable[..., Network] | None:
    """Return what builds a network by its sizes; None if its name has none. Raises UserError as `Sized.builder`."""
    return next((found for kind in SIZED if (found := kind.builder(name)) is not None), None)
