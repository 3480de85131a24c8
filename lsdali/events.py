"""Events of a run: typed, written as JSON lines and to TensorBoard, shown as a progress bar or plain lines."""

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lsdali import dist
from lsdali.disk import Appended, refused
from lsdali.errors import UserError
from lsdali.event_file import EventFile
from lsdali.state.run_folder import EVENTS, strict_json
from lsdali.terminal import console, printable, say

if TYPE_CHECKING:
    from rich.console import Console

Metrics = Mapping[str, float]
TERMINAL = Path("/dev/stdout")


@dataclass(frozen=True, slots=True)
class Begun:
    """A process group starts or resumes a run."""

    recipe: Mapping[str, Any]
    versions: Mapping[str, str]
    device: str
    world: int
    step: int
    steps: int
    epoch: int  # epochs done
    epochs: int
    parameters: int
    optimizer: str
    data: Mapping[str, Any] = field(default_factory=dict)  # samples, and what is validated on


@dataclass(frozen=True, slots=True)
class Trained:
    """The mean over the steps since the last event of its kind."""

    step: int
    epoch: int  # that the step belongs to, from 1
    loss: float
    lr: float
    images_per_second: float
    data_wait: float  # share of the time that the device waited for data, 0 to 1
    terms: Metrics = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Evaluated:
    step: int
    epoch: int  # epochs done
    weights: str  # model or ema
    metrics: Metrics


@dataclass(frozen=True, slots=True)
class Message:
    """One sentence for the user."""

    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    step: int
    summary: Mapping[str, Any]


Event = Begun | Trained | Evaluated | Message | Finished


class Sink(Protocol):
    """A destination of events. One that raises OSError is closed, and the run continues."""

    place: Path

    def write(self, event: Event) -> None: ...

    def close(self) -> None: ...


