"""What is left of the published numbers: single values of losses, targets, states, learning rates and metrics."""

import json
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter

from lsdali import functional as f
from lsdali.batch import Batch
from lsdali.clock import Clock, PerEpoch
from lsdali.methods import METHODS
from lsdali.methods.base import MethodContext
from lsdali.metrics import MetricAccumulator
from lsdali.models.families.pyramid import ShakeDrop
from lsdali.models.student import Outputs
from lsdali.optim import StepSchedule, schedule

VECTORS = json.loads((Path(__file__).parents[1] / "reference/distillation_vectors.json").read_text())
TEACHER = {"source": "checkpoint", "path": "teacher.pt"}
CPU = torch.device("cpu")


def real(x):
    return torch.tensor(x, dtype=torch.float64)


class TableTeacher:
    """Answers with its images."""

    def __init__(self, classes):
        self.classes = classes

    def __call__(self, images):
        return images


def make(classes, **tree):
    kind = METHODS[tree["name"]]
    needs = MethodContext(classes, 10, {}, CPU, 0, lambda config: TableTeacher(classes))
    method = kind(TypeAdapter(kind.Config).validate_python(tree), needs)
    method.begin(None)
    return method


def batch_of(logits, labels):
    """The student is the identity, so that logits are images."""
    n = len(labels)
    return Batch(logits, torch.tensor(labels), torch.arange(n), torch.ones(n, dtype=torch.bool))


def run(method, logits, labels, epoch=0):
    logits = logits.clone().requires_grad_()
    loss = method.loss(lambda x: Outputs(x, x, {}), batch_of(logits, labels), Clock(10 * epoch, PerEpoch(10), 3))
    loss.total.backward()
    return loss, logits.grad


def close(actual, expected, **tolerance):
    torch.testing.assert_close(actual.detach(), real(expected), **{"rtol": 1e-10, "atol": 1e-12, **tolerance})


# ---- losses


def test_O10_the_virtual_teacher_of_the_fine_grained_code():
    v = VECTORS["O10"]["inputs"], VECTORS["O10"]["expected"]
    tree = {"name": "tfkd", "form": "virtual", "variant": "code", "alpha": 0.95, "temperature": 40.0}
    loss, gradient = run(make(4, **tree), real(v[0]["logits"]), v[0]["labels"])
    close(loss.total, v[1]["loss"], rtol=1e-6)
    close(gradient, v[1]["grad_logits"], rtol=1e-6, atol=1e-9)


def test_I01_P14_label_smoothing():
    v = VECTORS["I01"]["inputs"], VECTORS["I01"]["expected"]
    loss, gradient = run(make(4, name="ls", smoothing=0.1), real(v[0]["logits"]), v[0]["labels"])
    close(loss.total, v[1]["loss_mean"])
    close(gradient, v[1]["grad"])
    close(f.smooth_targets(torch.tensor(v[0]["labels"]), 4, 0.1).double(), v[1]["targets"], rtol=1e-6)
    v = VECTORS["P14"]["inputs"], VECTORS["P14"]["expected"]
    loss, _ = run(make(4, name="ls", smoothing=0.1, mass="others"), real(v[0]["logits"]), v[0]["labels"])
    close(loss.total, v[1]["loss"])


# ---- targets and states


def test_I08_smoothing_knows_the_number_of_classes():
    """Published code has it fixed at 10, so that rows of other data sets do not sum to 1."""
    v = VECTORS["I08"]["inputs"], VECTORS["I08"]["expected"]
    method = make(4, name="ibls", teacher=TEACHER, rule="ils11", temperature=2.0)
    labels = torch.tensor(v[0]["labels"])
    target = method.target(real(v[0]["teacher_logits"]), labels)
    published = real(v[1]["targets"])
    own = torch.zeros(3, 4, dtype=torch.bool).scatter_(1, labels[:, None], value=True)
    close(target[own], published[own].tolist())
    close(target[~own], (published[~own] * 9 / 3).tolist())
    close(target.sum(1), [1.0] * 3)


@pytest.mark.parametrize("name", ["I11", "I14"])
def test_the_factor_of_logits_cancels(name):
    """Published code divides by it less 1 where no wrong class is above the minimum: by 0 in I14."""
    v = VECTORS[name]["inputs"], VECTORS[name]["expected"]
    method = make(4, name="ibls", teacher=TEACHER, rule="logits_code")
    labels = torch.tensor(v[0]["labels"])
    targets = [method.target(u * real(v[0]["teacher_logits"]), labels) for u in (1, v[0]["mul_factor"])]
    torch.testing.assert_close(*targets)
    expected = v[1]["targets"] if name == "I11" else [[0.9, 0.1 / 3, 0.1 / 3, 0.1 / 3]]
    close(targets[0], expected, rtol=1e-6)


