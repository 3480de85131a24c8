"""Teacher: frozen, apart from the student, and refused with a sentence where it is the wrong one."""

import hashlib
import re

import pytest
import torch
import torchvision
import yaml
from pydantic import TypeAdapter, ValidationError
from torch import nn

from lsdali.errors import UserError
from lsdali.methods.kd import KnowledgeDistillation
from lsdali.models import MODELS, ModelConfig, build_network
from lsdali.models.aux_heads import StageHead
from lsdali.models.digest import weights_digest
from lsdali.models.pretrained import RunWeights, load_weights
from lsdali.models.student import Student
from lsdali.models.teacher import Teacher, load_teacher
from lsdali.models.teacher_configs import CheckpointTeacher, TeacherConfig, TorchvisionTeacher
from tests.harness import ROOT
from tests.models.foreign import HandWritten

CPU = torch.device("cpu")
MODEL = ModelConfig(name="preact_resnet18", width=16)


def network(classes=5, seed=0):
    torch.manual_seed(seed)
    return build_network(MODEL, classes)


def write_checkpoint(path, **changes):
    """A checkpoint with one auxiliary head in the student; returns the network in it."""
    teacher = network()
    teacher(torch.randn(8, 3, 16, 16))  # moves the running statistics
    student = Student(teacher, {"exit": StageHead("stage1", 16, 5)})
    saved = {
        "format": 1,
        "recipe": {"model": MODEL.model_dump(), "data": {"mean": [0.4] * 3, "std": [0.2] * 3}, "seed": 0},
        "classes": 5,
        "data": "fingerprint",
        "step": 7,
        "steps": 9,
        "teachers": [],
        "parts": {"student": student.state_dict(), "optimizer": {}},
    }
    torch.save({**saved, **changes}, path)
    return teacher.eval()


def load(path, digest=None, classes=5):
    return load_teacher(CheckpointTeacher(path=str(path), digest=digest), classes, CPU)


def test_a_checkpoint_becomes_a_teacher(tmp_path):
    source = write_checkpoint(tmp_path / "t.pt").to(memory_format=torch.channels_last)
    teacher = load(tmp_path / "t.pt", weights_digest(source))
    images = torch.randn(3, 3, 16, 16)
    assert torch.equal(teacher(images), source(images))
    assert teacher.classes == 5
    assert teacher.digest == weights_digest(source)
    (tmp_path / "t.pt").write_bytes(b"")  # the weights are not mapped from the file
    assert torch.equal(teacher(images), source(images))


def test_a_teacher_sees_pixels_as_in_its_own_training(tmp_path):
    """Images normalised for the student are taken back to what the teacher's network knows; a temperature scales."""
    source = write_checkpoint(tmp_path / "t.pt").double()
    teacher = load_teacher(CheckpointTeacher(path=str(tmp_path / "t.pt"), temperature=2.5), 5, CPU)
    teacher._network.double()
    pixels = torch.rand(3, 3, 16, 16, dtype=torch.float64)
    for mean, std in (((0.5, 0.3, 0.1), (0.2, 0.3, 0.6)), ((0.4,) * 3, (0.2,) * 3)):
        teacher.expect((mean, std))
        given = (pixels - torch.tensor(mean).double().view(3, 1, 1)) / torch.tensor(std).double().view(3, 1, 1)
        torch.testing.assert_close(teacher(given), source((pixels - 0.4) / 0.2) / 2.5, rtol=1e-4, atol=1e-6)


def test_loading_leaves_random_numbers_alone(tmp_path):
    write_checkpoint(tmp_path / "t.pt")
    torch.manual_seed(3)
    load(tmp_path / "t.pt")
    drawn = torch.rand(2)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(2))


