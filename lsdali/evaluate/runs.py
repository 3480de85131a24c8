"""Trained runs to what they predict: checkpoint, recipe, data, logits."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lsdali import dist
from lsdali.build import count_classes
from lsdali.data.choose import eval_loader, open_data
from lsdali.data.index import open_index
from lsdali.errors import UserError
from lsdali.models.fits import size_fits
from lsdali.models.saved import find_checkpoint, open_network
from lsdali.models.student import Network, weights_digest
from lsdali.optim.precision import Precision
from lsdali.recipe import Recipe, apply, check
from lsdali.state import checkpoint
from lsdali.trainer import predictions

ALLOWED = ("data.", "evaluate.batch=", "precision=")
"""What an override may begin with: the rest of a recipe was decided in training."""


@dataclass(frozen=True)
class Predicted:
    """What one network says of one data set, on the host, in the data set's order; the same on every rank."""

    name: str
    logits: Tensor  # [N, K] fp32
    labels: Tensor  # [N] int64
    index: Tensor  # [N] int64, places in the data set
    classes: tuple[str, ...]
    fingerprint: str  # of the data
    data: str  # in words


@dataclass(frozen=True)
class Run:
    """A trained network and the recipe that it was trained by."""

    name: str
    path: Path  # of the checkpoint
    content: dict[str, Any]
    weights: str  # student or ema
    network: Network

    def describe(self) -> dict[str, Any]:
        return {
            "run": self.name,
            "checkpoint": str(self.path),
            "step": self.content["step"],
            "weights": self.weights,
            "digest": weights_digest(self.network),
        }


def open_run(run: Path, which: str, weights: str) -> Run:
    """Raises UserError where there is no whole checkpoint, or not these weights. On every rank."""
    with dist.together():
        path = find_checkpoint(run, which)
        content = checkpoint.read(path)
        network = open_network(content, f"the checkpoint {path}", weights).eval()
    return Run(str(run), path, content, weights, network)


def recipe_of(run: Run, overrides: Sequence[str]) -> Recipe:
    """The recipe of a run, with another data part where the overrides say so."""
    tree = deepcopy(run.content["recipe"])
    for override in overrides:
        if not override.startswith(ALLOWED):
            raise UserError(f"override {override!r}: only data.*, evaluate.batch and precision can be changed here")
        apply(tree, override)
    return check(tree, run.path)


def predict(run: Run, overrides: Sequence[str], device: torch.device) -> Predicted:
    """What a run says of its validation data, or of what the overrides make of them. Collective.

    Every rank gets all logits, 4 N K bytes. Raises UserError where the data have other classes than the checkpoint.
    """
    with dist.together():
        recipe = recipe_of(run, overrides)
        precision = Precision(recipe.precision, device)
        index = open_data(recipe.data, "val", say=lambda line: None)
        if count_classes(recipe, index) != run.network.classes:
            raise UserError(
                f"the checkpoint {run.path} knows {run.network.classes} classes, but the data in {index.root} has "
                f"{len(index.classes)}"
            )
        size_fits(run.network, recipe.model.name, (recipe.data.eval.size,))
        loader = eval_loader(index, recipe.data, batch=recipe.evaluate.batch, device=device, half=precision.half)
    network = run.network.to(device).to(memory_format=torch.channels_last)
    parts = [(torch.empty((0, network.classes)), torch.empty(0, dtype=torch.int64))]
    for logits, batch in predictions(network, loader, precision):
        valid = batch.valid.cpu()
        parts.append((logits.float().cpu()[valid], batch.index[valid]))
    loader.close()
    numbers = dist.all_rows(torch.cat([i for _, i in parts]))
    order = numbers.argsort()
    logits = dist.all_rows(torch.cat([x for x, _ in parts]))[order]
    labels = torch.from_numpy(np.array(index.labels))[numbers[order]]
    words = f"{recipe.data.validation()} of {recipe.data.name} in {index.root}"
    return Predicted(run.name, logits, labels, numbers[order], index.classes, index.fingerprint, words)


def predict_held_out(run: Run, overrides: Sequence[str], device: torch.device) -> Predicted:
    """What a run says of the training samples that it was not trained on, by its own data.split. Collective.

    Raises UserError where it held out none, or these are not the data that it was trained on.
    """
    kept = [text for text in overrides if not text.startswith("data.split")]
    with dist.together():
        recipe = recipe_of(run, kept)
        if recipe.data.split is None:
            raise UserError(f"{run.name} held out no part of its training data (data.split): use --temperature half")
        if open_index(recipe.data, "train").fingerprint != run.content["data"]:
            raise UserError(f"{run.name} was trained on other data, so that nothing of these was held out from it")
    return predict(run, kept, device)


def same_data(parts: Sequence[Predicted]) -> None:
    """Raises UserError where networks were not evaluated on the same samples and classes."""
    first = parts[0]
    for part in parts[1:]:
        if part.classes != first.classes or part.logits.shape[1] != first.logits.shape[1]:
            raise UserError(f"an ensemble needs runs of the same classes: those of {first.name} and {part.name} differ")
        if part.fingerprint != first.fingerprint:
            raise UserError(
                f"an ensemble needs runs on the same data: {first.name} is evaluated on {first.data}, and {part.name} "
                f"on {part.data}, which are other samples"
            )
