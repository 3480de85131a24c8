"""Which evaluation is the best, early stopping, and that a stopped run is exact on resume."""

from pathlib import Path

import pytest
import torch

from lsdali.build import build
from lsdali.events import Events
from lsdali.faults.pulse import Pulse
from lsdali.recipe import Recipe
from lsdali.selection import Select, Stop, note, stopped, watch_metric
from lsdali.state.checkpoint import Checkpoints
from lsdali.train import run
from lsdali.trainer import Trainer
from tests.harness import events, make_images, summary, tiny

CPU = torch.device("cpu")


def epochs_run(values: list[float], stop: Stop) -> tuple[int, float]:
    """How many of the epochs with these values a run has, and the best value."""
    record: dict = {}
    for epoch, value in enumerate(values, 1):
        watch_metric(record, {stop.metric: value, "epoch": epoch}, stop)
        if stopped(record, stop):
            break
    return epoch, record["stop"]["value"]


@pytest.mark.parametrize(
    ("losses", "expected"),
    [([5, 4, 4.5, 4.4, 4.3, 4.2, 3], (5, 4)), ([5, 4, 3, 2, 1], (5, 1)), ([3, 3, 3, 3, 3], (4, 3))],
)
def test_stopping_as_in_the_code_of_ibls(losses: list[float], expected: tuple[int, float]) -> None:
    """Its `estop` 2 stops after more than two epochs without improvement: a patience of 3."""
    assert epochs_run(losses, Stop(metric="nll", patience=3)) == expected


def test_an_accuracy_stops_when_it_no_longer_rises() -> None:
    assert epochs_run([50, 60, 60, 59, 70], Stop(metric="top1", patience=2)) == (4, 60)


def test_the_metric_decides_what_best_means() -> None:
    rows = [
        {"top1": 50, "nll": 1.0, "epoch": 1},
        {"top1": 60, "nll": 1.2, "epoch": 2},
        {"top1": 60, "nll": 0.9, "epoch": 3},
    ]
    for metric, expected in (("top1", [True, True, False]), ("nll", [True, False, True])):
        record: dict = {}
        assert [note(record, "model", row, Select(metric=metric)) for row in rows] == expected
        assert record["model"]["best"]["epoch"] == 1 + max(k for k, better in enumerate(expected) if better)
        assert record["model"]["last"] == rows[2]


def test_a_run_that_stops_early_is_exact_on_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of five classes every label is in the top 5, so top5 never improves, and a patience of 2 ends after epoch 3."""
    monkeypatch.setenv("LSDALI_CACHE", str(tmp_path / "cache"))
    make_images(tmp_path / "images")
    changes = {"epochs": 6, "stop": {"metric": "top5", "patience": 2}, "select": {"metric": "nll"}}

    def recipe(name: str) -> Recipe:
        return Recipe.model_validate(tiny({"name": "ce"}, tmp_path / "images", tmp_path / name, **changes))

    def live(name: str) -> Trainer:
        folder = tmp_path / name
        return build(recipe(name), folder, CPU, Checkpoints(folder / "checkpoints", 2, print), Events([]))

    run(recipe("whole"), CPU, Pulse())
    live("broken").epoch(0.0)
    run(recipe("broken"), CPU, Pulse())
    whole, broken = summary(tmp_path / "whole"), summary(tmp_path / "broken")
    assert (whole["stopped"], whole["last"]["epoch"], whole["selected_by"]) == (3, 3, "nll")
    assert whole["best"]["nll"] == min(e["metrics"]["nll"] for e in events(tmp_path / "whole", "evaluated"))
    for key in ("last", "best", "stopped", "digest"):
        assert broken[key] == whole[key]
    assert (tmp_path / "whole/checkpoints/step-0000000015.pt").is_file()
    assert [line["epoch"] for line in events(tmp_path / "whole", "trained")] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    run(recipe("whole"), CPU, Pulse())
    said = events(tmp_path / "whole", "message")[-1]["text"]
    assert said == f"this run stopped early; its figures are in {tmp_path}/whole/summary.json"
    assert len(events(tmp_path / "whole", "begun")) == 1
