"""What several tests share: a tiny data set of real files, recipes cut down to it, and runs under torchrun."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).parents[1]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]


def make_images(root: Path, classes: int = 5, train: int = 8, val: int = 5, size: int = 16) -> Path:
    """root/{train,val}/<class>/<n>.png, textured noise around a colour of the class; made once."""
    if root.exists():
        return root
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for label in range(classes):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for n in range(count):
                pixels = rng.integers(0, 120, (size, size, 3)) + 25 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{n}.png")
    return root


def tiny(method: str, root: Path, run_dir: Path, **others: Any) -> dict[str, Any]:
    """The tree of a recipe that trains in a second; `method` is YAML-like text already parsed by the caller."""
    tree: dict[str, Any] = {
        "epochs": 2,
        "batch": 8,
        "data": {
            "name": "folder",
            "root": str(root),
            "train": {"crop": "random_resized", "size": 16},
            "eval": {"resize": 16, "size": 16},
            "threads": 1,
        },
        "model": {"name": "preact_resnet10", "width": 16},
        "method": method,
        "optimizer": {"name": "nesterov", "lr": 0.05, "weight_decay": 0.001},
        "schedule": {"name": "cosine"},
        "log": {"every_steps": 2},
        "run_dir": str(run_dir),
    }
    return {**tree, **others}


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


def equal(a: Any, b: Any) -> bool:
    """Whether two nested states are the same to the last bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)
