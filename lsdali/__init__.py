"""lsdali: train image classifiers with soft targets, from NVIDIA DALI loaders to resumable DDP runs.

What `__all__` names is for Python programs and stays as it is between minor versions. Nothing is imported before it is
used: `import lsdali` does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lsdali import functional, metrics
    from lsdali.face.loader import Batches, loader
    from lsdali.face.prediction import Prediction, predict
    from lsdali.face.runs import Result
    from lsdali.face.trained import TrainedNetwork, load
    from lsdali.train import train

__version__ = "0.2.0"

__all__ = [
    "Batches",
    "Prediction",
    "Result",
    "TrainedNetwork",
    "functional",
    "load",
    "loader",
    "metrics",
    "predict",
    "train",
]

_PLACES = {
    "Batches": "lsdali.face.loader",
    "Prediction": "lsdali.face.prediction",
    "Result": "lsdali.face.runs",
    "TrainedNetwork": "lsdali.face.trained",
    "load": "lsdali.face.trained",
    "loader": "lsdali.face.loader",
}
"""The module that has each name; the other names are modules."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'lsdali' has no attribute {name!r}")
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    return import_module(f"lsdali.{name}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
