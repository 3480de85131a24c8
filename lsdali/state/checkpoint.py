"""Checkpoints: one file of named parts, written atomically, read without running code; the newest whole one counts.

File: a dict {format, recipe, classes, data, teachers, step, steps, parts} saved by torch. `recipe` is the resolved
recipe, `data` the fingerprint of the training set, `teachers` the digests of the teachers' weights, `parts` the state
of each named part.
"""

import os
import re
import stat
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor
from torch.utils._pytree import tree_leaves

from lsdali import dist
from lsdali.disk import in_words, refuse_other, refused
from lsdali.errors import SharedError, UserError, first_line
from lsdali.state.archive import link, size_of, sync_folder, write_synced
from lsdali.state.background import Background, snapshot
from lsdali.state.foreign import read_torch, refusal, starts_as_old_torch
from lsdali.state.memory import SampleMemory
from lsdali.state.upgrade import upgraded

CHECKPOINT_FORMAT = 1
ROWS = ("method",)  # not looked through before a save: a memory may have gigabytes, and only finite rows enter it
STEP_FILE = re.compile(r"step-[0-9]{10,}\.pt")
CHECKPOINT_KEYS = {"format", "recipe", "classes", "data", "teachers", "step", "steps", "parts"}


class Stateful(Protocol):
    """A part of a run. `state_dict` is called on every rank and gives every rank the same answer."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any], /) -> Any: ...


FOREIGN = "not a checkpoint of lsdali"


def fault(path: Path) -> str | None:
    """Return what is wrong with a checkpoint file, in a few words; None if it is whole."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return "no file but a folder, a pipe or a device"
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
        if bad is not None:
            return f"damaged at {bad}"
        content = read_torch(path, mmap=True)
    except (zipfile.BadZipFile, zlib.error, EOFError):
        return FOREIGN if starts_as_old_torch(path) else "not whole: cut off or overwritten"
    except Exception as error:
        return f"unreadable: {refusal(error)}"
    if not isinstance(content, dict) or not content.keys() >= CHECKPOINT_KEYS:
        return FOREIGN
    if content["format"] != CHECKPOINT_FORMAT:
        return f"of format {content['format']}, and this version reads {CHECKPOINT_FORMAT}"
    return None


def read(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint, tensors on the host and mapped from the file."""
    content: dict[str, Any] = read_torch(path, mmap=True)
    return {**content, "recipe": upgraded(content["recipe"])}


def nothing_wrong(content: Mapping[str, Any]) -> None:
    """Check nothing."""


class Checkpoints:
    """The checkpoint folder of one run: `step-<n>.pt`, the newest `keep` of them, and `best.pt`.

    Only rank 0 writes, in a thread; the folder must be one that every rank can read. `guard` raises if the run
    folder is not what it was; it is called before anything is written.
    """

    def __init__(
        self, folder: Path, keep: int, log: Callable[[str], None], guard: Callable[[], None] = lambda: None
    ) -> None:
        self.folder, self.keep, self.log, self.guard = folder, keep, log, guard
        self._writer = Background()
        self.unfit: dict[Path, str] = {}  # files that are whole, and what in them does not fit this run

    def files(self) -> list[Path]:
        """Return the step checkpoints, oldest first."""
        return sorted(path for path in self.folder.glob("step-*.pt") if STEP_FILE.fullmatch(path.name))

    def newest(self, wrong: Callable[[Mapping[str, Any]], str | None] = nothing_wrong) -> dict[str, Any] | None:
        """Return the content of the newest whole checkpoint, the same on every rank; what is skipped is said.

        `wrong` tells in a few words what in a content cannot be right.
        Raises SharedError if nothing is left but such as that.
        """
        self._writer.finish()
        with dist.raise_together():
            chosen = self._newest(wrong) if dist.is_main() else None
        chosen = dist.from_main(chosen)
        if chosen is None:
            return None
        with dist.raise_together():
            if not chosen.is_file():
                raise UserError(
                    f"checkpoint {chosen} is seen by rank 0 alone: run_dir must be a folder that every node shares"
                )
        return read(chosen)

    def _newest(self, wrong: Callable[[Mapping[str, Any]], str | None]) -> Path | None:
        for path in reversed([path for path in self.files() if path not in self.unfit]):
            if (damage := fault(path)) is not None:
                self._set_aside(path, damage)
                continue
            try:
                found = wrong(read(path))
            except Exception as error:  # whatever a strange content leads to
                found = f"wrong inside: it cannot be understood ({type(error).__name__}: {first_line(error)})"
            if found is None:
                return path
            self.unfit[path] = found
        if self.unfit:
            each = "; ".join(f"{path.name} is {why}" for path, why in self.unfit.items())
            raise UserError(
                f"no checkpoint in {self.folder} can be continued from: {each}; put back one that can, or give another "
                "run_dir to begin anew"
            )
        return None

    def refuse_newest(self, why: str) -> None:
        """Let the next `newest` be an older one: the last one does not fit this run."""
        if dist.is_main():
            newest = next(path for path in reversed(self.files()) if path not in self.unfit)
            self.unfit[newest] = why

    def set_unfit_aside(self) -> None:
        """Rename what was found not to fit, now that an older one does."""
        for path, why in self.unfit.items():
            self._set_aside(path, why)
        self.unfit = {}

    def _set_aside(self, path: Path, why: str) -> None:
        try:
            aside = path.replace(path.with_name(path.name + ".bad"))
        except OSError as error:
            raise UserError(f"checkpoint {path} is {why}, and cannot be set aside: {error.strerror}") from None
        self.log(f"checkpoint {path} is {why}; it is set aside as {aside.name}")

    def save(
        self,
        parts: Mapping[str, Stateful],
        header: Mapping[str, Any],
        *,
        best: bool,
        memory: SampleMemory | None = None,
    ) -> None:
        """Take the state for step-<n>.pt, also best.pt if it is the best so far, and let rank 0's thread write it.

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
                self._write({"format": CHECKPOINT_FORMAT, **header, "parts": copy}, best=best)
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
        self.guard()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            refuse_other(self.folder, folder=True)
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


def refuse_infinite(states: Mapping[str, Any], step: int) -> None:
    """Raise SharedError if a number is not finite; states are the same on every rank."""
    for name, state in states.items():
        if not finite(state):
            raise SharedError(
                f"the state of the {name} is not finite at step {step}, so no checkpoint of it is written: "
                "training has diverged; lower optimizer.lr or add schedule.warmup_epochs"
            )


def finite(state: Any) -> bool:
    """Return whether every number of the tensors in a state is finite."""
    numbers = [x for x in tree_leaves(state) if isinstance(x, Tensor) and x.is_floating_point() and x.numel()]
    return all(bool(low.isfinite() & high.isfinite()) for low, high in (x.aminmax() for x in numbers))
