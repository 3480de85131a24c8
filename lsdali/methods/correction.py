"""Forward and backward correction: losses that know how labels go wrong."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from lsdali import dist
from lsdali.batch import Batch
from lsdali.clock import Clock
from lsdali.config import Config as Part
from lsdali.errors import UserError
from lsdali.functional import backward_correction, forward_correction, most_confident_rows
from lsdali.methods.base import NO_MIXUP_RULE, Loss, Method, MethodContext
from lsdali.methods.noisy import Clamp
from lsdali.models.student import Forward, Student


class Identity(Part):
    """Labels are right: cross-entropy. The OLS code knows no other matrix."""

    name: Literal["identity"] = "identity"


class Symmetric(Part):
    """With probability `rate` a label is one of the other classes, each alike."""

    name: Literal["symmetric"] = "symmetric"
    rate: float = Field(ge=0, lt=1)


class MatrixFile(Part):
    """A matrix in a file: row = true class, column = label seen."""

    name: Literal["file"] = "file"
    path: str
    """A .npy file, or .json with a list of rows."""


class Estimated(Part):
    """Patrini et al. 2017, section 4.3: row i is the prediction of the sample most certain to be of class i.

    The first epochs train with cross-entropy; the matrix comes from the predictions of the last of them and stays.
    These are the predictions that training makes on its way, of augmented images. The paper's come from a network that
    is trained to the end, and another one is trained with the matrix from the start.
    """

    name: Literal["estimated"] = "estimated"
    epochs: int = Field(ge=1)
    """Epochs of cross-entropy before the estimate."""


Noise = Annotated[Identity | Symmetric | MatrixFile | Estimated, Field(discriminator="name")]


def noise_matrix(noise: Noise, classes: int) -> Tensor:
    """[K, K] float32, rows summing to 1. Raises UserError for a file that holds no such matrix."""
    if isinstance(noise, MatrixFile):
        return read_matrix(Path(noise.path).expanduser(), classes)
    rate = noise.rate if isinstance(noise, Symmetric) else 0.0
    others = rate / max(classes - 1, 1)
    return torch.full((classes, classes), others).fill_diagonal_(1 - rate)


def read_matrix(path: Path, classes: int) -> Tensor:
    try:
        content = np.load(path, allow_pickle=False) if path.suffix == ".npy" else json.loads(path.read_text("utf-8"))
        matrix = np.asarray(content, dtype=np.float64)
    except (OSError, EOFError, ValueError, TypeError) as fault:
        raise UserError(f"method.noise.path: cannot read a matrix from {path} ({fault})") from None
    wanted = f"method.noise.path: {path} must hold a [{classes}, {classes}] matrix of probabilities whose rows sum to 1"
    if matrix.shape != (classes, classes):
        raise UserError(f"{wanted}, but its shape is {list(matrix.shape)}")
    if not (matrix >= 0).all() or np.abs(matrix.sum(1) - 1).max() > 1e-4:
        raise UserError(f"{wanted}, but row {int(np.argmax(bad_rows(matrix)))} is not one")
    return torch.from_numpy(matrix).float()


def bad_rows(matrix: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    bad: np.ndarray[Any, np.dtype[np.bool_]] = ~(matrix >= 0).all(1) | ~(np.abs(matrix.sum(1) - 1) <= 1e-4)
    return bad


class Correction(Method):
    """What both corrections share: the noise matrix, given or estimated."""

    mixup_refusal = NO_MIXUP_RULE

    class Config(Method.Config):
        """The noise matrix."""

        noise: Noise = Identity()
        """How labels go wrong."""
        clamp: Clamp = None
        """Probabilities are kept in [clamp, 1 - clamp], without gradient outside; 1.0e-7 in the OLS code."""

    config: Config

    def __init__(self, config: Config, context: MethodContext) -> None:
        super().__init__(config, context)
        self.device = context.device
        self.estimates = isinstance(config.noise, Estimated)
        self.set_matrix(noise_matrix(config.noise, context.classes))
        # The most certain prediction of each class in this epoch, while the matrix is being estimated.
        self.best = torch.zeros(context.classes, device=context.device)
        self.rows = torch.zeros(context.classes, context.classes, device=context.device)

    @property
    def delayed_until(self) -> tuple[str, int] | None:
        noise = self.config.noise
        return ("method.noise.epochs", noise.epochs) if isinstance(noise, Estimated) else None

    def set_matrix(self, matrix: Tensor) -> None:
        """[K, K]. Raises UserError where the loss cannot use it."""
        self.matrix = matrix.to(self.device)

    def observe(self, batch: Batch, logits: Tensor) -> None:
        if self.estimates:
            self.keep_better(*most_confident_rows(logits))

    def keep_better(self, best: Tensor, rows: Tensor) -> None:
        better = best > self.best
        self.rows = torch.where(better[:, None], rows, self.rows)
        self.best = torch.where(better, best, self.best)

    def agree(self) -> tuple[Tensor, Tensor]:
        """[K], [K, K]: the best of all ranks, the lowest rank's among equals."""
        best, rows = dist.all_rows(self.best[None]), dist.all_rows(self.rows[None])
        rank = best.argmax(0)
        return best.amax(0), rows[rank, torch.arange(len(rank), device=rank.device)]

    def end_epoch(self, student: Student, clock: Clock) -> None:
        if not self.estimates:
            return
        _, rows = self.agree()
        if clock.epoch >= self.config.noise.epochs:  # type: ignore[union-attr]
            self.set_matrix(rows)
            self.estimates = False
        self.best, self.rows = torch.zeros_like(self.best), torch.zeros_like(self.rows)

    def state_dict(self) -> dict[str, Any]:
        """What is being estimated, or the estimate; nothing for a given matrix."""
        if not isinstance(self.config.noise, Estimated):
            return {}
        if not self.estimates:
            return {"matrix": self.matrix.clone()}
        best, rows = self.agree()  # taking the best again of what was best before changes nothing
        return {"best": best.clone(), "rows": rows.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if isinstance(self.config.noise, Estimated) and set(state) == {"matrix"}:
            self.set_matrix(state["matrix"])
            self.estimates = False
        elif isinstance(self.config.noise, Estimated) and set(state) == {"best", "rows"}:
            self.best, self.rows = state["best"].to(self.device), state["rows"].to(self.device)
        elif isinstance(self.config.noise, Estimated):
            raise UserError(
                f"the method '{self.config.name}' keeps a matrix or best and rows, but the checkpoint holds "
                f"{', '.join(sorted(state)) or 'nothing'} for it: it was saved by another method"
            )
        else:
            super().load_state_dict(state)


class ForwardCorrection(Correction):
    """Patrini et al. 2017 (arXiv 1609.03683): the prediction is put through the noise before it meets the label."""

    class Config(Correction.Config):
        """-log (p M)[label]."""

        name: Literal["forward"] = "forward"

    def set_matrix(self, matrix: Tensor) -> None:
        if len(matrix) > 1 and torch.allclose(matrix, matrix[:1].expand_as(matrix)):
            raise UserError("method.noise: all rows of the matrix are the same, so labels tell nothing of the classes")
        unseen = (matrix.amax(0) <= 0).nonzero()
        if len(unseen):
            raise UserError(
                f"method.noise: column {int(unseen[0])} of the matrix is all 0, so no sample could bear that label"
            )
        super().set_matrix(matrix)

    def loss(self, student: Forward, batch: Batch, clock: Clock) -> Loss:
        logits = student(batch.images).logits
        return Loss(forward_correction(logits, batch.labels, self.matrix, self.config.clamp), logits.detach())


class BackwardCorrection(Correction):
    """Patrini et al. 2017 (arXiv 1609.03683): losses of all labels, mixed so that their mean is the clean loss."""

    class Config(Correction.Config):
        """-sum_k M^-1[label, k] log p[k]."""

        name: Literal["backward"] = "backward"

    def set_matrix(self, matrix: Tensor) -> None:
        exact = matrix.double().cpu()
        if int(torch.linalg.matrix_rank(exact)) == len(exact):
            inverse = torch.linalg.inv(exact)
        elif isinstance(self.config.noise, Estimated):  # two classes may share their most certain sample
            inverse = torch.linalg.pinv(exact)
        else:
            raise UserError("method.noise: the matrix has no inverse, which backward correction needs; use forward")
        super().set_matrix(matrix)
        self.inverse = inverse.to(matrix.dtype).to(self.device)

    def loss(self, student: Forward, batch: Batch, clock: Clock) -> Loss:
        logits = student(batch.images).logits
        return Loss(backward_correction(logits, batch.labels, self.inverse, self.config.clamp), logits.detach())
