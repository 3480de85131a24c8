"""Making of a teacher cache: every sample's crop of every epoch is shown to the teacher once, by all ranks together."""

import fcntl
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from lsdali import dist
from lsdali.batch import Batch
from lsdali.data.io.cache import sync
from lsdali.data.pipeline.loaders import open_dataset, train_loader
from lsdali.data.pipeline.options import LoaderOptions
from lsdali.disk import NO_LINK, refused
from lsdali.errors import SharedError, Stopped, UserError
from lsdali.faults.pulse import Pulse
from lsdali.models.answer_rows import RowFormat, Values, divergence
from lsdali.models.checks import count_classes
from lsdali.models.teacher import Teacher
from lsdali.models.teacher_cache import AnswerFolder, read_contents, unlike_entries, write_rows
from lsdali.optim.precision import Precision
from lsdali.recipe import Recipe
from lsdali.recipe.teachers import answers_key, network_teacher
from lsdali.terminal import say

TOP = 32  # logits of a sample, where nothing else is asked for


@dataclass
class Tally:
    """How far what is kept lies from what the teacher said, over the samples of an epoch of this rank."""

    temperatures: tuple[float, ...]
    count: int = 0
    sums: dict[float, float] = field(default_factory=dict)
    most: dict[float, float] = field(default_factory=dict)

    def add(self, logits: Tensor, kept: Tensor) -> None:
        self.count += len(logits)
        for t in self.temperatures if len(logits) else ():
            off = divergence(logits, kept, t)
            self.sums[t] = self.sums.get(t, 0.0) + float(off.sum())
            self.most[t] = max(self.most.get(t, 0.0), float(off.max()))

    def of_all(self) -> dict[str, dict[str, float]]:
        """Return mean and maximum of the divergence at each temperature, over all ranks; a collective."""
        parts = dist.gather_objects((self.count, self.sums, self.most))
        count = max(sum(part[0] for part in parts), 1)
        return {
            f"{t:g}": {
                "mean": sum(part[1].get(t, 0.0) for part in parts) / count,
                "most": max(part[2].get(t, 0.0) for part in parts),
            }
            for t in self.temperatures
        }


