"""The losses that OLS is compared with: published numbers through the methods, and the definitions."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter, ValidationError

from lsdali import functional as f
from lsdali.batch import Batch
from lsdali.clock import Clock, PerEpoch
from lsdali.methods import METHODS
from lsdali.methods.base import MethodContext
from lsdali.models.student import Outputs

VECTORS = json.loads((Path(__file__).parents[1] / "reference" / "online_vectors.json").read_text())
CLOCK = Clock(0, PerEpoch(10), 3)
CLAMP = 1e-7


def make(classes=4, **tree):
    needs = MethodContext(classes, 100, {"stage1": 8}, torch.device("cpu"), 3, lambda config: None)
    kind = METHODS[tree["name"]]
    return kind(TypeAdapter(kind.Config).validate_python(tree), needs)


def real(x):
    return torch.tensor(x, dtype=torch.float64)


def batch_of(labels, index=None):
    n = len(labels)
    index = torch.arange(n) if index is None else torch.tensor(index)
    return Batch(torch.zeros(n, 3, 1, 1), torch.as_tensor(labels), index, torch.ones(n, dtype=torch.bool))


def check(v, method, expected, atol=None):
    """The loss and its gradient on the logits of a vector."""
    logits = real(v["inputs"]["logits"]).requires_grad_()
    out = Outputs(logits, logits, {})
    loss = method.loss(lambda images: out, batch_of(v["inputs"]["labels"]), CLOCK)
    assert not loss.observed.requires_grad
    loss.total.backward()
    atol = atol or v["atol"]
    torch.testing.assert_close(loss.total.detach(), real(expected["loss"]), rtol=0, atol=atol)
    if "grad_logits" in expected:
        torch.testing.assert_close(logits.grad, real(expected["grad_logits"]), rtol=0, atol=atol)


AS_PUBLISHED = {
    "sce_cifar100_alpha6_beta0.1": {"name": "sce", "variant": "code"},
    "sce_cifar10_alpha0.1_beta1": {"name": "sce", "forward": 0.1, "reverse": 1.0, "variant": "code"},
    "gce_q0.7": {"name": "gce"},
    "jo_1.2_0.8": {"name": "joint"},
    "bootsoft_beta0.95": {"name": "bootstrap_soft", "variant": "code"},
    "boothard_beta0.8": {"name": "bootstrap_hard", "variant": "code"},
    "forward_identity": {"name": "forward", "variant": "code"},
    "backward_identity": {"name": "backward", "variant": "code"},
    "pc_lambda10": {"name": "pairwise_confusion", "of": "logits", "variant": "code"},
}


@pytest.mark.parametrize("key", AS_PUBLISHED)
def test_O06_on_one_batch(key):
    check(VECTORS["O06"], make(**AS_PUBLISHED[key]), VECTORS["O06"]["expected"][key])


@pytest.mark.parametrize("key", ["bootsoft_beta0.95", "boothard_beta0.8", "forward_identity", "backward_identity"])
def test_O06_without_clamp_where_nothing_is_clamped(key):
    tree = {k: x for k, x in AS_PUBLISHED[key].items() if k != "variant"}
    check(VECTORS["O06"], make(**tree), VECTORS["O06"]["expected"][key])


@pytest.mark.parametrize("name", ["forward", "backward"])
@pytest.mark.parametrize("suffix", [".json", ".npy"])
def test_O06_with_a_noise_matrix(name, suffix, tmp_path):
    v = VECTORS["O06"]
    path = tmp_path / f"noise{suffix}"
    matrix = v["inputs"]["transition"]
    path.write_text(json.dumps(matrix)) if suffix == ".json" else np.save(path, matrix)
    method = make(name=name, noise={"name": "matrix", "file": str(path)})
    check(v, method, v["expected"][f"{name}_T"], atol=2e-6)  # the matrix is in float32
    logits, labels = real(v["inputs"]["logits"]), torch.tensor(v["inputs"]["labels"])
    exact = {"forward": f.forward_correction, "backward": f.backward_correction}[name]
    used = real(matrix) if name == "forward" else real(matrix).inverse()
    assert exact(logits, labels, used).item() == pytest.approx(v["expected"][f"{name}_T"]["loss"], abs=v["atol"])


O07 = {
    "gce": {"name": "gce"},
    "bootsoft": {"name": "bootstrap_soft", "variant": "code"},
    "boothard": {"name": "bootstrap_hard", "variant": "code"},
    "forward": {"name": "forward", "variant": "code"},
    "sce100": {"name": "sce", "variant": "code"},
    "jo": {"name": "joint"},
}


@pytest.mark.parametrize("key", O07)
def test_O07_where_clamps_bite(key):
    check(VECTORS["O07"], make(**O07[key]), VECTORS["O07"]["expected"][key])


@pytest.mark.parametrize("name", ["sce", "bootstrap_soft", "bootstrap_hard", "forward", "backward", "joint", "gce"])
def test_without_clamp_a_hopeless_label_is_still_learned(name):
    logits = torch.tensor([[60.0, 0.0, 0.0, 0.0], [-200.0, 0.0, 0.0, 0.0]], requires_grad=True)
    out = Outputs(logits, logits, {})
    total = make(name=name).loss(lambda images: out, batch_of([0, 0]), CLOCK).total
    total.backward()
    assert total.isfinite()
    assert logits.grad.isfinite().all()
    if name != "gce":  # which gives up on such labels by design
        assert logits.grad[1, 0] < -0.1


def test_symmetric_cross_entropy_of_the_paper():
    v = VECTORS["O06"]["inputs"]
    logits, labels = real(v["logits"]), torch.tensor(v["labels"])
    p = logits.softmax(1).gather(1, labels[:, None]).squeeze(1)
    expected = 6 * -p.log().mean() + 0.1 * (-math.log(1e-4) * (1 - p)).mean()
    torch.testing.assert_close(make(name="sce").value(logits, labels), expected)


def test_generalised_cross_entropy_at_its_ends():
    v = VECTORS["O06"]["inputs"]
    logits, labels = real(v["logits"]), torch.tensor(v["labels"])
    p = logits.softmax(1).gather(1, labels[:, None])
    torch.testing.assert_close(make(name="gce", q=1.0).value(logits, labels), (1 - p).mean())
    close_to_ce = make(name="gce", q=1e-6).value(logits, labels)
    torch.testing.assert_close(close_to_ce, F.cross_entropy(logits, labels), rtol=1e-5, atol=0)


def test_backward_correction_is_unbiased():
    """Averaged over the noise, it is the clean loss."""
    matrix = real(VECTORS["O06"]["inputs"]["transition"])
    logits = real(VECTORS["O06"]["inputs"]["logits"])[:1]
    losses = torch.stack([f.backward_correction(logits, torch.tensor([k]), matrix.inverse()) for k in range(4)])
    torch.testing.assert_close(matrix @ losses, -logits.log_softmax(1)[0])


# ---- disturbed labels


def test_O08_loss_on_the_published_labels():
    v = VECTORS["O08"]
    logits = torch.sin(0.37 * torch.arange(200, dtype=torch.float64)).view(20, 10)
    for case in v["expected"]["by_torch_cpu_seed_default_dtype_float64"].values():
        loss = f.cross_entropy(logits, torch.tensor(case["new_labels"]))
        assert loss.item() == pytest.approx(case["loss"], abs=v["atol"])


def test_O08_how_often_and_whereto_labels_change():
    method = make(classes=10, name="disturb")
    labels = torch.arange(100_000) % 10
    batch = Batch(torch.zeros(1), labels, torch.arange(100_000), torch.ones(1))
    new = method.disturbed(batch, CLOCK)
    changed = new != labels
    rate = VECTORS["O08"]["expected"]["flip_probability"]
    assert changed.float().mean().item() == pytest.approx(rate, abs=0.004)
    shifts = torch.bincount((new - labels)[changed] % 10, minlength=10)
    assert shifts[0] == 0
    assert shifts[1:].min() > 850
    assert shifts[1:].max() < 1150


def test_disturbed_labels_are_functions_of_epoch_and_sample():
    method = make(classes=10, name="disturb", rate=0.5)
    index = list(range(64))
    new = method.disturbed(batch_of([3] * 64, index), CLOCK)
    assert torch.equal(new, method.disturbed(batch_of([3] * 64, index[::-1]), CLOCK).flip(0))
    assert not torch.equal(new, method.disturbed(batch_of([3] * 64, index), Clock(10, PerEpoch(10), 3)))
    logits = torch.randn(64, 10)
    out = Outputs(logits, logits, {})
    loss = method.loss(lambda images: out, batch_of([3] * 64, index), CLOCK)
    torch.testing.assert_close(loss.total, F.cross_entropy(logits, new))


# ---- pairwise confusion


@pytest.mark.parametrize(("variant", "key"), [("code", "cifar_confusion_term"), ("paper", "fine_grained_term")])
def test_O14_confusion(variant, key):
    v = VECTORS["O14"]
    method = make(name="pairwise_confusion", of="logits", variant=variant)
    logits = real(v["inputs"]["logits"])
    out = Outputs(logits, logits, {})
    loss = method.loss(lambda images: out, batch_of(v["inputs"]["labels"]), CLOCK)
    assert loss.terms["confusion"].item() == pytest.approx(v["expected"][key], abs=v["atol"])


def test_confusion_of_an_odd_batch_of_equal_samples_and_before_its_epoch():
    logits = torch.ones(5, 4, requires_grad=True)
    out = Outputs(logits, logits, {})
    total = make(name="pairwise_confusion").loss(lambda images: out, batch_of([0] * 5), CLOCK).total
    total.backward()
    assert logits.grad.isfinite().all()
    assert total.item() == pytest.approx(math.log(4))
    other = Outputs(torch.randn(4, 4), logits, {})
    late = make(name="pairwise_confusion", from_epoch=1)
    ce = F.cross_entropy(other.logits, torch.zeros(4, dtype=torch.int64))
    assert late.loss(lambda images: other, batch_of([0] * 4), CLOCK).total == ce
    assert late.loss(lambda images: other, batch_of([0] * 4), Clock(10, PerEpoch(10), 3)).total > ce


@pytest.mark.parametrize(
    "tree",
    [
        {"name": "sce", "forward": -1.0},
        {"name": "sce", "zero": 0.0},
        {"name": "sce", "variant": "both"},
        {"name": "sce", "forward": 0.0, "reverse": 0.0},
        {"name": "gce", "q": 0.0},
        {"name": "gce", "q": 1.1},
        {"name": "gce", "q": 1e-45},
        {"name": "joint", "prior": -1.0},
        {"name": "bootstrap_soft", "trust": 1.1},
        {"name": "bootstrap_hard", "trust": -0.1},
        {"name": "forward", "noise": {"name": "symmetric", "rate": 1.1}},
        {"name": "backward", "noise": {"name": "estimated", "epochs": 0}},
        {"name": "disturb", "rate": 1.1},
        {"name": "pairwise_confusion", "weight": -1.0},
    ],
)
def test_wrong_values_are_refused(tree):
    with pytest.raises(ValidationError):
        make(**tree)
