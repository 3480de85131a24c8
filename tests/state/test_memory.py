"""The memory of samples: one copy per node, the same rows on every node, no room that is not asked for."""

import os
import resource
from pathlib import Path

import pytest
import torch

from lsdali import dist
from lsdali.errors import UserError
from lsdali.state import memory as memory_module
from lsdali.state import shared
from lsdali.state.memory import Layout, SampleMemory

CPU = torch.device("cpu")
N, K = 23, 6
FORMS = [Layout("dense32", K), Layout("dense16", K), Layout("topk", K, 2)]


def opened(layout, samples=N):
    memory = SampleMemory(samples, layout, CPU)
    memory.open()
    return memory


def row(epoch, sample):
    """A row that tells who wrote it when."""
    weights = torch.arange(1.0, K + 1).roll(sample)
    weights[sample % K] += 10 * (epoch + 1) + sample
    return weights / weights.sum()


def rows(epoch, index):
    return torch.stack([row(epoch, int(i)) for i in index])


@pytest.mark.parametrize("layout", FORMS, ids=lambda x: x.form)
def test_reads_what_was_written(layout):
    memory, index = opened(layout), torch.tensor([7, 0, 22])
    _, known = memory.read(index)
    assert not known.any()
    memory.write(index[:2], rows(0, index[:2]))
    found, known = memory.read(index)
    assert known.tolist() == [True, True, False]
    expected = layout.unpack(layout.pack(rows(0, index[:2])))
    assert torch.equal(found[:2], expected)
    assert found.dtype == torch.float32
    _, known = memory.read(index, torch.tensor([True, False, True]))
    assert known.tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("layout", "least", "most"),
    [
        (Layout("dense32", 1000), 5_124_668_000, 5.2e9),  # what published code takes in each process
        (Layout("dense16", 1000), 2_562_334_000, 2.6e9),
        (Layout("topk", 1000, 16), 81_994_688, 150e6),
    ],
    ids=lambda x: x.form if isinstance(x, Layout) else "",
)
def test_size_for_imagenet(layout, least, most, monkeypatch):
    """The table is mapped in full; its pages take memory when they are touched."""
    monkeypatch.setattr(shared, "free_bytes", lambda: 2**40)
    memory = opened(layout, 1_281_167)
    size = sum(table.untyped_storage().nbytes() for table in (*memory.tables.values(), memory.seen, memory.fresh))
    assert least <= size <= most
    memory.write(torch.tensor([1_281_166]), torch.full((1, 1000), 1e-3))
    assert memory.read(torch.tensor([1_281_166]))[1].all()


def test_a_checkpoint_is_as_large_as_the_memory(tmp_path):
    memory = opened(Layout("dense16", K), 10_000)
    torch.save(memory.state_dict(), tmp_path / "memory.pt")
    size = (tmp_path / "memory.pt").stat().st_size
    assert 10_000 * (2 * K + 1) <= size < 10_000 * (2 * K + 1) + 4096


def test_too_little_memory_is_said_before_it_is_taken(monkeypatch):
    monkeypatch.setattr(shared, "free_bytes", lambda: 2_000_000)
    with pytest.raises(UserError) as caught:
        opened(Layout("dense16", 1000), 10_000)
    assert str(caught.value) == (
        "a memory of 10000 samples (dense16) needs 0.02 GB on each node, and 0.00 GB are free: choose a smaller form"
    )


def test_a_system_that_refuses_says_why():
    least, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, most))
    try:
        with pytest.raises(UserError) as caught:
            shared.made(10_000_000, "a memory")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (least, most))
    assert str(caught.value) == "a memory needs 0.01 GB of shared memory: File too large"
    with pytest.raises(UserError) as caught:
        shared.mapped("/proc/self/fd/99999", 8, "a memory")
    assert str(caught.value) == (
        "a memory: rank 0 cannot map the memory of its node's first rank: No such file or directory"
    )


def test_the_memory_of_a_container_is_what_its_limit_leaves(tmp_path):
    """Control groups of both versions, the limit in an outer group, file cache free; no limit, no number."""
    for folder, limit, usage, stat in (
        (tmp_path / "a", "memory.max", "memory.current", "anon 5\nactive_file 30\ninactive_file 70\n"),
        (tmp_path / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "active_file 1\ntotal_active_file 5\n"),
    ):
        folder.mkdir()
        (folder / limit).write_text("1000\n")
        (folder / usage).write_text("600\n")
        (folder / "memory.stat").write_text(stat)
    (tmp_path / "a/b").mkdir()
    (tmp_path / "a/b/memory.max").write_text("max\n")
    assert list(shared.left_by_groups(tmp_path, "7:cpu,memory:/not/mounted\n2:cpu:/\n0::/a/b\n")) == [405, 500]


# ---- several processes

EPOCHS, BATCH = 3, 8


