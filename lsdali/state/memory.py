"""SampleMemory: one row of numbers by class for every training sample, in one copy per node.

Exactness. In an epoch each sample is read, then written, by one rank and in one step. So a row is that of the epoch in
which its sample was last seen, and no rank can meet another's write before the epoch's end. Stand-ins for bad files
would break this (their sample comes twice); the caller leaves them out with `keep`.

Nodes. Until `sync`, rows written on one node are unknown to the others. Call `sync` at each epoch's end, since any rank
may read the row in the next one, and before saving. Inside an epoch it never changes a row that is still to be read.

Waiting. On a GPU `write` starts a copy into pinned memory and returns; the rows reach the table at a later `write`,
when the device has passed that point, or in `sync`. `read` sends pinned rows to the device without waiting.

Saving. Between `hold` and `release` no table on rank 0's node changes, so that a thread can write them to disk without
a copy. Rows written meanwhile wait in their process, up to a part of the tables' size; no row of them is read before
the epoch's end, and `sync` waits for `release`.
"""

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lsdali import dist
from lsdali.errors import UserError
from lsdali.functional import topk_pack, topk_unpack
from lsdali.state.shared import shared_memory

MemoryForm = Literal["dense32", "dense16", "topk"]
MemoryRows = dict[str, Tensor]

EXCHANGE_BYTES = 2**26  # bytes that a node receives from the others at one time
PENDING = 64  # copies under way at most; beyond that `write` waits
WAITING = 4  # rows that wait for `release` take at most one part in so many of the tables' size, on each node
ALIGN = 64


@dataclass(frozen=True, slots=True)
class Layout:
    """The format of one sample's row.

    dense32, dense16: K numbers, probabilities or logits. topk: the `keep` greatest probabilities as float16, and their
    classes; what they leave of 1 is spread evenly over the other classes.
    """

    form: MemoryForm
    classes: int
    keep: int = 0  # of the form topk; at most `classes`

    def columns(self) -> dict[str, tuple[torch.dtype, int]]:
        """Return number type and width of each table."""
        if self.form == "topk":
            number = torch.int16 if self.classes <= 2**15 else torch.int32
            return {"shares": (torch.float16, self.keep), "classes": (number, self.keep)}
        return {"shares": (torch.float32 if self.form == "dense32" else torch.float16, self.classes)}

    def pack(self, probabilities: Tensor) -> MemoryRows:
        """Map [B, K] -> each table's rows, on the same device."""
        values = {"shares": probabilities}
        if self.form == "topk":
            values["shares"], values["classes"] = topk_pack(probabilities, self.keep)
        return {name: values[name].to(dtype) for name, (dtype, _) in self.columns().items()}

    def unpack(self, rows: MemoryRows) -> Tensor:
        """Map each table's rows -> [B, K] float32."""
        if self.form == "topk":
            return topk_unpack(rows["shares"], rows["classes"].long(), self.classes)
        return rows["shares"].float()

    @property
    def row_bytes(self) -> int:
        return sum(dtype.itemsize * width for dtype, width in self.columns().values())


@dataclass(frozen=True, slots=True)
class PendingRows:
    """Rows on their way from the device."""

    index: Tensor  # [B] int64 samples, on the host
    rows: MemoryRows  # on the host; pinned if they come from a GPU
    keep: Tensor | None  # [B] bool, on the host
    skipped: Tensor | None  # [] float on the host: 1 where the step that wrote them was skipped
    done: torch.cuda.Event | None

    @property
    def arrived(self) -> bool:
        return self.done is None or bool(self.done.query())  # type: ignore[no-untyped-call]


