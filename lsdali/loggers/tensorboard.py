"""The recipe in TensorBoard: as text, and as the hyperparameters of its HParams page.

The messages are those of TensorFlow (framework/summary.proto, tensor.proto) and of TensorBoard's plug-in
(plugins/hparams/plugin_data.proto, api.proto); each number below is that of a field there.
"""

import os
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml

from lsdali.disk import Appended
from lsdali.event_file import event as record_of
from lsdali.event_file import record, text, varint
from lsdali.events import Begun, Event, Finished
from lsdali.loggers.base import LoggerConfig

HPARAM_METRICS = ("val/top1", "val/nll", "val/ece", "val/aurc")
"""The columns of figures on the HParams page; their values are the scalars of the same names."""
STRING = 7  # DataType DT_STRING


class HparamsConfig(LoggerConfig):
    """The recipe as text and as hyperparameters, in the run's TensorBoard folder."""

    name: Literal["hparams"]

    def open(self, folder: Path) -> "RecipeBoard":
        return RecipeBoard(folder / "tensorboard")


class RecipeBoard:
    """A small file of its own beside the scalars at each start, and one at the end."""

    def __init__(self, folder: Path) -> None:
        self.place = folder

    def write(self, event: Event) -> None:
        if isinstance(event, Begun):
            values = dict(flat(event.recipe))
            recipe = yaml.safe_dump(dict(event.recipe), sort_keys=False, width=100)
            parts = [
                recipe_text(recipe),
                hparams("experiment", experiment(values)),
                hparams(SESSION_START, hparams_session(values)),
            ]
            self.append("begun", event.step, parts)
        elif isinstance(event, Finished):
            ended = varint(1 << 3) + varint(1) + double(2, time.time())  # status: success
            self.append("finished", event.step, [hparams("session_end_info", text(4, ended))])

    def append(self, suffix: str, step: int, values: list[bytes]) -> None:
        """Write a file with a summary of each value at one step. Raises OSError."""
        self.place.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}.{suffix}"
        file = Appended(self.place / name)
        version = record(record_of(None, text(3, b"brain.Event:2")))
        try:
            file.append(version + b"".join(record(record_of(step, text(5, text(1, value)))) for value in values))
        finally:
            file.close()

    def close(self) -> None:
        """Keep nothing open."""


SESSION_START = "session_start_info"


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys of a recipe and their values; what is no number, truth value or text becomes text."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        elif isinstance(value, (bool, int, float, str)):
            yield prefix + key, value
        elif value:
            yield prefix + key, yaml.safe_dump(value, default_flow_style=True, width=10**6).strip()


def double(number: int, value: float) -> bytes:
    """Return a field of 64-bit floating point."""
    return varint(number << 3 | 1) + struct.pack("<d", value)


def plugin_value(tag: str, plugin: str, content: bytes, tensor: bytes) -> bytes:
    """Return a value of a summary (tag 1, tensor 8) that a plug-in reads (metadata 9: name and content)."""
    data = text(1, plugin.encode()) + text(2, content)
    return text(1, tag.encode()) + text(9, text(1, data)) + tensor


def recipe_text(recipe: str) -> bytes:
    """Return the value for the Text page: Markdown, where four spaces make a line code."""
    indented = "".join(f"    {line}\n" for line in recipe.splitlines())
    shape = text(2, text(2, varint(1 << 3) + varint(1)))
    tensor = varint(1 << 3) + varint(STRING) + shape + text(8, indented.encode())
    return plugin_value("recipe/text_summary", "text", b"", text(8, tensor))


def hparams(tag: str, content: bytes) -> bytes:
    """Return the value for the HParams page."""
    return plugin_value(f"_hparams_/{tag}", "hparams", content, b"")


def experiment(values: Mapping[str, Any]) -> bytes:
    """Return the names of the hyperparameters (5) with their types, and of the metrics (6)."""
    kinds = {key: 2 if isinstance(value, bool) else 1 if isinstance(value, str) else 3 for key, value in values.items()}
    infos = (text(5, text(1, key.encode()) + varint(4 << 3) + varint(kind)) for key, kind in kinds.items())
    metrics = (text(6, text(1, text(2, tag.encode()))) for tag in HPARAM_METRICS)
    return text(2, b"".join([*infos, *metrics]))


def hparams_session(values: Mapping[str, Any]) -> bytes:
    """Return the values of this run's hyperparameters, and when it began."""
    pairs = (text(1, text(1, key.encode()) + text(2, value_of(value))) for key, value in values.items())
    return text(3, b"".join(pairs) + double(5, time.time()))


def value_of(value: Any) -> bytes:
    """Return a google.protobuf.Value: a number (2), a text (3) or a truth value (4)."""
    if isinstance(value, bool):
        return varint(4 << 3) + varint(int(value))
    return text(3, value.encode()) if isinstance(value, str) else double(2, float(value))
