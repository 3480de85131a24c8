"""Loaders: the same stream on any number of ranks, from any start; evaluation that reads everything once."""

import pytest
import torch

from lsdali.clock import PerEpoch
from lsdali.data.index.index import open_index
from lsdali.data.pipeline.loader import EvalLoader, TrainLoader
from lsdali.data.pipeline.options import LoaderOptions
from lsdali.data.sets.catalog import PadCrop, RandomResizedCrop
from lsdali.errors import UserError
from tests.forks import run_forked, run_script

CPU = torch.device("cpu")


def loader(index, config, batch=12, **more):
    return TrainLoader(index, config, LoaderOptions(PerEpoch(batch), 3, CPU, **more))


def samples(batches) -> dict[int, torch.Tensor]:
    """Sample number -> its pixels; each sample once."""
    out: dict[int, torch.Tensor] = {}
    for batch in batches:
        for i, image in zip(batch.index.tolist(), batch.images):
            assert i not in out
            out[i] = image.clone()
    return out


def equal(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[i], b[i]) for i in a)


@pytest.mark.parametrize("crop", [RandomResizedCrop(size=32), PadCrop(size=40)])
@pytest.mark.parametrize("sampler", ["shuffled", "class_pairs"])
def test_any_number_of_ranks_gives_the_same_bits(tree, plain, as_rank, crop, sampler):
    config = plain(tree(each=20), train=crop)
    index = open_index(config, "train")
    for start in (0, 4):
        whole = samples(loader(index, config, sampler=sampler).epoch(start))
        assert len(whole) == (36 if start == 0 else 24)
        for world in (2, 3):
            union: dict[int, torch.Tensor] = {}
            for rank in range(world):
                as_rank(rank, world)
                part = samples(loader(index, config, sampler=sampler).epoch(start))
                assert not union.keys() & part.keys()
                union |= part
            as_rank(0, 1)
            assert equal(union, whole)


def test_stop_and_seek_give_the_same_bits(tree, plain):
    config = plain(tree(each=20))
    index = open_index(config, "train")
    straight = loader(index, config)
    steps = straight.steps_per_epoch.first
    assert steps == 3
    stream = [b for first in range(0, 4 * steps, steps) for b in straight.epoch(first)]
    assert len(stream) == 4 * steps
    jumping = loader(index, config)
    for step in (7, 2, 9, 9, 0):
        there = list(jumping.epoch(step))
        assert len(there) == steps - step % steps
        for ours, theirs in zip(there, stream[step:]):
            assert ours.index.tolist() == theirs.index.tolist()
            assert torch.equal(ours.images, theirs.images)
            assert torch.equal(ours.labels, theirs.labels)


def test_an_epoch_left_in_its_middle_goes_on_there(tree, plain):
    config = plain(tree(each=20))
    ours = loader(open_index(config, "train"), config)
    first = next(ours.epoch(0))
    rest = list(ours.epoch(1))
    assert equal(samples([first, *rest]), samples(loader(ours.index, config).epoch(0)))


def test_following_epochs_build_no_new_pipeline(tree, plain, monkeypatch):
    config = plain(tree(each=20))
    ours = loader(open_index(config, "train"), config)
    builds = []
    graph = ours._runner._graph
    monkeypatch.setattr(ours._runner, "_graph", lambda *a: (builds.append(1), graph(*a))[1])
    for first in range(0, 15, 3):
        assert len(list(ours.epoch(first))) == 3
    assert len(builds) == 1


def test_change_of_world_and_batch_in_mid_epoch(tree, plain, as_rank):
    config = plain(tree(each=30))
    index = open_index(config, "train")
    whole = samples(loader(index, config, batch=6).epoch(0))
    assert len(whole) == 60
    start = loader(index, config, batch=6).epoch(0)
    first = samples([next(start) for _ in range(4)])  # 24 samples; go on with 2 ranks and batches of 12
    for rank in range(2):
        as_rank(rank, 2)
        part = samples(loader(index, config, batch=12).epoch(2))
        assert not first.keys() & part.keys()
        first |= part
    assert equal(first, whole)


def test_seeds_and_epochs_differ(tree, plain):
    config = plain(tree(each=20))
    index = open_index(config, "train")
    first, second = (samples(loader(index, config, batch=40).epoch(e)) for e in range(2))
    other = TrainLoader(index, config, LoaderOptions(PerEpoch(40), 4, CPU))
    for there in (second, samples(other.epoch(0))):
        assert first.keys() == there.keys()
        assert not any(torch.equal(first[i], there[i]) for i in first)


