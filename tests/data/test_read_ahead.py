"""Files that the system is told of before they are decoded: which, and that the batches stay the same."""

import os
import threading

import pytest
import torch

from lsdali.clock import PerEpoch
from lsdali.data.index.index import open_index
from lsdali.data.io import announcing
from lsdali.data.pipeline.loader import TrainLoader
from lsdali.data.pipeline.options import LoaderOptions

CPU = torch.device("cpu")


def batches(config, steps):
    loader = TrainLoader(open_index(config, "train"), config, LoaderOptions(PerEpoch(4), 3, CPU, log=print))
    out, step = [], 0
    while len(out) < steps:
        for batch in loader.epoch(step):
            step += 1
            out.append(batch)
    loader.close()
    return loader, out[:steps]


def test_the_files_of_later_batches_are_announced_in_their_order(tree, plain, monkeypatch: pytest.MonkeyPatch):
    told, opened = [], {}
    real_open = os.open

    def kept(path, flags, *more):
        handle = real_open(path, flags, *more)
        opened[handle] = path
        return handle

    monkeypatch.setattr(announcing.os, "open", kept)
    advised = lambda file, *rest: told.append((opened[file], threading.current_thread().name))  # noqa: E731
    monkeypatch.setattr(announcing.os, "posix_fadvise", advised)
    config = plain(tree())
    _, expected = batches(config, 8)
    assert told == []
    loader, found = batches(config.model_copy(update={"read_ahead": 3}), 8)
    assert all(torch.equal(a.images, b.images) and torch.equal(a.index, b.index) for a, b in zip(expected, found))
    later = [os.fsencode(loader.index.path(int(i))) for batch in expected[1:] for i in batch.index]
    assert {path for path, _ in told} >= set(later)
    assert threading.main_thread().name not in {name for _, name in told}


def test_a_file_that_is_gone_is_left_to_the_decoder(tmp_path):
    import numpy as np

    paths = np.frombuffer(os.fsencode(tmp_path / "none") + b"\0\0", np.uint8)[None]
    announcing.ask_ahead(paths)