@dataclass
class Making:
    """A folder of answers, and what it takes to fill it."""

    recipe: Recipe
    folder: AnswerFolder
    teacher: Teacher
    loader: Any
    precision: Precision
    device: torch.device
    losses: dict[str, Any]  # of each epoch that is there: the divergence by temperature

    @classmethod
    def prepare(cls, recipe: Recipe, top: str | None, values: Values | None, device: torch.device) -> "Making":
        """Open data, teacher and folder. Raises UserError if they do not fit each other, or what is there already."""
        precision = Precision(recipe.precision, device)
        train = open_dataset(recipe.data, "train", say)
        classes = count_classes(recipe.model.classes, train.classes, train.root)
        config = cast(Any, recipe.method).teacher
        teacher = network_teacher(recipe, config.model_copy(update={"temperature": 1.0}), train, classes, device)
        key = answers_key(recipe, config, train, teacher)
        path = Path(config.cache)
        there = read_contents(path)
        form = chosen_form(path, there, classes, top, values)
        folder = AnswerFolder(path, form, len(train), key)
        if there is not None and (different := unlike_entries(there["key"], key)):
            raise SharedError(
                f"{path} holds a teacher's answers to something else ({'; '.join(different)}): give another folder"
            )
        options = LoaderOptions(recipe.batches, recipe.seed, device, precision.half, "as_listed", say)
        loader = train_loader(train, recipe.data, options)
        return cls(recipe, folder, teacher, loader, precision, device, {} if there is None else dict(there["losses"]))

    def make(self, epochs: int, pulse: Pulse) -> None:
        """Compute the epochs that are missing; a collective.

        Raises Stopped after a signal, UserError if the folder cannot be written or another process fills it.
        """
        lock = -1
        with dist.raise_together():
            if dist.is_main():
                lock = self.begin()
        try:
            self.fill(epochs, pulse)
        finally:
            if lock >= 0:
                os.close(lock)

    def fill(self, epochs: int, pulse: Pulse) -> None:
        """Do what `make` does, in a folder that is there and held."""
        missing = dist.from_main([epoch for epoch in range(epochs) if not self.folder.has(epoch)])
        for epoch in missing:
            self.losses[str(epoch)] = self.epoch(epoch, pulse)
            if dist.is_main():
                self.write_contents()
                say(f"epoch {epoch + 1} of {epochs}: {told(self.losses[str(epoch)])}", flush=True)
        if dist.is_main() and not missing:
            say(f"{self.folder.path} has all of {epochs} epochs")

    def begin(self) -> int:
        """Make the folder and its description; return a lock that keeps other processes from filling it."""
        try:
            self.folder.path.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.folder.path / ".lock", os.O_RDWR | os.O_CREAT | NO_LINK, 0o666)
        except OSError as error:
            raise UserError(refused(self.folder.path, error, "give a folder that can be written")) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise UserError(f"another process is filling {self.folder.path}: wait for it") from None
        self.write_contents()
        return lock

    def write_contents(self) -> None:
        made_on = {"device": self.device.type, "batch": self.share(0)}
        self.folder.write_contents({"losses": self.losses, "made_on": made_on})

    def share(self, epoch: int) -> int:
        """Return the images of a forward pass of the teacher."""
        share = self.recipe.batches.at(epoch) // dist.world()
        return min(self.recipe.micro_batch or share, share)

    def epoch(self, epoch: int, pulse: Pulse) -> dict[str, dict[str, float]]:
        """Write the file of an epoch; return what it loses."""
        part = self.folder.file(epoch).with_suffix(".part")
        with dist.raise_together():
            if dist.is_main():
                self.allot(part)
        handle = -1
        with dist.raise_together():
            handle = self.opened(part)
        tally = Tally(tuple(dict.fromkeys((1.0, *self.temperatures()))))
        first = self.loader.steps_per_epoch.before(epoch)
        try:
            for number, batch in enumerate(self.loader.epoch(first)):
                if pulse.stops(first + number):
                    raise Stopped
                pulse.beat("asking the teacher")
                self.keep(handle, batch, self.place(epoch, number), tally)
            os.fsync(handle)
        except OSError as error:
            raise UserError(refused(part, error, "make room, and the same command goes on")) from error
        finally:
            os.close(handle)
        lost = tally.of_all()  # every rank has written
        if dist.is_main():
            part.replace(self.folder.file(epoch))
            sync(self.folder.path)
        return lost

    def allot(self, part: Path) -> None:
        """Make the file of an epoch with its whole room, so that a full disk is told at once."""
        try:
            part.unlink(missing_ok=True)
            handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            try:
                os.posix_fallocate(handle, 0, self.folder.epoch_bytes)
            finally:
                os.close(handle)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise UserError(refused(part, error, "make room, and the same command goes on")) from error

    def opened(self, part: Path) -> int:
        try:
            return os.open(part, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise UserError(
                f"{part} is not seen by every node ({error.strerror}): the folder of a cache that several nodes make "
                "must be one that all of them share"
            ) from error

    def place(self, epoch: int, number: int) -> int:
        """Return the first sample of this rank's share of a step."""
        batch = self.recipe.batches.at(epoch)
        return number * batch + dist.rank() * (batch // dist.world())

    @torch.no_grad()
    def keep(self, handle: int, batch: Batch, first: int, tally: Tally) -> None:
        """Write the answers to a batch: the samples from `first` on, the last of them perhaps several times."""
        count = max(min(len(batch), self.folder.samples - first), 0)
        size = self.share(0) if self.recipe.micro_batch else len(batch)
        with self.precision.autocast():
            parts = [self.teacher(batch.images[start : start + size]) for start in range(0, len(batch), size)]
        logits = torch.cat(parts)[:count]
        form = self.folder.form
        rows = form.pack(logits)
        good = np.ones(count, bool) if batch.stand_in is None else ~batch.stand_in.numpy()[:count]
        if not torch.isfinite(logits[torch.from_numpy(good)]).all():
            raise UserError(f"the teacher's answers to samples {first} to {first + count - 1} are not all finite")
        tally.add(logits[torch.from_numpy(good)], form.unpack(rows, logits.device)[torch.from_numpy(good)])
        form.erase(rows, ~good)
        write_rows(handle, form, first, rows)

    def temperatures(self) -> list[float]:
        """Return those at which the method reads the teacher."""
        own = getattr(self.recipe.method, "temperature", 1.0)
        return [own * cast(Any, self.recipe.method).teacher.temperature]


def chosen_form(
    path: Path, there: dict[str, Any] | None, classes: int, top: str | None, values: Values | None
) -> RowFormat:
    """Return how rows are kept: as in the folder if it has some, else as asked for.

    Raises SharedError if the folder keeps them otherwise than asked for.
    """
    keep = None if top is None else classes if top == "all" else min(int(top), classes)
    if there is None:
        return RowFormat(classes, keep or min(TOP, classes), values or "fp16")
    form = RowFormat(there["form"]["classes"], there["form"]["keep"], there["form"]["values"])
    if keep not in (None, form.keep) or values not in (None, form.values):
        raise SharedError(
            f"{path} keeps {form.keep} logits of {form.classes} in {form.values}: leave out --top and --values, or "
            "give another folder"
        )
    return form


def told(lost: dict[str, dict[str, float]]) -> str:
    """Return what a loss may be off by, in words."""
    each = (f"{off['mean']:.3g} (most {off['most']:.3g}) at T = {t}" for t, off in lost.items())
    return f"KL(teacher || kept), nats: {', '.join(each)}"
