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


WEIGH = {
    "zipf": lambda rank, tied, k: fast.zipf_weights(rank, 1.5),
    "linear": lambda rank, tied, k: fast.linear_weights(rank, k, 0.0),
    "exponential": lambda rank, tied, k: fast.exponential_weights(rank, 0.3),
    "unbiased": lambda rank, tied, k: fast.unbiased_zipf_weights(rank, tied, k, 1.0, 0.001, 1.0),
}


@pytest.mark.parametrize("name", WEIGH)
@pytest.mark.parametrize(("classes", "places"), [*SIZES, (2, 9), (3, 1)])
def test_the_target_of_votes_is_that_of_all_ranks(classes, places, name):
    """Also where the label has every vote, or none, and where every weight off the label is 0."""
    votes, labels, _ = random_case(max(classes, 10), places)
    votes, labels = votes % classes, labels % classes
    rank = torch.from_numpy(slow.ranks(slow.counts(votes.tolist(), classes)))
    expected = fast.off_label_target(WEIGH[name](rank.double(), fast.tie_size(rank).double(), classes), labels)
    target = fast.vote_target(votes, labels, classes, lambda r, t: WEIGH[name](r, t, classes), torch.float64)
    torch.testing.assert_close(target, expected, rtol=1e-12, atol=0)
    single = fast.vote_target(votes, labels, classes, lambda r, t: WEIGH[name](r, t, classes))
    torch.testing.assert_close(single.double(), expected, rtol=1e-5, atol=1e-9)


def soft_cases(classes):
    real = torch.randn(6, classes, generator=torch.Generator().manual_seed(classes), dtype=torch.float64)
    return {
        "logits": real * 3,
        "votes": (real.abs() ** 3).floor(),
        "all equal": torch.zeros(2, classes, dtype=torch.float64),
        "one strength apart": 0.5 * torch.arange(classes, dtype=torch.float64).expand(2, classes),
        "nearly tied": real.round() + 1e-15 * real,
    }


@pytest.mark.parametrize("strength", [1e-3, 0.05, 0.5, 100.0])
@pytest.mark.parametrize("classes", [1, 2, 3, 10, 129, 1000])
def test_soft_ranks(classes, strength):
    for name, scores in soft_cases(classes).items():
        expected = slow.soft_ranks(scores, strength)
        np.testing.assert_allclose(fast.soft_rank(scores, strength), expected, atol=1e-7, err_msg=name)
        np.testing.assert_allclose(fast.soft_rank(scores.float(), strength), expected, rtol=1e-3, err_msg=name)


def test_soft_ranks_become_plain_ranks():
    """As the strength falls; ties share the mean of their ranks then."""
    scores = torch.tensor([[0.3, 2.0, 0.3, -1.0, 5.0]])
    assert fast.soft_rank(scores, 1e-6).tolist() == [[3.5, 2.0, 3.5, 5.0, 1.0]]
    assert fast.soft_rank(scores, 0.5).sum().item() == pytest.approx(15)
    line = fast.soft_rank(scores.double(), 1e3)
    torch.testing.assert_close(line, 3 - (scores.double() - scores.double().mean()) / 1e3)


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
