"""Pretrained weights: every source, every tensor accounted for, every sentence."""

import argparse
import dataclasses
import datetime
import enum
import functools
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from pydantic import ValidationError
from safetensors.torch import save_file

from lsdali.errors import UserError
from lsdali.models import ModelConfig, build_network
from lsdali.models import pretrained as weights
from lsdali.models.digest import weights_digest
from lsdali.models.pretrained import FileWeights, TimmWeights, TorchvisionWeights, load_weights
from lsdali.models.student import Student
from lsdali.state import checkpoint

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


def trainers():
    """What common trainers save, as functions of the model's own weights and their average."""
    args = argparse.Namespace(lr=np.float64(0.1), opt="sgd", path=Path("data"))

    def under(prefix, state):
        return {prefix + key: value for key, value in state.items()}

    return {
        "torchvision": lambda own, average: {
            "model": own,
            "optimizer": {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"params": [0]}]},
            "model_ema": {"n_averaged": torch.tensor(3), **under("module.", average)},
            "args": args,
        },
        "timm": lambda own, average: {
            "epoch": 3,
            "arch": "x",
            "args": args,
            "metric": np.float64(71.5),
            "state_dict": own,
            "state_dict_ema": average,
            "version": 2,
        },
        "lightning": lambda own, average: {
            "pytorch-lightning_version": "2.4",
            "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(1.0)}},
            "state_dict": {**under("net.", own), "criterion.weight": torch.ones(5)},
            "ema": {"state": under("net.", average)},
        },
        "composer": lambda own, average: {
            "state": {"model": under("module.", own), "optimizers": {"SGD": {"state": {}}}},
            "rng": [{"numpy": ("MT19937", np.arange(4, dtype=np.uint32), 0)}],
            "swa_state": {"model": average},
        },
        "mdistiller": lambda own, average: {
            "epoch": 1,
            "model": {**under("module.student.", own), **under("module.teacher.", average)},
            "best_acc": np.float32(3),
            "ema_model": average,
        },
        "repdistiller": lambda own, average: {
            "opt": args,
            "model": own,
            "accuracy": torch.tensor(2.0),
            "ema": average,
        },
        "huggingface": lambda own, average: {**under("timm_model.", own)},
        "cs-kd": lambda own, average: {"net": under("module.", own), "acc": 3.0, "ema_net": average},
        "tf-kd": lambda own, average: {"epoch": 1, "state_dict": own, "optim_dict": {}, "averaged_weights": average},
        "a tuple": lambda own, average: ({"epoch": 3}, own, {"ema": average}),
        "members of an ensemble": lambda own, average: {"models": [own], "ema": [average]},
        "numbers of numpy": lambda own, average: {"state_dict": {k: v.numpy() for k, v in own.items()}, "ema": average},
        "compiled": lambda own, average: {k.replace("stage1.", "stage1._orig_mod."): v for k, v in own.items()},
    }


@pytest.mark.parametrize("name", trainers())
def test_checkpoints_of_common_trainers(tmp_path, name):
    own, average = network(), network(seed=7)
    content = trainers()[name](own.state_dict(), average.state_dict())
    torch.save(content, tmp_path / "w.pt")
    loaded, said = load(tmp_path / "w.pt")
    assert weights_digest(loaded) == weights_digest(own)
    left = {
        "lightning": ("net.", "criterion.weight"),
        "mdistiller": ("module.student.", "module.teacher.stem.0.weight"),
    }
    assert len(said) == (name in left)
    assert name not in left or said[0].startswith(
        f"the weights '{tmp_path}/w.pt' are those named {left[name][0]}...; left where they are: {left[name][1]}"
    )
    if name in ("huggingface", "compiled"):
        assert sentence(tmp_path / "w.pt", which="ema") == (
            f"the weights '{tmp_path}/w.pt' hold no average of weights; leave out model.weights.which"
        )
    else:
        assert weights_digest(load(tmp_path / "w.pt", which="ema")[0]) == weights_digest(average)


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
    path, state = tmp_path / "w.pt", network().state_dict()
    torch.save({"classifier.bias": state["classifier.bias"]}, path)
    assert " more)" in sentence(path)
    torch.save({"model": {f"a{n}": torch.zeros(1) for n in range(7)}}, path)
    assert sentence(path, others="report") == (
        f"the weights '{path}' hold no tensor of the network; its tensors are a0, a1, a2, a3, a4 and 2 more"
    )


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
    assert sentence(path) == (
        f"model.weights: the file '{path}' cannot be read: it holds an object of lsdali.models.student.Network, and "
        "reading that would run its code; save the model's state_dict() where the file was written"
    )
    torch.save({"epoch": 3}, path)
    assert sentence(path) == f"the weights '{path}' hold no tensor of the network; its keys are epoch"
    torch.save(torch.zeros(3), path)
    assert sentence(path) == f"model.weights: the file '{path}' holds a Tensor, not tensors by name"
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


class Harmful:
    def __reduce__(self):
        return os.system, ("true",)


