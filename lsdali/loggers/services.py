"""Weights & Biases, and MLflow. Their packages are imported when a run begins."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from lsdali.events import Begun, Evaluated, Event, Finished, Trained
from lsdali.loggers.base import LoggerConfig, need_package, scalars
from lsdali.loggers.tensorboard import flat

LONGEST_PARAMETER = 6000  # characters of a parameter that MLflow takes


class WandbConfig(LoggerConfig):
    """Weights & Biases; needs `pip install 'lsdali[wandb]'`. Figures have the names that TensorBoard has."""

    name: Literal["wandb"]
    project: str = "lsdali"
    """The project that the run belongs to."""
    entity: str | None = None
    """The user or team; null: the default of your account."""
    mode: Literal["online", "offline"] | None = None
    """offline: into the run folder, for `wandb sync`; null: as WANDB_MODE says, else online."""

    def open(self, folder: Path) -> "Wandb":
        need_package("wandb")
        return Wandb(self, folder)


class MlflowConfig(LoggerConfig):
    """MLflow; needs `pip install 'lsdali[mlflow]'`. Figures have the names that TensorBoard has."""

    name: Literal["mlflow"]
    experiment: str = "lsdali"
    """The experiment that the run belongs to; it is created if it does not exist."""
    tracking_uri: str | None = None
    """The tracking server or database, without a password; null: as MLFLOW_TRACKING_URI says, else MLflow's default."""

    def open(self, folder: Path) -> "Mlflow":
        need_package("mlflow")
        return Mlflow(self, folder)


def event_scalars(event: Trained | Evaluated) -> dict[str, float]:
    if isinstance(event, Trained):
        speed = {"images_per_second": event.images_per_second, "data_wait": event.data_wait}
        return scalars("train", {"loss": event.loss, "lr": event.lr, **speed, **event.terms})
    return scalars("val" if event.weights == "model" else event.weights, dict(event.metrics))


def remembered(path: Path, make: Callable[[], str]) -> str:
    """Return the id in a file, made first if there is none. So a resumed run goes on as the same run elsewhere."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(make(), encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()


class Wandb:
    """A run of Weights & Biases, whose axis is our own step: a resumed run may write a step again."""

    def __init__(self, config: WandbConfig, folder: Path) -> None:
        self.config, self.place = config, folder
        self.run: Any = None

    def write(self, event: Event) -> None:
        if isinstance(event, Begun):
            self.run = self.begin(event)
        elif isinstance(event, (Trained, Evaluated)):
            self.run.log({"step": event.step, "epoch": event.epoch, **event_scalars(event)})
        elif isinstance(event, Finished):
            best = event.summary["best"]
            self.run.summary.update({f"best/{name}": value for name, value in best.items()})

    def begin(self, event: Begun) -> Any:
        import wandb

        run = wandb.init(
            project=self.config.project,
            entity=self.config.entity,
            mode=self.config.mode,
            name=self.place.name,
            id=remembered(self.place / "wandb/run-id.txt", lambda: uuid4().hex[:8]),
            resume="allow",
            dir=str(self.place),
            config=dict(event.recipe),
            settings=wandb.Settings(silent=True, console="off"),
        )
        run.define_metric("*", step_metric="step")
        return run

    def close(self) -> None:
        if self.run is not None:
            self.run.finish()


class Mlflow:
    """A run of MLflow."""

    def __init__(self, config: MlflowConfig, folder: Path) -> None:
        self.config, self.place = config, folder
        self.client: Any = None
        self.run = ""
        self.status = "KILLED"

    def write(self, event: Event) -> None:
        if isinstance(event, Begun):
            self.begin(event)
        elif isinstance(event, (Trained, Evaluated)):
            self.log(event_scalars(event), event.step)
        elif isinstance(event, Finished):
            self.status = "FINISHED"
            self.log(scalars("best", event.summary["best"]), event.step)

    def begin(self, event: Begun) -> None:
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        self.client = MlflowClient(tracking_uri=self.config.tracking_uri)
        self.run = remembered(self.place / "mlflow-run-id.txt", self.create)
        self.client.update_run(self.run, status="RUNNING")
        keys = [Param(key, str(value)[:LONGEST_PARAMETER]) for key, value in flat(event.recipe)]
        for start in range(0, len(keys), 100):  # as many as MLflow takes at once
            self.client.log_batch(self.run, params=keys[start : start + 100])

    def create(self) -> str:
        """Return the id of a new run, in the experiment."""
        found = self.client.get_experiment_by_name(self.config.experiment)
        experiment = found.experiment_id if found else self.client.create_experiment(self.config.experiment)
        return str(self.client.create_run(experiment, run_name=self.place.name).info.run_id)

    def log(self, values: dict[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(name, float(value), now, step) for name, value in values.items()]
        self.client.log_batch(self.run, metrics=metrics)

    def close(self) -> None:
        if self.run:
            self.client.set_terminated(self.run, self.status)
