"""What a terminal shows: a live line that fits 60, 80 and 120 columns, in a real pseudo-terminal."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from lsdali.bar import Progress
from tests.harness import ROOT, environment, tiny

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
FULL = Progress(
    *(2, 90, 1234, 56789, "loss 1.2929", "lr 0.0185", "1234 images/s", "wait 12%"), "evaluating", marks=[(0.0, 0)]
)


def test_the_least_important_column_goes_first() -> None:
    present = []
    for width in range(200, 20, -1):
        line = FULL.line(width, 100.0)
        assert len(line) <= width
        names = {name for name, text in FULL.parts(100.0).items() if text and text in line}
        present.append((width, names | ({"bar"} if "━" in line or "╌" in line else set())))
    gone = [a - b for (_, a), (_, b) in pairwise(present) if a != b]
    order = [name for names in gone for name in names]
    assert order == ["wait", "lr", "rate", "bar", "loss", "left", "doing", "epoch"]
    assert "step 1234/56789" in FULL.line(21, 100.0)


def test_time_that_is_left_is_that_of_the_steps_since_the_first_mark() -> None:
    line = Progress(step=30, steps=100, marks=[(10.0, 10), (15.0, 20)])
    assert line.seconds_left(20.0) == pytest.approx(10 / 20 * 70)
    assert "0:00:35 left" in line.line(80, 20.0)
    assert Progress(step=10, steps=100, marks=[(10.0, 10)]).seconds_left(20.0) is None


def screens(columns: int, recipe: Path, folder: Path) -> list[str]:
    """Train in a terminal that is so wide; every line that it has shown."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    variables = {**environment(1), "TERM": "xterm-256color"}
    variables.pop("COLUMNS", None)
    command = [sys.executable, "-m", "lsdali.train", str(recipe), f"run_dir={folder}"]
    child = subprocess.Popen(command, cwd=ROOT, env=variables, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    content = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # Linux says so at the end
            break
        if not part:
            break
        content += part
    os.close(ours)
    assert child.wait() == 0, content.decode()
    return [CONTROL.sub("", line) for line in re.split(r"[\r\n]+", content.decode())]


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("columns", "shown"), [(60, "epoch loss"), (80, "epoch loss images/s"), (120, "epoch loss lr wait")]
)
def test_a_run_in_a_terminal(columns: int, shown: str, folder: Path, place: Path) -> None:
    place.mkdir()
    others: Any = {"epochs": 40, "evaluate": {"every_epochs": 40}, "log": {"every_steps": 50}}
    tree = tiny({"name": "ce"}, folder / "images", place, **others)
    (place / "tiny.yaml").write_text(yaml.safe_dump(tree))
    lines = screens(columns, place / "tiny.yaml", place / "run")
    live = [line for line in lines if "step " in line and "/200" in line]
    assert all(len(line) <= columns for line in live), live
    last = live[-1]
    assert "step 200/200" in last
    assert all(word in last for word in shown.split()), last
    steps = {int(found[1]) for line in live if (found := re.search(r"step (\d+)/200", line))}
    assert any(step % 5 for step in steps), f"the count moves only where losses are read: {steps}"
    (start,) = (line for line in lines if line.startswith("starts"))
    told = " ".join(lines[lines.index(start) : lines.index(start) + 6])
    assert "preact_resnet10 with " in told.replace("\n", " ")
