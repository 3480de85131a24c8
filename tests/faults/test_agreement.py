"""What ranks conclude from each other's beats, and what a signal does; ranks are threads here."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from lsdali.errors import BROKEN, STOPPED
from lsdali.faults import marker, pulse, signals
from lsdali.faults.pulse import Pulse
from lsdali.faults.signals import caught
from lsdali.faults.table import Beat, ProcessTable, Verdict
from lsdali.faults.wire import Line, Server
from lsdali.train import main
from tests.harness import events, make_images, tiny


def table_of(*beats: Beat, limit: int = 5) -> ProcessTable:
    table = ProcessTable(len(beats), limit)
    for beat in beats:
        table.hear(beat)
    return table


def after(table: ProcessTable, ticks: int) -> Verdict:
    for _ in range(ticks):
        table.tick()
    return table.verdict


def test_a_rank_without_a_last_word_has_died_and_one_with_it_has_not() -> None:
    table = table_of(Beat(0, "a", 7, "training"), Beat(1, "b", 8, "saving"), Beat(2, "b", 8, "training", left=0))
    for rank in (1, 2):
        table.lose(rank)
    verdict = after(table, 3)
    assert verdict.end == "rank 1 on b has died at step 8 (saving): killed, or it ended without a word"
    assert verdict.status == BROKEN


@pytest.mark.parametrize(("host", "named"), [("b", True), ("c", False)])
def test_memory_is_named_where_the_kernel_has_killed_on_that_host(host: str, named: bool) -> None:
    table = table_of(Beat(0, host, killed=1), Beat(1, "b"))
    table.lose(1)
    assert ("no memory left" in (after(table, 2).end or "")) == named


def test_a_mute_rank_and_one_that_is_behind_are_named_with_their_step() -> None:
    table = table_of(Beat(0, "a", 7), Beat(1, "b", 7, "training"))
    for _ in range(6):
        table.hear(Beat(0, "a", 7))
        table.tick()
    assert table.verdict.end == "no sign of life for 5 s from rank 1 on b at step 7 (training)"

    table = table_of(
        Beat(0, "a", 7, "training", count=15, still=6), Beat(1, "b", 7, "waiting for data", count=14, still=6)
    )
    assert table.verdict.end == "no progress for 5 s: rank 1 on b at step 7 (waiting for data)"
    assert table.verdict.stacks == (1,)


def test_one_rank_that_gets_on_is_no_stall() -> None:
    assert table_of(Beat(0, "a", still=99), Beat(1, "b", still=2)).verdict == Verdict()


def test_a_failed_rank_ends_the_others_with_its_status_and_without_a_second_sentence() -> None:
    assert table_of(Beat(0, "a"), Beat(1, "b", left=2)).verdict == Verdict(end="", status=2)


@pytest.mark.parametrize(
    ("host", "listens"), [(None, "127.0.0.1"), ("127.0.0.2", "127.0.0.2"), ("192.0.2.1", "0.0.0.0")]
)
def test_beats_are_heard_on_the_loopback_or_at_one_address(host: str | None, listens: str) -> None:
    """192.0.2.1 is nobody's (RFC 5737), as a node's address is inside a container with a bridge."""
    server = Server(ProcessTable(2, 5), host)
    try:
        assert server._server.server_address[0] == listens
        assert server.address[0] == (host or "127.0.0.1")
    finally:
        server.close()


def test_a_stranger_who_does_not_know_the_word_is_not_heard() -> None:
    table = ProcessTable(2, 5)
    server = Server(table, None)
    try:
        stranger = Line((*server.address[:2], "guess"), 5)
        with pytest.raises(ConnectionError):
            stranger.hear(Beat(1, "b", left=1))
        stranger.close()
        assert table.beats == {}
    finally:
        server.close()


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "TICK", 0.02)
    monkeypatch.setattr(pulse, "GRACE", 0.02)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("asked", [0, 2])
def test_ranks_in_different_steps_stop_at_the_same_one(asked: int) -> None:
    """Three ranks of which none waits for another, as hosts run ahead of GPUs; rank `asked` gets the signal."""
    table = ProcessTable(3, 1000)
    server = Server(table, None)
    pulses = [Pulse(rank) for rank in range(3)]
    found: dict[int, int] = {}
    pulses[0].begin(table, table.tick)
    for one in pulses[1:]:
        line = Line(server.address, 10)
        one.begin(line, farewell=line.close)

    def train(rank: int) -> None:
        step = 0
        while not pulses[rank].stops(step):
            pulses[rank].beat("training")
            step += 1
            time.sleep(0.001 * (rank + 1))
        found[rank] = step

    threads = [threading.Thread(target=train, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    while pulses[2].step < 20:
        time.sleep(0.001)
    pulses[asked].signalled("SIGTERM")
    for thread in threads:
        thread.join(20)
    for one in reversed(pulses):
        one.leave(STOPPED)
    server.close()
    assert len(set(found.values())) == 1, found
    assert len(found) == 3


@pytest.mark.usefixtures("short")
def test_a_rank_that_stands_still_shows_its_stack_and_ends(capfd: pytest.CaptureFixture[str]) -> None:
    ended: list[int] = []
    one = Pulse(end=ended.append)
    table = ProcessTable(1, 3)
    assert not one.stops(4)
    one.beat("waiting for data")
    one.begin(table, table.tick)
    while not ended:
        time.sleep(0.01)
    one.leave(0)
    text = capfd.readouterr().err
    assert text.startswith(f"error: no progress for 3 s: rank 0 on {one.host} at step 4 (waiting for data)")
    assert "in test_a_rank_that_stands_still_shows_its_stack_and_ends" in text
    assert ended[0] == BROKEN


def test_the_second_signal_ends_at_once_but_not_an_echo_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    ended: list[int] = []
    heard = threading.Event()
    with caught(lambda name: (told.append(name), heard.set()), lambda status: (ended.append(status), heard.set())):  # type: ignore[func-returns-value]
        os.kill(os.getpid(), signal.SIGUSR2)
        assert heard.wait(10)
        heard.clear()
        os.kill(os.getpid(), signal.SIGTERM)
        monkeypatch.setattr(signals, "SAME", 0.0)
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard.wait(10)
    assert told == ["SIGUSR2"]
    assert set(ended) == {128 + signal.SIGTERM}
    assert signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("LSDALI_CACHE", str(tmp_path / "cache"))
    tree = tiny({"name": "ce"}, make_images(tmp_path / "images"), tmp_path / "run", log={"every_steps": 1}, epochs=4)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree))
    return tmp_path / "recipe.yaml"


@pytest.mark.parametrize(
    ("name", "during"),
    [*((name.name, "step") for name in signals.CAUGHT), ("SIGTERM", "_write"), ("SIGTERM", "evaluate")],
)
def test_a_signalled_process_saves_and_the_same_command_goes_on(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, during: str
) -> None:
    """The signal comes in the middle of a save, of the validation or of a step."""
    from lsdali.state.checkpoint import Checkpoints
    from lsdali.trainer import Trainer

    owner = Checkpoints if during == "_write" else Trainer
    inner = getattr(owner, during)

    def signalled(*args: object, **kwargs: object) -> object:
        os.kill(os.getpid(), getattr(signal, name))
        time.sleep(0.1)  # the kernel and a thread carry it on; the step to stop at may be a later one
        return inner(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, during, signalled)
        assert main([str(recipe)]) == STOPPED
    run = tmp_path / "run"
    step = json.loads((run / "stopped.json").read_text())["step"]
    assert 1 <= step < 20
    assert (run / f"checkpoints/step-{step:010d}.pt").exists()
    assert events(run, "message")[-1]["text"] == f"stopped at step {step}; the same command goes on"
    assert main([str(recipe)]) == 0
    assert not (run / "stopped.json").exists()
    assert [line["step"] for line in events(run, "begun")] == [0, step]
    assert len(events(run, "evaluated")) == 4, "no epoch is lost, none comes twice"
    assert main([str(recipe), f"run_dir={tmp_path}/unbroken"]) == 0
    digests = [json.loads((folder / "summary.json").read_text())["digest"] for folder in (run, tmp_path / "unbroken")]
    assert digests[0] == digests[1]


def test_workers_that_torchrun_starts_again_after_a_stop_end_and_those_of_a_new_launch_go_on(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    marker.leave(run, 7, 20)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    assert main([str(recipe)]) == STOPPED
    assert json.loads((run / "stopped.json").read_text()) == {"step": 7, "steps": 20, "restarts": 1}
    assert events(run, "begun") == []
    for count in ("1", "0"):  # a host joined the same launch; another launch
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", count)
        assert not marker.stopped_before(run)
    assert main([str(recipe)]) == 0
    assert not (run / "stopped.json").exists()


def test_a_thousand_ordinary_beats_ask_for_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked for at each tick, and where a beat may change it."""
    asked = []
    monkeypatch.setattr(ProcessTable, "_judge", lambda table: asked.append(len(table.beats)))
    table = ProcessTable(1024, 300)
    for rank in range(1024):
        table.hear(Beat(rank, "host", step=5, count=9, still=300))
    assert asked == []
    table.tick()
    assert asked == [1024]
    for news in ({"left": 0}, {"stop": "SIGTERM"}, {"bound": 0}, {"still": 301}):
        table.hear(Beat(3, "host", **news))
    assert len(asked) == 5
