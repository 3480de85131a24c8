"""What methods do with networks that know nothing of lsdali."""

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lsdali import parts
from lsdali.errors import UserError
from lsdali.export import main as export
from lsdali.models import ModelConfig, build_network, discover
from lsdali.testing.contract import check_resume
from lsdali.testing.small import make_images, trainer_for
from tests.methods.trainers import CONFIGS, named, with_teacher
from tests.models.foreign import FOREIGN

NAMES = ("their_resnet", "their_vit", "my_own")


def outcome(config: Any, place: Path, model: Mapping[str, Any]) -> str:
    """Return what became of a run that was stopped in mid-epoch, or why it was refused."""
    try:
        check_resume(config, place, {"model": model})
    except UserError as refusal:
        return f"refused: {refusal}"
    except AssertionError as broken:
        return f"BROKEN: {str(broken).splitlines()[0]}"
    return "equal bits"


def foreign(options: argparse.Namespace) -> None:
    """Every method with three foreign modules: whether it runs, and a run stopped in mid-epoch ends with equal bits.

    Each method has the settings of one of its recipes. Prints a table in Markdown, the refusals below it, and how far
    the exports of each module are from it.
    """
    torch.set_num_threads(1)
    discover.SIDES = (64, 224, 32, 16)  # their_vit takes images of 16 px
    for name in NAMES:
        parts.add("MODELS", name, FOREIGN[name])
    refusals: dict[str, set[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        make_images(base / "images")
        trainer_for({"name": "ce"}, base / "teacher", epochs=1).run()
        print(f"| method | {' | '.join(NAMES)} |\n|---|{'---|' * len(NAMES)}")
        for number, config in enumerate({config["name"]: config for config in CONFIGS}.values()):
            cells = []
            for name in NAMES:
                told = outcome(with_teacher(config, base), base / f"{number}-{name}", {"name": name})
                refusals.setdefault(told, set()).add(name)
                cells.append(told.partition(":")[0])
            print(f"| {named(config)} | {' | '.join(cells)} |", flush=True)
        print("\n" + "\n".join(f"* {told}" for told in sorted(refusals) if told != "equal bits"))
        for name in NAMES:
            tell_exports(name, base / "exports" / name)


def tell_exports(name: str, place: Path) -> None:
    """Print what the stages of a module are, and how far its exports are from it."""
    network = build_network(ModelConfig(name=name), 5)
    print(f"\n{name}: {network.notes[0]}")
    trainer_for({"name": "ce"}, place, epochs=1, model={"name": name}).run()
    for kind in ("safetensors", "torch-export", "onnx"):
        export([str(place), "--format", kind])


def add_arguments(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    sub = commands.add_parser("foreign", help="methods on foreign modules", description=foreign.__doc__)
    sub.set_defaults(run_command=foreign)
