"""A run on two hosts that loses one and gets it back, and hosts whose names lead nowhere."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import yaml

from tests.cluster.hosts import Host, lonely, two_hosts
from tests.harness import (
    ROOT,
    TORCHRUN,
    descendants,
    environment,
    events,
    kill_tree,
    make_images,
    summary,
    tiny,
    train,
    train_and_kill,
)
from tests.test_launch import checkpoint

pytestmark = [pytest.mark.cluster, pytest.mark.ranks, pytest.mark.timeout(1500)]
LAUNCH = ["bash", str(ROOT / "bash_scripts/launch.sh")]
VARIABLES = {"PYTHONPATH": str(ROOT), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "NPROC": "1", "NNODES": "1:2"}
LOST = "no sign of life for 12 s from rank 1 on second"


def until(holds: Callable[[], object], agents: Sequence[subprocess.Popen[bytes]], log: Path, what: str) -> None:
    """Wait for something while the launcher of the first host runs."""
    deadline = time.monotonic() + 400
    while not holds():
        assert time.monotonic() < deadline, f"{what}: {log.read_text()}"
        assert agents[0].poll() is None, f"{what}: {log.read_text()}"
        time.sleep(0.05)


def newest(folder: Path) -> int:
    return max((int(file.stem[5:]) for file in (folder / "checkpoints").glob("step-*.pt")), default=0)


def starts(folder: Path) -> list[tuple[int, int]]:
    """The step and the number of ranks of each start."""
    if not (folder / "events.jsonl").exists():
        return []
    return [(event["step"], event["world"]) for event in events(folder, "begun")]


def worker(agent: int) -> int:
    """The training process below a launcher."""
    lines = {process: Path(f"/proc/{process}/cmdline").read_bytes() for process in descendants(agent)}
    return next(p for p, line in lines.items() if b"-m\0lsdali" in line and b"torch.distributed.run" not in line)


def replay(recipe: Path, base: Path, parts: list[tuple[int, int]]) -> str:
    """The digest of a run on one host with these starts; each part is killed where the next one begins."""
    ends = [*(step for step, _ in parts[1:]), 10**6]
    for number, ((step, ranks), end) in enumerate(zip(parts, ends, strict=True)):
        folder = base / f"part{number}"
        if number:
            (folder / "checkpoints").mkdir(parents=True)
            shutil.copy(checkpoint(base / f"part{number - 1}", step), folder / "checkpoints")
        arguments = (str(recipe), f"run_dir={folder}", f"save.every_steps={end}", "save.keep=99")
        if number + 1 < len(parts):
            train_and_kill(ranks, checkpoint(folder, end).name, *arguments)
        else:
            train(ranks, *arguments)
    return str(summary(folder)["digest"])


@pytest.mark.long
def test_a_host_is_cut_off_and_comes_back(tmp_path: Path) -> None:
    """The other one goes on alone from the last save, saves when the first is back, and both go on."""
    tree = tiny({"name": "zls"}, make_images(tmp_path / "images", train=24), tmp_path / "run", batch=12, epochs=8)
    saves = {"save": {"every_steps": 5, "every_epochs": 1000}, "evaluate": {"every_epochs": 4}}
    recipe, run = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(yaml.safe_dump({**tree, **saves, "faults": {"stall_minutes": 0.2}}))
    with two_hosts() as (first, second):
        log = tmp_path / f"{first.address}.log"

        def launch(host: Host) -> subprocess.Popen[bytes]:
            variables = {**VARIABLES, "HEAD": first.address}
            return host.start([*LAUNCH, "train", str(recipe)], tmp_path / f"{host.address}.log", **variables)

        agents = [launch(first), launch(second)]
        try:
            until(lambda: newest(run) >= 15, agents, log, "15 steps")
            assert starts(run) == [(0, 2)], log.read_text()
            cut = time.monotonic()
            second.cable("down")
            until(lambda: len(starts(run)) > 1, agents, log, "a start alone")
            alone = time.monotonic() - cut
            until(lambda: newest(run) >= starts(run)[1][0] + 10, agents, log, "10 steps alone")
            kill_tree(agents[1].pid)
            trains = worker(agents[0].pid)
            os.kill(trains, signal.SIGSTOP)  # it would be at the end before the other is back
            second.cable("up")
            back = time.monotonic()
            agents.append(launch(second))
            until(lambda: asked_to_end(trains), agents, log, "a second host")
            os.kill(trains, signal.SIGCONT)
            until(lambda: len(starts(run)) > 2, agents, log, "a start together")
            together = time.monotonic() - back
            assert (agents[0].wait(600), agents[2].wait(600)) == (0, 0), log.read_text()
        finally:
            for agent in agents:
                if agent.poll() is None:
                    kill_tree(agent.pid)
    parts = starts(run)
    print(f"\nstarts (step, ranks) {parts}; {alone:.0f} s to go on alone, {together:.0f} s to go on together")
    assert [ranks for _, ranks in parts] == [2, 1, 2]
    assert LOST in log.read_text()
    assert summary(run)["digest"] == replay(recipe, tmp_path, parts)


def asked_to_end(process: int) -> bool:
    """Whether SIGTERM waits for a suspended process."""
    fields = dict(line.split(":\t", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    return bool((int(fields["ShdPnd"], 16) | int(fields["SigPnd"], 16)) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize("start", ["torchrun", "launch.sh"])
def test_one_node_needs_no_name_of_its_host(tmp_path: Path, start: str) -> None:
    """As in a container without a network: the loopback is all there is, and the host's name leads nowhere."""
    tree = tiny({"name": "ce"}, make_images(tmp_path / "images"), tmp_path / "run", epochs=1)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree))
    by_hand = [*TORCHRUN, "--nproc_per_node", "2", "-m", "lsdali.train"]
    command = by_hand if start == "torchrun" else [*LAUNCH, "train"]
    variables = {**environment(2), "PYTHON": sys.executable, "NPROC": "2"}
    done = lonely([*command, str(tmp_path / "recipe.yaml")], variables)
    assert done.returncode == 0, done.stderr
    assert summary(tmp_path / "run")["world"] == 2
