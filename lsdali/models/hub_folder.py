"""A folder in Hugging Face's layout for timm: `timm.create_model("local-dir:FOLDER", pretrained=True)` reads it."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lsdali.errors import UserError
from lsdali.models.exported import Exported, card, need_names
from lsdali.models.families.timm import PREFIX, timm
from lsdali.models.families.torchvision import torchvision_name


def as_hub_folder(exported: Exported, images: Tensor, folder: Path) -> Any:
    """Write config.json, model.safetensors and README.md; return timm's own reading of them.

    Raises UserError if timm has no network with the same tensors.
    """
    from safetensors.torch import save

    state = need_names(exported)
    name = exported.config.name
    bare = name.removeprefix(PREFIX) if name.startswith(PREFIX) else torchvision_name(name)
    twin = same_in_timm(bare, state, exported)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config_of(twin, bare, exported), indent=2) + "\n")
    (folder / "model.safetensors").write_bytes(save(state, metadata={"format": "pt", **exported.metadata()}))
    use = f'`timm.create_model("local-dir:{folder.name}", pretrained=True)` reads this folder.'
    (folder / "README.md").write_text(card(exported, "model.safetensors", use))
    return timm().create_model(f"local-dir:{folder}", pretrained=True).eval()


def same_in_timm(bare: str, state: dict[str, Tensor], exported: Exported) -> Any:
    """Return timm's network of the name, without numbers. Raises UserError if it has none, or other tensors."""
    if bare in timm().list_models():
        with torch.device("meta"):
            twin = timm().create_model(bare, num_classes=exported.network.classes)
        if {key: x.shape for key, x in twin.state_dict().items()} == {key: x.shape for key, x in state.items()}:
            return twin
    raise UserError(
        f"timm has no network with the tensors of '{exported.config.name}': export it with --format safetensors"
    )


def config_of(twin: Any, bare: str, exported: Exported) -> dict[str, Any]:
    """Return the content of config.json."""
    steps = exported.preprocessing()
    known = dict(twin.default_cfg)
    kept = {key: known[key] for key in ("first_conv", "classifier", "fixed_input_size") if key in known}
    labels = {"label_names": exported.names} if exported.names else {}
    return {
        "architecture": bare,
        "num_classes": exported.network.classes,
        "num_features": twin.num_features,
        **labels,
        "pretrained_cfg": {
            **kept,
            "tag": "lsdali",
            "custom_load": False,
            "input_size": [3, steps["size"], steps["size"]],
            "interpolation": steps["interpolation"],
            "crop_pct": steps["size"] / steps.get("resize", steps["size"]),
            "crop_mode": "center",
            "mean": steps["mean"],
            "std": steps["std"],
            "num_classes": exported.network.classes,
        },
    }
