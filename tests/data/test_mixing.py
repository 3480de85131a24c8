"""Mixup and CutMix: the same mixed stream on any number of ranks, and targets that fit the images."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from lsdali.batch import Batch
from lsdali.data.sampling.mixing import CutMix, MixConfig, MixedBatches, Mixup, Switch, box, cutmix, draw_lam, mixup
from lsdali.functional import cross_entropy, soft_cross_entropy

STEPS = 6


@dataclass
class Whole:
    """One rank's share of batches of 8, with images that tell sample and place."""

    rank: int = 0
    world: int = 1

    def epoch(self, step: int) -> Iterator[Batch]:
        for number in range(step, STEPS):
            index = torch.arange(8).view(self.world, -1)[self.rank] + 8 * number
            images = index[:, None, None, None] * 1000.0 + torch.arange(3 * 8 * 10.0).view(1, 3, 8, 10)
            yield Batch(images, index % 5, index, torch.ones(len(index), dtype=torch.bool))


MIXES = [
    Mixup(alpha=0.4),
    Mixup(alpha=0.4, probability=0.5),
    CutMix(),
    CutMix(alpha=0.3, probability=0.5),
    Switch(probability=0.6),
]


@pytest.mark.parametrize("mix", MIXES, ids=str)
def test_any_number_of_ranks_and_any_start_give_the_same_stream(mix):
    whole = list(MixedBatches(Whole(), mix, 3).epoch(0))
    for world in (1, 2, 4):
        ranks = [list(MixedBatches(Whole(rank, world), mix, 3).epoch(2)) for rank in range(world)]
        for number, parts in enumerate(zip(*ranks), 2):
            assert torch.equal(torch.cat([p.images for p in parts]), whole[number].images)
            assert {None if p.mixture is None else p.mixture.lam for p in parts} == {
                None if whole[number].mixture is None else whole[number].mixture.lam
            }
            if whole[number].mixture is not None:
                assert torch.equal(torch.cat([p.mixture.labels for p in parts]), whole[number].mixture.labels)
    other = list(MixedBatches(Whole(), mix, 4).epoch(0))
    assert not all(torch.equal(a.images, b.images) for a, b in zip(whole, other)), "the seed has no part in it"
    mixed = [b.mixture is not None for b in whole]
    assert all(mixed) if mix.probability == 1 else True in mixed and False in mixed


def test_a_switch_is_one_or_the_other_by_its_share():
    """With the same seed a step is the one that mixup or CutMix alone would give it."""

    class Endless(Whole):
        def epoch(self, step):
            return super().epoch(0)

    def stream(mix):
        return [next(MixedBatches(Endless(), mix, 3).epoch(step)) for step in range(400)]

    both, mixed, cut = stream(Switch(mixup=0.4, share=0.3)), stream(Mixup(alpha=0.4)), stream(CutMix())
    is_cut = [torch.equal(a.images, b.images) for a, b in zip(both, cut)]
    assert all(torch.equal((c if yes else m).images, b.images) for b, m, c, yes in zip(both, mixed, cut, is_cut))
    assert sum(is_cut) == pytest.approx(0.3 * 400, abs=4 * (400 * 0.3 * 0.7) ** 0.5)


def test_mixup_is_the_weighted_sum_of_two():
    (plain,) = [next(Whole().epoch(0))]
    mixed = mixup(plain, 0.7)
    partner = torch.tensor([1, 0, 3, 2, 5, 4, 7, 6])
    torch.testing.assert_close(mixed.images, 0.7 * plain.images + 0.3 * plain.images[partner])
    assert torch.equal(mixed.mixture.labels, plain.labels[partner])
    assert mixed.mixture.lam == 0.7


def test_cutmix_weights_by_the_pixels_that_it_took():
    plain = next(Whole().epoch(0))
    where = box(0.6, 0.9, 0.5, (8, 10))
    mixed = cutmix(plain, where)
    partner = torch.tensor([1, 0, 3, 2, 5, 4, 7, 6])
    taken = (mixed.images == plain.images[partner])[:, 0]
    own = (mixed.images == plain.images)[:, 0]
    assert (taken ^ own).all()
    assert taken[0].nonzero().amin(0).tolist() == [where[0].start, where[1].start]
    assert mixed.mixture.lam == pytest.approx(own.float().mean().item())
    assert 0 < taken.float().mean() < 0.4, "the box is cut at the edge"


def test_memory_format_is_kept():
    plain = next(Whole().epoch(0))
    images = plain.images.contiguous(memory_format=torch.channels_last)
    for mixed in (mixup(plain, 0.3), cutmix(plain, box(0.5, 0.5, 0.5, (8, 10)))):
        assert mixed.images.is_contiguous()
    last = Batch(images, plain.labels, plain.index, plain.valid)
    for mixed in (mixup(last, 0.3), cutmix(last, box(0.5, 0.5, 0.5, (8, 10)))):
        assert mixed.images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_have_the_beta_distribution(alpha):
    shares = np.array([draw_lam(alpha, u) for u in (np.arange(4000) + 0.5) / 4000])
    assert ((shares >= 0) & (shares <= 1)).all()
    assert shares.mean() == pytest.approx(0.5, abs=1e-3)
    assert shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=1e-2)


def test_boxes_stay_inside():
    for share in (0.0, 0.3, 1.0):
        for y in (0.0, 0.5, 0.999):
            rows, columns = box(share, y, 1 - y if y else 0.0, (8, 10))
            assert 0 <= rows.start <= rows.stop <= 8
            assert 0 <= columns.start <= columns.stop <= 10
    assert box(1.0, 0.5, 0.5, (8, 10)) == (slice(4, 4), slice(5, 5))


def test_two_losses_are_the_loss_of_the_mixed_target():
    mixed = mixup(next(Whole().epoch(0)), 0.7)
    logits = torch.randn(8, 5, dtype=torch.float64)
    one_hot = torch.eye(5, dtype=torch.float64)
    target = 0.7 * one_hot[mixed.labels] + 0.3 * one_hot[mixed.mixture.labels]
    found = mixed.per_label(lambda labels: cross_entropy(logits, labels))
    torch.testing.assert_close(found, soft_cross_entropy(logits, target))
    parts = [mixed.part(i, i + 2) for i in range(0, 8, 2)]
    split = [p.per_label(lambda y, p=p: cross_entropy(logits[p.index], y)) for p in parts]
    torch.testing.assert_close(torch.stack(split).mean(), found)


@pytest.mark.parametrize(
    "tree",
    [
        {"name": "mixup"},
        {"name": "mixup", "alpha": 0.0},
        {"name": "cutmix", "probability": 0.0},
        {"name": "cutmix", "probability": 1.5},
        {"name": "cutout"},
    ],
)
def test_wrong_values_are_refused(tree):
    with pytest.raises(ValidationError):
        TypeAdapter(MixConfig).validate_python(tree)
