"""Trained runs to what they predict: checkpoint, recipe, data, logits."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lsdali import dist
from lsdali.batch import Batch
from lsdali.data.index.index import open_index
from lsdali.data.pipeline.loaders import eval_loader, open_dataset
from lsdali.data.sets.listing import Split
from lsdali.data.sets.sample_index import Index
from lsdali.errors import UserError
from lsdali.evaluate.views import Views, averaged, choose
from lsdali.models import build_network
from lsdali.models.checkpoint_net import open_network, same_classes
from lsdali.models.checks import check_image_size, count_classes
from lsdali.models.digest import weights_digest
from lsdali.models.pretrained import load_weights
from lsdali.models.student import Network
from lsdali.optim.precision import Precision
from lsdali.recipe import Recipe, apply_override, check_recipe, load
from lsdali.state import checkpoint
from lsdali.state.find import find_checkpoint

ALLOWED = ("data.", "evaluate.batch=", "precision=")
"""Prefixes of allowed overrides; training has decided the other keys."""
RECIPE_ENDINGS = (".yaml", ".yml")
"""How names of recipes end."""


@dataclass(frozen=True)
class Predicted:
    """Outputs of one network for one data set: on the host, in the data set's order, the same on every rank."""

    name: str
    logits: Tensor  # [N, K] fp32
    labels: Tensor  # [N] int64
    index: Tensor  # [N] int64, numbers in the data set


@dataclass(frozen=True)
class Samples:
    """The samples that a run is evaluated on, and the recipe that says how."""

    recipe: Recipe
    index: Index
    views: Views | None = None  # of each image; None: the image alone

    def describe(self) -> str:
        return f"{self.recipe.data.validation()} of {self.recipe.data.name} in {self.index.root}"


@dataclass(frozen=True)
class Run:
    """A trained network and its recipe."""

    name: str
    path: Path  # of the checkpoint
    content: dict[str, Any]
    weights: str  # model or ema
    network: Network

    def describe(self) -> dict[str, Any]:
        return {
            "run": self.name,
            "checkpoint": str(self.path),
            "step": self.content["step"],
            "epoch": self.content.get("epoch"),  # None in checkpoints of version 0.1
            "weights": self.weights,
            "digest": weights_digest(self.network),
        }


def open_run(run: Path, which: str, weights: str, overrides: Sequence[str] = ()) -> Run:
    """Open a trained run, or a recipe (YAML, with these overrides) whose network has pretrained weights.

    Raises UserError if there is no whole checkpoint, or not these weights. On every rank.
    """
    if run.suffix in RECIPE_ENDINGS:
        return open_recipe(run, overrides)
    with dist.raise_together():
        path = find_checkpoint(run, which)
        content = checkpoint.read(path)
        network = open_network(content, f"the checkpoint {path}", weights).eval()
    return Run(str(run), path, content, weights, network)


def open_recipe(path: Path, overrides: Sequence[str]) -> Run:
    """Open the network of a recipe with its model.weights, as if it were a run of no step. Collective.

    Raises UserError if the recipe names no weights, or these leave a part of the network untrained.
    """
    with dist.raise_together():
        recipe = load(path, overrides)
        if recipe.model.weights is None:
            raise UserError(f"{path} has no model.weights, so that its network is untrained: name them, or a run")
        index = open_dataset(recipe.data, "val", log=lambda line: None)
        network = build_network(recipe.model, count_classes(recipe.model.classes, index.classes, index.root))
        said: list[str] = []
        load_weights(network, recipe.model.name, recipe.model.weights, said.append)
        if untrained := [line for line in said if "begins untrained" in line or ", missing:" in line]:
            raise UserError(f"{path} cannot be evaluated: {untrained[0]}")
    content = {"recipe": recipe.model_dump(mode="json"), "classes": network.classes, "data": "", "step": 0}
    return Run(str(path), path, content, "model", network.eval())


def recipe_of(run: Run, overrides: Sequence[str]) -> Recipe:
    """Return the recipe of a run, with another data part if the overrides say so."""
    tree = deepcopy(run.content["recipe"])
    for override in overrides:
        if run.path.suffix in RECIPE_ENDINGS and override.startswith("model."):
            continue  # it decided the network, when the recipe was opened
        if not override.startswith(ALLOWED):
            raise UserError(f"override {override!r}: only data.*, evaluate.batch and precision can be changed here")
        apply_override(tree, override)
    return check_recipe(tree, run.path)


def open_samples(run: Run, overrides: Sequence[str], split: Split = "val") -> Samples:
    """Return the data of a run, or what the overrides make of them. Collective.

    Raises UserError if they have other classes than the checkpoint, or images that the network does not take.
    """
    with dist.raise_together():
        recipe = recipe_of(run, overrides)
        index = open_dataset(recipe.data, split, log=lambda line: None)
        if not recipe.data.trainable():
            index = under_known_names(index, run.content.get("names", ()), run.network.classes)
        if count_classes(recipe.model.classes, index.classes, index.root) != run.network.classes:
            raise UserError(
                f"the checkpoint {run.path} knows {run.network.classes} classes, but the data in {index.root} has "
                f"{len(index.classes)}"
            )
        same_classes(run.content, index.classes, f"the checkpoint {run.path}")
        check_image_size(run.network, recipe.model.name, (recipe.data.eval.size,))
    return Samples(recipe, index)


