"""Cross-entropy and label smoothing as anybody would train them."""

from pathlib import Path

import torch.nn.functional as F
from torch import nn

from lsdali.batch import Batch
from tests.methods.whole_runs import compare, steps


def test_ce(place: Path) -> None:
    def twin(student: nn.Module, epochs: list[list[Batch]]) -> None:
        for _, batch, descend in steps(student, epochs):
            descend(F.cross_entropy(student.network(batch.images), batch.labels))

    compare({"name": "ce"}, twin, place)


def test_ls(place: Path) -> None:
    def twin(student: nn.Module, epochs: list[list[Batch]]) -> None:
        for _, batch, descend in steps(student, epochs):
            descend(F.cross_entropy(student.network(batch.images), batch.labels, label_smoothing=0.2))

    compare({"name": "ls", "smoothing": 0.2, "mass": "all"}, twin, place)
