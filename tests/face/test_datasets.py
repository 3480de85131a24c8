"""Data sets of torch as `data=`: the run of the same images in folders, memories, resume without the cache, ranks."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import lsdali
from lsdali.errors import UserError
from lsdali.models.digest import weights_digest
from lsdali.testing.small import equal, make_images, tiny
from tests.ranks import OnRanks

WINDOW = {"train": {"crop": "random_resized", "size": 16}, "eval": {"resize": 16, "size": 16}, "threads": 1}


class Pictures(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """The files of a folder, as PIL images or arrays."""

    def __init__(self, root: Path, split: str, form: Any = lambda image: image) -> None:
        self.files = sorted((root / split).glob("*/*.png"))
        self.classes = sorted({file.parent.name for file in self.files})
        self.form = form

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        return self.form(Image.open(self.files[i]).convert("RGB")), self.classes.index(self.files[i].parent.name)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSDALI_CACHE", str(tmp_path / "cache"))


def pair(tmp_path: Path, form: Any = lambda image: image) -> tuple[Pictures, Pictures]:
    root = make_images(tmp_path / "images")
    return Pictures(root, "train", form), Pictures(root, "val", form)


def own(tmp_path: Path, form: Any = lambda image: image) -> dict[str, Any]:
    return {"datasets": pair(tmp_path, form), **WINDOW}


@pytest.mark.parametrize("form", [lambda image: image, np.asarray], ids=["pil", "array"])
def test_they_train_as_their_files_do(tmp_path: Path, form: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """A method with a memory of samples, on augmented images: the weights are those of the folder, to the bit."""
    augment = {"train": {**WINDOW["train"], "augment": [{"name": "color_jitter", "brightness": 0.4}]}}  # type: ignore[dict-item]
    recipe = tiny({"name": "pskd"}, make_images(tmp_path / "images"), tmp_path / "files")
    files = lsdali.train(recipe, **{"data.train.augment": augment["train"]["augment"]})
    capsys.readouterr()
    mine = lsdali.train(recipe, data={**own(tmp_path, form), **augment}, run_dir=str(tmp_path / "mine"))
    assert capsys.readouterr().out.count("once for this content") == 1
    assert weights_digest(mine.network) == weights_digest(files.network)
    assert mine.trained.names == tuple(f"class{k}" for k in range(5))
    lsdali.train(recipe, data={**own(tmp_path), **augment}, run_dir=str(tmp_path / "again"), epochs=1)
    assert "once for this content" not in capsys.readouterr().out


def test_a_run_goes_on_where_the_cache_is_gone(tmp_path: Path) -> None:
    recipe = tiny({"name": "pskd"}, tmp_path, tmp_path / "whole", save={"every_steps": 3, "keep": 9})
    recipe["data"] = own(tmp_path)
    whole = lsdali.train(recipe)
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    for file in (tmp_path / "again/checkpoints").iterdir():
        if file.name not in ("best.pt", "step-0000000003.pt", "step-0000000006.pt"):
            file.unlink()
    (tmp_path / "again/summary.json").unlink()
    shutil.rmtree(tmp_path / "cache")
    again = lsdali.train({**recipe, "data": own(tmp_path)}, run_dir=str(tmp_path / "again"))
    last = "checkpoints/step-0000000010.pt"
    one, other = (torch.load(result.folder / last, weights_only=True)["parts"] for result in (whole, again))
    assert equal(one["student"], other["student"])
    assert equal(one["method"], other["method"])


def test_the_pair_alone_and_the_loader(tmp_path: Path) -> None:
    train, val = pair(tmp_path)
    recipe = tiny({"name": "ce"}, tmp_path, tmp_path / "pair", epochs=1)
    sizes = {"data.train.size": 16, "data.eval.resize": 16, "data.eval.size": 16}
    result = lsdali.train(recipe, data=(train, val), **sizes)
    assert result.recipe.data.name == "shards"
    images = lsdali.loader({"datasets": (train, val), **WINDOW}, batch=8)
    (seen,) = {images.steps_per_epoch}
    assert (seen, images.classes) == (5, tuple(train.classes))
    labels = torch.cat([batch.labels[batch.valid] for batch in images.val()])
    assert labels.bincount().tolist() == [5] * 5
    images.close()


def share(data: dict[str, Any], out: str) -> None:
    """Check that the ranks of a group pack once and agree."""
    images = lsdali.loader(data, 8)
    rows = [batch.index.tolist() for _, batch in images.train(epochs=1)]
    Path(f"{out}-{torch.distributed.get_rank()}").write_text(repr(rows))
    images.close()


@pytest.mark.ranks
def test_ranks_pack_once(tmp_path: Path, on_ranks: OnRanks) -> None:
    on_ranks(2, share, {"datasets": tuple(pair(tmp_path, np.asarray)), **WINDOW}, str(tmp_path / "rows"))
    whole = lsdali.loader(own(tmp_path), 8)
    expected = [batch.index.tolist() for _, batch in whole.train(epochs=1)]
    whole.close()
    parts = [eval((tmp_path / f"rows-{rank}").read_text()) for rank in (0, 1)]
    assert [a + b for a, b in zip(*parts, strict=True)] == expected
    assert len(list((tmp_path / "cache/datasets").iterdir())) == 1


def test_what_is_refused(tmp_path: Path) -> None:
    class Random(Pictures):
        def __getitem__(self, i: int) -> tuple[Any, int]:
            image, label = super().__getitem__(i)
            return (image if i < 3 else np.random.default_rng().integers(0, 255, (8, 8), dtype=np.uint8)), label

    train, val = pair(tmp_path)
    recipe = tiny({"name": "ce"}, tmp_path, tmp_path / "run")
    with pytest.raises(UserError, match="train sample 3 is another image when it is read again: leave random"):
        lsdali.train(recipe, data=(Random(tmp_path / "images", "train"), val))
    with pytest.raises(UserError, match=r"expected two map-style data sets of torch \(train, val\).* got Pictures"):
        lsdali.train(recipe, data=(train,))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="or two data sets of torch"):
        lsdali.train(recipe, data=train)  # type: ignore[arg-type]
