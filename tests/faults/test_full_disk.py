"""A full disk, wherever it is: one sentence, the last good state kept, and the same command goes on."""

import importlib
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from lsdali.disk import Appended, write_whole
from lsdali.errors import UserError
from lsdali.event_file import EventFile, masked_checksum
from lsdali.train import main, run
from lsdali.trainer import Trainer
from tests.faults.disks import FILLER, Mount, fill, mounting
from tests.harness import ROOT, environment, events, make_images, summary, tiny, train
from tests.ranks import OnRanks

mount = pytest.fixture(mounting, name="mount")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    base = tmp_path_factory.mktemp("disk")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LSDALI_CACHE", str(base / "cache"))
        tree = tiny({"name": "ce"}, make_images(base / "images"), base / "unbroken", log={"every_steps": 1}, epochs=8)
        (base / "recipe.yaml").write_text(yaml.safe_dump(tree))
        assert main([str(base / "recipe.yaml")]) == 0
        yield base / "recipe.yaml"


def filling(inner: Callable[..., Any], disk: Path) -> Callable[..., Any]:
    def filled(*args: Any, **kwargs: Any) -> Any:
        fill(disk)
        if isinstance(args[0], Trainer):
            args[0].events.log("x" * 5000)  # more than is left of the last page of events.jsonl
        return inner(*args, **kwargs)

    return filled


PLACES = {
    "recipe.yaml": "lsdali.disk:write_whole",
    "events.jsonl": "lsdali.trainer:Trainer.report",
    "checkpoints/step-0000000005.pt": "lsdali.state.checkpoint:Checkpoints._write",
    "summary.json": "lsdali.trainer:weights_digest",
}


@pytest.mark.parametrize("place", PLACES)
def test_a_disk_that_fills_is_one_sentence_and_the_run_goes_on_after_room_is_made(
    recipe: Path,
    tmp_path: Path,
    mount: Mount,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    place: str,
) -> None:
    folder = mount(tmp_path / "run", "16m")
    module, _, name = PLACES[place].partition(":")
    owner: Any = importlib.import_module(module)
    for part in name.split(".")[:-1]:
        owner = getattr(owner, part)
    name = name.rpartition(".")[2]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, filling(getattr(owner, name), folder))
        assert main([str(recipe), f"run_dir={folder}"]) == 2
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1, said
    places = [place, "events.jsonl"] if place.startswith("checkpoints") else [place]  # a thread writes checkpoints
    assert any(said[0].startswith(f"error: cannot write {folder / p}: No space left on device (") for p in places)
    assert "(0 bytes free there); " in said[0]
    assert not list(folder.rglob("*.part")), "half a file stays"
    (folder / FILLER).unlink()
    assert main([str(recipe), f"run_dir={folder}"]) == 0
    assert summary(folder)["digest"] == summary(recipe.parent / "unbroken")["digest"]
    trained = [line["step"] for line in events(folder, "trained")]
    assert sorted(set(trained)) == list(range(1, 41))


def test_a_limit_of_file_sizes_is_named_without_root(
    recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The kernel refuses in the middle of a checkpoint, where torch's archive only knows of a wrong position."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        assert main([str(recipe), f"run_dir={tmp_path}"]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert capfd.readouterr().err.startswith(
        f"error: cannot write {tmp_path}/checkpoints/step-0000000005.pt: File too large ("
    )


def scalars(folder: Path) -> list[Event]:
    """Every event in a TensorBoard folder, read by tensorboardX's own description of the format."""
    found = []
    for file in sorted(folder.glob("events.out.tfevents.*")):
        data = file.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            assert int.from_bytes(data[8:12], "little") == masked_crc32c(data[:8])
            content, data = data[12 : 12 + length], data[12 + length :]
            assert int.from_bytes(data[:4], "little") == masked_crc32c(content)
            found.append(Event.FromString(content))
            data = data[4:]
    return found


def test_the_file_is_that_of_tensorboard(tmp_path: Path) -> None:
    assert masked_checksum(b"123456789") == masked_crc32c(b"123456789").to_bytes(4, "little")
    assert crc32c(b"123456789") == 0xE3069283, "the check value of RFC 3720's CRC-32C"
    file = EventFile(tmp_path, 300)
    file.write(301, {"train/loss": 0.25, "val/größe": 1e300, "x": float("nan")})
    file.write(2**40, {"train/loss": -1.5})
    file.close()
    head, start, first, second = scalars(tmp_path)
    assert head.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (300, 1)
    assert [v.tag for v in first.summary.value] == ["train/loss", "val/größe", "x"]
    assert first.summary.value[0].simple_value == 0.25
    assert first.summary.value[1].simple_value == float("inf")
    assert first.summary.value[2].simple_value != first.summary.value[2].simple_value
    assert (first.step, second.step, second.summary.value[0].simple_value) == (301, 2**40, -1.5)
    assert abs(first.wall_time - second.wall_time) < 60


