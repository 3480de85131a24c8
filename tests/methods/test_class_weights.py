"""Class weights: torch's `weight=`, scikit-learn's and Cui et al.'s counts, one loss on any number of ranks."""

import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import nn

from lsdali import functional as f
from lsdali.errors import UserError
from lsdali.methods import METHODS
from lsdali.methods.shared.class_weights import (
    EffectiveNumber,
    GivenWeights,
    InverseFrequency,
    WeightsFile,
    class_weights,
)
from lsdali.testing.contract import check_resume
from tests.harness import make_images, tiny
from tests.methods.trainers import CONFIGS, named, trainer_for, trainer_in_float64, with_teacher
from tests.ranks import OnRanks

WEIGHTS: dict[str, Any] = {"name": "given", "values": [0.5, 2.0, 7.0, 1.0, 3.0]}
PLAIN = [{"name": "ce"}, {"name": "ls", "smoothing": 0.2}, {"name": "gce"}]


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_loss_is_torchs_with_weights(smoothing: float) -> None:
    torch.manual_seed(0)
    logits = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    labels, weight = torch.randint(4, (9,)), torch.tensor([0.3, 1.0, 5.0, 2.0], dtype=torch.float64)
    expected = nn.CrossEntropyLoss(weight=weight, label_smoothing=smoothing)(logits, labels)
    scale = weight / weight[labels].mean()
    found = f.label_smoothing(logits, labels, smoothing, "all", scale)
    torch.testing.assert_close(found, expected)
    gradients = (torch.autograd.grad(loss, logits)[0] for loss in (found, expected))
    torch.testing.assert_close(*gradients)
    if not smoothing:
        torch.testing.assert_close(f.cross_entropy(logits, labels, scale), expected)


LOSSES: dict[str, Any] = {
    "sce": lambda z, y, w: f.symmetric_cross_entropy(z, y, 6.0, 0.1, 1e-4, w),
    "sce_code": lambda z, y, w: f.clamped_symmetric_cross_entropy(z, y, 6.0, 0.1, 1e-4, 1e-7, w),
    "gce": lambda z, y, w: f.generalised_cross_entropy(z, y, 0.7, w),
    "bootstrap_soft": lambda z, y, w: f.soft_bootstrap(z, y, 0.9, None, w),
    "bootstrap_hard": lambda z, y, w: f.hard_bootstrap(z, y, 0.9, None, w),
    "ls_others": lambda z, y, w: f.label_smoothing(z, y, 0.2, "others", w),
}


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "ls_others"])
def test_other_losses_are_weighted_means_of_single_samples(name: str) -> None:
    torch.manual_seed(1)
    logits, labels = torch.randn(8, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 2, 2, 1, 0, 2])
    weight = torch.tensor([0.3, 1.0, 5.0], dtype=torch.float64)
    single = [float(LOSSES[name](logits[i : i + 1], labels[i : i + 1], None)) for i in range(8)]
    expected = np.average(single, weights=weight[labels].numpy())
    found = LOSSES[name](logits, labels, weight / weight[labels].mean())
    assert float(found) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_equal_weights_change_nothing(name: str) -> None:
    torch.manual_seed(2)
    logits, labels = torch.randn(8, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 2, 2, 1, 0, 2])
    torch.testing.assert_close(LOSSES[name](logits, labels, torch.ones(3)), LOSSES[name](logits, labels, None))


def test_weights_of_counts() -> None:
    labels = np.repeat(np.arange(3), [10, 1, 4])
    found = class_weights(InverseFrequency(), labels, "abc", 3)
    np.testing.assert_allclose(found, compute_class_weight("balanced", classes=np.arange(3), y=labels))
    found = class_weights(EffectiveNumber(beta=0.9), labels, "abc", 3)
    numbers = [sum(0.9**k for k in range(n)) for n in (10, 1, 4)]  # what the effective number is a short form of
    np.testing.assert_allclose(found[0] / found[1], numbers[1] / numbers[0])
    np.testing.assert_allclose(found[2] / found[1], numbers[1] / numbers[2])
    assert found.sum() == pytest.approx(3)


def test_weights_of_files(tmp_path: Path) -> None:
    np.save(tmp_path / "w.npy", [1, 2, 3])
    (tmp_path / "w.txt").write_text("1\n2\n3\n")
    (tmp_path / "w.json").write_text("[1, 2, 3]")
    for name in ("w.npy", "w.txt", "w.json"):
        found = class_weights(WeightsFile(file=str(tmp_path / name)), np.arange(3), "abc", 3)
        assert found.tolist() == [1, 2, 3]
    (tmp_path / "w.txt").write_text("heavy\n")
    with pytest.raises(UserError, match=r"class_weights.file: .*w.txt cannot be read as numbers"):
        class_weights(WeightsFile(file=str(tmp_path / "w.txt")), np.arange(3), "abc", 3)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError) as caught:
        class_weights(GivenWeights(values=(1.0, 2.0)), np.arange(3), "abc", 3)
    assert str(caught.value) == "class_weights: 2 weights are given for 3 classes"
    with pytest.raises(UserError, match="class b has no training image to weigh it by"):
        class_weights(InverseFrequency(), np.array([0, 2]), "abc", 3)


