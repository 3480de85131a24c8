"""Every collective of the project. Each is a no-op on one process, so callers never ask how many ranks there are."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import count
from typing import Any, TypeVar

import torch
import torch.distributed as td
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from lsdali.errors import SharedError, UserError

T = TypeVar("T")
_joined = count()  # groups of this process, which a program may make one after another
Group = td.ProcessGroup


def active() -> bool:
    return td.is_available() and td.is_initialized()


def rank() -> int:
    return td.get_rank() if active() else 0


def world() -> int:
    return td.get_world_size() if active() else 1


def local_rank() -> int:
    """Return this process's number on its own node, as torchrun sets it."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_world() -> int:
    """Return processes of this run on this node, as torchrun sets it."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def node_leader() -> int:
    """Return the rank of the first process on this node; torchrun numbers a node's processes in a row."""
    return rank() - local_rank()


def leaders() -> Group | None:
    """Return the first processes of the nodes, as a group that only they get; None for one node.

    Call it on every rank.
    """
    first = [number for number, local in enumerate(gather_objects(local_rank())) if local == 0]
    group = td.new_group(first, backend="gloo") if len(first) > 1 else None
    return group if isinstance(group, Group) else None


def is_main() -> bool:
    return rank() == 0


def launched() -> bool:
    """Return whether a launcher (torchrun) started this process as one of a group."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


@contextmanager
def session(timeout_minutes: float = 30.0) -> Iterator[torch.device]:
    """Yield the device of this process, inside a process group if torchrun made one.

    After an exception the group is left as it is: with NCCL its end would wait for collectives that the other ranks
    are in, and the exception would not be told before the timeout.
    """
    refuse_bare_srun()
    device = own_device()
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True  # batches have one shape
    if launched():
        join_group(cuda=cuda, timeout=timedelta(minutes=timeout_minutes))
    yield device
    if active():
        td.destroy_process_group()


def own_device() -> torch.device:
    """Return this process's GPU, or the CPU.

    Raises UserError if the node has fewer GPUs than processes. If a launcher other than torchrun gives each process
    one GPU of its own (`srun --gpus-per-task=1`), that is number 0 in all of them.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if count == 1 and not td.is_torchelastic_launched():
        return torch.device("cuda", 0)
    if local_rank() >= count:
        raise UserError(
            f"{local_world()} processes on this node but {count} GPUs: start torchrun with --nproc_per_node {count}"
        )
    return torch.device("cuda", local_rank())


def refuse_bare_srun() -> None:
    """Raise UserError if srun started several tasks without torchrun: each would train alone, into the same folder."""
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if not launched() and tasks != "1":
        raise UserError(
            f"srun started {tasks} tasks that know nothing of each other: start one task per node, "
            "`srun --ntasks-per-node=1 bash_scripts/launch.sh train RECIPE`, which starts a process per GPU"
        )


def join_group(*, cuda: bool, timeout: timedelta) -> None:
    """Make the process group that torchrun's environment describes.

    Where torchrun itself serves the key-value store, it keeps it over a restart of the workers (--max-restarts); under
    a prefix of its own, each start finds nothing of the addresses that the dead processes left there. A store that rank
    0 serves is new at each start, and has no prefix: every node counts its own restarts.
    """
    store, rank, world = rendezvous_store(timeout)
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = PrefixStore(f"start{restart}.{next(_joined)}", store)
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    td.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timeout)


def rendezvous_store(timeout: timedelta) -> tuple[Store, int, int]:
    """Return the key-value store of the group, this rank's number and the number of ranks, from torchrun's environment.

    Where rank 0 serves the store and MASTER_ADDR is a loopback address, it listens on that address alone; torch would
    listen on every address of the node, and whoever reaches the store is trusted.
    """
    host, port = os.environ.get("MASTER_ADDR", ""), int(os.environ.get("MASTER_PORT", "0"))
    agent_serves = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if agent_serves or not host.startswith("127.") or os.environ["RANK"] != "0":
        store: tuple[Store, int, int] = next(rendezvous("env://", timeout=timeout))
        return store
    world = int(os.environ["WORLD_SIZE"])
    listener = socket.create_server((host, port)).detach()
    served: dict[str, Any] = {"is_master": True, "wait_for_workers": False, "master_listen_fd": listener}
    return td.TCPStore(host, port, world, timeout=timeout, **served), 0, world  # type: ignore[attr-defined]


