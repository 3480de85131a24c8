"""A run that is finished goes on for more epochs where none of the trained ones would have been another."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lsdali.errors import UserError
from lsdali.recipe import Recipe
from lsdali.train import run
from tests.harness import events, summary, tiny

STEP = {"name": "step", "milestones": [1, 3]}


def train(images: Path, folder: Path, epochs: int, method: Any = None, **others: Any) -> None:
    tree = tiny(method or {"name": "ols"}, images, folder, epochs=epochs, **{"schedule": STEP, **others})
    run(Recipe.model_validate(tree), torch.device("cpu"))


def test_two_epochs_and_two_more_are_four(folder: Path, place: Path) -> None:
    train(folder / "images", place / "four", 4, ema={"decay": 0.5})
    train(folder / "images", place / "two", 2, ema={"decay": 0.5})
    first = summary(place / "two")
    train(folder / "images", place / "two", 4, ema={"decay": 0.5})
    four, two = summary(place / "four"), summary(place / "two")
    assert first["steps"] * 2 == two["steps"] == four["steps"]
    for key in ("last", "best", "ema", "digest"):
        assert two[key] == four[key], key
    assert two["digest"] != first["digest"]
    assert [line["step"] for line in events(place / "two", "begun")] == [0, first["steps"]]


def test_what_depends_on_the_length_names_the_way(folder: Path, place: Path) -> None:
    cases: list[tuple[Any, Any, str]] = [
        ({"name": "ce"}, {"name": "cosine"}, "the schedule 'cosine' sets the rate"),
        ({"name": "pskd"}, STEP, "the method 'pskd' sets the target"),
    ]
    for number, (method, schedule, why) in enumerate(cases):
        base = place / str(number)
        train(folder / "images", base, 1, method, schedule=schedule)
        with pytest.raises(UserError) as caught:
            train(folder / "images", base, 2, method, schedule=schedule)
        assert str(caught.value) == (
            f"{base} holds a run of another recipe (epochs: 1 -> 2), and {why} of every epoch by how many there are, "
            "so the epochs it has trained would have been others; a new run can begin with its weights: "
            f"model.weights.source=file model.weights.path={base}/checkpoints/best.pt run_dir=..."
        )


def test_another_number_of_threads_is_told(folder: Path, place: Path) -> None:
    before = torch.get_num_threads()
    try:
        train(folder / "images", place, 1, {"name": "ce"}, threads=1)
        train(folder / "images", place, 2, {"name": "ce"}, threads=2)
    finally:
        torch.set_num_threads(before)
    assert (
        "torch computes with 2 threads here and did with 1 before, so the last bits of the weights may differ from "
        "those of an uninterrupted run; threads: 1 keeps them"
    ) in [line["text"] for line in events(place, "message")]


def test_a_run_cannot_be_shorter_than_it_is(folder: Path, place: Path) -> None:
    train(folder / "images", place, 2, {"name": "ce"})
    with pytest.raises(UserError, match="has trained 10 steps, and 1 epochs are 5: give at least as many"):
        train(folder / "images", place, 1, {"name": "ce"})
    assert summary(place)["steps"] == 10


def test_the_way_that_is_named_leads_there(folder: Path, place: Path) -> None:
    train(folder / "images", place / "one", 1, {"name": "ce"}, schedule={"name": "cosine"})
    weights = {"source": "file", "path": str(place / "one/checkpoints/best.pt")}
    model = {**tiny("ce", place, place)["model"], "weights": weights}
    train(folder / "images", place / "two", 1, {"name": "ce"}, schedule={"name": "cosine"}, model=model)
    assert summary(place / "two")["digest"] != summary(place / "one")["digest"]
