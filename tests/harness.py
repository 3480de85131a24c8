"""What several tests share: a tiny data set of real files, recipes cut down to it, and runs under torchrun."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from lsdali.testing.small import equal, make_images, tiny
from lsdali.train import main
from tests.forks import ROOT, environment, forked, run_forked

__all__ = ["ROOT", "environment", "equal", "make_images", "tiny"]

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]


def command(ranks: int, *arguments: str) -> list[str]:
    """lsdali.train as users start it: under torchrun, or for 0 ranks as a plain process."""
    start = [*TORCHRUN, "--nproc_per_node", str(ranks)] if ranks else [sys.executable]
    return [*start, "-m", "lsdali.train", *arguments]


def train(ranks: int, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Train on so many ranks, or for 0 in a plain process."""
    done = run_forked(ranks, main, arguments)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def train_by_torchrun(ranks: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Train as users start it on several ranks; it may end with any status."""
    return subprocess.run(
        command(ranks, *arguments),
        cwd=ROOT,
        env=environment(ranks),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def train_and_kill(ranks: int, checkpoint: str, *arguments: str) -> None:
    """Start a run and SIGKILL every process of it as soon as the checkpoint file exists."""
    run_dir = next(a.partition("=")[2] for a in arguments if a.startswith("run_dir="))
    with forked(ranks, main, arguments) as run:
        deadline = time.monotonic() + 120
        while not (Path(run_dir) / "checkpoints" / checkpoint).exists():
            assert time.monotonic() < deadline, f"{checkpoint} never appeared"
            assert run.status() is None, f"the run ended before it could be killed: {run.told()}"
            time.sleep(0.005)


def descendants(root: int) -> list[int]:
    """Processes below one, nearest first: torchrun puts its workers into sessions of their own."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = [root]
    for process in found:
        found.extend(child for child, parent in parents.items() if parent == process)
    return found[1:]


def kill_tree(root: int) -> None:
    """SIGKILL to a process and all below it."""
    for process in [root, *descendants(root)]:
        os.kill(process, signal.SIGKILL)


def summary(run_dir: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run_dir / "summary.json").read_text())
    return content


def events(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == kind]
