"""ZLS in all its forms, on published numbers and against the definitions. Vectors go through the method itself."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter, ValidationError

from lsdali import functional as f
from lsdali.batch import Batch
from lsdali.clock import Clock, PerEpoch
from lsdali.data.sampling.sampler import uniforms
from lsdali.errors import UserError
from lsdali.methods import METHODS
from lsdali.methods.base import MethodContext
from lsdali.methods.shared.draws import half_normal, lomax
from lsdali.models import ModelConfig, build_network
from lsdali.models.student import Outputs, Student

VECTORS = json.loads((Path(__file__).parents[1] / "reference" / "zipf_vectors.json").read_text())
CLOCK = Clock(0, PerEpoch(10), 2)
CHANNELS = {f"stage{i + 1}": 16 * 2**i for i in range(4)}


class FixedTeacher:
    def __init__(self, logits):
        self.logits, self.classes = logits, logits.shape[1]

    def __call__(self, images):
        return self.logits


def needs(classes=6, teacher=None, channels=CHANNELS):
    return MethodContext(classes, 100, channels, torch.device("cpu"), 7, lambda config: FixedTeacher(teacher))


def make(method_needs=None, **tree):
    kind = METHODS[tree.setdefault("name", "zls")]
    return kind(TypeAdapter(kind.Config).validate_python(tree), method_needs or needs())


def real(x):
    return torch.tensor(x, dtype=torch.float64)


def batch_of(labels, images=None, index=None):
    n = len(labels)
    index = torch.arange(n) if index is None else torch.tensor(index)
    images = torch.zeros(n, 3, 1, 1) if images is None else images
    return Batch(images, torch.tensor(labels), index, torch.ones(n, dtype=torch.bool))


def outputs(inputs, **aux_heads):
    logits = real(inputs["logits"] if "logits" in inputs else inputs["logits_final"]).requires_grad_()
    features = real(inputs["features"]) if "features" in inputs else torch.zeros(len(logits), 2)
    return Outputs(logits, features, {name: torch.tensor(x) for name, x in aux_heads.items()})


def without_label(x, labels):
    keep = torch.ones_like(x, dtype=torch.bool).scatter_(1, torch.tensor(labels)[:, None], value=False)
    return x[keep].view(len(x), -1)


def close(v, actual, expected, atol=None):
    torch.testing.assert_close(actual.detach().double(), real(expected), rtol=0, atol=atol or v["atol"])


FLOAT32 = 2e-7  # ranks are whole numbers, so that weights of ranks are in float32


def check_target(v, method, out, labels, expected):
    target = method.target(out, batch_of(labels), torch.tensor(labels), CLOCK)
    assert not target.requires_grad
    torch.testing.assert_close(target.sum(1), torch.ones_like(target[:, 0]), rtol=0, atol=1e-6)
    close(v, without_label(target, labels), expected, None if target.dtype == torch.float64 else FLOAT32)


# ---- published numbers


@pytest.mark.parametrize("smallest", ["0.0", "1e-06", "0.01", "0.16666666666666666"])
def test_Z06_linear_decay(smallest):
    v = VECTORS["Z06"]
    labels, expected = v["inputs"]["labels"], v["expected"]["non_target_pdf_by_smallest_prob"][smallest]
    method = make(distribution={"name": "linear_decay", "smallest_prob": float(smallest)})
    out = outputs({"logits": [[0.0] * 6] * 3}, votes=v["inputs"]["votes"])
    check_target(v, method, out, labels, expected)
    weights = f.linear_weights(method.rank(out).double(), 6, float(smallest))
    close(v, without_label(f.off_label_target(weights, torch.tensor(labels)), labels), expected)


@pytest.mark.parametrize("rate", ["0.5", "2.0"])
def test_Z07_exponential_decay(rate):
    v = VECTORS["Z07"]
    labels, expected = v["inputs"]["labels"], v["expected"]["non_target_pdf_by_exp_lambda"][rate]
    method = make(distribution={"name": "exponential_decay", "exp_lambda": float(rate)})
    out = outputs({"logits": [[0.0] * 6] * 3}, votes=v["inputs"]["votes"])
    check_target(v, method, out, labels, expected)
    weights = f.exponential_weights(method.rank(out).double(), float(rate))
    close(v, without_label(f.off_label_target(weights, torch.tensor(labels)), labels), expected)


@pytest.mark.parametrize("case", VECTORS["Z08"]["expected"]["non_target_pdf"])
def test_Z08_unbiased_zipf(case):
    v = VECTORS["Z08"]
    dense, power, left = (part.split("=")[1] for part in case.split(","))
    distribution = {"name": "unbiased_zipf", "power": float(power), "left_bound": float(left)}
    method = make(distribution=distribution, ranking="dense" if dense == "True" else "pooled")
    expected = v["expected"]["non_target_pdf"][case]
    check_target(v, method, outputs(v["inputs"], votes=v["inputs"]["votes"]), v["inputs"]["labels"], expected)


@pytest.mark.parametrize("name", ["uniform", "gaussian", "pareto"])
def test_Z09_random_weights(name):
    v = VECTORS["Z09"]
    raw = v["inputs"]["raw_gaussian_abs" if name == "gaussian" else f"raw_{name}"]
    labels = v["inputs"]["labels"]
    target = f.off_label_target(real(raw), torch.tensor(labels))
    close(v, without_label(target, labels), v["expected"]["non_target_pdf"][f"random_{name}"])


def test_Z09_lomax_from_uniform():
    v = VECTORS["Z09"]["inputs"]
    np.testing.assert_allclose(lomax(np.array(v["raw_uniform"])), v["raw_pareto"], rtol=1e-12)


def test_Z09_constant():
    v = VECTORS["Z09"]
    method = make(distribution={"name": "constant"})
    check_target(v, method, outputs(v["inputs"]), v["inputs"]["labels"], v["expected"]["non_target_pdf"]["constant"])


def test_sorted_pareto_gives_the_greatest_draw_to_the_first_rank():
    """The published vector follows argsort(rank); rank r should take the r-th greatest draw, ties the same one."""
    v = VECTORS["Z09"]["inputs"]
    raw, rank = real(v["raw_pareto"]), torch.tensor([[5, 2, 1, 3, 5, 3], [6, 5, 4, 1, 2, 3], [2, 2, 2, 2, 1, 2]])
    weights = f.sorted_weights(rank, raw)
    for row, ranks, drawn in zip(weights.tolist(), rank.tolist(), raw.tolist(), strict=True):
        assert row == [sorted(drawn, reverse=True)[r - 1] for r in ranks]


def test_Z11_label_smoothing_by_rank():
    v = VECTORS["Z11"]
    out = outputs(v["inputs"], votes=v["inputs"]["votes"])
    method = make(weight=0.0, criterion={"name": "ls_zipf", "smoothing": v["params"]["alpha"]})
    labels = v["inputs"]["labels"]
    mixed = f.label_and_others(
        method.target(out, batch_of(labels), torch.tensor(labels), CLOCK), torch.tensor(labels), v["params"]["alpha"]
    )
    close(v, mixed, v["expected"]["target"], FLOAT32)
    loss = method.loss(lambda images: out, batch_of(labels), CLOCK).total
    close(v, loss, v["expected"]["loss"], FLOAT32)
    loss.backward()
    close(v, out.logits.grad, v["expected"]["grad_logits"], FLOAT32)


@pytest.mark.parametrize("deep", [None, {"exits": 1, "weight": 0.5}])
def test_Z12_deep_votes(deep):
    v = VECTORS["Z12"]
    inputs, expected = v["inputs"], v["expected"]
    out = outputs(inputs, votes=inputs["votes_final"], votes_stage3=inputs["votes_layer3"])
    out.aux_heads["exit_stage3"] = real(inputs["logits_layer3"])
    method = make(weight=v["params"]["loss_lambda"], deep=deep)
    loss = method.loss(lambda images: out, batch_of(inputs["labels"]), CLOCK)
    close(v, loss.total, expected["total_deeplayer2" if deep else "total_deeplayer1"], FLOAT32)
    close(v, loss.terms["ce"], expected["ce_final"])
    if deep:
        close(v, loss.terms["zipf"], expected["kd_loss"], FLOAT32)
        close(v, loss.terms["exits"], expected["ce_layer3"])


def test_Z14_friends():
    v = VECTORS["Z14"]
    out, labels = outputs(v["inputs"]), v["inputs"]["labels"]
    assert f.nearest(out.features).tolist() == v["expected"]["nearest"]
    method = make(ranking="friends", criterion={"name": "ce"})
    assert method.aux_heads() == {}
    check_target(v, method, out, labels, v["expected"]["non_target_pdf"])
    _, terms = method.total(out, batch_of(labels), CLOCK)
    close(v, terms["zipf"], v["expected"]["loss"], FLOAT32)
    terms["zipf"].backward()
    close(v, out.logits.grad, v["expected"]["grad_logits"], FLOAT32)


@pytest.mark.parametrize("ranking", ["dense", "pooled", "friends"])
def test_soft_ranks_rank_what_whole_ranks_do(ranking):
    """With a strength less than any distance of scores they are the whole ranks, but ties share their mean."""
    v = VECTORS["Z14"]["inputs"]
    out, labels = outputs(v, votes=VECTORS["Z12"]["inputs"]["votes_final"]), v["labels"]
    soft = make(ranking=ranking, soft={"strength": 1e-3})
    whole = make(ranking=ranking).rank(out)
    tied = f.tie_size(whole)
    torch.testing.assert_close(soft.rank(out).double(), (whole + (tied - 1) / 2).double(), rtol=0, atol=1e-5)
    expected = f.zipf_target(whole + (tied - 1) / 2, torch.tensor(labels))
    target = soft.target(out, batch_of(labels), torch.tensor(labels), CLOCK)
    torch.testing.assert_close(target.double(), expected.double(), rtol=0, atol=1e-6)
    assert not target.requires_grad


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_Z16_with_a_teacher(temperature):
    v = VECTORS["Z16"]
    inputs, expected = v["inputs"], v["expected"][f"kd_alpha_0_5_T_{temperature:.0f}"]
    out = outputs(inputs, votes=inputs["votes"])
    teacher = {"source": "checkpoint", "path": "x.pt"}
    there = needs(teacher=real(inputs["teacher_logits"]))
    method = make(there, name="zls_kd", teacher=teacher, temperature=temperature)
    total, terms = method.total(out, batch_of(inputs["labels"]), CLOCK)
    close(v, terms["kd"], expected["loss"])
    if temperature == 1:
        close(v, total, v["expected"]["total_lambda_1"], FLOAT32)
    (gradient,) = torch.autograd.grad(terms["kd"], out.logits)
    close(v, gradient, expected["grad_logits"])


def test_a_teacher_with_other_classes_is_refused():
    with pytest.raises(UserError, match="the teacher knows 4 classes, but the data set has 6"):
        make(needs(teacher=torch.zeros(3, 4)), name="zls_kd", teacher={"source": "checkpoint", "path": "x.pt"})


# ---- definitions


@pytest.mark.parametrize("name", ["random_uniform", "random_gaussian", "random_pareto", "sorted_pareto"])
def test_random_weights_are_functions_of_epoch_and_sample(name):
    method = make(distribution={"name": name}, **({"ranking": "pooled"} if name == "sorted_pareto" else {}))
    out = outputs({"logits": [[0.3, 0.2, 0.1, 0.0, -0.1, -0.2]] * 4})

    def target(epoch, index):
        return method.target(
            out, batch_of([1] * 4, index=index), torch.tensor([1] * 4), Clock(10 * epoch, PerEpoch(10), 5)
        )

    first = target(0, [5, 6, 7, 8])
    assert torch.equal(first, target(0, [5, 6, 7, 8]))
    assert torch.equal(first.flip(0), target(0, [8, 7, 6, 5]))
    assert not torch.isclose(first, target(1, [5, 6, 7, 8])).all(1).any()
    assert len(torch.unique(first, dim=0)) == 4
    torch.testing.assert_close(first.sum(1), torch.ones(4))
    if name == "sorted_pareto":  # the classes fall from the first to the last
        assert (without_label(first, [1] * 4).diff(dim=1) <= 0).all()


def test_half_normal_and_lomax_have_their_distributions():
    uniform = uniforms(0, 0, np.arange(1000), 200, 3)
    normal = half_normal(uniform)
    assert normal.shape == (1000, 100)
    assert (normal >= 0).all()
    assert (normal < 1).mean() == pytest.approx(0.6827, abs=0.005)
    assert (normal**2).mean() == pytest.approx(1, abs=0.02)
    assert (lomax(uniform) < 1).mean() == pytest.approx(0.5, abs=0.005)


def test_only_right_samples_count():
    inputs = VECTORS["Z11"]["inputs"]
    out, labels = outputs(inputs, votes=inputs["votes"]), inputs["labels"]
    kl = f.off_label_kl(
        out.logits, make().target(out, batch_of(labels), torch.tensor(labels), CLOCK), torch.tensor(labels)
    )
    right = out.logits.argmax(1) == torch.tensor(labels)
    assert right.tolist() == [True, False, True]
    loss = make(samples="correct").loss(lambda images: out, batch_of(labels), CLOCK)
    torch.testing.assert_close(loss.terms["zipf"], kl[right].mean().detach())


def test_two_classes_leave_nothing_to_rank():
    with pytest.raises(UserError, match="ranks the classes beside the label, and of 2 classes that is one"):
        make(needs(classes=2))


def test_votes_of_exits_are_those_of_their_own_heads():
    torch.manual_seed(0)
    method = make(deep={"exits": 2, "weight": 0.5})
    network = build_network(ModelConfig(name="preact_resnet18", width=16), 6)
    student = Student(network, method.aux_heads()).eval()
    images = torch.randn(3, 3, 16, 16)
    out, maps = student(images), network.maps(images)
    shapes = []
    for name in ("stage3", "stage2"):
        head = student.aux_heads[f"exit_{name}"].linear
        torch.testing.assert_close(out.aux_heads[f"exit_{name}"], head(maps[name].mean((2, 3))))
        votes = head(maps[name].flatten(2).mT).argmax(2)
        assert torch.equal(out.aux_heads[f"votes_{name}"], votes)
        shapes.append(votes.shape[1])
    assert shapes == [16, 64]
    every = torch.cat([out.aux_heads[n] for n in ("votes", "votes_stage3", "votes_stage2")], 1)
    expected = f.competition_rank(F.one_hot(every, 6).sum(1))
    assert torch.equal(method.rank(out), expected)
    assert sum(p.numel() for p in student.aux_heads.parameters()) == 6 * (64 + 1) + 6 * (32 + 1)


# ---- what a wrong recipe is told


@pytest.mark.parametrize(
    "tree",
    [
        {"weight": -0.1},
        {"distribution": {"name": "linear_decay"}},
        {"distribution": {"name": "linear_decay", "smallest_prob": -0.1}},
        {"distribution": {"name": "exponential_decay", "exp_lambda": 0.0}},
        {"distribution": {"name": "constant", "power": 2.0}},
        {"deep": {"exits": 3}},
        {"deep": {"weight": -1.0}},
        {"criterion": {"name": "ls_zipf", "smoothing": 1.0}},
        {"criterion": {"name": "ce", "smoothing": 0.1}},
        {"ranking": "soft"},
        {"soft": {"strength": 0.0}},
        {"distribution": {"name": "rank_zipf", "power": 0.0}},
    ],
)
def test_wrong_values_are_refused(tree):
    with pytest.raises(ValidationError):
        make(**tree)


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        (
            {"distribution": {"name": "constant"}, "upsample": "bilinear"},
            "the distribution constant reads no ranks; leave out `ranking` and `upsample`",
        ),
        (
            {"distribution": {"name": "random_pareto"}, "ranking": "pooled"},
            "the distribution random_pareto reads no ranks; leave out `ranking` and `upsample`",
        ),
        ({"ranking": "friends", "upsample": "bicubic"}, "the ranking 'friends' reads no votes; leave out `upsample`"),
        (
            {"distribution": {"name": "unbiased_zipf", "left_bound": 2.0}},
            "left_bound 2.0 must be less than right_bound 1.0",
        ),
        *(
            (
                {"distribution": {"name": name}, "soft": {}},
                f"the distribution {name} reads no soft ranks; leave out `soft`, or use one of "
                "rank_zipf, linear_decay, exponential_decay",
            )
            for name in ("constant", "sorted_pareto", "unbiased_zipf")
        ),
    ],
)
def test_dead_and_crossed_keys_are_named(tree, expected):
    with pytest.raises(ValidationError) as caught:
        make(**tree)
    (error,) = caught.value.errors()
    assert str(error["ctx"]["error"]) == expected


def test_smallest_prob_must_fit_the_classes():
    make(distribution={"name": "linear_decay", "smallest_prob": 1 / 6})
    with pytest.raises(UserError) as caught:
        make(distribution={"name": "linear_decay", "smallest_prob": 0.2})
    assert str(caught.value) == (
        "method.distribution.smallest_prob is 0.2, but with 6 classes it can be at most 1/6 = 0.166667"
    )


def test_a_network_with_too_few_stages():
    with pytest.raises(UserError, match=r"method.deep.exits is 2, but 1 come before the last stage"):
        make(needs(channels={"one": 8, "two": 8}), deep={"exits": 2})


def test_a_student_with_voting_exits_compiles():
    torch.manual_seed(0)
    method = make(deep={"exits": 1})
    eager = Student(build_network(ModelConfig(name="preact_resnet18", width=16), 6), method.aux_heads()).eval()
    images = torch.randn(2, 3, 16, 16)
    expected = eager(images)
    eager.compile(fullgraph=True, backend="aot_eager")
    out = eager(images)
    assert torch.equal(out.aux_heads["votes_stage3"], expected.aux_heads["votes_stage3"])
    torch.testing.assert_close(out.aux_heads["exit_stage3"], expected.aux_heads["exit_stage3"])
