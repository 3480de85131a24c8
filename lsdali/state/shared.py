"""Memory that the ranks of one node share."""

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

from lsdali import dist
from lsdali.errors import UserError
from lsdali.limits import CGROUPS, OWN_GROUPS, control_groups

# Files of a memory control group, by version: limit, usage, and what stands before names of sums over inner groups.
V1 = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"
V2 = "memory.max", "memory.current", ""


def shared_memory(size: int, purpose: str) -> mmap.mmap:
    """Return `size` bytes, all 0, one copy per node, mapped by each of its ranks; a collective.

    The first rank of the node makes an anonymous file (memfd) and the others open it through /proc: it has no name,
    needs no room in /dev/shm, and goes with the last process that maps it, however that ends. Pages take memory when
    they are first touched.

    Raises UserError on every rank if any node has too little memory or a rank cannot reach it.
    """
    with dist.raise_together():
        handle = made(size, purpose) if dist.local_rank() == 0 else -1
    try:
        offers = dist.gather_objects(f"/proc/{os.getpid()}/fd/{handle}")
        with dist.raise_together():  # also keeps the file open until every rank has it
            return mapped(offers[dist.node_leader()], size, purpose)
    finally:
        if handle >= 0:
            os.close(handle)


def made(size: int, purpose: str) -> int:
    """Return a handle of an anonymous file. Raises UserError if this machine has no room for it."""
    if size > (free := free_bytes()):
        raise UserError(
            f"{purpose} needs {size / 1e9:.2f} GB on each node, and {free / 1e9:.2f} GB are free: choose a smaller form"
        )
    try:
        handle = os.memfd_create("lsdali")
        os.ftruncate(handle, size)
    except OSError as error:
        raise UserError(f"{purpose} needs {size / 1e9:.2f} GB of shared memory: {error.strerror}") from error
    return handle


def mapped(path: str, size: int, purpose: str) -> mmap.mmap:
    """Return that file in this process's memory."""
    try:
        with open(path, "r+b", buffering=0) as file:
            return mmap.mmap(file.fileno(), size)
    except OSError as error:
        raise UserError(
            f"{purpose}: rank {dist.rank()} cannot map the memory of its node's first rank: {error.strerror}"
        ) from error


def free_bytes() -> int:
    """Return the bytes that this process can still allocate.

    This is the kernel's estimate, or what its control groups leave, which is less in a container.
    """
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    machine = int(fields["MemAvailable"].split()[0]) * 1024
    groups = left_by_groups(CGROUPS, OWN_GROUPS.read_text())
    return max(min([machine, *groups]), 0)


def left_by_groups(root: Path, own: str) -> Iterator[int]:
    """Yield the bytes that each limited control group (v1 or v2) round this process leaves, file cache counted as free.

    `own` is the text of /proc/self/cgroup. Shared memory is charged to the group of who first touches it.
    """
    for folder, version in control_groups(root, own, "memory"):
        limit, usage, total = V2 if version == 2 else V1
        if not (folder / limit).is_file() or (most := (folder / limit).read_text().strip()) == "max":
            continue
        stat = dict(entry.split() for entry in (folder / "memory.stat").read_text().splitlines())
        cache = sum(int(stat.get(f"{total}{kind}_file", 0)) for kind in ("active", "inactive"))
        yield int(most) - int((folder / usage).read_text()) + cache
