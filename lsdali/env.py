"""Look at this machine before training, for you or for a bug report: `lsdali env [--json] [--run-dir DIR]`.

One line for each thing: what was found, and ok, warning or wrong; what is not ok comes with a remedy.
The exit status is 0, or 1 if something is wrong.
"""

import argparse
import json
import os
import platform
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata, util
from pathlib import Path

from lsdali.terminal import say

REPORTED_PACKAGES = ("lsdali", "torch", "torchvision", "numpy", "pillow", "pydantic", "timm", "fsspec")
DRIVER = Path("/proc/driver/nvidia/version")
GB = 1e9


@dataclass(frozen=True, slots=True)
class Finding:
    """A line of the report."""

    name: str
    found: str
    verdict: str = "ok"  # or warning, or wrong
    remedy: str = ""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="lsdali env", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print the same as a JSON list")
    parser.add_argument("--run-dir", type=Path, default=Path("runs"), metavar="DIR", help="where runs will be written")
    args = parser.parse_args(argv)
    findings = list(look(args.run_dir))
    if args.json:
        say(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        for finding in findings:
            say(f"{finding.verdict:8}{finding.name:15}{finding.found}")
            if finding.remedy:
                say(f"{'':23}-> {finding.remedy}")
    return int(any(finding.verdict == "wrong" for finding in findings))


def look(run_dir: Path) -> Iterator[Finding]:
    """Yield every finding.

    A check that fails in a way that it does not know is itself one, and the others still run.
    """
    from lsdali.errors import first_line

    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        *(versions, devices, dali_rows, decoding, communication, apex, processor, memory, handles),
        lambda: disk("run folder", run_dir, "give another run_dir"),
        cache,
        clock,
    )
    for check in checks:
        try:
            yield from check()
        except Exception as fault:
            remedy = "send this line with your report, if its text does not help"
            yield Finding(check.__name__, f"{type(fault).__name__}: {first_line(fault)}", "wrong", remedy)


def version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def versions() -> Iterator[Finding]:
    import lsdali

    found = {"python": platform.python_version(), **{name: version(name) for name in REPORTED_PACKAGES}}
    found["lsdali"] = lsdali.__version__
    yield Finding("system", f"{platform.platform()}, {platform.machine()}")
    yield Finding("versions", ", ".join(f"{name} {number}" for name, number in found.items() if number))


def devices() -> Iterator[Finding]:
    import torch

    driver = DRIVER.read_text().splitlines()[0].split(":")[-1].strip() if DRIVER.is_file() else None
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        found = f"{len(names)} x {', '.join(sorted(set(names)))}; CUDA {torch.version.cuda}; driver {driver}"
        yield Finding("devices", found)
    elif driver is None:
        yield Finding(
            "devices", f"no NVIDIA driver here: runs use the CPU; torch is built for CUDA {torch.version.cuda}"
        )
    else:
        remedy = "install a driver for this CUDA or newer, or a torch for an older one; in Docker, add --gpus all"
        yield Finding("devices", f"torch (CUDA {torch.version.cuda}) sees no GPU; driver {driver}", "wrong", remedy)


def dali_rows() -> Iterator[Finding]:
    found = sorted(
        f"{d.name} {d.version}" for d in metadata.distributions() if (d.name or "").startswith("nvidia-dali-cuda")
    )
    if len(set(found)) > 1:
        yield Finding("DALI", ", ".join(found), "wrong", "they overwrite each other: uninstall all, install one")
    else:
        yield Finding("DALI", ", ".join(found) or "not from a wheel")


def decoding() -> Iterator[Finding]:
    """Yield a window of a JPEG with halved chroma, against Pillow's pixels, on every kind of device."""
    import torch

    from lsdali.data.pipeline.self_test import decoded_difference

    for device in ["CPU", "GPU"][: 1 + torch.cuda.is_available()]:
        difference = decoded_difference(0 if device == "GPU" else None)
        found = f"a window of a 4:2:0 JPEG, {difference:.2f} grey levels from Pillow"
        wrong = "" if difference < 2 else "pixels differ: install the newest nvidia-dali that fits torch's CUDA"
        yield Finding(f"{device} decoding", found, "wrong" if wrong else "ok", wrong)


