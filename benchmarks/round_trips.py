"""How far exported networks are from those that they came from."""

import argparse
import contextlib
import io
import tempfile
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor

from lsdali.export import main as export
from lsdali.models import ModelConfig, build_network
from lsdali.models.families.torchvision import torchvision_name
from lsdali.models.pretrained import FileWeights, load_weights
from lsdali.models.reopened import kind_of, reopen
from lsdali.models.student import Student

NETWORKS = (
    "resnet18",
    "resnet50",
    "mobilenet_v3_small",
    "convnext_tiny",
    "torchvision/swin_t",
    "timm/resnet18",
    "timm/vit_tiny_patch16_224",
    "timm/efficientnet_b0",
    "preact_resnet18",
)
FORMATS = {"safetensors": "safetensors", "hub-folder": "hub", "onnx": "onnx", "torch-export": "pt2"}
CLASSES = 10


def made_run(folder: Path, name: str, size: int) -> tuple[Any, Tensor]:
    """Write a checkpoint of a network with moved statistics; return it in evaluation mode, and images."""
    torch.manual_seed(0)
    config = ModelConfig(name=name)
    network = build_network(config, CLASSES)
    images = torch.randn(4, 3, size, size)
    with torch.no_grad():
        network(images)
    data = {"name": "folder", "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4], "eval": {"resize": size, "size": size}}
    content = {
        "format": 1,
        "recipe": {"model": config.model_dump(), "data": data},
        "classes": CLASSES,
        "names": [str(k) for k in range(CLASSES)],
        "epoch": 1,
        "data": "",
        "step": 1,
        "steps": 1,
        "teachers": [],
        "parts": {"student": Student(network, {}).state_dict(), "trainer": {"record": {}}},
    }
    (folder / "checkpoints").mkdir(parents=True)
    torch.save(content, folder / "checkpoints/best.pt")
    return network.eval(), images


def theirs(name: str, kind: str, path: Path) -> Any:
    """Return the reader that somebody without lsdali would use; None where the format is lsdali's names."""
    from safetensors.torch import load_file

    if kind == "hub-folder":
        import timm

        return timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    if kind != "safetensors":
        return reopen(path, str(kind_of(path))).logits
    if name.startswith("timm/"):
        import timm

        network = timm.create_model(name.removeprefix("timm/"), num_classes=CLASSES)
    elif name.startswith("preact"):
        return None
    else:
        network = torchvision.models.get_model(torchvision_name(name), num_classes=CLASSES)
    network.load_state_dict(load_file(path), strict=True)
    return network.eval()


@torch.no_grad()
def cell(name: str, kind: str, run: Path, network: Any, images: Tensor) -> str:
    """Return the largest difference of a logit, and whether the weights come back to the bit."""
    path = run / f"net.{FORMATS[kind]}"
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        if export([str(run), "--format", kind, "--out", str(path)]):
            return "refused"
    expected = network(images)
    reader = theirs(name, kind, path)
    apart = "-" if reader is None else f"{(reader(images) - expected).abs().max().item():.1e}"
    if kind not in ("safetensors", "hub-folder"):
        return apart
    again = build_network(ModelConfig(name=name), CLASSES)
    file = path / "model.safetensors" if kind == "hub-folder" else path
    load_weights(again, name, FileWeights(path=str(file)), print)
    return f"{apart}, back: {'equal' if torch.equal(again.eval()(images), expected) else 'DIFFERS'}"


def round_trips(options: argparse.Namespace) -> None:
    """Each network through each format: the largest difference of a logit by torchvision, timm, onnxruntime or torch.

    Weights are then read back as `model.weights`, and the logits compared to the bit. Prints a table in Markdown.
    """
    print(f"| network | {' | '.join(FORMATS)} |\n|---|{'---|' * len(FORMATS)}")
    for name in options.names or NETWORKS:
        size = 224 if any(part in name for part in ("vit", "swin")) else 64
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            network, images = made_run(run, name, size)
            cells = [cell(name, kind, run, network, images) for kind in FORMATS]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def add_arguments(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    sub = commands.add_parser("round_trips", help="exports against networks", description=round_trips.__doc__)
    sub.add_argument("names", nargs="*", help="of networks (default: some of each kind)")
    sub.set_defaults(run_command=round_trips)
