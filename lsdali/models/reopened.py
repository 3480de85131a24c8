"""Read exported files back: their logits, and the metadata that they carry."""

import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from lsdali import parts
from lsdali.errors import UserError, first_line
from lsdali.models import ModelConfig, build_network
from lsdali.models.pretrained import renamed

Reader = Callable[[Tensor], Tensor]
"""The file's input [B, 3, H, W] -> logits [B, K]."""
METADATA = "metadata.json"
"""The file with the metadata inside the archives of torch."""


@dataclass(frozen=True)
class Reopened:
    """An exported file."""

    logits: Reader
    metadata: dict[str, str]


def kind_of(path: Path) -> str | None:
    """Return the format of an exported file or folder, by its content; None if it is none."""
    if path.is_dir():
        return "hub-folder" if (path / "model.safetensors").is_file() else None
    if path.suffix == ".onnx":
        return "onnx"
    with path.open("rb") as file:
        start = file.read(9)
    if start[8:] == b"{":  # behind the length of the header
        return "safetensors"
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any(name.endswith("/archive_format") for name in names):
        return "torch-export"
    return "torchscript" if any("/code/" in name for name in names) else None


def from_safetensors(path: Path) -> Reopened:
    """Read weights into the network that the metadata names. Raises UserError if that is not known here."""
    from safetensors import safe_open
    from safetensors.torch import load_file

    with safe_open(path, "pt") as file:
        metadata = dict(file.metadata() or {})
    if "model" not in metadata:
        raise no_export(path)
    parts.use_installed()
    parts.use(json.loads(metadata.get("uses", "[]")))
    network = build_network(ModelConfig.model_validate_json(metadata["model"]), int(metadata["classes"])).eval()
    network.load_state_dict(renamed(network, load_file(path)))
    return Reopened(network, metadata)


def from_hub_folder(path: Path) -> Reopened:
    """Read the weights of a folder in Hugging Face's layout."""
    return from_safetensors(path / "model.safetensors")


def from_torchscript(path: Path) -> Reopened:
    """Read a traced module."""
    import warnings

    inside = {METADATA: ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        module: Reader = torch.jit.load(path, _extra_files=inside)  # type: ignore[no-untyped-call]
    return Reopened(module, json.loads(inside[METADATA] or "{}"))


def from_torch_export(path: Path) -> Reopened:
    """Read a program of torch.export."""
    inside = {METADATA: ""}
    module: Reader = torch.export.load(path, extra_files=inside).module()
    return Reopened(module, json.loads(inside[METADATA] or "{}"))


def from_onnx(path: Path) -> Reopened:
    """Read an ONNX file with onnxruntime, on the CPU. Raises UserError where onnxruntime is missing."""
    if find_spec("onnxruntime") is None:
        raise UserError(f"{path} needs onnxruntime, which is not here: pip install onnxruntime")
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0].name

    def logits(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["logits"], {given: images.cpu().numpy()})[0])

    return Reopened(logits, dict(session.get_modelmeta().custom_metadata_map))


FORMAT_READERS: dict[str, Callable[[Path], Reopened]] = {
    "safetensors": from_safetensors,
    "hub-folder": from_hub_folder,
    "torchscript": from_torchscript,
    "torch-export": from_torch_export,
    "onnx": from_onnx,
}


def reopen(path: Path, kind: str) -> Reopened:
    """Read an exported file of some format.

    Raises UserError if it is damaged, was not written by `lsdali export`, or needs what is not here.
    """
    try:
        found = FORMAT_READERS[kind](path)
    except UserError:
        raise
    except Exception as error:  # what the readers of five formats raise
        raise UserError(f"{path} cannot be read as {kind}: {first_line(error)}") from error
    if "preprocessing" not in found.metadata:
        raise no_export(path)
    return found


def no_export(path: Path) -> UserError:
    """Return what to say of a file that carries nothing about its network."""
    return UserError(f"{path} does not tell its classes and preprocessing: it was not written by `lsdali export`")


def metadata_entry(metadata: dict[str, str], key: str) -> Any:
    """Return one entry of the metadata that is written as JSON."""
    return cast(Any, json.loads(metadata[key]))
