"""Kills, signals and numbers that are not finite, in real processes.

`pytest -m cluster tests/faults/test_ends.py -s` prints rows of the table of docs/faults.md.
"""

import random
import signal
import time
from pathlib import Path

import pytest
import torch

from lsdali.errors import BROKEN, REFUSED, STOPPED
from tests.faults.forked import Fault
from tests.faults.stories import Story, Unbroken, again, figures, row, steps
from tests.harness import events

pytestmark = [pytest.mark.cluster, pytest.mark.ranks, pytest.mark.timeout(600)]
KILLED = -signal.SIGKILL


ENDS = {
    "SIGKILL to a single process": (0, [Fault("SIGKILL")], [KILLED], ""),
    "SIGKILL to both of 2 ranks": (2, [Fault("SIGKILL"), Fault("SIGKILL", rank=1)], [KILLED, KILLED], ""),
    "SIGKILL to rank 1 of 2": (2, [Fault("SIGKILL", rank=1)], [BROKEN, KILLED], "error: rank 1 on "),
    "SIGKILL to rank 0 of 2": (2, [Fault("SIGKILL")], [KILLED, BROKEN], "has died: rank 0"),
    "abort in rank 1 of 2": (2, [Fault("abort", rank=1)], [BROKEN, -signal.SIGABRT], "Fatal Python error: Aborted"),
    "SIGKILL while a thread saves": (0, [Fault("SIGKILL", "save", 2)], [KILLED], ""),
    **{
        f"{name} while {where}": (0, [Fault(name, place, 1)], [STOPPED], "stopped ")
        for name in ("SIGTERM", "SIGINT")
        for place, where in (("building", "building"), ("validation", "validating"), ("save", "a thread saves"))
    },
    "two SIGTERM, 6 s apart, while building": (0, [Fault("two signals", "building", 1)], [STOPPED], "stopped "),
    "a second SIGTERM after 6 s in a save": (0, [Fault("two signals", "save", 2)], [128 + signal.SIGTERM], ""),
    "SIGTERM to one of 2 ranks while validating": (
        2,
        [Fault("SIGTERM", "validation", 1, rank=1)],
        [STOPPED, STOPPED],
        "stopped at step ",
    ),
}


@pytest.mark.parametrize("what", ENDS)
def test_it_ends_and_the_same_command_ends_equal(recipe: Path, tmp_path: Path, unbroken: Unbroken, what: str) -> None:
    ranks, faults, statuses, sentence = ENDS[what]
    expected, story = unbroken(ranks), Story(recipe, tmp_path / "run", ranks)
    hurt = story.start(*faults)
    found = hurt.ends()
    equal = story.goes_on(expected)
    row(what, found, hurt.seconds, story.run, hurt.text, equal)
    assert found == statuses, hurt.text
    assert sentence in hurt.text
    assert "Traceback" not in hurt.text
    assert equal
    assert again(story.run) <= 8


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_in_the_last_step_or_the_summary_comes_too_late_to_stop(
    recipe: Path, tmp_path: Path, unbroken: Unbroken, name: str
) -> None:
    for place, call in (("step", 30), ("summary", 1)):
        story = Story(recipe, tmp_path / place, 0)
        ended = story.start(Fault(name, place, call))
        statuses = ended.ends()
        equal = figures(story.run) == unbroken(0)
        row(f"{name} in the last {place}", statuses, 0, story.run, ended.text, equal)
        assert (statuses, equal) == ([0], True), ended.text


@pytest.mark.parametrize("ranks", [0, 2])
def test_a_process_that_stands_still_is_named_with_its_stack(
    recipe: Path, tmp_path: Path, unbroken: Unbroken, ranks: int
) -> None:
    last = max(ranks - 1, 0)
    expected, story = unbroken(ranks), Story(recipe, tmp_path / "run", ranks, "faults.stall_minutes=0.1")
    hurt = story.start(Fault("sleep", call=10, rank=last))
    statuses = hurt.ends()
    equal = story.goes_on(expected)
    what = f"rank {last} of {max(ranks, 1)} sleeps for good, limit 6 s"
    row(what, statuses, hurt.seconds, story.run, hurt.text, equal)
    assert set(statuses) == {BROKEN}
    assert f"error: no progress for 6 s: rank {last} on " in hurt.text
    assert "at step 9 (training)" in hurt.text
    assert f"rank {last} on " in hurt.log(last).read_text()
    assert "in sleep_for_good" in hurt.log(last).read_text()
    assert equal