@pytest.mark.parametrize("config", [c for c in CONFIGS if not METHODS[c["name"]].weighs_classes], ids=named)
def test_methods_without_a_rule_refuse_by_name(config: Any, folder: Path, place: Path) -> None:
    with pytest.raises(UserError, match=f"class_weights and the method '{config['name']}' do not go together"):
        trainer_for(with_teacher(config, folder), place, class_weights=WEIGHTS)


ONE_SAMPLE_AT_A_TIME = [c for c in CONFIGS if METHODS[c["name"]].weighs_classes and not c.get("smoothing")]
"""Torch weighs smoothed parts by the classes that they go to, not by the label's."""


@pytest.mark.parametrize("config", ONE_SAMPLE_AT_A_TIME, ids=named)
def test_each_sample_counts_as_its_class_weighs(config: Any, folder: Path, place: Path) -> None:
    trainer = trainer_in_float64(config, place, class_weights=WEIGHTS)
    trainer.student.eval()
    batch = next(trainer.train.epoch(0))
    with torch.no_grad():
        found = float(trainer.method.loss(trainer.forward, batch, trainer.clock).total)
        trainer.method.class_weights = None
        parts = [batch.part(i, i + 1) for i in range(len(batch))]
        single = [float(trainer.method.loss(trainer.forward, part, trainer.clock).total) for part in parts]
    weights = np.array(WEIGHTS["values"])[batch.labels.numpy()]
    assert found == pytest.approx(np.average(single, weights=weights), rel=1e-9)


COUNTS = (14, 3, 14, 9, 6)


@pytest.fixture
def uneven(folder: Path, place: Path) -> Path:
    """A folder with training images of classes of unequal size, 5 steps of 8 or 9 an epoch."""
    make_images(place / "images", train=max(COUNTS))
    for label, count in enumerate(COUNTS):
        for n in range(count, max(COUNTS)):
            (place / f"images/train/class{label}/{n}.png").unlink()
    return place


def balanced(images: Path, batch: int, weights: Any) -> dict[str, Any]:
    """Return the parts of a recipe with both cures of imbalance."""
    data = tiny("ce", images / "images", images)["data"]
    return {"batch": batch, "data": {**data, "order": "balanced"}, "class_weights": weights}


def weights_after(config: Any, base: Path, batch: int) -> torch.Tensor:
    trainer = trainer_in_float64(config, base / "run", **balanced(base, batch, WEIGHTS))
    for module in trainer.student.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train = types.MethodType(lambda self, mode=True: self, module.eval())  # type: ignore[method-assign]
    for batch_ in trainer.train.epoch(0):
        trainer.step(batch_)
        trainer.clock = trainer.clock.tick()
    return torch.cat([p.detach().flatten() for p in trainer.student.parameters()])


def check_weights(config: Any, base: Path, batch: int) -> None:
    one = torch.load(base / "one.pt")
    away = torch.dist(weights_after(config, base, batch), one) / one.norm()
    assert away < 1e-12, f"{config}: {away:.1e} away"


@pytest.mark.ranks
@pytest.mark.parametrize(("world", "batch"), [(2, 8), (3, 9)])
def test_ranks_share_one_weighted_mean(on_ranks: OnRanks, world: int, batch: int, uneven: Path) -> None:
    for config in PLAIN:
        torch.save(weights_after(config, uneven, batch), uneven / "one.pt")
        on_ranks(world, check_weights, config, uneven, batch)


def test_resume_is_exact(uneven: Path) -> None:
    check_resume({"name": "ce"}, uneven, balanced(uneven, 8, {"name": "inverse"}))


@pytest.mark.ranks
def test_resume_is_exact_on_three_ranks(on_ranks: OnRanks, uneven: Path) -> None:
    on_ranks(3, check_resume, {"name": "ls"}, uneven, balanced(uneven, 9, WEIGHTS))


def test_methods_that_need_each_sample_once_refuse_the_balanced_order(folder: Path, place: Path) -> None:
    data = tiny("ce", folder / "images", place)["data"]
    for name, needs in (("pskd", "each sample once in an epoch"), ("cskd", "an order of its own")):
        with pytest.raises(UserError) as caught:
            trainer_for({"name": name}, place, data={**data, "order": "balanced"})
        assert str(caught.value) == (
            f"data.order: balanced and the method '{name}' do not go together: it needs {needs}; leave the key out"
        )


def test_class_pairs_give_every_image_a_friend_of_its_class(folder: Path, place: Path) -> None:
    """For ZLS with `ranking: friends`: neighbours of a batch have one label."""
    data = tiny("ce", folder / "images", place)["data"]
    config = {"name": "zls", "ranking": "friends"}
    trainer = trainer_for(config, place, data={**data, "order": "class_pairs"})
    seen = []
    for batch in trainer.train.epoch(0):
        assert torch.equal(batch.labels[::2], batch.labels[1::2])
        assert trainer.step(batch)["loss"].isfinite()
        trainer.clock = trainer.clock.tick()
        seen += batch.index.tolist()
    assert len(set(seen)) == len(seen) > 0
    with pytest.raises(UserError, match=r"data\.order: class_pairs and the method 'pskd' do not go together"):
        trainer_for({"name": "pskd"}, place.with_name("other"), data={**data, "order": "class_pairs"})
