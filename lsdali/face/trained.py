"""A trained network with what it takes to use it: class names, preprocessing, recipe."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from lsdali.models.checkpoint_net import open_network
from lsdali.models.student import Network
from lsdali.optim.precision import Precision
from lsdali.recipe import Recipe, check_recipe
from lsdali.state.checkpoint import read as read_checkpoint
from lsdali.state.find import find_checkpoint

if TYPE_CHECKING:
    from lsdali.data.sets.catalog import DataSet


def without_antialias(pixels: Tensor, height: int, width: int, interpolation: str) -> Tensor:
    """Map uint8 [3, H, W] -> [3, height, width] uint8 from the nearest pixels, with DALI's kernels."""
    kernel = keys_kernel if interpolation == "bicubic" else triangle_kernel
    rows, columns = (taps(old, new, kernel) for old, new in zip(pixels.shape[1:], (height, width), strict=True))
    return (rows @ pixels.float() @ columns.mT).round().clamp(0, 255).to(torch.uint8)


def taps(old: int, new: int, kernel: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the weights [new, old] of a side of pixels; beyond the edge, the outermost pixel is repeated."""
    centres = (torch.arange(new) + 0.5) * old / new - 0.5
    places = centres.floor()[:, None] + torch.arange(-1, 3)
    weights = kernel((places - centres[:, None]).abs())
    return torch.zeros(new, old).scatter_add(1, places.long().clamp(0, old - 1), weights)


def triangle_kernel(away: Tensor) -> Tensor:
    """Map distances in pixels -> weights."""
    return (1 - away).clamp(min=0)


def keys_kernel(away: Tensor) -> Tensor:
    """Map distances in pixels, at most 2 -> weights of Keys 1981 with a = -0.5."""
    near = (1.5 * away - 2.5) * away.square() + 1
    return torch.where(away <= 1, near, ((2.5 - 0.5 * away) * away - 4) * away + 2)


@dataclass(frozen=True)
class Preprocessing:
    """Preprocessing of an image with Pillow: that of the run's own evaluation, to within one grey level."""

    resize: int
    size: int
    sides: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    upright: bool
    interpolation: str = "bilinear"
    antialias: bool = True

    @classmethod
    def of(cls, data: "DataSet") -> "Preprocessing":
        """Return that of a run's data."""
        crop = data.eval
        by = crop.interpolation, crop.antialias
        return cls(crop.resize, crop.size, crop.sides, data.mean, data.std, data.exif_orientation, *by)

    def __call__(self, image: Image.Image) -> Tensor:
        """Return [3, size, size] float32."""
        if self.upright:
            image = ImageOps.exif_transpose(image)
        size = [self.resize, self.resize] if self.sides == "both" else [self.resize]
        image = image.convert("RGB")
        if self.antialias:
            resized: Any = F.resize(image, size, InterpolationMode(self.interpolation))
        else:  # Pillow always widens its filters
            width, height = F.resize(image, size, InterpolationMode.NEAREST).size
            resized = without_antialias(F.pil_to_tensor(image), height, width, self.interpolation)
        cropped = F.center_crop(resized, [self.size, self.size])
        scaled = F.to_tensor(cropped) if self.antialias else cropped.float() / 255
        pixels: Tensor = F.normalize(scaled, self.mean, self.std)
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
    def data(self) -> "DataSet":
        """How images are read."""
        return self.recipe.data

    @torch.no_grad()
    def evaluated(self, images: Tensor) -> Tensor:
        """Return the logits [B, K] as `lsdali evaluate` computes them, in the recipe's precision."""
        network = self.network.to(memory_format=torch.channels_last)
        with Precision(self.recipe.precision, self.device).autocast():
            logits: Tensor = network(images.to(self.device, memory_format=torch.channels_last))
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
