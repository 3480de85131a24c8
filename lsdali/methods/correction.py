"""Forward and backward correction: losses that know how labels go wrong."""

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from lsdali import dist
from lsdali.batch import Batch
from lsdali.clock import Clock
from lsdali.config import Config as Part
from lsdali.errors import UserError
from lsdali.functional import backward_correction, forward_correction, most_confident_rows
from lsdali.label_noise import IdentityNoise, MatrixNoise, PairNoise, SymmetricNoise
from lsdali.methods.base import NO_MIXUP_RULE, Loss, Method, MethodContext, Variant
from lsdali.methods.shared.clamp import clamp_of
from lsdali.models.student import Forward, Student


class DataNoise(Part):
    """The noise that data.noise adds to the labels."""

    name: Literal["data"] = "data"


class Estimated(Part):
    """Patrini et al. 2017, section 4.3: row i is the prediction of the sample most certain to be of class i.

    The first epochs train with cross-entropy; the matrix comes from the predictions of the last of them and stays.
    These predictions are made during training, on augmented images. In the paper, they come from a network trained to
    the end, and another network is then trained with the matrix from the start.
    """

    name: Literal["estimated"] = "estimated"
    epochs: int = Field(ge=1, le=1_000_000)
    """Epochs of cross-entropy before the estimate."""


CorrectedNoise = Annotated[
    IdentityNoise | SymmetricNoise | PairNoise | MatrixNoise | DataNoise | Estimated, Field(discriminator="name")
]


def noise_matrix(noise: CorrectedNoise, context: MethodContext) -> Tensor:
    """Return [K, K] float32, rows summing to 1; the identity while it is being estimated.

    Raises UserError for a file that holds no such matrix, and if the data has no noise to take.
    """
    known = context.label_noise if isinstance(noise, DataNoise) else noise
    if known is None:
        raise UserError("method.noise: data takes the noise of the data, and data.noise is not set: set it, or say how")
    known = IdentityNoise() if isinstance(known, Estimated) else known
    return torch.from_numpy(known.matrix(context.classes)).float()


class Correction(Method):
    """Base of both corrections: the noise matrix, given or estimated."""

    mixup_refusal = NO_MIXUP_RULE

    class Config(Method.Config):
        """The noise matrix."""

        noise: CorrectedNoise = IdentityNoise()
        """The label noise to correct for; the OLS code has only the identity, which is cross-entropy."""
        variant: Variant = "paper"
        """paper: exact; code: probabilities in [1e-7, 1 - 1e-7], without gradient outside, as in the OLS code."""

    config: Config

    def __init__(self, config: Config, context: MethodContext) -> None:
        super().__init__(config, context)
        self.device = context.device
        self.estimates = isinstance(config.noise, Estimated)
        self.set_matrix(noise_matrix(config.noise, context))
        # The most certain prediction of each class in this epoch, while the matrix is being estimated.
        self.best = torch.zeros(context.classes, device=context.device)
        self.rows = torch.zeros(context.classes, context.classes, device=context.device)

    @property
    def delayed_until(self) -> tuple[str, int] | None:
        noise = self.config.noise
        return ("method.noise.epochs", noise.epochs) if isinstance(noise, Estimated) else None

    def set_matrix(self, matrix: Tensor) -> None:
        """Set the matrix, [K, K]. Raises UserError if the loss cannot use it."""
        self.matrix = matrix.to(self.device)

    def observe(self, batch: Batch, logits: Tensor) -> None:
        if self.estimates:
            self.keep_better(*most_confident_rows(logits))

    def keep_better(self, best: Tensor, rows: Tensor) -> None:
        better = best > self.best
        self.rows = torch.where(better[:, None], rows, self.rows)
        self.best = torch.where(better, best, self.best)

    def best_of_ranks(self) -> tuple[Tensor, Tensor]:
        """Return [K], [K, K]: the best of all ranks, the lowest rank's among equals."""
        best, rows = dist.all_rows(self.best[None]), dist.all_rows(self.rows[None])
        rank = best.argmax(0)
        return best.amax(0), rows[rank, torch.arange(len(rank), device=rank.device)]

    def end_epoch(self, student: Student, clock: Clock) -> None:
        if not self.estimates:
            return
        _, rows = self.best_of_ranks()
        if clock.epoch >= self.config.noise.epochs:  # type: ignore[union-attr]
            self.set_matrix(rows)
            self.estimates = False
        self.best, self.rows = torch.zeros_like(self.best), torch.zeros_like(self.rows)

    def state_dict(self) -> dict[str, Any]:
        """Return what is being estimated, or the estimate; nothing for a given matrix."""
        if not isinstance(self.config.noise, Estimated):
            return {}
        if not self.estimates:
            return {"matrix": self.matrix.clone()}
        best, rows = self.best_of_ranks()  # taking the best again of what was best before changes nothing
        return {"best": best.clone(), "rows": rows.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if isinstance(self.config.noise, Estimated) and set(state) == {"matrix"}:
            self.set_matrix(state["matrix"])
            self.estimates = False
        elif isinstance(self.config.noise, Estimated) and set(state) == {"best", "rows"}:
            if (state["best"].shape, state["rows"].shape) != (self.best.shape, self.rows.shape):
                raise UserError(f"the checkpoint holds the estimate of a matrix of {len(state['best'])} classes")
            self.best, self.rows = state["best"].to(self.device), state["rows"].to(self.device)
        elif isinstance(self.config.noise, Estimated):
            raise UserError(
                f"the method '{self.config.name}' keeps a matrix or best and rows, but the checkpoint holds "
                f"{', '.join(sorted(state)) or 'nothing'} for it: it was saved by another method"
            )
        else:
            super().load_state_dict(state)


class ForwardCorrection(Correction):
    """Patrini et al. 2017 (arXiv 1609.03683): the prediction is multiplied by the noise matrix before it is compared
    with the label."""

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
        return Loss(
            forward_correction(logits, batch.labels, self.matrix, clamp_of(self.config.variant)), logits.detach()
        )


class BackwardCorrection(Correction):
    """Patrini et al. 2017 (arXiv 1609.03683): the losses of all labels are combined so that their mean is the clean
    loss."""

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
        return Loss(
            backward_correction(logits, batch.labels, self.inverse, clamp_of(self.config.variant)), logits.detach()
        )


METHODS = {"forward": ForwardCorrection, "backward": BackwardCorrection}
