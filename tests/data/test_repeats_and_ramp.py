"""Repeated augmentation, and image sizes that rise with the epoch."""

import numpy as np
import pytest
import torch

from lsdali.clock import PerEpoch
from lsdali.data.index.index import open_index
from lsdali.data.pipeline.loader import TrainLoader
from lsdali.data.pipeline.options import LoaderOptions
from lsdali.data.sampling.augment.erasing import RandomErasing
from lsdali.data.sampling.augment.photometric import ColorJitter
from lsdali.data.sampling.resize_schedule import Ramp
from lsdali.data.sampling.sampler import Plan
from lsdali.data.sets.catalog import PadCrop, RandomResizedCrop
from lsdali.errors import UserError


def loader(index, config, batch=12, **more):
    return TrainLoader(index, config, LoaderOptions(PerEpoch(batch), 3, torch.device("cpu"), **more))


def test_each_batch_holds_each_sample_so_often_and_an_epoch_reads_as_many():
    labels = np.arange(103) % 5
    for repeats in (1, 2, 3, 4):
        plan = Plan(labels, PerEpoch(12), 1, 0, repeats=repeats)
        assert plan.steps_per_epoch.first == 103 // 12
        epochs = []
        for epoch in range(2):
            seen: list[int] = []
            for step in range(epoch * plan.steps_per_epoch.first, (epoch + 1) * plan.steps_per_epoch.first):
                read = plan.indices(step, 0)
                numbers, counts = np.unique(read, return_counts=True)
                assert (counts == repeats).all()
                assert sorted(zip(read, plan.copies(0, 0))) == [(n, c) for n in numbers for c in range(repeats)]
                seen += numbers.tolist()
            assert len(seen) == len(set(seen)) == 103 // 12 * 12 // repeats
            epochs.append(seen)
        assert set(epochs[0]) != set(epochs[1])


def test_ranks_share_batches_with_copies():
    labels = np.arange(103) % 5
    whole = Plan(labels, PerEpoch(12), 1, 0, repeats=3)
    for world in (2, 3):
        parts = Plan(labels, PerEpoch(12), world, 0, repeats=3)
        for step in (0, 5, 9):
            assert (
                np.concatenate([parts.indices(step, r) for r in range(world)]).tolist()
                == whole.indices(step, 0).tolist()
            )
        assert np.concatenate([parts.copies(0, r) for r in range(world)]).tolist() == whole.copies(0, 0).tolist()
    assert [set(parts.copies(0, r).tolist()) for r in range(3)] == [{0}, {1}, {2}]  # each rank another copy


def test_pairs_stay_pairs_in_copies():
    labels = np.arange(103) % 5
    plan = Plan(labels, PerEpoch(12), 2, 0, "class_pairs", 3)
    for rank in range(2):
        pairs = plan.indices(4, rank).reshape(-1, 2)
        assert (labels[pairs[:, 0]] == labels[pairs[:, 1]]).all()
        assert (pairs[:, 0] != pairs[:, 1]).all()


