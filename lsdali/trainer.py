"""The training loop: step, epoch, evaluation, save. It knows protocols only, and names no method, model or data set."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lsdali import dist
from lsdali.batch import Batch, TrainData
from lsdali.clock import Clock
from lsdali.errors import SharedError, Stopped
from lsdali.events import Evaluated, Events, Finished, Trained
from lsdali.faults import marker
from lsdali.faults.pulse import Pulse
from lsdali.meter import SKIPPED, Meter, mark
from lsdali.methods.base import Loss, Method
from lsdali.metrics import MetricAccumulator, predictions
from lsdali.models.digest import weights_digest
from lsdali.models.student import Forward, Student
from lsdali.optim import Optimizer
from lsdali.optim.precision import Precision
from lsdali.recipe import Recipe
from lsdali.selection import note, stopped, watch_metric
from lsdali.skips import Buffers, observe
from lsdali.state.checkpoint import Checkpoints, Stateful
from lsdali.state.restore import restore
from lsdali.state.run_folder import write_json


class EvalData(Protocol):
    def __iter__(self) -> Iterator[Batch]: ...


class WeightAverage(Protocol):
    """A moving average of the weights."""

    def after_step(self, student: nn.Module, clock: Clock) -> None: ...

    def swapped(self, student: nn.Module) -> AbstractContextManager[None]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass
class Trainer:
    """One run. `forward` is the student as the method calls it: bare, compiled or inside DDP."""

    recipe: Recipe
    folder: Path
    clock: Clock
    student: Student
    forward: Forward
    unsynced: Callable[[], AbstractContextManager[Any]]  # DDP's no_sync: gradients of a micro-batch stay local
    method: Method
    optimizer: Optimizer
    precision: Precision
    schedule: Callable[[int], float]
    averages: Mapping[str, WeightAverage]
    train: TrainData
    val: EvalData
    checkpoints: Checkpoints
    events: Events
    header: Mapping[str, Any]
    parts: Mapping[str, Stateful]
    classes: int
    device: torch.device
    data: Mapping[str, Any]  # what is told of it
    record: dict[str, Any] = field(default_factory=dict)  # last and best evaluation, by weights
    seconds: dict[str, float] = field(default_factory=lambda: {"wall": 0.0, "training": 0.0})
    pulse: Pulse = field(default_factory=Pulse)
    buffers: Buffers = field(default_factory=Buffers)
    skipped: int = 0  # steps so far whose loss or gradient was not finite

    # ---- the step

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Take one optimizer step on this rank's share of the global batch; return the loss and its terms, [] each."""
        self.optimizer.set_lr(self.schedule(self.clock.step))
        self.buffers.keep(self.student)
        parts = self.micro_batches(batch)
        losses = [self.backward(part, len(part) / len(batch), last=part is parts[-1]) for part in parts]
        skipped = self.precision.step(self.optimizer)
        if skipped is not None:
            self.buffers.undo(skipped)
        observe(self.method, [(part, loss.observed) for part, loss in zip(parts, losses, strict=True)], skipped)
        for average in self.averages.values():
            average.after_step(self.student, self.clock)
        terms = total_terms(losses, [len(part) / len(batch) for part in parts])
        return terms if skipped is None else {**terms, SKIPPED: skipped}

    def micro_batches(self, batch: Batch) -> list[Batch]:
        size = self.recipe.micro_batch or len(batch)
        size -= size % self.method.group_size
        return [batch.part(start, start + size) for start in range(0, len(batch), size)]

    def backward(self, part: Batch, share: float, *, last: bool) -> Loss:
        with nullcontext() if last else self.unsynced():
            with self.precision.autocast():
                loss = self.method.loss(self.forward, part, self.clock)
            self.pulse.beat("backward pass")
            self.precision.backward(loss.total, share)
        return loss

    # ---- the run

    @property
    def over(self) -> bool:
        """Whether the last epoch is done, or the run is to stop early."""
        return self.clock.done or stopped(self.record, self.recipe.stop)

    def run(self) -> None:
        """Train to the end from wherever the clock stands, and write the summary.

        Raises:
            Stopped: a signal has ended the run before; all is saved.
        """
        started = time.perf_counter() - self.seconds["wall"]
        self.stop_if_asked(saved=True)
        try:
            while not self.over:
                self.epoch(started)
        finally:
            self.checkpoints.wait()
        self.checkpoints.finish()
        self.seconds["wall"] = time.perf_counter() - started
        self.summarize()

    def epoch(self, started: float) -> None:
        """Train the rest of the current epoch."""
        self.student.train()
        meter, batches = Meter(), iter(self.train.epoch(self.clock.step))
        while (batch := self.next(batches, meter)) is not None:
            self.pulse.beat("training")
            meter.add(self.step(batch))
            meter.images += len(batch) * dist.world()
            epoch = self.clock.epoch + 1
            self.clock = self.clock.tick()
            self.events.at(self.clock.step, epoch)
            too_many = self.skipped + meter.skips.count > self.recipe.faults.max_skipped_steps
            if too_many or self.clock.at_epoch_end or self.clock.step % self.recipe.log.every_steps == 0:
                meter = self.report(meter)
            paused = time.perf_counter()
            better = self.clock.at_epoch_end and self.end_epoch()
            self.seconds["wall"] = paused - started
            self.checkpoints.check()
            if saves := better or self.save_due():
                self.save(best=better)
            self.stop_if_asked(saved=saves)
            meter.aside += time.perf_counter() - paused

    def save(self, *, best: bool = False) -> None:
        self.pulse.beat("saving")
        header = {**self.header, "epoch": self.clock.epoch, "step": self.clock.step, "steps": self.clock.steps}
        self.checkpoints.save(self.parts, header, best=best, memory=self.method.memory)

    def stop_if_asked(self, *, saved: bool) -> None:
        """Save and raise Stopped if the ranks have agreed to stop here, unless nothing is left to do."""
        if self.over or not self.pulse.stops(self.clock.step):
            return
        if not saved:
            self.save()
        self.checkpoints.finish()
        if dist.is_main():
            marker.leave(self.folder, self.clock.step, self.clock.steps)
        self.events.log(f"stopped at step {self.clock.step}; the same command goes on")
        raise Stopped

    def next(self, batches: Iterator[Batch], meter: Meter) -> Batch | None:
        self.pulse.beat("waiting for data")
        asked, before = time.perf_counter(), mark(self.device)
        batch = next(batches, None)
        meter.waited += time.perf_counter() - asked
        if before is not None:
            meter.marks.append((before, mark(self.device)))
        return batch

    def end_epoch(self) -> bool:
        """Agree among ranks, close the method's epoch, evaluate the weights.

        Return whether they are the best so far.
        """
        self.pulse.beat("ending an epoch")
        dist.average_buffers(self.student)
        self.method.end_epoch(self.student, self.clock)
        if not self.clock.done and self.clock.epoch % self.recipe.evaluate.every_epochs:
            return False
        better = self.evaluated("model", self.evaluate())
        for name, average in self.averages.items():
            with average.swapped(self.student):
                self.evaluated(name, self.evaluate())
        self.student.train()
        return better

    def save_due(self) -> bool:
        save, clock = self.recipe.save, self.clock
        by_epoch = clock.at_epoch_end and (self.over or clock.epoch % save.every_epochs == 0)
        return by_epoch or (save.every_steps is not None and clock.step % save.every_steps == 0)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Return metrics over the whole validation split, each image once, the same on every rank."""
        self.student.eval()
        result = MetricAccumulator(self.classes, self.device)
        self.events.at(self.clock.step, self.clock.epoch, "evaluating")
        for logits, batch in predictions(self.student.network, self.val, self.precision.autocast):
            self.pulse.beat("evaluating")
            result.update(logits, batch)
        self.events.at(self.clock.step, self.clock.epoch)
        return result.result()

    # ---- what it tells

    def report(self, meter: Meter) -> Meter:
        """Read the losses back and report them; return a fresh meter.

        Raises:
            SharedError: too many steps were skipped. Every rank counts the same, so all stop together.
        """
        means, skipped = meter.read()
        now = time.perf_counter()
        spent = now - meter.since - meter.aside
        self.seconds["training"] += spent
        lr = self.schedule(self.clock.step - 1)
        causes = meter.causes(skipped, self.clock.step) if skipped else []
        for cause in causes:
            self.events.log(cause)
        if len(skipped) < len(meter.terms):
            loss = means.pop("loss")
            epoch = self.clock.steps_per_epoch.locate(self.clock.step - 1)[0] + 1
            rate = meter.images / spent
            self.events.write(Trained(self.clock.step, epoch, loss, lr, rate, meter.data_seconds() / spent, means))
            if not math.isfinite(loss):  # in fp16
                causes.append(f"the loss is {loss} at step {self.clock.step}")
        self.skipped += len(skipped)
        if len(causes) > len(skipped) or self.skipped > self.recipe.faults.max_skipped_steps:
            raise SharedError(
                f"{causes[-1]}, {self.skipped} skipped in all: training has diverged; lower optimizer.lr "
                f"(now {lr:.3g}), add schedule.warmup_epochs, or use precision: fp32"
            )
        return Meter(since=now)

    def evaluated(self, weights: str, metrics: Mapping[str, float]) -> bool:
        self.events.write(Evaluated(self.clock.step, self.clock.epoch, weights, metrics))
        entry = {**metrics, "epoch": self.clock.epoch}
        if weights == "model":
            watch_metric(self.record, entry, self.recipe.stop)
        return note(self.record, weights, entry, self.recipe.select)

    def summarize(self) -> None:
        """Write summary.json: last and best metrics, speed, time, and the digest of the final weights."""
        batches, lengths = self.recipe.batches, self.clock.steps_per_epoch
        images = lengths.weighted(batches, self.clock.epoch)
        summary = {
            **self.record["model"],
            **{name: self.record[name] for name in self.averages},
            "selected_by": self.recipe.select.metric,
            "stopped": None if self.clock.done else self.clock.epoch,
            "digest": weights_digest(self.student.network),
            "images_per_second": round(images / self.seconds["training"], 2),
            "wall_seconds": round(self.seconds["wall"], 2),
            "world": dist.world(),
            "steps": self.clock.steps,
            "data": self.data,
        }
        if dist.is_main():
            write_json(self.folder / "summary.json", summary)
        self.events.write(Finished(self.clock.step, summary))

    # ---- its own state

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.clock.step, "record": self.record, "seconds": self.seconds, "skipped": self.skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.clock = Clock(state["step"], self.clock.steps_per_epoch, self.clock.epochs)
        record = state["record"]
        if "student" in record:  # the name of version 0.1
            record = {"model": record["student"], **{k: v for k, v in record.items() if k != "student"}}
        self.record, self.seconds, self.skipped = record, state["seconds"], state.get("skipped", 0)

    def restore(self, states: Mapping[str, Any]) -> None:
        restore(self.parts, states)


def total_terms(losses: list[Loss], shares: list[float]) -> dict[str, Tensor]:
    """Return the step's loss and terms: the mean over its micro-batches, weighted by their sizes."""
    rows = [{"loss": loss.total.detach(), **{k: v.detach() for k, v in loss.terms.items()}} for loss in losses]
    return {k: torch.stack([row[k] * share for row, share in zip(rows, shares, strict=True)]).sum() for k in rows[0]}
