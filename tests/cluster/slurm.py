"""A real Slurm of two nodes on this machine, from Debian's packages, in a folder of its own."""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PROGRAMS = ("slurmctld", "slurmd", "munged", "mungekey")
CONF = """\
ClusterName=test
SlurmctldHost=localhost
SlurmUser=root
AuthInfo=socket={base}/munge/socket
SlurmctldPort={ports[0]}
SlurmctldPidFile={base}/slurmctld.pid
SlurmdPidFile={base}/slurmd-%n.pid
SlurmdSpoolDir={base}/spool-%n
StateSaveLocation={base}/state
SlurmctldLogFile={base}/slurmctld.log
SlurmdLogFile={base}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
JobRequeue=1
SlurmdTimeout=10
SlurmdParameters=config_overrides
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=30
MinJobAge=3600
NodeName=node1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[1]} CPUs=8 Gres=gpu:4 RealMemory=1000 State=UNKNOWN
NodeName=node2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[2]} CPUs=8 Gres=gpu:4 RealMemory=1000 State=UNKNOWN
PartitionName=main Nodes=node[1-2] Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=120
PartitionName=urgent Nodes=node[1-2] MaxTime=INFINITE State=UP PriorityTier=9
"""


class Slurm:
    """Commands to it, and its processes."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.env = {**os.environ, "SLURM_CONF": str(base / "slurm.conf")}
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *command: str) -> None:
        with (self.base / f"{name}.out").open("ab") as out:
            self.daemons[name] = subprocess.Popen(command, env=self.env, stdout=out, stderr=out, start_new_session=True)

    def start_node(self, name: str) -> None:
        self.start(name, "slurmd", "-D", "-N", name)

    def stop(self, name: str) -> None:
        daemon = self.daemons.pop(name)
        daemon.send_signal(signal.SIGTERM)
        daemon.wait(30)

    def run(self, *command: str, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {**self.env, **variables}
        return subprocess.run(
            command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=240, check=False
        )

    def call(self, *command: str, cwd: Path | None = None, **variables: str) -> str:
        done = self.run(*command, cwd=cwd, **variables)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """What `scontrol show job` says."""
        return dict(word.split("=", 1) for word in self.call("scontrol", "show", "job", number).split() if "=" in word)

    def wait(self, number: str, **wanted: str) -> dict[str, str]:
        """Wait until the job has these values."""
        deadline = time.monotonic() + 400
        while not wanted.items() <= (job := self.job(number)).items():
            assert time.monotonic() < deadline, job
            time.sleep(0.2)
        return job


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


@contextmanager
def two_nodes(base: Path) -> Iterator[Slurm]:
    """Two idle nodes, node1 and node2. Skips the test where the packages or the rights are missing."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing or getpass.getuser() != "root":
        pytest.skip(f"needs Debian's slurm-wlm and munge, and root; missing: {', '.join(missing) or 'root'}")
    slurm = Slurm(base)
    (base / "munge").mkdir()
    (base / "state").mkdir()
    (base / "slurm.conf").write_text(CONF.format(base=base, ports=free_ports(3)))
    for number in range(4):  # as the batch scripts ask for GPUs; Slurm wants files, whatever they are
        (base / f"gpu{number}").touch()
    (base / "gres.conf").write_text(f"NodeName=node[1-2] Name=gpu File={base}/gpu[0-3]\n")
    subprocess.run(["mungekey", "--create", f"--keyfile={base}/munge/key"], check=True)
    files = [f"--{name}-file={base}/munge/{name}" for name in ("key", "pid", "log", "seed")]
    try:
        slurm.start("munged", "munged", "--foreground", "--force", f"--socket={base}/munge/socket", *files)
        slurm.start("slurmctld", "slurmctld", "-D")
        slurm.start_node("node1")
        slurm.start_node("node2")
        deadline = time.monotonic() + 60
        while (
            subprocess.run(
                ["sinfo", "-h", "-o", "%D %t"], env=slurm.env, capture_output=True, text=True, check=False
            ).stdout.strip()
            != "2 idle"
        ):
            assert time.monotonic() < deadline, (base / "slurmctld.log").read_text()
            time.sleep(0.2)
        yield slurm
    finally:
        for name in reversed(list(slurm.daemons)):
            slurm.stop(name)
