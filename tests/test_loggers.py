"""Where figures of a run go beside events.jsonl: the same figures, whatever happens on the way; and the profile."""

import csv
import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lsdali.errors import UserError
from lsdali.events import Begun, Evaluated, Event, Events, Finished, Trained
from lsdali.loggers import LOGGERS, with_loggers
from lsdali.loggers.services import MlflowConfig, WandbConfig
from lsdali.loggers.tables import CsvConfig
from lsdali.loggers.tensorboard import HparamsConfig
from lsdali.recipe import Recipe, load
from lsdali.train import run
from tests.harness import ROOT, events, make_images, summary, tiny

CHANGES = [{"epoch": 1}]
RECIPE = {"epochs": 2, "seed": 0, "optimizer": {"name": "sgd", "lr": 0.5}, "ema": None, "batch_schedule": CHANGES}
METRICS = {"top1": 50.0, "nll": 1.25, "ece": 3.5, "aurc": 200.0}


def begun(step: int) -> Begun:
    return Begun(RECIPE, {}, "cpu", 1, step, 8, step // 4, 2, 1000, "sgd")


def trained(step: int, loss: float) -> Trained:
    return Trained(step, 1 + (step - 1) // 4, loss, 0.5, 100.0, 0.25, {"ce": loss})


def finished() -> Finished:
    return Finished(8, {"best": {"top1": 50.0}, "last": {"top1": 50.0}, "stopped": None, "selected_by": "top1"})


HISTORY: list[Event] = [begun(0), trained(2, 4.0), trained(4, 3.0), Evaluated(4, 1, "model", METRICS), trained(6, 9.0)]
RESUMED: list[Event] = [begun(4), trained(6, 2.0), Evaluated(8, 2, "ema", METRICS), finished()]


class Told:
    """A sink that keeps what it is told."""

    place = Path("told")

    def __init__(self) -> None:
        self.lines: list[str] = []

    def write(self, event: Event) -> None:
        self.lines += [event.text] if hasattr(event, "text") else []

    def close(self) -> None: ...


def write_history(config: Any, folder: Path, pause: float = 0.0) -> list[str]:
    """A run that is cut off after step 6 and goes on from step 4; what was said in between."""
    told = Told()
    for part in (HISTORY, RESUMED):
        time.sleep(pause)
        out = with_loggers(Events([told]), [config], folder)
        for event in part:
            out.write(event)
        out.close()
    return told.lines


def test_the_registry_knows_every_logger_by_its_name() -> None:
    assert {name: kind.model_fields["name"].annotation.__args__ for name, kind in LOGGERS.items()} == {
        name: (name,) for name in LOGGERS
    }
    recipe = load(ROOT / "recipes/digits/ce.yaml", ["log.loggers=[csv, {name: wandb, project: mine}]"])
    assert [logger.name for logger in recipe.log.loggers] == ["csv", "wandb"]
    assert [logger.name for logger in load(ROOT / "recipes/digits/ce.yaml").log.loggers] == ["csv", "hparams"]


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_csv_files_hold_each_step_once(tmp_path: Path) -> None:
    assert write_history(CsvConfig(name="csv"), tmp_path) == []
    rows = table(tmp_path / "train.csv")
    assert [(row["step"], row["epoch"], float(row["loss"])) for row in rows] == [
        ("2", "1", 4.0),
        ("4", "1", 3.0),
        ("6", "2", 2.0),
    ]
    assert list(rows[0]) == ["step", "epoch", "loss", "lr", "images_per_second", "data_wait", "ce"]
    rows = table(tmp_path / "evaluations.csv")
    assert [(row["step"], row["weights"], row["nll"]) for row in rows] == [("4", "model", "1.25"), ("8", "ema", "1.25")]


def test_a_row_that_was_cut_off_is_dropped(tmp_path: Path) -> None:
    out = with_loggers(Events([]), [CsvConfig(name="csv")], tmp_path)
    out.write(trained(2, 4.0))
    with (tmp_path / "train.csv").open("a") as file:
        file.write("3,1,2.")
    out.write(begun(4))
    out.write(trained(6, 2.0))
    assert [row["step"] for row in table(tmp_path / "train.csv")] == ["2", "6"]


def test_a_logger_that_fails_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "train.csv").mkdir()
    (line,) = write_history(CsvConfig(name="csv"), tmp_path)[:1]
    assert line.startswith("the logger csv has failed, and the run goes on without it: ")
    told = Told()
    out = with_loggers(Events([told]), [CsvConfig(name="csv")], tmp_path)
    for event in HISTORY:
        out.write(event)
    out.close()
    assert len(told.lines) == 1


def records(path: Path) -> Iterator[bytes]:
    """The records of an event file of TensorBoard: length, check sum, content, check sum."""
    content = path.read_bytes()
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        yield content[12 : 12 + length]
        content = content[16 + length :]


def test_tensorboard_has_the_recipe_as_text_and_hyperparameters(tmp_path: Path) -> None:
    from tensorboardX.proto.event_pb2 import Event as Record
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

    assert write_history(HparamsConfig(name="hparams"), tmp_path) == []
    values = {}
    for path in (tmp_path / "tensorboard").glob("events.out.tfevents.*"):
        for content in records(path):
            record = Record()
            record.ParseFromString(content)
            values.update({value.tag: value for value in record.summary.value})
    assert "    lr: 0.5\n" in values["recipe/text_summary"].tensor.string_val[0].decode()
    plugin = HParamsPluginData()
    plugin.ParseFromString(values["_hparams_/session_start_info"].metadata.plugin_data.content)
    given = plugin.session_start_info.hparams
    assert given["optimizer.lr"].number_value == 0.5
    assert given["optimizer.name"].string_value == "sgd"
    assert given["batch_schedule"].string_value == "[{epoch: 1}]"
    assert "ema" not in given
    assert "_hparams_/session_end_info" in values


def wandb_records(path: Path) -> list[Any]:
    """The records of an offline run: LevelDB's log format, in which small records are whole; wandb ends it later."""
    from wandb.proto.wandb_internal_pb2 import Record

    found: list[Any] = []
    deadline = time.monotonic() + 30
    while not found or found[-1].WhichOneof("record_type") != "exit":
        assert time.monotonic() < deadline, f"{path} has no end"
        found, content = [], path.read_bytes()[7:]
        while len(content) > 7:
            _, length, kind = struct.unpack("<IHB", content[:7])
            assert kind == 1
            record = Record()
            record.ParseFromString(content[7 : 7 + length])
            found.append(record)
            content = content[7 + length :]
    return found


def test_wandb_offline_has_every_figure(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed: pip install 'lsdali[wandb]'")
    config = WandbConfig(name="wandb", mode="offline")
    assert write_history(config, tmp_path, pause=1.1) == []  # wandb names folders by the second
    files = sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2
    assert len({path.name for path in files}) == 1, "a resumed run is the same run"
    losses, recipe = [], {}
    for record in (record for path in files for record in wandb_records(path)):
        items = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
        losses += [(int(items["step"]), float(items["train/loss"]))] if "train/loss" in items else []
        recipe.update({item.key: json.loads(item.value_json) for item in record.run.config.update})
    assert losses == [(2, 4.0), (4, 3.0), (6, 9.0), (6, 2.0)]
    assert recipe["optimizer"] == {"name": "sgd", "lr": 0.5}


def test_mlflow_has_every_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="mlflow is not installed: pip install 'lsdali[mlflow]'")
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = f"file://{tmp_path}/store"
    folder = tmp_path / "run"
    folder.mkdir()
    assert write_history(MlflowConfig(name="mlflow", experiment="mine", tracking_uri=uri), folder) == []
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("mine")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.run_name, found.info.status) == ("run", "FINISHED")
    assert found.data.params["optimizer.lr"] == "0.5"
    history = client.get_metric_history(found.info.run_id, "train/loss")
    assert sorted((metric.step, metric.value) for metric in history) == [(2, 4.0), (4, 3.0), (6, 2.0), (6, 9.0)]
    assert found.data.metrics["ema/top1"] == 50.0


