"""Checkpoints: atomic, read without running code, the newest whole one counts, and nothing is lost."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from lsdali.errors import UserError
from lsdali.state import checkpoint
from lsdali.state.checkpoint import Checkpoints
from lsdali.state.restore import restore


class Part:
    def __init__(self, value: float = 0.0) -> None:
        self.value = torch.full((1000,), value)

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = state["value"].clone()


def save(folder: Path, step: int, *, keep: int = 2, best: bool = False, said: list[str] | None = None) -> Checkpoints:
    checkpoints = Checkpoints(folder, keep, (said if said is not None else []).append)
    header = {"recipe": {"seed": 1}, "classes": 3, "data": "abc", "teachers": [], "step": step, "steps": 100}
    checkpoints.save({"part": Part(float(step))}, header, best=best)
    checkpoints.finish()
    return checkpoints


def test_the_newest_and_the_best_stay(tmp_path: Path) -> None:
    for step in (1, 2, 3, 10, 11):
        checkpoints = save(tmp_path, step, best=step in (1, 3))
    assert [p.name for p in sorted(tmp_path.iterdir())] == [
        "best.pt",
        "step-0000000010.pt",
        "step-0000000011.pt",
    ]
    content = checkpoints.newest()
    assert content is not None
    part = Part()
    restore({"part": part}, content["parts"])
    assert part.value[0] == 11
    assert checkpoint.read(tmp_path / "best.pt")["step"] == 3


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "text", "foreign", "code"])
def test_a_damaged_or_foreign_file_is_named_and_the_one_before_is_used(tmp_path: Path, damage: str) -> None:
    said: list[str] = []
    save(tmp_path, 1)
    checkpoints = save(tmp_path, 2, said=said)
    path = tmp_path / "step-0000000002.pt"
    data = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        data[data.index(b"\x00\x00\x00\x40" * 8)] ^= 1  # inside the tensor of 2.0
        path.write_bytes(data)
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "text":
        path.write_text("not a checkpoint")
    elif damage == "foreign":
        torch.save({"state_dict": {}}, path)
    else:
        torch.save({"format": 1, "evil": Evil(tmp_path / "ran")}, path)
    content = checkpoints.newest()
    assert content is not None
    assert content["step"] == 1
    assert len(said) == 1
    assert str(path) in said[0]
    assert (tmp_path / "step-0000000002.pt.bad").exists()
    assert not (tmp_path / "ran").exists()


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


def test_the_evil_file_above_would_run_code_if_it_were_unpickled(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Evil(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


def test_a_write_that_fails_leaves_the_last_whole_one_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(
        UserError,
        match=r"cannot write .*step-0000000002.pt: .*No space left.*step-0000000001.pt is whole",
    ):
        save(tmp_path, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["step-0000000001.pt"]


def test_leftovers_of_a_killed_write_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".step-0000000001.pt.77.part").write_bytes(b"half")
    save(tmp_path, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["step-0000000002.pt"]


def test_other_parts_are_refused_by_name(tmp_path: Path) -> None:
    content = save(tmp_path, 1).newest()
    assert content is not None
    with pytest.raises(UserError, match="holds the parts part, but this run has ema, part"):
        restore({"part": Part(), "ema": Part()}, content["parts"])
