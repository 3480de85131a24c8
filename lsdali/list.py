"""List what a recipe can name: `lsdali list models|methods|data|augmentations|optimizers|schedules|loggers [TEXT]`."""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from lsdali import parts
from lsdali.errors import command
from lsdali.terminal import say


def first_sentence(thing: Any) -> str:
    """Return the first line of a docstring."""
    thing = thing.func if isinstance(thing, partial) else thing
    return (thing.__doc__ or "").strip().split("\n")[0]


def list_models() -> Iterator[tuple[str, str]]:
    from lsdali.models import MODELS
    from lsdali.models.families.sized import SIZED

    for name, build in MODELS.items():
        yield name, first_sentence(build)
    for kind in SIZED:
        yield kind.name, f"D = {kind.per}n + {kind.rest}. {first_sentence(kind.build)}"
    yield "timm/<name>", "Any network of timm, with pip install lsdali[timm]."
    yield "torchvision/<name>", "Any classifier of torchvision."


def list_methods() -> Iterator[tuple[str, str]]:
    from lsdali.methods import METHODS

    return ((name, first_sentence(kind)) for name, kind in METHODS.items())


def list_data() -> Iterator[tuple[str, str]]:
    from lsdali.data import DATASETS

    return ((name, first_sentence(kind)) for name, kind in DATASETS.items())


def kinds_of(path: str) -> Iterator[tuple[str, str]]:
    """Yield name and docstring of every kind of a part of a recipe."""
    from lsdali.recipe import Recipe
    from lsdali.recipe.kinds import kinds_at, tags

    for kind in kinds_at(Recipe, path.split("."), {}):
        yield from ((name, first_sentence(kind)) for name in tags(kind, "name"))


LISTINGS: dict[str, Callable[[], Iterator[tuple[str, str]]]] = {
    "models": list_models,
    "methods": list_methods,
    "data": list_data,
    "augmentations": lambda: iter(sorted({*kinds_of("data.train.augment")})),
    "optimizers": lambda: kinds_of("optimizer"),
    "schedules": lambda: kinds_of("schedule"),
    "loggers": lambda: kinds_of("log.loggers"),
}

REGISTRIES = {
    "models": "MODELS",
    "methods": "METHODS",
    "data": "DATASETS",
    "augmentations": "AUGMENTATIONS",
    "optimizers": "OPTIMIZERS",
    "loggers": "LOGGERS",
}


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="lsdali list", description=__doc__)
    parser.add_argument("what", choices=LISTINGS, metavar="|".join(LISTINGS))
    parser.add_argument("text", nargs="?", default="", metavar="TEXT", help="only names that hold this text")
    parser.add_argument("--uses", action="append", default=[], metavar="MODULE", help="also what this module has")
    parts.add_refusal(parser)
    options = parser.parse_args(argv)
    parts.use_installed()
    parts.use(options.uses)
    rows = [row for row in LISTINGS[options.what]() if options.text in row[0]]
    width = max((len(name) for name, _ in rows), default=0)
    for name, text in rows:
        source = parts.owner(REGISTRIES.get(options.what, ""), name)
        say(f"{name:{width}}  {text}".rstrip() + (f"  [{source}]" if source else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