@pytest.mark.parametrize(
    ("batch", "world", "order", "repeats", "said"),
    [
        (16, 1, "shuffled", 3, "batch 16 cannot be shared in 3 copies among 1 ranks; use 15 or 18"),
        (12, 1, "class_pairs", 4, "batch 12 cannot be shared in pairs in 4 copies among 1 ranks; use 8 or 16"),
        (9, 2, "shuffled", 3, "batch 9 cannot be shared in 3 copies among 2 ranks; use 6 or 12"),
    ],
)
def test_batches_that_do_not_divide_are_refused(batch, world, order, repeats, said):
    with pytest.raises(UserError) as caught:
        Plan(np.arange(100) // 10, PerEpoch(batch), world, 0, order, repeats)
    assert str(caught.value) == said


def test_copies_differ_and_are_the_same_on_any_ranks_from_any_start(tree, plain, as_rank):
    crop = RandomResizedCrop(size=24, repeats=3, augment=[ColorJitter(), RandomErasing(probability=0.5)])
    config = plain(tree(each=20), train=crop)
    index = open_index(config, "train")
    whole = list(loader(index, config).epoch(3))
    assert len(whole) == 3
    for batch in whole:
        a, b, c = batch.images.reshape(3, 4, *batch.images.shape[1:])
        numbers = batch.index.reshape(3, 4)
        assert (numbers == numbers[0]).all()
        for x, y in ((a, b), (b, c), (a, c)):
            assert all(not torch.equal(p, q) for p, q in zip(x, y))
    first = loader(index, plain(index.root, train=crop.model_copy(update={"repeats": 1})), batch=4).epoch(10)
    assert torch.equal(next(first).images, whole[0].images[:4])  # the first copy is what no repeats give
    for world in (2, 3):
        parts = []
        for rank in range(world):
            as_rank(rank, world)
            parts.append(list(loader(index, config).epoch(4)))
        for step in range(2):
            assert torch.equal(torch.cat([p[step].images for p in parts]), whole[step + 1].images)
            assert torch.cat([p[step].index for p in parts]).tolist() == whole[step + 1].index.tolist()


def test_the_ramp_is_a_line_in_steps():
    ramp = Ramp(first=160, start=65, end=76)  # FFCV's 88 epochs
    sizes = [ramp.size_at(e, 192) for e in range(88)]
    assert sizes == [160] * 71 + [192] * 17  # half way, 65 + 11 / 2, rounds up
    assert [Ramp(first=128, end=4, multiple=16).size_at(e, 224) for e in range(6)] == [128, 160, 176, 208, 224, 224]
    assert [Ramp(first=100, end=3, multiple=64).size_at(e, 130) for e in range(4)] == [100, 128, 128, 130]


def test_sizes_follow_epochs_and_resume_is_exact(tree, plain, monkeypatch):
    ramp = Ramp(first=16, start=0, end=3, multiple=8)
    crop = RandomResizedCrop(size=32, ramp=ramp, augment=[RandomErasing(probability=1.0)])
    config = plain(tree(each=20), train=crop)
    index = open_index(config, "train")
    straight = loader(index, config)
    builds = []
    graph = straight._runner._graph
    monkeypatch.setattr(straight._runner, "_graph", lambda *a: (builds.append(1), graph(*a))[1])
    stream = [b for first in range(0, 15, 3) for b in straight.epoch(first)]
    assert [b.images.shape[-1] for b in stream] == [s for s in (16, 24, 24, 32, 32) for _ in range(3)]
    assert len(builds) == 3
    full = plain(index.root, train=crop.model_copy(update={"ramp": None}))
    assert torch.equal(next(loader(index, full).epoch(9)).images, stream[9].images)
    jumping = loader(index, config)
    for step in (8, 2, 3, 7, 0, 14):
        there = list(jumping.epoch(step))
        assert len(there) == 3 - step % 3
        for ours, theirs in zip(there, stream[step:]):
            assert torch.equal(ours.images, theirs.images)


def test_ramps_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"ramp.first 64 must not be above size 32"):
        RandomResizedCrop(size=32, ramp=Ramp(first=64, end=2))
    with pytest.raises(ValueError, match="end 2 must come after start 2"):
        Ramp(first=8, start=2, end=2)
    with pytest.raises(ValueError, match="the crop pad does not resize images"):
        PadCrop(size=32, ramp=Ramp(first=8, end=2))


def test_batches_follow_epochs_on_any_ranks_and_from_any_step(tree, plain, as_rank):
    batches = PerEpoch(12, ((1, 30), (3, 6)))
    config = plain(tree(each=20), train=RandomResizedCrop(size=24, augment=[ColorJitter()]))
    index = open_index(config, "train")

    def make(batch=batches):
        return TrainLoader(index, config, LoaderOptions(batch, 3, torch.device("cpu")))

    whole = make()
    assert whole.steps_per_epoch == PerEpoch(3, ((1, 1), (3, 6)))
    stream = [batch for first in (0, 3, 4, 5) for batch in whole.epoch(first)]
    assert [len(b) for b in stream] == [12] * 3 + [30] * 2 + [6] * 6
    assert all(len(b.valid) == len(b.labels) == len(b.images) == len(b) and b.valid.all() for b in stream)
    for step in (1, 4, 7):
        assert torch.equal(next(make().epoch(step)).images, stream[step].images)
    equal = make(PerEpoch(30))
    assert torch.equal(next(equal.epoch(2)).images, stream[4].images)  # an epoch's data are its own
    parts = []
    for rank in range(3):
        as_rank(rank, 3)
        parts.append([batch for first in (0, 3, 4, 5) for batch in make().epoch(first)])
    for step, batch in enumerate(stream):
        assert torch.equal(torch.cat([p[step].images for p in parts]), batch.images)
    with pytest.raises(UserError, match="batch 32 cannot be shared among 3 ranks; use 30 or 33"):
        make(PerEpoch(30, ((2, 32),)))
    with pytest.raises(UserError, match="batch 60 is larger than the data with its 40 samples"):
        make(PerEpoch(30, ((2, 60),)))
