"""Write a trained network for other programs, read it back, and compare its outputs."""

import json
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lsdali.errors import UserError
from lsdali.models.exported import Exported, FromPixels, card, open_exported, published_state
from lsdali.models.hub_folder import as_hub_folder
from lsdali.models.pretrained import Which
from lsdali.models.reopened import METADATA, Reader, from_onnx, from_safetensors, from_torch_export, from_torchscript

TensorNames = Literal["publisher", "lsdali"]

EXPORT_TOLERANCE = 1e-4
"""Largest difference of a logit, as a share of the largest logit; compilers may add in another order."""


def as_safetensors(exported: Exported, path: Path, names: TensorNames) -> Reader:
    """Return state dict with the names of torchvision or timm if the network is theirs.

    The rest is in the metadata.
    """
    from safetensors.torch import save

    own = {key: value.contiguous() for key, value in exported.network.state_dict().items()}
    state = (published_state(exported.network) if names == "publisher" else None) or own
    meta = {"format": "pt", **exported.metadata()}
    path.write_bytes(save(state, metadata=meta))  # save_file lets nobody else read the file
    return from_safetensors(path).logits


def as_torchscript(module: nn.Module, exported: Exported, images: Tensor, path: Path) -> Reader:
    """Return a traced module, which runs without lsdali and without Python."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated; the tracer warns of every shape it reads
        traced = torch.jit.trace(module, images)  # type: ignore[no-untyped-call]
        torch.jit.save(traced, path, _extra_files={METADATA: json.dumps(exported.metadata())})
    return from_torchscript(path).logits


def as_torch_export(module: nn.Module, exported: Exported, images: Tensor, path: Path) -> Reader:
    """Return a program of torch.export with a free batch size, which runs without lsdali."""
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(module, (images,), dynamic_shapes=shapes)
    torch.export.save(program, path, extra_files={METADATA: json.dumps(exported.metadata())})
    return from_torch_export(path).logits


def as_onnx(module: nn.Module, exported: Exported, images: Tensor, path: Path) -> Reader:
    """Write ONNX with a free batch size: `images` [B, 3, H, W] -> `logits` [B, K], in one file with its weights.

    The input of a module that takes pixels is called `pixels`.
    """
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise UserError(f"the format onnx needs packages that are not here: pip install {' '.join(missing)}")
    import onnx
    import onnxruntime

    given = "pixels" if isinstance(module, FromPixels) else "images"
    torch.onnx.export(
        module,
        (images,),
        path,
        input_names=[given],
        output_names=["logits"],
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        external_data=False,  # else the weights are a second file, and the first one alone is of no use
        verbose=False,
    )
    program = onnx.load(path)
    onnx.helper.set_model_props(program, exported.metadata())
    onnx.save(program, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    if isinstance(session.get_inputs()[0].shape[0], int):  # an `int()` or `len()` in the network's code does that
        name = exported.config.name
        raise UserError(f"'{name}' cannot be exported to onnx: its batch size would be fixed to {len(images)}")
    return from_onnx(path).logits


PROGRAMS: dict[str, tuple[Callable[[nn.Module, Exported, Tensor, Path], Reader], str, str]] = {
    "torchscript": (as_torchscript, ".torchscript.pt", "`torch.jit.load` reads it."),
    "torch-export": (as_torch_export, ".pt2", "`torch.export.load(...).module()` reads it."),
    "onnx": (as_onnx, ".onnx", "onnxruntime reads it."),
}
"""How each program is written, the ending of its file, and how it is read."""

WEIGHTS = {"safetensors": ".safetensors", "hub-folder": "-hub"}
"""Formats that hold weights and no program, and the endings of their names."""


@torch.no_grad()
def export(
    run: Path,
    kind: str,
    out: Path | None,
    *,
    weights: Which = "model",
    names: TensorNames = "publisher",
    pixels: bool = False,
) -> str:
    """Write the network of a run, and a card beside it; one line that tells where to and how well the outputs agree.

    With `pixels`, a program normalises its images itself. Raises UserError if there is nothing to export, or what
    was written computes something else.
    """
    if pixels and kind in WEIGHTS:
        raise UserError(f"{kind} holds weights and no program that could normalise images: leave out --pixels")
    exported = open_exported(run, weights)
    ending = WEIGHTS.get(kind) or PROGRAMS[kind][1]
    stem = exported.path.stem + ("-ema" if weights == "ema" else "")
    out = out or exported.path.with_name(stem + ending)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(3, 3, exported.size, exported.size, generator=generator)
    module: nn.Module = exported.network
    if pixels:
        exported = replace(exported, pixels=True)
        module = FromPixels(module, tuple(exported.data["mean"]), tuple(exported.data["std"])).eval()
        images = torch.randint(256, images.shape, generator=generator, dtype=torch.uint8)
    back = write_format(kind, module, exported, images[:2], out, names)
    expected, found = module(images), back(images)
    apart = ((expected - found).abs().max() / expected.abs().max()).item()
    if not apart <= EXPORT_TOLERANCE:
        raise UserError(f"{out} gives other outputs than the network: they differ by {apart:.1e} of the largest logit")
    name, classes = exported.config.name, exported.network.classes
    return f"{name} with {classes} classes from {exported.path} to {out}; outputs agree to {apart:.1e}"


def write_format(
    kind: str, module: nn.Module, exported: Exported, images: Tensor, out: Path, names: TensorNames
) -> Any:
    """Write one format and its card; return what reads it."""
    if kind == "hub-folder":
        return as_hub_folder(exported, images, out)
    if kind == "safetensors":
        back, use = as_safetensors(exported, out, names), "`safetensors.torch.load_file` reads it."
    else:
        back, use = PROGRAMS[kind][0](module, exported, images, out), PROGRAMS[kind][2]
    takes = "pixels [B, 3, H, W] uint8" if isinstance(module, FromPixels) else "normalised images [B, 3, H, W]"
    out.with_name(f"{out.name}.md").write_text(card(exported, out.name, f"{use} It takes {takes}."), encoding="utf-8")
    return back
