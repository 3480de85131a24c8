"""Limits that the kernel sets for this process: CPU affinity, and its control groups."""

import os
import resource
from collections.abc import Iterator
from pathlib import Path

from lsdali.errors import SharedError

CGROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")


FEWEST_FILES = 64


def refuse_few_files() -> None:
    """Raise SharedError where this process may not open as many files as a run needs at once."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files != resource.RLIM_INFINITY and files < FEWEST_FILES:
        raise SharedError(f"this process may open {files} files, and a run needs {FEWEST_FILES}: ulimit -n 4096")


def cpu_cores(ranks: int = 1) -> int:
    """Return the CPU cores for each of `ranks` processes of this node: at least 1, the less of affinity and quota."""
    return max(int(min([len(os.sched_getaffinity(0)), *cpu_quotas(CGROUPS, OWN_GROUPS.read_text())]) / ranks), 1)


def cpu_quotas(root: Path, own: str) -> Iterator[float]:
    """Yield the CPU quota, in cores, of each limited control group (v1 or v2) round this process.

    `own` is the text of /proc/self/cgroup.
    """
    for folder, version in control_groups(root, own, "cpu"):
        if version == 2:
            quota, period = (folder / "cpu.max").read_text().split() if (folder / "cpu.max").is_file() else ("max", "1")
        elif (folder / "cpu.cfs_quota_us").is_file():
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        else:
            continue
        if quota != "max" and int(quota) > 0:
            yield int(quota) / int(period)


def control_groups(root: Path, own: str, controller: str) -> Iterator[tuple[Path, int]]:
    """Yield the folders of this process's control groups for a controller, innermost first, and the version, 1 or 2.

    A path that is not mounted, as in a container that shares its host's names, is skipped up to the first that is.
    """
    for line in own.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = root / controller if controllers else root
        group = base / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(base) and folder.is_dir():
                yield folder, 1 if controllers else 2
