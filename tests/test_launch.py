"""bash_scripts/launch.sh: what torchrun is given, and that runs under it survive."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from lsdali import dist
from lsdali.errors import UserError
from tests.harness import ROOT, descendants, environment, events, kill_tree, make_images, summary, tiny, train

LAUNCH = ["bash", str(ROOT / "bash_scripts/launch.sh")]
VARIABLES = {**environment(2), "PYTHON": sys.executable, "NPROC": "2"}


def launch(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*LAUNCH, *arguments], cwd=ROOT, env=VARIABLES, capture_output=True, text=True, timeout=240, check=False
    )


def wait_for_file(path: Path, runs: Callable[[], bool] = lambda: True) -> None:
    """Wait until it exists; `runs` tells whether it still may."""
    deadline = time.monotonic() + 240
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never appeared"
        assert runs(), "the run ended too early"
        time.sleep(0.005)


def gone(processes: list[int]) -> None:
    """Wait until none of them runs; helpers of a killed process end when they notice."""
    deadline = time.monotonic() + 20
    for stat in (Path(f"/proc/{process}/stat") for process in processes):
        while stat.exists() and stat.read_text().rpartition(") ")[2][0] != "Z":
            assert time.monotonic() < deadline, f"still there: {(stat.parent / 'cmdline').read_text()}"
            time.sleep(0.01)


def checkpoint(run_dir: Path, step: int) -> Path:
    return run_dir / f"checkpoints/step-{step:010}.pt"


def listeners(processes: list[int]) -> set[str]:
    """The local addresses, as hexadecimal words, on which these processes listen for TCP connections."""
    sockets = set()
    for process in processes:
        for handle in Path(f"/proc/{process}/fd").iterdir():
            if handle.exists() or handle.is_symlink():
                sockets.add(os.readlink(handle))
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return {row[1].split(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in sockets}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["train", "recipes/digits/ce.yaml", "epoch=1"], "error: command line: epoch: unknown key"),
        (
            ["recipes/digits/ce.yaml"],
            "error: there is no command 'recipes/digits/ce.yaml'; did you mean `lsdali train re",
        ),
    ],
)
def test_a_mistake_is_said_before_torchrun_starts(arguments: list[str], sentence: str) -> None:
    done = launch(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(sentence)
    assert done.stderr.count("\n") <= 2


def test_srun_without_torchrun_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    with pytest.raises(UserError, match="srun started 8 tasks that know nothing of each other: start one task per"):
        dist.refuse_bare_srun()
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "8")
    dist.refuse_bare_srun()


@pytest.mark.ranks
def test_a_lost_worker_and_a_usr2_leave_the_final_weights_alone(tmp_path: Path) -> None:
    """A killed worker is started again in place; USR2 ends agent and workers; the same command then finishes.

    All the while nothing listens outside the loopback.
    """
    recipe = tmp_path / "recipe.yaml"
    tree = tiny({"name": "ce"}, make_images(tmp_path / "images"), tmp_path / "cut", epochs=12)
    recipe.write_text(yaml.safe_dump({**tree, "save": {"every_steps": 1, "keep": 200}}))
    with subprocess.Popen(
        [*LAUNCH, "train", str(recipe)], cwd=ROOT, env=VARIABLES, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    ) as agent:
        try:
            wait_for_file(checkpoint(tmp_path / "cut", 3), lambda: agent.poll() is None)
            workers = descendants(agent.pid)
            assert listeners([agent.pid, *workers]) == {"0100007F"}
            os.kill(max(workers), signal.SIGKILL)
            wait_for_file(checkpoint(tmp_path / "cut", 25), lambda: agent.poll() is None)
            workers = descendants(agent.pid)
            agent.send_signal(signal.SIGUSR2)
            assert agent.wait(60) == 1
            gone(workers)
        finally:
            if agent.poll() is None:
                kill_tree(agent.pid)
    done = launch("train", str(recipe))
    assert done.returncode == 0, done.stderr
    train(2, str(recipe), f"run_dir={tmp_path / 'whole'}")
    starts = [event["step"] for event in events(tmp_path / "cut", "begun")]
    assert starts == sorted(set(starts))
    assert len(starts) == 3
    assert summary(tmp_path / "cut")["digest"] == summary(tmp_path / "whole")["digest"]