def order(epoch):
    """Who is read in an epoch: other samples each time, other ranks each time, and a tail left out."""
    generator = torch.Generator().manual_seed(epoch)
    return torch.randperm(N, generator=generator)[: N // BATCH * BATCH].view(-1, BATCH)


def train(memory, rank, ranks, epochs, stop=None, after=0):
    """What one rank does, checking every row that it reads; `stop` steps of the last epoch, from step `after`."""
    last: dict[int, int] = {}
    for epoch in range(max(epochs) + 1):
        steps = order(epoch)[: stop if epoch == max(epochs) else None]
        for step, samples in enumerate(steps):
            mine = samples.view(ranks, -1)[rank]
            if epoch in epochs and not (epoch == min(epochs) and step < after):
                found, known = memory.read(mine)
                assert known.tolist() == [int(i) in last for i in mine]
                for i, x in zip(mine.tolist(), found):
                    if i in last:
                        assert torch.equal(x, memory.layout.unpack(memory.layout.pack(row(last[i], i)[None]))[0])
                memory.write(mine, rows(epoch, mine))
        for i in steps.flatten().tolist():
            last[i] = epoch
        if epoch in epochs and not (epoch == max(epochs) and stop is not None):
            memory.sync()


def set_nodes(per_node):
    """Let this rank believe that each node has so many."""
    os.environ.update(LOCAL_RANK=str(dist.rank() % per_node), LOCAL_WORLD_SIZE=str(per_node))


def mapped_files():
    """The anonymous files that this process maps, by device and inode."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {tuple(line.split()[3:5]) for line in lines if "memfd:lsdali" in line}


def train_and_save(per_node, folder):
    set_nodes(per_node)
    rank, ranks = dist.rank(), dist.world()
    for layout in FORMS:
        memory = opened(layout)
        train(memory, rank, ranks, range(EPOCHS))
        state = memory.state_dict()
        for other in dist.gather_objects(state):
            assert all(torch.equal(state[name], other[name]) for name in state), "nodes differ"
        # one copy per node, and no more
        copies = dist.gather_objects(mapped_files())
        for number, copy in enumerate(copies):
            assert len(copy) == 1
            assert (copy == copies[rank]) == (number // per_node == rank // per_node)
        # saved in mid-epoch, before the nodes have met
        memory = opened(layout)
        train(memory, rank, ranks, range(2), stop=1)
        saved = memory.state_dict()
        if rank == 0:
            torch.save(saved, folder / f"{layout.form}.pt")
        dist.barrier()
        del memory, state, saved


def resume(per_node, folder):
    if dist.active():
        set_nodes(per_node)
    for layout in FORMS:
        memory = opened(layout)
        memory.load_state_dict(torch.load(folder / f"{layout.form}.pt", weights_only=True, mmap=True))
        train(memory, dist.rank(), dist.world(), range(1, EPOCHS), after=1)
        torch.save(memory.state_dict(), folder / f"{layout.form}-{dist.world()}.pt")
        dist.barrier()


@pytest.mark.ranks
@pytest.mark.parametrize(("ranks", "per_node"), [(2, 2), (2, 1), (4, 2)])
def test_ranks_and_nodes_agree(ranks, per_node, tmp_path, on_ranks):
    """Each epoch other ranks read a sample; every row read is that of the epoch in which it was last seen.

    The run is then saved in mid-epoch and goes on, on one rank and on four of two nodes, to the same rows.
    """
    on_ranks(ranks, train_and_save, per_node, tmp_path)
    resume(1, tmp_path)
    on_ranks(4, resume, 2, tmp_path)
    for layout in FORMS:
        one, four = (torch.load(tmp_path / f"{layout.form}-{others}.pt") for others in (1, 4))
        assert all(torch.equal(one[name], four[name]) for name in one)


@pytest.mark.ranks
def test_rows_go_between_nodes_in_pieces(tmp_path, on_ranks):
    """With pieces of a few rows the nodes still end with the same memory."""
    on_ranks(2, train_in_pieces, tmp_path)


def train_in_pieces(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory_module, "EXCHANGE_BYTES", 200)
        train_and_save(1, folder)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("layout", FORMS, ids=lambda x: x.form)
def test_a_gpu_is_never_waited_for(layout):
    """The same rows as on the CPU, and no synchronisation in `read` or `write`."""
    device = torch.device("cuda", 0)
    there, here = SampleMemory(N, layout, device), opened(layout)
    there.open()
    for epoch in range(2):
        for samples in order(epoch):
            values, keep = rows(epoch, samples), samples % 5 != 0
            on_device = values.to(device)
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
            try:
                found, known = there.read(samples, keep)
                there.write(samples, on_device, keep)
            finally:
                torch.cuda.set_sync_debug_mode("default")
            expected, known_here = here.read(samples, keep)
            here.write(samples, values, keep)
            assert torch.equal(known.cpu(), known_here)
            torch.testing.assert_close(found.cpu(), expected, rtol=1e-6, atol=0)
        there.sync()
        here.sync()
    assert all(torch.equal(a, b) for a, b in zip(there.state_dict().values(), here.state_dict().values()))
