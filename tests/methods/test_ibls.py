"""IBLS: the paper's curve, and the memory that spares the teacher."""

from dataclasses import replace

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from lsdali import functional as f
from lsdali.batch import Batch
from lsdali.clock import Clock, PerEpoch
from lsdali.methods import METHODS
from lsdali.methods.base import MethodContext
from lsdali.models.student import Outputs

TEACHER = {"source": "checkpoint", "path": "teacher.pt"}
CLOCK = Clock(0, PerEpoch(10), 2)


class CountingTeacher:
    """Its logits are twice the images; remembers how many it was asked for."""

    classes = 4

    def __init__(self):
        self.read = []

    def __call__(self, images):
        self.read.append(len(images))
        return 2 * images


def make(teacher=None, samples=6, **tree):
    kind = METHODS["ibls"]
    config = TypeAdapter(kind.Config).validate_python({"name": "ibls", "teacher": TEACHER, **tree})
    method = kind(
        config, MethodContext(4, samples, {}, torch.device("cpu"), 0, lambda config: teacher or CountingTeacher())
    )
    method.begin(None)
    return method


def batch(index, stand_in=None):
    images = torch.randn(len(index), 4, generator=torch.Generator().manual_seed(sum(index)))
    labels = torch.tensor([i % 4 for i in index])
    return Batch(images, labels, torch.tensor(index), torch.ones(len(index), dtype=torch.bool), stand_in)


def step(method, part):
    loss = method.loss(lambda x: Outputs(x, x, {}), part, CLOCK)
    method.observe(part, loss.observed)
    return loss.total


def test_I23_the_curve_of_the_paper():
    """The published appendix's values, read off targets; the most that a label loses cuts the curve."""
    p = torch.tensor([0.5, 0.6, 0.7, 0.8, 0.9, 1.0], dtype=torch.float64)
    expected = [0.18, 0.08, 0.02, 0.0, 0.02, 0.08]
    logits = torch.stack([p, (1 - p) / 2, (1 - p) / 4, (1 - p) / 4], 1).clamp(min=1e-300).log()
    labels = torch.zeros(6, dtype=torch.int64)
    for rule in ("paper_ils1", "paper_ils"):
        target = make(rule=rule, smoothing=0.2).target(logits, labels)
        torch.testing.assert_close(1 - target[:, 0], torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)
        shares = [1 / 3] * 3 if rule == "paper_ils1" else [1 / 2, 1 / 4, 1 / 4]
        torch.testing.assert_close(target[0, 1:], 0.18 * torch.tensor(shares, dtype=torch.float64))
    cut = make(rule="paper_ils1", smoothing=0.1, quadratic={"shift": 0.9, "coefficient": 1.0}).target(logits, labels)
    curve = [min(0.1, (x - 0.9) ** 2) for x in p.tolist()]
    torch.testing.assert_close(1 - cut[:, 0], torch.tensor(curve, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("memory", ["dense32", "dense16"])
def test_the_teacher_reads_every_sample_once(memory):
    teacher = CountingTeacher()
    method, live = make(teacher, rule="ils2", memory=memory), make(rule="ils2")
    first, second = batch([0, 2, 4]), batch([1, 3, 5])
    for part in (first, second):
        torch.testing.assert_close(step(method, part), step(live, part))
    method.end_epoch(None, CLOCK)
    assert teacher.read == [3, 3]
    again = replace(first, images=torch.randn(3, 4))  # other crops
    target = live.target(2 * first.images, first.labels)
    torch.testing.assert_close(step(method, again), f.soft_cross_entropy(again.images, target), rtol=2e-3, atol=0)
    assert teacher.read == [3, 3], "a known row costs no pass of the teacher"


def test_only_missing_rows_are_asked_for():
    """A sample that the first epoch dropped, and a stand-in, which is neither read nor written."""
    teacher = CountingTeacher()
    method, live = make(teacher, memory="dense32"), make()
    step(method, batch([0, 1, 2]))
    mixed = batch([5, 0, 2, 2], torch.tensor([False, False, False, True]))
    expected = 2 * mixed.images
    known = method.memory.read(torch.tensor([0, 2]))[0]
    expected[1:3] = known
    found = method.taught(mixed, CLOCK)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        step(method, mixed), f.soft_cross_entropy(mixed.images, live.target(found, mixed.labels))
    )
    assert teacher.read == [3, 2, 2]
    torch.testing.assert_close(method.memory.read(torch.tensor([5, 2]))[0], torch.stack([expected[0], known[1]]))


def test_with_a_memory_a_sample_may_come_once_and_whole():
    assert not make().each_once
    assert make().mixup_refusal is None
    assert make(memory="dense16").each_once
    assert make(memory="dense16").mixup_refusal == (
        "the teacher's answers to mixed images are none to whole ones to remember; leave out `memory`"
    )


@pytest.mark.parametrize(
    "tree",
    [
        {"smoothing": -0.1},
        {"temperature": -1.0},
        {"memory": "topk"},
        {"rule": "paper_ils", "quadratic": {"shift": 1.5}},
        {"rule": "paper_ils", "quadratic": {"coefficient": -1.0}},
    ],
)
def test_wrong_values_are_refused(tree):
    with pytest.raises(ValidationError):
        make(**tree)


def test_a_curve_that_nobody_reads_is_refused():
    with pytest.raises(ValidationError) as caught:
        make(rule="ils2", quadratic={"shift": 0.5})
    (error,) = caught.value.errors()
    assert str(error["ctx"]["error"]) == (
        "the rule ils2 has no curve; leave out `quadratic`, or use one of paper_ils1, paper_ils"
    )