def test_a_package_that_is_missing_is_named_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lsdali.loggers.base.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"log.loggers names wandb, which is not installed: pip install 'lsdali\[wandb"):
        with_loggers(Events([]), [WandbConfig(name="wandb")], tmp_path)


def train(folder: Path, **log: Any) -> Path:
    """A run of ten steps with these keys of `log`; its folder."""
    tree = tiny({"name": "ce"}, make_images(folder.parent / "images"), folder, log={"every_steps": 2, **log})
    run(Recipe.model_validate(tree), torch.device("cpu"))
    return folder


def test_a_run_writes_tables_and_profiles_without_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSDALI_CACHE", str(tmp_path / "cache"))
    plain = train(tmp_path / "plain", loggers=[])
    told = train(tmp_path / "told", profile={"steps": [4, 6]})
    assert summary(plain)["digest"] == summary(told)["digest"]
    assert not (plain / "train.csv").exists()
    rows = table(told / "train.csv")
    assert [float(row["loss"]) for row in rows] == [line["loss"] for line in events(told, "trained")]
    trace = json.loads((told / "profile/steps-4-6.json").read_text())
    steps = [e for e in trace["traceEvents"] if e.get("name", "").startswith("Optimizer.step#") and e.get("ph") == "X"]
    assert len(steps) == 3
    with pytest.raises(UserError, match=r"log.profile.steps \[4, 60\]: this run has 10 steps"):
        train(tmp_path / "short", profile={"steps": [4, 60]})
