"""The sbatch files on a real Slurm of two nodes: told to stop, a lost node, and the weights of an unbroken run."""

import sys
from pathlib import Path

import pytest
import yaml

from tests.cluster.slurm import Slurm, two_nodes
from tests.harness import ROOT, events, make_images, summary, tiny, train
from tests.test_launch import checkpoint, wait_for_file

pytestmark = pytest.mark.cluster
VARIABLES = {"PYTHONPATH": str(ROOT), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "NPROC": "1"}
SUBMIT = ("sbatch", "--parsable", "--gres=none")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    base = tmp_path_factory.mktemp("slurm")
    with two_nodes(base) as slurm:
        yield slurm


@pytest.fixture
def place(tmp_path: Path) -> Path:
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
    slurm.wait(job, JobState="RUNNING")


def test_a_job_survives_its_time_limit_and_a_lost_node(slurm: Slurm, place: Path) -> None:
    job = slurm.call(*SUBMIT, "bash_scripts/slurm/train.sbatch", "recipe.yaml", cwd=place, **VARIABLES)
    wait_for_file(checkpoint(place / "run", 5))
    slurm.call("scancel", "--batch", "--signal=USR2", job)
    start_again(slurm, job, "1")
    wait_for_file(checkpoint(place / "run", 30))
    slurm.call("scontrol", "update", "NodeName=node2", "State=DOWN", "Reason=lost")
    slurm.wait(job, JobState="PENDING")
    if slurm.call("sinfo", "-h", "-n", "node2", "-o", "%t").startswith("down"):  # it may have come back by itself
        slurm.call("scontrol", "update", "NodeName=node2", "State=RESUME")
    start_again(slurm, job, "2")
    slurm.wait(job, JobState="COMPLETED")
    starts = [event["step"] for event in events(place / "run", "begun")]
    assert starts[0] == 0
    assert starts[1] >= 5
    assert starts[2] >= 30
    train(2, str(place / "recipe.yaml"), f"run_dir={place / 'whole'}")
    assert summary(place / "run")["digest"] == summary(place / "whole")["digest"]