def check_tensorboard(recipe: Path, folder: Path) -> None:
    from lsdali.recipe import load

    run(load(str(recipe), [f"run_dir={folder}"]), torch.device("cpu"))


@pytest.mark.parametrize(
    ("ranks", "leave"),
    [(1, 0), (1, 4096), pytest.param(2, 4096, marks=pytest.mark.ranks)],
    ids=["from the start", "in mid-run", "in mid-run on two ranks"],
)
def test_training_goes_on_without_tensorboard(
    recipe: Path, tmp_path: Path, mount: Mount, on_ranks: OnRanks, ranks: int, leave: int
) -> None:
    disk = mount(tmp_path / "tensorboard", "64k")
    fill(disk, leave)
    if ranks == 1:
        check_tensorboard(recipe, tmp_path)
    else:
        on_ranks(ranks, check_tensorboard, recipe, tmp_path)
    said = [line["text"] for line in events(tmp_path, "message") if "cannot write" in line["text"]]
    assert said == [
        f"cannot write {disk}: No space left on device (0 bytes free there); training goes on without it"
    ], "it is said once"
    assert len(events(tmp_path, "trained")) == 40
    if ranks == 1:
        assert summary(tmp_path)["digest"] == summary(recipe.parent / "unbroken")["digest"]
    if leave:
        assert 2 < len(scalars(disk)) < 40, "what was written before is whole"


@pytest.mark.ranks
def test_two_processes_end_together_and_the_sentence_comes_first(recipe: Path, tmp_path: Path, mount: Mount) -> None:
    folder = mount(tmp_path / "run", "1m")
    done = train(2, str(recipe), f"run_dir={folder}", check=False)
    said = next(line for line in done.stderr.splitlines() if line.startswith(("error", "Traceback")))
    assert said.startswith(f"error: cannot write {folder}/checkpoints/step-00000000")
    assert "No space left on device" in said
    assert "lsdali/trainer.py" not in done.stderr, "no traceback of ours"


def test_no_run_needs_room_in_dev_shm(recipe: Path, tmp_path: Path) -> None:
    script = (
        "mount -t tmpfs -o size=4k lsdali /dev/shm && head -c 9999 /dev/zero > /dev/shm/filler 2> /dev/null; "
        'echo mounted; exec "$@"'
    )
    arguments = [sys.executable, "-m", "lsdali.train", str(recipe), f"run_dir={tmp_path}"]
    done = subprocess.run(
        ["unshare", "--mount", "bash", "-c", script, "bash", *arguments],
        cwd=ROOT,
        env=environment(1),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if "mounted" not in done.stdout:
        pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert summary(tmp_path)["digest"] == summary(recipe.parent / "unbroken")["digest"]


@pytest.mark.parametrize(("pages", "what"), [(0, "the cache folder"), (2, "the decoded images")])
def test_a_full_cache_is_one_sentence(
    recipe: Path,
    tmp_path: Path,
    mount: Mount,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    pages: int,
    what: str,
) -> None:
    """With two pages left, a sparse file of decoded images can be made; writing into it would kill the process."""
    from lsdali.data.index import decode_cache

    disk = mount(tmp_path / "cache", "1m")
    monkeypatch.setenv("LSDALI_CACHE", str(disk))
    if pages:
        inner = decode_cache._write_pixels
        monkeypatch.setattr(decode_cache, "_write_pixels", lambda *args: (fill(disk, 4096 * pages), inner(*args))[1])
    else:
        fill(disk)
    assert main([str(recipe), f"run_dir={tmp_path}/run", "data.train.crop=pad", "data.resident=always"]) == 2
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1, said
    assert what in said[0]
    assert "No space left on device" in said[0]
    assert str(disk) in said[0]
    assert "free there" in said[0]


def test_a_record_that_finds_no_room_leaves_nothing_behind(tmp_path: Path, mount: Mount) -> None:
    disk = mount(tmp_path / "disk", "64k")
    write_whole(disk / "summary.json", "old")
    file = Appended(disk / "lines")
    fill(disk, 4096)
    file.append(b"x" * 4000 + b"\n")
    with pytest.raises(OSError, match="No space"):
        file.append(b"y" * 5000 + b"\n")
    file.append(b"z" * 90 + b"\n")
    file.close()
    assert (disk / "lines").read_bytes() == b"x" * 4000 + b"\n" + b"z" * 90 + b"\n"
    with pytest.raises(UserError, match=r"cannot write .*/summary.json: No space left on device \(0 bytes free"):
        write_whole(disk / "summary.json", "new" * 3000)
    assert (disk / "summary.json").read_text() == "old"
