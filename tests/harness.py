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

__all__ = ["equal", "make_images", "tiny"]

ROOT = Path(__file__).parents[1]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]


def environment(ranks: int) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def command(ranks: int, *arguments: str) -> list[str]:
    """lsdali.train as users start it: under torchrun, or for 0 ranks as a plain process."""
    start = [*TORCHRUN, "--nproc_per_node", str(ranks)] if ranks else [sys.executable]
    return [*start, "-m", "lsdali.train", *arguments]


def train(ranks: int, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command(ranks, *arguments),
        cwd=ROOT,
        env=environment(ranks),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def train_and_kill(ranks: int, checkpoint: str, *arguments: str) -> None:
    """Start a run and SIGKILL every process of it as soon as the checkpoint file exists."""
    run_dir = next(a.partition("=")[2] for a in arguments if a.startswith("run_dir="))
    child = subprocess.Popen(
        command(ranks, *arguments),
        cwd=ROOT,
        env=environment(ranks),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 120
        while not (Path(run_dir) / "checkpoints" / checkpoint).exists():
            assert time.monotonic() < deadline, f"{checkpoint} never appeared"
            assert child.poll() is None, "the run ended before it could be killed"
            time.sleep(0.005)
    finally:
        kill_tree(child.pid)
        child.wait()


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
