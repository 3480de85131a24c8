"""A DALI pipeline at a known position."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from ctypes import c_void_p
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from lsdali.data.io.announcing import ask_ahead
from lsdali.data.io.byte_range import PendingBytes
from lsdali.data.io.header import FAULTS, GOOD, NO_FILE
from lsdali.data.io.threads import in_thread
from lsdali.data.pipeline.fifos import FifoGuard
from lsdali.data.pipeline.graph import Graph, GraphSpec, tensor_list
from lsdali.data.sets.sample_index import Index

BatchArrays = tuple[Any, ...]  # as in graph.Source
# Of images from shards or a store, bytes that are on their way or wait, but for one batch more; and batches.
AHEAD, MOST_AHEAD = 64 << 20, 64
FED = 2  # batches whose bytes are held beyond those that DALI works on


class DaliPipeline:
    """A DALI pipeline at a known position: run() returns batch `position`; `arrays` gives the inputs of any batch."""

    def __init__(self, index: Index, graph: Graph, spec: GraphSpec, arrays: Callable[[int], BatchArrays]) -> None:
        self._index, self._graph, self._spec, self._arrays = index, graph, spec, arrays
        self._pipe: Any = None
        # Positions in a row, what the graph reads, and their images in DALI's form, all on their way.
        self._ahead: deque[tuple[int, BatchArrays, Future[Any]]] = deque()
        self._held: deque[tuple[Any, Any]] = deque()  # DALI's images, and the event after their copy
        self._fifos = FifoGuard(spec.prefetch + 2) if spec.images == "paths" else None
        self._fed: deque[Any] = deque(maxlen=spec.prefetch + FED)  # what DALI reads from our memory
        self.position = 0
        self._announced = -1  # the last batch whose files the system was told of

    def seek(self, position: int) -> None:
        """Go on at `position`; free if it follows the last batch."""
        if position != self.position:
            self.close()
            self.position = position

    def resize(self, size: int) -> None:
        """Deliver size x size pixels from now on; free if that is so already."""
        if size != self._spec.size:
            self.close()
            self._spec = replace(self._spec, size=size)

    def close(self) -> None:
        """Free threads and memory; the next run() starts them again."""
        self._pipe, self._announced = None, -1
        for _, (images, *_), _ in self._ahead:
            images.future.cancel()
        self._ahead.clear()

    def run(self) -> tuple[Tensor, Tensor]:
        """Return images [B, 3, H, W], channels last, and index [B] on the host.

        Raises RuntimeError if a file cannot be decoded; the position then stays; ask culprits() which.
        """
        if self._pipe is None:
            first = self.position
            self._pipe = self._graph(lambda info: self._ready(first + info.iteration), self._spec)
        device = self._spec.device_id
        # On a GPU torch's stream waits for the outputs; the host does not.
        stream = () if device is None else (torch.cuda.current_stream(device),)
        with self._guarded():
            images, index = self._pipe.run(*stream)
        self.position += 1
        pixels = (
            from_dlpack(images.as_tensor()) if device is None else self._copied(images, torch.device("cuda", device))
        )
        return pixels.permute(0, 3, 1, 2), torch.from_numpy(np.array(index.as_array())).flatten()

    def _guarded(self) -> AbstractContextManager[None]:
        return nullcontext() if self._fifos is None else self._fifos.waiting()

    def _copied(self, images: Any, device: torch.device) -> Tensor:
        """[B, H, W, 3] in torch's own memory, without waiting.

        A buffer handed over by DLPack is freed by a thread of DALI that synchronises the whole device, which also
        breaks a CUDA graph under capture. DALI frees its own buffers in the order of its own streams, which do not
        wait for torch's: each is held until the copy is done.
        """
        stream, done = torch.cuda.current_stream(device), torch.cuda.Event()  # type: ignore[no-untyped-call]
        tensor = images.as_tensor()
        out = torch.empty(tensor.shape(), dtype=torch.float16 if self._spec.half else torch.float32, device=device)
        tensor.copy_to_external(c_void_p(out.data_ptr()), c_void_p(stream.cuda_stream), non_blocking=True)
        done.record(stream)
        while self._held and self._held[0][1].query():
            self._held.popleft()
        self._held.append((images, done))
        return out

    def _ready(self, position: int) -> BatchArrays:
        """What the graph reads for one batch; images from shards or a store are read ahead, in the order of use."""
        if not self._ahead:
            arrays = self._arrays(position)
            if self._fifos is not None:
                self._fifos.reading(arrays[0])
            if not isinstance(arrays[0], PendingBytes):
                self._announce_after(position)
                return arrays
            self._ahead.append((position, arrays, arrays[0].then(tensor_list)))
        under_way = sum(arrays[0].size for _, arrays, _ in self._ahead)
        while len(self._ahead) < 2 or (under_way < AHEAD and len(self._ahead) < MOST_AHEAD):
            following = self._ahead[-1][0] + 1
            arrays = self._arrays(following)
            self._ahead.append((following, arrays, arrays[0].then(tensor_list)))
            under_way += arrays[0].size
        _, (images, *rest), made = self._ahead.popleft()
        fed = made.result(), *rest
        self._fed.append((images, fed))  # the bytes as they were read, too
        return fed

    def _announce_after(self, position: int) -> None:
        """Let a thread tell the system of the files of the batches after this one."""
        self._announced = max(self._announced, position)
        while self._spec.images == "paths" and self._announced < position + self._spec.read_ahead:
            self._announced += 1
            in_thread(partial(ask_ahead, self._arrays(self._announced)[0]))

    def culprits(self, error: RuntimeError) -> dict[int, str]:
        """Return the samples of the present batch that cannot be decoded, and why; the next run() starts afresh.

        Raises `error` if no file is to blame.
        """
        self.close()  # what DALI does after an error is not documented
        rows = self._arrays(self.position)
        if isinstance(rows[0], PendingBytes):
            rows = rows[0].result(), *rows[1:]
        failing = self._failing(rows)
        found = {int(rows[1][k]): "" for k in failing}
        reasons = {i: self._reason(i) for i in found}
        sound = len(found) > 1 and not any(reasons.values())
        if not found or (sound and len(found) == len(set(rows[1].tolist()))):
            raise error
        unsure = [k for k in failing if not reasons[int(rows[1][k])]]
        if unsure:  # a file that was away for a moment is no bad one
            still = set(self._failing(tuple([row[k] for k in unsure] for row in rows)))
            for row, k in enumerate(unsure):
                if row not in still:
                    reasons.pop(int(rows[1][k]), None)
        if not reasons:
            raise error
        return {i: reason or "cannot be decoded" for i, reason in reasons.items()}

    def _failing(self, rows: BatchArrays) -> list[int]:
        """Decode one row at a time; what is no regular file fails without being opened."""
        opened = [k for k, i in enumerate(rows[1]) if not self._is_no_file(int(i))]
        decoded = self._undecodable(tuple([row[k] for k in opened] for row in rows)) if opened else []
        return sorted({*range(len(rows[1]))} - {*opened} | {opened[k] for k in decoded})

    def _is_no_file(self, i: int) -> bool:
        return self._index.form == "paths" and self._index.read_header(i)[2] == NO_FILE

    def _undecodable(self, rows: BatchArrays) -> list[int]:
        out = []
        first = 0
        while (k := self._first_failing(rows, first)) < len(rows[0]):
            out.append(k)
            first = k + 1
        return out

    def _first_failing(self, rows: BatchArrays, first: int) -> int:
        last = len(rows[0]) - 1

        def source(info: Any) -> BatchArrays:
            k = min(first + info.iteration, last)
            return tuple(row[k : k + 1] for row in rows)

        if first > last:
            return first
        pipe = self._graph(source, replace(self._spec, batch=1, prefetch=1, threads=1))
        for k in range(first, last + 1):
            try:
                with self._guarded():
                    pipe.run()
            except RuntimeError:
                return k
        return last + 1

    def _reason(self, i: int) -> str:
        """What the file's header says now; empty if it looks as it did at the scan."""
        width, height, status = self._index.read_header(i)
        if status != GOOD:
            return FAULTS[status]
        same = (width, height) == tuple(self._index.size[i].tolist())
        return "" if same else "another size than at the scan"
