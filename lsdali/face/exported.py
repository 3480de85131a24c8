"""Use an exported file with nothing but what the file itself holds."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lsdali.data.sets.catalog import CenterCrop, DataSet, Folder, RandomResizedCrop
from lsdali.face.trained import Preprocessing
from lsdali.models.reopened import Reopened, kind_of, metadata_entry, reopen


@dataclass(frozen=True)
class ExportedNetwork:
    """A network from a file that `lsdali export` wrote, on the CPU; used like a TrainedNetwork."""

    opened: Reopened
    names: tuple[str, ...]
    """The classes in the order of the logits."""
    data: DataSet
    """How images are read."""
    path: Path

    @property
    def preprocess(self) -> Preprocessing:
        """PIL image -> [3, size, size] float32."""
        return Preprocessing.of(self.data)

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return torch.device("cpu")

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return the logits [B, K] of normalised images; a program that takes pixels gets the pixels of these."""
        if self.opened.metadata.get("input") == "pixels":
            mean, std = (torch.tensor(x).view(3, 1, 1) for x in (self.data.mean, self.data.std))
            images = ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
        return self.opened.logits(images.contiguous())

    evaluated = __call__


def open_export(path: Path) -> ExportedNetwork | None:
    """Return the network of an exported file or hub folder; None if it is none, such as a checkpoint.

    Raises UserError if it is one that cannot be used.
    """
    kind = kind_of(path) if path.exists() else None
    if kind is None:
        return None
    opened = reopen(path, kind)
    steps = metadata_entry(opened.metadata, "preprocessing")
    size = steps["size"]
    data = Folder(
        root="/",
        train=RandomResizedCrop(size=size),
        eval=CenterCrop.model_validate(
            {"resize": size, **{key: value for key, value in steps.items() if key in CenterCrop.model_fields}}
        ),
        mean=tuple(steps["mean"]),
        std=tuple(steps["std"]),
        exif_orientation=steps.get("exif_orientation", False),
    )
    names = metadata_entry(opened.metadata, "names") or map(str, range(int(opened.metadata["classes"])))
    return ExportedNetwork(opened, tuple(names), data, path)
