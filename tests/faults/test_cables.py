"""Two hosts whose cable is pulled, for a while or for good.

`pytest -m cluster tests/faults/test_cables.py -s` prints rows of the table of docs/faults.md.
"""

import time
from pathlib import Path

import pytest

from lsdali.errors import BROKEN
from tests.cluster.hosts import two_hosts
from tests.faults.stories import Story, Unbroken, figures, row, steps

pytestmark = [pytest.mark.cluster, pytest.mark.ranks, pytest.mark.timeout(600)]


@pytest.mark.parametrize("seconds", [0, 5, pytest.param(40, marks=pytest.mark.long)])
def test_a_cable_that_is_plugged_in_again(recipe: Path, tmp_path: Path, unbroken: Unbroken, seconds: int) -> None:
    with two_hosts() as hosts:
        story = Story(recipe, tmp_path / "run", 2, variables={"GLOO_SOCKET_IFNAME": hosts[0].card})
        run = story.start(networks=[host.name for host in hosts], head=hosts[0].address)
        while not (story.run / "events.jsonl").exists() or len(steps(story.run)) < 5:
            assert run.processes[0].exitcode is None, run.text
            time.sleep(0.01)
        if seconds:
            hosts[1].cable("down")
            time.sleep(seconds)
            assert len(steps(story.run)) < 30, "it waits"
            hosts[1].cable("up")
        assert run.ends() == [0, 0], run.text
    equal = figures(story.run) == unbroken(2)
    row(f"cable between two hosts out for {seconds} s", [0, 0], seconds, story.run, run.text, equal)
    assert equal


def test_a_cable_that_stays_out(recipe: Path, tmp_path: Path, unbroken: Unbroken) -> None:
    """Both ends notice; the same command goes on, here with two processes of one host."""
    with two_hosts() as hosts:
        variables = {"GLOO_SOCKET_IFNAME": hosts[0].card}
        story = Story(recipe, tmp_path / "run", 2, "faults.stall_minutes=0.1", variables=variables)
        run = story.start(networks=[host.name for host in hosts], head=hosts[0].address)
        while not (story.run / "events.jsonl").exists() or len(steps(story.run)) < 9:
            assert run.processes[0].exitcode is None, run.text
            time.sleep(0.01)
        hosts[1].cable("down")
        began = time.monotonic()
        statuses = run.ends()
        seconds = time.monotonic() - began
    del story.variables["GLOO_SOCKET_IFNAME"]
    equal = story.goes_on(unbroken(2))
    row("cable between two hosts out for good, limit 6 s", statuses, seconds, story.run, run.text, equal)
    assert statuses == [BROKEN, BROKEN], run.text
    assert "error: no sign of life for 6 s from rank 1 on " in run.text
    assert "error: no sign of life from rank 0, seen from rank 1 on " in run.text
    assert equal
