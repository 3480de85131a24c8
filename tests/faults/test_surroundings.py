"""Disks, environments and neighbours of real processes that are not as they should be.

`pytest -m cluster tests/faults/test_surroundings.py -s` prints rows of the table of docs/faults.md.
"""

import json
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from lsdali.errors import REFUSED, STOPPED
from tests.faults.disks import Mount, mounting
from tests.faults.forked import Fault
from tests.faults.stories import Story, Unbroken, figures, row, steps
from tests.harness import events

pytestmark = [pytest.mark.cluster, pytest.mark.ranks, pytest.mark.timeout(600)]
mount = pytest.fixture(mounting, name="mount")


# ---- disks


def test_a_disk_that_cannot_be_written(recipe: Path, tmp_path: Path, unbroken: Unbroken, mount: Mount) -> None:
    """From the start, and with a damaged checkpoint on it that cannot be set aside."""
    story = Story(recipe, mount(tmp_path / "run", "99m"), 0)
    remount = ("mount", "-o", "remount,ro"), ("mount", "-o", "remount,rw")
    for damaged in (False, True):
        if damaged:
            story.start(Fault("SIGKILL")).ends()
            newest = sorted((story.run / "checkpoints").glob("step-*.pt"))[-1]
            newest.write_bytes(newest.read_bytes()[:1000])
        subprocess.run([*remount[0], str(story.run)], check=True)
        refused = story.start()
        statuses = refused.ends()
        subprocess.run([*remount[1], str(story.run)], check=True)
        said = [line for line in refused.text.splitlines() if line.startswith("error")]
        print(f"\n| read-only run folder, damaged checkpoint: {damaged} | {said} | {statuses} |")
        assert statuses == [REFUSED], refused.text
        assert len(said) == 1, refused.text
        assert "Read-only file system" in said[0]
        assert "Traceback" not in refused.text
    assert story.goes_on(unbroken(0))


def test_checkpoints_that_become_immutable(recipe: Path, tmp_path: Path, unbroken: Unbroken) -> None:
    story = Story(recipe, tmp_path / "run", 0)
    story.start(Fault("SIGKILL")).ends()
    folder = story.run / "checkpoints"
    if shutil.which("chattr") is None or subprocess.run(["chattr", "+i", str(folder)], check=False).returncode:
        pytest.skip("files cannot be made immutable here (chattr +i)")
    try:
        refused = story.start()
        statuses = refused.ends()
    finally:
        subprocess.run(["chattr", "-i", str(folder)], check=True)
    equal = story.goes_on(unbroken(0))
    row("checkpoints/ made immutable (chattr +i)", statuses, 0, story.run, refused.text, equal)
    assert statuses == [REFUSED], refused.text
    assert "Traceback" not in refused.text
    assert equal


def test_a_run_folder_that_is_unmounted(recipe: Path, tmp_path: Path, unbroken: Unbroken, mount: Mount) -> None:
    """It is mounted again under another name, continued, and then whole."""
    folder, elsewhere = mount(tmp_path / "run", "99m"), tmp_path / "elsewhere"
    elsewhere.mkdir()
    story = Story(recipe, folder, 0)
    run = story.start(Fault("SIGSTOP", call=10))
    while not (folder / "events.jsonl").exists() or len(steps(folder)) < 9:
        time.sleep(0.01)
    subprocess.run(["mount", "--bind", str(folder), str(elsewhere)], check=True)
    subprocess.run(["umount", "-l", str(folder)], check=True)
    os.kill(run.processes[0].pid or 0, signal.SIGCONT)
    statuses = run.ends()
    assert list(folder.iterdir()) == [], "nothing is written in its place"
    subprocess.run(["mount", "--move", str(elsewhere), str(folder)], check=True)
    equal = story.goes_on(unbroken(0))
    row("run folder unmounted (umount -l)", statuses, 0, folder, run.text, equal)
    assert statuses == [REFUSED]
    assert f"error: the run folder {folder} has gone" in run.text
    assert equal


# ---- the environment

