"""Online label smoothing in its published variants, deep supervision, and the state that a resume needs."""

import copy
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter, ValidationError

from lsdali import dist
from lsdali import functional as f
from lsdali.batch import Batch
from lsdali.clock import Clock, PerEpoch
from lsdali.errors import UserError
from lsdali.methods import METHODS
from lsdali.methods.base import MethodContext
from lsdali.models import ModelConfig, build_network
from lsdali.models.student import Outputs, Student
from tests.harness import equal

VECTORS = json.loads((Path(__file__).parents[1] / "reference" / "online_vectors.json").read_text())
FIRST, LATER = Clock(0, PerEpoch(10), 2), Clock(10, PerEpoch(10), 2)
CHANNELS = {"stage1": 8, "stage2": 8, "stage3": 8}


def make(classes=4, channels=CHANNELS, **tree):
    needs = MethodContext(classes, 100, channels, torch.device("cpu"), 0, lambda config: None)
    kind = METHODS[tree.setdefault("name", "ols")]
    return kind(TypeAdapter(kind.Config).validate_python(tree), needs)


def in_double(method, matrix=None):
    """The method with its state in float64, so that vectors can be met to the last digits."""
    for name in ("matrix", "sums", "counts"):
        setattr(method, name, getattr(method, name).double())
    if matrix is not None:
        method.matrix.copy_(real(matrix))
    return method


def real(x):
    return torch.tensor(x, dtype=torch.float64)


def close(v, actual, expected):
    torch.testing.assert_close(actual.detach(), real(expected), rtol=0, atol=v["atol"])


def batch_of(labels):
    n = len(labels)
    return Batch(torch.zeros(n, 3, 1, 1), torch.tensor(labels), torch.arange(n), torch.ones(n, dtype=torch.bool))


def loss_of(method, logits, labels, clock=LATER, **exits):
    """The method's loss on these logits, and its gradient."""
    logits = real(logits).requires_grad_()
    out = Outputs(logits, logits, {name: real(x) for name, x in exits.items()})
    loss = method.loss(lambda images: out, batch_of(labels), clock)
    assert not loss.observed.requires_grad
    loss.total.backward()
    return loss.total, logits.grad


def epoch(method, batches, clock=LATER):
    for b in batches:
        method.observe(batch_of(b["labels"]), real(b["logits"]))
    method.end_epoch(None, clock)


# ---- published numbers


def test_O01_matrix_of_an_epoch():
    v = VECTORS["O01"]
    method = in_double(make())
    for b, after in zip(v["inputs"]["batches"], v["expected"]["after_each_batch"], strict=True):
        method.observe(batch_of(b["labels"]), real(b["logits"]))
        close(v, method.sums, after["sum"])
        close(v, method.counts, after["count"])
    method.end_epoch(None, LATER)
    close(v, method.matrix, v["expected"]["matrix"])
    assert not method.sums.any()
    assert not method.counts.any()


def test_O02_a_class_without_right_samples():
    v = VECTORS["O02"]
    method = in_double(make(), [[0.7, 0.1, 0.1, 0.1]] * 4)
    epoch(method, v["inputs"]["batches"])
    close(v, method.matrix, v["expected"]["matrix"])


@pytest.mark.parametrize("start", ["zeros", "uniform"])
def test_O03_first_epoch(start):
    v = VECTORS["O03"]
    total, gradient = loss_of(in_double(make(start=start)), v["inputs"]["logits"], v["inputs"]["labels"], FIRST)
    key = start.removesuffix("s")
    close(v, total, v["expected"][f"loss_{key}_start"])
    close(v, gradient, v["expected"][f"grad_{key}_start"])


def test_O04_later_epoch():
    v = VECTORS["O04"]
    method = in_double(make(), v["inputs"]["matrix"])
    total, gradient = loss_of(method, v["inputs"]["logits"], v["inputs"]["labels"])
    close(v, total, v["expected"]["loss"])
    close(v, gradient, v["expected"]["grad_logits"])


