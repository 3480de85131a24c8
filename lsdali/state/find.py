"""Find a checkpoint of a trained run."""

from pathlib import Path

from lsdali.errors import UserError
from lsdali.state import checkpoint


def find_checkpoint(run: Path, which: str = "best") -> Path:
    """Return a checkpoint of a run folder, or `run` itself if it is a file.

    `which` is best, last (the newest), or a file: its name in the run's checkpoint folder, or its path.
    Raises UserError if there is none that is whole.
    """
    folder = run / "checkpoints"
    if not run.is_dir():
        path = run
    elif which == "last":
        path = max(folder.glob("step-*.pt"), default=folder / "step-*.pt")
    else:
        path = folder / ("best.pt" if which == "best" else which)
        path = path if path.is_file() or which == "best" else Path(which)
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}: name a run folder or a checkpoint file")
    wrong = checkpoint.fault(path)
    if wrong is not None:
        way = f"; a recipe reads others' weights: model.weights={{source: file, path: {path}}}"
        raise UserError(f"the checkpoint {path} is {wrong}{way if wrong == checkpoint.FOREIGN else ''}")
    return path
