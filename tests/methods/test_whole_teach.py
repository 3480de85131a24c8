"""Students of fixed teachers: instance-based smoothing and distillation, as their authors' scripts train them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.functional as TF
from torch import Tensor, nn

from lsdali.batch import Batch
from lsdali.errors import UserError
from lsdali.models import ModelConfig, build_network
from lsdali.models.teacher import Teacher, load_teacher
from lsdali.recipe import teachers
from tests.harness import tiny
from tests.methods.trainers import trainer_for, trainer_in_float64, with_teacher
from tests.methods.whole_runs import compare, steps

TEACHER = {"source": "checkpoint", "path": "TEACHER"}
CLASSES = 5


def validation(folder: Path) -> Iterator[Batch]:
    """The validation images, in float64; the last batch is padded."""
    return iter(trainer_in_float64({"name": "ce"}, folder / "validation", evaluate={"batch": 7}).val)


def teacher_of(folder: Path) -> nn.Module:
    """The network in the checkpoint, as a script would load it: evaluated, and never trained."""
    saved = torch.load(folder / "teacher/checkpoints/best.pt", weights_only=True)["parts"]["student"]
    network = build_network(ModelConfig(name="preact_resnet10", width=16), CLASSES)
    network.load_state_dict({key.removeprefix("network."): value for key, value in saved.items()})
    return network.double().eval().requires_grad_(requires_grad=False)


def smoothed(rule: str, f: list[float], t: int, a: float, temperature: float, p1: float, p2: float) -> list[float]:
    """One sample's target from its teacher's logits `f` and label `t`, class by class."""
    p = torch.softmax(torch.tensor(f, dtype=torch.float64) / temperature, 0).tolist()
    wrong = [k for k in range(len(f)) if k != t]
    if rule.startswith("logits"):
        low = min(f) if rule == "logits" else min(min(f), 0.0)
        p = [v - low for v in f]
        p = [v / sum(p) for v in p]
    curve = min(a, p2 * (torch.tensor(f, dtype=torch.float64).softmax(0).tolist()[t] - p1) ** 2)
    most = {"ils11": a * (1 - p[t]), "ils112": a * (1 - p[t]), "ils2": a, "paper_ils1": curve, "paper_ils": curve}
    loses = most.get(rule.removesuffix("_code") if rule.startswith("ils") else rule, a * p[t])
    even = rule in ("ils1", "ils11", "paper_ils1")
    given = a if rule in ("ils12_code", "ils112_code") else loses
    rest = sum(p[k] for k in wrong)
    return [1 - loses if k == t else given / len(wrong) if even else given * p[k] / rest for k in range(len(f))]


RULES = ("logits", "logits_code", "ils1", "ils11", "ils2", "ils12", "ils112", "ils12_code", "ils112_code")
CASES = [
    *((rule, None) for rule in (*RULES, "paper_ils1", "paper_ils")),
    ("logits", "dense16"),
    ("paper_ils", "dense32"),
]


@pytest.mark.parametrize(("rule", "memory"), CASES)
def test_ibls(rule: str, memory: str | None, folder: Path, place: Path) -> None:
    """With a memory the teacher's outputs are those for the images of a sample's first step."""
    teacher, a, temperature, p1, p2 = teacher_of(folder), 0.3, 1.7, 0.3, 4.0

    def twin(student: nn.Module, epochs: list[list[Batch]]) -> None:
        kept: dict[int, Tensor] = {}
        for _, batch, descend in steps(student, epochs):
            outputs = teacher(batch.images)
            rows = []
            for sample, row, t in zip(batch.index.tolist(), outputs, batch.labels.tolist(), strict=True):
                now = row.float() if memory else row
                rows.append(smoothed(rule, kept.get(sample, now).tolist(), t, a, temperature, p1, p2))
                if memory and sample not in kept:
                    kept[sample] = row.half() if memory == "dense16" else now
            lp = F.log_softmax(student.network(batch.images), 1)
            descend(-(torch.tensor(rows, dtype=torch.float64) * lp).sum(1).mean())

    config: dict[str, Any] = {"name": "ibls", "teacher": TEACHER, "rule": rule, "smoothing": a, "memory": memory}
    config |= {"temperature": temperature} if rule not in ("logits", "logits_code", "paper_ils1") else {}
    config |= {"quadratic": {"shift": p1, "coefficient": p2}} if "paper" in rule else {}
    compare(with_teacher(config, folder), twin, place, batch=7)  # five samples of an epoch are left over


@pytest.mark.parametrize(
    ("temperature", "soft", "hard", "variant"),
    [(1.0, 1.0, 0.0, "paper"), (3.0, 0.7, 0.4, "paper"), (20.0, 0.9, 0.1, "code")],
)
def test_kd(temperature: float, soft: float, hard: float, variant: str, folder: Path, place: Path) -> None:
    """The teacher has temperature scaling, as half of IBLS's six have, and was trained on other normalised images."""
    teacher = teacher_of(folder)
    own, given = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]), ([0.5, 0.4, 0.3], [0.25, 0.25, 0.3])

    def twin(student: nn.Module, epochs: list[list[Batch]]) -> None:
        for _, batch, descend in steps(student, epochs):
            logits = student.network(batch.images)
            pixels = TF.normalize(batch.images, [-m / s for m, s in zip(*given)], [1 / s for s in given[1]])
            q = F.softmax(teacher(TF.normalize(pixels, *own)) / 1.3 / temperature, 1)
            log_p = F.log_softmax(logits / temperature, 1)
            kl = (q * (q.log() - log_p)).sum() / (q.numel() if variant == "code" else len(q))
            descend(soft * temperature**2 * kl + hard * F.cross_entropy(logits, batch.labels))

    scaled = {**TEACHER, "temperature": 1.3}
    config = {"name": "kd", "teacher": scaled, "temperature": temperature, "soft": soft, "hard": hard}
    config |= {"variant": variant}
    data = {**tiny(config, folder / "images", place)["data"], "mean": given[0], "std": given[1]}
    compare(with_teacher(config, folder), twin, place, data=data)


