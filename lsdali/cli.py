"""The command `lsdali VERB ...`; each verb is also `python -m lsdali.VERB`."""

import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module

import lsdali
from lsdali.errors import UserError, command
from lsdali.terminal import say

VERBS = {
    "train": "train from a recipe; the same command again continues",
    "evaluate": "metrics of trained networks, temperature scaling, ensembles",
    "figure": "t-SNE, projections, OLS's matrix and others, for papers",
    "predict": "class names and probabilities of images",
    "report": "compare runs",
    "sweep": "train every cell of a table, and print the table",
    "cache": "a teacher's answers, computed once for all of its students",
    "scan": "look at a data set before the first run",
    "pack": "write class folders into tar shards",
    "export": "write a trained network for others",
    "bench": "measure loaders, steps, training, saves, start ... on this machine",
    "env": "look at this machine: versions, devices, limits; for a bug report",
    "list": "what a recipe can name: models, methods, data sets ...",
    "keys": "the keys of a recipe: types, defaults, descriptions",
}


def usage() -> str:
    rows = "\n".join(f"  {verb:9} {text}" for verb, text in VERBS.items())
    return f"usage: lsdali VERB ...\n\n{rows}\n\nlsdali VERB --help says more; lsdali --version names the version."


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb; return its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    verb = arguments[0] if arguments else "--help"
    if verb in ("-h", "--help", "help"):
        say(usage())
    elif verb in ("-V", "--version"):
        say(f"lsdali {lsdali.__version__}")
    elif verb in VERBS:
        return int(import_module(module_of(verb)).main(arguments[1:]))
    else:
        near = get_close_matches(verb, VERBS, 1)
        hint = f"lsdali train {verb}" if verb.endswith((".yaml", ".yml")) else (f"lsdali {near[0]}" if near else "")
        raise UserError(
            f"there is no command {verb!r}; " + (f"did you mean `{hint}`?" if hint else "lsdali --help lists them")
        )
    return 0


def module_of(verb: str) -> str:
    return f"lsdali.{verb}.__main__" if verb in ("evaluate", "figure", "bench", "sweep") else f"lsdali.{verb}"


if __name__ == "__main__":
    sys.exit(main())
