"""Text files of `path label` lines, as people and programs write them."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from lsdali.data.io.image_formats import is_image
from lsdali.errors import UserError

PathsAndLabels = list[tuple[str, str]]  # path and label

FIELD_SEPARATORS = (" ", "\t", ";", ",")
MOST_CLASSES = 1_000_000
_NUMBER = re.compile(r"[+-]?\d+")


def lines(file: Path) -> list[str]:
    """Return the lines of a text file that are not blank. Raises UserError for one that cannot be read as UTF-8."""
    try:
        if file.exists() and not file.is_file():
            raise UserError(f"{file} is no file; expected text, one line for each image")
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{file} is in UTF-16: save it as UTF-8")
    text = content.decode("utf-8-sig", errors="surrogateescape")
    return [line for line in text.splitlines() if line.strip()]


def read_rows(where: Path, images: Path) -> PathsAndLabels:
    """Return path, below the folder `images`, and label of each line of a file.

    Raises UserError, which names the line or the label and what is wrong.
    """
    rows = split_rows([line.strip() for line in lines(where)])
    if bad := [k for k, (path, label) in enumerate(rows, 1) if not path or not label]:
        raise UserError(f"{where}, line {bad[0]}: expected a path, a space (or tab, ; or ,) and a label")
    if not rows:
        raise UserError(f"{where} is empty; expected lines of: path label")
    if len(rows) > 1 and "." not in rows[0][0] and all(is_image(path) for path, _ in rows[1:]):
        raise UserError(f"{where}, line 1 names no image, as all others do: remove the line of titles")
    _refuse_other_columns(where, rows)
    rows = [(_own_slashes(images, path), label) for path, label in rows]
    _refuse_two_labels(where, rows)
    _refuse_numbers(where, [label for _, label in rows])
    # 007 is 7
    return [(path, str(int(label)) if label.isdecimal() else label) for path, label in rows]


def split_rows(rows: Sequence[str]) -> PathsAndLabels:
    """Return path and label of each line.

    Apart by what leaves image files on all lines but the first, or else by a space.
    """
    for separator in (*FIELD_SEPARATORS, " "):
        parts = [tuple(map(_plain, row.rpartition(separator)[::2])) for row in rows]
        if all(is_image(path) and label for path, label in (parts[1:] or parts)):
            break
    return [(path, label) for path, label in parts] if rows else []


def _plain(text: str) -> str:
    """Return a text without spaces and quotes around it."""
    text = text.strip()
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


def _own_slashes(images: Path, path: str) -> str:
    """Return a path that Windows wrote with this system's slashes; a file that is called so keeps its name."""
    return path.replace("\\", "/") if "\\" in path and not os.path.lexists(images / path) else path


def _refuse_other_columns(where: Path, rows: PathsAndLabels) -> None:
    if any(is_image(path) for path, _ in rows):
        return
    if all(is_image(label) for _, label in rows):
        raise UserError(f"{where} has the label first; expected lines of: path label")
    if any(all(is_image(_plain(path.rpartition(s)[0])) for path, _ in rows) for s in FIELD_SEPARATORS):
        raise UserError(f"{where} has three columns; expected lines of: path label")


def _refuse_two_labels(where: Path, rows: PathsAndLabels) -> None:
    label_of = dict(rows)
    if len(label_of) < len(rows) and (twice := next((p for p, label in rows if label_of[p] != label), None)):
        raise UserError(f"{where} gives {twice} two labels; give it one")


def _refuse_numbers(where: Path, labels: Sequence[str]) -> None:
    """Refuse numbers that can be no labels, if all labels are numbers."""
    if not all(map(_NUMBER.fullmatch, labels)):
        return
    least, most = min(labels, key=int), max(labels, key=int)
    if int(least) < 0:
        raise UserError(f"{where} has the label {least}; labels that are numbers count from 0")
    if int(most) >= MOST_CLASSES:
        raise UserError(f"{where} has the label {most}; labels that are numbers count the classes from 0")