@pytest.mark.parametrize("kind", ["zip", "legacy", "plain"])
@pytest.mark.filterwarnings("ignore:.*protocol:UserWarning")
def test_nothing_runs_and_nobody_is_advised_to_let_it(tmp_path, kind, monkeypatch):
    ran = []
    monkeypatch.setattr(os, "system", ran.append)
    path = tmp_path / "w.pt"
    if kind == "plain":
        path.write_bytes(pickle.dumps({"w": Harmful()}))
    else:
        torch.save({"w": Harmful()}, path, _use_new_zipfile_serialization=kind == "zip")
    said = [sentence(path), checkpoint.fault(path)]
    assert ran == []
    assert not any("weights_only" in text or "\x1b" in text or "\n" in text for text in said)


LOOKALIKES = {
    b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n": "it is a pointer of Git LFS",
    b"<!DOCTYPE html><html>not found</html>": "it is a web page, not the file that the page offers",
    b"\x89HDF\r\n\x1a\n" + bytes(90): "it is an HDF5 file, as Keras writes",
    b"\x1f\x8b\x08" + bytes(90): "it is compressed with gzip: unpack it",
    b'{"weight_map": {}}': "it is JSON, as an index of several files is: name the file with the tensors",
    b"PK\x03\x04" + bytes(90): "it is cut off or overwritten: get it again",
    b"": "it is empty: get it again",
}


@pytest.mark.parametrize("content", LOOKALIKES, ids=LOOKALIKES.values())
def test_what_people_take_for_weights_is_named(tmp_path, content):
    (tmp_path / "w.pt").write_bytes(content)
    said = sentence(tmp_path / "w.pt")
    assert said.startswith(f"model.weights: the file '{tmp_path}/w.pt' cannot be read: {LOOKALIKES[content]}")


def test_folders_loops_and_weights_that_diverged(tmp_path):
    assert sentence(tmp_path).endswith(f"the file '{tmp_path}' cannot be read: it is a folder: name the file in it")
    os.mkfifo(tmp_path / "pipe.pt")
    assert sentence(tmp_path / "pipe.pt").endswith("cannot be read: it is no file, but a FIFO, socket or device")
    own = network().state_dict()
    loop = {"model": own}
    torch.save({**loop, "again": {"again": loop}}, tmp_path / "deep.pt")
    loop["again"] = loop
    torch.save(loop, tmp_path / "loop.pt")
    for name in ("deep.pt", "loop.pt"):
        assert weights_digest(load(tmp_path / name)[0]) == weights_digest(network())
    torch.save({**own, "stem.0.weight": own["stem.0.weight"] * torch.nan}, tmp_path / "nan.pt")
    assert sentence(tmp_path / "nan.pt") == (
        f"the weights '{tmp_path}/nan.pt' are not finite in stem.0.weight: their training had diverged"
    )
    np.savez(tmp_path / "w.npz", **{key: value.numpy() for key, value in own.items()})
    assert weights_digest(load(tmp_path / "w.npz")[0]) == weights_digest(network())


class Level(enum.Enum):
    HIGH = "high"


class Settings(dict):
    """As yacs' CfgNode: a mapping with attributes."""

    def __init__(self, **values):
        super().__init__(**values)
        self.frozen = True


class Tuned:
    """As omegaconf's: an object with a state of its own."""

    def __init__(self):
        self.node = {"lr": 0.1}

    def __getstate__(self):
        return ["a", "list"]

    def __setstate__(self, state):
        raise AssertionError("code of the file has run")


class Names(list):
    pass


@dataclasses.dataclass
class Options:
    lr: float = 0.1
    level: Level = Level.HIGH
    part: object = functools.partial(max, 1)


BESIDE = {
    "an enum": lambda: Level.HIGH,
    "a mapping": lambda: Settings(lr=0.1, names=["a"]),
    "a dataclass": Options,
    "a state of its own": Tuned,
    "a list": lambda: Names(["a", "b"]),
    "a time": lambda: datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC),
    "several": lambda: [Level.HIGH, Options(), Settings(a=Level.HIGH)],
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("what", BESIDE)
@pytest.mark.filterwarnings("ignore:.*protocol:UserWarning")
def test_settings_that_are_objects_are_left_unread_beside_the_weights(tmp_path, what, legacy):
    source, path = network(), tmp_path / "w.ckpt"
    content = {"hyper_parameters": BESIDE[what](), "state_dict": source.state_dict()}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    assert weights_digest(load(path)[0]) == weights_digest(source)
    torch.save({"hyper_parameters": BESIDE[what]()}, path, _use_new_zipfile_serialization=not legacy)
    assert "it holds an object of " in sentence(path)


def test_functions_beside_the_weights_are_refused(tmp_path, monkeypatch):
    ran = []
    torch.save({"state_dict": network().state_dict(), "w": Harmful()}, tmp_path / "w.pt")
    monkeypatch.setattr(os, "system", ran.append)
    assert "it holds an object of posix.system" in sentence(tmp_path / "w.pt")
    assert ran == []
