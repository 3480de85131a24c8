"""Tests for parts of other packages: the contract that our own methods are tested by."""

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["TEACHER", "check_method"]

TEACHER = "TEACHER"
"""In a method's config, stands for the checkpoint file of a teacher, which is then trained first."""


def check_method(
    config: str | Mapping[str, Any], *, uses: Sequence[str] = (), ranks: Sequence[int] = (1, 2, 4)
) -> None:
    """Check what every method promises; it takes about a minute and no GPU.

    The loss is a finite number that reaches every parameter and writes to nothing. State that the method does not know
    is refused. A run that is stopped in mid-epoch and goes on ends in the same bits as one that is not, on each number
    of `ranks`. If 2 is among these, two ranks train as one does.

    Args:
        config: the method's part of a recipe, or its name; a path may be TEACHER
        uses: the modules that have the method, as in a recipe
        ranks: numbers of processes to resume on; more than one starts that many

    Raises AssertionError that says which promise is broken, and UserError for a config that is wrong.
    """
    from lsdali.testing import contract
    from lsdali.testing.ranks import Ranks
    from lsdali.testing.small import make_images, trainer_for

    others = {"uses": list(uses)}
    tree: Any = {"name": config} if isinstance(config, str) else dict(config)
    with _folder() as base:
        make_images(base / "images")
        if TEACHER in str(tree):
            trainer_for({"name": "ce"}, base / "teacher", epochs=1).run()
            tree = _filled(tree, str(base / "teacher/checkpoints/best.pt"))
        contract.check_loss(tree, base / "loss", others)
        contract.check_unknown_state(tree, base / "state", others)
        group = Ranks()
        try:
            if 2 in ranks:
                contract.save_weights(tree, base / "two", others)
                group.run(2, contract.check_weights, tree, base / "two", others)
            for world in ranks:
                arguments = tree, base / f"resume{world}", others
                contract.check_resume(*arguments) if world == 1 else group.run(world, contract.check_resume, *arguments)
        finally:
            group.stop()


@contextmanager
def _folder() -> Iterator[Path]:
    """A folder of the check alone, with its cache in it."""
    before = os.environ.get("LSDALI_CACHE")
    with tempfile.TemporaryDirectory() as name:
        os.environ["LSDALI_CACHE"] = f"{name}/cache"
        try:
            yield Path(name)
        finally:
            del os.environ["LSDALI_CACHE"]
            if before is not None:
                os.environ["LSDALI_CACHE"] = before


def _filled(tree: Any, teacher: str) -> Any:
    """Return a config with the teacher's file in the place of TEACHER."""
    if isinstance(tree, Mapping):
        return {key: _filled(value, teacher) for key, value in tree.items()}
    return teacher if tree == TEACHER else tree
