"""Whole sweeps, as users start them: two at once in one folder, a failure, Ctrl-C, and going on."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from lsdali.sweep.__main__ import main
from lsdali.sweep.work import locked
from tests.harness import ROOT, environment, events, make_images, tiny

pytestmark = pytest.mark.ranks


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "lsdali.sweep", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=environment(1), stdout=pipe, stderr=pipe, text=True)


def documented() -> list[str]:
    """The arguments of the first sweep in docs/sweeps.md."""
    found = re.search(r"lsdali sweep (sweeps/digits\.yaml.*)", (ROOT / "docs/sweeps.md").read_text())
    assert found
    return found[1].split("#")[0].split()


def test_two_sweeps_in_one_folder_train_each_cell_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    name, *options = documented()
    (tmp_path / "sweeps").symlink_to(ROOT / "sweeps")
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    arguments = [name, *options, "epochs=1", "data.max_samples=192"]
    both = [start(tmp_path, *arguments) for _ in range(2)]
    told = [process.communicate(timeout=240) for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    runs = sorted((tmp_path / "runs/digits/train").glob("*_seed*"))
    assert [run.name for run in runs] == [f"{m}_seed{s}" for m in ("CE", "LS", "ZLS") for s in (0, 1)]
    assert [len(events(run, "begun")) for run in runs] == [1] * 6
    begun = [re.findall(r"starts +train/(\S+)", out) for out, _ in told]
    assert sorted(begun[0] + begun[1]) == [run.name for run in runs]
    assert all(begun)
    table = (tmp_path / "runs/digits/digits-last-epoch.md").read_text()
    errors = [100 - json.loads((run / "summary.json").read_text())["last"]["top1"] for run in runs[:2]]
    assert f"| CE | {sum(errors) / 2:.2f} ± " in table
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "6 finished, 0 failed, 0 left of 6 cells" in out
    assert "starts" not in out
    assert main([name, "epochs=2", "data.max_samples=192", "--only", "train/CE_seed0"]) == 1
    other = "runs/digits/train/CE_seed0 holds a run of another recipe (epochs: 1 -> 2)"
    assert other in capsys.readouterr().err


def sweep_file(folder: Path) -> Path:
    """Teachers, of which one has lost its data, and students that use their weights and temperature."""
    holdout = {"data.holdout": {"fraction": 0.25}}
    tree = tiny({"name": "ce"}, make_images(folder / "images"), folder / "unused", epochs=1)
    (folder / "base.yaml").write_text(yaml.safe_dump(tree))
    teacher = {
        "source": "checkpoint",
        "path": "{teachers}/checkpoints/best.pt",
        "temperature": "{teachers:test.temperature}",
    }
    long = {"epochs": 20, "evaluate.every_epochs": 20, "save": {"every_epochs": 20, "every_steps": 1}}
    stages = {
        "teachers": {
            "recipe": "base.yaml",
            "set": holdout,
            "axes": {"data": {"points": {"kept": {}, "lost": {"data.root": "nowhere"}}}},
            "evaluate": {"test": {"set": {"data.holdout": None}, "temperature": "held_out", "bins": ["width:10"]}},
        },
        "students": {
            "recipe": "base.yaml",
            "set": {"method": {"name": "kd", "teacher": teacher}, **long},
            "axes": {"data": {"points": {"kept": {}, "lost": {}}}},
        },
    }
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    return path


def test_a_failure_stops_nothing_else_and_a_stopped_sweep_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LSDALI_CACHE", str(tmp_path / "cache"))
    path = sweep_file(tmp_path)
    student = tmp_path / "runs/mine/students/kept_seed0"
    sweep = start(tmp_path, str(path))
    deadline = time.monotonic() + 120
    while not any((student / "checkpoints").glob("step-*.pt")):
        assert sweep.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    sweep.send_signal(signal.SIGINT)
    out, error = sweep.communicate(timeout=60)
    assert sweep.returncode == 128 + signal.SIGINT
    assert re.search(r"stopped +students/kept_seed0", out)
    assert "1 finished, 2 failed, 1 left of 4 cells" in out
    log = "runs/mine/teachers/logs/lost_seed0.txt"
    assert re.search(rf"failed: teachers/lost_seed0: error: .*nowhere.* \(status 2; {log}\)", error)
    assert "failed: students/lost_seed0: needs teachers/lost_seed0, which failed" in error
    assert not (student / "summary.json").exists()
    with (student / ".lock").open("a") as lock:
        assert locked(lock), "the run has ended with the sweep"
    assert main([str(path), "--only", "students/kept*"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"resumes +students/kept_seed0", out)
    assert "2 finished, 0 failed, 0 left of 2 cells" in out
    found = json.loads((tmp_path / "runs/mine/teachers/kept_seed0/test.json").read_text())
    assert all("ece width:10" in row["metrics"] for row in found["rows"])
    (fit,) = found["fits"]
    recipe = yaml.safe_load((student / "recipe.yaml").read_text())
    assert recipe["method"]["teacher"]["temperature"] == fit["temperature"]
    assert len(events(student, "begun")) == 2
