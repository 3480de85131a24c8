"""A trained network as others get it: names of its tensors, what images must go through, and a card about it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lsdali
from lsdali.errors import UserError
from lsdali.models import ModelConfig
from lsdali.models.checkpoint_net import open_network
from lsdali.models.digest import weights_digest
from lsdali.models.pretrained import Which
from lsdali.models.student import Network
from lsdali.state import checkpoint
from lsdali.state.find import find_checkpoint


class FromPixels(nn.Module):
    """A network that takes pixels as files have them, [B, 3, H, W] uint8, and normalises them itself."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Return logits [B, K]."""
        out: Tensor = self.network((pixels.float() / 255 - self.mean) / self.std)
        return out


@dataclass(frozen=True)
class Exported:
    """A network out of a checkpoint, on the CPU in evaluation mode, and what the checkpoint says of it."""

    network: Network
    config: ModelConfig
    path: Path  # of the checkpoint
    content: dict[str, Any]
    weights: Which
    pixels: bool = False  # whether a program takes pixels and normalises them itself

    @property
    def data(self) -> dict[str, Any]:
        """The recipe's part on data."""
        part: dict[str, Any] = self.content["recipe"]["data"]
        return part

    @property
    def size(self) -> int:
        """Side of evaluation's images in pixels."""
        return int(self.data["eval"]["size"])

    @property
    def names(self) -> list[str]:
        """The names of the classes; none in checkpoints of version 0.1."""
        return list(self.content.get("names", ()))

    def preprocessing(self) -> dict[str, Any]:
        """Return what an image goes through: shorter side resized, centre cropped, values in 0 .. 1 normalised."""
        window = self.data["eval"]
        steps = {key: window[key] for key in ("resize", "size", "sides") if key in window}
        turned = {"exif_orientation": True} if self.data.get("exif_orientation") else {}
        turned |= {} if window.get("antialias", True) else {"antialias": False}
        scale = {key: list(self.data[key]) for key in ("mean", "std")}
        return {**steps, **turned, "interpolation": window.get("interpolation", "bilinear"), **scale}

    def metadata(self) -> dict[str, str]:
        """Return what every exported file carries."""
        return {
            "model": json.dumps(self.config.model_dump(mode="json")),
            "classes": str(self.network.classes),
            "names": json.dumps(self.names),
            "preprocessing": json.dumps(self.preprocessing()),
            "input": "pixels" if self.pixels else "images",
            "uses": json.dumps(list(self.content["recipe"].get("uses", ()))),
            "weights": self.weights,
            "digest": weights_digest(self.network),
            "lsdali": lsdali.__version__,
        }

    def figures(self) -> dict[str, float]:
        """Return the metrics of these weights, if the checkpoint's epoch was evaluated."""
        record = self.content["parts"].get("trainer", {}).get("record", {}).get(self.weights, {})
        entries = [entry for entry in (record.get("best"), record.get("last")) if entry]
        fitting = [entry for entry in entries if entry["epoch"] == self.content.get("epoch")]
        return {key: value for key, value in (fitting or [{}])[0].items() if key not in ("epoch", "n")}


def open_exported(run: Path, weights: Which) -> Exported:
    """Return the network of a run folder or checkpoint file.

    Raises UserError if there is none, or not these weights.
    """
    path = find_checkpoint(run)
    content = checkpoint.read(path)
    network = open_network(content, f"the checkpoint {path}", weights).eval()
    return Exported(network, ModelConfig.model_validate(content["recipe"]["model"]), path, content, weights)


def published_state(network: Network) -> dict[str, Tensor] | None:
    """Return the tensors by the names and in the shapes of the network's publisher.

    None if it has none but lsdali.
    """
    state = network.state_dict()
    if set(network.aliases.values()) != state.keys():
        return None
    tensors = {theirs: state[ours].contiguous() for theirs, ours in network.aliases.items()}
    if network.convolves:
        for theirs, ours in network.aliases.items():
            if ours == "classifier.weight":
                tensors[theirs] = tensors[theirs][:, :, None, None]
    return tensors


def card(exported: Exported, file: str, use: str) -> str:
    """Return the text of a model card, in Markdown, with the front matter that Hugging Face reads."""
    content, config = exported.content, exported.config
    facts = {
        "network": config.name,
        "classes": exported.network.classes,
        "weights": "moving average" if exported.weights == "ema" else "the model's own",
        "trained on": exported.data.get("name", "unknown"),
        "fingerprint of the data": content["data"],
        "step": f"{content['step']} of {content['steps']}",
        "digest (SHA-256 of the tensors)": f"`{weights_digest(exported.network)}`",
        "written by": f"lsdali {lsdali.__version__}",
    }
    figures = exported.figures()
    parts = [
        "---\ntags: [image-classification]\nlibrary_name: timm\n---" if file == "model.safetensors" else "",
        f"# {config.name} with {exported.network.classes} classes",
        f"`{file}`: {use}",
        two_columns(("", ""), facts),
        "## Figures on the validation data",
        two_columns(("metric", "value"), figures) if figures else "The checkpoint holds none for these weights.",
        f"## Preprocessing\n\n{preprocessing_text(exported.preprocessing())}",
        f"## Classes\n\n{', '.join(exported.names) or 'The checkpoint does not name them.'}",
        f"## Recipe\n\n```yaml\n{recipe_yaml(content['recipe'])}```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def two_columns(head: tuple[str, str], rows: Mapping[str, Any]) -> str:
    """Return a Markdown table of two columns."""
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())]
    return "\n".join(lines)


def preprocessing_text(steps: Mapping[str, Any]) -> str:
    """Return the preprocessing in words."""
    first = "Crop"
    if "resize" in steps:
        first = f"Resize the shorter side to {steps['resize']} px ({steps['interpolation']}), crop"
    return (
        f"{first} the centre of {steps['size']} px, divide the values by 255, subtract "
        f"the mean {steps['mean']} and divide by {steps['std']}."
    )


def recipe_yaml(recipe: Mapping[str, Any]) -> str:
    """Return a recipe as YAML, without the folder of its run."""
    import yaml

    text: str = yaml.safe_dump({k: v for k, v in recipe.items() if k != "run_dir"}, sort_keys=False)
    return text


def need_names(exported: Exported) -> dict[str, Tensor]:
    """Return the tensors by their publisher's names. Raises UserError if the network is lsdali's own."""
    state = published_state(exported.network)
    if state is None:
        raise UserError(f"'{exported.config.name}' is lsdali's own network, so that its tensors have no other names")
    return state
