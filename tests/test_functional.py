"""Label mathematics: published numbers, exact gradients, precision, and what it costs."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lsdali import functional as f

VECTORS = json.loads((Path(__file__).parent / "reference" / "label_vectors.json").read_text())


def real(x):
    return torch.tensor(x, dtype=torch.float64)


def without_label(x, labels):
    """[B, K] -> [B, K - 1]."""
    keep = torch.ones_like(x, dtype=torch.bool).scatter_(1, labels[:, None], value=False)
    return x[keep].view(len(x), -1)


def close(vector, actual, expected):
    torch.testing.assert_close(actual, real(expected), rtol=vector["rtol"], atol=vector["atol"])


def with_gradient(loss, logits):
    """The loss at the logits and its gradient."""
    logits = logits.clone().requires_grad_()
    value = loss(logits)
    value.backward()
    return value.detach(), logits.grad


def zipf_of(inputs, power=1.0, labels="labels"):
    votes, labels = torch.tensor(inputs["votes"]), torch.tensor(inputs[labels])
    counts = f.count_votes(votes, 6)
    return f.zipf_target(f.vote_rank(counts, votes.shape[1]).double(), labels, power), labels


def test_Z01_votes_to_target():
    v = VECTORS["Z01"]
    counts = f.count_votes(torch.tensor(v["inputs"]["votes"]), 6)
    close(v, counts.double(), v["expected"]["counts"])
    assert f.vote_rank(counts, 9).tolist() == v["expected"]["ranks_over_all_classes"]
    target, labels = zipf_of(v["inputs"])
    close(v, target, v["expected"]["pdf_with_zero_at_target"])
    close(v, without_label(target, labels), v["expected"]["non_target_pdf"])


def test_Z02_zipf_loss():
    v = VECTORS["Z02"]
    target, labels = zipf_of(v["inputs"])
    logits = real(v["inputs"]["logits"])
    close(v, f.off_label_kl(logits, target, labels), v["expected"]["per_sample_kl"])
    loss, gradient = with_gradient(lambda z: f.off_label_kl(z, target, labels).mean(), logits)
    close(v, loss, v["expected"]["loss"])
    close(v, gradient, v["expected"]["grad_logits"])


@pytest.mark.parametrize("case", ["some_correct", "none_correct"])
def test_Z03_mean_over_right_samples(case):
    v = VECTORS["Z03"]
    target, labels = zipf_of(v["inputs"], labels=f"labels_{case}")
    logits = real(v["inputs"]["logits"])
    right = logits.argmax(1) == labels
    loss, gradient = with_gradient(lambda z: f.masked_mean(f.off_label_kl(z, target, labels), right), logits)
    close(v, loss, v["expected"][f"loss_{case}"])
    close(v, gradient, v["expected"][f"grad_{case}"])


def test_Z04_ranked_by_logits():
    v = VECTORS["Z04"]
    logits, labels = real(v["inputs"]["logits"]), torch.tensor(v["inputs"]["labels"])
    rank = f.competition_rank(logits)
    assert rank.tolist() == v["expected"]["ranks"]
    target = f.zipf_target(rank.double(), labels)
    close(v, without_label(target, labels), v["expected"]["non_target_pdf"])
    loss, gradient = with_gradient(lambda z: f.off_label_kl(z, target, labels).mean(), logits)
    close(v, loss, v["expected"]["loss"])
    close(v, gradient, v["expected"]["grad_logits"])


@pytest.mark.parametrize("power", ["0.5", "2.0"])
def test_Z05_power(power):
    v = VECTORS["Z05"]
    target, labels = zipf_of(v["inputs"], float(power))
    close(v, without_label(target, labels), v["expected"]["non_target_pdf_by_power"][power])


@pytest.mark.parametrize("smoothing", ["0.1", "0.2"])
def test_Z10_smoothing_of_the_others(smoothing):
    v = VECTORS["Z10"]
    logits, labels = real(v["inputs"]["logits"]), torch.tensor(v["inputs"]["labels"])
    expected = v["expected"]["by_alpha"][smoothing]
    loss, gradient = with_gradient(lambda z: f.label_smoothing(z, labels, float(smoothing), "others"), logits)
    close(v, loss, expected["loss"])
    close(v, gradient, expected["grad_logits"])
    if smoothing == "0.1":
        target = torch.tensor(v["expected"]["target_for_alpha_0_1"])
        torch.testing.assert_close(f.smooth_targets(labels, 6, 0.1, "others"), target)


def test_ls_06_smoothing_of_all():
    v = VECTORS["ls-06"]
    logits, labels = real(v["inputs"]["logits"]), torch.tensor(v["inputs"]["targets"])
    loss, gradient = with_gradient(lambda z: f.label_smoothing(z, labels, 0.1), logits)
    close(v, loss, v["expected"]["loss"])
    close(v, gradient, v["expected"]["grad_wrt_logits"])
    close(v, f.label_smoothing(logits, labels, 0.0), v["expected"]["loss_alpha_0"])
    torch.testing.assert_close(loss, F.cross_entropy(logits, labels, label_smoothing=0.1))


@pytest.mark.parametrize("name", ["kd-01", "kd-02", "kd-03", "kd-04", "kd-05"])
def test_kd_vectors(name):
    v = VECTORS[name]
    teacher, temperature = real(v["inputs"]["teacher_logits"]), v["inputs"]["temperature"]
    loss, gradient = with_gradient(
        lambda z: f.distillation_kl(z, teacher, temperature), real(v["inputs"]["student_logits"])
    )
    close(v, loss, v["expected"]["loss"])
    close(v, gradient, v["expected"]["grad_wrt_student_logits"])


# ---- precision and gradients


def case(batch=64, classes=1000, places=49, dtype=torch.float32, device="cpu"):
    """logits, target's labels, votes."""
    logits = torch.randn(batch, classes, device=device).mul(3).to(dtype)
    votes = torch.randint(classes, (batch, places), device=device)
    return logits, torch.randint(classes, (batch,), device=device), votes


