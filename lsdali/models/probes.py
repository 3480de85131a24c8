"""Probes: what methods read from the stages of a student."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsdali.models.blocks import place_mean
from lsdali.models.student import Probe

Upsample = Literal["bilinear", "bicubic"]

CHUNK_BYTES = 64 * 2**20
"""Bound on the logits of places that exist at one time; K = 10,000 on a whole batch would be gigabytes."""


class DenseVotes(Probe):
    """The class that the network's own classifier picks at every place of the last stage (Liang et al. 2022).

    Carries no gradient and keeps nothing for the backward pass. Runs in the classifier's own precision even
    under autocast: bfloat16 logits tie often, and a tie goes to the lowest class number.
    """

    classifies_places = True

    def __init__(self, upsample: Upsample | None = None, exit: "StageHead | None" = None) -> None:
        """With `exit`, that head votes at the places of its own stage; it is shared with the student's probes."""
        super().__init__()
        self.upsample = upsample
        self.exit = exit

    @torch.no_grad()
    def forward(self, stages: dict[str, Tensor], classifier: nn.Module) -> Tensor:
        """-> [B, L] int64 class numbers, places row by row; L = H W, or 4 H W with upsampling.

        `classifier` is the network's own readout: its neck where it has one, and its linear layer, without dropout.
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
        """[b, C, H, W] -> [b, L] int64.

        Before a linear classifier, upsampling acts on the logits, not the map: its weights sum to 1, so it commutes
        with the classifier, which then reads a quarter of the places. A neck need not be linear.
        """
        late = isinstance(classifier, nn.Linear)
        maps = maps if late else self.enlarged(maps)
        logits: Tensor = classifier(maps.movedim(1, -1)).movedim(-1, 1)  # [b, K, H, W]
        logits = self.enlarged(logits) if late else logits
        return logits.argmax(1).flatten(1)

    def enlarged(self, maps: Tensor) -> Tensor:
        """[b, C, H, W] -> [b, C, 2 H, 2 W], or as they are without upsampling."""
        if self.upsample is None:
            return maps
        return F.interpolate(maps, scale_factor=2, mode=self.upsample, align_corners=False)


class StageHead(Probe):
    """A linear classifier of its own on the mean of one stage, for methods with several exits."""

    def __init__(self, stage: str, channels: int, classes: int) -> None:
        super().__init__()
        self.stage = stage
        self.linear = nn.Linear(channels, classes)

    def forward(self, stages: dict[str, Tensor], classifier: nn.Module) -> Tensor:
        """-> [B, K] logits."""
        logits: Tensor = self.linear(place_mean(stages[self.stage]))
        return logits
