"""Label noise: one description for noise that is added to the data and for losses that correct it."""

import json
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from lsdali.config import Config, PathText
from lsdali.errors import UserError

Matrix = NDArray[np.float64]
Rate = Annotated[float, Field(gt=0, le=1)]
TOLERANCE = 1e-4
"""How far a row's sum may be from 1: files are often written in float32."""


class IdentityNoise(Config):
    """Labels are right."""

    name: Literal["identity"] = "identity"

    def matrix(self, classes: int) -> Matrix:
        """Return [K, K]: the probability of each label in use (column) for a true class (row)."""
        return np.eye(classes)


class SymmetricNoise(Config):
    """A label becomes one of the other classes, each with the same probability."""

    name: Literal["symmetric"] = "symmetric"
    rate: Rate
    """Probability that a label is wrong."""

    def matrix(self, classes: int) -> Matrix:
        """Return [K, K], as above."""
        off = self.rate / max(classes - 1, 1)
        return np.full((classes, classes), off) + (1 - self.rate - off) * np.eye(classes)


class PairNoise(Config):
    """A label becomes the next class; the last becomes the first (asymmetric noise)."""

    name: Literal["pair"] = "pair"
    rate: Rate
    """Probability that a label is wrong."""

    def matrix(self, classes: int) -> Matrix:
        """Return [K, K], as above."""
        eye: Matrix = np.eye(classes)
        return (1 - self.rate) * eye + self.rate * np.roll(eye, 1, axis=1)


class MatrixNoise(Config):
    """Labels follow the rows of a K x K matrix: row the true class, column the label in use."""

    name: Literal["matrix"] = "matrix"
    file: PathText
    """NumPy's .npy, .json with a list of rows, or text with one row per line."""

    def matrix(self, classes: int) -> Matrix:
        """Return [K, K]. Raises UserError if the file holds no such matrix."""
        values = read_numbers(Path(self.file), "noise.file", "a matrix of numbers")
        if values.shape != (classes, classes):
            raise UserError(
                f"noise.file: {self.file} has the shape {list(values.shape)}; {classes} classes need "
                f"{classes} rows of {classes} probabilities"
            )
        wrong = np.flatnonzero(~(np.abs(values.sum(1) - 1) <= TOLERANCE) | ~(values >= 0).all(1))
        if len(wrong):
            raise UserError(
                f"noise.file: row {wrong[0]} of {self.file} is no distribution: it must be at least 0 and sum to 1"
            )
        return values


Noise = Annotated[IdentityNoise | SymmetricNoise | PairNoise | MatrixNoise, Field(discriminator="name")]


def read_numbers(path: Path, key: str, what: str) -> Matrix:
    """Return the numbers in the file that `key` names. Raises UserError if it cannot be read as `what`."""
    try:
        if path.suffix == ".npy":
            found = np.load(path, allow_pickle=False)
        elif path.suffix == ".json":
            found = json.loads(path.read_text("utf-8"))
        else:
            found = np.loadtxt(path, ndmin=2)
        return np.asarray(found, np.float64)
    except (OSError, EOFError, ValueError, TypeError) as error:
        raise UserError(f"{key}: {path} cannot be read as {what}: {error}") from None
