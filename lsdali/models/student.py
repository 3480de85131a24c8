"""Student: a network and a method's auxiliary heads, in one forward, so that DDP sees it all."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.export import register_dataclass
from torch.func import functional_call
from typing_extensions import Self

from lsdali.errors import first_line
from lsdali.functional import as_float32


@dataclass(frozen=True, slots=True)
class Outputs:
    """Result of one forward of a student."""

    logits: Tensor  # [B, K] float32 (float64 stays float64)
    features: Tensor  # [B, C] what the classifier read; C is 0 where a network has none that is known
    aux_heads: dict[str, Tensor]  # what the method's auxiliary heads returned, by their names; logits are float32


# Lets DDP find the tensors inside; with static_graph=True it would else silently reduce no gradient.
register_dataclass(Outputs)

Forward = Callable[[Tensor], Outputs]


class Network(nn.Module):
    """An image classifier in parts: stem, named stages in order, pool, neck, dropout and the linear classifier.

    `pool` maps the last stage [B, C, H, W] to [B, C]; `neck` [..., C] -> [..., D] is what a family has between pool
    and classifier (the LayerNorm of ConvNeXt, the hidden layer of MobileNetV3) and acts on single positions too;
    `dropout` drops features before the classifier in training. `channels` gives the width C of every stage; it is
    empty if the stages hand on no maps. `width` is D, or 0 if the classifier is not known.
    """

    aliases: Mapping[str, str]
    """Names of tensors in the weights that others publish (torchvision's, timm's) -> their names here."""
    positionwise: bool = True
    """Whether neck and classifier can read single positions of the last map."""
    raw_stages: frozenset[str] = frozenset()
    """Stages whose maps lack the final BatchNorm and ReLU; an exit then has its own, as in ZLS's DenseNet."""
    image_size: int | None = None
    """The only side of images in pixels that the network takes; None: any that is large enough."""
    convolves: bool = False
    """Whether the classifier is a 1x1 convolution in the package that the network comes from."""
    _fitting: int | None = None  # the side of images that are known to fit
    notes: tuple[str, ...] = ()
    """Sentences that a run logs about how the network was made."""

    def __init__(
        self,
        stem: nn.Module,
        stages: Mapping[str, nn.Module],
        pool: nn.Module,
        classifier: nn.Linear | None,
        channels: Mapping[str, int],
        *,
        neck: nn.Module | None = None,
        dropout: float = 0.0,
        classes: int | None = None,
    ) -> None:
        """`classes` is needed if there is no `classifier`."""
        super().__init__()
        self.stem = stem
        self.stages = nn.ModuleDict(stages)
        self.pool = pool
        self.neck = nn.Identity() if neck is None else neck
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.classifier: Any = nn.Identity() if classifier is None else classifier
        self.channels = dict(channels)
        self.classes: int = classes if classifier is None else classifier.out_features  # type: ignore[assignment]
        self.width = 0 if classifier is None else classifier.in_features
        self.aliases = {}
        # In a tuple, so that its parts are not registered twice.
        self._readout = (self.classifier if neck is None else nn.Sequential(neck, self.classifier),)

    @property
    def readout(self) -> nn.Module:
        """Neck and classifier, [..., C] of the last map -> [..., K]: what auxiliary heads get to classify positions."""
        return self._readout[0]

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """Map [B, 3, H, W] -> the map [B, C, H', W'] that leaves each stage, in order."""
        x = self.stem(images)
        out: dict[str, Tensor] = {}
        for name, stage in self.stages.items():
            x = stage(x)
            out[name] = x
        return out

    def features(self, maps: Mapping[str, Tensor]) -> Tensor:
        """Return what the classifier reads, [B, D], from the maps of all stages."""
        pooled: Tensor = self.dropout(self.neck(self.pool(list(maps.values())[-1])))
        return pooled

    def logits(self, maps: Mapping[str, Tensor], features: Tensor) -> Tensor:
        """Return the logits [B, K] of the maps of all stages and their features [B, D]."""
        out: Tensor = self.classifier(features)
        return out

    def parts(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Map [B, 3, H, W] -> the map that leaves each stage, features [B, D], logits [B, K]."""
        maps = self.maps(images)
        features = self.features(maps)
        return maps, features, self.logits(maps, features)

    def forward(self, images: Tensor) -> Tensor:
        """Map [B, 3, H, W] -> logits [B, K]."""
        return self.parts(images)[2]

    def fault_at(self, size: int) -> str | None:
        """Return why images of this side in pixels cannot be read.

        None if they can, or if only a step would tell. Shapes alone are computed, and pixels where these do not fit;
        larger images than some that fit are taken to fit.
        """
        if self._fitting is not None and size >= self._fitting:
            return None
        tensors = {name: tensor.to("meta") for name, tensor in self.state_dict().items()}
        images = torch.empty(1, 3, size, size, device="meta")
        before = self.training
        self.eval()
        try:
            with torch.no_grad(), suppress(Exception):
                functional_call(self, tensors, (images,))
                self._fitting = size
                return None
            with torch.no_grad():
                self(torch.zeros_like(images, device=next(self.parameters()).device))
        except (RuntimeError, ValueError, IndexError) as error:
            return first_line(error)
        finally:
            self.train(before)
        return None


class AuxHead(nn.Module):
    """A module that a method trains beside the network; it reads the student's stages inside the student's forward.

    Outside the wrapped module, DDP would not reduce its gradients, and the ranks would drift apart unnoticed.
    """

    classifies_positions: ClassVar[bool] = False
    """Whether it reads the last map with the network's own classifier."""
    stage: str | None = None
    """The earlier stage that it reads, if any."""

    def forward(self, stages: dict[str, Tensor], classifier: nn.Module) -> Tensor:
        """Map [B, C, H, W] by stage, and the network's readout ([..., C] -> [..., K]) -> any tensor [B, ...]."""
        raise NotImplementedError


class Student(nn.Module):
    """The network in training and its auxiliary heads.

    Logits that autocast made are cast to float32 here, once. If each term of a loss cast them anew, each term's
    gradient would be rounded to 16 bits before they are added.
    """

    def __init__(self, network: Network, aux_heads: Mapping[str, AuxHead], frozen: Sequence[str] = ()) -> None:
        """`frozen` are the parts of the network that stay in evaluation mode, by name."""
        super().__init__()
        self.network = network
        self.frozen = tuple(frozen)
        self._head_names = tuple(aux_heads)  # a stage of a foreign module may be blocks.1, as no module may be called
        self.aux_heads = nn.ModuleDict({name.replace(".", "-"): head for name, head in aux_heads.items()})
        read = network.raw_stages & {head.stage for head in aux_heads.values()}
        self.exit_norms = nn.ModuleDict(
            {s: nn.Sequential(nn.BatchNorm2d(c), nn.ReLU()) for s, c in network.channels.items() if s in read}
        )

    def forward(self, images: Tensor) -> Outputs:
        """Map [B, 3, H, W] -> Outputs."""
        maps, features, logits = self.network.parts(images)
        logits = as_float32(logits)
        maps |= {stage: norm(maps[stage]) for stage, norm in self.exit_norms.items()}
        heads = zip(self._head_names, self.aux_heads.values(), strict=True)
        aux_heads = {name: head(maps, self.network.readout) for name, head in heads}
        return Outputs(logits, features, aux_heads)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all parts that are not frozen."""
        super().train(mode)
        for name in self.frozen:
            self.network.get_submodule(name).eval()
        return self

    def head(self) -> list[nn.Parameter]:
        """Return the classifier's and auxiliary heads' parameters, trained from scratch if the rest is pretrained."""
        return [*self.network.classifier.parameters(), *self.aux_heads.parameters(), *self.exit_norms.parameters()]
