"""Multi-level distillation with two views: the published code's formula, the loader's views, resume and ranks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from lsdali.batch import Batch
from lsdali.clock import Clock, PerEpoch
from lsdali.errors import UserError
from lsdali.methods import METHODS
from lsdali.methods.base import MethodContext
from lsdali.models.student import Outputs
from lsdali.testing.contract import check_loss, check_resume, check_weights, save_weights
from tests.methods.trainers import trainer_for, with_teacher
from tests.ranks import OnRanks

CONFIG: dict[str, Any] = {
    "name": "multi_level",
    "views": 2,
    "variant": "code",
    "temperatures": [4.0, 3.0, 5.0, 2.0, 6.0],
    "teacher": {"source": "checkpoint", "path": "TEACHER"},
}
CLOCK = Clock(0, PerEpoch(10), 2)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def published(student: np.ndarray, teacher: np.ndarray, labels: np.ndarray, variant: str) -> dict[str, float]:
    """KD_ours.py with its temperatures 4, 3, 5, 2, 6, written with loops over samples and pairs."""
    n = len(labels) // 2
    s, t = (student[:n], student[n:]), (teacher[:n], teacher[n:])

    def kl(view: int, at: float) -> float:
        p, q = softmax(t[view] / at), softmax(s[view] / at)
        return at**2 * float(np.mean([sum(a * np.log(a / b) for a, b in zip(x, y)) for x, y in zip(p, q)]))

    def gram(at: float, by: str) -> float:
        p, q = softmax(t[0] / at), softmax(s[0] / at)
        rows = (p, q) if by == "samples" else (p.T, q.T)
        count = len(rows[0])
        apart = [(x @ y - u @ v) ** 2 for x, u in zip(*rows) for y, v in zip(*rows)]
        return float(np.sum(apart) / count)

    sure = softmax(t[0])
    confidence, by_class = sure.max(1), sure.sum(0)
    share = np.mean(confidence <= np.percentile(confidence, 50))
    share_of_classes = np.mean(by_class <= np.percentile(by_class, 50))
    temperatures = (4.0, 3.0, 5.0, 2.0, 6.0)
    strong = {at: int(variant == "paper" or at in (4.0, 3.0, 5.0)) for at in temperatures}
    ce = sum(float(np.mean([-np.log(softmax(s[v])[i, labels[i]]) for i in range(n)])) for v in (0, 1))
    return {
        "ce": ce,
        "kd": sum(share * kl(0, at) + kl(strong[at], at) for at in temperatures),
        "batch": share * sum(gram(at, "samples") for at in temperatures),
        "class": share_of_classes * sum(gram(at, "classes") for at in temperatures),
    }


@pytest.mark.parametrize("variant", ["paper", "code"])
@pytest.mark.parametrize("seed", range(10))
def test_the_loss_is_that_of_the_published_code(seed: int, variant: str) -> None:
    rng = np.random.default_rng(seed)
    student, teacher = (3 * rng.standard_normal((10, 7)) for _ in "ab")
    labels = np.tile(rng.integers(0, 7, 5), 2)

    class Table:
        classes = 7

        def __call__(self, images: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(teacher)

    kind = METHODS["multi_level"]
    config = kind.Config.model_validate({**CONFIG, "variant": variant})
    needs = MethodContext(7, 10, {}, torch.device("cpu"), 0, lambda _: Table())  # type: ignore[arg-type, return-value]
    method = kind(config, needs)
    logits = torch.from_numpy(student)
    batch = Batch(logits, torch.from_numpy(labels), torch.arange(10), torch.ones(10, dtype=torch.bool))
    loss = method.loss(lambda x: Outputs(x, x, {}), batch, CLOCK)
    expected = published(student, teacher, labels, variant)
    for name, value in expected.items():
        assert loss.terms[name].item() == pytest.approx(value, rel=1e-9), name
    total = 0.1 * expected["ce"] + 0.9 * (expected["kd"] + expected["batch"] + expected["class"])
    assert loss.total.item() == pytest.approx(total, rel=1e-9)


def others(folder: Path) -> dict[str, Any]:
    """A recipe's data with a second, strongly augmented copy of each image."""
    augment = [{"name": "rand_augment", "m": 20, "copies": "later"}]
    return {
        "data": {
            "name": "folder",
            "root": str(folder / "images"),
            "train": {"crop": "random_resized", "size": 16, "repeats": 2, "augment": augment},
            "eval": {"resize": 16, "size": 16},
            "threads": 1,
        }
    }


def test_only_the_second_view_is_augmented(folder: Path, place: Path) -> None:
    """The first half of a batch is that of the same recipe without augmentation, the second is not."""
    plain = others(folder)
    plain["data"]["train"]["augment"] = []
    found, bare = (
        next(trainer_for({"name": "ce"}, place / name, **data).train.epoch(0))
        for name, data in (("augmented", others(folder)), ("plain", plain))
    )
    assert torch.equal(found.index, bare.index)
    assert torch.equal(found.index[:4], found.index[4:])
    assert torch.equal(found.images[:4], bare.images[:4])
    assert sum(not torch.equal(a, b) for a, b in zip(found.images[4:], bare.images[4:], strict=True)) >= 3


def test_it_keeps_the_promises_of_methods(folder: Path, place: Path) -> None:
    config = with_teacher(CONFIG, folder)
    check_loss(config, place / "loss", others(folder))


@pytest.mark.ranks
def test_resume_and_ranks(folder: Path, place: Path, on_ranks: OnRanks) -> None:
    """Two ranks hold a view each, and train as one; a run goes on exactly."""
    config, data = with_teacher(CONFIG, folder), others(folder)
    save_weights(config, place / "weights", data)
    on_ranks(2, check_weights, config, place / "weights", data)
    on_ranks(2, check_resume, config, place / "resume", data)


def test_what_does_not_fit_is_refused(folder: Path, place: Path) -> None:
    config = with_teacher(CONFIG, folder)
    with pytest.raises(UserError, match=r"'multi_level' reads 2 views of each image: set data\.train\.repeats to 2"):
        trainer_for(config, place / "one")
    with pytest.raises(UserError, match="micro_batch parts the 2 views that the method 'multi_level' reads"):
        trainer_for(config, place / "micro", micro_batch=4, **others(folder))
    with pytest.raises(ValidationError, match="variant: code is about the second view"):
        METHODS["multi_level"].Config.model_validate({**CONFIG, "views": 1})
    alone = others(folder)
    del alone["data"]["train"]["repeats"]
    with pytest.raises(UserError, match="copies: later leaves out the only copy of every image"):
        trainer_for({"name": "ce"}, place / "alone", **alone)