def zipf_loss(logits, labels, votes):
    counts = f.count_votes(votes, logits.shape[1])
    target = f.zipf_target(f.vote_rank(counts, votes.shape[1]), labels)
    return f.off_label_kl(logits, target, labels).mean()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_no_gradient_on_the_label_at_all(dtype):
    logits, labels, votes = case(dtype=dtype)
    logits[0] *= 100
    _, gradient = with_gradient(lambda z: zipf_loss(z, labels, votes), logits)
    assert gradient.isfinite().all()
    assert (gradient.gather(1, labels[:, None]) == 0).all()
    assert (gradient != 0).any(1).all()


def test_a_target_may_hold_zeros():
    logits, labels, _ = case(batch=4, classes=5)
    target = F.one_hot((labels + 1) % 5, 5).float()
    loss, gradient = with_gradient(lambda z: f.off_label_kl(z, target, labels).sum(), logits)
    assert loss.isfinite()
    assert gradient.isfinite().all()


LOSSES = {
    "cross_entropy": lambda z, y, v: f.cross_entropy(z, y),
    "soft_cross_entropy": lambda z, y, v: f.soft_cross_entropy(z, z.detach().softmax(1)),
    "label_smoothing": lambda z, y, v: f.label_smoothing(z, y, 0.1),
    "zipf": zipf_loss,
    "distillation_kl": lambda z, y, v: f.distillation_kl(z, z.detach().roll(1, 0), 2.0),
    "linear_decay": lambda z, y, v: of_weights(
        z, y, f.linear_weights(f.competition_rank(z.detach()), z.shape[1], 1e-6)
    ),
    "unbiased_zipf": lambda z, y, v: of_weights(z, y, unbiased(votes_rank(z, v))),
    "votes": lambda z, y, v: f.off_label_kl(z, of_votes(z, y, v), y).mean(),
    "soft_ranks": lambda z, y, v: of_weights(z, y, f.zipf_weights(f.soft_rank(z.detach(), 0.01))),
    "sorted": lambda z, y, v: of_weights(z, y, f.sorted_weights(votes_rank(z, v), z.detach().float().abs())),
    "friends": lambda z, y, v: of_weights(
        z, y, f.zipf_weights(f.competition_rank(z.detach()[f.nearest(z.detach()[:, :16])]))
    ),
    "symmetric": lambda z, y, v: f.symmetric_cross_entropy(z, y, 6.0, 0.1, 1e-4),
    "symmetric_clamped": lambda z, y, v: f.clamped_symmetric_cross_entropy(z, y, 6.0, 0.1, 1e-4, 1e-7),
    "generalised": lambda z, y, v: f.generalised_cross_entropy(z, y, 0.7),
    "joint": lambda z, y, v: f.class_prior_kl(z) + f.entropy(z),
    "soft_bootstrap": lambda z, y, v: f.soft_bootstrap(z, y, 0.95),
    "hard_bootstrap": lambda z, y, v: f.hard_bootstrap(z, y, 0.8, 1e-7),
    "confusion": lambda z, y, v: f.confusion(z, 1),
}


def of_weights(logits, labels, weights):
    return f.off_label_kl(logits, f.off_label_target(weights, labels), labels).mean()


def unbiased(rank):
    return f.unbiased_zipf_weights(rank, f.tie_size(rank), rank.shape[1], 1.0, 0.001, 1.0)


def of_votes(logits, labels, votes):
    return f.vote_target(votes, labels, logits.shape[1], lambda rank, tied: f.zipf_weights(rank))


def votes_rank(logits, votes):
    return f.vote_rank(f.count_votes(votes, logits.shape[1]), votes.shape[1])


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_is_lifted(name):
    logits, labels, votes = case(dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, gradient = with_gradient(lambda z: LOSSES[name](z, labels, votes), logits)
    assert loss.dtype == torch.float32
    assert gradient.dtype == torch.bfloat16
    if name != "soft_cross_entropy":  # whose target is itself in half precision here
        torch.testing.assert_close(loss, LOSSES[name](logits.float(), labels, votes), rtol=0, atol=0)


# ---- cost


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_depends_on_the_numbers(name):
    """On the meta device there are no numbers: a host sync or a shape that depends on data would raise."""
    logits, labels, votes = case(device="meta")
    loss, gradient = with_gradient(lambda z: LOSSES[name](z, labels, votes), logits)
    assert loss.shape == ()
    assert gradient.shape == logits.shape
    assert f.competition_rank(logits).shape == logits.shape


@pytest.mark.parametrize("name", LOSSES)
def test_compiles_as_one_graph(name):
    logits, labels, votes = case(batch=4, classes=20)
    compiled = torch.compile(LOSSES[name], fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(logits, labels, votes), LOSSES[name](logits, labels, votes))


class Largest(TorchDispatchMode):
    """Sees every tensor that is made, and keeps the greatest number of elements."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [x.untyped_storage().nbytes() // x.element_size() for x in tree_leaves(out) if torch.is_tensor(x)]
        self.numel = max([self.numel, *sizes])
        return out


@pytest.mark.parametrize("name", LOSSES)
def test_no_class_by_class_table(name):
    logits, labels, votes = case(batch=64, classes=10_000)
    with Largest() as largest:
        with_gradient(lambda z: LOSSES[name](z, labels, votes), logits)
    padded = 2**14 if name == "soft_ranks" else 10_000
    assert largest.numel <= 64 * padded
