"""The base of methods that keep a row of numbers for each class."""

from typing import Any

import torch
from torch import Tensor

from lsdali import dist
from lsdali.errors import UserError
from lsdali.methods.base import NO_MIXUP_RULE, Method, MethodContext


class ClassMatrix(Method):
    """`matrix` [K, K], a row for each true class, and `sums` [K, K] and `counts` [K], from which a new one is made.

    Each rank collects for itself; `collected` gives the total and starts anew.
    """

    mixup_refusal = NO_MIXUP_RULE

    def __init__(self, config: Any, context: MethodContext, fill: float) -> None:
        super().__init__(config, context)
        shape = (context.classes, context.classes)
        self.matrix = torch.full(shape, fill, device=context.device)
        self.sums = torch.zeros(shape, device=context.device)
        self.counts = torch.zeros(context.classes, device=context.device)
        self.empty = True  # whether the sums are those of no batch; the same on every rank

    def collected(self) -> tuple[Tensor, Tensor]:
        """Return sums and counts of all ranks; a collective. What is collected from here on starts at 0."""
        sums, counts = dist.all_sum(self.sums), dist.all_sum(self.counts)
        self.sums.zero_()
        self.counts.zero_()
        self.empty = True
        return sums, counts

    def state_dict(self) -> dict[str, Any]:
        """Return the matrix, and inside an epoch each rank's sums and counts.

        Their total would do for the mathematics; put back on one rank it would round otherwise than the parts did.
        """
        mine = [self.sums.cpu().clone(), self.counts.cpu().clone()]
        return {"matrix": self.matrix.clone(), "ranks": [] if self.empty else dist.gather_objects(mine)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if set(state) != {"matrix", "ranks"} or state["matrix"].shape != self.matrix.shape:
            raise UserError(
                f"the method '{self.config.name}' keeps matrix [{len(self.matrix)}, {len(self.matrix)}] and ranks, "
                f"but the checkpoint holds {', '.join(sorted(state)) or 'nothing'} for it: it was saved by another "
                "method or for other classes"
            )
        self.matrix.copy_(state["matrix"])
        ranks = state["ranks"]
        self.empty = not ranks
        self.sums.zero_()
        self.counts.zero_()
        total = ranks if dist.is_main() else []
        mine = [ranks[dist.rank()]] if len(ranks) == dist.world() else total
        for sums, counts in mine:
            self.sums += sums.to(self.sums.device)
            self.counts += counts.to(self.counts.device)
