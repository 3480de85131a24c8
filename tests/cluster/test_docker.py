"""The image on a real Docker engine: help, the user, the health step, and what a memory limit kills."""

import pytest

from tests.cluster.docker import built, docker

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def image() -> str:
    return built()


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