def test_O05_fine_grained_variant():
    v = VECTORS["O05"]
    method = in_double(make(hard=1.0, soft=1.0, start="uniform", freeze=0.88))
    for number, batches in enumerate(v["inputs"]["epochs"]):
        if number == 0:
            total, _ = loss_of(method, batches[0]["logits"], batches[0]["labels"])
            close(v, total, v["expected"]["first_epoch_loss_on_epoch1_batch"])
        epoch(method, batches)
        close(v, method.matrix, v["expected"]["after_each_epoch"][number]["matrix"])
    b = v["inputs"]["loss_batch"]
    total, gradient = loss_of(method, b["logits"], b["labels"])
    close(v, total, v["expected"]["loss_with_final_matrix"])
    close(v, gradient, v["expected"]["grad_with_final_matrix"])


def test_O09_distillation_from_the_matrix_and_from_a_teacher():
    v = VECTORS["O09"]
    logits, labels = real(v["inputs"]["logits"]), torch.tensor(v["inputs"]["labels"])
    rows = real(v["inputs"]["matrix"])[labels]
    entropy = -(rows * rows.log()).sum(1).mean()
    close(v, 16 * (f.soft_cross_entropy(logits / 4, rows) - entropy), v["expected"]["kd_loss_T4"]["loss"])
    close(v, f.soft_cross_entropy(logits, rows) - entropy, v["expected"]["kd_loss_T1"])
    kd = f.distillation_kl(logits, real(v["inputs"]["teacher_logits"]), 4.0)
    close(v, 0.9 * kd + 0.1 * f.cross_entropy(logits, labels), v["expected"]["swap_kd"]["loss"])


@pytest.mark.parametrize(
    ("clock", "variant", "key"),
    [(FIRST, "code", "ols_epoch0"), (LATER, "code", "ols_later"), (LATER, "paper", "ols_later")],
)
def test_O11_deep_supervision(clock, variant, key):
    v = VECTORS["O11"]
    i = v["inputs"]
    method = in_double(make(name="ols_deep", variant=variant), i["matrix"])
    total, _ = loss_of(method, i["logits"], i["labels"], clock, exit_stage2=i["mid1"], exit_stage1=i["mid2"])
    close(v, total, v["expected"][key])


@pytest.mark.parametrize(("clock", "key"), [(FIRST, "ls_epoch0"), (LATER, "ls_later")])
def test_O11_deep_label_smoothing(clock, key):
    v = VECTORS["O11"]
    i = v["inputs"]
    method = make(name="exits", smoothing=0.1, hard_epochs=1)
    total, _ = loss_of(method, i["logits"], i["labels"], clock, exit_stage2=i["mid1"], exit_stage1=i["mid2"])
    close(v, total, v["expected"][key])


# ---- deep supervision with distillation


def test_exits_learn_from_the_final_one_and_not_the_other_way():
    i = VECTORS["O11"]["inputs"]
    mids = {"exit_stage2": i["mid1"], "exit_stage1": i["mid2"]}
    plain, without = loss_of(make(name="exits"), i["logits"], i["labels"], **mids)
    distill = {"weight": 0.25, "temperature": 2.0}
    total, gradient = loss_of(make(name="exits", distill=distill), i["logits"], i["labels"], **mids)
    final = (real(i["logits"]) / 2).softmax(1)
    kls = [4 * F.kl_div((real(m) / 2).log_softmax(1), final, reduction="batchmean") for m in mids.values()]
    torch.testing.assert_close(total - plain, 0.25 * sum(kls))
    assert torch.equal(gradient, without)