@pytest.mark.long
@pytest.mark.parametrize("ranks", [0, 2])
def test_kills_at_random_moments(recipe: Path, tmp_path: Path, unbroken: Unbroken, ranks: int) -> None:
    """Ten of them, with a checkpoint at every step; none leaves a damaged one."""
    expected, draw = unbroken(ranks), random.Random(ranks)
    story, killed, inside = Story(recipe, tmp_path / "run", ranks, "save.every_steps=1"), 0, 0
    for _ in range(10):
        run = story.start()
        before = len(steps(story.run)) if (story.run / "events.jsonl").exists() else 0
        while run.processes[0].exitcode is None and not (
            (story.run / "events.jsonl").exists() and len(steps(story.run)) > before
        ):
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.1))
        for process in run.processes:
            process.kill()
        killed += run.ends() == [KILLED] * max(ranks, 1)
        inside += bool(list((story.run / "checkpoints").glob(".*.part")))
    equal = story.goes_on(expected)
    told = [line["text"] for line in events(story.run, "message")]
    row(f"{killed} SIGKILLs at random moments, {inside} inside a save", [], 0, story.run, "", equal)
    assert killed >= 5
    assert equal
    assert not any("damaged" in text or "set aside" in text for text in told), told


# ---- numbers

DIVERGED = {
    "optimizer.lr=1e6": (0, ["optimizer.lr=1.0e+6"]),
    "optimizer.lr=1e6, reported every 50 steps, saved at each": (
        0,
        ["optimizer.lr=1.0e+6", "log.every_steps=50", "save.every_steps=1"],
    ),
    "the same on 2 ranks": (2, ["optimizer.lr=1.0e+6", "log.every_steps=50", "save.every_steps=1"]),
    "data.std 1e-40: infinite pixels": (0, ["data.std=[1.0e-40,1.0e-40,1.0e-40]"]),
}


@pytest.mark.parametrize("what", DIVERGED)
def test_a_run_that_diverges_ends_and_keeps_finite_checkpoints(recipe: Path, tmp_path: Path, what: str) -> None:
    ranks, changes = DIVERGED[what]
    story = Story(recipe, tmp_path / "run", ranks, "faults.max_skipped_steps=3", *changes)
    run = story.start()
    statuses = run.ends()
    told = next(line for line in run.text.splitlines() if line.startswith("error"))
    print(f"\n| {what} | {told[:200]} | {statuses} |")
    assert set(statuses) == {REFUSED}, run.text
    assert "Traceback" not in run.text
    for file in (story.run / "checkpoints").glob("*.pt"):
        content = torch.load(file, weights_only=True)
        assert all(
            value.isfinite().all() for value in content["parts"]["student"].values() if value.is_floating_point()
        )


@pytest.mark.parametrize("what", ["nan in the images", "nan in a gradient"])
def test_one_number_that_is_not_finite_on_one_rank(recipe: Path, tmp_path: Path, what: str) -> None:
    """Both skip the step, say so, and end with equal weights; a kill after it loses nothing of that."""
    story = Story(recipe, tmp_path / "whole", 2)
    run = story.start(Fault(what, call=5, rank=1))
    assert run.ends() == [0, 0], run.text
    cut = Story(recipe, tmp_path / "cut", 2)
    killed = cut.start(Fault(what, call=5, rank=1), Fault("SIGKILL", call=20), Fault("SIGKILL", call=20, rank=1))
    assert killed.ends() == [KILLED, KILLED]
    equal = cut.goes_on(figures(story.run))
    row(f"{what} of rank 1, step 5", [0, 0], 0, cut.run, run.text, equal)
    assert "step 5 was skipped: " in run.text
    assert equal
