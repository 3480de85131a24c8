"""Student: a network and the probes that a method hangs on it, in one forward, so that DDP sees it all."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.export import register_dataclass


@dataclass(frozen=True, slots=True)
class Outputs:
    """What one forward of a student gives."""

    logits: Tensor  # [B, K]
    features: Tensor  # [B, C] what the classifier read
    probes: dict[str, Tensor]  # what the method's probes returned, by their names


# Lets DDP find the tensors inside; with static_graph=True it would else silently reduce no gradient.
register_dataclass(Outputs)

Forward = Callable[[Tensor], Outputs]


class Network(nn.Module):
    """An image classifier in four parts: stem, named stages in order, pool, and the linear classifier.

    `pool` maps the last stage [B, C, H, W] to features [B, C]; `channels` gives the width C of every stage.
    """

    def __init__(
        self,
        stem: nn.Module,
        stages: Mapping[str, nn.Module],
        pool: nn.Module,
        classifier: nn.Linear,
        channels: Mapping[str, int],
    ) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.ModuleDict(stages)
        self.pool = pool
        self.classifier = classifier
        self.channels = dict(channels)
        self.classes = classifier.out_features

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """[B, 3, H, W] -> the map [B, C, H', W'] that leaves each stage, in order."""
        x = self.stem(images)
        out: dict[str, Tensor] = {}
        for name, stage in self.stages.items():
            x = stage(x)
            out[name] = x
        return out

    def features(self, maps: Mapping[str, Tensor]) -> Tensor:
        """The maps of all stages -> [B, C], what the classifier reads."""
        pooled: Tensor = self.pool(list(maps.values())[-1])
        return pooled

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> logits [B, K]."""
        logits: Tensor = self.classifier(self.features(self.maps(images)))
        return logits


class Probe(nn.Module):
    """Reads the student's stages inside its forward. What a method trains beside the network is a probe.

    Outside the wrapped module, DDP would not reduce its gradients, and the ranks would drift apart unnoticed.
    """

    def forward(self, stages: dict[str, Tensor], classifier: nn.Module) -> Tensor:
        """Maps [B, C, H, W] by stage, the classifier ([..., C] -> [..., K]) -> any tensor [B, ...]."""
        raise NotImplementedError


class Student(nn.Module):
    """The network in training and its probes."""

    def __init__(self, network: Network, probes: Mapping[str, Probe]) -> None:
        super().__init__()
        self.network = network
        self.probes = nn.ModuleDict(probes)

    def forward(self, images: Tensor) -> Outputs:
        """[B, 3, H, W] -> Outputs."""
        maps = self.network.maps(images)
        features = self.network.features(maps)
        logits = self.network.classifier(features)
        probes = {name: probe(maps, self.network.classifier) for name, probe in self.probes.items()}
        return Outputs(logits, features, probes)


def weights_digest(weights: nn.Module | Mapping[str, Tensor]) -> str:
    """SHA-256 (hexadecimal) over the sorted names, types, shapes and bytes of a module's or a dict's tensors.

    The same weights give the same digest on any device and in any memory layout.
    """
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights
    sha = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach()
        sha.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        sha.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()
