"""Zipf's label smoothing, exits and mixed images as their authors train them: one sample and one class at a time."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression
from scipy.stats import rankdata
from torch import Tensor, nn

from lsdali.batch import Batch
from lsdali.errors import UserError
from lsdali.functional import off_label_target, soft_rank, unbiased_zipf_weights
from lsdali.methods.shared.distributions import ExponentialDecay, rank_weights
from lsdali.models.aux_heads import DenseVotes
from lsdali.models.teacher import network_from_checkpoint
from tests.harness import make_images
from tests.methods.trainers import trainer_for, trainer_in_float64
from tests.methods.whole_runs import compare, steps

Ranks = NDArray[np.float64]
K = 5  # classes of the test's images


def stages(network: Any, images: Tensor) -> list[Tensor]:
    """The map after every stage."""
    maps = [network.stem(images)]
    for stage in network.stages.values():
        maps.append(stage(maps[-1]))
    return maps[1:]


def forward(network: Any, images: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
    """Maps of all stages, pooled features and logits."""
    maps = stages(network, images)
    features = maps[-1].mean((2, 3))
    return maps, features, network.classifier(features)


@torch.no_grad()
def places(maps: Tensor, linear: nn.Linear, upsample: str | None = None) -> Tensor:
    """[n, L]: the class that a linear classifier takes at every place of the maps."""
    if upsample:
        maps = F.interpolate(maps, scale_factor=2, mode=upsample, align_corners=False)
    return linear(maps.permute(0, 2, 3, 1)).argmax(-1).flatten(1)


def counts(votes: Tensor) -> Ranks:
    return np.stack([np.bincount(row, minlength=K) for row in votes.numpy()]).astype(float)


def ranks(scores: Ranks) -> Ranks:
    """The smallest of those that tied classes share, 1 for the greatest score."""
    return np.stack([rankdata(-row, "min") for row in scores]).astype(float)


def soft_ranks(scores: Ranks) -> Ranks:
    """Blondel et al. 2020: -score / 0.5 projected on the convex hull of all orders of 1 to K."""
    out = np.empty_like(scores)
    for row, score in zip(out, scores, strict=True):
        z = -score / 0.5
        order = np.argsort(-z)
        row[order] = z[order] - isotonic_regression(z[order] - np.arange(K, 0, -1), increasing=False).x
    return out


def target(weights: Ranks, labels: Tensor) -> Tensor:
    """[n, K - 1]: weights without the label's, as a distribution."""
    rows = [np.delete(row, label) for row, label in zip(weights, labels.tolist(), strict=True)]
    return torch.tensor(np.stack([row / row.sum() for row in rows]), dtype=torch.float64)


def divergences(logits: Tensor, weights: Ranks, labels: Tensor) -> Tensor:
    """[n]: KL from the softmax without the label's logit to the target."""
    others = logits[F.one_hot(labels, K) == 0].view(-1, K - 1)
    return F.kl_div(others.log_softmax(1), target(weights, labels), reduction="none").sum(1)


def unbiased(power: float) -> Callable[[Ranks], Ranks]:
    """The integral of x^-power over the cells of [0.001, 1] that the tied classes have, shared among them."""
    left, width = 0.001, 0.999 / K

    def weights(rank: Ranks) -> Ranks:
        ties = (rank[:, :, None] == rank[:, None]).sum(2)
        a, e = left + (rank - 1) * width, left + (rank + ties - 1) * width
        return (np.log(e / a) if power == 1 else a ** (1 - power) - e ** (1 - power)) / ties

    return weights


