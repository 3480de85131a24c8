"""Exported files compute what the network computes, and what cannot be exported is said."""

import importlib.util

import pytest
import torch
from safetensors import safe_open

from lsdali.export import FORMATS, main
from lsdali.models import ModelConfig, build_network
from lsdali.models import exports as room
from lsdali.models.student import Student


def make_run(folder, name="lenet", **changes):
    torch.manual_seed(0)
    config = ModelConfig(name=name)
    network = build_network(config, 5)
    saved = {
        "format": 1,
        "recipe": {"model": config.model_dump(), "data": {"eval": {"size": 32}}},
        "classes": 5,
        "data": "fingerprint",
        "step": 7,
        "steps": 9,
        "teachers": [],
        "parts": {"student": Student(network, {}).state_dict()},
    }
    (folder / "checkpoints").mkdir(parents=True)
    torch.save({**saved, **changes}, folder / "checkpoints" / "best.pt")
    return network.eval()


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.parametrize("name", ["lenet", "resnet8x4"])
def test_safetensors_and_torchscript(tmp_path, name, capsys):
    network = make_run(tmp_path / "run", name)
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


@pytest.mark.parametrize("name", ["lenet", "resnet8x4", "cifar_shufflenet_v2"])
def test_onnx(tmp_path, name, capsys):
    """One file that onnxruntime reads, for any number of images."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    network = make_run(tmp_path / "run", name)
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
    monkeypatch.setattr(room.Network, "forward", lambda self, x: self.logits({}, x[:, 0, :3, :28].reshape(len(x), -1)))
    assert main([str(tmp_path / "run"), "--format", "onnx"]) == 2
    assert capsys.readouterr().err == (
        "error: 'lenet' cannot be exported to onnx: its batch size would be fixed to 2\n"
    )


def test_other_outputs_are_refused(tmp_path, monkeypatch, capsys):
    make_run(tmp_path / "run")
    wrong = (lambda network, config, images, path: lambda x: network(x) + 1, ".x")
    monkeypatch.setitem(room.EXPORTERS, "safetensors", wrong)
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
    assert sorted(room.EXPORTERS) == sorted(FORMATS)
