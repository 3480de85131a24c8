"""lsdali's data in your own training loop."""

from collections.abc import Iterator
from typing import Any

import torch

from lsdali import dist
from lsdali.batch import Batch
from lsdali.data.pipeline.loaders import eval_loader, open_dataset, train_loader
from lsdali.data.pipeline.options import LoaderOptions
from lsdali.errors import UserError
from lsdali.face.given import part_of_recipe
from lsdali.recipe import check_recipe

# The rest of a recipe, which its data part does not depend on.
OTHERS: dict[str, Any] = {"model": "preact_resnet10", "method": "ce", "optimizer": {"name": "sgd", "lr": 1.0}}


class Batches:
    """A data set as batches on the device. Which sample comes when is a function of seed and step."""

    def __init__(self, data: Any, batch: int, seed: int, device: torch.device, *, half: bool) -> None:
        tree = {"epochs": 1_000_000, "batch": batch, "seed": seed, "schedule": "constant", **OTHERS}
        recipe = check_recipe({**tree, "data": part_of_recipe("data", data)}, "lsdali.loader")
        self._data, self._device, self._half, self._batch = recipe.data, device, half, batch
        index = open_dataset(recipe.data, "train")
        self.classes: tuple[str, ...] = tuple(index.classes)
        """Their names, in the order of the labels."""
        self._train = train_loader(index, recipe.data, LoaderOptions(recipe.batches, seed, device, half))
        self.steps_per_epoch: int = self._train.steps_per_epoch.at(0)
        """Steps of an epoch; the tail that is smaller than a batch is left out."""

    def train(self, step: int = 0, epochs: int | None = None) -> Iterator[tuple[int, Batch]]:
        """Yield (step, batch) from a global step on, up to the end of so many epochs; None: without end.

        Starting at a step gives the very batches that a loop which came there by itself would have got.
        """
        last = None if epochs is None else epochs * self.steps_per_epoch
        while last is None or step < last:
            for batch in self._train.epoch(step):
                yield step, batch
                step += 1

    def val(self, batch: int | None = None) -> Iterator[Batch]:
        """Yield this process's part of the validation data, each image once; `batch.valid` is False for padding.

        `batch` is per process; None: that of training.
        """
        size = batch or max(self._batch // dist.world(), 1)
        index = open_dataset(self._data, "val")
        loader = eval_loader(index, self._data, batch=size, device=self._device, half=self._half)
        try:
            yield from loader
        finally:
            loader.close()

    def close(self) -> None:
        """Free DALI's threads and memory."""
        self._train.close()


def loader(
    data: Any,
    batch: int,
    *,
    seed: int = 0,
    device: str | torch.device | None = None,
    half: bool = False,
) -> Batches:
    """Return a data set as batches for your own loop; in a process group, those of this rank.

    Args:
        data: the data part of a recipe, such as {"name": "imagenet", "root": "/data"}, the name of a data set, or two
            map-style data sets of torch (train, val), as lsdali.train takes them
        batch: images of a step, over all processes
        seed: order, crops, flips and augmentations are functions of it
        device: where batches go; None: this process's GPU, or the CPU
        half: images in 16 bit

    Raises UserError if the data are not there, or a key is wrong.
    """
    if batch % dist.world():
        raise UserError(f"batch {batch} does not divide among {dist.world()} processes")
    target = dist.own_device() if device is None else torch.device(device)
    return Batches(data, batch, seed, target, half=half)
