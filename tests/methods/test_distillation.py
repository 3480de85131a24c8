"""CS-KD, TF-KD, BAKE, IBLS and its student: losses against what published code gives, and refusals."""

import json
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from lsdali.batch import Batch
from lsdali.clock import Clock, PerEpoch
from lsdali.errors import UserError
from lsdali.methods import METHODS
from lsdali.methods.base import MethodContext
from lsdali.models.student import Outputs

VECTORS = json.loads((Path(__file__).parents[1] / "reference/distillation_vectors.json").read_text())
CLOCK = Clock(0, PerEpoch(10), 2)
TEACHER = {"source": "checkpoint", "path": "teacher.pt"}


def real(x):
    return torch.tensor(x, dtype=torch.float64)


class TableTeacher:
    """Answers with given logits."""

    def __init__(self, logits):
        self.logits, self.classes = logits, logits.shape[1]

    def __call__(self, images):
        return self.logits


def make(tree, teacher=None, classes=None):
    kind = METHODS[tree["name"]]
    teacher = TableTeacher(torch.zeros(1, classes or 3) if teacher is None else teacher)
    needs = MethodContext(classes or teacher.classes, 10, {}, torch.device("cpu"), 0, lambda config: teacher)
    return kind(TypeAdapter(kind.Config).validate_python(tree), needs)


def run(method, logits, labels, features=None):
    """Loss and its gradient at the logits, which are also the images: the student is the identity."""
    labels = torch.tensor(labels)
    images = logits.clone().requires_grad_()
    batch = Batch(images, labels, torch.arange(len(labels)), torch.ones(len(labels), dtype=torch.bool))
    loss = method.loss(lambda x: Outputs(x, x if features is None else features, {}), batch, CLOCK)
    loss.total.backward()
    return loss, images.grad


def close(actual, expected, **tolerance):
    torch.testing.assert_close(actual.detach(), real(expected), **{"rtol": 1e-10, "atol": 1e-12, **tolerance})


def interleaved(even, odd):
    return torch.stack([real(even), real(odd)], 1).flatten(0, 1)


def twice(labels):
    return [y for y in labels for _ in range(2)]


# ---- class-wise


def test_P11_class_pairs():
    v = VECTORS["P11"]["inputs"], VECTORS["P11"]["expected"]
    logits = interleaved(v[0]["student_logits"], v[0]["partner_logits"])
    loss, gradient = run(make({"name": "cskd"}), logits, twice(v[0]["labels"]))
    close(loss.total, v[1]["total"])
    close(loss.terms["ce"], v[1]["ce"])
    close(loss.terms["pair"], v[1]["cls"])
    close(gradient[0::2], v[1]["grad"])
    assert (gradient[1::2] == 0).all(), "a partner is without gradient"
    assert torch.equal(loss.observed, logits)


def test_Z15_class_pairs():
    v = VECTORS["Z15"]["inputs"], VECTORS["Z15"]["expected"]["cs_kd"]
    logits = interleaved(v[0]["logits"], v[0]["partner_logits"])
    whole = run(make({"name": "cskd", "weight": 2.0}), logits, twice(v[0]["labels"]))
    ce = run(make({"name": "cskd", "weight": 0.0}), logits, twice(v[0]["labels"]))
    close(whole[0].terms["pair"], v[1]["loss"])
    close((whole[1] - ce[1])[0::2] / 2, v[1]["grad_logits"])


def test_an_odd_batch_is_refused():
    with pytest.raises(UserError) as caught:
        run(make({"name": "cskd"}), torch.zeros(3, 4), [0, 0, 1])
    assert str(caught.value) == "cskd reads pairs of one class, but the batch has 3 samples: use an even one"


# ---- teacher-free


def test_P12_an_earlier_network():
    v = VECTORS["P12"]["inputs"], VECTORS["P12"]["expected"]
    tree = {"name": "tfkd", "form": "self", "teacher": TEACHER, "alpha": 0.95, "temperature": 6.0}
    teacher = real(v[0]["teacher_logits"])
    code = make({**tree, "variant": "code", "multiplier": 50.0}, teacher)
    close(run(code, real(v[0]["logits"]), v[0]["labels"])[0].total, v[1]["loss"])
    text = run(make(tree, teacher), real(v[0]["logits"]), v[0]["labels"])[0]
    close(text.terms["kd"], 36 * 4 * v[1]["kl_mean_over_elements"])  # T^2 and the number of classes
    close(text.total, 0.05 * v[1]["ce"] + 0.95 * text.terms["kd"].item())


