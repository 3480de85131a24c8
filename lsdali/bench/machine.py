"""The header and format of every measurement: machine, versions, medians with their range."""

import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import lsdali

PACKAGES = ("torch", "torchvision", "pillow", "numpy", "scipy", "nvidia-dali-cuda120", "nvidia-dali-cuda130")


def hardware(note: str) -> str:
    """Return two lines: processor, cores, GPU and a note; then versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    found = {name: found_version(name) for name in PACKAGES}
    versions = ", ".join(f"{name} {number}" for name, number in found.items() if number)
    cores = len(os.sched_getaffinity(0))
    return f"{cpu}, {cores} cores, {gpu}; {note}\nPython {platform.python_version()}, {versions}"


def commit_in_use() -> str:
    """Return the commit of the tree that lsdali runs from, or its version."""
    here = Path(lsdali.__file__).parents[1]
    done = subprocess.run(["git", "-C", here, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip() or f"of version {lsdali.__version__}"


def found_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def spread(values: Sequence[float], digits: int) -> str:
    """Return median and range, 22 characters wide."""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{f'{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})':>22}"
