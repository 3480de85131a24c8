"""Real launchers, signals and kills: what the terminal says, who is left, and whether the same command ends equal.

`pytest -m cluster tests/faults/test_real.py -s` prints the table of docs/faults.md.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.harness import ROOT, TORCHRUN, command, descendants, environment, make_images, summary, tiny, train

pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.ranks, pytest.mark.timeout(600)]


@dataclass
class Run:
    """A run in mid-training, and how it ends."""

    folder: Path
    agent: subprocess.Popen[str]
    workers: list[int]
    log: Path

    def ends(self, seconds: float = 120) -> tuple[int, float]:
        """Exit status of the launcher, and the seconds until all processes were gone."""
        began = time.monotonic()
        status = self.agent.wait(seconds)
        while any(alive(worker) for worker in self.workers):
            assert time.monotonic() - began < seconds, "a worker is left behind"
            time.sleep(0.05)
        return status, time.monotonic() - began

    @property
    def complaint(self) -> str:
        """The first line on the terminal that is neither progress nor the launcher's."""
        progress = ("train images", "val images", "starts", "resumes", "epoch ", "finished", "W1", "[W", "*")
        lines = [x for x in self.log.read_text().splitlines() if x and " epochs, into " not in x]
        return next((x for x in lines if not x.startswith(progress)), "")


def alive(process: int) -> bool:
    try:
        return (Path("/proc") / str(process) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """10 steps an epoch, 30 epochs, on 120 images."""
    base = tmp_path_factory.mktemp("faults")
    os.environ["LSDALI_CACHE"] = str(base / "cache")
    images = make_images(base / "images", train=24)
    changes = {"save": {"every_epochs": 10}, "log": {"every_steps": 1}, "evaluate": {"every_epochs": 10}}
    tree = tiny({"name": "zls", "weight": 0.5}, images, base, batch=12, epochs=30, ema={"decay": 0.9}, **changes)
    (base / "recipe.yaml").write_text(yaml.safe_dump(tree))
    return base / "recipe.yaml"


@pytest.fixture(scope="module")
def unbroken(recipe: Path) -> dict[int, dict[str, object]]:
    """The summary of a run that nothing happens to, on 0 (no launcher) and 2 ranks."""
    for ranks in (0, 2):
        train(ranks, str(recipe), f"run_dir={recipe.parent}/unbroken{ranks}")
    return {ranks: summary(recipe.parent / f"unbroken{ranks}") for ranks in (0, 2)}


def begin(
    ranks: int, recipe: Path, folder: Path, *changes: str, step: int = 25, restarts: int = 0, fault: str = ""
) -> Run:
    """A run that has done so many steps. `fault` is one of tests.faults.inject, with rank and step."""
    arguments = command(ranks, str(recipe), f"run_dir={folder}", *changes)
    entry = "tests.faults.inject" if fault else "lsdali.train"
    place = arguments.index("lsdali.train")
    arguments[place : place + 1] = [entry, *fault.split()]
    if restarts:
        arguments[len(TORCHRUN) : len(TORCHRUN)] = ["--max-restarts", str(restarts)]
    folder.mkdir(exist_ok=True)
    log = folder / "terminal.txt"
    variables = {
        **environment(ranks),
        "PET_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2",
    }
    with log.open("w") as out:
        agent = subprocess.Popen(
            arguments,
            cwd=ROOT,
            env=variables,
            stdout=out,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
        )
    deadline = time.monotonic() + 240
    while steps_done(folder) < step:
        assert agent.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.01)
    workers = [p for p in descendants(agent.pid) if entry.encode() in Path(f"/proc/{p}/cmdline").read_bytes()]
    return Run(folder, agent, workers or [agent.pid], log)


def steps_done(folder: Path) -> int:
    events = folder / "events.jsonl"
    lines = events.read_text().splitlines() if events.exists() else []
    return max([json.loads(line).get("step", 0) for line in lines if line.endswith("}")], default=0)


def row(run: Run, what: str, status: int, seconds: float, equal: bool | None) -> None:
    same = {True: "yes", False: "NO", None: "-"}[equal]
    print(f"\n| {what} | {status} | {seconds:.1f} | {run.complaint} | {same} |", flush=True)


SIGNALS = ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2"]


@pytest.mark.parametrize("name", SIGNALS)
@pytest.mark.parametrize("to", ["process", "agent", "worker"])
def test_a_signal_stops_saves_and_goes_on(
    recipe: Path, tmp_path: Path, unbroken: dict[int, dict[str, object]], name: str, to: str
) -> None:
    ranks = 0 if to == "process" else 2
    run = begin(ranks, recipe, tmp_path)
    os.kill(run.workers[-1] if to == "worker" else run.agent.pid, getattr(signal, name))
    status, seconds = run.ends()
    text = run.log.read_text()
    step = json.loads((tmp_path / "stopped.json").read_text())["step"]
    assert f"stopped at step {step}; the same command goes on" in run.complaint, text
    assert steps_done(tmp_path) == step, "no step was lost"
    assert (tmp_path / f"checkpoints/step-{step:010d}.pt").exists()
    assert status == (75 if to == "process" else 1), text
    assert "lsdali/trainer.py" not in text, "no traceback of ours"
    train(ranks, str(recipe), f"run_dir={tmp_path}")
    equal = summary(tmp_path)["digest"] == unbroken[ranks]["digest"]
    row(run, f"{name} to {to}", status, seconds, equal)
    assert equal
    assert not (tmp_path / "stopped.json").exists()


