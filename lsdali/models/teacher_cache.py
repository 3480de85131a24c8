"""A folder with a teacher's answers to the crops of given epochs, and a teacher that reads them from there."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lsdali.disk import read_plain, write_whole
from lsdali.errors import UserError
from lsdali.models.answer_rows import RowFormat, Rows
from lsdali.models.teacher import Teacher

CONTENTS = "teacher_cache.json"
AnswersKey = Mapping[str, Any]


@dataclass(frozen=True)
class AnswerFolder:
    """Files of `samples` rows each, one for an epoch, and a description of what they answer to."""

    path: Path
    form: RowFormat
    samples: int
    key: AnswersKey

    @property
    def epoch_bytes(self) -> int:
        return self.samples * self.form.dtype.itemsize

    def file(self, epoch: int) -> Path:
        return self.path / f"epoch_{epoch:06d}.bin"

    def has(self, epoch: int) -> bool:
        """Return whether an epoch is there whole."""
        try:
            return self.file(epoch).stat().st_size == self.epoch_bytes
        except OSError:
            return False

    def describe(self) -> str:
        """Return what a row keeps, in a few words."""
        kept = "all" if self.form.whole else f"the {self.form.keep} greatest of"
        return f"{kept} {self.form.classes} logits in {self.form.values}, {self.form.dtype.itemsize} bytes a sample"

    def write_contents(self, more: Mapping[str, Any]) -> None:
        """Write the description. Raises UserError if it cannot be written."""
        form = {"classes": self.form.classes, "keep": self.form.keep, "values": self.form.values}
        content = {"version": 1, "samples": self.samples, "form": form, "key": dict(self.key), **more}
        write_whole(self.path / CONTENTS, json.dumps(content, indent=2) + "\n")


def read_contents(path: Path) -> dict[str, Any] | None:
    """Return the description of a folder of answers; None if it has none. Raises UserError for a damaged one."""
    try:
        content = json.loads(read_plain(path / CONTENTS))
        form = content["form"]
        whole = all(isinstance(number, int) for number in (form["classes"], form["keep"], content["samples"]))
        if content["version"] != 1 or form["values"] not in ("fp32", "fp16") or not whole:
            raise ValueError("another version")
        content["key"].items()
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path / CONTENTS} does not describe a teacher cache: make the cache anew") from error
    return dict(content)


def open_folder(path: Path, key: AnswersKey) -> AnswerFolder:
    """Return the answers of a folder. Raises UserError if there are none, or they answer to something else."""
    content = read_contents(path)
    if content is None:
        raise UserError(f"method.teacher.cache: {path} holds no teacher's answers; `lsdali cache RECIPE` makes them")
    different = unlike_entries(content["key"], key)
    if different:
        raise UserError(
            f"the teacher cache {path} was made for something else ({'; '.join(different)}): "
            "make one for this recipe with `lsdali cache RECIPE`, in another folder"
        )
    form = RowFormat(content["form"]["classes"], content["form"]["keep"], content["form"]["values"])
    return AnswerFolder(path, form, content["samples"], key)


def unlike_entries(there: AnswersKey, here: AnswersKey) -> list[str]:
    """Name each entry in which two keys differ, with both values."""
    same = json.loads(json.dumps(dict(here)))  # tuples become lists, as in the file
    names = sorted(there.keys() | same.keys())
    return [f"{n}: {there.get(n)} there, {same.get(n)} here" for n in names if there.get(n) != same.get(n)]


class CachedTeacher(Teacher):
    """A teacher whose answers were computed before. It needs no network, and reads numbers of samples, not images."""

    def __init__(self, folder: AnswerFolder, digest: str, temperature: float) -> None:
        self.classes, self.image_size, self.digest = folder.form.classes, None, digest
        self._folder, self._temperature = folder, temperature
        self._open: tuple[int, Rows] | None = None

    def describe(self) -> str:
        """Return what its rows keep."""
        return self._folder.describe()

    def fault_at(self, size: int) -> str | None:
        return None

    def expect_epochs(self, epochs: int) -> None:
        """Raise UserError if the answers of one of the first so many epochs are missing."""
        missing = [epoch for epoch in range(epochs) if not self._folder.has(epoch)]
        if missing:
            raise UserError(
                f"the teacher cache {self._folder.path} lacks epoch {missing[0]} and {len(missing) - 1} more of "
                f"{epochs}: `lsdali cache RECIPE` computes what is missing"
            )

    def __call__(self, images: Tensor) -> Tensor:
        raise UserError(
            "a teacher with a cache reads no images: the method must ask for its answers by sample and epoch "
            "(lsdali.methods.base.ask), or do without method.teacher.cache"
        )

    def answers(self, index: Tensor, epoch: int, device: torch.device) -> Tensor:
        """Map [B] int64 on the host -> logits [B, K] float32 on the device: the answers to these samples' crops.

        Raises UserError if the cache has no answer for one of them.
        """
        rows = self.rows(epoch)[index.numpy()]
        unknown = self._folder.form.unknown(rows)
        if unknown.any():
            raise UserError(
                f"the teacher cache {self._folder.path} has no answer for sample {int(index[int(unknown.argmax())])} "
                f"in epoch {epoch}, whose file was bad when it was made: make the cache anew"
            )
        logits = self._folder.form.unpack(rows, device)
        return logits if self._temperature == 1 else logits / self._temperature

    def rows(self, epoch: int) -> Rows:
        """Return [N] rows of an epoch, mapped: the processes of a node share one copy in memory."""
        if self._open is None or self._open[0] != epoch:
            form, file = self._folder.form, self._folder.file(epoch)
            try:
                mapped = np.memmap(file, form.dtype, "r", shape=(self._folder.samples,))
            except (OSError, ValueError) as error:
                raise UserError(f"the teacher cache's {file} cannot be read: {error}") from error
            self._open = epoch, mapped.view(np.ndarray)
        return self._open[1]


def write_rows(handle: int, form: RowFormat, first: int, rows: Rows) -> None:
    """Write rows `first` and following of an open file. Raises OSError."""
    data, place = memoryview(rows.tobytes()), first * form.dtype.itemsize
    while data:
        done = os.pwrite(handle, data, place)
        data, place = data[done:], place + done
