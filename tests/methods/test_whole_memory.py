"""Self-distillation as its authors would write it: what is remembered of whom, and when it is written and read."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsdali.batch import Batch
from tests.methods.whole_runs import EPOCHS, compare, steps

ALPHA = 0.8


def soft_ce(logits: Tensor, target: Tensor) -> Tensor:
    return -(target * logits.log_softmax(1)).sum(1).mean()


def alpha_of(epoch: int) -> float:
    return ALPHA * (epoch + 1) / EPOCHS


def kl(teacher: Tensor, logits: Tensor, t: float) -> Tensor:
    return t * t * F.kl_div((logits / t).log_softmax(1), (teacher / t).softmax(1), reduction="batchmean")


def top2(p: Tensor) -> Tensor:
    """The two greatest in half precision; what is left of 1 spread over the others."""
    kept = torch.zeros_like(p)
    for row, old in zip(kept, p, strict=True):
        for k in old.argsort(descending=True)[:2]:
            row[k] = old[k].half().double()
        row[row == 0] = (1 - row.sum()) / (len(row) - 2)
    return kept


@pytest.mark.parametrize(
    ("form", "stored", "micro"),
    [
        ({}, lambda p: p.float().double(), 8),
        ({}, lambda p: p.float().double(), 3),
        ({"history": "dense16"}, lambda p: p.half().double(), 8),
        ({"history": "topk", "keep": 2}, top2, 8),
    ],
)
def test_pskd_with_a_memory(form: dict[str, Any], stored: Any, micro: int, place: Path) -> None:
    """What a sample's last visit predicted in training mode, before that step; in the first epoch its label."""

    def twin(student: nn.Module, epochs: list[list[Batch]]) -> None:
        history: dict[int, Tensor] = {}
        for epoch, batch, descend in steps(student, epochs):
            onehot = F.one_hot(batch.labels, 5).double()
            rows = zip(batch.index.tolist(), onehot, strict=True)
            past = torch.stack([history.get(i, y) for i, y in rows])
            logits = torch.cat([student.network(images) for images in batch.images.split(micro)])
            descend(soft_ce(logits, (1 - alpha_of(epoch)) * onehot + alpha_of(epoch) * past))
            history.update(zip(batch.index.tolist(), stored(logits.detach().softmax(1)), strict=True))

    compare({"name": "pskd", "alpha": ALPHA, **form}, twin, place, micro_batch=micro)


def test_pskd_from_the_network_of_the_epoch_before(place: Path) -> None:
    def twin(student: nn.Module, epochs: list[list[Batch]]) -> None:
        before: nn.Module | None = None
        seen = 0
        for epoch, batch, descend in steps(student, epochs):
            if epoch > seen:
                before, seen = copy.deepcopy(student.network).eval(), epoch
            target = F.one_hot(batch.labels, 5).double()
            if before is not None:
                with torch.no_grad():
                    past = before(batch.images).softmax(1)
                target = (1 - alpha_of(epoch)) * target + alpha_of(epoch) * past
            descend(soft_ce(student.network(batch.images), target))

    compare({"name": "pskd", "alpha": ALPHA, "history": "network"}, twin, place)


def test_cskd(place: Path) -> None:
    """Anchors first, then their partners: both halves move BatchNorm's running statistics, each on its own."""

    def twin(student: nn.Module, epochs: list[list[Batch]]) -> None:
        for _, batch, descend in steps(student, epochs):
            assert torch.equal(batch.labels[0::2], batch.labels[1::2])
            logits = student.network(batch.images[0::2])
            with torch.no_grad():
                partner = student.network(batch.images[1::2])
            descend(F.cross_entropy(logits, batch.labels[0::2]) + 3.0 * kl(partner, logits, 4.0))

    compare({"name": "cskd", "temperature": 4.0, "weight": 3.0}, twin, place)


def virtual(labels: Tensor, t: float) -> Tensor:
    u = torch.full((len(labels), 5), 0.01 / 4)
    u[torch.arange(len(labels)), labels] = 0.99
    return (u / t).softmax(1)


def test_tfkd_from_the_virtual_teacher_as_its_code_has_it(place: Path) -> None:
    def twin(student: nn.Module, epochs: list[list[Batch]]) -> None:
        for _, batch, descend in steps(student, epochs):
            logits = student.network(batch.images)
            kd = 100 * F.kl_div(logits.log_softmax(1), virtual(batch.labels, 20.0), reduction="sum") / (8 * 5)
            descend(0.9 * F.cross_entropy(logits, batch.labels) + 0.1 * kd)

    form = {"form": "virtual", "alpha": 0.1, "temperature": 20.0, "variant": "code", "multiplier": 100.0}
    compare({"name": "tfkd", **form}, twin, place)


def test_tfkd_from_the_virtual_teacher_as_its_paper_has_it(place: Path) -> None:
    def twin(student: nn.Module, epochs: list[list[Batch]]) -> None:
        for _, batch, descend in steps(student, epochs):
            logits = student.network(batch.images)
            q, t = virtual(batch.labels, 20.0), 20.0
            kd = t * t * F.kl_div((logits / t).log_softmax(1), q, reduction="batchmean")
            descend(0.7 * F.cross_entropy(logits, batch.labels) + 0.3 * kd)

    compare({"name": "tfkd", "form": "virtual", "alpha": 0.3, "temperature": 20.0}, twin, place)


@pytest.mark.parametrize(("variant", "weight"), [("paper", 36.0), ("code", 36.0 * 2 / 5)])
def test_tfkd_from_an_earlier_network(variant: str, weight: float, folder: Path, place: Path) -> None:
    """weight: T^2 by the paper; by the code the mean runs over the classes too, and a multiplier is there."""
    path = folder / "teacher/checkpoints/best.pt"

    def twin(student: nn.Module, epochs: list[list[Batch]]) -> None:
        teacher = copy.deepcopy(student.network).float().eval()
        saved = torch.load(path, weights_only=True)["parts"]["student"]
        teacher.load_state_dict({name.removeprefix("network."): x for name, x in saved.items()})
        for _, batch, descend in steps(student, epochs):
            with torch.no_grad():
                q = (teacher(batch.images.float()).double() / 6).softmax(1)
            logits = student.network(batch.images)
            kd = weight * F.kl_div((logits / 6).log_softmax(1), q, reduction="batchmean")
            descend(0.05 * F.cross_entropy(logits, batch.labels) + 0.95 * kd)

    form = {"form": "self", "alpha": 0.95, "temperature": 6.0, "variant": variant}
    form |= {"multiplier": 2.0} if variant == "code" else {}
    compare({"name": "tfkd", **form, "teacher": {"source": "checkpoint", "path": str(path)}}, twin, place)


def test_bake(place: Path) -> None:
    def twin(student: nn.Module, epochs: list[list[Batch]]) -> None:
        head = student.network.classifier
        for _, batch, descend in steps(student, epochs):
            held: list[Tensor] = []
            hook = head.register_forward_pre_hook(lambda _, inputs, held=held: held.append(inputs[0]))
            logits = student.network(batch.images)
            hook.remove()
            with torch.no_grad():
                f = F.normalize(held[0].flatten(1))
                n = len(f)
                a = (f @ f.T - 1e9 * torch.eye(n)).softmax(1)
                target = 0.1 * torch.linalg.inv(torch.eye(n) - 0.9 * a) @ (logits / 4).softmax(1)
            term = F.kl_div((logits / 4).log_softmax(1), target, reduction="batchmean")
            descend(F.cross_entropy(logits, batch.labels) + 16 * term)

    compare({"name": "bake", "temperature": 4.0, "propagation": 0.9}, twin, place)