def under_known_names(index: Index, known: Sequence[str], classes: int) -> Index:
    """Return the samples under the numbers of the classes that a network knows: `known`, `classes` of them.

    The data may hold some of these classes, or all in another order; labels that are numbers are the network's own.
    Samples whose names tell nothing stay as they are.
    """
    if len(known) != classes or tuple(known) == index.classes:
        return index
    numbered = index.classes == tuple(map(str, range(len(index.classes)))) and len(index.classes) <= classes
    if not set(index.classes) <= set(known) and not numbered:
        return index
    number_of = {name: k for k, name in enumerate(map(str, range(classes)) if numbered else known)}
    number = np.array([number_of[name] for name in index.classes])
    return replace(index, labels=number[index.labels], clean=number[index.clean], classes=tuple(known))


def with_views(samples: Samples, name: str | None) -> Samples:
    """Return the samples, seen by the views of this name; None: as they are. Raises UserError as `choose` does."""
    if name is None:
        return samples
    views, recipe = choose(name, samples.recipe)
    return Samples(recipe, samples.index, views)


def open_held_out(run: Run, overrides: Sequence[str]) -> Samples:
    """Return the training samples that a run was not trained on, by its own data.holdout. Collective.

    Raises UserError if it held out none, these are not the data that it was trained on, or the overrides leave a
    part of the training data to evaluate on.
    """
    kept = [text for text in overrides if not text.startswith("data.holdout")]
    with dist.raise_together():
        recipe = recipe_of(run, kept)
        if recipe.data.holdout is None:
            raise UserError(f"{run.name} held out no part of its training data (data.holdout): use --temperature half")
        if recipe_of(run, overrides).data.holdout is not None:
            raise UserError(
                f"--temperature held_out would evaluate {run.name} on training data, as it is fitted on: "
                "add data.holdout=null, for the data set's own validation or test data"
            )
        if open_index(recipe.data, "train").fingerprint != run.content["data"]:
            raise UserError(f"{run.name} was trained on other data, so that nothing of these was held out from it")
    return open_samples(run, kept)


def same_samples(runs: Sequence[Run], samples: Sequence[Samples]) -> None:
    """Raise UserError if runs would be evaluated on other classes or samples than the first one."""
    first = samples[0].index
    for run, other in zip(runs, samples, strict=True):
        if other.index.classes != first.classes or run.network.classes != runs[0].network.classes:
            raise UserError(f"an ensemble needs runs of the same classes: {runs[0].name} and {run.name} differ")
        if other.index.fingerprint != first.fingerprint:
            raise UserError(
                f"an ensemble needs runs on the same data: {runs[0].name} is evaluated on {samples[0].describe()}, "
                f"and {run.name} on {other.describe()}, which are other samples"
            )


def predict(run: Run, samples: Samples, device: torch.device) -> Predicted:
    """Return what a run says of the samples. Collective; every rank gets all logits, 4 N K bytes."""
    network = run.network.to(device).to(memory_format=torch.channels_last)
    seen = network if samples.views is None else averaged(network, samples.views)
    return Predicted(run.name, *read_outputs(seen, network.classes, samples, device))


def newest_checkpoints(run: Path, count: int) -> list[Path]:
    """Return the newest step checkpoints of a run folder, the newest first. Raises UserError if there are fewer."""
    found = sorted((run / "checkpoints").glob("step-*.pt"), reverse=True)
    if len(found) < count:
        raise UserError(
            f"--ensemble last:{count} needs {count} checkpoints, and {run} has {len(found)}: "
            f"train with save.keep={count}, or ask for fewer"
        )
    return found[:count]


def read_outputs(
    network: Callable[[Tensor], Tensor], width: int, samples: Samples, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what a network on the device, [B, 3, H, W] -> [B, width], gives for all samples.

    The result is [N, width] fp32, in their order.

    Also their labels [N] and numbers [N]. On the host, the same on every rank. Collective.
    """
    return read_function(lambda batch: network(batch.images), width, samples, device)


@torch.no_grad()
def read_function(
    function: Callable[[Batch], Tensor], width: int, samples: Samples, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what a function of batches gives for all samples, as `read_outputs`; it runs in the recipe's precision."""
    recipe, index = samples.recipe, samples.index
    with dist.raise_together():
        precision = Precision(recipe.precision, device)
        loader = eval_loader(
            index, recipe.data, batch=recipe.evaluate.batch_on(device.type), device=device, half=precision.half
        )
    parts, numbers = [torch.empty((0, width))], [torch.empty(0, dtype=torch.int64)]
    for batch in loader:
        with precision.autocast():
            rows = function(batch)
        valid = batch.valid.cpu()
        parts.append(rows.float().cpu()[valid])
        numbers.append(batch.index[valid])
    loader.close()
    found = dist.all_rows(torch.cat(numbers))
    order = found.argsort()
    labels = torch.from_numpy(np.array(index.labels))[found[order]]
    return dist.all_rows(torch.cat(parts))[order], labels, found[order]