@contextmanager
def raise_together() -> Iterator[None]:
    """Raise a UserError of any rank inside the block on all of them; every rank enters it.

    Collectives inside the block must be reached by every rank or by none.
    """
    failure: str | None = None
    try:
        yield
    except UserError as error:
        failure = str(error)
    failures = gather_objects(failure)
    for number, text in enumerate(failures):
        if text is not None:
            raise SharedError(text if len(set(failures)) == 1 else f"rank {number}: {text}")


def barrier() -> None:
    """Wait for every other rank."""
    if active():
        gather_objects(None)


def all_sum(x: Tensor) -> Tensor:
    """Return the sum over ranks, on every rank; `x` is left alone."""
    x = x.clone()
    if active():
        td.all_reduce(x)
    return x


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return all_sum(x)

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> Tensor:
        return all_sum(gradient[0])


def sum_with_gradient(x: Tensor) -> Tensor:
    """Sum over ranks, on every rank, for sums that the losses of all ranks read: their gradients are added up."""
    return _Sum.apply(x) if active() else x


def all_mean(x: Tensor) -> Tensor:
    """Return the mean over ranks, on every rank; `x` is left alone."""
    return all_sum(x) / world()


def all_rows(x: Tensor, group: Group | None = None) -> Tensor:
    """Map [n_r, ...] of each rank r -> [sum n_r, ...] on every rank, in rank order; n may differ between ranks."""
    if not active():
        return x
    lengths = gather_objects(len(x), group)
    longest = max(lengths)
    padded = torch.zeros((longest, *x.shape[1:]), dtype=x.dtype, device=x.device)
    padded[: len(x)] = x
    parts = [torch.empty_like(padded) for _ in lengths]
    td.all_gather(parts, padded, group)
    return torch.cat([part[:n] for part, n in zip(parts, lengths, strict=True)])


def whole_batch(x: Tensor) -> Tensor:
    """Map [b, ...] of each rank, b the same on all -> [world * b, ...] on every rank, in rank order.

    For losses that read the batch as a whole, and that every rank works out from all of it. The gradient goes to this
    rank's rows alone, times the number of ranks: DDP's mean over ranks makes of it the gradient of that one loss.
    """
    if not active():
        return x
    parts = [torch.empty_like(x) for _ in range(world())]
    td.all_gather(parts, x.detach().contiguous())
    if x.requires_grad:
        parts[rank()] = x.detach() + world() * (x - x.detach())
    return torch.cat(parts)


def own_rows(x: Tensor) -> Tensor:
    """Map [world * b, ...] -> [b, ...]: this rank's rows of a whole batch."""
    return x.chunk(world())[rank()]


def gather_objects(x: T, group: Group | None = None) -> list[T]:
    """Return every rank's object, in rank order, on every rank (of the group). For small things outside the step."""
    if not active():
        return [x]
    out: list[T] = [x] * td.get_world_size(group)
    td.all_gather_object(out, x, group)
    return out


def from_main(x: T) -> T:
    """Return rank 0's object, on every rank."""
    if not active():
        return x
    box = [x]
    td.broadcast_object_list(box, src=0)
    return box[0]


def average_buffers(module: nn.Module) -> None:
    """Give every rank the mean of the floating-point buffers (BatchNorm's running statistics)."""
    if not active():
        return
    buffers = [b for b in module.buffers() if b.is_floating_point()]
    if not buffers:
        return
    flat = all_mean(torch.cat([b.detach().reshape(-1).float() for b in buffers]))
    for buffer, part in zip(buffers, torch.split(flat, [b.numel() for b in buffers]), strict=True):
        buffer.copy_(part.view_as(buffer))