@pytest.mark.parametrize(("variant", "means"), [("paper", "training"), ("code", "training"), ("code", "validation")])
def test_ibls_cls(variant: str, means: str, folder: Path, place: Path) -> None:
    """A class's mean is over the first epoch, in which the mass is shared evenly, or as published."""
    teacher, a, temperature = teacher_of(folder), 0.25, 0.5  # whole in binary

    def twin(student: nn.Module, epochs: list[list[Batch]]) -> None:
        read = epochs[0] if means == "training" else list(validation(place))
        outputs = torch.cat([teacher(batch.images)[batch.valid] for batch in read])
        labels = torch.cat([batch.labels[batch.valid] for batch in read])
        matrix = torch.stack([outputs[labels == k].mean(0) for k in range(CLASSES)])
        for epoch, batch, descend in steps(student, epochs):
            rows = torch.full((len(batch), CLASSES), a / (CLASSES - 1), dtype=torch.float64)
            if epoch or means == "validation":
                q = F.softmax(matrix / temperature, 1)
                for row, t in zip(rows, batch.labels.tolist(), strict=True):
                    row[:] = a * q[t] / (1 - q[t, t]) if variant == "paper" else a * (1 - q[t]) / (1 - q[t, t])
                matrix = q if variant == "code" else matrix
            rows[range(len(batch)), batch.labels] = 1 - a
            descend(-(rows * F.log_softmax(student.network(batch.images), 1)).sum(1).mean())

    config = {"name": "ibls_cls", "teacher": TEACHER, "variant": variant, "means": means}
    config |= {"smoothing": a, "temperature": temperature}
    compare(with_teacher(config, folder), twin, place, evaluate={"batch": 7})


@pytest.mark.parametrize(("takes", "wrong"), [(32, 16), (16, 8)])
def test_a_teacher_of_another_image_size_is_refused(
    takes: int, wrong: int, folder: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first step, whatever epoch shows it images of that size."""

    def fixed(*args: Any) -> Teacher:
        teacher = load_teacher(*args)
        teacher.image_size = takes
        return teacher

    monkeypatch.setattr(teachers, "load_teacher", fixed)
    config = with_teacher({"name": "kd", "teacher": TEACHER}, folder)
    data = tiny(config, folder / "images", place)["data"]
    if wrong == 8:
        data["train"]["ramp"] = {"first": 8, "end": 1}
    with pytest.raises(UserError) as caught:
        trainer_for(config, place, data=data)
    assert str(caught.value) == (
        f"'the teacher' takes images of {takes} px only, and the data has {wrong}: "
        "set data.train.size and data.eval.size"
    )
