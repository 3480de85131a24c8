"""Exported files compute what the network computes, and what cannot be exported is said."""

import importlib.util
import json
import re
import shlex

import pytest
import torch
import torchvision
import yaml
from safetensors import safe_open
from safetensors.torch import load_file

import lsdali
from lsdali.export import FORMATS, main
from lsdali.models import ModelConfig, build_network
from lsdali.models import exports as room
from lsdali.models.digest import weights_digest
from lsdali.models.pretrained import FileWeights, load_weights
from lsdali.models.student import Network, Student
from tests.harness import ROOT

DATA = {"name": "folder", "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4], "eval": {"resize": 40, "size": 32}}
NAMES = ["ant", "bee", "cow", "dog", "eel"]


def make_run(folder, name="lenet", data=DATA, **changes):
    """A run with a network of moved statistics, and an average of other weights; returns both."""
    config = ModelConfig(name=name)
    networks = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        networks.append(build_network(config, 5))
        networks[-1](torch.randn(4, 3, *(2 * [data["eval"]["size"]])))
    network, average = networks
    record = {"best": {"top1": 71.5, "nll": 1.25, "n": 50, "epoch": 3}, "last": {"top1": 70.0, "epoch": 4}}
    saved = {
        "format": 1,
        "recipe": {"model": config.model_dump(), "data": data, "run_dir": "secret"},
        "classes": 5,
        "names": NAMES,
        "epoch": 3,
        "data": "fingerprint",
        "step": 7,
        "steps": 9,
        "teachers": [],
        "parts": {
            "student": Student(network, {}).state_dict(),
            "ema": {"weights": Student(average, {}).state_dict()},
            "trainer": {"record": {"model": record}},
        },
    }
    (folder / "checkpoints").mkdir(parents=True)
    torch.save({**saved, **changes}, folder / "checkpoints" / "best.pt")
    return network.eval(), average.eval()


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.parametrize("name", ["lenet", "resnet8x4"])
def test_safetensors_and_torchscript(tmp_path, name, capsys):
    network, _ = make_run(tmp_path / "run", name)
    images = torch.randn(4, 3, 32, 32)
    assert main([str(tmp_path / "run")]) == 0
    modes = {file.stat().st_mode for file in (tmp_path / "run/checkpoints").iterdir()}
    assert len(modes) == 1, "whoever may read the checkpoint may read what was exported of it"
    with safe_open(tmp_path / "run/checkpoints/best.safetensors", "pt") as file:
        assert set(file.keys()) == network.state_dict().keys()
        assert file.metadata()["classes"] == "5"
    assert f"{name} with 5 classes from" in capsys.readouterr().out
    out = tmp_path / "net.pt"
    assert main([str(tmp_path / "run/checkpoints/best.pt"), "--format", "torchscript", "--out", str(out)]) == 0
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.load(out)(images), network(images))