OTHER: dict[str, tuple[list[str], Mapping[str, str]]] = {
    "data.threads=3": (["data.threads=3"], {}),
    "data.prefetch=5": (["data.prefetch=5"], {}),
    "data.resident=never": (["data.resident=never"], {}),
    "evaluate.batch=7": (["evaluate.batch=7"], {}),
    "TMPDIR that does not exist": ([], {"TMPDIR": "/nowhere"}),
    "HOME that cannot be written": ([], {"HOME": "/proc"}),
    "PYTHONHASHSEED=4242, LC_ALL=C": ([], {"PYTHONHASHSEED": "4242", "LC_ALL": "C"}),
}


@pytest.mark.parametrize("what", OTHER)
def test_what_may_be_other_on_resume(recipe: Path, tmp_path: Path, unbroken: Unbroken, what: str) -> None:
    expected, story = unbroken(0), Story(recipe, tmp_path / "run", 0)
    assert story.start(Fault("SIGTERM")).ends() == [STOPPED]
    changes, variables = OTHER[what]
    story.arguments += changes
    story.variables |= variables
    equal = story.goes_on(expected)
    row(f"goes on with {what}", [0], 0, story.run, "", equal)
    assert equal


def test_another_number_of_threads_is_told_and_a_key_pins_it(recipe: Path, tmp_path: Path, unbroken: Unbroken) -> None:
    expected = unbroken(0)
    for name, other, equal in (("told", "2", None), ("pinned", "1", True)):
        story = Story(recipe, tmp_path / name, 0, "threads=1")
        assert story.start(Fault("SIGTERM")).ends() == [STOPPED]
        story.arguments[-1] = f"threads={other}"
        same = story.goes_on(expected)
        said = [line["text"] for line in events(story.run, "message") if "threads" in line["text"]]
        print(f"\n| goes on with threads={other} after 1 | {said} | equal {same} |")
        assert bool(said) == (other != "1"), said
        assert equal is None or same


def test_too_few_open_files_are_one_sentence(recipe: Path, tmp_path: Path, unbroken: Unbroken) -> None:
    story = Story(recipe, tmp_path / "run", 0)
    run = story.start(limits={resource.RLIMIT_NOFILE: 20})
    statuses = run.ends()
    equal = story.goes_on(unbroken(0))
    row("20 open files (ulimit -n)", statuses, 0, story.run, run.text, equal)
    assert statuses == [REFUSED]
    assert run.text.startswith("error: this process may open 20 files"), run.text
    assert equal


def test_too_little_memory_ends_the_run_and_leaves_it_whole(recipe: Path, tmp_path: Path, unbroken: Unbroken) -> None:
    story = Story(recipe, tmp_path / "run", 0)
    run = story.start(limits={resource.RLIMIT_AS: 4 * 10**9})
    statuses = run.ends()
    equal = story.goes_on(unbroken(0))
    row("4 GB of address space (ulimit -v)", statuses, 0, story.run, run.text, equal)
    assert equal


def test_a_second_run_in_the_folder_is_refused(recipe: Path, tmp_path: Path, unbroken: Unbroken) -> None:
    story = Story(recipe, tmp_path / "run", 0)
    first = story.start(Fault("SIGSTOP", call=10))
    while not (story.run / "events.jsonl").exists() or len(steps(story.run)) < 9:
        time.sleep(0.01)
    second = story.start()
    assert second.ends() == [REFUSED]
    assert "error: another run is writing" in second.text, second.text
    os.kill(first.processes[0].pid or 0, signal.SIGCONT)
    assert first.ends() == [0], first.text
    equal = figures(story.run) == unbroken(0)
    row("a second run in the folder", [REFUSED], 0, story.run, second.text, equal)
    assert equal


def test_a_suspended_run_of_one_process_goes_on(recipe: Path, tmp_path: Path, unbroken: Unbroken) -> None:
    """Longer than the limit: it does not count, because nothing of the run was awake."""
    story = Story(recipe, tmp_path / "run", 2, "faults.stall_minutes=0.1")
    run = story.start(Fault("SIGSTOP", call=10), Fault("SIGSTOP", call=10, rank=1))
    time.sleep(12)
    for process in run.processes:
        os.kill(process.pid or 0, signal.SIGCONT)
    assert run.ends() == [0, 0], run.text
    equal = figures(story.run) == unbroken(2)
    row("the whole run suspended for longer than the limit", [0, 0], 12, story.run, run.text, equal)
    assert equal
    assert json.loads((story.run / "summary.json").read_text())["world"] == 2