def test_P13_the_virtual_teacher():
    v = VECTORS["P13"]["inputs"], VECTORS["P13"]["expected"]
    tree = {
        "name": "tfkd",
        "form": "virtual",
        "alpha": 0.1,
        "temperature": 20.0,
        "variant": "code",
        "multiplier": 100.0,
    }
    close(run(make(tree, classes=4), real(v[0]["logits"]), v[0]["labels"])[0].total, v[1]["loss"], rtol=1e-7)


@pytest.mark.parametrize(
    ("name", "temperature", "multiplier"), [("T=20,mult=100", 20.0, 100.0), ("T=40,mult=1", 40.0, 1.0)]
)
def test_Z15_the_virtual_teacher(name, temperature, multiplier):
    v = VECTORS["Z15"]["inputs"], VECTORS["Z15"]["expected"]["tf_kd"][name]
    tree = {"name": "tfkd", "form": "virtual", "alpha": 0.5, "temperature": temperature, "variant": "code"}
    loss, gradient = run(make({**tree, "multiplier": multiplier}, classes=6), real(v[0]["logits"]), v[0]["labels"])
    close(loss.terms["kd"], v[1]["loss"], rtol=1e-6)
    ce = run(make({"name": "ce"}), real(v[0]["logits"]), v[0]["labels"])[1]
    close(2 * gradient - ce, v[1]["grad_logits"], rtol=1e-5, atol=1e-7)


def test_both_sides_are_softened_by_the_rule_text():
    logits, labels = real(VECTORS["Z15"]["inputs"]["logits"]), VECTORS["Z15"]["inputs"]["labels"]
    method = make({"name": "tfkd", "form": "virtual", "alpha": 0.5, "temperature": 20.0}, classes=6)
    u = torch.full((3, 6), 0.01 / 5, dtype=torch.float64)
    u[torch.arange(3), labels] = 0.99
    q, log_p = (u / 20).softmax(1), (logits / 20).log_softmax(1)
    close(run(method, logits, labels)[0].terms["kd"], 400 * (q * (q.log() - log_p)).sum(1).mean().item(), rtol=1e-4)


# ---- batch ensembling


@pytest.mark.parametrize("propagation", [0.5, 0.9])
def test_Z15_batch_ensembling(propagation):
    v = VECTORS["Z15"]["inputs"], VECTORS["Z15"]["expected"]["bake"]
    method = make({"name": "bake", "propagation": propagation, "weight": 3.0})
    loss, gradient = run(method, real(v[0]["logits"]), v[0]["labels"], real(v[0]["features"]))
    close(loss.terms["ensemble"], v[1]["omega_0_5"]["loss"] if propagation == 0.5 else v[1]["omega_0_9_loss"])
    if propagation == 0.5:
        ce = run(make({"name": "ce"}), real(v[0]["logits"]), v[0]["labels"])[1]
        close((gradient - ce) / 3, v[1]["omega_0_5"]["grad_logits_if_student_not_detached"])


# ---- instance-based smoothing

IBLS = {"I02": "ils1", "I03": "ils11", "I04": "ils2", "I05": "ils2", "I06": "ils12_code", "I07": "ils112_code"}


@pytest.mark.parametrize("name", IBLS)
def test_instance_smoothing(name):
    v = VECTORS[name]["inputs"], VECTORS[name]["expected"]
    tree = {"name": "ibls", "teacher": TEACHER, "rule": IBLS[name], "smoothing": v[0]["smoothing"]}
    method = make({**tree, "temperature": float(v[0]["temperature"])}, real(v[0]["teacher_logits"]))
    close(method.target(method.teacher(None), torch.tensor(v[0]["labels"])), v[1]["targets"])
    loss, gradient = run(method, real(v[0]["logits"]), v[0]["labels"])
    close(loss.total, v[1]["loss"])
    close(gradient, v[1]["grad"])


@pytest.mark.parametrize("name", ["I10", "I12"])
def test_instance_smoothing_by_logits_as_coded(name):
    v = VECTORS[name]["inputs"], VECTORS[name]["expected"]
    method = make({"name": "ibls", "teacher": TEACHER, "rule": "logits_code"}, real(v[0]["teacher_logits"]))
    target = method.target(method.teacher(None), torch.tensor(v[0]["labels"]))
    close(target, v[1]["targets"], rtol=1e-6)  # the published target went through float32
    close(run(method, real(v[0]["logits"]), v[0]["labels"])[0].total, v[1]["loss"], rtol=1e-7)


def test_I25_instance_smoothing_by_logits_as_drawn():
    v = VECTORS["I25"]["inputs"], VECTORS["I25"]["expected"]
    method = make({"name": "ibls", "teacher": TEACHER}, real(v[0]["teacher_logits"]))
    close(method.target(method.teacher(None), torch.tensor(v[0]["labels"])), v[1]["targets"])


