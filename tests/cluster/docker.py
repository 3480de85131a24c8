"""The image of the Dockerfile, built on a base of Debian's packages; skips where there is no Docker engine."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.harness import ROOT

BASE = "lsdali-base:bookworm"
IMAGE = "lsdali:test"
PACKAGES = "python3,python3-venv,python3-pip,ca-certificates"
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"


def docker(*arguments: str, check: bool = True, seconds: float = 900) -> subprocess.CompletedProcess[str]:
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run(["docker", *arguments], **both, text=True, timeout=seconds, check=False)
    assert not check or done.returncode == 0, done.stdout
    return done


def built() -> str:
    """Build the image on the base that DOCKER_BASE names, else on one of Debian's packages; its name."""
    if shutil.which("docker") is None or docker("version", check=False).returncode:
        pytest.skip("needs a Docker engine that answers `docker version`")
    base = os.environ.get("DOCKER_BASE") or debian()
    build = ("build", "--quiet", "--network", "host", "--build-arg", f"BASE={base}", "--tag", IMAGE, str(ROOT))
    docker(*build, seconds=3000)
    return IMAGE


def debian() -> str:
    """A base made by debootstrap, with this machine's certificates; made once, in about four minutes."""
    if docker("image", "inspect", BASE, check=False).returncode == 0:
        return BASE
    if shutil.which("debootstrap") is None or os.getuid():
        pytest.skip("needs an image with Python 3 named by DOCKER_BASE, or debootstrap and root to make one")
    script = f"""set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
debootstrap --variant=minbase --include={PACKAGES} bookworm "$folder"
cp {CERTIFICATES} "$folder{CERTIFICATES}"
tar -C "$folder" -c . | docker import -c 'ENV PIP_CERT={CERTIFICATES}' - {BASE}"""
    subprocess.run(["bash", "-c", script], check=True, timeout=1200)
    return BASE


@contextmanager
def running(name: str, *arguments: str) -> Iterator[str]:
    """A container in the background, removed in the end."""
    docker("run", "--detach", "--name", name, *arguments)
    try:
        yield name
    finally:
        docker("rm", "--force", "--volumes", name)


def state(name: str) -> dict[str, object]:
    content: dict[str, object] = json.loads(docker("inspect", "--format", "{{json .State}}", name).stdout)
    return content


def ended(name: str, seconds: float = 900) -> int:
    """Wait until a container has ended; its exit status."""
    return int(docker("wait", name, seconds=seconds).stdout)


def wait_for_step(name: str, folder: Path, step: int, seconds: float = 600) -> None:
    """Wait until the run in a container has reported a step."""
    deadline = time.monotonic() + seconds
    while f'"step": {step},' not in (text := (folder / "events.jsonl").read_text() if folder.exists() else ""):
        assert time.monotonic() < deadline, text
        assert state(name)["Running"], docker("logs", name).stdout
        time.sleep(0.05)