class Events:
    """Hands each event to every sink."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self.sinks = list(sinks)

    def write(self, event: Event) -> None:
        """Raise UserError if events.jsonl cannot be written; what other sinks miss is said once."""
        for sink in list(self.sinks):
            try:
                sink.write(event)
            except OSError as error:
                self.sinks.remove(sink)
                close(sink)
                self.log(refused(sink.place, error, "training goes on without it"))

    def at(self, step: int, epoch: int, doing: str = "") -> None:
        """Show where the run stands: steps done, the epoch being trained, from 1, and what it does beside training.

        To be called after each step; nothing waits for the device.
        """
        for sink in self.sinks:
            if isinstance(sink, Bar):
                sink.at(step, epoch, doing)

    def log(self, text: str) -> None:
        self.write(Message(text))

    def close(self) -> None:
        for sink in self.sinks:
            close(sink)


def close(sink: Sink) -> None:
    with suppress(OSError):
        sink.close()


def open_events(folder: Path, check: Callable[[], None] = lambda: None) -> Events:
    """Return the events of a run: rank 0 writes and shows them, and also what other ranks have told it.

    `check` raises if the folder is not what it was; it is called before an event is written there.
    """
    if not dist.is_main():
        return Events([])
    folder.mkdir(parents=True, exist_ok=True)
    terminal = console()
    shown: Sink = Bar(terminal) if terminal.is_terminal else Lines()
    lines = JsonLines(folder / EVENTS, check)
    events = Events([lines, TensorBoard(folder / "tensorboard"), shown])
    if lines.cut:
        events.log(f"the last line of {lines.place} was cut off: it stays, and what follows begins a new line")
    return events


class JsonLines:
    """One JSON object a line: `event` and `time` (seconds since 1970), then the event's fields.

    A resumed run appends: lines before its `begun` with a later step belong to work that was done again.
    """

    def __init__(self, path: Path, check: Callable[[], None] = lambda: None) -> None:
        self.place, self.check = path, check
        self.file = Appended(path)
        self.cut = self.file.end_line()

    def write(self, event: Event) -> None:
        """Raise UserError if the line cannot be written."""
        line = {"event": type(event).__name__.lower(), "time": round(time.time(), 3), **asdict(event)}
        self.check()
        try:
            self.file.append((strict_json(line) + "\n").encode())
        except OSError as error:
            then = "make room, and the same command goes on from the newest checkpoint"
            raise UserError(refused(self.place, error, then)) from error

    def close(self) -> None:
        self.file.close()


class TensorBoard:
    """Scalars by step: train/*, val/* and ema/*."""

    def __init__(self, folder: Path) -> None:
        self.place = folder
        self.file: EventFile | None = None

    def write(self, event: Event) -> None:
        if isinstance(event, Begun):
            self.file = EventFile(self.place, event.step)
        elif isinstance(event, Trained):
            values = {"loss": event.loss, "lr": event.lr, "images_per_second": event.images_per_second}
            self._scalars("train", {**values, "data_wait": event.data_wait, **event.terms}, event.step)
        elif isinstance(event, Evaluated):
            self._scalars("val" if event.weights == "model" else event.weights, event.metrics, event.step)

    def _scalars(self, prefix: str, values: Metrics, step: int) -> None:
        assert self.file is not None, "a run begins before it trains"
        self.file.write(step, {f"{prefix}/{name}": value for name, value in values.items()})

    def close(self) -> None:
        if self.file is not None:
            self.file.close()


def sentence(event: Event) -> str:
    """Return an event as one plain line, names from outside escaped."""
    return printable(_sentence(event))


def _sentence(event: Event) -> str:
    if isinstance(event, Begun):
        return start_line(event)
    if isinstance(event, Trained):
        terms = "".join(f"  {name} {value:.4f}" for name, value in event.terms.items())
        return (
            f"epoch {event.epoch}  step {event.step}  loss {event.loss:.4f}{terms}  lr {event.lr:.3g}  "
            f"{event.images_per_second:.0f} images/s  data wait {event.data_wait:.0%}"
        )
    if isinstance(event, Evaluated):
        values = "  ".join(f"{name} {event.metrics[name]:.4f}" for name in ("top1", "top5", "nll", "ece", "aurc"))
        return f"epoch {event.epoch}  {event.weights}  {values}"
    if isinstance(event, Finished):
        last, best = event.summary["last"], event.summary["best"]
        early = f" early, after epoch {event.summary['stopped']}" if event.summary["stopped"] else ""
        return (
            f"finished{early}: top-1 {last['top1']:.2f} %, best by {event.summary['selected_by']} {best['top1']:.2f} % "
            f"after epoch {best['epoch']}"
        )
    return event.text


def start_line(event: Begun) -> str:
    """Return what begins, for people: network, data, length, device, optimizer."""
    recipe, data = event.recipe, event.data
    model, optimizer, method = recipe["model"]["name"], recipe["optimizer"], recipe["method"]["name"]
    start = f"resumes at step {event.step}" if event.step else "starts"
    images = f"{data['train']:,} training and {data['val']:,} validation images" if data else "images"
    what = "GPU" if event.device == "cuda" else f"process on the {event.device.upper()}"
    where = f"{event.world} {what}" if event.world == 1 else f"{event.world} {what.replace('process', 'processes')}"
    where += "s" if event.world > 1 and event.device == "cuda" else ""
    decay = f", weight decay {optimizer['weight_decay']:g}" if optimizer.get("weight_decay") else ""
    return (
        f"{start}: {model} with {event.parameters / 1e6:.2f} M parameters learns by {method} from {images} of "
        f"{recipe['data']['name']}; {event.epochs} epochs, {event.steps} steps of {recipe['batch']} images; {where}, "
        f"{recipe['precision']}; {optimizer['name']}, learning rate {optimizer['lr']:g} ({recipe['schedule']['name']})"
        f"{decay}"
    )


class Lines:
    """Plain lines, for logs and pipes."""

    place = TERMINAL

    def write(self, event: Event) -> None:
        try:
            say(sentence(event), flush=True)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python would fail once more at the end
            raise

    def close(self) -> None:
        sys.stdout.flush()


class Bar:
    """A live line under the sentences of a run."""

    place = TERMINAL

    def __init__(self, console: "Console") -> None:
        from lsdali.bar import Progress, live  # a run in a terminal alone needs rich

        self.progress, self.console = Progress(), console
        self.live = live(console, self.progress)

    def write(self, event: Event) -> None:
        line = self.progress
        if isinstance(event, Begun):
            line.step, line.steps, line.epochs = event.step, event.steps, event.epochs
            line.epoch, line.marks = min(event.epoch + 1, event.epochs), [(time.monotonic(), event.step)]
            self.say(event)
            self.live.start()
        elif isinstance(event, Trained):
            line.loss, line.lr = f"loss {event.loss:.4f}", f"lr {event.lr:.3g}"
            line.rate, line.wait = f"{event.images_per_second:.0f} images/s", f"wait {event.data_wait:.0%}"
            line.step, line.epoch = event.step, event.epoch
            line.marks = [*line.marks, (time.monotonic(), event.step)][-PACE_REPORTS:]
        else:
            self.say(event)

    def at(self, step: int, epoch: int, doing: str) -> None:
        self.progress.step, self.progress.epoch, self.progress.doing = step, epoch, doing

    def say(self, event: Event) -> None:
        self.console.print(sentence(event), highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        self.live.stop()


PACE_REPORTS = 20  # reports that the remaining time is estimated from
