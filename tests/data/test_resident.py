"""Images held on the device: the bits that DALI gives, in the order that DALI gives them."""

import numpy as np
import pytest
import torch
from PIL import Image

from lsdali.clock import PerEpoch
from lsdali.data.io.cache import cache_dir
from lsdali.data.pipeline.loader import EvalLoader, TrainLoader
from lsdali.data.pipeline.loaders import eval_loader, open_dataset, train_loader
from lsdali.data.pipeline.options import LoaderOptions
from lsdali.data.pipeline.resident import ResidentEval, ResidentTrain
from lsdali.data.sets.catalog import CenterCrop, PadCrop, RandomResizedCrop
from lsdali.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture
def same_size(tmp_path, texture):
    """Two classes of 20x16 images: JPEG (4:2:0), gray JPEG, PNG; 15 + 5 each."""
    for split, count in (("train", 15), ("val", 5)):
        for c, name in enumerate(("ant", "bee")):
            folder = tmp_path / "small" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                image = texture(20, 16, 100 * c + i + (50 if split == "val" else 0))
                if i % 3 == 1:
                    image = image.convert("L")
                image.save(folder / f"{i:02d}.{'png' if i % 3 == 2 else 'jpg'}")
    return tmp_path / "small"


@pytest.fixture
def settings(plain):
    def make(root, **more):
        crops = {"train": PadCrop(size=16, pad=3), "eval": CenterCrop(resize=16, size=12)}
        stats = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.201)}
        return plain(root, **(crops | stats | more))

    return make


SIX = PerEpoch(6)


def train(config, said=None, batch=SIX):
    index = open_dataset(config, "train", (said if said is not None else []).append)
    return train_loader(index, config, LoaderOptions(batch, 3, CPU))


def evaluation(config, batch=4):
    index = open_dataset(config, "val", lambda line: None)
    return eval_loader(index, config, batch=batch, device=CPU, half=False)


def same(ours, theirs) -> None:
    assert torch.equal(ours.images, theirs.images)
    assert torch.equal(ours.labels, theirs.labels)
    assert torch.equal(ours.index, theirs.index)
    assert torch.equal(ours.valid, theirs.valid)
    assert ours.images.stride() == theirs.images.stride()
    assert ours.images.is_contiguous(memory_format=torch.channels_last)


def test_both_roads_give_the_same_bits(same_size, settings):
    held, read = train(settings(same_size)), train(settings(same_size, resident="never"))
    assert isinstance(held, ResidentTrain)
    assert isinstance(read, TrainLoader)
    assert held.steps_per_epoch == read.steps_per_epoch == PerEpoch(5)
    for first in (0, 5, 10, 13, 2):
        pairs = list(zip(held.epoch(first), read.epoch(first), strict=True))
        assert len(pairs) == 5 - first % 5
        for ours, theirs in pairs:
            same(ours, theirs)
    held, read = (train(settings(same_size, resident=how), batch=PerEpoch(6, ((1, 12),))) for how in ("auto", "never"))
    assert held.steps_per_epoch == read.steps_per_epoch == PerEpoch(5, ((1, 2),))
    for first in (3, 5, 8):
        for ours, theirs in zip(held.epoch(first), read.epoch(first), strict=True):
            same(ours, theirs)
    assert len({held.epoch(0).__next__().images.sum().item(), held.epoch(5).__next__().images.sum().item()}) == 2


@pytest.mark.parametrize("size", [12, 16])
def test_evaluation_has_the_same_bits(same_size, settings, size):
    crop = CenterCrop(resize=16, size=size)
    held = evaluation(settings(same_size, eval=crop))
    read = evaluation(settings(same_size, eval=crop, resident="never"))
    assert isinstance(held, ResidentEval)
    assert isinstance(read, EvalLoader)
    for _ in range(2):
        batches = list(zip(held, read, strict=True))
        assert len(batches) == len(held) == 3
        for ours, theirs in batches:
            same(ours, theirs)


