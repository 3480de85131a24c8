"""Whether runs by each of timm's optimizers go on exactly."""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch

from lsdali.errors import UserError
from lsdali.models.digest import weights_digest
from lsdali.optim.optimizer import UNUSABLE
from lsdali.testing.contract import check_resume
from lsdali.testing.ranks import Ranks
from lsdali.testing.small import make_images, trainer_for

METHOD = {"name": "ls"}


def resumed(optimizer: dict[str, Any], place: Path, out: str) -> None:
    """Check that a stopped run ends as one that is not, and leave the digest of its weights in the file `out`."""
    others = {"optimizer": optimizer}
    check_resume(METHOD, place, others)
    trainer = trainer_for(METHOD, place / "stopped", ema={"decay": 0.5}, **others)
    content = trainer.checkpoints.newest()
    assert content is not None
    trainer.restore(content["parts"])
    Path(out).write_text(weights_digest(trainer.student))


def told(optimizer: dict[str, Any], place: Path, group: Ranks, ranks: int) -> str:
    """Return the start of the digest, or what went wrong."""
    out = f"{place}-digest"
    try:
        if ranks == 1:
            resumed(optimizer, place, out)
        else:
            group.run(ranks, resumed, optimizer, place, out)
    except UserError as refusal:
        return f"refused: {refusal}"
    except AssertionError as broken:
        return f"BROKEN: {str(broken).strip().splitlines()[-1]}"
    return Path(out).read_text()[:12]


def optimizers(options: argparse.Namespace) -> None:
    """Each of timm's optimizers: the weights of a run that was stopped in mid-epoch and went on, on 1 and 2 ranks.

    Both must be those of a run that was never stopped. Prints a table in Markdown with the start of their digests.
    """
    from timm.optim import list_optimizers

    torch.set_num_threads(1)
    names = options.names or [name for name in list_optimizers() if not name.startswith(UNUSABLE)]
    group = Ranks()
    print("| optimizer | 1 rank | 2 ranks |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        make_images(Path(folder) / "images")
        try:
            for name in names:
                optimizer = {"name": f"timm/{name}", "lr": options.lr, "weight_decay": 0.001}
                cells = [told(optimizer, Path(folder) / f"{name}-{ranks}", group, ranks) for ranks in (1, 2)]
                print(f"| {name} | {' | '.join(cells)} |", flush=True)
        finally:
            group.stop()


def add_arguments(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    sub = commands.add_parser("optimizers", help="resume with timm's optimizers", description=optimizers.__doc__)
    sub.add_argument("names", nargs="*", help="of optimizers (default: all)")
    sub.add_argument("--lr", type=float, default=1e-3)
    sub.set_defaults(run_command=optimizers)
