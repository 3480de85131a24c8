"""Pretrained weights: every source, every tensor accounted for, every sentence."""

import pytest
import torch
import torchvision
from pydantic import ValidationError
from safetensors.torch import save_file

from lsdali.errors import UserError
from lsdali.models import ModelConfig, build_network
from lsdali.models import pretrained as weights
from lsdali.models.digest import weights_digest
from lsdali.models.pretrained import FileWeights, TimmWeights, TorchvisionWeights, load_weights, read_file
from lsdali.models.student import Student

NAME = "resnet8x4"


def network(classes=5, seed=0, name=NAME):
    torch.manual_seed(seed)
    return build_network(ModelConfig(name=name), classes)


def load(path, classes=5, name=NAME, **options):
    """A fresh network with the weights of a file, and what was said."""
    said = []
    out = network(classes, seed=1, name=name)
    load_weights(out, name, FileWeights(path=str(path), **options), said.append)
    return out, said


def sentence(*args, **kwargs):
    with pytest.raises(UserError) as caught:
        load(*args, **kwargs)
    return str(caught.value)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "state_dict.module.", "network."])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_common_forms_of_a_file(tmp_path, prefix, wrapper):
    source = network()
    state = {prefix + key: value for key, value in source.state_dict().items()}
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "w.pt")
    loaded, said = load(tmp_path / "w.pt")
    assert weights_digest(loaded) == weights_digest(source)
    assert said == []


def test_safetensors_and_checkpoints_of_lsdali(tmp_path):
    source = network()
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    parts = {"student": Student(source, {}).state_dict(), "optimizer": {}}
    torch.save({"format": 1, "parts": parts}, tmp_path / "run.pt")
    for name in ("w.safetensors", "run.pt"):
        loaded, said = load(tmp_path / name)
        assert weights_digest(loaded) == weights_digest(source)
        assert said == []


@pytest.mark.parametrize(("classes", "options"), [(8, {}), (5, {"classifier": "new"})])
def test_other_classes_leave_the_classifier_and_say_so(tmp_path, classes, options):
    source = network(classes=5)
    torch.save(source.state_dict(), tmp_path / "w.pt")
    loaded, said = load(tmp_path / "w.pt", classes=classes, **options)
    assert said == [f"the weights '{tmp_path}/w.pt' know 5 classes: the classifier for {classes} begins untrained"]
    fresh = network(classes=classes, seed=1)
    assert torch.equal(loaded.classifier.weight, fresh.classifier.weight)
    assert torch.equal(loaded.stem[0].weight, source.stem[0].weight)


def test_missing_and_unexpected_tensors_are_listed(tmp_path):
    path = tmp_path / "w.pt"
    state = network().state_dict()
    del state["stem.0.weight"]
    state["extra"] = torch.zeros(2)
    state["stem.1.bias"] = torch.zeros(3)
    torch.save(state, path)
    assert sentence(path) == (
        f"the weights '{path}' do not fit 'resnet8x4' (missing: stem.0.weight; not in the network: extra; "
        "of another shape: stem.1.bias [3]); model.weights.others: report would go on without these tensors"
    )
    loaded, said = load(path, others="report")
    assert said == [
        f"the weights '{path}', missing: stem.0.weight",
        f"the weights '{path}', not in the network: extra",
        f"the weights '{path}', of another shape: stem.1.bias [3]",
    ]
    fresh = network(seed=1)
    assert torch.equal(loaded.stem[0].weight, fresh.stem[0].weight)
    assert torch.equal(loaded.classifier.weight, state["classifier.weight"])


def test_many_names_are_cut_in_the_error(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "w.pt")
    assert " and " in sentence(tmp_path / "w.pt")
    assert sentence(tmp_path / "w.pt", others="report").endswith("hold no tensor of 'resnet8x4'")


def test_digest(tmp_path):
    source = network()
    torch.save({f"module.{k}": v for k, v in source.state_dict().items()}, tmp_path / "w.pt")
    digest = weights_digest(source)
    load(tmp_path / "w.pt", digest=digest)
    assert sentence(tmp_path / "w.pt", digest="abc") == (
        f"the weights '{tmp_path}/w.pt' have digest {digest}, but the recipe asks for abc: these are other weights"
    )


