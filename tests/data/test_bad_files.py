"""Bad files: named once and replaced in training, refused in evaluation; whenever they turn bad."""

import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lsdali.clock import PerEpoch
from lsdali.data.index.index import open_index
from lsdali.data.pipeline import fifos
from lsdali.data.pipeline.loader import EvalLoader, TrainLoader
from lsdali.data.pipeline.options import LoaderOptions
from lsdali.data.sets.catalog import CenterCrop, RandomResizedCrop
from lsdali.data.sets.shards import Shards
from lsdali.errors import UserError
from lsdali.pack import main as pack
from tests.forks import run_forked, run_script

CPU = torch.device("cpu")


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def rot(path):
    """A PNG of the same size whose head and end are whole and whose body is not."""
    with Image.open(path) as image:
        image.save(path, format="png")
    data = bytearray(path.read_bytes())
    data[60:600] = bytes(540)
    path.write_bytes(data)


DAMAGE = {
    "truncated": cut,
    "empty": lambda path: path.write_bytes(b""),
    "text or HTML": lambda path: path.write_text("<html>404</html>"),
    "missing": lambda path: path.unlink(),
    "GIF is not supported": lambda path: path.write_bytes(b"GIF89a" + bytes(500)),
    "damaged header": lambda path: path.write_bytes(path.read_bytes()[:30] + bytes(9000)),
}


@pytest.fixture
def zoo(tree, plain, texture):
    """Settings, and a function that damages files 1, 3, 5 ... of class ant; numbers -> faults."""
    root = tree(each=20, side=64)
    config = plain(root)

    def damage(split="train") -> dict[str, str]:
        faults = {}
        for k, (fault, hurt) in enumerate(DAMAGE.items()):
            path = root / split / "ant" / f"{2 * k + 1:03d}.jpg"
            hurt(path)
            faults[str(path)] = fault
        return faults

    return config, damage


def run(loader, epochs=2):
    out = []
    for first in range(0, epochs * loader.steps_per_epoch.first, loader.steps_per_epoch.first):
        for batch in loader.epoch(first):
            assert torch.isfinite(batch.images).all()
            out += list(zip(batch.index.tolist(), batch.labels.tolist(), [x.clone() for x in batch.images]))
    return out


def train_loader(config, index, lines, **more):
    batch = PerEpoch(more.pop("batch", 8))
    return TrainLoader(index, config, LoaderOptions(batch, 0, CPU, log=lines.append, **more))


def named(faults):
    return sorted(f"bad file: {path} ({fault}); a stand-in is used" for path, fault in faults.items())


def test_faults_after_the_scan_are_found_named_once_and_replaced(zoo):
    config, damage = zoo
    index = open_index(config, "train")
    before = run(train_loader(config, index, []))
    faults = damage()
    lines: list[str] = []
    after = run(train_loader(config, index, lines))
    assert sorted(lines) == named(faults)
    bad = {i for i in range(len(index)) if index.path(i) in faults}
    assert len(before) == len(after) == 80
    for (i, _, x), (j, label, y) in zip(before, after):
        assert label == index.labels[j]
        if i not in bad:
            assert i == j
            assert torch.equal(x, y)
        else:
            assert j == i + 1  # only odd numbers were damaged


def test_faults_at_the_scan_give_the_same_stream(zoo):
    config, damage = zoo
    early = open_index(config, "train")
    faults = damage()
    lines: list[str] = []
    late = run(train_loader(config, early, lines))
    assert sorted(lines) == named(faults)
    (early.root / "train/ant/007.jpg").write_bytes(b"")  # while missing, later samples would have other numbers
    index = open_index(config, "train")
    assert index.fingerprint == early.fingerprint
    assert sorted(p for p, _ in index.faults()) == sorted(faults)
    known: list[str] = []
    loader = train_loader(config, index, known)
    assert len(known) == len(faults)
    for (i, a, x), (j, b, y) in zip(run(loader), late):
        assert (i, a) == (j, b)
        assert torch.equal(x, y)
    assert len(known) == len(faults)


def test_a_file_that_lies_about_its_body(zoo):
    config, _ = zoo
    index = open_index(config, "train")
    rot(index.root / "train/bee/004.jpg")
    lines: list[str] = []
    seen = [i for i, _, _ in run(train_loader(config, index, lines), epochs=1)]
    assert lines == [f"bad file: {index.root}/train/bee/004.jpg (cannot be decoded); a stand-in is used"]
    assert 24 not in seen
    assert len(seen) == 40


