"""Choose samples and labels of a data set: class subsets, held-out parts, label noise.

Every choice is a function of a seed and of the sample's number in the whole set, the same everywhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from lsdali.config import Config
from lsdali.data.sampling.sampler import Ints, stratified, uniforms
from lsdali.data.sets.listing import Split, few
from lsdali.errors import UserError
from lsdali.label_noise import Noise

_NOISE = 105  # stream of random numbers
Seed = Annotated[int, Field(ge=0, lt=2**64)]


class Holdout(Config):
    """Validate on a part of the training files, which are then not trained on; the official validation data is not
    read."""

    fraction: Annotated[float, Field(gt=0, lt=1)]
    """Share of the training files that is held out."""
    seed: Seed = 0
    """Seed that decides which files."""
    by: Literal["class", "numpy"] = "class"
    """class: in the classes' own proportions; numpy: the last ones after a shuffle by NumPy's legacy generator, as the
    code of IBLS (mmaher22/Instance-based-smoothing) splits, with seed 42."""

    def describe(self) -> str:
        way = " by numpy" if self.by == "numpy" else ""
        return f"{100 * self.fraction:g} % of the training files, held out{way} with seed {self.seed}"


@dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """Samples and their labels."""

    numbers: Ints  # [n] rising, numbers in the whole set
    labels: Ints  # [n] in use
    clean: Ints  # [n] before noise
    classes: tuple[str, ...]

    def at(self, chosen: Ints) -> "Chosen":
        return replace(self, numbers=self.numbers[chosen], labels=self.labels[chosen], clean=self.clean[chosen])


def whole(labels: Ints, classes: tuple[str, ...]) -> Chosen:
    return Chosen(np.arange(len(labels)), labels, labels, classes)


def of_classes(part: Chosen, names: Sequence[str]) -> Chosen:
    """Return the samples of the named classes, numbered 0, 1, ... in the order of the names."""
    known = {name: k for k, name in enumerate(part.classes)}
    if missing := [name for name in names if name not in known]:
        near = get_close_matches(missing[0], part.classes, 1, 0.0)[0]
        raise UserError(f"data.classes: the data has no class {few(missing)}; did you mean {near}?")
    if len(set(names)) < len(names):
        twice = next(name for name in names if list(names).count(name) > 1)
        raise UserError(f"data.classes: {twice} is given twice")
    number = np.full(len(part.classes), -1, np.int64)
    number[[known[name] for name in names]] = np.arange(len(names))
    labels = number[part.labels]
    return replace(part, labels=labels, clean=labels, classes=tuple(names)).at(np.flatnonzero(labels >= 0))


def held_out(part: Chosen, split: Split, holdout: Holdout) -> Chosen:
    """Return the training or the validation side. Raises UserError if one of them is empty."""
    count = round(holdout.fraction * len(part.labels))
    if not 0 < count < len(part.labels):
        raise UserError(
            f"data.holdout.fraction: {holdout.fraction} of {len(part.labels)} training files leaves "
            f"{count} to validate on and {len(part.labels) - count} to train on; both need at least one"
        )
    out = np.zeros(len(part.labels), bool)
    if holdout.by == "numpy":
        out[np.random.RandomState(holdout.seed).permutation(len(out))[-count:]] = True
    else:
        out[stratified(part.labels, count, holdout.seed)] = True
    return part.at(np.flatnonzero(out if split == "val" else ~out))


def noisy(part: Chosen, noise: Noise, seed: int) -> Chosen:
    """Draw labels anew, each sample on its own, from the noise's matrix; `clean` keeps the true ones."""
    matrix = noise.matrix(len(part.classes))
    u = uniforms(seed, 0, part.numbers, 1, _NOISE)[:, 0]
    labels = part.clean.copy()
    for k in np.unique(part.clean):
        rows = part.clean == k
        likely = np.flatnonzero(matrix[k])  # a class without probability is never drawn, however the sum rounds
        edges = np.cumsum(matrix[k, likely])[:-1]
        labels[rows] = likely[np.searchsorted(edges, u[rows], side="right")]
    return replace(part, labels=labels)
