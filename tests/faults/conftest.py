"""What the tests of faults share: a run of thirty steps, and how it ends if nothing happens to it."""

from pathlib import Path

import pytest
import yaml

from tests.faults.stories import Figures, Story, Unbroken, figures
from tests.harness import make_images, tiny


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """10 steps an epoch, 3 epochs, on 120 images; a checkpoint at every fourth step."""
    base = tmp_path_factory.mktemp("stories")
    changes = {"save": {"every_steps": 4, "keep": 99}, "log": {"every_steps": 1}, "ema": {"decay": 0.9}}
    images = make_images(base / "images", train=24)
    tree = tiny({"name": "zls", "weight": 0.5}, images, base, batch=12, epochs=3, **changes)
    (base / "recipe.yaml").write_text(yaml.safe_dump(tree))
    return base / "recipe.yaml"


@pytest.fixture(scope="session")
def unbroken(recipe: Path) -> Unbroken:
    found: dict[int, Figures] = {}

    def of(ranks: int) -> Figures:
        ranks = max(ranks, 1)
        if ranks not in found:
            story = Story(recipe, recipe.parent / f"unbroken{ranks}", ranks)
            run = story.start()
            assert run.ends() == [0] * ranks, run.text
            found[ranks] = figures(story.run)
        return found[ranks]

    return of
