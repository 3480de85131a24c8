"""DKD, DIST, MLLD, NKD, USKD and standardised logits: against the papers' formulas, sample by sample."""

import numpy as np
import pytest
import torch

from lsdali.batch import Batch
from lsdali.clock import Clock, PerEpoch
from lsdali.functional import decoupled_kl, distillation_kl, standardised
from lsdali.methods import METHODS
from lsdali.methods.base import MethodContext
from lsdali.models.student import Outputs
from tests.methods.test_distillation import CLOCK, TEACHER, make

B, K = 7, 6


@pytest.fixture(params=[0, 1, 2])
def drawn(request):
    """Student's logits, teacher's logits and labels, of very unlike sizes."""
    rng = np.random.default_rng(request.param)
    size = 10.0 ** (request.param - 1)
    return rng.normal(size=(B, K)) * size, rng.normal(size=(B, K)) * 3, rng.integers(0, K, B)


def softmax(z):
    e = np.exp(z - z.max())
    return e / e.sum()


def loss_of(method, s, labels, clock=CLOCK, aux=None):
    images = torch.tensor(s, requires_grad=True)
    y = torch.tensor(labels)
    batch = Batch(images, y, torch.arange(len(y)), torch.ones(len(y), dtype=torch.bool))
    loss = method.loss(lambda x: Outputs(x, x, aux or {}), batch, clock)
    loss.total.backward()
    return loss.total.item(), images.grad.numpy(), {name: term.item() for name, term in loss.terms.items()}


def slope(function, s, step=1e-6):
    """Central differences."""
    out = np.zeros_like(s)
    for place in np.ndindex(*s.shape):
        up, down = s.copy(), s.copy()
        up[place] += step
        down[place] -= step
        out[place] = (function(up) - function(down)) / (2 * step)
    return out


def check(tree, formula, drawn, clock=CLOCK):
    s, t, labels = drawn
    total, gradient, _ = loss_of(make({**tree, "teacher": TEACHER}, torch.tensor(t)), s, labels, clock)
    np.testing.assert_allclose(total, formula(s), rtol=1e-10)
    np.testing.assert_allclose(gradient, slope(formula, s), rtol=1e-4, atol=1e-5)


def kl(p, q):
    return sum(a * np.log(a / b) for a, b in zip(p, q, strict=True))


def ce(s, labels):
    return -np.mean([np.log(softmax(z)[y]) for z, y in zip(s, labels, strict=True)])


@pytest.mark.parametrize("epoch", [0, 3])
def test_dkd(drawn, epoch):
    _, t, labels = drawn

    def formula(s):
        target = others = 0.0
        for z, w, y in zip(s, t, labels, strict=True):
            p, q = softmax(w / 4), softmax(z / 4)
            target += kl([p[y], 1 - p[y]], [q[y], 1 - q[y]])
            others += kl(np.delete(p, y) / (1 - p[y]), np.delete(q, y) / (1 - q[y]))
        return 0.5 * ce(s, labels) + min((epoch + 1) / 4, 1) * 16 * (1.5 * target + 3 * others) / B

    tree = {"name": "dkd", "alpha": 1.5, "beta": 3.0, "hard": 0.5, "warmup_epochs": 4}
    check(tree, formula, drawn, Clock(10 * epoch, PerEpoch(10), 5))


def test_the_two_parts_of_dkd_are_distillation(drawn):
    """KL = target + (1 - p) others, Zhao et al. 2022, equation 5."""
    s, t, labels = map(torch.tensor, drawn)
    target, others = decoupled_kl(s, t, labels, 2.0)
    p = (t / 2).softmax(1)[torch.arange(B), labels]
    torch.testing.assert_close(4 * (target + (1 - p) * others).mean(), distillation_kl(s, t, 2.0))


def test_dkd_of_a_teacher_that_is_sure():
    """1 - p rounds to 0; the parts stay finite, and so does the gradient."""
    t = torch.tensor([[200.0, 1.0, 0.0]])
    s = torch.tensor([[0.0, 300.0, 0.0]], requires_grad=True)
    target, others = decoupled_kl(s, t, torch.tensor([0]), 1.0)
    (target + others).sum().backward()
    assert target.item() == pytest.approx(300.0)
    assert torch.isfinite(s.grad).all()


