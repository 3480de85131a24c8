"""The sbatch files on a real Slurm of two nodes: told to stop, a lost node, and the weights of an unbroken run."""

import json
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from tests.cluster.slurm import Slurm, two_nodes
from tests.harness import ROOT, events, make_images, summary, tiny, train
from tests.test_launch import checkpoint, wait_for_file

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]
VARIABLES = {"PYTHONPATH": str(ROOT), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "NPROC": "1"}
SUBMIT = ("sbatch", "--parsable")
SCRIPTS = "bash_scripts/slurm"


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    base = tmp_path_factory.mktemp("slurm")
    with two_nodes(base) as slurm:
        yield slurm


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of an unbroken run of that recipe."""
    place = filled(tmp_path_factory.mktemp("whole"))
    train(2, str(place / "recipe.yaml"))
    return str(summary(place / "run")["digest"])


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return filled(tmp_path)


def filled(tmp_path: Path) -> Path:
    """The folder to submit from, with a recipe and the scripts."""
    tree = tiny({"name": "zls"}, make_images(tmp_path / "images"), tmp_path / "run", epochs=16)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**tree, "save": {"every_steps": 1, "keep": 200}}))
    (tmp_path / "bash_scripts").symlink_to(ROOT / "bash_scripts")
    return tmp_path


def start_again(slurm: Slurm, job: str, restarts: str) -> None:
    """Wait until it runs again, some seconds after it was queued; by itself it would wait two minutes.

    Slurm kills a job that starts in the second in which its last credential was revoked.
    """
    slurm.wait(job, JobState="PENDING", Restarts=restarts)
    slurm.call("scontrol", "update", f"JobId={job}", "StartTime=now+5")
    while slurm.job(job)["JobState"] == "PENDING":
        time.sleep(0.2)


def log(place: Path, job: str) -> str:
    return (place / f"lsdali-{job}.log").read_text()


def test_a_job_survives_its_time_limit_and_a_lost_node(slurm: Slurm, place: Path, whole: str) -> None:
    """Each time it goes back into the queue by itself and goes on; the weights are those of an unbroken run."""
    run = place / "run"
    job = slurm.call(*SUBMIT, f"{SCRIPTS}/train.sbatch", "recipe.yaml", cwd=place, **VARIABLES)
    wait_for_file(checkpoint(run, 5), lambda: slurm.job(job)["JobState"] in ("PENDING", "RUNNING"))
    slurm.call("scancel", "--batch", "--signal=USR2", job)
    start_again(slurm, job, "1")
    wait_for_file(checkpoint(run, 30))
    slurm.call("scontrol", "update", "NodeName=node2", "State=DOWN", "Reason=lost")
    slurm.wait(job, JobState="PENDING")
    if slurm.call("sinfo", "-h", "-n", "node2", "-o", "%t").startswith("down"):  # it may have come back by itself
        slurm.call("scontrol", "update", "NodeName=node2", "State=RESUME")
    start_again(slurm, job, "2")
    slurm.wait(job, JobState="COMPLETED")
    starts = [event["step"] for event in events(run, "begun")]
    print(f"\nstarts {starts}\n{log(place, job)}")
    assert starts[0] == 0
    assert all(start >= least for start, least in zip(starts[1:], (5, 30), strict=True))
    assert summary(run)["digest"] == whole


def test_a_signal_to_the_steps_saves_and_a_killed_worker_is_started_again(
    slurm: Slurm, place: Path, whole: str
) -> None:
    """Nobody has told the batch script, so the job ends; submitted again it goes on."""
    run = place / "run"
    submit = (*SUBMIT, f"{SCRIPTS}/train.sbatch", "recipe.yaml")
    job = slurm.call(*submit, cwd=place, **VARIABLES)
    wait_for_file(checkpoint(run, 5))
    began = time.monotonic()
    slurm.call("scancel", "--signal=USR2", job)
    slurm.wait(job, JobState="FAILED")
    print(f"\nUSR2 to the steps: over after {time.monotonic() - began:.0f} s")
    step = json.loads((run / "stopped.json").read_text())["step"]
    assert checkpoint(run, step).exists()
    job = slurm.call(*submit, cwd=place, **VARIABLES)
    wait_for_file(checkpoint(run, step + 10))
    os.kill(worker(), signal.SIGKILL)
    slurm.wait(job, JobState="COMPLETED")
    starts = [event["step"] for event in events(run, "begun")]
    assert starts[:2] == [0, step]
    assert len(starts) == 3
    assert starts[2] >= step + 10
    logs = [(place / f"lsdali-{job}-node{number}.log").read_text() for number in (0, 1)]
    assert "has died" in "".join(logs), logs
    assert summary(run)["digest"] == whole


def worker() -> int:
    """A training process of this machine."""
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if file.read_bytes().endswith(b"-u\0-m\0lsdali\0train\0recipe.yaml\0"):
                return int(file.parent.name)
    raise AssertionError("nothing trains")


def test_a_job_makes_room_for_a_more_urgent_one(slurm: Slurm, place: Path, whole: str) -> None:
    """Slurm sends TERM to the steps alone; job.sh sees why they ended, and the job goes back into the queue."""
    run = place / "run"
    job = slurm.call(*SUBMIT, f"{SCRIPTS}/train.sbatch", "recipe.yaml", cwd=place, **VARIABLES)
    wait_for_file(checkpoint(run, 5))
    suspended = worker()
    os.kill(suspended, signal.SIGSTOP)  # it would be at the end before Slurm has decided
    urgent = slurm.call(*SUBMIT, "--partition=urgent", "--nodes=2", "--exclusive", "--wrap=true", cwd=place)
    while not slurm.job(job).get("PreemptTime", "None")[0].isdigit():
        time.sleep(0.2)
    os.kill(suspended, signal.SIGCONT)
    slurm.wait(urgent, JobState="COMPLETED")
    step = json.loads((run / "stopped.json").read_text())["step"]
    start_again(slurm, job, "1")
    slurm.wait(job, JobState="COMPLETED")
    text = log(place, job)
    print(f"\npreempted and stopped at step {step}\n{text}")
    assert "stopped to make room for another job" in text, text
    assert [event["step"] for event in events(run, "begun")] == [0, step]
    assert summary(run)["digest"] == whole


def test_a_sweep_is_submitted_and_its_stages_wait_for_each_other(slurm: Slurm, place: Path) -> None:
    """One array a stage, with the batch script as it is."""
    student = {"name": "kd", "teacher": {"source": "checkpoint", "path": "{teacher}/checkpoints/best.pt"}}
    temperatures = {"T": {"key": "method.temperature", "values": [1.0, 2.0]}}
    stages = {
        "teacher": {"recipe": "recipe.yaml", "set": {"epochs": 1}},
        "student": {"recipe": "recipe.yaml", "set": {"epochs": 1, "method": student}, "axes": temperatures},
    }
    content = {"title": "Two", "seeds": [0], "stages": stages, "tables": {}}
    (place / "sweep.yaml").write_text(yaml.safe_dump(content, sort_keys=False))  # stages come in order
    text = slurm.call(sys.executable, "-m", "lsdali.sweep", "sweep.yaml", "--slurm", cwd=place, **VARIABLES)
    assert text.count("$ sbatch") == 2, text
    jobs = slurm.call("squeue", "-h", "-r", "-t", "all", "-o", "%i", "-n", "lsdali-sweep").split()
    assert len(jobs) == 3, jobs
    for job in jobs:
        slurm.wait(job, JobState="COMPLETED")
    folders = {str(file.parent.relative_to(place / "runs/sweep")) for file in place.glob("runs/sweep/*/*/summary.json")}
    assert folders == {"student/T=1.0_seed0", "student/T=2.0_seed0", "teacher/seed0"}


def test_srun_without_torchrun_is_refused_by_each_task(slurm: Slurm, place: Path) -> None:
    command = [sys.executable, "-m", "lsdali.train", "recipe.yaml"]
    done = slurm.run("srun", "--nodes=2", "--ntasks=2", *command, cwd=place, **VARIABLES)
    assert done.returncode == 2, done.stderr
    assert "srun started 2 tasks that know nothing of each other" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (place / "run").exists()
