"""Shards in a store: the bits of local ones, few bytes to open, faults of the network told from bad files."""

import json
import os
import re
import shutil
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image

from lsdali import scan
from lsdali.clock import PerEpoch
from lsdali.data.index.index import open_index
from lsdali.data.io import remote, store
from lsdali.data.io.cache import cache_dir
from lsdali.data.pipeline import dali_pipeline as runner
from lsdali.data.pipeline.loader import EvalLoader, TrainLoader
from lsdali.data.pipeline.loaders import open_dataset
from lsdali.data.pipeline.options import LoaderOptions
from lsdali.data.sets.catalog import CenterCrop, Folder, PadCrop, RandomResizedCrop
from lsdali.data.sets.shards import Shards, expand_braces
from lsdali.errors import UserError
from lsdali.pack import main as pack
from tests.data.plain import PLAIN

CPU = torch.device("cpu")


class Handler(SimpleHTTPRequestHandler):
    """Serves ranges, counts what it sends, and fails as it is told."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def list_directory(self, path):
        self.send_error(404)

    def do_GET(self):
        state, file = self.server, Path(self.translate_path(self.path))
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")) if state.ranges else None
        if asked and state.failures > 0:
            state.failures -= 1
            if state.failures % 2:
                self.close_connection = True  # no answer at all
                return
            return self.send_error(503)
        if not file.is_file():
            return self.send_error(404)
        data = file.read_bytes()
        first, last = (int(asked[1]), int(asked[2])) if asked else (0, len(data) - 1)
        if first >= len(data):
            return self.send_error(416)
        part = data[first : last + 1]
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Last-Modified", self.date_time_string(file.stat().st_mtime))
        self.end_headers()
        self.wfile.write(part)
        state.sent.append((self.path, len(part)))


@pytest.fixture
def site(tmp_path, tree, monkeypatch):
    """A server for tmp_path/site, which holds packed shards; .url is their root."""
    monkeypatch.setattr(store, "WAITS", (0.01, 0.02, 0.03))
    out = tmp_path / "site/data"
    assert pack([str(tree()), str(out), "--shard-bytes", "20000"]) == 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path / "site")))
    server.ranges, server.failures, server.sent = True, 0, []
    server.url, server.folder = f"http://127.0.0.1:{server.server_port}/data", out
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def config(root, **more):
    count = 1 + max(int(f.stem) for f in Path(more.pop("like")).glob("train/*.tar")) if "like" in more else 0
    named = {"train_shards": f"train/{{000000..{count - 1:06d}}}.tar", "val_shards": "val/{000000..000000}.tar"}
    return Shards(root=str(root), **(PLAIN | (named if count else {}) | more))


def loader(config, lines=None):
    index = open_index(config, "train")
    log = [].append if lines is None else lines.append
    return TrainLoader(index, config, LoaderOptions(PerEpoch(8), 3, CPU, log=log))


def same(ours, theirs) -> bool:
    fields = ("images", "labels", "index", "valid", "stand_in")
    ours, theirs = list(ours), list(theirs)
    return len(ours) == len(theirs) > 0 and all(
        np.array_equal(getattr(a, f), getattr(b, f)) for a, b in zip(ours, theirs) for f in fields
    )


def refusal(config, split="train") -> str:
    with pytest.raises(UserError) as caught:
        open_index(config, split)
    return str(caught.value)


def test_batches_are_those_of_local_shards_to_the_bit(site, monkeypatch):
    monkeypatch.setattr(runner, "AHEAD", 30_000)  # another number of batches ahead at each step
    monkeypatch.setattr(remote, "BLOCK", 8_000)
    far, near = config(site.url, like=site.folder), config(site.folder)
    a, b = loader(near), loader(far)
    whole = sum(f.stat().st_size for f in site.folder.glob("train/*.tar"))
    assert sum(size for path, size in site.sent if path.endswith(".tar")) <= 1  # that ranges are served
    assert sum(size for _, size in site.sent) < whole / 10
    assert a.index.fingerprint == b.index.fingerprint
    assert b.index.path(0) == f"{site.url}/train/000000.tar:00000000.jpg"
    for epoch in range(2):
        assert same(b.epoch(epoch * 3), a.epoch(epoch * 3))
    assert same(loader(far).epoch(1), list(a.epoch(0))[1:])  # resumed in mid-epoch
    assert same(b.epoch(1), list(a.epoch(0))[1:])  # a jump back
    x, y = (EvalLoader(open_index(c, "val"), c, batch=3, device=CPU, half=False) for c in (near, far))
    for _ in range(2):
        assert same(y, x)


def test_shards_without_an_index_file_that_fits_are_read_once(site, capsys):
    site.folder.joinpath("train/000001.tar.json").unlink()
    other = site.folder / "train/000002.tar.json"
    other.write_text(other.read_text().replace('"shard_bytes": ', '"shard_bytes": 1'))
    broken = site.folder / "train/000000.tar.json"
    broken.write_text(broken.read_text()[:-20])
    far = config(site.url, like=site.folder)
    open_index(far, "train")
    assert "train/000000.tar, train/000001.tar, train/000002.tar: no index file" in capsys.readouterr().err
    site.sent.clear()
    open_index(far, "val")
    open_index(far, "train")
    assert not [path for path, size in site.sent if "/train/" in path and size > 1]
    assert capsys.readouterr().err == ""
    assert same(loader(far).epoch(0), loader(config(site.folder)).epoch(0))
    (site.folder / "classes.txt").write_text("wasp\nant\n")
    assert open_index(far, "train").classes == ("wasp", "ant")


def test_faults_of_the_network_are_tried_again_then_told_from_bad_files(site):
    far, lines = config(site.url, like=site.folder), []
    ours = loader(far, lines)
    whole = list(ours.epoch(0))
    ours.close()
    site.failures = 2
    assert same(ours.epoch(0), whole)
    assert site.failures == 0
    ours.close()
    site.failures = 10**6
    with pytest.raises(
        UserError, match=rf"{site.url}/train/\d+.tar cannot be read, tried 4 times \(.+\); the same comm"
    ):
        list(ours.epoch(0))
    site.failures = 0
    ours.close()
    assert same(ours.epoch(0), whole)
    ours.close()
    for k in range(3):
        file = site.folder / f"train/00000{k}.tar"
        file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"train/00000\d.tar has 5,000 bytes; it had [\d,]+ bytes when it was indexed"):
        list(ours.epoch(0))
    ours.close()
    for k in range(3):
        file = site.folder / f"train/00000{k}.tar"
        file.write_bytes(bytes(ours.index.ranges.stamps[k, 0]))  # as long as before
        os.utime(file, (1, 1))
    with pytest.raises(UserError, match=r"train/00000\d.tar has other content; it had"):
        list(ours.epoch(0))
    ours.close()
    assert lines == []
    nobody = config("http://127.0.0.1:9/data", like=site.folder)
    assert re.search(r"cannot be read, tried 4 times \(ClientConnector\w+: ", refusal(nobody))


def test_bad_members_are_named_as_in_local_shards(site, tmp_path):
    source = tmp_path / "images/train/ant"
    (source / "001.jpg").write_bytes((source / "001.jpg").read_bytes()[:700])
    (source / "003.jpg").write_bytes(b"")
    body = (source / "005.jpg").read_bytes()
    (source / "005.jpg").write_bytes(body[:650] + bytes(len(body) - 652) + b"\xff\xd9")  # its header is whole
    shutil.rmtree(site.folder)
    assert pack([str(tmp_path / "images"), str(site.folder), "--shard-bytes", "20000"]) == 0
    far, near = [], []
    assert same(loader(config(site.url, like=site.folder), far).epoch(0), loader(config(site.folder), near).epoch(0))
    assert [line.replace(site.url, str(site.folder)) for line in far] == near
    assert len(near) >= 2


def test_stores_that_can_list_take_patterns_and_others_refuse(site):
    root = fsspec.filesystem("memory")
    root.put(str(site.folder), "/lsdali-test", recursive=True)
    assert same(loader(config("memory://lsdali-test")).epoch(0), loader(config(site.folder)).epoch(0))
    root.copy("/lsdali-test/train/000000.tar", "/lsdali-test/train/9.tar")
    assert "validate on other data" in refusal(config("memory://lsdali-test", val_shards="train/9.tar"))
    assert len(open_index(config("memory://lsdali-test"), "train")) > 24
    assert refusal(config(site.url)).startswith(f"{site.url}/train/*.tar matches nothing; many stores, HTTP ones")
    assert "lacks shards, or keeps them closed: train/9.tar" in refusal(
        config(site.url, train_shards="train/{9..9}.tar", val_shards="val/{000000..000000}.tar")
    )
    root.rm("/lsdali-test", recursive=True)


def test_a_store_without_ranges_is_refused(site):
    site.ranges = False
    assert refusal(config(site.url, like=site.folder)) == (
        f"{site.url}/train/000000.tar: the store answers a request for a few bytes with the whole file; "
        "use one that serves ranges"
    )


def test_small_images_of_a_store_are_held(site, tmp_path, texture):
    for split in ("train", "val"):
        for k in range(2):
            (tmp_path / f"small/{split}/{k}").mkdir(parents=True)
            for n in range(3):
                texture(20, 20, 3 * k + n).save(tmp_path / f"small/{split}/{k}/{n}.png")
    assert pack([str(tmp_path / "small"), str(tmp_path / "site/small")]) == 0
    more = {"train": PadCrop(size=20), "eval": CenterCrop(resize=20, size=20), "resident": "always"}
    roots = (site.url.replace("/data", "/small"), tmp_path / "site/small")
    far, near = (open_dataset(config(r, like=roots[1], **more), "train", lambda line: None) for r in roots)
    assert np.array_equal(far.pixels, near.pixels)


def test_addresses_and_packages_that_do_not_do(site, monkeypatch):
    for address in ("https://me:secret@host/data", "https://host/data?sig=secret", "s3://key:secret@bucket/data"):
        text = refusal(config(address))
        assert "holds a login or a query" in text
        assert "secret" not in text
    assert "is no address that fsspec can read" in refusal(config("nostore://x/y"))
    assert "needs a folder; only shards" in refusal(
        Folder(root="https://a:secret@b/c", train=RandomResizedCrop(size=32), eval=CenterCrop(resize=36, size=32))
    )
    assert scan.main(["https://host/data"]) == 2
    store.open_store.cache_clear()
    monkeypatch.setitem(sys.modules, "fsspec", None)
    assert "pip install lsdali[remote]" in refusal(config("https://host/data"))


def test_braces_name_shards_here_too(site):
    assert expand_braces("a{08..10}/{0..1}.tar")[:3] == ["a08/0.tar", "a08/1.tar", "a09/0.tar"]
    named = config(site.folder, like=site.folder)
    assert same(loader(named).epoch(0), loader(config(site.folder)).epoch(0))
    assert "lacks shards that train/{8..9}.tar names: train/8.tar, train/9.tar" in refusal(
        config(site.folder, train_shards="train/{8..9}.tar")
    )
    assert "use either" in refusal(config(site.folder, train_shards="t*/{8..9}.tar"))
    assert "names nothing" in refusal(config(site.folder, train_shards="train/{9..8}.tar"))


def test_a_short_answer_is_a_fault(monkeypatch):
    monkeypatch.setattr(store, "WAITS", (0.0,))
    fsspec.filesystem("memory").pipe("/lsdali-short/a.tar", bytes(range(100)))
    byte_range = store.open_store("memory://lsdali-short")
    assert byte_range.fetch([("a.tar", 90, 10), ("a.tar", 0, 2)]) == [bytes(range(90, 100)), b"\0\1"]
    with pytest.raises(UserError, match=r"a.tar cannot be read, tried 2 times \(10 of 11 bytes came\)"):
        byte_range.fetch([("a.tar", 90, 11)])


@pytest.mark.parametrize("crop", [RandomResizedCrop(size=32), PadCrop(size=32, pad=2)])
def test_turned_images_are_those_of_local_shards(site, tree, texture, tmp_path, capsys, crop):
    """With the orientation in the index file; without it, the shard is read once from end to end."""
    root = tmp_path / "images"
    for turn, file in enumerate(sorted(root.glob("*/*/*.jpg")), 1):
        exif = Image.Exif()
        exif[0x0112] = 1 + turn % 8
        texture(60, 44, turn).save(file, exif=exif)
    shutil.rmtree(site.folder)
    assert pack([str(root), str(site.folder), "--shard-bytes", "20000"]) == 0
    near, far = (
        config(where, train=crop, exif_orientation=True, **more)
        for where, more in ((site.folder, {}), (site.url, {"like": site.folder}))
    )
    expected = list(loader(near).epoch(0))
    capsys.readouterr()
    index = open_index(far, "train")
    assert {tuple(row) for row in index.size.tolist()} == {(60, 44), (44, 60)}
    assert same(loader(far).epoch(0), expected)
    assert capsys.readouterr().err == ""
    for file in site.folder.glob("train/*.json"):
        content = json.loads(file.read_text())
        content |= {"format": "lsdali shard 1", "samples": [row[:7] for row in content["samples"]]}
        file.write_text(json.dumps(content))
    shutil.rmtree(cache_dir())
    assert same(loader(far).epoch(0), expected)
    assert "no index file" in capsys.readouterr().err
    as_stored = config(site.url, like=site.folder, train=crop)
    assert {tuple(row) for row in open_index(as_stored, "train").size.tolist()} == {(60, 44)}
    assert capsys.readouterr().err == ""
