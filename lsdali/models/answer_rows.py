"""A teacher's answers in a file: one row for each sample, the k greatest logits or all of them, in 32 or 16 bits."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lsdali.errors import UserError
from lsdali.functional import as_float32

Values = Literal["fp32", "fp16"]
Rows = NDArray[np.void]


@dataclass(frozen=True, slots=True)
class RowFormat:
    """How a row of K logits is kept.

    fp32: the logits as they are. fp16: the greatest in 32 bits, and of each how far it lies below that, in IEEE half
    precision, which is finest where a softmax is largest. Of the classes that are not kept, one number in 32 bits says
    the logit that gives all of them, if they shared it, their true mass at temperature 1.
    """

    classes: int
    keep: int
    values: Values

    def __post_init__(self) -> None:
        if not 1 <= self.keep <= self.classes:
            raise UserError(f"{self.keep} logits of {self.classes} classes cannot be kept: give 1 to {self.classes}")

    @property
    def whole(self) -> bool:
        return self.keep == self.classes

    @property
    def dtype(self) -> np.dtype[Any]:
        """The fields of a row; 32-bit ones come first, so that all are aligned."""
        place = "<u2" if self.classes <= 1 << 16 else "<u4"
        fields: list[Any] = [] if self.whole else [("rest", "<f4")]
        own = [("logits", "<f4", (self.keep,))] if self.values == "fp32" else [("top", "<f4")]
        late = [] if self.values == "fp32" else [("below", "<f2", (self.keep,))]
        places = [] if self.whole else [("places", place, (self.keep,))]
        return np.dtype(fields + own + (places + late if place == "<u4" else late + places))

    def pack(self, logits: Tensor) -> Rows:
        """Map [B, K] -> [B] rows, on the host."""
        x = as_float32(logits.detach()).float()
        rows = np.zeros(len(x), self.dtype)
        kept = x
        if not self.whole:
            kept, places = x.topk(self.keep, 1)
            others = x.scatter(1, places, -torch.inf).logsumexp(1) - math.log(self.classes - self.keep)
            rows["rest"], rows["places"] = others.cpu().numpy(), places.cpu().numpy()
        if self.values == "fp32":
            rows["logits"] = kept.cpu().numpy()
        else:
            top = kept.amax(1, keepdim=True)
            rows["top"] = top.squeeze(1).cpu().numpy()
            rows["below"] = (kept - top).clamp(min=-65504).half().cpu().numpy()
        return rows

    def unpack(self, rows: Rows, device: torch.device) -> Tensor:
        """Map [B] rows -> [B, K] float32 on the device."""
        if self.values == "fp32":
            kept = field_on(rows["logits"], device)
        else:
            kept = field_on(rows["below"], device).float() + field_on(rows["top"], device)[:, None]
        if self.whole:
            return kept
        places = field_on(rows["places"].astype(np.int64), device)
        return field_on(rows["rest"], device)[:, None].expand(-1, self.classes).scatter(1, places, kept)

    def erase(self, rows: Rows, which: NDArray[np.bool_]) -> None:
        """Mark [B] rows as unknown, in place."""
        name = "logits" if self.values == "fp32" else "top"
        rows[name][which] = np.nan

    def unknown(self, rows: Rows) -> NDArray[np.bool_]:
        """Map [B] rows -> [B]: whether a row was erased."""
        first = rows["logits"][:, 0] if self.values == "fp32" else rows["top"]
        erased: NDArray[np.bool_] = np.isnan(first)
        return erased


def field_on(part: NDArray[Any], device: torch.device) -> Tensor:
    """Return a field of rows as a tensor on the device; the host does not wait for the copy."""
    host = torch.from_numpy(np.ascontiguousarray(part))
    return host if device.type == "cpu" else host.pin_memory().to(device, non_blocking=True)


def divergence(logits: Tensor, kept: Tensor, temperature: float) -> Tensor:
    """Map [B, K], [B, K] -> [B]: KL(softmax(logits / T) || softmax(kept / T)), in nats: what a loss may be off by."""
    p = (logits.double() / temperature).log_softmax(1)
    q = (kept.double() / temperature).log_softmax(1)
    return F.kl_div(q, p, reduction="none", log_target=True).sum(1).clamp(min=0)
