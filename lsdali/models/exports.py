"""Write a trained network for other programs, read it back, and compare its outputs."""

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from lsdali.errors import UserError
from lsdali.models import ModelConfig, build_network
from lsdali.models.checkpoint_net import find_checkpoint, open_network
from lsdali.models.student import Network
from lsdali.state import checkpoint

Reader = Callable[[Tensor], Tensor]
"""Images [B, 3, H, W] -> logits [B, K], by what was written."""

EXPORT_TOLERANCE = 1e-4
"""Largest difference of a logit, as a share of the largest logit; compilers may add in another order."""


def as_safetensors(network: Network, config: ModelConfig, images: Tensor, path: Path) -> Reader:
    """State dict with lsdali's names; the model's part of the recipe and the classes are in the metadata."""
    from safetensors.torch import load_file, save

    state = {key: value.contiguous() for key, value in network.state_dict().items()}
    meta = {"model": json.dumps(config.model_dump(mode="json")), "classes": str(network.classes)}
    path.write_bytes(save(state, metadata=meta))  # save_file lets nobody else read the file
    twin = build_network(config, network.classes).eval()
    twin.load_state_dict(load_file(path))
    return twin


def as_torchscript(network: Network, config: ModelConfig, images: Tensor, path: Path) -> Reader:
    """A traced module, which runs without lsdali and without Python."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated; the tracer warns of every shape it reads
        traced = torch.jit.trace(network, images)  # type: ignore[no-untyped-call]
        torch.jit.save(traced, path)
        back: Reader = torch.jit.load(path)  # type: ignore[no-untyped-call]
    return back


def as_onnx(network: Network, config: ModelConfig, images: Tensor, path: Path) -> Reader:
    """ONNX with a free batch size: `images` [B, 3, H, W] -> `logits` [B, K], in one file with its weights."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise UserError(f"the format onnx needs packages that are not here: pip install {' '.join(missing)}")
    import onnxruntime

    torch.onnx.export(
        network,
        (images,),
        path,
        input_names=["images"],
        output_names=["logits"],
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        external_data=False,  # else the weights are a second file, and the first one alone is of no use
        verbose=False,
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    if isinstance(session.get_inputs()[0].shape[0], int):  # an `int()` or `len()` in the network's code does that
        raise UserError(f"'{config.name}' cannot be exported to onnx: its batch size would be fixed to {len(images)}")
    return lambda x: torch.from_numpy(session.run(["logits"], {"images": x.numpy()})[0])


EXPORTERS: dict[str, tuple[Callable[[Network, ModelConfig, Tensor, Path], Reader], str]] = {
    "safetensors": (as_safetensors, ".safetensors"),
    "torchscript": (as_torchscript, ".torchscript.pt"),
    "onnx": (as_onnx, ".onnx"),
}
"""How each is written, and the ending of its file."""


@torch.no_grad()
def export(run: Path, kind: str, out: Path | None) -> str:
    """Write the network of a run; one line that tells where to and how well the outputs agree.

    Raises UserError where there is nothing to export, or what was written computes something else.
    """
    path = find_checkpoint(run)
    content = checkpoint.read(path)
    network = open_network(content, f"the checkpoint {path}").eval()
    config = ModelConfig.model_validate(content["recipe"]["model"])
    write, ending = EXPORTERS[kind]
    out = out or path.with_name(path.stem + ending)
    size = content["recipe"]["data"]["eval"]["size"]
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    back = write(network, config, images[:2], out)
    expected, found = network(images), back(images)
    apart = ((expected - found).abs().max() / expected.abs().max()).item()
    if not apart <= EXPORT_TOLERANCE:
        raise UserError(f"{out} gives other outputs than the network: they differ by {apart:.1e} of the largest logit")
    return f"{config.name} with {network.classes} classes from {path} to {out}; outputs agree to {apart:.1e}"