def test_I09_class_based_smoothing_as_written():
    """The matrix becomes its own softmax with every step."""
    v = VECTORS["I09"]["inputs"], VECTORS["I09"]["expected"]
    method = make(4, name="ibls_cls", teacher=TEACHER, variant="code", temperature=2.0)
    method.matrix, method.filled = real(v[0]["class_mean_logits"]), True
    labels, logits = v[0]["labels"], real(v[0]["logits"])
    close(method.target(torch.tensor(labels)), v[1]["first_call_targets"], rtol=1e-6)
    for expected in v[1]["calls"]:
        loss, _ = run(method, logits, labels)
        close(loss.total, expected["loss"], rtol=1e-6)
        method.observe(batch_of(logits, labels), loss.observed)
        close(method.matrix, expected["class_avg_after"])


def test_I18_mean_logits_of_the_classes():
    """Published: nan for a class without a sample; here its labels are smoothed evenly."""
    v = VECTORS["I18"]["inputs"], VECTORS["I18"]["expected"]["class_avg"]
    method = make(4, name="ibls_cls", teacher=TEACHER)
    for part in v[0]["batches"]:
        loss, _ = run(method, torch.tensor(part["logits"]), part["labels"])
        even = f.smoothed_evenly(torch.full((len(part["labels"]),), 0.1), torch.tensor(part["labels"]), 4)
        torch.testing.assert_close(loss.total, f.soft_cross_entropy(torch.tensor(part["logits"]), even))
        method.observe(batch_of(torch.tensor(part["logits"]), part["labels"]), loss.observed)
    method.end_epoch(None, Clock(10, PerEpoch(10), 3))
    expected = [[0.0] * 4 if None in row else row for row in v[1]]
    close(method.matrix.double(), expected)
    target = method.target(torch.tensor([0, 1]))
    q = torch.tensor([0.5, 0.0, -0.5]).softmax(0)
    torch.testing.assert_close(target, torch.stack([torch.cat([torch.tensor([0.9]), 0.1 * q]), target[1]]))
    torch.testing.assert_close(target[1], torch.tensor([0.1 / 3, 0.9, 0.1 / 3, 0.1 / 3]))
    before = method.matrix.clone()
    loss, _ = run(method, torch.zeros(1, 4), [0], epoch=1)
    method.observe(batch_of(torch.zeros(1, 4), [0]), loss.observed)
    assert torch.equal(method.matrix, before), "the rule alike leaves the matrix as it is"
    assert method.empty


def test_P04_the_first_epoch_trains_on_the_label():
    v = VECTORS["P04"]["inputs"], VECTORS["P04"]["expected"]
    method = make(3, name="pskd")
    logits = torch.randn(2, 3, dtype=torch.float64)
    loss, _ = run(method, logits, v[0]["labels"])
    torch.testing.assert_close(loss.total, f.soft_cross_entropy(logits, real(v[1]["targets"])))


def test_P09_a_run_without_a_past_trains_on_labels():
    """Published code then takes zeros for the past: the first loss and its gradient are too small by 1 - a."""
    v = VECTORS["P09"]["inputs"], VECTORS["P09"]["expected"]["epochs"][0]
    weight = real(v[0]["W"])
    logits = real(v[0]["X"])[:2] @ weight.T
    method = make(5, name="pskd", alpha=0.8)
    loss, gradient = run(method, logits, v[0]["y"][:2], epoch=1)
    _, label_only = run(make(5, name="ce"), logits, v[0]["y"][:2])
    torch.testing.assert_close(gradient, label_only)
    method.observe(batch_of(logits, v[0]["y"][:2]), loss.observed)
    rows = method.state_dict()["shares"][:2].double()  # remembered as published: before its own step
    close(rows, v[1]["all_predictions_after"][:2], atol=2e-7)


def test_Z19_an_older_helper_is_no_target():
    """It divides by the weights of all classes, the label's too; rows of the target sum to 1."""
    votes = torch.tensor([[2, 2, 2, 1, 1, 5, 2, 1, 3], [3, 3, 5, 5, 1, 4, 4, 3, 2], [4] * 9])
    labels = torch.tensor([2, 0, 4])
    weights = f.zipf_weights(f.vote_rank(f.count_votes(votes, 6), 9).double())
    sums = 1 - (weights / weights.sum(1, keepdim=True)).gather(1, labels[:, None]).squeeze(1)
    close(sums, [0.61038961, 0.9375, 0.71428571], atol=1e-8)
    target = f.vote_target(votes, labels, 6, lambda rank, tied: f.zipf_weights(rank), torch.float64)
    older = (weights / weights.sum(1, keepdim=True)).scatter(1, labels[:, None], 0.0)
    torch.testing.assert_close(target * sums[:, None], older)


