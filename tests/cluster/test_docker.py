"""The image on a real Docker engine: help, quickstart, stops, a memory limit, other users, two nodes."""

import json
import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.docker import built, docker, ended, running, state, wait_for_step
from tests.harness import ROOT, events, summary

pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.timeout(3600)]
SMALL = ["model={name: preact_resnet10, width: 16}", "batch=32"]
RECIPE = ["train", "recipes/digits/zls.yaml", "epochs=2", *SMALL, "log.every_steps=1", "save.every_steps=10"]
USER = "12345:12345"  # the image does not know it
LOCKED = "--ulimit=memlock=8388608"  # an engine without CAP_SYS_RESOURCE may not raise it
HOG = "x = [bytearray(2**26) for _ in range(200)]"


@pytest.fixture(scope="module")
def image() -> str:
    return built()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders for runs and the cache that any user may write to."""
    base = tmp_path_factory.mktemp("docker")
    for name in ("runs", "cache"):
        (base / name).mkdir()
        (base / name).chmod(0o777)
    return base


@pytest.fixture(scope="module")
def options(place: Path) -> list[str]:
    volumes = [f"--volume={place}/{name}:/lsdali/{name}" for name in ("runs", "cache")]
    return ["--init", "--ipc=host", "--env=NPROC=2", "--env=OMP_NUM_THREADS=1", *volumes]


@pytest.fixture(scope="module")
def whole(image: str, place: Path, options: list[str]) -> Iterator[str]:
    """The digest of a run that nothing happens to."""
    docker("run", "--rm", *options, image, *RECIPE, "run_dir=runs/whole")
    return summary(place / "runs/whole")["digest"]


def name() -> str:
    return f"lsdali-test-{uuid.uuid4().hex[:8]}"


def test_the_image_alone_prints_help_and_is_nobodys(image: str) -> None:
    done = docker("run", "--rm", image)
    assert done.stdout.startswith("usage: bash_scripts/launch.sh VERB [arguments]")
    assert "lsdali VERB" in done.stdout
    assert docker("run", "--rm", "--entrypoint", "id", image, "-u").stdout.strip() == "1000"


def test_the_health_step_decodes_a_jpeg(image: str) -> None:
    """It is also the last step of the build."""
    text = docker("run", "--rm", image, "env", check=False).stdout
    assert "JPEG" in text, text


def test_processes_that_a_memory_limit_kills_are_counted_inside(image: str) -> None:
    code = """import subprocess, sys
from lsdali.faults.pulse import killed_by_kernel
before = killed_by_kernel()
hog = subprocess.run([sys.executable, "-c", "x = bytearray(10**9)"])
print(before, hog.returncode, killed_by_kernel())"""
    limits = ("--memory=300m", "--memory-swap=300m", "--entrypoint=python")
    assert docker("run", "--rm", *limits, image, "-c", code).stdout.split() == ["0", "-9", "1"]


def test_the_quickstart_runs_inside_without_a_network(image: str, options: list[str]) -> None:
    arguments = ["--network=none", "--entrypoint=bash", image, "bash_scripts/quickstart.sh", "epochs=1", *SMALL]
    text = docker("run", "--rm", *options, *arguments).stdout
    table = text.rpartition("finished: ")[2]
    assert "digits_ce" in table, text
    assert "digits_zls" in table, text


def test_docker_stop_saves_and_the_same_command_goes_on_read_only_and_as_any_user(
    image: str, place: Path, options: list[str], whole: str
) -> None:
    folder = place / "runs/stopped"
    safe = ["--read-only", "--tmpfs=/tmp", f"--user={USER}"]
    command = [*options, *safe, image, *RECIPE, "run_dir=runs/stopped"]
    with running(name(), *command) as container:
        wait_for_step(container, folder, 12)
        docker("stop", "--time=100", container)
        text = docker("logs", container).stdout
    step = json.loads((folder / "stopped.json").read_text())["step"]
    assert step >= 12
    assert f"stopped at step {step}; the same command goes on" in text, text
    docker("run", "--rm", *command)
    assert [event["step"] for event in events(folder, "begun")] == [0, step]
    assert summary(folder)["digest"] == whole
    assert (folder / "summary.json").stat().st_uid == 12345


def test_a_memory_limit_that_kills_is_named_and_the_run_goes_on(
    image: str, place: Path, options: list[str], whole: str
) -> None:
    """The kernel kills the process that it likes least: rank 1, then what has filled the memory."""
    folder = place / "runs/memory"
    limit = ["--memory=4g", "--memory-swap=4g"]
    with running(name(), *options, *limit, image, *RECIPE, "run_dir=runs/memory") as container:
        wait_for_step(container, folder, 12)
        rows = docker("top", container, "-eo", "pid,args").stdout.splitlines()
        workers = [int(row.split()[0]) for row in rows if "-u -m lsdali train" in row]
        assert len(workers) == 2, rows
        Path(f"/proc/{max(workers)}/oom_score_adj").write_text("1000")
        docker("exec", container, "python", "-c", HOG, check=False)
        status, text = ended(container), docker("logs", container).stdout
        assert "the kernel killed it because its control group has no memory left" in text, text
        assert status == 0, text
    first, again = [event["step"] for event in events(folder, "begun")]
    assert (first, again % 10) == (0, 0)
    assert again >= 10
    assert summary(folder)["digest"] == whole


def test_two_containers_are_two_nodes(image: str, place: Path, options: list[str], whole: str) -> None:
    """A network of their own; the first one's name is HEAD."""
    network, first, second = name(), name(), name()
    docker("network", "create", network)
    common = [*options, f"--network={network}", "--env=NPROC=1", "--env=NNODES=2", f"--env=HEAD={first}"]
    command = [image, *RECIPE, "run_dir=runs/two"]
    try:
        with running(first, *common, *command), running(second, *common, *command):
            assert (ended(first), ended(second)) == (0, 0), docker("logs", first).stdout
    finally:
        docker("network", "rm", network)
    assert summary(place / "runs/two")["world"] == 2
    assert summary(place / "runs/two")["digest"] == whole


def test_docker_run_sh_passes_a_signal_on(image: str, place: Path) -> None:
    """A TERM to the script reaches the processes; files belong to the caller."""
    container, folder = name(), place / "runs/script"
    variables = {"IMAGE": image, "RUNS": f"{place}/runs", "CACHE": f"{place}/cache", "NPROC": "2"}
    variables["OPTIONS"] = f"--name={container} {LOCKED}"
    script = ["bash", "bash_scripts/docker_run.sh", *RECIPE, "run_dir=runs/script"]
    environment = {**os.environ, **variables}
    with subprocess.Popen(script, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) as process:
        while docker("inspect", container, check=False).returncode:
            assert process.poll() is None
        wait_for_step(container, folder, 5)
        assert state(container)["Running"]
        process.terminate()
        assert process.wait(120) == 1
    assert json.loads((folder / "stopped.json").read_text())["step"] >= 5
    assert (folder / "stopped.json").stat().st_uid == os.getuid()
