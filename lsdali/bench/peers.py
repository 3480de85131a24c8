"""Training loops that others write, on a recipe's images, network and learning rate, with cross-entropy.

Each yields the images of every step that it has taken, without end.
"""

import io
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as tv

from lsdali.data.pipeline.loaders import open_dataset
from lsdali.data.sets.catalog import PadCrop, RandomResizedCrop
from lsdali.data.sets.sample_index import Index
from lsdali.limits import cpu_cores
from lsdali.models import build_network
from lsdali.recipe import Recipe

Peer = Callable[[Recipe, torch.device], Iterator[int]]


class Pictures(Dataset[tuple[Any, int]]):
    """The training images as PIL gives them, transformed by torchvision."""

    def __init__(self, index: Index, transform: Callable[[Image.Image], Any]) -> None:
        self.index, self.transform = index, transform

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        pixels = self.index.pixels
        if pixels is not None:
            image = Image.fromarray(pixels[self.index.numbers[i]].squeeze())
        else:
            image = Image.open(io.BytesIO(self.index.byte_range(i).content()))
        return self.transform(image.convert("RGB")), int(self.index.labels[i])


def train_transform(recipe: Recipe) -> Callable[[Image.Image], Tensor]:
    """Return torchvision's transforms of the recipe's crop, without its augmentations."""
    crop, data = recipe.data.train, recipe.data
    match crop:
        case RandomResizedCrop():
            first: list[Any] = [tv.RandomResizedCrop(crop.size, crop.scale, crop.ratio)]
        case PadCrop():
            first = [tv.RandomCrop(crop.size, crop.pad)]
        case _:
            first = [tv.Resize((crop.resize, crop.resize)), tv.RandomCrop(crop.size)]
    flip = tv.RandomHorizontalFlip(crop.flip)
    normalise = tv.Normalize(data.mean, data.std)
    return cast(Callable[[Image.Image], Tensor], tv.Compose([*first, flip, tv.ToTensor(), normalise]))


def without_end(loader: Any) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield from loader


def torch_loader(recipe: Recipe, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    index = open_dataset(recipe.data, "train", lambda line: None)
    workers = 0 if index.pixels is not None else recipe.data.threads or cpu_cores(1)
    loader = DataLoader(
        Pictures(index, train_transform(recipe)),
        recipe.batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        persistent_workers=workers > 0,
    )
    return without_end(loader)


def parts(recipe: Recipe, device: torch.device) -> tuple[torch.nn.Module, torch.optim.Optimizer, torch.autocast]:
    """Return the network, SGD with momentum, and the precision of a plain loop."""
    torch.manual_seed(0)
    index = open_dataset(recipe.data, "train", lambda line: None)
    network = build_network(recipe.model, len(index.classes)).to(device).train()
    optimizer = torch.optim.SGD(network.parameters(), recipe.optimizer.lr, momentum=0.9, weight_decay=1e-4)
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(recipe.precision)
    return network, optimizer, torch.autocast(device.type, dtype=half, enabled=half is not None)


def plain_loop(batches: Iterator[tuple[Tensor, Tensor]], recipe: Recipe, device: torch.device) -> Iterator[int]:
    """Take steps as a tutorial does: nothing is read back from the device."""
    network, optimizer, autocast = parts(recipe, device)
    for images, labels in batches:
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        with autocast:
            loss = F.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        yield len(images)


def tutorial(recipe: Recipe, device: torch.device) -> Iterator[int]:
    return plain_loop(torch_loader(recipe, device), recipe, device)


def references(recipe: Recipe, device: torch.device) -> Iterator[int]:
    """Take steps as torchvision's references/classification/train.py: loss and accuracy are read in each."""
    network, optimizer, autocast = parts(recipe, device)
    means = np.zeros(3)
    for images, labels in torch_loader(recipe, device):
        images, labels = images.to(device), labels.to(device)
        with autocast:
            output = network(images)
            loss = F.cross_entropy(output, labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        with torch.inference_mode():
            right = output.topk(min(5, output.shape[1]), 1).indices.eq(labels[:, None])
            means += loss.item(), right[:, 0].float().mean().item(), right.any(1).float().mean().item()
        yield len(images)


def timm_loader(recipe: Recipe, device: torch.device) -> Iterator[int]:
    """Read through timm's create_loader, with a plain loop."""
    from timm.data import create_loader

    index = open_dataset(recipe.data, "train", lambda line: None)
    crop = recipe.data.train
    ranges = {"scale": crop.scale, "ratio": crop.ratio} if isinstance(crop, RandomResizedCrop) else {}
    loader = create_loader(
        Pictures(index, lambda image: image),
        (3, crop.size, crop.size),
        recipe.batch,
        is_training=True,
        use_prefetcher=device.type == "cuda",
        hflip=crop.flip,
        mean=recipe.data.mean,
        std=recipe.data.std,
        num_workers=recipe.data.threads or cpu_cores(1),
        device=device,
        color_jitter=None,
        **ranges,
    )
    return plain_loop(without_end(loader), recipe, device)


PEERS: dict[str, Peer] = {
    "plain PyTorch loop": tutorial,
    "torchvision's references": references,
    **({"timm's loader": timm_loader} if find_spec("timm") else {}),
}
