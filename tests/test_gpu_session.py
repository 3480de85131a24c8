"""The GPU session in small: its commands exist, it goes on where it stopped, and no step outlives its time."""

import json
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.gpu.__main__ import main
from benchmarks.gpu.plan import steps_of
from benchmarks.gpu.session import Session, Step, carry_out
from lsdali.bench.__main__ import main as bench


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(40):
        Image.new("RGB", (60 + number, 50), (5 * number, 80, 200 - 5 * number)).save(folder / f"{number}.jpg")
    return folder


def found(out: Path, step: str) -> dict:
    return json.loads((out / f"{step}.json").read_text())


def test_a_rehearsal_on_the_cpu(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LSDALI_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "out"
    command = [str(images), "--out", str(out), "--rehearse", "--only", "probes", "whole"]
    assert main(command) == 0, capsys.readouterr().out
    answers = found(out, "probes")["findings"][0]
    assert sum(answer["said"].startswith("right: ") for answer in answers.values()) == 3
    assert sum(answer["said"] == "needs a GPU" for answer in answers.values()) == 3
    whole = found(out, "whole")
    assert (whole["status"], len(whole["commands"])) == ("ok", 2)
    assert json.loads((out / "runs/pskd/summary.json").read_text())["steps"] == 10
    before = (out / "probes.json").stat().st_mtime_ns
    assert main(command) == 0
    assert (out / "probes.json").stat().st_mtime_ns == before
    rows = (out / "table.txt").read_text().splitlines()
    assert [row.split()[:2] for row in rows] == [["probes", "ok"], ["whole", "ok"]]


@pytest.mark.parametrize("rehearse", [False, True])
def test_every_command_of_the_benchmarks_is_one(
    rehearse: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = []
    kept = lambda module, name: lambda options: ran.append((module, options))  # noqa: E731
    monkeypatch.setattr("lsdali.bench.__main__.on_call", kept)
    steps = steps_of(Session(tmp_path, tmp_path / "out", rehearse=rehearse))
    for step in steps:
        for words in step.commands:
            if "bench" in words:
                assert bench(words[words.index("bench") + 1 :]) == 0
            assert words[0] == sys.executable
    assert {module for module, _ in ran} == {"training", "methods", "step", "phases"}
    assert sum(step.seconds for step in steps) <= 40 * 60
    assert len({step.name for step in steps}) == len(steps) == 13


def test_a_step_ends_with_its_time_and_its_children_with_it(tmp_path: Path) -> None:
    mark = tmp_path / "late"
    child = f"import time; time.sleep(3); open({str(mark)!r}, 'w')"
    parent = f"import subprocess, sys; print('begun', flush=True); subprocess.run([sys.executable, '-c', {child!r}])"
    began = time.monotonic()
    result = carry_out(Step("slow", "why", 1.0, ((sys.executable, "-c", parent),)), 1.0, tmp_path)
    assert time.monotonic() - began < 2.9
    assert (result.status, result.headline) == ("out of time", "begun")
    time.sleep(3.2 - (time.monotonic() - began) if time.monotonic() - began < 3.2 else 0)
    assert not mark.exists()
    failed = carry_out(Step("bad", "why", 9.0, ((sys.executable, "-c", "raise SystemExit('no')"),)), 9.0, tmp_path)
    assert (failed.status, failed.headline) == ("failed", "no")


def test_wrong_input_is_refused(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "out")]
    assert main([str(tmp_path / "nothing"), *out]) == 2
    assert "holds 0 JPEGs" in capsys.readouterr().err
    assert main([str(images), *out, "--only", "fact"]) == 2
    assert "there is no step fact; --list names them" in capsys.readouterr().err
    assert main([str(images), *out, "--list"]) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith("facts")