def test_limits_splits_and_ranks_keep_samples_and_pixels(same_size, settings, as_rank):
    more = {
        "max_samples": 20,
        "classes": ("bee", "ant"),
        "holdout": {"fraction": 0.2},
        "noise": {"name": "pair", "rate": 0.5},
    }
    configs = [
        settings(same_size).model_validate(settings(same_size).model_dump() | more | {"resident": r})
        for r in ("always", "never")
    ]
    for rank in range(2):
        as_rank(rank, 2)
        held, read = (train(config) for config in configs)
        assert held.index.fingerprint == read.index.fingerprint
        assert len(held.index) == 20
        for ours, theirs in zip(held.epoch(1), read.epoch(1), strict=True):
            assert len(ours) == 3
            same(ours, theirs)
        for ours, theirs in zip(*(evaluation(config, batch=2) for config in configs), strict=True):
            same(ours, theirs)


def decoded(config, split):
    """The index, and how many images each array in the cache has."""
    index = open_dataset(config, split, lambda line: None)
    arrays = (cache_dir() / "decoded").glob("*/pixels.npy")
    return index, sorted(len(np.load(path, mmap_mode="r")) for path in arrays)


def test_only_what_is_needed_is_decoded_and_once(same_size, settings):
    resized = RandomResizedCrop(size=16)
    part = settings(same_size, holdout={"fraction": 0.2}, train=resized)
    pixels = {}
    assert decoded(part, "train")[1] == []
    index, arrays = decoded(part, "val")
    assert arrays == [len(index)] == [6]
    for i in range(6):
        pixels[bytes(index.paths[i])] = index.images(np.array([i]))
    noise = {"name": "pair", "rate": 0.5}
    few = settings(same_size, max_samples=10, noise=noise)
    assert decoded(few, "train")[1] == [6, 10]
    assert decoded(settings(same_size, max_samples=10), "train")[1] == [6, 10]
    assert decoded(settings(same_size), "train")[1] == [6, 10, 30]
    again, arrays = decoded(settings(same_size, holdout={"fraction": 0.3, "seed": 1}), "val")
    assert arrays == [6, 10, 30], "the whole split is there"
    whole = {bytes(path): again.images(np.array([i])) for i, path in enumerate(again.paths)}
    for path in pixels.keys() & whole.keys():
        assert np.array_equal(pixels[path], whole[path])
    assert pixels.keys() & whole.keys()


def test_what_resizes_stays_with_dali_and_says_so(same_size, settings, tmp_path, texture):
    said: list[str] = []
    config = settings(same_size, train=RandomResizedCrop(size=16))
    assert isinstance(train(config, said), TrainLoader)
    assert said == ["train images are read by DALI: data.train.crop random_resized resizes images; pad does not"]
    assert isinstance(evaluation(settings(same_size, eval=CenterCrop(resize=20, size=16))), EvalLoader)
    with pytest.raises(UserError) as caught:
        train(settings(same_size, train=RandomResizedCrop(size=16), resident="always"))
    assert str(caught.value) == (
        "data.resident: train images cannot be held on the device: data.train.crop random_resized resizes images; "
        "pad does not; use auto or never"
    )
    assert isinstance(train(settings(same_size, resident_bytes=30 * 20 * 16 * 3)), ResidentTrain)
    assert isinstance(train(settings(same_size, resident_bytes=30 * 20 * 16 * 3 - 1)), TrainLoader)
    texture(21, 16).save(same_size / "train/ant/90.png")
    assert isinstance(train(settings(same_size)), TrainLoader)


def test_images_that_cannot_be_decoded_alike_stay_with_dali(same_size, settings, texture):
    path = same_size / "train/ant/90.png"
    texture(20, 16).convert("RGBA").save(path)
    said: list[str] = []
    assert isinstance(train(settings(same_size), said), TrainLoader)
    assert said == [f"train images are read by DALI: {path} is neither gray nor RGB but RGBA"]


def test_a_file_changed_in_place_is_decoded_again(same_size, settings):
    before = train(settings(same_size)).index.pixels
    path = same_size / "train/ant/02.png"
    black = Image.fromarray(np.zeros((16, 20, 3), np.uint8))
    black.save(path)
    after = train(settings(same_size)).index.pixels
    assert before[2].any()
    assert not after[2].any()
    assert (np.delete(before, 2, 0) == np.delete(after, 2, 0)).all()