@pytest.mark.parametrize(("world", "batch"), [(1, 3), (1, 100), (2, 3), (3, 2), (16, 4)])
def test_evaluation_reads_everything_once_and_again(tree, plain, as_rank, world, batch):
    config = plain(tree(val=7))
    index = open_index(config, "val")
    whole = samples(EvalLoader(index, config, batch=14, device=CPU, half=False))
    seen: dict[int, torch.Tensor] = {}
    for rank in range(world):
        as_rank(rank, world)
        ours = EvalLoader(index, config, batch=batch, device=CPU, half=False)
        for _ in range(2):
            batches = list(ours)
            assert len(batches) == len(ours)
            for b in batches:
                assert len(b.images) == len(b.labels) == len(b) <= batch
                for i, label, image, valid in zip(b.index.tolist(), b.labels, b.images, b.valid):
                    assert torch.equal(image, whole[i])
                    assert label == index.labels[i]
                    seen[i] = image if valid else seen[i]
        counted = sum(int(b.valid.sum()) for b in batches)
        assert counted == 14 * (rank + 1) // world - 14 * rank // world
    assert sorted(seen) == list(range(14))


def test_an_evaluation_left_in_its_middle_begins_anew(tree, plain):
    config = plain(tree(val=7))
    ours = EvalLoader(open_index(config, "val"), config, batch=4, device=CPU, half=False)
    for batch in ours:
        assert batch.index.tolist() == [0, 1, 2, 3]
        break
    assert torch.cat([b.index[b.valid] for b in ours]).tolist() == list(range(14))


def test_refusals_of_the_train_loader(tree, plain, as_rank):
    root = tree(each=6, side=30)
    index = open_index(plain(root), "train")
    with pytest.raises(UserError) as caught:
        loader(index, plain(root, train=PadCrop(size=40, pad=4)), batch=4)
    assert str(caught.value) == (
        f"{index.path(0)} has 30x30 pixels, too few for crop 40 with pad 4; "
        "use random_resized or images of at least 32 pixels a side"
    )
    as_rank(0, 8)
    with pytest.raises(UserError, match="batch 12 cannot be shared among 8 ranks; use 8 or 16"):
        loader(index, plain(root))


SCRIPT = """
import hashlib, sys, torch
from lsdali import dist
from lsdali.data.index import stored
from lsdali.data.sets.catalog import CenterCrop, Folder, RandomResizedCrop
from lsdali.data.index.index import open_index
from lsdali.clock import PerEpoch
from lsdali.data.pipeline.loader import EvalLoader, TrainLoader
from lsdali.data.pipeline.options import LoaderOptions
from lsdali.errors import UserError

scans = []
real = stored._scan
stored._scan = lambda *a: (scans.append(1), real(*a))
root = sys.argv[1]
config = Folder(root=root, train=RandomResizedCrop(size=32), eval=CenterCrop(resize=36, size=32), threads=1)
with dist.session() as device:
    index, val = open_index(config, "train"), open_index(config, "val")
    loader = TrainLoader(index, config, LoaderOptions(PerEpoch(12), 3, device))
    mine = {}
    for batch in loader.epoch(0):
        for i, x in zip(batch.index.tolist(), batch.images):
            mine[i] = hashlib.md5(x.contiguous().numpy().tobytes()).hexdigest()
    evaluation = EvalLoader(val, config, batch=5, device=device, half=False)
    seen = [i for b in evaluation for i in b.index[b.valid].tolist()]
    everyone, looked = dist.gather_objects(mine), dist.gather_objects(seen)
    assert sum(dist.gather_objects(len(scans))) <= 2, scans
    union = {i: h for part in everyone for i, h in part.items()}
    assert len(union) == sum(map(len, everyone)) == 36
    assert sorted(i for part in looked for i in part) == list(range(len(val)))
    digest = hashlib.md5(repr(sorted(union.items())).encode()).hexdigest()
    if dist.is_main():
        print("DIGEST", digest)

    def outcome(config):
        try:
            return open_index(config, "train").fingerprint
        except UserError as error:
            return str(error)

    answers = dist.gather_objects(outcome(config.model_copy(update={"root": root + "/absent"})))
    assert len(set(answers)) == 1 and "is no folder" in answers[0], answers
    answers = dist.gather_objects(outcome(config.model_copy(update={"max_samples": 5 + dist.rank()})))
    if dist.world() > 1:
        said = "rank 1 sees other train files or labels in " + root
        assert all(a.startswith(said) for a in answers), answers
"""


@pytest.mark.ranks
def test_two_real_processes_give_what_one_gives(tree):
    root = tree(each=20)
    digests = []
    for ranks in (0, 2):
        done = run_forked(ranks, run_script, SCRIPT, str(root))
        assert done.returncode == 0, done.stderr
        lines = {line for line in done.stdout.splitlines() if line.startswith("DIGEST")}
        assert len(lines) == 1, done.stdout
        digests.append(lines.pop())
    assert digests[0] == digests[1]