class SampleMemory:
    """`samples` rows; `open` it on every rank before anything else."""

    def __init__(self, samples: int, layout: Layout, device: torch.device) -> None:
        self.samples, self.layout, self.device = samples, layout, device
        self.tables: MemoryRows = {}  # [N, width] each
        self.seen = torch.empty(0)  # [N] uint8: whether the row holds anything
        self.fresh = torch.empty(0)  # [N] uint8: whether the row is unknown to other nodes
        self.held = torch.zeros(1, dtype=torch.uint8)  # [1]: whether the tables of this node stay as they are
        self.skipped: Tensor | None = None  # [] float on the device: 1 where what is written next is to be dropped
        self._leaders: dist.Group | None = None
        self._pending: deque[PendingRows] = deque()

    def open(self) -> None:
        """Map the memory; a collective. Raises UserError on every rank if a node has too little."""
        columns = {**self.layout.columns(), "seen": (torch.uint8, 1), "fresh": (torch.uint8, 1)}
        sizes = [-(-self.samples * width * dtype.itemsize // ALIGN) * ALIGN for dtype, width in columns.values()]
        block = shared_memory(sum(sizes) + ALIGN, f"a memory of {self.samples} samples ({self.layout.form})")
        start = 0
        for (name, (dtype, width)), size in zip(columns.items(), sizes, strict=True):
            # A storage of its own for each table: torch.save writes whole storages, and one of a single type.
            table = torch.frombuffer(block, dtype=dtype, count=self.samples * width, offset=start)
            self.tables[name] = table.view(self.samples, width)
            start += size
        self.held = torch.frombuffer(block, dtype=torch.uint8, count=1, offset=start)
        self.seen, self.fresh = (self.tables.pop(name).view(-1) for name in ("seen", "fresh"))
        self._leaders = dist.leaders()

    def known(self, index: Tensor, keep: Tensor | None = None) -> Tensor:
        """Map [B] int64, [B] bool on the host -> [B] bool on the host: which rows hold anything.

        None if not `keep`.
        """
        seen = self.seen[index].bool()
        return seen if keep is None else seen & keep

    def read(self, index: Tensor, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map [B] int64, [B] bool on the host -> [B, K] float32 rows and [B] bool, on the device.

        The second tells which rows hold anything; none does where `keep` is False.
        """
        known = self.known(index, keep)
        rows = {name: self._to_device(table, index) for name, table in self.tables.items()}
        if self.device.type == "cuda":
            known = known.pin_memory().to(self.device, non_blocking=True)
        return self.layout.unpack(rows), known

    def _to_device(self, table: Tensor, index: Tensor) -> Tensor:
        if self.device.type != "cuda":
            return table[index]
        pinned = torch.empty((len(index), table.shape[1]), dtype=table.dtype, pin_memory=True)
        return torch.index_select(table, 0, index, out=pinned).to(self.device, non_blocking=True)

    @torch.no_grad()
    def write(self, index: Tensor, probabilities: Tensor, keep: Tensor | None = None) -> None:
        """Write [B, K] into the rows of the samples [B] int64, except where `keep` [B] is False (both on the host)."""
        rows = self.layout.pack(probabilities)
        skipped = done = None
        if self.device.type == "cuda":
            rows = {name: pinned_copy(x) for name, x in rows.items()}
            skipped = None if self.skipped is None else pinned_copy(self.skipped)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record()
        self._pending.append(PendingRows(index, rows, keep, skipped, done))
        if not self.held[0]:
            self._land(PENDING)
        elif len(self._pending) * len(index) * WAITING * dist.local_world() > self.samples:
            self._land(0)

    def _land(self, most: int) -> None:
        """Put what has arrived; wait until at most `most` copies are under way, and while the tables are held."""
        while self.held[0]:
            time.sleep(0.002)
        while self._pending and (len(self._pending) > most or self._pending[0].arrived):
            first = self._pending.popleft()
            if first.done is not None:
                first.done.synchronize()
            if first.skipped is None or not first.skipped:
                self._put(first.index, first.rows, first.keep)

    def _put(self, index: Tensor, rows: MemoryRows, keep: Tensor | None) -> None:
        if keep is not None:
            index, rows = index[keep], {name: x[keep] for name, x in rows.items()}
        for name, table in self.tables.items():
            table[index] = rows[name]
        self.seen[index] = 1
        self.fresh[index] = 1

    def sync(self) -> None:
        """Give every node every row; a collective."""
        self._land(0)
        dist.barrier()
        if self._leaders is not None and dist.local_rank() == 0:
            self._exchange(self._leaders)
        dist.barrier()

    def _exchange(self, leaders: dist.Group) -> None:
        """Between the first ranks of the nodes, in pieces of at most CHUNK bytes."""
        mine = self.fresh.nonzero().flatten()
        counts = dist.gather_objects(len(mine), leaders)
        size = max(EXCHANGE_BYTES // ((8 + self.layout.row_bytes) * len(counts)), 1)
        for start in range(0, max(counts), size):
            part = mine[start : start + size]
            index = dist.all_rows(part, leaders)
            for table in self.tables.values():
                rows = dist.all_rows(table[part].view(torch.uint8), leaders)  # gloo knows no int16
                table[index] = rows.view(table.dtype)
            self.seen[index] = 1
        self.fresh[mine] = 0

    def hold(self) -> list[Tensor]:
        """Leave the tables of rank 0's node as they are until rank 0 calls `release`; a collective after `state_dict`.

        Return what is held.
        """
        if dist.is_main():
            self.held[0] = 1
        dist.barrier()
        return [*self.tables.values(), self.seen]

    def release(self) -> None:
        self.held[0] = 0

    def state_dict(self) -> MemoryRows:
        """Return the tables themselves, not copies: every row, on every node; a collective."""
        self.sync()
        return {**self.tables, "seen": self.seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the rows. Raises UserError on every rank for those of another memory; a collective."""
        own = {**self.tables, "seen": self.seen}
        wrong = sorted(own.keys() ^ state.keys()) or [
            name for name, table in own.items() if state[name].dtype != table.dtype or state[name].shape != table.shape
        ]
        if wrong:
            raise UserError(
                f"the checkpoint holds another memory of the samples ({', '.join(wrong)} differ): "
                "it was saved for other data or another history"
            )
        self._pending.clear()
        dist.barrier()
        if dist.local_rank() == 0:
            for name, table in own.items():
                table.copy_(state[name])
            self.fresh.zero_()
        dist.barrier()


def pinned_copy(x: Tensor) -> Tensor:
    """Return a tensor on its way from the device to the host."""
    return torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True)
