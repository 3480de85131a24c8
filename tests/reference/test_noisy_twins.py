"""lsdali.functional's rank weights, class means and noisy-label losses against their slow twins, on random inputs."""

import noisy_twins as slow
import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from lsdali import functional as fast

B, K = 8, 12


def case(seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(B, K, generator=generator, dtype=torch.float64) * 3
    labels = torch.where(torch.arange(B) % 2 == 0, logits.argmax(1), torch.randint(K, (B,), generator=generator))
    votes = torch.randint(K // 2, (B, 16), generator=generator)
    rank = fast.vote_rank(fast.count_votes(votes, K), 16)
    noise = torch.eye(K, dtype=torch.float64) * 2 + torch.rand(K, K, generator=generator, dtype=torch.float64)
    return logits, labels, rank, noise / noise.sum(1, keepdim=True)


WEIGHTS = {
    "linear": (lambda r: fast.linear_weights(r, K, 0.02), lambda row: slow.linear(row, 0.02)),
    "exponential": (lambda r: fast.exponential_weights(r, 0.4), lambda row: slow.exponential(row, 0.4)),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_rank_weights(name):
    _, labels, rank, _ = case()
    quick, twin = WEIGHTS[name]
    expected = [slow.off_label(twin(row), y) for row, y in zip(rank.tolist(), labels.tolist())]
    np.testing.assert_allclose(fast.off_label_target(quick(rank.double()), labels), expected, rtol=1e-12)
    np.testing.assert_allclose(fast.off_label_target(quick(rank), labels), expected, rtol=1e-5)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_unbiased_weights_are_integrals(power):
    _, _, rank, _ = case()
    weights = fast.unbiased_zipf_weights(rank, fast.tie_size(rank), K, power, 0.01, 1.0)
    expected = [slow.unbiased(row, power, 0.01, 1.0) for row in rank.tolist()]
    np.testing.assert_allclose(weights, expected, rtol=1e-4)


def test_a_line_without_ties_is_a_distribution():
    rank = torch.randperm(K)[None].double() + 1
    weights = fast.linear_weights(rank, K, 0.01)
    assert weights.sum().item() == pytest.approx(1)
    assert weights.min().item() == pytest.approx(0.01)


def test_nearest():
    features = case()[0]
    assert fast.nearest(features).tolist() == slow.nearest(features.tolist())


def test_class_means_in_parts():
    logits, labels, _, _ = case()
    sums, counts = torch.zeros(K, K, dtype=torch.float64), torch.zeros(K, dtype=torch.float64)
    for part in (slice(0, 3), slice(3, B)):
        fast.accumulate_correct(sums, counts, logits[part], labels[part])
    expected = slow.class_averages(logits.tolist(), labels.tolist(), K)
    assert counts.sum() >= B / 2
    np.testing.assert_allclose(fast.class_averages(sums, counts), expected, rtol=1e-12)


LOSSES = {
    "symmetric": (
        lambda z, y, m: fast.symmetric_cross_entropy(z, y, 0.7, 0.3, 1e-4),
        lambda z, y, m: slow.symmetric(z, y, 0.7, 0.3, 1e-4),
    ),
    "generalised": (
        lambda z, y, m: fast.generalised_cross_entropy(z, y, 0.4),
        lambda z, y, m: slow.generalised(z, y, 0.4),
    ),
    "joint": (
        lambda z, y, m: fast.cross_entropy(z, y) + 0.5 * fast.class_prior_kl(z) + 0.2 * fast.entropy(z),
        lambda z, y, m: slow.joint(z, y, 0.5, 0.2),
    ),
    "soft": (
        lambda z, y, m: fast.soft_bootstrap(z, y, 0.9),
        lambda z, y, m: slow.bootstrap(z, y, 0.9, "soft"),
    ),
    "hard": (
        lambda z, y, m: fast.hard_bootstrap(z, y, 0.9),
        lambda z, y, m: slow.bootstrap(z, y, 0.9, "hard"),
    ),
    "forward": (
        lambda z, y, m: fast.forward_correction(z, y, m),
        lambda z, y, m: slow.forward(z, y, m.tolist()),
    ),
    "backward": (
        lambda z, y, m: fast.backward_correction(z, y, m.inverse()),
        lambda z, y, m: slow.backward(z, y, m.inverse().tolist()),
    ),
    "pairs": (lambda z, y, m: fast.confusion(z, 1), lambda z, y, m: slow.confusion(z, "classes")),
    "classes": (lambda z, y, m: fast.confusion(z, 0), lambda z, y, m: slow.confusion(z, "pairs")),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name):
    quick, twin = LOSSES[name]
    for seed in range(3):
        logits, labels, _, noise = case(seed)
        expected = twin(logits.tolist(), labels.tolist(), noise)
        assert quick(logits, labels, noise).item() == pytest.approx(expected, rel=1e-10)


def test_anchors_are_the_surest_predictions():
    logits = case()[0]
    p = logits.softmax(1).tolist()
    best, rows = fast.most_confident_rows(logits)
    for k in range(K):
        surest = max(p, key=lambda row: row[k])
        assert best[k].item() == surest[k]
        assert rows[k].tolist() == surest


def test_nothing_waits_for_the_device():
    """Fake tensors have no numbers to wait for."""
    with FakeTensorMode():
        logits, labels = torch.randn(B, K), torch.randint(K, (B,))
        matrix, counts = torch.zeros(K, K), torch.zeros(K)
        fast.accumulate_correct(matrix, counts, logits, labels)
        new = fast.class_averages(matrix, counts)
        assert fast.freeze_confident_rows(new, matrix, counts, 0.88).shape == (K, K)
        assert fast.most_confident_rows(logits)[1].shape == (K, K)
        assert fast.forward_correction(logits, labels, matrix).shape == ()
        assert fast.backward_correction(logits, labels, matrix).shape == ()
