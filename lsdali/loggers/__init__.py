"""Further destinations of a run's figures, beside events.jsonl and the scalars of TensorBoard.

They are best effort: one that fails is reported once, and the run continues without it.
"""

from collections.abc import Sequence
from functools import reduce
from operator import or_
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from lsdali import dist, parts
from lsdali.events import Events
from lsdali.loggers.base import BestEffort, LoggerConfig
from lsdali.loggers.services import MlflowConfig, WandbConfig
from lsdali.loggers.tables import CsvConfig
from lsdali.loggers.tensorboard import HparamsConfig

LOGGERS: dict[str, type[LoggerConfig]] = {
    "csv": CsvConfig,
    "hparams": HparamsConfig,
    "wandb": WandbConfig,
    "mlflow": MlflowConfig,
}
parts.opened("LOGGERS", LOGGERS, "logger", parts.tagged(LoggerConfig, lambda kind: kind))

if TYPE_CHECKING:
    Logger = LoggerConfig
else:
    Logger = Annotated[reduce(or_, LOGGERS.values()), Field(discriminator="name")]

USUAL: tuple[Any, ...] = (CsvConfig(name="csv"), HparamsConfig(name="hparams"))
"""The loggers of a recipe that names none."""


def with_loggers(events: Events, loggers: Sequence[LoggerConfig], folder: Path) -> Events:
    """Return the events with the loggers as further sinks; on rank 0, which alone tells anything.

    Raises UserError if a logger's package is not installed.
    """
    if not dist.is_main():
        return events
    found = [BestEffort(config.name, config.open(folder), events.log) for config in loggers]
    return Events([*events.sinks, *found])
