"""CE, LS, ZLS and KD: their losses on one batch, against the definitions."""

import pytest
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter, ValidationError
from torch import nn

from lsdali.batch import Batch
from lsdali.clock import Clock, PerEpoch
from lsdali.errors import UserError
from lsdali.functional import competition_rank, off_label_kl, zipf_target
from lsdali.methods import METHODS
from lsdali.methods.base import MethodContext
from lsdali.models import ModelConfig, build_network
from lsdali.models.student import Student
from lsdali.models.teacher import Teacher

CLOCK = Clock(0, PerEpoch(10), 2)
K = 7


def network(seed, classes=K):
    torch.manual_seed(seed)
    return build_network(ModelConfig(name="preact_resnet18", width=16), classes)


def needs(classes=K, teacher_classes=K):
    teacher = Teacher(network(5, teacher_classes))
    channels = {f"stage{i + 1}": 4 * 2**i for i in range(4)}
    return MethodContext(classes, 100, channels, torch.device("cpu"), 0, lambda config: teacher)


def batch():
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(6, 3, 32, 32, generator=generator)
    labels = torch.randint(K, (6,), generator=generator)
    return Batch(images, labels, torch.arange(6), torch.ones(6, dtype=torch.bool))


def make(tree, method_needs=None):
    kind = METHODS[tree["name"]]
    return kind(TypeAdapter(kind.Config).validate_python(tree), method_needs or needs())


def student_of(method):
    return Student(network(1), method.aux_heads()).eval()  # evaluation mode, so that two forwards agree


TEACHER = {"source": "checkpoint", "path": "teacher.pt"}


def test_registry_names_are_the_methods_own():
    assert {name: m.Config.model_fields["name"].default for name, m in METHODS.items()} == {n: n for n in METHODS}


def test_ce():
    method = make({"name": "ce"})
    student = student_of(method)
    loss = method.loss(student, batch(), CLOCK)
    logits = student(batch().images).logits
    torch.testing.assert_close(loss.total, F.cross_entropy(logits, batch().labels))
    assert torch.equal(loss.observed, logits)
    assert not loss.observed.requires_grad


@pytest.mark.parametrize("mass", ["all", "others"])
def test_ls(mass):
    method = make({"name": "ls", "smoothing": 0.3, "mass": mass})
    student = student_of(method)
    logits = student(batch().images).logits
    # a on the others is a K/(K - 1) on all
    smoothing = 0.3 if mass == "all" else 0.3 * K / (K - 1)
    expected = F.cross_entropy(logits, batch().labels, label_smoothing=smoothing)
    torch.testing.assert_close(method.loss(student, batch(), CLOCK).total, expected)


@pytest.mark.parametrize("upsample", [None, "bilinear", "bicubic"])
def test_zls(upsample):
    method = make(
        {"name": "zls", "weight": 0.5, "distribution": {"name": "rank_zipf", "power": 2.0}, "upsample": upsample}
    )
    student = student_of(method)
    loss = method.loss(student, batch(), CLOCK)
    net, labels = student.network, batch().labels
    last = net.maps(batch().images)["stage4"]
    assert last.shape[2:] == (4, 4)
    if upsample:
        last = F.interpolate(last, scale_factor=2, mode=upsample, align_corners=False)
    votes = net.classifier(last.flatten(2).mT).argmax(2)
    counts = F.one_hot(votes, K).sum(1)
    logits = net(batch().images)
    target = zipf_target(competition_rank(counts), labels, 2.0)
    zipf = off_label_kl(logits, target, labels).mean()
    ce = F.cross_entropy(logits, labels)
    torch.testing.assert_close(loss.terms, {"ce": ce.detach(), "zipf": zipf.detach()})
    torch.testing.assert_close(loss.total, ce + 0.5 * zipf)


def test_zls_constant_pulls_the_others_to_uniform():
    method = make({"name": "zls", "distribution": {"name": "constant"}})
    assert method.aux_heads() == {}
    student = student_of(method)
    loss = method.loss(student, batch(), CLOCK)
    others = torch.full((6, K), 1 / (K - 1)).scatter(1, batch().labels[:, None], 0.0)
    expected = off_label_kl(student(batch().images).logits, others, batch().labels).mean()
    torch.testing.assert_close(loss.terms["zipf"], expected.detach())


@pytest.mark.parametrize("hard", [0.0, 0.25])
def test_kd(hard):
    method = make({"name": "kd", "teacher": TEACHER, "temperature": 2.0, "hard": hard})
    student = student_of(method)
    loss = method.loss(student, batch(), CLOCK)
    logits, target = student(batch().images).logits, method.teacher(batch().images)
    kd = 4 * F.kl_div((logits / 2).log_softmax(1), (target / 2).softmax(1), reduction="batchmean")
    ce = F.cross_entropy(logits, batch().labels)
    torch.testing.assert_close(loss.total, kd + hard * ce)
    assert list(loss.terms) == (["kd", "ce"] if hard else ["kd"])


def test_kd_defaults_to_the_teacher_alone():
    method = make({"name": "kd", "teacher": TEACHER})
    assert (method.config.temperature, method.config.hard) == (1.0, 0.0)
    assert not isinstance(method, nn.Module)


@pytest.mark.parametrize(
    "tree",
    [
        {"name": "ce"},
        {"name": "ls"},
        {"name": "zls", "upsample": "bilinear"},
        {"name": "kd", "teacher": TEACHER},
    ],
)
def test_bfloat16_gives_float32_losses_and_finite_gradients(tree):
    method = make(tree)
    student = student_of(method).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = method.loss(student, batch(), CLOCK)
    assert loss.total.dtype == torch.float32
    assert all(not t.requires_grad for t in loss.terms.values())
    loss.total.backward()
    assert all(p.grad.isfinite().all() for p in student.parameters())


# ---- what a wrong recipe is told


@pytest.mark.parametrize(
    "tree",
    [
        {"name": "ls", "smoothing": 1.0},
        {"name": "ls", "smoothing": -0.1},
        {"name": "ls", "mass": "label"},
        {"name": "zls", "weight": -1.0},
        {"name": "zls", "distribution": {"name": "rank_zipf", "power": 0.0}},
        {"name": "zls", "upsample": "nearest"},
        {"name": "kd"},
        {"name": "kd", "teacher": TEACHER, "temperature": 0.0},
        {"name": "kd", "teacher": TEACHER, "hard": -1.0},
        {"name": "ce", "teacher": TEACHER},
    ],
)
def test_wrong_values_are_refused(tree):
    with pytest.raises(ValidationError):
        make(tree)


def test_teacher_with_other_classes():
    with pytest.raises(UserError) as caught:
        make({"name": "kd", "teacher": TEACHER}, needs(teacher_classes=9))
    assert str(caught.value) == "the teacher knows 9 classes, but the data set has 7"


def test_unknown_state_is_refused():
    method = make({"name": "zls"})
    assert method.state_dict() == {}
    method.load_state_dict({})
    with pytest.raises(UserError) as caught:
        method.load_state_dict({"targets": torch.zeros(3), "counts": torch.zeros(3)})
    assert str(caught.value) == (
        "the method 'zls' keeps no state, but the checkpoint holds counts, targets for it: "
        "it was saved by another method"
    )