def test_a_file_that_shrank(zoo, texture):
    config, _ = zoo
    index = open_index(config, "train")
    texture(8, 8).save(index.root / "train/bee/004.jpg")
    lines: list[str] = []
    run(train_loader(config, index, lines), epochs=1)
    assert lines == [f"bad file: {index.root}/train/bee/004.jpg (another size than at the scan); a stand-in is used"]


def test_a_stand_in_is_the_next_good_sample_of_its_class(zoo):
    config, _ = zoo
    index = open_index(config, "train")
    for name in ("ant/018", "ant/019", "ant/000", "bee/019"):
        (index.root / f"train/{name}.jpg").write_bytes(b"")
    loader = train_loader(config, index, [])
    assert loader._replaced(np.array([18, 19, 0, 39, 5])).tolist() == [18, 19, 0, 39, 5]  # not known yet
    loader = train_loader(config, open_index(config, "train"), [])
    assert loader._replaced(np.array([18, 19, 0, 39, 5])).tolist() == [1, 1, 1, 20, 5]


def test_a_class_with_no_good_file_takes_any(zoo):
    config, _ = zoo
    index = open_index(config, "train")
    for file in (index.root / "train/ant").iterdir():
        file.write_bytes(b"")
    lines: list[str] = []
    seen = run(train_loader(config, index, lines), epochs=1)
    assert {label for _, label, _ in seen} == {1}
    assert len(seen) == 40
    assert len(lines) == 20


def test_too_many_bad_files_are_refused_at_the_scan_and_later(zoo, plain):
    config, damage = zoo
    strict = config.model_copy(update={"max_bad_files": 2})
    index = open_index(config, "train")
    damage()
    with pytest.raises(UserError, match=r"3 training files are bad, more than max_bad_files = 2: .*/ant/0"):
        run(train_loader(strict, index, [], batch=1))
    (index.root / "train/ant/zzz.txt").write_text("")
    with pytest.raises(UserError) as caught:
        train_loader(strict, open_index(config, "train"), [])
    text = str(caught.value)
    assert text.startswith(
        f"5 training files are bad, more than max_bad_files = 2: {index.root}/train/ant/001.jpg (truncated), "
    )
    assert text.endswith("; repair or remove them, or raise max_bad_files")


def test_evaluation_refuses_bad_files_at_once_and_later(tree, plain):
    root = tree(val=8, side=64)
    config = plain(root)
    index = open_index(config, "val")
    loader = EvalLoader(index, config, batch=4, device=CPU, half=False)
    assert len(list(loader)) == 4
    loader.close()
    cut(root / "val/ant/002.jpg")
    (root / "val/bee/001.jpg").unlink()
    with pytest.raises(UserError) as caught:
        list(EvalLoader(index, config, batch=4, device=CPU, half=False))
    assert str(caught.value) == (
        f"validation data has bad files, 1 in all: {root}/val/ant/002.jpg (truncated); repair or remove them"
    )
    for k in range(8):
        (root / f"val/bee/{k:03d}.jpg").write_bytes(b"")
    with pytest.raises(UserError) as caught:
        EvalLoader(open_index(config, "val"), config, batch=4, device=CPU, half=False)
    names = [f"{root}/val/ant/002.jpg (truncated)"] + [f"{root}/val/bee/{k:03d}.jpg (empty)" for k in range(4)]
    assert str(caught.value) == (
        f"validation data has bad files, 9 in all: {', '.join(names)} and 4 more; repair or remove them"
    )


def test_an_error_that_is_no_file_s_fault_is_not_blamed_on_files(zoo):
    config, _ = zoo
    lines: list[str] = []
    loader = train_loader(config, open_index(config, "train"), lines)
    arrays = loader._runner._arrays
    loader._runner._arrays = lambda step: tuple(a.astype(np.int64) if a.dtype == np.int32 else a for a in arrays(step))
    with pytest.raises(RuntimeError, match="int32"):
        next(loader.epoch(0))
    assert lines == []


def test_bad_files_in_a_pair_order(zoo):
    config, damage = zoo
    index = open_index(config, "train")
    damage()
    loader = train_loader(
        config.model_copy(update={"train": RandomResizedCrop(size=24)}), index, [], sampler="class_pairs"
    )
    labels = torch.tensor([label for _, label, _ in run(loader)]).reshape(-1, 2)
    assert (labels[:, 0] == labels[:, 1]).all()


