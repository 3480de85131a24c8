"""Two hosts on this machine: network namespaces with a cable between them; skips where they cannot be made."""

import os
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.harness import ROOT


@dataclass
class Host:
    """A network of its own with one card."""

    name: str
    address: str
    card: str = "wire"

    def start(self, command: list[str], log: Path, **variables: str) -> subprocess.Popen[bytes]:
        """Start a command whose host name is this host's."""
        named = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', self.name.rpartition("-")[2]]
        names = {"GLOO_SOCKET_IFNAME": self.card, "ADDRESS": self.address}
        with log.open("ab") as out:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.name, *named, *command],
                cwd=ROOT,
                env={**os.environ, **names, **variables},
                stdout=out,
                stderr=out,
            )

    def cable(self, state: str) -> None:
        """Plug the cable in ("up") or pull it ("down")."""
        ip("-n", self.name, "link", "set", self.card, state)


def ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no network namespaces here: ip {' '.join(arguments)}: {done.stderr.strip()}")


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Hosts first and second, which reach each other and nothing else."""
    mark = uuid.uuid4().hex[:8]
    hosts = Host(f"{mark}-first", "10.77.0.1"), Host(f"{mark}-second", "10.77.0.2")
    made = []
    try:
        for host in hosts:
            ip("netns", "add", host.name)
            made.append(host)
        first, second = hosts
        card = ("type", "veth", "peer", "name", second.card, "netns", second.name)
        ip("link", "add", first.card, "netns", first.name, *card)
        for host in hosts:
            ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", host.card)
            ip("-n", host.name, "link", "set", "lo", "up")
            host.cable("up")
        yield hosts
    finally:
        for host in made:
            subprocess.run(["ip", "netns", "delete", host.name], check=True)


def lonely(command: list[str], variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command in a network that is a loopback alone, on a host whose name leads nowhere."""
    inside = 'ip link set lo up && hostname nowhere.invalid && exec "$@"'
    around = ["unshare", "--net", "--uts", "sh", "-c", inside, "sh"]
    if subprocess.run([*around, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no network namespaces here: unshare --net --uts is refused")
    return subprocess.run(
        [*around, *command], cwd=ROOT, env=variables, capture_output=True, text=True, timeout=300, check=False
    )
