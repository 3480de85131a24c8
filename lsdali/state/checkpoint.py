"""Checkpoints: one file of named parts, written atomically, read without running code; the newest whole one counts.

File: a dict {format, recipe, classes, data, teachers, step, steps, parts} saved by torch. `recipe` is the resolved
recipe, `data` the fingerprint of the training set, `teachers` the digests of the teachers' weights, `parts` the state
of each named part.
"""

import os
import zipfile
import zlib
from collections.abc import Callable, Mapping
from io import FileIO
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lsdali import dist
from lsdali.disk import in_words, refused
from lsdali.errors import SharedError, UserError
from lsdali.state.background import Background, snapshot
from lsdali.state.foreign import read_torch, refusal
from lsdali.state.memory import SampleMemory
from lsdali.state.upgrade import upgraded

FORMAT = 1
ROWS = ("method",)  # not looked through before a save: a memory may have gigabytes, and only finite rows enter it
CHECKPOINT_KEYS = {"format", "recipe", "classes", "data", "teachers", "step", "steps", "parts"}


class Stateful(Protocol):
    """A part of a run. `state_dict` is called on every rank and gives every rank the same answer."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any], /) -> Any: ...


def fault(path: Path) -> str | None:
    """What is wrong with a checkpoint file, in a few words; None where it is whole."""
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
        if bad is not None:
            return f"damaged at {bad}"
        content = read_torch(path, mmap=True)
    except (zipfile.BadZipFile, zlib.error, EOFError):
        return "not whole: cut off or overwritten"
    except Exception as error:
        return f"unreadable: {refusal(error)}"
    if not isinstance(content, dict) or not content.keys() >= CHECKPOINT_KEYS:
        return "not a checkpoint of lsdali"
    if content["format"] != FORMAT:
        return f"of format {content['format']}, and this version reads {FORMAT}"
    return None


def read(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, tensors on the host and mapped from the file."""
    content: dict[str, Any] = read_torch(path, mmap=True)
    return {**content, "recipe": upgraded(content["recipe"])}


class Checkpoints:
    """The checkpoint folder of one run: `step-<n>.pt`, the newest `keep` of them, and `best.pt`.

    Only rank 0 writes, in a thread; the folder must be one that every rank can read.
    """

    def __init__(self, folder: Path, keep: int, log: Callable[[str], None]) -> None:
        self.folder, self.keep, self.log = folder, keep, log
        self._writer = Background()

    def files(self) -> list[Path]:
        """Step checkpoints, oldest first."""
        return sorted(self.folder.glob("step-*.pt"))

    def newest(self) -> dict[str, Any] | None:
        """The content of the newest whole checkpoint, the same on every rank; what is skipped is said."""
        self._writer.finish()
        chosen: Path | None = None
        if dist.is_main():
            for path in reversed(self.files()):
                wrong = fault(path)
                if wrong is None:
                    chosen = path
                    break
                aside = path.replace(path.with_name(path.name + ".bad"))
                self.log(f"checkpoint {path} is {wrong}; it is set aside as {aside.name}")
        chosen = dist.from_main(chosen)
        if chosen is None:
            return None
        if not chosen.is_file():
            raise UserError(
                f"checkpoint {chosen} is seen by rank 0 alone: run_dir must be a folder that every node shares"
            )
        return read(chosen)

    def save(
        self,
        parts: Mapping[str, Stateful],
        header: Mapping[str, Any],
        *,
        best: bool,
        memory: SampleMemory | None = None,
    ) -> None:
        """Take the state for step-<n>.pt, also best.pt where it is the best so far, and let rank 0's thread write it.

        Every rank must call this. The rows of `memory`, which is one of the parts' own, are written from where they
        are; all else is copied, once the checkpoint before is on disk.

        Raises:
            SharedError: a number is not finite.
            UserError: the checkpoint before could not be written, on rank 0.
        """
        self._writer.finish()
        states = {name: part.state_dict() for name, part in parts.items()}
        refuse_infinite({name: state for name, state in states.items() if name not in ROWS}, header["step"])
        rows = [] if memory is None else memory.hold()
        if not dist.is_main():
            return
        copy, ready = snapshot(states, rows)

        def work() -> None:
            try:
                ready()
                self._write({"format": FORMAT, **header, "parts": copy}, best=best)
            finally:
                if memory is not None:
                    memory.release()

        self._writer.start(work)

    def check(self) -> None:
        """Raise UserError on rank 0 if a checkpoint could not be written."""
        self._writer.check()

    def wait(self) -> None:
        """Let the checkpoint that is being written come to its end."""
        self._writer.wait()

    def finish(self) -> None:
        """Return when what was saved is on disk; a collective. Raises UserError on rank 0 if it could not be."""
        self._writer.finish()
        dist.barrier()

    def _write(self, content: dict[str, Any], *, best: bool) -> None:
        path = self.folder / f"step-{content['step']:010d}.pt"
        part = self.folder / f".{path.name}.{os.getpid()}.part"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for stale in self.folder.glob(".*.part"):
                stale.unlink()
            write_synced(content, part)
            part.replace(path)
            if best:
                part.unlink(missing_ok=True)
                link(path, part)
                part.replace(self.folder / "best.pt")
            sync_folder(self.folder)
        except OSError as error:
            part.unlink(missing_ok=True)
            whole = [str(p) for p in self.files()[-1:]]
            kept = f"{whole[0]} is whole and stays" if whole else "nothing was saved before"
            raise UserError(refused(path, error, f"it needs {in_words(size_of(content))}; {kept}")) from error
        for old in self.files()[: -self.keep]:
            old.unlink()


