"""The base of all loggers, and the handling of one that fails."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from lsdali.config import Config
from lsdali.errors import UserError, first_line
from lsdali.events import Event, Sink


class LoggerConfig(Config):
    """One logger of a recipe."""

    name: str

    def open(self, folder: Path) -> Sink:
        """Return the sink for a run in this folder. Raises UserError if it cannot work on this machine."""
        raise NotImplementedError


class BestEffort:
    """A sink whose first exception is reported; it gets no events after that."""

    def __init__(self, name: str, sink: Sink, tell: Callable[[str], None]) -> None:
        self.name, self.place, self.tell = name, sink.place, tell
        self.sink: Sink | None = sink

    def write(self, event: Event) -> None:
        if self.sink is not None:
            self._try(lambda sink: sink.write(event))

    def close(self) -> None:
        if self.sink is not None:
            self._try(lambda sink: sink.close())

    def _try(self, act: Callable[[Sink], None]) -> None:
        sink, self.sink = self.sink, None
        assert sink is not None, "a logger that failed is asked nothing more"
        try:
            act(sink)
        except Exception as fault:  # whatever a service raises: figures are also in events.jsonl
            self.tell(f"the logger {self.name} has failed, and the run goes on without it: {first_line(fault)}")
        else:
            self.sink = sink


def need_package(name: str) -> None:
    """Raise UserError if the package of a logger is not installed."""
    if find_spec(name) is None:
        raise UserError(f"log.loggers names {name}, which is not installed: pip install 'lsdali[{name}]'")


def scalars(prefix: str, values: dict[str, float]) -> dict[str, float]:
    """Return the values under the names that TensorBoard has, such as val/top1."""
    return {f"{prefix}/{name}": value for name, value in values.items()}