def communication() -> Iterator[Finding]:
    import torch
    import torch.distributed as td

    if torch.cuda.is_available() and not td.is_nccl_available():
        yield Finding("communication", "torch lacks NCCL", "wrong", "install a torch that is built with NCCL")
    elif td.is_nccl_available():
        number = torch.cuda.nccl.version()  # type: ignore[no-untyped-call]
        yield Finding("communication", f"NCCL {'.'.join(map(str, number))} between GPUs, gloo between CPUs")
    else:
        yield Finding("communication", "gloo")


def apex() -> Iterator[Finding]:
    if util.find_spec("apex") is None:
        yield Finding("apex", "none; optimizers are torch's fused ones")
    elif util.find_spec("amp_C") is None:
        remedy = "pip uninstall apex: PyPI's is an unrelated package, and NVIDIA's needs its CUDA extensions"
        yield Finding("apex", "a package of this name without NVIDIA's kernels", "warning", remedy)
    else:
        yield Finding("apex", f"NVIDIA's, with kernels, {version('apex')}")


def processor() -> Iterator[Finding]:
    import torch

    from lsdali.limits import CGROUPS, OWN_GROUPS, cpu_cores, cpu_quotas

    ranks = max(torch.cuda.device_count(), 1)
    quota = min(cpu_quotas(CGROUPS, OWN_GROUPS.read_text()), default=None)
    limit = "no CPU quota" if quota is None else f"a CPU quota of {quota:g}"
    cores = len(os.sched_getaffinity(0))
    found = f"{cores} of {os.cpu_count()} cores by affinity, {limit}: {cpu_cores(ranks)} for each of {ranks} processes"
    few = cpu_cores(ranks) < 2
    remedy = "few for decoding: ask Slurm for more --cpus-per-task, Docker for more --cpus" if few else ""
    yield Finding("processor", found, "warning" if few else "ok", remedy)


def memory() -> Iterator[Finding]:
    from lsdali.state.shared import free_bytes

    left = free_bytes() / GB
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GB
    few = left < 2
    remedy = "end other programs, or raise the limit (Slurm --mem, Docker -m)" if few else ""
    found = f"{left:.1f} GB free to this process, its limits counted; the machine has {total:.1f} GB"
    yield Finding("memory", found, "warning" if few else "ok", remedy)
    shm = shutil.disk_usage("/dev/shm")
    found = f"/dev/shm: {shm.free / GB:.3f} of {shm.total / GB:.3f} GB free"
    verdict = "wrong" if shm.free < 2**20 else "warning" if shm.free < 2**28 else "ok"
    remedy = "empty /dev/shm; in Docker, add --ipc=host or --shm-size=8g: NCCL needs it between GPUs"
    yield Finding("shared memory", found, verdict, "" if verdict == "ok" else remedy)


def handles() -> Iterator[Finding]:
    from lsdali.limits import FEWEST_FILES

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = soft == resource.RLIM_INFINITY or soft >= 1024
    verdict = "ok" if enough else "wrong" if soft < FEWEST_FILES else "warning"
    yield Finding("open files", f"{soft}, at most {hard}", verdict, "" if verdict == "ok" else "ulimit -n 4096")
    locked, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if Path("/sys/class/infiniband").is_dir() and locked != resource.RLIM_INFINITY:
        remedy = "InfiniBand locks memory: ulimit -l unlimited; in Docker, --ulimit memlock=-1"
        yield Finding("locked memory", f"at most {locked} bytes", "warning", remedy)


def cache() -> Iterator[Finding]:
    from lsdali.data.io.cache import cache_dir

    yield from disk("cache folder", cache_dir(), "set LSDALI_CACHE to another folder")


def disk(name: str, folder: Path, remedy: str) -> Iterator[Finding]:
    """Yield room and rights in a folder, or in what will hold it."""
    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(nearest).free / GB
    found = f"{folder.absolute()}: {free:.1f} GB free"
    if not os.access(nearest, os.W_OK | os.X_OK):
        yield Finding(name, f"{found}, not writable", "wrong", remedy)
    else:
        verdict = "wrong" if free < 0.5 else "warning" if free < 10 else "ok"
        yield Finding(name, found, verdict, "" if verdict == "ok" else f"make room, or {remedy}")


def clock() -> Iterator[Finding]:
    """Compare the clock with the time of a file: one that came after now shows a clock that is behind."""
    behind = time.time() < Path(__file__).stat().st_ctime - 86400
    remedy = "set the clock: this program was installed after the time that it shows" if behind else ""
    found = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    yield Finding("clock", found, "wrong" if behind else "ok", remedy)


if __name__ == "__main__":
    sys.exit(main())
