"""A trained network with what it takes to use it: class names, preprocessing, recipe."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torchvision.transforms import functional as F

from lsdali.models.checkpoint_net import open_network
from lsdali.models.student import Network
from lsdali.recipe import Recipe, check_recipe
from lsdali.state.checkpoint import read as read_checkpoint
from lsdali.state.find import find_checkpoint

if TYPE_CHECKING:
    from lsdali.data.sets.catalog import DataSet


@dataclass(frozen=True)
class Preprocessing:
    """Preprocessing of an image with Pillow: that of the run's own evaluation, to within one grey level."""

    resize: int
    size: int
    sides: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    upright: bool

    @classmethod
    def of(cls, data: "DataSet") -> "Preprocessing":
        """Return that of a run's data."""
        crop = data.eval
        return cls(crop.resize, crop.size, crop.sides, data.mean, data.std, data.exif_orientation)

    def __call__(self, image: Image.Image) -> Tensor:
        """Return [3, size, size] float32."""
        if self.upright:
            image = ImageOps.exif_transpose(image)
        size = [self.resize, self.resize] if self.sides == "both" else [self.resize]
        image = F.center_crop(F.resize(image.convert("RGB"), size, antialias=True), [self.size, self.size])
        pixels: Tensor = F.normalize(F.to_tensor(image), self.mean, self.std)
        return pixels


@dataclass(frozen=True)
class TrainedNetwork:
    """A trained network in evaluation mode. Call it with normalised images [B, 3, H, W] for logits [B, K]."""

    network: Network
    names: tuple[str, ...]
    """The classes in the order of the logits."""
    preprocess: Preprocessing
    """PIL image -> [3, size, size] float32."""
    recipe: Recipe
    path: Path
    """The checkpoint."""

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device


def load(
    run: str | Path,
    *,
    checkpoint: str = "best",
    weights: str = "model",
    model: nn.Module | Callable[[int], nn.Module] | None = None,
    device: str | torch.device = "cpu",
) -> TrainedNetwork:
    """Return the trained network of a run folder or a checkpoint file.

    Args:
        run: the folder or the file
        checkpoint: best, last, or a file in the run's folder `checkpoints`
        weights: `model`, or `ema` for their moving average
        model: what the run was given as `model=`, in another process than that which trained it
        device: where to

    Raises UserError if there is no whole checkpoint, or its network is not known.
    """
    path = find_checkpoint(Path(run), checkpoint)
    content = read_checkpoint(path)
    if model is not None:
        from lsdali.face.given import give_model

        give_model(model, content["recipe"]["model"]["name"])
    network = open_network(content, f"the checkpoint {path}", weights).eval()
    recipe = check_recipe(content["recipe"], path)
    names = tuple(content.get("names") or map(str, range(network.classes)))
    return TrainedNetwork(network.to(device), names, Preprocessing.of(recipe.data), recipe, path)
