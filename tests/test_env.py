"""lsdali.env: what it finds on this machine, and its verdicts on worse ones."""

import json
import os
import resource
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lsdali import env
from lsdali.data.pipeline import self_test


def verdicts(findings) -> dict[str, str]:
    return {finding.name: finding.verdict for finding in findings}


def test_this_machine_can_train(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert env.main(["--json", "--run-dir", str(tmp_path / "runs/new")]) == 0
    found = {line["name"]: line for line in json.loads(capsys.readouterr().out)}
    assert "torch" in found["versions"]["found"]
    assert found["CPU decoding"]["found"].startswith("a window of a 4:2:0 JPEG, 0.")
    assert str(tmp_path) in found["run folder"]["found"]
    assert not (tmp_path / "runs").exists()
    assert all(line["remedy"] for line in found.values() if line["verdict"] != "ok")


def test_what_is_wrong_is_the_status_and_has_a_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also a check that fails in a way of its own; the others still run."""
    monkeypatch.setattr(self_test, "resized_graph", lambda *_: 1 / 0)
    assert env.main([]) == 1
    out = capsys.readouterr().out
    assert "wrong   decoding       ZeroDivisionError: division by zero\n" in out
    assert "ok      clock" in out


def test_a_window_of_the_wrong_pixels_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    black = np.zeros((48, 48, 3), np.float32)
    monkeypatch.setattr(self_test, "resized_graph", lambda *_: SimpleNamespace(run=lambda: ([black], None)))
    assert verdicts(env.decoding())["CPU decoding"] == "wrong"


@pytest.mark.parametrize(
    ("free", "shared", "folder"),
    [(0, "wrong", "wrong"), (2**26, "warning", "wrong"), (2**30, "ok", "warning"), (2**34, "ok", "ok")],
)
def test_room(monkeypatch: pytest.MonkeyPatch, free: int, shared: str, folder: str) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free, total=2**35))
    assert verdicts(env.memory())["shared memory"] == shared
    assert verdicts(env.disk("runs", Path("/"), "another")) == {"runs": folder}


def test_limits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for soft, verdict in ((20, "wrong"), (256, "warning"), (4096, "ok"), (resource.RLIM_INFINITY, "ok")):
        monkeypatch.setattr(resource, "getrlimit", lambda _, soft=soft: (soft, soft))
        assert verdicts(env.handles())["open files"] == verdict
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert verdicts(env.processor()) == {"processor": "warning"}
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert verdicts(env.disk("runs", tmp_path, "another")) == {"runs": "wrong"}


def test_two_packages_of_dali_overwrite_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    both = [SimpleNamespace(name=f"nvidia-dali-cuda1{n}0", version="2.4.0") for n in (2, 3)]
    for packages, verdict in ((both, "wrong"), (both[:1], "ok"), ([], "ok")):
        monkeypatch.setattr(env.metadata, "distributions", lambda packages=packages: packages)
        assert verdicts(env.dali_rows()) == {"DALI": verdict}


def test_an_apex_without_kernels_and_a_clock_that_is_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    for modules, verdict in (({"apex"}, "warning"), ({"apex", "amp_C"}, "ok"), (set(), "ok")):
        monkeypatch.setattr(env.util, "find_spec", lambda name, modules=modules: name in modules or None)
        assert verdicts(env.apex()) == {"apex": verdict}
    monkeypatch.setattr(env.time, "time", lambda: 0.0)
    assert verdicts(env.clock()) == {"clock": "wrong"}