class Target:
    """A new file as torch.save writes to it; it keeps the error of the disk, of which torch's own tells nothing."""

    def __init__(self, file: FileIO) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        left = memoryview(data)
        try:
            while left:
                left = left[self.file.write(left) :]
        except OSError as error:
            self.error = error
            raise
        return len(data)

    def flush(self) -> None: ...


def write_synced(content: Mapping[str, Any], path: Path) -> None:
    """Save to a new file that is on disk when this returns. Raises OSError."""
    with FileIO(path, "w") as file:
        target = Target(file)
        try:
            torch.save(content, target)  # type: ignore[arg-type]
        except Exception as error:
            raise target.error or error from None
        os.fsync(file.fileno())


def size_of(state: Any) -> int:
    """Return the bytes of all tensors in a state."""
    return sum(x.nbytes for x in tree_leaves(state) if isinstance(x, Tensor))


def refuse_infinite(states: Mapping[str, Any], step: int) -> None:
    """Raises SharedError where a number is not finite; states are the same on every rank."""
    for name, state in states.items():
        numbers = [x for x in tree_leaves(state) if isinstance(x, Tensor) and x.is_floating_point() and x.numel()]
        if not all(bool(low.isfinite() & high.isfinite()) for low, high in (x.aminmax() for x in numbers)):
            raise SharedError(
                f"the state of the {name} is not finite at step {step}, so no checkpoint of it is written: "
                "training has diverged; lower optimizer.lr or add schedule.warmup_epochs"
            )


def link(source: Path, target: Path) -> None:
    """A second name for a file, or a copy where the file system knows no links."""
    try:
        os.link(source, target)
    except OSError:
        target.write_bytes(source.read_bytes())


def sync_folder(folder: Path) -> None:
    """Make renames in a folder last through a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def restore(parts: Mapping[str, Stateful], states: Mapping[str, Any]) -> None:
    """Give each part its state back.

    Raises:
        UserError: the checkpoint has other parts than this run.
    """
    if parts.keys() != states.keys():
        raise UserError(
            f"the checkpoint holds the parts {', '.join(sorted(states))}, but this run has {', '.join(sorted(parts))}: "
            "start it in another run_dir"
        )
    for name, part in parts.items():
        part.load_state_dict(states[name])
