"""Saving beside training: what is written is the state at the save, whatever happens to the thread or the process."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lsdali import dist
from lsdali.errors import UserError
from lsdali.state import checkpoint
from lsdali.state.checkpoint import Checkpoints, read
from lsdali.state.memory import Layout, SampleMemory
from lsdali.train import main
from tests.forks import run_forked, run_script
from tests.harness import equal, make_images, summary, tiny
from tests.ranks import OnRanks

HEADER = {"recipe": {"seed": 1}, "classes": 3, "data": "abc", "teachers": [], "steps": 100}


class Part:
    """Numbers, a view of more numbers, and a record."""

    def __init__(self) -> None:
        self.numbers = torch.arange(6.0).reshape(1, 2, 1, 3).contiguous(memory_format=torch.channels_last)
        self.record: dict[str, Any] = {"best": [1, {"top1": 2.5}]}

    def state_dict(self) -> dict[str, Any]:
        return {"numbers": self.numbers, "part": self.numbers[:, 1], "record": self.record}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Gate:
    """Keeps writing back until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened, self.writing = threading.Event(), 0
        inner: Callable[..., None] = checkpoint.write_synced

        def waiting(*args: Any) -> None:
            self.writing += 1
            assert self.opened.wait(30)
            inner(*args)
            self.writing -= 1

        monkeypatch.setattr(checkpoint, "write_synced", waiting)


def test_what_is_written_is_the_state_at_the_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    checkpoints, part = Checkpoints(tmp_path, 2, print), Part()
    checkpoints.save({"part": part}, {**HEADER, "step": 1}, best=False)
    assert not list(tmp_path.glob("step-*.pt"))
    before = part.numbers.clone()
    part.numbers.zero_()
    part.record["best"][1]["top1"] = 9.0
    gate.opened.set()
    checkpoints.finish()
    state = read(tmp_path / "step-0000000001.pt")["parts"]["part"]
    assert equal(state, {"numbers": before, "part": before[:, 1], "record": {"best": [1, {"top1": 2.5}]}})
    assert state["numbers"].stride() == before.stride()


def test_a_copy_is_made_when_the_one_before_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    checkpoints = Checkpoints(tmp_path, 9, print)
    inner = checkpoint.snapshot
    writing: list[int] = []
    monkeypatch.setattr(checkpoint, "snapshot", lambda *args: (writing.append(gate.writing), inner(*args))[1])
    checkpoints.save({"part": Part()}, {**HEADER, "step": 1}, best=False)
    threading.Timer(0.2, gate.opened.set).start()
    for step in (2, 3):
        checkpoints.save({"part": Part()}, {**HEADER, "step": step}, best=False)
    checkpoints.finish()
    assert writing == [0, 0, 0]
    assert len(checkpoints.files()) == 3


@pytest.mark.parametrize("told_by", ["check", "finish", "newest", "save"])
def test_an_error_of_the_thread_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told_by: str) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    checkpoints = Checkpoints(tmp_path, 2, print)
    save: Callable[[], None] = lambda: checkpoints.save({"part": Part()}, {**HEADER, "step": 1}, best=False)  # noqa: E731
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.os, "fsync", full)
        save()
        checkpoints.wait()
    told = {"check": checkpoints.check, "finish": checkpoints.finish, "newest": checkpoints.newest, "save": save}
    with pytest.raises(UserError, match=r"cannot write .*No space left on device.*nothing was saved before"):
        told[told_by]()
    save()
    checkpoints.finish()
    assert [file.name for file in tmp_path.iterdir()] == ["step-0000000001.pt"]


def check_held_rows(folder: Path) -> None:
    """Every rank writes rows while rank 0's thread has not begun to read them."""
    samples, each = 12, 12 // dist.world()
    memory = SampleMemory(samples * 8, Layout("dense32", 4), torch.device("cpu"))
    memory.open()
    mine = torch.arange(each) + each * dist.rank()
    memory.write(mine, torch.full((each, 4), 1.0))
    with pytest.MonkeyPatch.context() as patch:
        gate = Gate(patch)
        checkpoints = Checkpoints(folder, 2, print)
        checkpoints.save({"method": memory}, {**HEADER, "step": 1}, best=False, memory=memory)
        memory.write(mine, torch.full((each, 4), 2.0))
        memory.write(mine + samples, torch.full((each, 4), 3.0), torch.arange(each) > 0)
        dist.barrier()
        assert memory.tables["shares"].sum() == samples * 4, "a held table has changed"
        threading.Timer(0.2, gate.opened.set).start()
        memory.sync()
        assert memory.tables["shares"][:samples].eq(2).all()
        assert memory.tables["shares"].sum() == samples * 8 + (samples - dist.world()) * 12
        assert memory.seen.sum() == 2 * samples - dist.world()
        checkpoints.finish()
    saved = read(folder / "step-0000000001.pt")["parts"]["method"]
    assert saved["shares"][:samples].eq(1).all()
    assert saved["shares"].sum() == samples * 4
    assert saved["seen"].sum() == samples
    memory.write(mine, torch.full((each, 4), 5.0))
    assert memory.tables["shares"][mine].eq(5).all(), "rows wait no longer"
    dist.barrier()


