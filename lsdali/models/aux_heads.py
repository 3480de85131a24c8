"""Auxiliary heads: what methods read from the stages of a student."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsdali.errors import UserError
from lsdali.functional import as_float32
from lsdali.models.blocks import mean_over_positions
from lsdali.models.student import AuxHead

Upsample = Literal["bilinear", "bicubic"]

CHUNK_BYTES = 64 * 2**20
"""Bound on the logits of positions that exist at one time; K = 10,000 on a whole batch would be gigabytes."""


class DenseVotes(AuxHead):
    """The class that the network's own classifier picks at every position of the last stage (Liang et al. 2022).

    Carries no gradient and keeps nothing for the backward pass. Runs in the classifier's own precision even
    under autocast: bfloat16 logits tie often, and a tie goes to the lowest class number.
    """

    classifies_positions = True

    def __init__(self, upsample: Upsample | None = None, exit: "StageHead | None" = None) -> None:
        """With `exit`, that head votes at the positions of its own stage; it is one of the student's heads."""
        super().__init__()
        self.upsample = upsample
        self.exit = exit

    @torch.no_grad()
    def forward(self, stages: dict[str, Tensor], classifier: nn.Module) -> Tensor:
        """Return [B, L] int64 class numbers, positions row by row; L = H W, or 4 H W with upsampling.

        `classifier` is the network's own readout: its neck if it has one, and its linear layer, without dropout.
        """
        last = (list(stages.values())[-1] if self.exit is None else stages[self.exit.stage]).detach()
        classifier = classifier if self.exit is None else self.exit.linear
        *_, weight = classifier.parameters()  # the linear layer's bias [K], or its weight [K, C]
        scale = 4 if self.upsample else 1
        sample_bytes = scale * last.shape[2] * last.shape[3] * len(weight) * weight.element_size()
        size = max(1, CHUNK_BYTES // sample_bytes)
        with torch.autocast(last.device.type, enabled=False):
            return torch.cat([self.vote(part.to(weight.dtype), classifier) for part in torch.split(last, size)])

    def vote(self, maps: Tensor, classifier: nn.Module) -> Tensor:
        """Map [b, C, H, W] -> [b, L] int64.

        Before a linear classifier, upsampling acts on the logits, not the map: its weights sum to 1, so it commutes
        with the classifier, which then reads a quarter of the positions. A neck need not be linear.
        """
        late = isinstance(classifier, nn.Linear)
        maps = maps if late else self.enlarged(maps)
        logits: Tensor = classifier(maps.movedim(1, -1)).movedim(-1, 1)  # [b, K, H, W]
        logits = self.enlarged(logits) if late else logits
        return logits.argmax(1).flatten(1)

    def enlarged(self, maps: Tensor) -> Tensor:
        """Map [b, C, H, W] -> [b, C, 2 H, 2 W], or as they are without upsampling."""
        if self.upsample is None:
            return maps
        return F.interpolate(maps, scale_factor=2, mode=self.upsample, align_corners=False)


class StageHead(AuxHead):
    """A classifier of its own on one stage, for methods with several exits: linear, on the mean of the positions."""

    stage: str

    def __init__(self, stage: str, channels: int, classes: int) -> None:
        super().__init__()
        self.stage = stage
        self.body: nn.Module = nn.Identity()
        self.linear = nn.Linear(channels, classes)

    def forward(self, stages: dict[str, Tensor], classifier: nn.Module) -> Tensor:
        """Return [B, K] logits."""
        return as_float32(self.linear(mean_over_positions(self.body(stages[self.stage]))))


class ConvolutionalHead(StageHead):
    """1x1, s x s with stride s, 1x1, each with BatchNorm and ReLU, before the mean; `width` is that of the last stage.

    The side branches of the deep-supervision script in the code of Zhang et al. 2021 (OLS).
    """

    def __init__(self, stage: str, channels: int, classes: int, width: int, stride: int) -> None:
        super().__init__(stage, width, classes)
        self.stride = stride
        sizes = [(channels, width // 4, 1), (width // 4, width // 4, stride), (width // 4, width, 1)]
        parts = [[nn.Conv2d(a, b, s, s), nn.BatchNorm2d(b), nn.ReLU(inplace=True)] for a, b, s in sizes]
        self.body = nn.Sequential(*(layer for part in parts for layer in part))

    def forward(self, stages: dict[str, Tensor], classifier: nn.Module) -> Tensor:
        """Return [B, K] logits. Raises UserError if the stage's map is smaller than the convolution."""
        height, width = stages[self.stage].shape[2:]
        if min(height, width) < self.stride:
            raise UserError(
                f"method.head: convolutional needs maps of at least {self.stride} x {self.stride} positions, but "
                f"'{self.stage}' gives {height} x {width}: use larger images, fewer `exits`, or head: linear"
            )
        return super().forward(stages, classifier)