def test_files_that_are_none(tmp_path):
    path = tmp_path / "w.pt"
    assert sentence(path) == f"model.weights: the file '{path}' does not exist"
    for content, start in ((b"\x80\x04cos\nsystem\n", "cannot be read: "), (b"", "cannot be read: ")):
        path.write_bytes(content)
        assert sentence(path).startswith(f"model.weights: the file '{path}' {start}")
    torch.save(network(), path)  # a pickled module could run code
    assert sentence(path).startswith(f"model.weights: the file '{path}' cannot be read: Weights only load failed")
    for thing in ({}, {"a": 3}, torch.zeros(3)):
        torch.save(thing, path)
        assert sentence(path) == f"model.weights: the file '{path}' holds no tensors by name"
    (tmp_path / "w.safetensors").write_bytes(b"x")
    assert "cannot be read" in sentence(tmp_path / "w.safetensors")


def test_torchvisions_file_fits_under_its_own_names(tmp_path):
    for name in ("resnet18", "squeezenet1_1", "convnext_tiny"):
        torch.manual_seed(0)
        theirs = torchvision.models.get_model(name, num_classes=5).eval()
        torch.save(theirs.state_dict(), tmp_path / "w.pt")
        loaded, said = load(tmp_path / "w.pt", name=name)
        assert said == []
        images = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            torch.testing.assert_close(loaded.eval()(images), theirs(images), rtol=0, atol=1e-6)


def test_torchvision_weights(monkeypatch):
    theirs = torchvision.models.resnet18()
    entry = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    monkeypatch.setattr(type(entry), "get_state_dict", lambda self, **_: theirs.state_dict())
    config = ModelConfig.model_validate(
        {"name": "resnet18", "weights": {"source": "torchvision", "weights": "IMAGENET1K_V1"}}
    )
    ours, said = network(5, name="resnet18"), []
    torch.manual_seed(3)
    load_weights(ours, "resnet18", config.weights, said.append)
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(1))
    assert torch.equal(ours.stem.conv1.weight, theirs.conv1.weight)
    assert said == [
        "the weights torchvision's resnet18 IMAGENET1K_V1 know 1000 classes: the classifier for 5 begins untrained"
    ]


def test_timm_weights(monkeypatch):
    timm = pytest.importorskip("timm")
    name = "timm/mobilenetv3_small_050"
    theirs = timm.create_model("mobilenetv3_small_050").eval()
    asked = []
    monkeypatch.setattr(timm, "create_model", lambda bare, pretrained: asked.append(bare) or theirs)
    state = TimmWeights(tag="lamb_in1k").read(name)[0]
    assert asked == ["mobilenetv3_small_050.lamb_in1k"]
    monkeypatch.undo()
    monkeypatch.setattr(weights, "timm_state", lambda bare: state)
    ours, said = network(1000, name=name), []
    load_weights(ours, name, TimmWeights(), said.append)
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(ours.eval()(images), theirs(images))
    assert said == []


def test_timm_weights_that_cannot_be_fetched(monkeypatch):
    timm = pytest.importorskip("timm")

    def offline(*_, **__):
        raise RuntimeError("no route to host\nmore")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(UserError) as caught:
        TimmWeights().read("timm/resnet18")
    assert str(caught.value) == "cannot get timm's weights of resnet18: no route to host"


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (
            {"name": "resnet20", "weights": {"source": "torchvision", "weights": "IMAGENET1K_V1"}},
            "torchvision has no weights for 'resnet20'; it has for its own networks only",
        ),
        (
            {"name": "resnet50", "weights": {"source": "torchvision", "weights": "V9"}},
            "there is no set of torchvision's resnet50 weights 'V9'; torchvision has: IMAGENET1K_V1, IMAGENET1K_V2",
        ),
        (
            {"name": "resnet50", "weights": {"source": "timm"}},
            "timm's weights are for networks named timm/..., and this one is 'resnet50'",
        ),
        (
            {"name": "resnet50", "zero_gamma": True, "weights": {"source": "file", "path": "x"}},
            "`weights` are where the network begins; leave out `init` and `zero_gamma`",
        ),
    ],
)
def test_what_a_recipe_is_told(config, sentence):
    with pytest.raises(ValidationError) as caught:
        ModelConfig.model_validate(config)
    (error,) = caught.value.errors()
    assert str(error["ctx"]["error"]) == sentence


def test_densenet264_has_no_weights_of_torchvision():
    with pytest.raises(ValueError, match="torchvision has: none for this network"):
        TorchvisionWeights(weights="IMAGENET1K_V1").check_compatible("densenet264")


def test_read_file_gives_plain_names(tmp_path):
    torch.save({"state_dict": {"module.a": torch.ones(1), "module.b": torch.ones(2)}}, tmp_path / "w.pt")
    assert list(read_file(tmp_path / "w.pt")) == ["a", "b"]
