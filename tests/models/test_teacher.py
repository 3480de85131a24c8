"""Teacher: frozen, apart from the student, and refused with a sentence where it is the wrong one."""

import pytest
import torch
import torchvision
from pydantic import TypeAdapter, ValidationError
from torch import nn

from lsdali.errors import UserError
from lsdali.models import ModelConfig, build_network
from lsdali.models.aux_heads import StageHead
from lsdali.models.digest import weights_digest
from lsdali.models.student import Student
from lsdali.models.teacher import CheckpointTeacher, Teacher, TeacherConfig, TorchvisionTeacher, load_teacher

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
        assert sentence(path) == f"the teacher '{path}' is not a checkpoint of lsdali"
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
