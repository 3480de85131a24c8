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
LR, MOMENTUM, DECAY = 0.05, 0.9, 0.001
Twin = Callable[[nn.Module, list[list[Batch]]], None]
"""Trains the student (`student.network`, `student.probes`) in place, given the batches of each epoch."""


def compare(config: Any, twin: Twin, folder: Path, **others: Any) -> None:
    """Train by the trainer and by the twin: the same weights, and not those of the start."""
    trainer = trainer_in_float64(config, folder, epochs=EPOCHS, **others)
    student, start = copy.deepcopy(trainer.student), copy.deepcopy(trainer.student.state_dict())
    length = trainer.clock.steps // EPOCHS
    epochs = [[copy.deepcopy(batch) for batch in trainer.train.epoch(length * epoch)] for epoch in range(EPOCHS)]
    assert [len(batches) for batches in epochs] == [length] * EPOCHS
    with float64():
        twin(student, epochs)
        trainer.run()
    trained = trainer.student.state_dict()
    torch.testing.assert_close(trained, student.state_dict(), rtol=1e-3, atol=1e-5)
    still = [name for name, value in trained.items() if value.ndim > 1 and torch.equal(value, start[name])]
    assert not still, "these were not trained"


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
