"""Mend what the README says of the registries: how many methods, networks and data sets, and the table of methods."""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path

from lsdali.data import DATASETS
from lsdali.list import first_sentence
from lsdali.methods import METHODS
from lsdali.models import MODELS

README = Path(__file__).parents[1] / "README.md"
HEAD = "| `name` | what it does |\n|---|---|\n"


def mended(text: str, methods: Mapping[str, str], networks: int, data_sets: int) -> str:
    """Return the README's text with today's figures, and with each method (name and sentence) in the table once.

    A method that it lacks comes last, with its sentence. One that is gone loses its place, and a row without a method
    goes.
    """
    for what, count in (("methods", len(methods)), ("networks", networks), ("kinds of data sets", data_sets)):
        text = re.sub(rf"\d+ {what}", f"{count} {what}", text)
    before, table, after = re.split(rf"(?<={re.escape(HEAD)})(.*?)(?=\n\n)", text, maxsplit=1, flags=re.DOTALL)
    rows, seen = [], set()
    for row in table.splitlines():
        _, cell, rest = row.split("|", 2)
        names = [name for name in re.findall(r"`(\w+)`", cell) if name in methods and name not in seen]
        seen.update(names)
        if names:
            rows.append(f"| {', '.join(f'`{name}`' for name in names)} |{rest}")
    rows += [f"| `{name}` | {sentence} |" for name, sentence in methods.items() if name not in seen]
    return before + "\n".join(rows) + after


def readme(options: argparse.Namespace) -> None:
    """Write the README anew if it differs from the registries."""
    sentences = {name: first_sentence(method).rstrip(".") for name, method in METHODS.items()}
    text = README.read_text()
    new = mended(text, sentences, len(MODELS), len(DATASETS))
    if new != text:
        README.write_text(new)
    print("README.md is as the registries are" if new == text else "README.md is mended: look at its rows and figures")


def add_arguments(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    sub = commands.add_parser("readme", help="mend the README's figures and methods", description=__doc__)
    sub.set_defaults(run_command=readme)
