"""Order: every sample at most once, any number of ranks, any start; uniform and fixed random numbers."""

import hashlib
from collections import Counter

import numpy as np
import pytest

from lsdali.clock import PerEpoch
from lsdali.data.sampling.sampler import SAMPLERS, Plan, epoch_permutation, eval_slices, stratified, uniforms
from lsdali.errors import UserError

LABELS = np.repeat(np.arange(10), [11, 12, 13, 14, 15, 16, 17, 18, 19, 20])
PINNED_UNIFORMS = [[0.33020834628198126, 0.704644685531693], [0.4254049466008327, 0.8283221663595551]]
PINNED_PERMUTATION = [5, 4, 2, 1, 6, 7, 9, 10, 0, 11, 3, 8]
PINNED_BALANCED = "3f260d3b3e2215d9"
PINNED_PAIRS = "f437f1a48a72560f"


def test_uniforms_are_uniform_and_uncorrelated():
    index = np.arange(50_000)
    u = uniforms(3, 5, index, 4)
    assert ((u >= 0) & (u < 1)).all()
    assert np.abs(np.sort(u, 0) - (index[:, None] + 0.5) / len(index)).max() < 1.95 / len(index) ** 0.5
    others = [u[:, 1], np.roll(u[:, 0], 1), uniforms(3, 6, index, 1)[:, 0], uniforms(4, 5, index, 1)[:, 0]]
    others += [uniforms(3, 5, index, 1, stream=1)[:, 0], uniforms(5, 3, index, 1)[:, 0]]
    for other in others:
        assert abs(np.corrcoef(u[:, 0], other)[0, 1]) < 4 / len(index) ** 0.5


def test_uniforms_depend_on_the_sample_alone():
    all_at_once = uniforms(1, 2, np.arange(100), 5)
    some = np.array([71, 3, 99])
    assert (uniforms(1, 2, some, 5) == all_at_once[some]).all()
    assert (uniforms(1, 2, some, 2) == all_at_once[some, :2]).all()


def test_the_stream_never_changes():
    """Runs of older versions can only be repeated while these numbers stand."""
    assert uniforms(0, 0, np.array([0, 1]), 2).tolist() == PINNED_UNIFORMS
    assert epoch_permutation(1, 2, 12).tolist() == PINNED_PERMUTATION
    digest = hashlib.sha256(SAMPLERS["class_pairs"](LABELS, 1, 2, 10).tobytes()).hexdigest()
    assert digest.startswith(PINNED_PAIRS)


def test_permutation_mixes_evenly():
    n = 20_000
    a, b = epoch_permutation(0, 0, n), epoch_permutation(0, 1, n)
    assert (np.sort(a) == np.arange(n)).all()
    place_a, place_b = np.argsort(a), np.argsort(b)
    assert abs(np.abs(place_a - place_b).mean() / n - 1 / 3) < 0.01
    assert abs(np.abs(place_a - np.arange(n)).mean() / n - 1 / 3) < 0.01


@pytest.mark.parametrize("sampler", ["class_pairs", "shuffled"])
def test_an_epoch_has_each_sample_at_most_once(sampler):
    plan = Plan(LABELS, PerEpoch(12), 1, seed=7, sampler=sampler)
    seen = np.concatenate([plan.indices(step, 0) for step in range(plan.steps_per_epoch.first)])
    assert len(seen) == plan.steps_per_epoch.first * 12 == len(set(seen.tolist()))
    assert len(seen) > len(LABELS) - 12 - len(set(LABELS.tolist()))
    following = np.concatenate(
        [plan.indices(plan.steps_per_epoch.first + s, 0) for s in range(plan.steps_per_epoch.first)]
    )
    assert seen.tolist() != following.tolist()


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_same_global_batches(sampler, world):
    one, many = Plan(LABELS, PerEpoch(12), 1, 0, sampler), Plan(LABELS, PerEpoch(12), world, 0, sampler)
    for step in (0, 5, 11, 30, 2):
        parts = [many.indices(step, rank) for rank in range(world)]
        assert np.concatenate(parts).tolist() == one.indices(step, 0).tolist()


def test_class_pairs_are_two_samples_of_one_class():
    plan = Plan(LABELS, PerEpoch(12), 3, 0, "class_pairs")
    for step in range(2 * plan.steps_per_epoch.first):
        for rank in range(3):
            pairs = plan.indices(step, rank).reshape(-1, 2)
            assert (LABELS[pairs[:, 0]] == LABELS[pairs[:, 1]]).all()
            assert (pairs[:, 0] != pairs[:, 1]).all()


UNEVEN = np.random.default_rng(0).permutation(np.repeat([0, 1, 2, 4, 5], [200, 100, 7, 3, 1]))
"""Labels of classes of very unequal size; class 3 has no sample."""