def test_dist(drawn):
    _, t, labels = drawn

    def formula(s):
        x, y = (np.stack([softmax(z / 4) for z in rows]) for rows in (s, t))
        between = np.mean([1 - np.corrcoef(x[i], y[i])[0, 1] for i in range(B)])
        within = np.mean([1 - np.corrcoef(x[:, k], y[:, k])[0, 1] for k in range(K)])
        return ce(s, labels) + 16 * (2 * between + 3 * within)

    s, t, labels = drawn
    method = make({"name": "dist", "temperature": 4.0, "within": 3.0, "teacher": TEACHER}, torch.tensor(t))
    total, gradient, _ = loss_of(method, s, labels)
    np.testing.assert_allclose(total, formula(s), rtol=1e-4)  # the published 1e-8 beside products of small norms
    np.testing.assert_allclose(gradient, slope(formula, s), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("standardise", [False, True])
def test_multi_level(drawn, standardise):
    _, t, labels = drawn

    def scaled(z):
        return (z - z.mean()) / (z.std(ddof=1) + 1e-7) if standardise else z

    def formula(s):
        total = 0.0
        for at in (2.0, 5.0):
            x, y = (np.stack([softmax(z / at) for z in rows]) for rows in (s, t))
            total += at**2 * np.mean(
                [kl(softmax(scaled(w) / at), softmax(scaled(z) / at)) for z, w in zip(s, t, strict=True)]
            )
            total += sum((y[i] @ y[j] - x[i] @ x[j]) ** 2 for i in range(B) for j in range(B)) / B
            total += sum((y[:, a] @ y[:, b] - x[:, a] @ x[:, b]) ** 2 for a in range(K) for b in range(K)) / K
        return 0.1 * ce(s, labels) + 0.9 * total

    check({"name": "multi_level", "temperatures": [2.0, 5.0], "standardise": standardise}, formula, drawn)


def test_nkd(drawn):
    _, t, labels = drawn

    def formula(s):
        total = 0.0
        for z, w, y in zip(s, t, labels, strict=True):
            p, q, pt, qt = softmax(w), softmax(z), softmax(w / 3), softmax(z / 3)
            shares = np.delete(pt, y) / (1 - pt[y])
            total -= (1 + p[y]) * np.log(q[y])
            total -= 3.5 * 9 * np.sum(shares * np.log(np.delete(qt, y) / (1 - qt[y])))
        return total / B

    check({"name": "nkd", "gamma": 3.5, "temperature": 3.0}, formula, drawn)


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_uskd(drawn, variant):
    s, weak, labels = drawn
    p_now = np.array([softmax(z)[y] for z, y in zip(s, labels, strict=True)])

    def formula(x):
        total = 0.0
        for z0, z, w, y, p in zip(s, x, weak, labels, p_now, strict=True):
            own = softmax(z0) if variant == "paper" else np.log(softmax(z0))
            v = softmax(w)
            score = v / (1 - v[y] + 1e-6) + own / (1 - own[y] + 1e-6)
            zipf = np.empty(K)
            zipf[np.argsort(-score)] = 1 / np.arange(1, K + 1)
            shares = np.delete(zipf, y) / np.delete(zipf, y).sum()
            q = softmax(z)
            total -= np.log(q[y]) * (1 + 0.7 * (p**2 + 1 - np.mean(p_now**2)))
            total -= 0.2 * np.sum(shares * np.log(np.delete(q, y) / (1 - q[y])))
            total -= 0.3 * (0.9 * np.log(v[y]) + 0.1 * np.mean(np.log(v)))
        return total / B

    kind = METHODS["uskd"]
    context = MethodContext(K, 10, {"layer3": 4, "layer4": 8}, torch.device("cpu"), 0, lambda config: None)
    method = kind(kind.Config(alpha=0.7, beta=0.2, mu=0.3, variant=variant), context)
    total, gradient, _ = loss_of(method, s, labels, aux={"exit_layer3": torch.tensor(weak)})
    np.testing.assert_allclose(total, formula(s), rtol=1e-10)
    np.testing.assert_allclose(gradient, slope(formula, s), rtol=1e-4, atol=1e-5)


def test_standardised(drawn):
    s, _, labels = drawn
    got = standardised(torch.tensor(s)).numpy()
    np.testing.assert_allclose(got, [(z - z.mean()) / (z.std(ddof=1) + 1e-7) for z in s], rtol=1e-10)
    plain = make({"name": "kd", "temperature": 2.0, "teacher": TEACHER}, torch.tensor(got))
    scaled = make({"name": "kd", "temperature": 2.0, "standardise": True, "teacher": TEACHER}, torch.tensor(5 * s + 1))
    assert loss_of(scaled, s, labels)[0] == pytest.approx(0.0, abs=1e-9), "a row's shift and scale make no difference"
    assert loss_of(plain, got, labels)[0] == pytest.approx(0.0, abs=1e-12)