# ---- learning rates: [first epoch, rate]

RATES = {
    "Z17": (0.1, 200, [(0, 0.1), (101, 0.01), (151, 0.001)]),
    "Z17 ImageNet": (0.1, 100, [(0, 0.1), (31, 0.01), (61, 0.001), (91, 0.0001)]),
    "Z17 MegEngine": (0.1, 200, [(0, 0.1), (100, 0.01), (150, 0.001)]),
    "O12, P02": (0.1, 300, [(0, 0.1), (150, 0.01), (225, 0.001)]),
    "O12 ImageNet, 250": (0.1, 250, [(30 * i, 0.1 ** (i + 1)) for i in range(9)]),
    "O12 ImageNet, 300": (0.1, 300, [(75 * i, 0.1 ** (i + 1)) for i in range(4)]),
    "O12 fine-grained": (0.01, 100, [(0, 0.01), (45, 0.001), (80, 0.0001)]),
    "I19": (0.1, 100, [(30 * i, 0.1 ** (i + 1)) for i in range(4)]),
    "sup-lr ImageNet teacher": (0.1, 90, [(0, 0.1), (30, 0.01), (60, 0.001)]),
    "sup-lr CUB student": (0.01, 200, [(0, 0.01), (80, 0.001), (160, 0.0001)]),
}


@pytest.mark.parametrize("name", RATES)
def test_learning_rates(name):
    peak, epochs, expected = RATES[name]
    rate = schedule(StepSchedule(milestones=tuple(e for e, _ in expected[1:])), peak, PerEpoch(2), epochs)
    for (first, value), last in zip(expected, [*(e for e, _ in expected[1:]), epochs]):
        for step in (2 * first, 2 * last - 1):
            assert rate(step) == pytest.approx(value, rel=1e-12)


def test_sup_lr_a_warm_student():
    rate = schedule(StepSchedule(milestones=(80, 160), warmup_epochs=5), 0.1, PerEpoch(626), 200)
    published = {(0, 0): 3.194888178913738e-05, (0, 625): 0.02, (2, 312): 0.05, (4, 625): 0.1, (80, 0): 0.01}
    for (epoch, step), value in published.items():
        assert rate(626 * epoch + step) == pytest.approx(value, rel=1e-12)


# ---- metrics and networks


def evaluate(logits, labels):
    evaluation = MetricAccumulator(len(logits[0]), CPU)
    evaluation.update(torch.tensor(logits), batch_of(torch.zeros(len(labels), 1), labels))
    return evaluation.result()


def test_Z18_O15_accuracy():
    """O15 counts errors; its second number, of the two best, is no metric here."""
    rows = [[1.2, 0.7, 2.9, -0.3, 0.0, 0.45], [0.2, -1.1, 0.3, 1.75, 0.6, 1.4], [-0.5, 0.25, -2.0, 1.0, 3.5, 0.125]]
    found = evaluate(rows, [2, 5, 2])
    assert (found["top1"], found["top5"]) == (pytest.approx(33.3333, abs=1e-3), pytest.approx(66.6667, abs=1e-3))
    rows = [[1.5, 0.2, -0.7, 0.4], [0.1, 0.3, 2.0, -1.0], [0.0, 0.0, 0.5, 0.25], [-1.0, 2.2, 0.3, 0.1]]
    assert 100 - evaluate(rows, [0, 2, 3, 0])["top1"] == pytest.approx(50)


def test_M25_M32_log_loss():
    p = [[0.9, 0.05, 0.05], [0.1, 0.8, 0.1], [0.6, 0.2, 0.2], [0.7, 0.2, 0.1], [0.34, 0.33, 0.33], [1.0, 0.0, 0.0]]
    p += [[0.05, 0.05, 0.9], [0.4, 0.3, 0.3], [0.2, 0.2, 0.6], [0.15, 0.8, 0.05]]
    found = evaluate(real(p).log().tolist(), [0, 1, 0, 2, 0, 0, 2, 1, 0, 0])
    assert (found["nll"], found["top1"]) == (pytest.approx(0.9036615662407748, rel=1e-6), pytest.approx(60))
    assert evaluate([[0.0] * 100], [57])["nll"] == pytest.approx(4.605170186)


def test_P15_shakedrop():
    x = torch.tensor([[[[1.0, -2.0]]], [[[0.5, 4.0]]]])
    torch.testing.assert_close(ShakeDrop(0.3).eval()(x), 0.7 * x)