def test_rows_are_written_from_where_they_are(tmp_path: Path) -> None:
    check_held_rows(tmp_path)


@pytest.mark.ranks
def test_rows_of_every_rank_wait_for_the_thread(tmp_path: Path, on_ranks: OnRanks) -> None:
    on_ranks(2, check_held_rows, tmp_path)


def test_rows_that_wait_take_a_part_of_the_tables_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = SampleMemory(40, Layout("dense32", 4), torch.device("cpu"))
    memory.open()
    memory.hold()
    for start in (0, 5):
        memory.write(torch.arange(start, start + 5), torch.ones(5, 4))
    assert memory.seen.sum() == 0
    threading.Timer(0.1, memory.release).start()
    memory.write(torch.arange(10, 15), torch.ones(5, 4))
    assert memory.held[0] == 0, "the third batch would be more than a quarter of 40 rows, and waits"
    assert memory.seen.sum() == 15


KILLED = """
import os, signal, sys, time
from lsdali.state import archive, checkpoint
from lsdali.train import main
from lsdali.trainer import Trainer

owner, name, saves, calls = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
steps, counts, inner = [0], [0, 0], Trainer.step

def step(self, batch):
    steps[0] += 1
    return inner(self, batch)

def written(self, content, *, best):
    counts[0], counts[1] = counts[0] + 1, 0
    return write(self, content, best=best)

def killed(*args):
    counts[1] += 1
    if (counts[0], counts[1]) == (saves, calls):
        begun, end = steps[0], time.monotonic() + 5
        while steps[0] < begun + 2 and time.monotonic() < end:  # training goes on, if it does not wait to save again
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args)

write, Trainer.step, checkpoint.Checkpoints._write = checkpoint.Checkpoints._write, step, written
owner = getattr(archive, owner) if owner else checkpoint
real = getattr(owner, name)
setattr(owner, name, killed)
main(sys.argv[5:])
"""
MOMENTS = [("Target", "write", 2, 9), ("", "sync_folder", 1, 1), ("os", "fsync", 3, 1)]
"""In mid-file, after the renaming, before the file is synced: a function, and at which call in which save."""


def test_a_run_killed_while_its_thread_writes_goes_on_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread kills the process after two more steps: a writer that is slow, and that no step waits for."""
    monkeypatch.setenv("LSDALI_CACHE", str(tmp_path / "cache"))
    method = {"name": "pskd", "history": "dense16"}
    images = make_images(tmp_path / "images")
    tree = tiny(method, images, tmp_path / "run", batch=4, epochs=3, save={"every_steps": 3}, ema={"decay": 0.5})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree))
    steps = []
    for moment in MOMENTS:
        done = run_forked(0, run_script, KILLED, *map(str, moment), str(tmp_path / "recipe.yaml"))
        assert done.returncode == -9, done.stdout + done.stderr
        newest = Checkpoints(tmp_path / "run/checkpoints", 2, print).newest()
        assert newest is not None
        steps.append(newest["step"])
    assert steps == [3, 6, 10], "the saves of steps 6 and 12 were cut off, that of step 6 has its name the second time"
    assert not list((tmp_path / "run").rglob("*.bad")), "no file under its own name was damaged"
    assert main([str(tmp_path / "recipe.yaml")]) == 0
    assert not list((tmp_path / "run").rglob("*.part"))
    assert main([str(tmp_path / "recipe.yaml"), f"run_dir={tmp_path}/unbroken"]) == 0
    broken, whole = summary(tmp_path / "run"), summary(tmp_path / "unbroken")
    assert broken["digest"] == whole["digest"]
    assert broken["ema"] == whole["ema"]
    states = [read(tmp_path / name / "checkpoints/step-0000000030.pt")["parts"] for name in ("run", "unbroken")]
    assert equal(states[0]["method"], states[1]["method"])