def test_I24_the_numbers_of_the_figure():
    """The figure's scores are not shifted; a further class at 0 makes the shift nothing."""
    v = VECTORS["I24"]["inputs"], VECTORS["I24"]["expected"]
    scores = torch.cat([real(v[0]["scores"]), torch.zeros(3, 1, dtype=torch.float64)], 1)
    target = make({"name": "ibls", "teacher": TEACHER}, scores).target(scores, torch.tensor(v[0]["labels"]))
    close(target[:, :3], v[1]["targets"])


def test_I13_wrong_classes_all_at_the_minimum_share_evenly():
    """Published code divides by mul_factor - 1 instead, so that rows do not sum to 1."""
    v = VECTORS["I13"]["inputs"]
    teacher = real(v["teacher_logits"])
    target = make({"name": "ibls", "teacher": TEACHER}, teacher).target(teacher, torch.tensor(v["labels"]))
    close(target, [[0.9, 0.1 / 3, 0.1 / 3, 0.1 / 3]])


def test_I15_the_shallow_student():
    v = VECTORS["I15"]["inputs"], VECTORS["I15"]["expected"]
    tree = {"name": "kd", "teacher": TEACHER, "temperature": 20.0, "soft": 0.9, "hard": 0.1}
    teacher = real(v[0]["teacher_logits"])
    loss, gradient = run(make({**tree, "variant": "code"}, teacher), real(v[0]["student_logits"]), v[0]["labels"])
    close(loss.total, v[1]["loss"])
    close(gradient, v[1]["grad"])
    loss, _ = run(make(tree, teacher), real(v[0]["student_logits"]), v[0]["labels"])
    close(loss.total, 0.9 * 400 * v[1]["kl_batchmean"] + 0.1 * v[1]["ce"])


# ---- what a wrong recipe is told

SELF = {"name": "tfkd", "form": "self", "teacher": TEACHER, "alpha": 0.5, "temperature": 2.0}
VIRTUAL = {"name": "tfkd", "form": "virtual", "alpha": 0.5, "temperature": 2.0}


@pytest.mark.parametrize(
    "tree",
    [
        {"name": "cskd", "temperature": 0.0},
        {"name": "cskd", "weight": -1.0},
        {"name": "bake", "temperature": 0.0},
        {"name": "bake", "propagation": 1.0},
        {"name": "bake", "propagation": -0.1},
        {"name": "bake", "weight": -1.0},
        {"name": "ibls"},
        {"name": "ibls", "teacher": TEACHER, "smoothing": 1.0},
        {"name": "ibls", "teacher": TEACHER, "temperature": 0.0},
        {"name": "ibls", "teacher": TEACHER, "rule": "ils3"},
        {"name": "kd", "teacher": TEACHER, "soft": 0.0},
        {**VIRTUAL, "alpha": 1.0},
        {**VIRTUAL, "alpha": -0.1},
        {**VIRTUAL, "temperature": 0.0},
        {**VIRTUAL, "correct": 1.0},
        {**VIRTUAL, "variant": "code", "multiplier": -1.0},
    ],
)
def test_wrong_values_are_refused(tree):
    with pytest.raises(ValidationError):
        make(tree)


def test_a_virtual_teacher_must_know_more_than_nothing():
    with pytest.raises(UserError) as caught:
        make({**VIRTUAL, "correct": 0.25}, classes=4)
    assert str(caught.value) == (
        "method.correct 0.25 is no more than a guess among 4 classes: give the label's probability, such as 0.99"
    )


@pytest.mark.parametrize(
    ("tree", "sentence"),
    [
        (
            {k: v for k, v in SELF.items() if k != "teacher"},
            "the form self needs a teacher; name one under `teacher`, or use the form virtual",
        ),
        (
            {**VIRTUAL, "teacher": TEACHER},
            "the form virtual makes its own teacher; leave out `teacher`, or use the form self",
        ),
        (
            {**VIRTUAL, "multiplier": 50.0},
            "the variant paper has no multiplier; leave out `multiplier`, or use the variant code",
        ),
        (
            {**SELF, "correct": 0.9},
            "the form self has no virtual teacher; leave out `correct`, or use the form virtual",
        ),
    ],
)
def test_parts_of_teacher_free_distillation_must_fit(tree, sentence):
    with pytest.raises(ValidationError) as caught:
        make(tree)
    (error,) = caught.value.errors()
    assert str(error["ctx"]["error"]) == sentence


@pytest.mark.parametrize("tree", [SELF, *({"name": name, "teacher": TEACHER} for name in ("ibls", "ibls_cls", "kd"))])
def test_a_teacher_with_other_classes_is_refused(tree):
    with pytest.raises(UserError) as caught:
        make(tree, teacher=torch.zeros(1, 9), classes=7)
    assert str(caught.value) == "the teacher knows 9 classes, but the data set has 7"
