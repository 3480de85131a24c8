"""The steps of a session, and what runs them."""

import json
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lsdali.errors import UserError

CLASSES = 10
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Step:
    """Commands that are carried out one after the other, as one answer to one question."""

    name: str
    why: str
    seconds: float  # at most
    commands: tuple[tuple[str, ...], ...]
    kill_first_after: float | None = None  # seconds after which the first command is killed, as a test of going on


@dataclass
class Result:
    """What a step has found."""

    name: str
    why: str
    status: str  # ok, failed, out of time, left out
    seconds: float = 0.0
    commands: list[str] = field(default_factory=list)
    output: str = ""  # its end
    findings: list[Any] = field(default_factory=list)  # of commands that write JSON

    @property
    def headline(self) -> str:
        """The last line that the step has printed."""
        lines = [line.strip() for line in self.output.splitlines() if line.strip()]
        return lines[-1][:110] if lines else ""


@dataclass
class Session:
    """A folder of results, and the data that the steps read."""

    images: Path
    out: Path
    rehearse: bool = False

    @property
    def data(self) -> Path:
        return self.out / "data"

    def recipe(self, name: str, method: dict[str, Any], **others: Any) -> str:
        """Write a recipe into the folder; return its path."""
        size, batch = (32, 8) if self.rehearse else (224, 256)
        crops = {"train": {"crop": "random_resized", "size": size}, "eval": {"resize": size + size // 7, "size": size}}
        tree = {
            "epochs": 2,
            "batch": batch,
            "precision": "bf16",
            "data": {"name": "folder", "root": str(self.data.absolute()), "resident": "never", **crops},
            "model": {"name": "preact_resnet10", "width": 16} if self.rehearse else {"name": "resnet50"},
            "method": method,
            "optimizer": {"name": "nesterov", "lr": 0.01, "weight_decay": 1e-4},
            "schedule": {"name": "cosine"},
            "log": {"every_steps": 5},
            "run_dir": str(self.out.absolute() / "runs" / name),
        }
        path = self.out / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**tree, **others}))
        return str(path)

    def link(self) -> None:
        """Link the images as class folders, each often enough that an epoch lasts. Raises UserError for too few."""
        if self.data.is_dir():
            return
        found = sorted(path.absolute() for path in self.images.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
        found = found[:40] if self.rehearse else found
        if len(found) < CLASSES:
            raise UserError(f"{self.images} holds {len(found)} JPEGs: give a folder with 500 or more")
        copies = 1 if self.rehearse else max(20_000 // len(found), 1)
        for split, times in (("train", copies), ("val", 1)):
            for number in range(times):
                for k, path in enumerate(found):
                    folder = self.data / split / f"class{k % CLASSES}"
                    folder.mkdir(parents=True, exist_ok=True)
                    (folder / f"{number:04d}_{k:05d}.jpg").symlink_to(path)

    def run(self, steps: Sequence[Step], only: Sequence[str] | None, minutes: float) -> int:
        """Carry out the steps that have no result yet; print a table. The exit status is 1 if one failed."""
        unknown = set(only or ()) - {step.name for step in steps}
        if unknown:
            raise UserError(f"there is no step {min(unknown)}; --list names them")
        self.link()
        deadline = time.monotonic() + 60 * minutes
        results = []
        for step in steps:
            if only is None or step.name in only:
                results.append(self.result_of(step, deadline - time.monotonic()))
        rows = [f"{result.name:10} {result.status:12} {result.seconds:6.0f} s  {result.headline}" for result in results]
        (self.out / "table.txt").write_text("\n".join(rows) + "\n")
        print("\n".join(rows))
        return int(any(result.status in ("failed", "out of time") for result in results))

    def result_of(self, step: Step, left: float) -> Result:
        """Return a step's result: the one that is there, or that of carrying it out in the time that is left."""
        file = self.out / f"{step.name}.json"
        if file.is_file():
            return Result(**json.loads(file.read_text()))
        if left < 10:
            return Result(step.name, step.why, "left out")
        print(f"== {step.name}: {step.why}", flush=True)
        result = carry_out(step, min(step.seconds, left), self.out)
        file.write_text(json.dumps(asdict(result), indent=1) + "\n")
        return result


def carry_out(step: Step, seconds: float, out: Path) -> Result:
    """Run a step's commands; none outlives the time."""
    began = time.monotonic()
    result = Result(step.name, step.why, "ok")
    for number, words in enumerate(step.commands):
        report = out / f"{step.name}_{number}.found"
        command = [word.replace("FOUND", str(report)) for word in words]
        result.commands.append(shlex.join(command))
        left = seconds - (time.monotonic() - began)
        killed = step.kill_first_after if number == 0 else None
        status, said = watched(command, min(left, killed or left))
        result.output = (result.output + said)[-6000:]
        if report.is_file():
            result.findings.append(json.loads(report.read_text()))
            report.unlink()
        if status != 0 and killed is None:
            result.status = "out of time" if status is None else "failed"
            break
    result.seconds = round(time.monotonic() - began, 1)
    return result


def watched(command: list[str], seconds: float) -> tuple[int | None, str]:
    """Run a command with all that it starts; return its status, None if it was killed, and what it has said."""
    environment = {"OMP_NUM_THREADS": "4", **os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        said, _ = child.communicate(timeout=max(seconds, 1))
        return child.returncode, said
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        said, _ = child.communicate()
        return None, said