def test_a_signal_to_one_worker_stops_the_run_also_where_torchrun_may_start_workers_again(
    recipe: Path, tmp_path: Path, unbroken: dict[int, dict[str, object]]
) -> None:
    run = begin(2, recipe, tmp_path, restarts=3)
    os.kill(run.workers[-1], signal.SIGUSR1)
    status, seconds = run.ends(240)
    assert status == 1
    assert run.log.read_text().count("epochs, into") == 2, "one more start, not three"
    assert not (tmp_path / "summary.json").exists()
    train(2, str(recipe), f"run_dir={tmp_path}")
    equal = summary(tmp_path)["digest"] == unbroken[2]["digest"]
    row(run, "SIGUSR1 to worker, --max-restarts 3", status, seconds, equal)
    assert equal


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("exception 1 30", "error: rank 1 on "),
        ("exit 1 30", "error: rank 1 on "),
    ],
)
def test_a_rank_that_fails_is_named_first(
    recipe: Path, tmp_path: Path, unbroken: dict[int, dict[str, object]], what: str, sentence: str
) -> None:
    run = begin(2, recipe, tmp_path, "save.every_steps=7", fault=what)
    status, seconds = run.ends(240)
    assert status == 1
    assert run.complaint.startswith(sentence), run.log.read_text()
    assert ("a fault of ours" in run.complaint) == what.startswith("exception")
    train(2, str(recipe), f"run_dir={tmp_path}")
    equal = summary(tmp_path)["digest"] == unbroken[2]["digest"]
    row(run, f"{what.split()[0]} in rank 1", status, seconds, equal)
    assert equal


def test_torchrun_starts_workers_again_after_a_kill(
    recipe: Path, tmp_path: Path, unbroken: dict[int, dict[str, object]]
) -> None:
    run = begin(2, recipe, tmp_path, "save.every_steps=7", restarts=1)
    began = time.monotonic()
    os.kill(run.workers[1], signal.SIGKILL)
    assert run.agent.wait(240) == 0, run.log.read_text()
    equal = summary(tmp_path)["digest"] == unbroken[2]["digest"]
    row(run, "SIGKILL to rank 1, --max-restarts 1", 0, time.monotonic() - began, equal)
    assert equal


def test_a_suspended_rank_goes_on(recipe: Path, tmp_path: Path, unbroken: dict[int, dict[str, object]]) -> None:
    run = begin(2, recipe, tmp_path)
    os.kill(run.workers[1], signal.SIGSTOP)
    time.sleep(10)
    os.kill(run.workers[1], signal.SIGCONT)
    assert run.agent.wait(240) == 0, run.log.read_text()
    equal = summary(tmp_path)["digest"] == unbroken[2]["digest"]
    row(run, "SIGSTOP to rank 1 for 10 s", 0, 10, equal)
    assert equal


CHANGED = {
    "locale, hash seed, no HOME": (["env", "-u", "HOME", "LC_ALL=C", "PYTHONHASHSEED=4242"], []),
    "64 open files": (["bash", "-c", 'ulimit -n 64 && exec "$@"', "bash"], []),
    "a clock ten years ahead": ([], ["tests.faults.inject", "clock", "0", "0"]),
    "threads and prefetch of the data": ([], ["data.threads=3", "data.prefetch=5"]),
}


@pytest.mark.parametrize("what", CHANGED)
def test_another_environment_on_resume_changes_nothing(
    recipe: Path, tmp_path: Path, unbroken: dict[int, dict[str, object]], what: str
) -> None:
    run = begin(0, recipe, tmp_path)
    os.kill(run.agent.pid, signal.SIGTERM)
    assert run.ends()[0] == 75
    around, changes = CHANGED[what]
    entry = changes if "tests.faults.inject" in changes else ["lsdali.train"]
    overrides = [] if "tests.faults.inject" in changes else changes
    arguments = [*around, sys.executable, "-m", *entry, str(recipe), f"run_dir={tmp_path}", *overrides]
    done = subprocess.run(
        arguments, cwd=ROOT, env=environment(0), capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    equal = summary(tmp_path)["digest"] == unbroken[0]["digest"]
    row(run, what, 0, 0, equal)
    assert equal


KILLS: dict[str, tuple[Callable[[Run], None], str]] = {
    "SIGKILL to rank 1": (lambda run: os.kill(run.workers[1], signal.SIGKILL), "rank 1 on "),
    "SIGKILL to rank 0": (lambda run: os.kill(run.workers[0], signal.SIGKILL), "has died: rank 0"),
    "SIGSTOP to rank 1": (lambda run: os.kill(run.workers[1], signal.SIGSTOP), "no sign of life for 6 s from rank 1"),
    "SIGSTOP to rank 0": (lambda run: os.kill(run.workers[0], signal.SIGSTOP), "no sign of life from rank 0"),
    "SIGKILL to the agent": (lambda run: os.kill(run.agent.pid, signal.SIGKILL), "stopped at step "),
    "SIGSEGV to rank 1": (lambda run: os.kill(run.workers[1], signal.SIGSEGV), "Fatal Python error"),
}


@pytest.mark.parametrize("what", KILLS)
def test_the_first_line_is_the_cause(
    recipe: Path, tmp_path: Path, unbroken: dict[int, dict[str, object]], what: str
) -> None:
    act, sentence = KILLS[what]
    run = begin(2, recipe, tmp_path, "faults.stall_minutes=0.1", "save.every_steps=7")
    act(run)
    status, seconds = run.ends(240)
    assert sentence in run.complaint, run.log.read_text()
    train(2, str(recipe), f"run_dir={tmp_path}")
    equal = summary(tmp_path)["digest"] == unbroken[2]["digest"]
    row(run, what, status, seconds, equal)
    assert equal