@pytest.mark.parametrize("name", ["lenet", "cifar_shufflenet_v2"])
def test_onnx(tmp_path, name, capsys):
    """One file that onnxruntime reads, for any number of images."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    network, _ = make_run(tmp_path / "run", name)
    assert main([str(tmp_path / "run"), "--format", "onnx"]) == 0
    assert capsys.readouterr().out.startswith(f"{name} with 5 classes from")
    written = tmp_path / "alone" / "net.onnx"
    written.parent.mkdir()
    (tmp_path / "run/checkpoints/best.onnx").rename(written)
    session = onnxruntime.InferenceSession(written)
    for count in (1, 5):
        images = torch.randn(count, 3, 32, 32)
        (logits,) = session.run(["logits"], {"images": images.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(logits), network(images), rtol=1e-4, atol=1e-5)


def test_onnx_with_a_fixed_batch_is_refused(tmp_path, capsys, monkeypatch):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    make_run(tmp_path / "run")
    monkeypatch.setattr(Network, "forward", lambda self, x: self.logits({}, x[:, 0, :3, :28].reshape(len(x), -1)))
    assert main([str(tmp_path / "run"), "--format", "onnx"]) == 2
    assert capsys.readouterr().err == (
        "error: 'lenet' cannot be exported to onnx: its batch size would be fixed to 2\n"
    )


def test_other_outputs_are_refused(tmp_path, monkeypatch, capsys):
    make_run(tmp_path / "run")
    monkeypatch.setattr(room, "write_format", lambda kind, module, *rest: lambda x: module(x) + 1)
    assert main([str(tmp_path / "run")]) == 2
    assert "gives other outputs than the network" in capsys.readouterr().err


def test_sentences(tmp_path, capsys, monkeypatch):
    def said(*arguments):
        assert main([str(a) for a in arguments]) == 2
        return capsys.readouterr().err

    assert said(tmp_path) == (
        f"error: there is no checkpoint {tmp_path}/checkpoints/best.pt: name a run folder or a checkpoint file\n"
    )
    (tmp_path / "x.pt").write_bytes(b"x")
    assert said(tmp_path / "x.pt") == f"error: the checkpoint {tmp_path}/x.pt is not whole: cut off or overwritten\n"
    recipe = {"model": {"name": "resnet19"}, "data": {"eval": {"size": 32}}}
    make_run(tmp_path / "unknown", recipe=recipe)
    assert said(tmp_path / "unknown").endswith("there is no model 'resnet19'; did you mean 'resnet18'?\n")
    make_run(tmp_path / "run")
    monkeypatch.setattr(room, "find_spec", lambda name: None if name == "onnx" else importlib.util.find_spec("torch"))
    assert said(tmp_path / "run", "--format", "onnx") == (
        "error: the format onnx needs packages that are not here: pip install onnx\n"
    )


def test_every_format_has_a_writer() -> None:
    assert sorted([*room.PROGRAMS, *room.WEIGHTS]) == sorted(FORMATS)


SIZES = {"timm/vit_tiny_patch16_224": 224}
THEIRS = ["resnet18", "squeezenet1_1", "mobilenet_v3_small", "torchvision/shufflenet_v2_x0_5"]
TIMMS = ["timm/mobilenetv3_small_050", "timm/resnetv2_18", "timm/vit_tiny_patch16_224", "resnet18"]


def run_of(tmp_path, name):
    size = SIZES.get(name, 64)
    network, average = make_run(tmp_path / "run", name, {**DATA, "eval": {"resize": 2 * size, "size": size}})
    return network, average, torch.randn(2, 3, size, size)


def back_again(name, path, images):
    """The logits of a fresh network that begins with the file."""
    torch.manual_seed(9)
    network, said = build_network(ModelConfig(name=name), 5), []
    load_weights(network, name, FileWeights(path=str(path)), said.append)
    assert said == []
    return network.eval()(images)


@torch.no_grad()
@pytest.mark.parametrize("name", THEIRS)
def test_to_torchvision_and_back(tmp_path, name):
    network, average, images = run_of(tmp_path, name)
    for weights, source in (("model", network), ("ema", average)):
        out = tmp_path / f"{weights}.safetensors"
        assert main([str(tmp_path / "run"), "--weights", weights, "--out", str(out)]) == 0
        theirs = torchvision.models.get_model(name.removeprefix("torchvision/"), num_classes=5)
        theirs.load_state_dict(load_file(out), strict=True)
        torch.testing.assert_close(theirs.eval()(images), source(images), rtol=0, atol=1e-5)
        assert torch.equal(back_again(name, out, images), source(images))


@torch.no_grad()
@pytest.mark.parametrize("name", TIMMS)
def test_to_timm_and_back(tmp_path, name):
    timm = pytest.importorskip("timm")
    network, _, images = run_of(tmp_path, name)
    folder = tmp_path / "hub"
    assert main([str(tmp_path / "run"), "--to", "hub-folder", "--out", str(folder)]) == 0
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    torch.testing.assert_close(theirs(images), network(images), rtol=0, atol=1e-5)
    assert torch.equal(back_again(name, folder / "model.safetensors", images), network(images))
    change = timm.data.resolve_model_data_config(theirs)
    size = images.shape[-1]
    assert (list(change["mean"]), list(change["std"])) == (DATA["mean"], DATA["std"])
    assert (list(change["input_size"]), change["crop_pct"], change["crop_mode"]) == ([3, size, size], 0.5, "center")
    assert json.loads((folder / "config.json").read_text())["label_names"] == NAMES
    assert (folder / "README.md").read_text().startswith("---\ntags: [image-classification]")


def test_hub_folders_are_for_timms_networks(tmp_path, capsys):
    for name, end in (
        ("lenet", "'lenet' is lsdali's own network, so that its tensors have no other names\n"),
        (
            "squeezenet1_1",
            "timm has no network with the tensors of 'squeezenet1_1': export it with --format safetensors\n",
        ),
    ):
        make_run(tmp_path / name, name)
        assert main([str(tmp_path / name), "--to", "hub-folder"]) == 2
        assert capsys.readouterr().err == f"error: {end}"


def told(meta, network):
    assert json.loads(meta["names"]) == NAMES
    assert json.loads(meta["preprocessing"]) == {
        **{"resize": 40, "size": 32, "interpolation": "bilinear"},
        **{"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]},
    }
    assert (meta["digest"], meta["lsdali"]) == (weights_digest(network), lsdali.__version__)
    return True


def normalised(pixels):
    mean, std = (torch.tensor(DATA[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    return (pixels / 255 - mean) / std


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.parametrize("kind", ["onnx", "torch-export", "torchscript"])
def test_programs_that_take_pixels_and_what_they_carry(tmp_path, kind):
    network, _ = make_run(tmp_path / "run", "resnet8x4")
    out = tmp_path / ("net.pt2" if kind == "torch-export" else "net.bin")
    assert main([str(tmp_path / "run"), "--format", kind, "--pixels", "--out", str(out)]) == 0
    extra = {"metadata.json": ""}
    if kind == "onnx":
        session = pytest.importorskip("onnxruntime").InferenceSession(out)
        meta = session.get_modelmeta().custom_metadata_map

        def program(pixels):
            return torch.from_numpy(session.run(["logits"], {"pixels": pixels.numpy()})[0])
    else:
        load = torch.jit.load if kind == "torchscript" else torch.export.load
        key = "_extra_files" if kind == "torchscript" else "extra_files"
        program = load(out, **{key: extra})
        program = program if kind == "torchscript" else program.module()
        meta = json.loads(extra["metadata.json"])
    assert told(meta, network)
    for count in (1, 5):
        pixels = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8)
        torch.testing.assert_close(program(pixels), network(normalised(pixels)), rtol=1e-4, atol=1e-4)


def test_weights_alone_normalise_nothing(tmp_path, capsys):
    make_run(tmp_path / "run")
    assert main([str(tmp_path / "run"), "--pixels"]) == 2
    assert capsys.readouterr().err == (
        "error: safetensors holds weights and no program that could normalise images: leave out --pixels\n"
    )


def test_a_card_tells_what_the_file_is(tmp_path):
    network, average = make_run(tmp_path / "run", "resnet18")
    for weights, source in (("model", network), ("ema", average)):
        assert main([str(tmp_path / "run"), "--names", "lsdali", "--weights", weights]) == 0
        name = "best.safetensors" if weights == "model" else "best-ema.safetensors"
        with safe_open(tmp_path / "run/checkpoints" / name, "pt") as file:
            assert set(file.keys()) == network.state_dict().keys()
            assert told(file.metadata(), source)
        text = (tmp_path / f"run/checkpoints/{name}.md").read_text()
        assert weights_digest(source) in text
        assert ("| top1 | 71.5 |" in text) == (weights == "model")
        assert "Resize the shorter side to 40 px (bilinear), crop the centre of 32 px" in text
        assert "ant, bee, cow, dog, eel" in text
        recipe = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)[0])
        assert recipe["model"]["name"] == "resnet18"
        assert "secret" not in text


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_the_commands_of_the_page_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "run", "resnet18")
    (block,) = re.findall(r"```bash\n(lsdali export .*?)```", (ROOT / "docs/models.md").read_text(), re.DOTALL)
    for line in block.splitlines():
        verb, *arguments = shlex.split(line)[1:]
        assert verb == "export"
        assert main(["run" if argument == "RUN" else argument for argument in arguments]) == 0, line
    assert (tmp_path / "folder/config.json").is_file()