SLOPE = 2 * (1 - K * 0.05) / (K * (K - 1))
DISTRIBUTIONS: dict[str, tuple[dict[str, Any], Callable[[Ranks], Ranks]]] = {
    "default": ({}, lambda rank: 1 / rank),
    "power": ({"distribution": {"name": "rank_zipf", "power": 2.0}}, lambda rank: rank**-2),
    "constant": ({"distribution": {"name": "constant"}}, np.ones_like),
    "linear": (
        {"distribution": {"name": "linear_decay", "smallest_prob": 0.05}},
        lambda rank: (K - rank) * SLOPE + 0.05,
    ),
    "exponential": (
        {"distribution": {"name": "exponential_decay", "exp_lambda": 0.5}},
        lambda rank: np.exp(-0.5 * (rank - 1)),
    ),
    "unbiased": ({"distribution": {"name": "unbiased_zipf"}}, unbiased(1)),
    "unbiased2": ({"distribution": {"name": "unbiased_zipf", "power": 2.0}}, unbiased(2)),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_dense_votes_and_every_distribution(place: Path, name: str) -> None:
    config, weights = DISTRIBUTIONS[name]

    def twin(student: Any, epochs: list[list[Batch]]) -> None:
        for _, batch, descend in steps(student, epochs):
            maps, _, logits = forward(student.network, batch.images)
            votes = places(maps[-1], student.network.classifier)
            kl = divergences(logits, weights(ranks(counts(votes))), batch.labels)
            descend(F.cross_entropy(logits, batch.labels) + kl.mean())

    compare({"name": "zls", **config}, twin, place)


@pytest.mark.parametrize("upsample", ["bilinear", "bicubic"])
def test_upsampled_votes_of_right_samples(place: Path, upsample: str) -> None:
    def twin(student: Any, epochs: list[list[Batch]]) -> None:
        for _, batch, descend in steps(student, epochs):
            maps, _, logits = forward(student.network, batch.images)
            votes = places(maps[-1], student.network.classifier, upsample)
            right = (logits.argmax(1) == batch.labels).double()
            kl = divergences(logits, 1 / ranks(counts(votes)), batch.labels)
            term = (kl * right).sum() / right.sum() if right.any() else torch.tensor(0.0)
            descend(F.cross_entropy(logits, batch.labels) + 2 * term)

    compare({"name": "zls", "weight": 2.0, "upsample": upsample, "samples": "correct"}, twin, place)


@pytest.mark.parametrize("ranking", ["pooled", "friends"])
@pytest.mark.parametrize("soft", [False, True])
def test_ranks_of_pooled_logits(place: Path, ranking: str, soft: bool) -> None:
    def twin(student: Any, epochs: list[list[Batch]]) -> None:
        for _, batch, descend in steps(student, epochs):
            _, features, logits = forward(student.network, batch.images)
            scores = logits.detach()
            if ranking == "friends":
                apart = torch.cdist(features.detach(), features.detach()).fill_diagonal_(1e6)
                scores = scores[apart.argmin(1)]
            of = soft_ranks if soft else ranks
            kl = divergences(logits, 1 / of(scores.double().numpy()), batch.labels)
            descend(F.cross_entropy(logits, batch.labels) + kl.mean())

    compare({"name": "zls", "ranking": ranking, "soft": {"strength": 0.5} if soft else None}, twin, place)


@pytest.mark.parametrize("exits", [1, 2])
@pytest.mark.parametrize("criterion", ["ce", "ls", "ls_zipf"])
def test_votes_and_heads_of_earlier_stages(place: Path, exits: int, criterion: str) -> None:
    def loss(logits: Tensor, labels: Tensor, weights: Ranks) -> Tensor:
        if criterion == "ce":
            return F.cross_entropy(logits, labels)
        hot = F.one_hot(labels, K)
        rest = np.ones_like(weights) if criterion == "ls" else weights
        spread = torch.zeros_like(logits.detach()).masked_scatter(hot == 0, target(rest, labels))
        return -((0.7 * hot + 0.3 * spread) * logits.log_softmax(1)).sum(1).mean()

    def twin(student: Any, epochs: list[list[Batch]]) -> None:
        heads = [student.aux_heads[f"exit_stage{stage}"].linear for stage in (3, 2)[:exits]]
        for _, batch, descend in steps(student, epochs):
            maps, _, logits = forward(student.network, batch.images)
            below = [maps[2], maps[1]][:exits]
            votes = [places(maps[-1], student.network.classifier)]
            votes += [places(m, head) for m, head in zip(below, heads, strict=True)]
            weights = 1 / ranks(counts(torch.cat(votes, 1)))
            early = [head(m.mean((2, 3))) for m, head in zip(below, heads, strict=True)]
            total = 0.1 * divergences(logits, weights, batch.labels).mean() + loss(logits, batch.labels, weights)
            descend(total + 0.4 * sum(loss(z, batch.labels, weights) for z in early))

    form = {"name": criterion} if criterion == "ce" else {"name": criterion, "smoothing": 0.3}
    deep = {"exits": exits, "weight": 0.4}
    compare({"name": "zls", "weight": 0.1, "criterion": form, "deep": deep}, twin, place)


@pytest.mark.parametrize("distill", [None, {"weight": 0.7, "temperature": 3.0}])
def test_exits(place: Path, distill: dict[str, float] | None) -> None:
    """Cross-entropy in the first epoch, label smoothing later; the exits learn from the last one's softmax."""

    def twin(student: Any, epochs: list[list[Batch]]) -> None:
        heads = [student.aux_heads[f"exit_stage{stage}"].linear for stage in (3, 2)]
        for epoch, batch, descend in steps(student, epochs):
            a = 0.2 if epoch else 0.0
            maps, _, logits = forward(student.network, batch.images)
            early = [heads[0](maps[2].mean((2, 3))), heads[1](maps[1].mean((2, 3)))]
            total = 1.5 * F.cross_entropy(logits, batch.labels, label_smoothing=a)
            for z in early:
                total += 0.5 * F.cross_entropy(z, batch.labels, label_smoothing=a)
                if distill:
                    soft = (logits.detach() / 3).softmax(1)
                    total += 0.7 * 9 * F.kl_div((z / 3).log_softmax(1), soft, reduction="batchmean")
            descend(total)

    compare({"name": "exits", "smoothing": 0.2, "hard_epochs": 1, "distill": distill}, twin, place)


def test_micro_batches_add_up(place: Path) -> None:
    """3, 3 and 2 of 8 images: BatchNorm reads each part alone, the gradient is the mean over samples."""

    def twin(student: Any, epochs: list[list[Batch]]) -> None:
        for _, batch, descend in steps(student, epochs):
            total = torch.zeros((), dtype=torch.float64)
            for images, labels in zip(batch.images.split(3), batch.labels.split(3), strict=True):
                maps, _, logits = forward(student.network, images)
                kl = divergences(logits, 1 / ranks(counts(places(maps[-1], student.network.classifier))), labels)
                total += F.cross_entropy(logits, labels, reduction="sum") / 8 + 0.5 * kl.sum() / 8
            descend(total)

    compare({"name": "zls", "weight": 0.5}, twin, place, micro_batch=3)


def test_zipf_with_a_teacher(place: Path) -> None:
    teacher = place.parent / "teacher/checkpoints/best.pt"

    def twin(student: Any, epochs: list[list[Batch]]) -> None:
        guide = network_from_checkpoint(teacher, K)[0].eval()
        for _, batch, descend in steps(student, epochs):
            maps, _, logits = forward(student.network, batch.images)
            kl = divergences(logits, 1 / ranks(counts(places(maps[-1], student.network.classifier))), batch.labels)
            with torch.no_grad():
                soft = (guide(batch.images).double() / 4).softmax(1)
            kd = 16 * F.kl_div((logits / 4).log_softmax(1), soft, reduction="batchmean")
            ce = F.cross_entropy(logits, batch.labels)
            descend(ce + 0.3 * kl.mean() + 2 * (0.6 * kd + 0.4 * ce))

    config = {"name": "zls_kd", "weight": 0.3, "teacher_weight": 2.0, "alpha": 0.6, "temperature": 4.0}
    compare({**config, "teacher": {"source": "checkpoint", "path": str(teacher)}}, twin, place)


MIXES = {"mixup": {"name": "mixup", "alpha": 0.7}, "cutmix": {"name": "cutmix", "probability": 0.5}}
MIXED = {
    "ce": {"name": "ce"},
    "ls": {"name": "ls", "smoothing": 0.3, "mass": "others"},
    "zls": {"name": "zls", "weight": 0.5, "upsample": "bilinear"},
    "kd": {"name": "kd", "temperature": 2.0, "hard": 0.5},
    "ibls": {"name": "ibls", "rule": "ils12", "smoothing": 0.4},
    "pskd": {"name": "pskd", "alpha": 0.9, "history": "network"},
}


def mixed_loss(name: str, logits: Tensor, votes: Tensor, seen: Tensor | None, labels: Tensor, a: float) -> Tensor:
    """[]: the loss of the whole method for one label of each mixed image; `seen` [n, K]: a teacher's softmax."""
    hot, log_p = F.one_hot(labels, K).double(), logits.log_softmax(1)
    soft = hot if seen is None else seen
    match name:
        case "ls":
            soft = 0.7 * hot + 0.3 * (1 - hot) / 4
        case "ibls":
            lost = 0.4 * (soft * hot).sum(1, keepdim=True)
            rest = soft * (1 - hot)
            soft = (1 - lost) * hot + lost * rest / rest.sum(1, keepdim=True)
        case "pskd":
            soft = (1 - a) * hot + a * soft
        case "kd":
            kl = 4 * F.kl_div((logits / 2).log_softmax(1), soft, reduction="batchmean")
            return kl + 0.5 * F.cross_entropy(logits, labels)
        case "zls":
            kl = divergences(logits, 1 / ranks(counts(votes)), labels).mean()
            return F.cross_entropy(logits, labels) + 0.5 * kl
    return -(soft * log_p).sum(1).mean()


@pytest.mark.parametrize(("name", "mix"), [*zip(MIXED, ["mixup"] * 6), ("ce", "cutmix")])
def test_mixed_images(place: Path, name: str, mix: str) -> None:
    teacher = place.parent / "teacher/checkpoints/best.pt"
    whole = trainer_in_float64({"name": "ce"}, place.parent / f"{place.name}whole", epochs=3).train

    def twin(student: Any, epochs: list[list[Batch]]) -> None:
        guide: Any = network_from_checkpoint(teacher, K)[0].eval() if name in ("kd", "ibls") else None
        originals, parted = (batch for epoch in range(3) for batch in whole.epoch(5 * epoch)), 0
        for epoch, batch, descend in steps(student, epochs):
            if name == "pskd" and batch is epochs[epoch][0] and epoch:
                guide = copy.deepcopy(student.network).eval()
            own = next(originals).images
            other, share, partners = own, 1.0, batch.labels
            if batch.mixture is not None:
                parted, share = parted + 1, batch.mixture.lam
                swap = torch.arange(8) ^ 1
                other, partners = own[swap], batch.labels[swap]
            # Every pixel is of both, or of one of both, in the share that the labels have.
            ours, theirs = (batch.images == own), (batch.images == other)
            if mix == "mixup":
                torch.testing.assert_close(batch.images, share * own + (1 - share) * other)
            else:
                assert (ours | theirs).all()
                assert ours.double().mean().item() == pytest.approx(share, abs=0.01)
            with torch.no_grad():
                t = 2.0 if name == "kd" else 1.0
                seen = None if guide is None else (guide(batch.images).double() / t).softmax(1)
            a = 0.9 * (epoch + 1) / 3
            maps, _, logits = forward(student.network, batch.images)
            votes = places(maps[-1], student.network.classifier, "bilinear")
            first, second = (mixed_loss(name, logits, votes, seen, y, a) for y in (batch.labels, partners))
            descend(share * first + (1 - share) * second)
        assert parted == 15 if mix == "mixup" else 0 < parted < 15

    config = dict(MIXED[name])
    if name in ("kd", "ibls"):
        config["teacher"] = {"source": "checkpoint", "path": str(teacher)}
    compare(config, twin, place, mix=MIXES[mix])


@pytest.mark.parametrize("upsample", ["bilinear", "bicubic"])
def test_the_map_is_upsampled_before_a_neck(upsample: Any) -> None:
    """A LayerNorm, as ConvNeXt has it, does not commute with the interpolation."""
    torch.manual_seed(0)
    maps, neck, linear = torch.randn(4, 8, 3, 3), nn.LayerNorm(8), nn.Linear(8, K)
    large = F.interpolate(maps, scale_factor=2, mode=upsample)
    found = DenseVotes(upsample)({"last": maps}, nn.Sequential(neck, linear))
    assert torch.equal(found, linear(neck(large.permute(0, 2, 3, 1))).argmax(-1).flatten(1))


@pytest.mark.parametrize("power", [1 - 1e-6, 1 + 1e-6])
def test_the_integral_has_no_leap_at_power_1(power: float) -> None:
    """The difference of two powers that both are nearly 1 had no digits left."""
    rank = torch.arange(1, 1001)[None]
    found, limit = (unbiased_zipf_weights(rank, torch.ones_like(rank), 1000, p, 0.001, 1.0) for p in (power, 1))
    torch.testing.assert_close(found, limit, rtol=1e-4, atol=0)


@pytest.mark.parametrize("best", [0, 1])
def test_soft_ranks_far_from_1_decay_too(best: int) -> None:
    """All ranks of 1000 near scores lie about 500, where exp(-rank / 2) is 0 in float32; the label is dropped."""
    scores = torch.linspace(0, 4, 1000)[None]
    scores[0, best] = 700.0
    rank = soft_rank(scores, 0.5)
    weights = rank_weights(ExponentialDecay(exp_lambda=0.5), rank, rank, 1000)
    found = off_label_target(weights, torch.tensor([0]))[0, 1:]
    torch.testing.assert_close(found, (-0.5 * rank.double())[0, 1:].softmax(0).float(), rtol=1e-3, atol=1e-9)


def test_one_class_is_refused(place: Path) -> None:
    with pytest.raises(UserError, match=r"^the data in .* has one class, class0; a classifier needs two or more$"):
        trainer_for({"name": "ce"}, make_images(place / "images", classes=1).parent / "run")
