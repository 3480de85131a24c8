"""Several runs at once on one cache: real processes that scan, decode, are killed, and wait for each other."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lsdali import dist
from lsdali.data.index import decode_cache
from lsdali.data.index.index import open_whole
from lsdali.data.io import cache
from lsdali.data.pipeline.loaders import open_dataset
from lsdali.data.sets.catalog import CenterCrop, Folder, PadCrop
from tests.data.conftest import Plain, Texture, Tree
from tests.ranks import OnRanks

FORK = multiprocessing.get_context("fork")
SIDE = 24


@pytest.fixture
def config(tree: Tree, plain: Plain, texture: Texture) -> Folder:
    """Images of one size, whose crops resize nothing: they are decoded once, into the cache."""
    root = tree(each=20)
    for number, file in enumerate(sorted(root.glob("*/*/*.jpg"))):
        texture(SIDE, SIDE, number).save(file, format="png")
    return plain(root, train=PadCrop(size=SIDE), eval=CenterCrop(resize=SIDE, size=SIDE), resident="always")


def opened(config: Folder, answer: Connection, start: Any) -> None:
    """Open the training images when all are ready; send what was said, and the sum of the pixels."""
    said: list[str] = []
    start.wait()
    index = open_dataset(config, "train", said.append)
    answer.send((said, int(np.asarray(index.pixels, np.int64).sum())))


def at_once(count: int, config: Folder) -> list[tuple[list[str], int]]:
    """What `count` processes answer that open the images at the same time."""
    start = FORK.Barrier(count)
    ends = [FORK.Pipe(duplex=False) for _ in range(count)]
    processes = [FORK.Process(target=opened, args=(config, send, start)) for _, send in ends]
    for process in processes:
        process.start()
    answers = [receive.recv() if receive.poll(60) else ([], -1) for receive, _ in ends]
    for process in processes:
        process.join(10)
    assert [process.exitcode for process in processes] == [0] * count
    return answers


def times_done(work: str, monkeypatch: pytest.MonkeyPatch, file: Path, module: Any) -> None:
    """Write a line to a file each time that a function of a module is called, by whatever process."""
    real = getattr(module, work)

    def counted(*args: Any) -> Any:
        with file.open("a") as lines:
            lines.write(f"{work}\n")
        time.sleep(0.3)  # so that the others come while it works
        return real(*args)

    monkeypatch.setattr(module, work, counted)


def expected_sum(config: Folder) -> int:
    files = sorted(Path(config.root).glob("train/*/*.jpg"))
    return sum(int(np.asarray(Image.open(file), np.int64).sum()) for file in files)


def test_one_of_several_decodes_and_all_see_the_same(
    config: Folder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    times_done("_write_pixels", monkeypatch, tmp_path / "done", decode_cache)
    answers = at_once(4, config)
    assert [pixels for _, pixels in answers] == [expected_sum(config)] * 4
    assert (tmp_path / "done").read_text().splitlines() == ["_write_pixels"]
    assert len(list((cache.cache_dir() / "index").iterdir())) == 1


def zero(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.seek(128)
        opened.write(bytes(file.stat().st_size - 128))


def cut(file: Path) -> None:
    os.truncate(file, 200)


@pytest.mark.parametrize("hurt", [zero, cut, Path.unlink])
def test_one_of_several_mends_damaged_images(config: Folder, hurt: Callable[[Path], None]) -> None:
    open_dataset(config, "train")
    (folder,) = (cache.cache_dir() / "decoded").iterdir()
    hurt(folder / "pixels.npy")
    answers = at_once(3, config)
    assert [pixels for _, pixels in answers] == [expected_sum(config)] * 3
    assert sum("they are decoded anew" in line for said, _ in answers for line in said) == 1


def check_mended(config: Folder, hurt: str, pixels: int) -> None:
    said: list[str] = []
    index = open_dataset(config, "train", said.append)
    assert int(np.asarray(index.pixels, np.int64).sum()) == pixels
    assert np.bincount(index.labels).tolist() == [20, 20]
    assert any(hurt in line for line in said) == dist.is_main()
    dist.barrier()


@pytest.mark.ranks
@pytest.mark.parametrize("array", ["decoded/pixels", "index/labels", "index/paths"])
def test_two_ranks_mend_together(config: Folder, on_ranks: OnRanks, array: str) -> None:
    open_dataset(config, "train")
    kind, name = array.split("/")
    (folder,) = (cache.cache_dir() / kind).iterdir()
    zero(folder / f"{name}.npy")
    on_ranks(2, check_mended, config, f"damaged: {name}.npy", expected_sum(config))


def test_a_killed_process_leaves_nobody_waiting(config: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = FORK.Event()

    def hang(*args: Any) -> None:
        begun.set()
        time.sleep(60)

    with monkeypatch.context() as patch:
        patch.setattr(decode_cache, "_write_pixels", hang)
        process = FORK.Process(target=open_dataset, args=(config, "train", [].append))
        process.start()
        assert begun.wait(30)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(10)
    ((said, pixels),) = at_once(1, config)
    assert pixels == expected_sum(config)
    assert not any("waiting" in line for line in said)


def test_nobody_waits_for_ever_and_all_know_for_whom(config: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "PATIENCE", 1.5)
    begun, done = FORK.Event(), FORK.Event()

    def stuck() -> None:
        with cache.alone(f"index-{key}"):
            begun.set()
            done.wait(60)

    open_whole(config, "train")
    (folder,) = (cache.cache_dir() / "index").iterdir()
    key = folder.name.rpartition("-")[0]
    process = FORK.Process(target=stuck)
    process.start()
    assert begun.wait(30)
    said: list[str] = []
    index = open_whole(config, "train", said.append)
    done.set()
    process.join(10)
    holder = f"process {process.pid} on {os.uname().nodename}"
    assert len(index) == 40
    assert said == [
        f"waiting for {holder}, which works on index-{key} of the cache, 1.5 s at most",
        f"{holder} still works on index-{key} of the cache after 1.5 s; this run does it too",
    ]


@pytest.mark.parametrize("taken", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/null", path)])
def test_a_strange_lock_file_stops_nobody(
    config: Folder, monkeypatch: pytest.MonkeyPatch, taken: Callable[[Path], None]
) -> None:
    index = open_whole(config, "train")
    for file in (cache.cache_dir() / "locks").iterdir():
        file.unlink()
        taken(file)
    assert open_whole(config, "train").fingerprint == index.fingerprint
