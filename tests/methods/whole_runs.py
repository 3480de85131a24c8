"""Whole trainings against loops that know nothing of the trainer, its methods, their state or its schedule.

A twin is the script that the authors of a method would write round a plain network: it is given the batches and the
network as they were before the first step, and trains. What is compared is the weights at the end, so that a fault of
the loss, of what it remembers, or of when it does so, shows.
"""

import copy
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lsdali.batch import Batch
from tests.methods.trainers import float64, trainer_in_float64

EPOCHS = 3
LR, MOMENTUM, DECAY = 0.01, 0.9, 0.001
Twin = Callable[[nn.Module, list[list[Batch]]], None]
"""Trains the student (`student.network`, `student.aux_heads`) in place, given the batches of each epoch."""


def compare(config: Any, twin: Twin, folder: Path, **others: Any) -> None:
    """Train by the trainer and by the twin: the same weights, and not those of the start.

    Most methods end 1e-15 of the way apart, those that keep a state or a target in float32 at most 1e-7; with five
    times the learning rate such roundings alone would part them.
    """
    trainer = trainer_in_float64(
        config, folder, epochs=EPOCHS, **{"optimizer": {"name": "nesterov", "lr": LR, "weight_decay": DECAY}, **others}
    )
    student, start = copy.deepcopy(trainer.student), copy.deepcopy(trainer.student.state_dict())
    length = trainer.clock.steps // EPOCHS
    epochs = [[copy.deepcopy(batch) for batch in trainer.train.epoch(length * epoch)] for epoch in range(EPOCHS)]
    assert [len(batches) for batches in epochs] == [length] * EPOCHS
    with float64():
        twin(student, epochs)
        trainer.run()
    expected = student.state_dict()
    for name, value in trainer.student.state_dict().items():
        moved, away = (torch.dist(value.double(), other[name].double()) for other in (start, expected))
        assert moved > 0 or value.ndim < 2, f"{name} was not trained"
        assert away <= 1e-6 * moved + 1e-12, f"{name} is {away:.1e} away after a way of {moved:.1e}"


def sgd(student: nn.Module) -> torch.optim.Optimizer:
    """What the recipe of these runs names: Nesterov's momentum, and no decay of biases and norms."""
    groups = [
        {"params": [p for p in student.parameters() if (p.ndim > 1) is decayed], "weight_decay": DECAY * decayed}
        for decayed in (True, False)
    ]
    return torch.optim.SGD(groups, lr=LR, momentum=MOMENTUM, nesterov=True)


def steps(student: nn.Module, epochs: list[list[Batch]]) -> Iterator[tuple[int, Batch, Callable[[Tensor], None]]]:
    """Epoch, batch, and what is to be done with its loss; the learning rate falls along half a cosine."""
    optimizer = sgd(student)
    total, done = sum(map(len, epochs)), 0
    student.train()

    def descend(loss: Tensor) -> None:
        for group in optimizer.param_groups:
            group["lr"] = LR * (1 + math.cos(math.pi * done / total)) / 2
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    for epoch, batches in enumerate(epochs):
        for batch in batches:
            yield epoch, batch, descend
            done += 1
