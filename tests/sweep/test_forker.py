"""Commands as forks of one process: their status, log, session and environment, and the same bits as a new process."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from lsdali.selection import Select
from lsdali.sweep.forker import Forked, Forker
from lsdali.sweep.work import spawn
from tests.harness import ROOT, environment, summary

SMALL = ["epochs=2", "data.max_samples=96", "batch=48", "model.width=16", "data.threads=1"]
CE = str(ROOT / "recipes/digits/ce.yaml")


@pytest.fixture(scope="module")
def forker() -> Iterator[Forker]:
    forker = Forker({**environment(1), "LSDALI_TOLD": "yes"})
    yield forker
    forker.close()


def ended(command: Forked, seconds: float = 120) -> int:
    """Wait for a command; its status."""
    deadline = time.monotonic() + seconds
    while (status := command.poll()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return status


def python(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", module, *arguments]


def test_the_status_and_the_log_are_those_of_the_command(forker: Forker, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("$ first\n")
    assert ended(forker.begin(python("lsdali.keys", "select"), log)) == 0
    assert ended(forker.begin(python("lsdali.train"), log)) == 2
    assert ended(forker.begin(python("lsdali.keys", "--no-such-option"), log)) == 2
    assert ended(forker.begin(python("lsdali.no_such_module"), log)) == 1
    text = log.read_text()
    assert text.startswith(f"$ first\n{str(Select.__doc__).splitlines()[0]}\n")
    assert "error: which recipe? Give a YAML file" in text
    assert "No module named 'lsdali.no_such_module'" in text


def test_a_fork_that_is_killed_takes_nothing_with_it(forker: Forker, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = forker.begin(python("lsdali.train", CE, *SMALL, "epochs=400", f"run_dir={run}"), tmp_path / "log.txt")
    deadline = time.monotonic() + 120
    while not (run / "events.jsonl").exists():
        assert command.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    children = Path(f"/proc/{forker._process.pid}/task/{forker._process.pid}/children").read_text().split()
    pid = int(children[0])
    assert os.getsid(pid) == pid
    assert b"LSDALI_TOLD=yes" in Path(f"/proc/{pid}/environ").read_bytes()
    command.send_signal(signal.SIGKILL)
    assert ended(command) == -signal.SIGKILL
    assert ended(forker.begin(python("lsdali.keys"), tmp_path / "log.txt")) == 0


def test_a_fork_trains_to_the_bits_of_a_new_process(forker: Forker, tmp_path: Path) -> None:
    start = partial(spawn, environment(1))
    digests = []
    for name, begin in (("new", start), ("fork", forker.begin), ("again", forker.begin)):
        run = tmp_path / name
        child = begin(python("lsdali.train", CE, *SMALL, f"run_dir={run}"), tmp_path / f"{name}.txt")
        while child.poll() is None:
            time.sleep(0.01)
        digests.append(summary(run)["digest"])
    assert digests[0] == digests[1] == digests[2]


def test_a_process_that_has_ended_is_told_as_a_failure(tmp_path: Path) -> None:
    forker = Forker(environment(1))
    command = forker.begin(python("lsdali.keys"), tmp_path / "log.txt")
    forker._process.kill()
    forker._process.wait()
    assert ended(command) in (0, 1)
    assert not forker.lives
    forker.close()