@pytest.mark.parametrize("batch", [10, 31, 311])
def test_balanced_reads_every_class_and_all_its_samples_equally_often(batch):
    n = len(UNEVEN) // batch * batch
    for epoch in range(3):
        order = SAMPLERS["balanced"](UNEVEN, 3, epoch, batch)
        assert len(order) == n
        counts = Counter(UNEVEN[order].tolist())
        assert set(counts) == {0, 1, 2, 4, 5}
        assert max(counts.values()) - min(counts.values()) <= 1
        for label in counts:
            times = Counter({int(i): 0 for i in np.flatnonzero(label == UNEVEN)})
            times.update(int(i) for i in order if UNEVEN[i] == label)
            assert max(times.values()) - min(times.values()) <= 1


def test_balanced_is_another_order_in_each_epoch_and_comes_to_every_sample():
    orders = [SAMPLERS["balanced"](UNEVEN, 3, epoch, 10) for epoch in range(20)]
    assert len({order.tobytes() for order in orders}) == 20
    assert set(np.concatenate(orders).tolist()) == set(range(len(UNEVEN)))
    first = Counter(int(UNEVEN[SAMPLERS["balanced"](UNEVEN, seed, 0, 10)[0]]) for seed in range(500))
    assert all(60 < first[label] < 140 for label in (0, 1, 2, 4, 5)), first  # 100 each, give or take 4.5 deviations
    digest = hashlib.sha256(orders[1].tobytes()).hexdigest()
    assert digest.startswith(PINNED_BALANCED)


def test_class_pairs_leave_out_another_sample_each_epoch():
    labels = np.zeros(3, np.int64)
    left = {({0, 1, 2} - set(SAMPLERS["class_pairs"](labels, 0, epoch, 2).tolist())).pop() for epoch in range(30)}
    assert left == {0, 1, 2}


@pytest.mark.parametrize(
    ("batch", "world", "sampler", "text"),
    [
        (10, 4, "shuffled", "batch 10 cannot be shared among 4 ranks; use 8 or 12"),
        (2, 4, "shuffled", "batch 2 cannot be shared among 4 ranks; use 4"),
        (0, 1, "shuffled", "batch 0 cannot be shared among 1 ranks; use 1"),
        (6, 2, "class_pairs", "batch 6 cannot be shared in pairs among 2 ranks; use 4 or 8"),
        (200, 1, "shuffled", "batch 200 is larger than the data with its 155 samples"),
        (8, 1, "sorted", "sampler sorted is unknown; choose from shuffled, class_pairs, balanced, as_listed"),
    ],
)
def test_refusals(batch, world, sampler, text):
    with pytest.raises(UserError) as caught:
        Plan(LABELS, PerEpoch(batch), world, 0, sampler)
    assert str(caught.value) == text


def test_class_pairs_refuse_what_has_no_pair():
    with pytest.raises(UserError, match="batch 5 is odd"):
        SAMPLERS["class_pairs"](LABELS, 0, 0, 5)
    with pytest.raises(UserError, match="class 1 has one sample"):
        SAMPLERS["class_pairs"](np.array([0, 0, 1]), 0, 0, 2)


@pytest.mark.parametrize(("n", "world", "batch"), [(103, 1, 10), (103, 3, 10), (103, 4, 25), (2, 3, 8), (64, 2, 8)])
def test_evaluation_reads_everything_once(n, world, batch):
    seen: list[int] = []
    for rank in range(world):
        for index, valid in eval_slices(n, rank, world, batch):
            assert index.shape == valid.shape == (batch,)
            assert valid[0]
            seen += index[valid].tolist()
    assert seen == list(range(n))


def test_stratified_keeps_proportions():
    labels = np.repeat([0, 1, 2], [600, 300, 100])
    chosen = stratified(labels, 50)
    assert np.bincount(labels[chosen]).tolist() == [30, 15, 5]
    assert (np.diff(chosen) > 0).all()
    assert chosen.tolist() != list(range(30)) + list(range(600, 615)) + list(range(900, 905))


def test_as_listed_reads_every_sample_in_order_and_fills_the_last_batch():
    plan = Plan(LABELS, PerEpoch(12), 2, 0, "as_listed")
    seen = [plan.indices(s, rank) for s in range(plan.steps_per_epoch.first) for rank in range(2)]
    assert np.unique(np.concatenate(seen)).tolist() == list(range(len(LABELS)))
    assert np.concatenate(seen)[: len(LABELS)].tolist() == list(range(len(LABELS)))
    assert plan.steps_per_epoch.first == -(-len(LABELS) // 12)
