"""Evaluate a network under shifts, noise and attacks, with its BatchNorm statistics unchanged."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lsdali import dist
from lsdali.batch import Batch
from lsdali.errors import UserError
from lsdali.evaluate import perturb
from lsdali.evaluate.figures import Row, row
from lsdali.evaluate.runs import Run, Samples, read_function
from lsdali.evaluate.views import larger
from lsdali.metrics import label_rank

CHANGES = {
    "shift": "whether two random crops of an image get the same class",
    "diagonal": "crops along the diagonal",
    "noise": "Gaussian noise",
    "fgsm": "FGSM",
    "pgd": "PGD",
}
HOW = "write shift, diagonal, noise:SIGMA, fgsm:SIZE or pgd:SIZE[:STEP[:STEPS]], in grey levels of 255"


@dataclass(frozen=True)
class Disturbance:
    """One kind, with its budget in grey levels."""

    kind: str
    size: float = 0.0
    step: float = 0.0
    steps: int = 1

    def describe(self) -> str:
        """Return kind and budget in words."""
        if self.kind == "noise":
            return f"Gaussian noise, sigma {self.size:g}/255"
        if self.kind == "fgsm":
            return f"FGSM, {self.size:g}/255"
        return f"PGD, {self.size:g}/255, {self.steps} steps of {self.step:g}/255, random start"


def parse_disturbance(text: str) -> Disturbance:
    """Return what `--robust TEXT` asks for. Raises UserError."""
    kind, *numbers = text.split(":")
    most = {"shift": 0, "diagonal": 0, "noise": 1, "fgsm": 1, "pgd": 3}
    try:
        values = [float(number) for number in numbers]
        valid = min(1, most[kind]) <= len(values) <= most[kind] and all(0 < value < 256 for value in values)
        size, step, steps = [*values, *([1.0, values[0] / 4 if values else 1.0, 10.0][len(values) :])]
    except (KeyError, ValueError):
        valid, size, step, steps = False, 0.0, 0.0, 0.0
    if not valid or steps != int(steps):
        raise UserError(f"--robust {text}: {HOW}")
    return Disturbance(kind, size, step, int(steps))


def disturbed_rows(
    run: Run, samples: Samples, asked: Sequence[Disturbance], bins: Sequence[str], device: torch.device
) -> list[Row]:
    """Return the figures of a run on noisy and on attacked images, a row each. Collective."""
    network = run.network.to(device).to(memory_format=torch.channels_last)
    data = samples.recipe.data
    levels = perturb.Levels.of((data.mean, data.std), device)
    out = []
    for one in asked:
        if one.kind in ("noise", "fgsm", "pgd"):
            logits = partial(disturbed_logits, network, levels, one)
            found, labels, _ = read_function(logits, network.classes, samples, device)
            out.append(row(run.name, one.describe(), found.double(), labels, bins))
    return out


def disturbed_logits(network: perturb.Classify, levels: perturb.Levels, one: Disturbance, batch: Batch) -> Tensor:
    """Return [B, K]: what the network says of the disturbed images."""
    if one.kind == "noise":
        return network(perturb.gaussian(batch, levels, one.size))
    if one.kind == "fgsm":
        return network(perturb.fgsm(network, batch, levels, one.size))
    return network(perturb.pgd(network, batch, levels, one.size, one.step, one.steps))


@dataclass(frozen=True)
class Shifted:
    """What crops of larger images do to a run."""

    figures: dict[str, Any]  # for --json
    arrays: dict[str, NDArray[Any]]  # of each image, for --predictions


def shifts(run: Run, samples: Samples, asked: Sequence[Disturbance], device: torch.device) -> list[Shifted]:
    """Return what crops of larger images do to a run. Collective.

    Raises UserError if the images are no larger than what the network sees.
    """
    network = run.network.to(device).to(memory_format=torch.channels_last)
    size = samples.recipe.data.eval.size
    out = []
    for one in asked:
        if one.kind not in ("shift", "diagonal"):
            continue
        with dist.raise_together():
            recipe = larger(samples.recipe, f"--robust {one.kind}")
        whole = Samples(recipe, samples.index)
        if one.kind == "shift":
            rows, _, _ = read_function(partial(agreement, network, size), 3, whole, device)
            found, arrays = agreement_figures(rows), agreement_arrays(rows)
        else:
            count = recipe.data.eval.size - size + 1
            rows, _, _ = read_function(partial(along_diagonal, network, size), 4 * count, whole, device)
            rows = rows.reshape(len(rows), count, 4)
            found, arrays = diagonal_figures(rows), diagonal_arrays(rows)
        what = {"run": run.name, "kind": one.kind, "size": size, "of": recipe.data.eval.size}
        out.append(Shifted({**what, **found}, arrays))
    return out


def agreement(network: perturb.Classify, size: int, batch: Batch) -> Tensor:
    """Return [B, 3]: whether both random crops get the same class, and whether each gets the label."""
    first, second = (network(crop).argmax(1) for crop in perturb.random_crops(batch, size))
    return torch.stack([first == second, first == batch.labels, second == batch.labels], 1).float()


def agreement_figures(rows: Tensor) -> dict[str, Any]:
    """Map [N, 3] of `agreement` -> consistency, and top-1 over both crops, in %."""
    equal, first, second = (100 * rows.double().numpy().mean(0)).tolist()
    return {"agreement": equal, "top1": (first + second) / 2}


def agreement_arrays(rows: Tensor) -> dict[str, NDArray[Any]]:
    """Map [N, 3] of `agreement` -> whether the crops of each image agree [N], and which of them are right [N, 2]."""
    found = rows.numpy() > 0
    return {"shift_agree": found[:, 0], "shift_right": found[:, 1:]}


def along_diagonal(network: perturb.Classify, size: int, batch: Batch) -> Tensor:
    """Return [B, crops * 4]: probability of the label, the highest other one, whether in the top 1 and in the top 5."""
    out = []
    for crop in perturb.diagonal(batch.images, size):
        logits = network(crop).float()
        p = logits.softmax(1)
        own = p.gather(1, batch.labels[:, None])[:, 0]
        other = p.scatter(1, batch.labels[:, None], 0).amax(1)
        rank = label_rank(logits, batch.labels)
        out.append(torch.stack([own, other, rank < 1, rank < 5], 1))
    return torch.stack(out, 1).flatten(1)


def diagonal_figures(rows: Tensor) -> dict[str, Any]:
    """Map [N, crops, 4] of `along_diagonal` -> their means over images, by offset and over all."""
    by_offset = rows.double().numpy().mean(0) * np.array([1, 1, 100, 100])
    names = ("label_probability", "other_probability", "top1", "top5")
    whole = dict(zip(names, by_offset.mean(0).tolist(), strict=True))
    return {**whole, "by_offset": dict(zip(names, by_offset.T.tolist(), strict=True))}


def diagonal_arrays(rows: Tensor) -> dict[str, NDArray[Any]]:
    """Map [N, crops, 4] of `along_diagonal` -> four arrays [N, crops], of which OLS's code saves the first three."""
    own, other, first, fifth = rows.numpy().transpose(2, 0, 1)
    return {
        "diagonal_label_probability": own,
        "diagonal_other_probability": other,
        "diagonal_right": first > 0,
        "diagonal_right5": fifth > 0,
    }


def shift_sentence(found: dict[str, Any]) -> str:
    """Return what the terminal says of one entry of `shifts`."""
    crops = f"crops of {found['size']} from {found['of']} pixels"
    if found["kind"] == "shift":
        return (
            f"{found['run']}: shift consistency {found['agreement']:.2f} %: two random {crops} get the same class; "
            f"top-1 of these {found['top1']:.2f} %"
        )
    return (
        f"{found['run']}: diagonal {crops}: mean probability of the label {found['label_probability']:.4f}, "
        f"top-1 {found['top1']:.2f} %, top-5 {found['top5']:.2f} %"
    )