def test_torchvision_teacher(monkeypatch):
    theirs = torchvision.models.resnet18()
    entry = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    monkeypatch.setattr(type(entry), "get_state_dict", lambda self, **_: theirs.state_dict())
    teacher = load_teacher(TorchvisionTeacher(model="resnet18", weights="IMAGENET1K_V1"), 1000, CPU)
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(teacher(images), theirs.eval().to(memory_format=torch.channels_last)(images))
    teacher.expect(((0.5,) * 3, (1.0,) * 3))
    own = torchvision.transforms.functional.normalize(images + 0.5, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    torch.testing.assert_close(teacher(images), theirs(own), rtol=1e-4, atol=1e-4)


def test_training_the_student_does_not_touch_the_teacher():
    class Owner(nn.Module):
        """A student that even holds the teacher as an attribute."""

        def __init__(self):
            super().__init__()
            self.student = Student(network(seed=1), {})
            self.teacher = Teacher(network())

    owner = Owner()
    before = owner.teacher.digest
    optimizer = torch.optim.SGD(owner.parameters(), lr=0.1)
    for _ in range(3):
        owner.train()
        images = torch.randn(4, 3, 16, 16)
        target = owner.teacher(images)
        assert not target.requires_grad
        assert torch.equal(target, owner.teacher(images))  # evaluation mode: nothing moves
        (owner.student(images).logits - target).pow(2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    frozen = owner.teacher._network
    assert weights_digest(frozen) == before
    assert not any(module.training for module in frozen.modules())
    assert not any(p.requires_grad or p.grad is not None for p in frozen.parameters())
    assert all(name.startswith("student.") for name in owner.state_dict())
    assert len(list(owner.parameters())) == len(list(owner.student.parameters()))


def test_config_is_told_apart_by_source():
    adapter = TypeAdapter(TeacherConfig)
    assert adapter.validate_python({"source": "checkpoint", "path": "a.pt"}) == CheckpointTeacher(path="a.pt")
    torchvisions = {"source": "torchvision", "model": "resnet50", "weights": "IMAGENET1K_V1", "digest": None}
    assert isinstance(adapter.validate_python(torchvisions), TorchvisionTeacher)
    for wrong in (
        {"path": "a.pt"},
        {"source": "hub", "path": "a.pt"},
        {"source": "checkpoint", "weights": "x"},
    ):
        with pytest.raises(ValidationError):
            adapter.validate_python(wrong)


# ---- sentences


def sentence(*args, **kwargs):
    with pytest.raises(UserError) as caught:
        load(*args, **kwargs)
    return str(caught.value)


def test_missing_file(tmp_path):
    path = tmp_path / "t.pt"
    assert sentence(path) == f"the teacher's checkpoint '{path}' does not exist"
    assert sentence(tmp_path) == f"the teacher's checkpoint '{tmp_path}' is a folder; name the file in it"


def test_other_number_of_classes(tmp_path):
    path = tmp_path / "t.pt"
    write_checkpoint(path)
    assert sentence(path, classes=10) == f"the teacher '{path}' knows 5 classes, but the data set has 10"


def test_the_same_classes_in_another_order(tmp_path):
    """Names that are all others may be other names of the same; old checkpoints have none."""
    path, names = tmp_path / "t.pt", ["ant", "bee", "cow", "dog", "eel"]
    teacher = CheckpointTeacher(path=str(path))
    for known in ({}, {"names": names}, {"names": ["0", "1", "2", "3", "4"]}):
        write_checkpoint(path, **known)
        load_teacher(teacher, 5, CPU, names)
    write_checkpoint(path, names=["ant", "cow", "bee", "dog", "eel"])
    with pytest.raises(UserError) as caught:
        load_teacher(teacher, 5, CPU, names)
    assert str(caught.value) == (
        f"the teacher '{path}' was trained with 'cow' as class 1, which is 'bee' in the data: "
        "use the same classes in the same order (data.classes)"
    )


def test_other_digest(tmp_path):
    path = tmp_path / "t.pt"
    digest = weights_digest(write_checkpoint(path))
    assert sentence(path, "abc") == (
        f"the teacher '{path}' has digest {digest}, but the recipe asks for abc: these are other weights"
    )


def test_foreign_files(tmp_path):
    path = tmp_path / "t.pt"
    for content in (b"", b"not a checkpoint", b"\x80\x04cos\nsystem\n"):
        path.write_bytes(content)
        assert sentence(path) == f"the teacher '{path}' is not whole: cut off or overwritten"
    for thing in (torch.zeros(3), network().state_dict(), {"format": 1}):
        torch.save(thing, path)
        assert sentence(path) == (
            f"the teacher '{path}' is not a checkpoint of lsdali; others' weights are a teacher of source: file, with "
            "its model"
        )
    torch.save(network().state_dict(), path, _use_new_zipfile_serialization=False)
    assert "is not a checkpoint of lsdali; others' weights" in sentence(path)
    torch.save(network(), path)
    assert sentence(path).startswith(f"the teacher '{path}' is unreadable: it holds an object of lsdali.models.student")
    write_checkpoint(path)
    path.write_bytes(path.read_bytes()[:5000])
    assert sentence(path) == f"the teacher '{path}' is not whole: cut off or overwritten"


def test_other_format(tmp_path):
    path = tmp_path / "t.pt"
    write_checkpoint(path, format=2)
    assert sentence(path) == f"the teacher '{path}' is of format 2, and this version reads 1"


def test_unknown_model_in_the_checkpoint(tmp_path):
    path = tmp_path / "t.pt"
    write_checkpoint(path, recipe={"model": {"name": "resnet19"}})
    assert sentence(path) == (
        f"the teacher '{path}' holds a model that is not known here: "
        "there is no model 'resnet19'; did you mean 'resnet18'?"
    )


def test_weights_of_another_model(tmp_path):
    path = tmp_path / "t.pt"
    write_checkpoint(path, recipe={"model": {"name": "resnet18", "width": None}})
    assert sentence(path) == f"the teacher '{path}' does not hold the weights of the resnet18 it names"


# ---- other sources


ADAPTER = TypeAdapter(TeacherConfig)
PIXELS = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def open_source(tree, classes=5):
    return load_teacher(ADAPTER.validate_python(tree), classes, CPU)


def refused(tree, classes=5):
    with pytest.raises(UserError) as caught:
        open_source(tree, classes)
    return str(caught.value)


def write_run(folder):
    """A run with an average of other weights; returns both networks."""
    (folder / "checkpoints").mkdir(parents=True)
    average = network(seed=5).eval()
    parts = {
        "student": Student(network(), {}).state_dict(),
        "ema": {"weights": Student(average, {}).state_dict()},
    }
    for name in ("best.pt", "step-0000000009.pt"):
        own = write_checkpoint(folder / "checkpoints" / name, parts=parts)
    own.load_state_dict(network().state_dict())
    return own, average


@torch.no_grad()
def test_a_run_folder_and_its_average(tmp_path):
    own, average = write_run(tmp_path / "run")
    for weights, source in (("model", own), ("ema", average)):
        for which in ("best", "last"):
            tree = {"source": "run", "path": str(tmp_path / "run"), "weights": weights, "checkpoint": which}
            torch.testing.assert_close(open_source(tree)(PIXELS), source(PIXELS))
        tree = {"source": "checkpoint", "path": str(tmp_path / "run/checkpoints/best.pt"), "weights": weights}
        assert open_source(tree).digest == weights_digest(source)
    write_checkpoint(tmp_path / "t.pt")
    assert "keeps no moving average" in refused({"source": "run", "path": str(tmp_path / "t.pt"), "weights": "ema"})


def test_a_student_begins_with_a_run(tmp_path):
    own, average = write_run(tmp_path / "run")
    for which, source in (("model", own), ("ema", average)):
        student = network(seed=9)
        load_weights(student, "x", RunWeights(path=str(tmp_path / "run"), which=which), lambda line: None)
        assert weights_digest(student) == weights_digest(source)


@torch.no_grad()
def test_a_file_of_weights(tmp_path):
    source = network(seed=3).eval()
    torch.save({"state_dict": source.state_dict(), "state_dict_ema": network(seed=4).state_dict()}, tmp_path / "w.pt")
    tree = {"source": "file", "model": {"name": MODEL.name, "width": 16}, "path": str(tmp_path / "w.pt")}
    assert torch.equal(open_source(tree)(PIXELS), source(PIXELS.contiguous(memory_format=torch.channels_last)))
    assert open_source({**tree, "which": "ema"}).digest == weights_digest(network(seed=4))
    own = open_source({**tree, "mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]})
    own.expect(((0.4,) * 3, (0.2,) * 3))
    given = (PIXELS - 0.4) / 0.2
    mean, std = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1), torch.tensor([0.5, 0.6, 0.7]).view(3, 1, 1)
    torch.testing.assert_close(own(given), source((PIXELS - mean) / std), rtol=1e-4, atol=1e-5)
    assert refused(tree, 7) == f"the teacher '{tmp_path}/w.pt' has another number of classes than the data set's 7"
    assert refused({**tree, "path": "no.pt"}) == "method.teacher: the file 'no.pt' does not exist"
    wrong = refused({**tree, "model": {"name": "resnet20"}})
    assert wrong.startswith(f"method.teacher: the weights '{tmp_path}/w.pt' ")
    assert "model.weights" not in wrong
    with pytest.raises(ValidationError, match="mean and std are given together, or neither"):
        ADAPTER.validate_python({**tree, "mean": [0.1, 0.2, 0.3]})


@torch.no_grad()
def test_timms_network_with_its_own_normalisation(monkeypatch):
    timm = pytest.importorskip("timm")
    real, asked = timm.create_model, []

    def create(bare, pretrained=False, **options):
        asked.append((bare, pretrained))
        torch.manual_seed(0)
        return real(bare.partition(".")[0], **options)

    monkeypatch.setattr(timm, "create_model", create)
    teacher = open_source({"source": "timm", "model": "mobilenetv3_small_050", "tag": "lamb_in1k"}, 1000)
    assert asked[0] == ("mobilenetv3_small_050.lamb_in1k", True)
    torch.manual_seed(0)
    theirs = real("mobilenetv3_small_050").eval()
    pixels = torch.rand(2, 3, 64, 64)
    teacher.expect(((0.0,) * 3, (1.0,) * 3))
    mean, std = theirs.default_cfg["mean"], theirs.default_cfg["std"]
    own = torchvision.transforms.functional.normalize(pixels, mean, std)
    torch.testing.assert_close(teacher(pixels), theirs(own), rtol=1e-3, atol=1e-4)
    assert refused({"source": "timm", "model": "mobilenetv3_small_050"}) == (
        "timm's mobilenetv3_small_050 knows 1000 classes, but the data set has 5"
    )


def test_a_network_that_comes_trained(monkeypatch):
    torch.manual_seed(7)
    trained = HandWritten(5).eval()
    monkeypatch.setitem(MODELS, "mine", lambda classes: trained)
    teacher = open_source({"source": "uses", "model": {"name": "mine"}})
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        layers = [*trained.blocks]
        x = images
        for layer in layers:
            x = layer(x)
        expected = torch.nn.functional.linear(x.mean((2, 3)), *teacher._network.classifier.parameters())
    torch.testing.assert_close(teacher(images), expected)


@torch.no_grad()
def test_an_ensemble_is_the_mean_of_probabilities(tmp_path):
    own, average = write_run(tmp_path / "run")
    one = {"source": "run", "path": str(tmp_path / "run")}
    tree = {"source": "ensemble", "of": [{**one, "temperature": 2.0}, {**one, "weights": "ema"}], "temperature": 3.0}
    teacher = open_source(tree)
    shares = ((own(PIXELS) / 2).softmax(1) + average(PIXELS).softmax(1)) / 2
    torch.testing.assert_close((teacher(PIXELS) * 3).exp(), shares)
    digests = f"{weights_digest(own)} {weights_digest(average)}"
    assert teacher.digest == hashlib.sha256(digests.encode()).hexdigest()
    assert open_source({**tree, "digest": teacher.digest}).classes == 5
    given = ((0.0,) * 3, (1.0,) * 3)
    teacher.expect(given)
    shares = ((own((PIXELS - 0.4) / 0.2) / 2).softmax(1) + average((PIXELS - 0.4) / 0.2).softmax(1)) / 2
    torch.testing.assert_close((teacher(PIXELS) * 3).exp(), shares, rtol=1e-4, atol=1e-5)
    write_checkpoint(tmp_path / "seven.pt", classes=7)
    other = {"source": "checkpoint", "path": str(tmp_path / "seven.pt")}
    assert refused({**tree, "of": [one, other]}) == (
        f"the teacher '{tmp_path}/seven.pt' knows 7 classes, but the data set has 5"
    )
    with pytest.raises(ValidationError):
        ADAPTER.validate_python({"source": "ensemble", "of": [one]})


def test_the_teachers_of_the_page_are_teachers():
    page = (ROOT / "docs/models.md").read_text()
    blocks = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (tree,) = [yaml.safe_load(block)["method"] for block in blocks if block.startswith("method:")]
    assert len(KnowledgeDistillation.Config.model_validate(tree).teacher.of) == 2
    listed = set(re.findall(r"^\| `(\w+)` \| `(?:path|model|of)", page, re.MULTILINE))
    assert listed == set(ADAPTER.json_schema()["discriminator"]["mapping"])
