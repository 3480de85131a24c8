"""Memory that the ranks of one node share."""

import mmap
import os
from pathlib import Path

from lsdali import dist
from lsdali.errors import UserError


def shared_memory(size: int, purpose: str) -> mmap.mmap:
    """`size` bytes, all 0, one copy per node, mapped by each of its ranks; a collective.

    The first rank of the node makes an anonymous file (memfd) and the others open it through /proc: it has no name,
    needs no room in /dev/shm, and goes with the last process that maps it, however that ends. Pages take memory when
    they are first touched.

    Raises UserError on every rank where any node has too little memory or a rank cannot reach it.
    """
    handle, told = -1, ""
    if dist.local_rank() == 0:
        if size > (free := free_bytes()):
            told = (
                f"{purpose} needs {size / 1e9:.2f} GB on each node, and {free / 1e9:.2f} GB are free: "
                "choose a smaller form"
            )
        else:
            handle = os.memfd_create("lsdali")
            os.ftruncate(handle, size)
    failed = told
    offers = dist.gather_objects((f"/proc/{os.getpid()}/fd/{handle}", told))
    _raise_first([wrong for _, wrong in offers])
    if handle < 0:
        try:
            handle = os.open(offers[dist.node_leader()][0], os.O_RDWR)
        except OSError as error:
            failed = f"{purpose}: rank {dist.rank()} cannot reach the memory of its node's first rank: {error.strerror}"
    _raise_first(dist.gather_objects(failed))  # also keeps the file open until every rank has it
    try:
        return mmap.mmap(handle, size)
    finally:
        os.close(handle)


def _raise_first(failures: list[str]) -> None:
    for text in failures:
        if text:
            raise UserError(text)


def free_bytes() -> int:
    """What a process of this machine can still allocate, as the kernel estimates it."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024