def test_stand_ins_are_marked(zoo):
    """Whether their fault was known before or met on the way, and nothing else."""
    config, damage = zoo
    index = open_index(config, "train")
    loader = train_loader(config, index, [])
    assert all(batch.stand_in is None for batch in loader.epoch(0))
    damage()
    count = 0
    for start in (0, loader.steps_per_epoch.first):
        for step, batch in enumerate(loader.epoch(start), start):
            planned = torch.from_numpy(loader._plan.indices(step, 0))
            changed = planned != batch.index
            assert torch.equal(changed, batch.stand_in) if changed.any() else batch.stand_in is None
            count += int(changed.sum())
    assert count == 2 * len(DAMAGE)


# ---- every kind at once, on one process and on two


def odd_ones(root, texture):
    """Good files of odd kinds under the numbers 20 (class bee) to 25; number -> its image as PIL sees it."""
    folder = root / "train/bee"
    exif = Image.Exif()
    exif[0x0112] = 6
    levels = np.random.default_rng(0).integers(0, 256, (40, 52)) * 257
    Image.fromarray(levels.astype(np.uint16)).save(folder / "000.jpg", format="png")
    texture(50, 40).convert("CMYK").save(folder / "001.jpg")
    texture(60, 30).save(folder / "002.jpg", exif=exif)
    texture(1, 1).save(folder / "003.jpg")
    texture(40, 40).convert("L").save(folder / "004.jpg", progressive=True)
    texture(40, 40).convert("RGBA").save(folder / "005.jpg", format="png")
    return list(range(20, 26))


def test_odd_files_are_good_and_upright_as_pil_has_them(zoo, texture):
    config, _ = zoo
    root = Path(config.root)
    numbers = odd_ones(root, texture)
    index = open_index(config, "train")
    assert not len(index.bad())
    assert [tuple(s) for s in index.size[numbers]] == [(52, 40), (50, 40), (60, 30), (1, 1), (40, 40), (40, 40)]
    whole = RandomResizedCrop(size=32, scale=(1.0, 1.0), ratio=(0.01, 100.0), flip=0.0)
    lines: list[str] = []
    loader = train_loader(config.model_copy(update={"train": whole}), index, lines, batch=40)
    (batch,) = loader.epoch(0)
    assert lines == []
    shown = dict(zip(batch.index.tolist(), batch.images))
    turned = shown[22]
    with Image.open(index.path(22)) as file:
        ours = torch.from_numpy(np.array(file.convert("RGB").resize((32, 32), Image.Resampling.BILINEAR))) / 255
    upright, sideways = ((turned - x.permute(2, 0, 1)).abs().mean() for x in (ours, ours.transpose(0, 1)))
    assert upright < 0.01 < sideways
    assert (shown[23] - shown[23][:, :1, :1]).abs().max() == 0  # one pixel fills the image


ZOO = """
import json, os, sys, torch
from lsdali import dist
from lsdali.data.sets.catalog import CenterCrop, Folder, RandomResizedCrop
from lsdali.data.index.index import open_index
from lsdali.clock import PerEpoch
from lsdali.data.pipeline.loader import TrainLoader
from lsdali.data.pipeline.options import LoaderOptions
from lsdali.errors import SharedError
from lsdali.events import open_events
from tests.data.test_bad_files import DAMAGE
from pathlib import Path

root, cap = sys.argv[1], int(sys.argv[2])
config = Folder(
    root=root, train=RandomResizedCrop(size=32), eval=CenterCrop(resize=36, size=32), threads=1, max_bad_files=cap
)
with dist.session() as device:
    index = open_index(config, "train")
    assert not len(index.bad())
    events = open_events(Path(sys.argv[3]))
    loader = TrainLoader(index, config, LoaderOptions(PerEpoch(8), 3, device, log=events.log))
    dist.barrier()
    if dist.is_main():
        for k, hurt in enumerate(DAMAGE.values()):
            hurt(Path(root) / f"train/ant/{3 * k + 1:03d}.jpg")
    dist.barrier()
    bad = {3 * k + 1 for k in range(len(DAMAGE))}
    epochs, met = [], []
    recover = loader._recover
    loader._recover = lambda error: (recover(error), met.extend(loader._found))
    try:
        for first in (0, 5, 10):
            seen = [i for batch in loader.epoch(first) for i in batch.index.tolist()]
            epochs.append(sorted(i for part in dist.gather_objects(seen) for i in part))
        loader.close()
    except SharedError as error:
        os.write(1, f"STOPPED {error}\\n".encode())  # one write: two processes share the pipe
        sys.exit(3)
    events.close()
    met = dist.gather_objects(sorted(set(met)))
    if dist.is_main():
        assert all(met) and set().union(*met) == bad, met  # each rank met some of them
        written = map(json.loads, (Path(sys.argv[3]) / "events.jsonl").open())
        named = [line["text"] for line in written if line["event"] == "message"]
        expected = sorted([i for i in range(40) if i not in bad] + [i + 1 for i in bad])
        assert epochs == [expected] * 3, epochs
        assert len(named) == len(set(named)) == len(bad), named
        for k, fault in enumerate(DAMAGE):
            assert f"train/ant/{3 * k + 1:03d}.jpg ({fault}); a stand-in is used" in "".join(named)
        print("PASSED")
"""


