"""lsdali.functional against its slow twins, on random inputs."""

import label_twins as slow
import numpy as np
import pytest
import torch

from lsdali import functional as fast

SIZES = [(k, places) for k in (10, 100, 1000) for places in (1, 16, 49, 196)]


def random_case(classes, places, batch=6):
    rng = np.random.default_rng([classes, places])
    votes = torch.from_numpy((rng.random((batch, places)) ** 4 * classes).astype(np.int64))
    votes[0] = 3  # a unanimous row, for the label and against it
    votes[1] = 3
    labels = torch.from_numpy(rng.integers(classes, size=batch))
    labels[0], labels[1] = 3, 4
    logits = torch.from_numpy(rng.normal(scale=4, size=(batch, classes)))
    return votes, labels, logits


@pytest.mark.parametrize(("classes", "places"), SIZES)
def test_votes_and_ranks(classes, places):
    votes, _, _ = random_case(classes, places)
    counts = fast.count_votes(votes, classes)
    np.testing.assert_array_equal(counts, slow.counts(votes.tolist(), classes))
    expected = slow.ranks(counts)
    np.testing.assert_array_equal(fast.vote_rank(counts, places), expected)
    np.testing.assert_array_equal(fast.competition_rank(counts), expected)


@pytest.mark.parametrize("ties", [False, True])
def test_rank_of_real_scores(ties):
    scores = torch.randn(5, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scores = scores.round(decimals=1) if ties else scores
    np.testing.assert_array_equal(fast.competition_rank(scores), slow.ranks(scores))


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(("classes", "places"), SIZES)
def test_zipf_target_and_its_loss(classes, places, power):
    votes, labels, logits = random_case(classes, places)
    rank = fast.vote_rank(fast.count_votes(votes, classes), places)
    expected = slow.zipf(rank.numpy(), labels.tolist(), power)
    target = fast.zipf_target(rank.double(), labels, power)
    np.testing.assert_allclose(target, expected, rtol=1e-12)
    np.testing.assert_allclose(fast.zipf_target(rank, labels, power), expected, rtol=2e-6)
    loss = fast.off_label_kl(logits, target, labels)
    np.testing.assert_allclose(
        loss, slow.off_label_kl(logits.tolist(), expected, labels.tolist()), rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("mass", ["all", "others"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_smoothing(smoothing, mass):
    _, labels, logits = random_case(100, 1)
    target = slow.smooth_targets(labels.tolist(), 100, smoothing, mass)
    np.testing.assert_allclose(fast.smooth_targets(labels, 100, smoothing, mass), target, rtol=1e-6)
    expected = slow.soft_cross_entropy(logits.tolist(), target)
    assert fast.label_smoothing(logits, labels, smoothing, mass).item() == pytest.approx(expected, rel=1e-12)
    assert fast.soft_cross_entropy(logits, torch.from_numpy(target)).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 64.0])
def test_distillation(temperature):
    _, _, student = random_case(100, 1)
    _, _, teacher = random_case(100, 16)
    expected = slow.distillation_kl(student.tolist(), teacher.tolist(), temperature)
    assert fast.distillation_kl(student, teacher, temperature).item() == pytest.approx(expected, rel=1e-9)