def test_exits_are_stages_before_the_last():
    assert list(make(name="exits", exits=1).aux_heads()) == ["exit_stage2"]
    assert list(make(name="ols_deep").aux_heads()) == ["exit_stage2", "exit_stage1"]
    with pytest.raises(UserError, match=r"method.exits is 3, but 2 come before the last stage"):
        make(name="ols_deep", exits=3)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("resnext29_2x64d", 15_399_020), ("resnext29_4x64d", 51_572_332), ("resnext29_32x4d", 11_044_460)],
)
def test_exits_are_as_large_as_the_published_ones(name, parameters):
    network = build_network(ModelConfig(name=name), 100)
    student = Student(network, make(100, network.channels, name="ols_deep").aux_heads())
    assert sum(p.numel() for p in student.parameters()) == parameters


def test_exits_that_images_are_too_small_for_are_refused():
    network = build_network(ModelConfig(name="preact_resnet18", width=16), 5)
    student = Student(network, make(5, network.channels, name="ols_deep").aux_heads())
    with pytest.raises(
        UserError, match=r"at least 4 x 4 positions, but .stage3. gives 1 x 1: use larger images, fewer"
    ):
        student(torch.zeros(2, 3, 4, 4))


# ---- state


def test_a_resume_inside_an_epoch_goes_on_with_the_same_sums():
    batches = VECTORS["O01"]["inputs"]["batches"]
    whole, stopped, resumed = make(), make(), make()
    epoch(whole, batches)
    epoch(whole, batches[::-1])
    epoch(stopped, batches)
    stopped.observe(batch_of(batches[2]["labels"]), real(batches[2]["logits"]))
    resumed.load_state_dict(copy.deepcopy(stopped.state_dict()))
    epoch(resumed, batches[1::-1])
    assert equal(whole.state_dict(), resumed.state_dict())


def test_between_epochs_no_sums_are_saved():
    method = make()
    epoch(method, VECTORS["O01"]["inputs"]["batches"])
    assert method.state_dict()["ranks"] == []


def test_state_of_another_method_or_other_classes_is_refused():
    with pytest.raises(UserError) as caught:
        make().load_state_dict({"targets": torch.zeros(3)})
    assert str(caught.value) == (
        "the method 'ols' keeps matrix [4, 4] and ranks, but the checkpoint holds targets for it: "
        "it was saved by another method or for other classes"
    )
    with pytest.raises(UserError):
        make().load_state_dict(make(classes=5).state_dict())


def collect_on_a_rank(folder):
    method = make()
    for b in VECTORS["O17"]["inputs"][f"worker{dist.rank()}"]:
        method.observe(batch_of(b["labels"]), real(b["logits"]))
    state = method.state_dict()
    again = make()
    again.load_state_dict(state)
    assert torch.equal(again.sums, method.sums)
    assert torch.equal(again.counts, method.counts)
    again.end_epoch(None, LATER)
    torch.save({"inside": state, "after": again.state_dict()}, folder / f"{dist.rank()}.pt")


@pytest.mark.ranks
def test_O17_two_ranks_add_before_they_divide(tmp_path, on_ranks):
    v = VECTORS["O17"]
    on_ranks(2, collect_on_a_rank, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert equal(first, second)
    expected = torch.tensor(v["expected"]["matrix_after_reduce"])
    torch.testing.assert_close(first["after"]["matrix"], expected, rtol=0, atol=1e-6)
    alone = make()  # a run saved on two ranks goes on with one
    alone.load_state_dict(first["inside"])
    alone.end_epoch(None, LATER)
    torch.testing.assert_close(alone.matrix, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "tree",
    [
        {"hard": -0.1},
        {"soft": -0.1},
        {"hard": 0.0},
        {"hard": 0.0, "soft": 0.0, "start": "uniform"},
        {"freeze": 1.0},
        {"start": "ones"},
        {"name": "ols_deep", "exits": 0},
        {"name": "ols_deep", "variant": "none"},
        {"name": "exits", "smoothing": 1.0},
        {"name": "exits", "distill": {"temperature": 0.0}},
        {"name": "exits", "final_weight": 0.0},
    ],
)
def test_wrong_values_are_refused(tree):
    with pytest.raises(ValidationError):
        make(**tree)