@pytest.mark.ranks
@pytest.mark.parametrize("ranks", [1, 2])
def test_real_processes_name_each_once_and_deliver_all_others(zoo, texture, tmp_path, ranks):
    config, _ = zoo
    odd_ones(Path(config.root), texture)
    done = real(tmp_path, ranks, config.root, "6")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("PASSED") == 1


@pytest.mark.ranks
def test_ranks_stop_together_where_only_all_of_them_found_too_many(zoo, tmp_path):
    config, _ = zoo
    done = real(tmp_path, 2, config.root, "5")
    assert done.returncode != 0
    stops = [line for line in done.stdout.splitlines() if line.startswith("STOPPED")]
    assert len(stops) == 2, done.stdout + done.stderr
    assert len(set(stops)) == 1
    assert stops[0].startswith("STOPPED 6 training files are bad, more than max_bad_files = 5: ")
    assert "/ant/0" in stops[0]


def real(folder, ranks, *arguments):
    return run_forked(0 if ranks == 1 else ranks, run_script, ZOO, *arguments, str(folder / "run"))


def become_fifo(path):
    path.unlink()
    os.mkfifo(path)


def become_folder(path):
    path.unlink()
    path.mkdir()


def become_socket(path):
    path.unlink()
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(os.path.relpath(path))  # its address has at most 107 bytes


def become_zeros_without_end(path):
    path.unlink()
    path.symlink_to("/dev/zero")


STRANGE = [become_fifo, become_folder, become_socket, become_zeros_without_end]


@pytest.mark.parametrize("change", STRANGE)
def test_what_takes_the_place_of_a_file_in_mid_run_stops_nothing(zoo, monkeypatch, change):
    monkeypatch.setattr(fifos, "LATE", 0.2)
    monkeypatch.setattr(fifos, "FIFO_LOOK", 0.1)
    config, _ = zoo
    index = open_index(config, "train")
    before = run(train_loader(config, index, []), epochs=1)
    path = index.root / "train/bee/004.jpg"
    change(path)
    lines: list[str] = []
    after = run(train_loader(config, index, lines), epochs=2)
    assert lines == [f"bad file: {path} (no regular file); a stand-in is used"]
    for (i, _, x), (j, _, y) in zip(before, after[:40], strict=True):
        assert j == (25 if i == 24 else i)
        assert i == 24 or torch.equal(x, y)


@pytest.mark.parametrize("change", STRANGE)
def test_evaluation_names_what_takes_the_place_of_a_file(tree, plain, monkeypatch, change):
    monkeypatch.setattr(fifos, "LATE", 0.2)
    monkeypatch.setattr(fifos, "FIFO_LOOK", 0.1)
    root = tree(val=8, side=64)
    config = plain(root)
    loader = EvalLoader(open_index(config, "val"), config, batch=4, device=CPU, half=False)
    change(root / "val/bee/003.jpg")
    with pytest.raises(UserError) as caught:
        list(loader)
    assert str(caught.value) == (
        f"validation data has bad files, 1 in all: {root}/val/bee/003.jpg (no regular file); repair or remove them"
    )


@pytest.mark.parametrize("change", [become_fifo, become_folder])
def test_a_shard_that_becomes_something_else_is_no_hang(tree, tmp_path, change):
    out = tmp_path / "shards"
    assert pack([str(tree(side=64)), str(out)]) == 0
    config = Shards(root=str(out), train=RandomResizedCrop(size=32), eval=CenterCrop(resize=36, size=32), threads=2)
    loader = train_loader(config, open_index(config, "train"), [])
    change(out / "train/000000.tar")
    with pytest.raises(UserError, match=r"training files are bad.*000000\.tar:.*\(no regular file\)"):
        list(loader.epoch(0))
