"""Online label smoothing and the losses that it is compared with, as the scripts of their papers would train them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsdali.batch import Batch
from lsdali.data.sampling.sampler import uniforms
from tests.methods.whole_runs import compare, steps

K = 5


class Matrix:
    """The soft labels of Zhang et al. (2021): sums of the right predictions of an epoch, divided at its end."""

    def __init__(self, start: float, freeze: float = 2.0) -> None:
        self.rows, self.freeze = torch.full((K, K), start, dtype=torch.float64), freeze
        self.sums, self.counts, self.epoch = torch.zeros_like(self.rows), torch.zeros(K), 0
        self.met: set[str] = set()

    def enter(self, epoch: int) -> None:
        if epoch == self.epoch:
            return
        for c in range(K):
            frozen = self.rows[c].max() >= self.freeze
            if self.counts[c] < 0.5:
                self.rows[c] = 1 / K
            elif not frozen:
                self.rows[c] = self.sums[c] / self.counts[c]
            self.met.add("empty" if self.counts[c] < 0.5 else "frozen" if frozen else "mean")
        self.sums, self.counts, self.epoch = torch.zeros_like(self.rows), torch.zeros(K), epoch

    def add(self, logits: Tensor, labels: Tensor) -> None:
        for p, y in zip(logits.detach().softmax(1), labels, strict=True):
            if p.argmax() == y:
                self.sums[y] += p
                self.counts[y] += 1

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return -(self.rows[labels] * logits.log_softmax(1)).sum(1).mean()


def test_ols_of_the_cifar_script(place: Path) -> None:
    def twin(student: nn.Module, epochs: list[list[Batch]]) -> None:
        soft = Matrix(0.0)
        for epoch, batch, descend in steps(student, epochs):
            soft.enter(epoch)
            logits = student.network(batch.images)
            soft.add(logits, batch.labels)
            descend(0.5 * F.cross_entropy(logits, batch.labels) + 0.5 * soft.loss(logits, batch.labels))
        assert soft.met == {"empty", "mean"}

    compare({"name": "ols"}, twin, place)


def test_ols_of_the_finegrained_script(place: Path) -> None:
    def twin(student: nn.Module, epochs: list[list[Batch]]) -> None:
        soft = Matrix(1 / K, freeze=0.25)
        for epoch, batch, descend in steps(student, epochs):
            soft.enter(epoch)
            logits = student.network(batch.images)
            soft.add(logits, batch.labels)
            descend(F.cross_entropy(logits, batch.labels) + soft.loss(logits, batch.labels))
        assert soft.met == {"empty", "mean", "frozen"}

    compare({"name": "ols", "hard": 1.0, "soft": 1.0, "start": "uniform", "freeze": 0.25}, twin, place)


def side(head: Any, x: Tensor) -> Tensor:
    """A side branch: convolution, norm and ReLU thrice, or nothing, then the mean and a linear layer."""
    layers = list(head.body.children())
    for convolution, norm in zip(layers[0::3], layers[1::3], strict=True):
        stride = convolution.weight.shape[2]
        x = F.relu(norm(F.conv2d(x, convolution.weight, convolution.bias, stride=stride)))
    mean: Tensor = head.linear(x.mean((2, 3)))
    return mean


@pytest.mark.parametrize(("variant", "head"), [("paper", "convolutional"), ("code", "linear")])
def test_ols_deep(place: Path, variant: str, head: str) -> None:
    def twin(student: nn.Module, epochs: list[list[Batch]]) -> None:
        soft = Matrix(0.0)
        for epoch, batch, descend in steps(student, epochs):
            soft.enter(epoch)
            maps, y = student.network.maps(batch.images), batch.labels
            final = student.network.logits(maps, student.network.features(maps))
            first, second = (side(head, maps[head.stage]) for head in student.aux_heads.values())
            soft.add(final, y)
            hard = sum(w * F.cross_entropy(z, y) for w, z in ((1.5, final), (0.5, first), (0.5, second)))
            gentle = sum(w * soft.loss(z, y) for w, z in ((1.5, final), (0.25, first), (0.25, second)))
            alone = epoch == 0 and variant == "code"
            # The published exits are untouched in that epoch; here weight decay reaches them, by gradients of 0.
            descend(F.cross_entropy(final, y) + 0 * hard if alone else 0.5 * hard + 0.5 * gentle)

    compare({"name": "ols_deep", "variant": variant, "head": head}, twin, place)


def log(logits: Tensor, clamp: float = 0.0) -> Tensor:
    return logits.softmax(1).clamp(clamp, 1 - clamp).log() if clamp else logits.log_softmax(1)


def sce(logits: Tensor, y: Tensor) -> Tensor:
    """Wang et al. 2019: 6 CE + 0.1 reverse CE, log 0 in the label being log 1e-4."""
    reverse = -(logits.softmax(1) * F.one_hot(y, K).clamp(min=1e-4).log()).sum(1).mean()
    return 6 * F.cross_entropy(logits, y) + 0.1 * reverse


def sce_code(logits: Tensor, y: Tensor) -> Tensor:
    """The OLS code for CIFAR-10."""
    p, h = logits.softmax(1).clamp(1e-7, 1), F.one_hot(y, K).double().clamp(1e-4, 1)
    return 0.1 * -(h * p.log()).sum(1).mean() + 1.0 * -(p * h.log()).sum(1).mean()


def gce(logits: Tensor, y: Tensor) -> Tensor:
    p = logits.softmax(1)[torch.arange(len(y)), y]
    return ((1 - p**0.7) / 0.7).mean()


def joint(logits: Tensor, y: Tensor) -> Tensor:
    p = logits.softmax(1)
    prior = -(1 / K * p.mean(0).log()).sum()
    entropy = -(p * p.log()).sum(1).mean()
    return F.cross_entropy(logits, y) + 1.2 * prior + 0.8 * entropy


def bootstrap_soft(logits: Tensor, y: Tensor) -> Tensor:
    p = logits.softmax(1).clamp(1e-7, 1 - 1e-7)
    return -((0.95 * F.one_hot(y, K) + 0.05 * p) * p.log()).sum(1).mean()


def bootstrap_hard(logits: Tensor, y: Tensor) -> Tensor:
    p = logits.softmax(1).clamp(1e-7, 1 - 1e-7)
    return -((0.8 * F.one_hot(y, K) + 0.2 * F.one_hot(p.argmax(1), K)) * p.log()).sum(1).mean()


def symmetric(rate: float) -> Tensor:
    return torch.full((K, K), rate / (K - 1), dtype=torch.float64).fill_diagonal_(1 - rate)


def forward(logits: Tensor, y: Tensor) -> Tensor:
    return F.nll_loss((logits.softmax(1) @ symmetric(0.3)).log(), y)


def backward(logits: Tensor, y: Tensor) -> Tensor:
    return -(torch.linalg.inv(symmetric(0.1))[y] * logits.log_softmax(1)).sum(1).mean()


LOSSES: dict[str, tuple[dict[str, Any], Callable[[Tensor, Tensor], Tensor]]] = {
    "sce": ({"name": "sce"}, sce),
    "sce-code": ({"name": "sce", "forward": 0.1, "reverse": 1.0, "variant": "code"}, sce_code),
    "gce": ({"name": "gce"}, gce),
    "joint": ({"name": "joint"}, joint),
    "bootstrap_soft": ({"name": "bootstrap_soft"}, bootstrap_soft),
    "bootstrap_hard": ({"name": "bootstrap_hard"}, bootstrap_hard),
    "forward": ({"name": "forward", "noise": {"name": "symmetric", "rate": 0.3}}, forward),
    "backward": ({"name": "backward", "noise": {"name": "symmetric", "rate": 0.1}}, backward),
}


@pytest.mark.parametrize("name", LOSSES)
def test_comparison_losses(place: Path, name: str) -> None:
    config, loss = LOSSES[name]

    def twin(student: nn.Module, epochs: list[list[Batch]]) -> None:
        for _, batch, descend in steps(student, epochs):
            descend(loss(student.network(batch.images), batch.labels))

    compare(config, twin, place)


@pytest.mark.parametrize("name", ["forward", "backward"])
def test_estimated_noise(place: Path, name: str) -> None:
    """Patrini et al. 2017, after two epochs of cross-entropy: row i is what the surest sample of class i got."""

    def twin(student: nn.Module, epochs: list[list[Batch]]) -> None:
        seen: list[Tensor] = []
        for epoch, batch, descend in steps(student, epochs):
            logits, y = student.network(batch.images), batch.labels
            if epoch < 2:
                seen += logits.detach().softmax(1) if epoch == 1 else []
                descend(F.cross_entropy(logits, y))
                continue
            noise = torch.stack([max(seen, key=lambda p: float(p[i])) for i in range(K)])
            right = F.nll_loss((logits.softmax(1) @ noise).log(), y)
            back = -(torch.linalg.inv(noise)[y] * logits.log_softmax(1)).sum(1).mean()
            descend(right if name == "forward" else back)

    compare({"name": name, "noise": {"name": "estimated", "epochs": 2}}, twin, place)


@pytest.mark.parametrize(("of", "variant"), [("probabilities", "paper"), ("logits", "code")])
def test_pairwise_confusion(place: Path, of: str, variant: str) -> None:
    def twin(student: nn.Module, epochs: list[list[Batch]]) -> None:
        for epoch, batch, descend in steps(student, epochs):
            logits = student.network(batch.images)
            left, right = (logits.softmax(1) if of == "probabilities" else logits).chunk(2)
            dim = {"paper": 1, "code": 0}[variant]
            confusion = (left - right).pow(2).sum(dim).sqrt().sum() / len(logits)
            descend(F.cross_entropy(logits, batch.labels) + 0.5 * (epoch >= 1) * confusion)

    compare({"name": "pairwise_confusion", "weight": 0.5, "of": of, "variant": variant, "from_epoch": 1}, twin, place)


def test_disturbed_labels(place: Path) -> None:
    """Xie et al. 2016: drawn anew in every epoch; the draws themselves are the project's, as they must be."""

    def twin(student: nn.Module, epochs: list[list[Batch]]) -> None:
        for epoch, batch, descend in steps(student, epochs):
            chance, shift = torch.from_numpy(uniforms(0, epoch, batch.index.numpy(), 2, 202)).T
            labels = torch.where(chance < 0.5, (batch.labels + (K * shift).long()) % K, batch.labels)
            descend(F.cross_entropy(student.network(batch.images), labels))

    compare({"name": "disturb", "rate": 0.5}, twin, place)
