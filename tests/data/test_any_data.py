"""Data sets of torch and files of Parquet: the batches of the same images in folders, training, and every sentence."""

import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from lsdali.build import build
from lsdali.clock import PerEpoch
from lsdali.data.index.index import open_index
from lsdali.data.pipeline.loader import TrainLoader
from lsdali.data.pipeline.options import LoaderOptions
from lsdali.data.sets.catalog import CenterCrop, Folder, RandomResizedCrop
from lsdali.data.sets.map_style import pack_datasets
from lsdali.data.sets.shards import Shards
from lsdali.errors import UserError
from lsdali.events import Events
from lsdali.pack import main as pack
from lsdali.recipe import Recipe
from lsdali.state.checkpoint import Checkpoints
from tests.harness import ROOT, equal, make_images, tiny

CPU = torch.device("cpu")
WINDOW = {"train": RandomResizedCrop(size=16), "eval": CenterCrop(resize=16, size=16), "threads": 1}


class Pictures:
    """A map-style data set of the files of a folder, each made into something by `form`."""

    def __init__(self, root, split, form=lambda image: image):
        self.files = sorted((root / split).glob("*/*.png"))
        self.classes = sorted({file.parent.name for file in self.files})
        self.form = form

    def __len__(self):
        return len(self.files)

    def __getitem__(self, i):
        file = self.files[i]
        return self.form(Image.open(file).convert("RGB")), self.classes.index(file.parent.name)


FORMS = {
    "pil": lambda image: image,
    "array": np.asarray,
    "tensor": lambda image: torch.from_numpy(np.asarray(image).copy()).movedim(-1, 0),
}


@pytest.fixture
def images(tmp_path):
    return make_images(tmp_path / "images", train=6, val=2)


def batches(config):
    options = LoaderOptions(PerEpoch(8), 3, CPU, half=False, sampler="shuffled", log=print)
    loader = TrainLoader(open_index(config, "train"), config, options)
    out = [(batch.images.clone(), batch.labels.clone(), batch.index.clone()) for batch in loader.epoch(0)]
    loader.close()
    return out


def same_batches(root, out):
    """Whether shards give the batches of the folder that they come from."""
    folder = batches(Folder(root=str(root), resident="never", **WINDOW))
    shards = batches(Shards(root=str(out), resident="never", **WINDOW))
    assert len(folder) == len(shards) == 3
    for one, other in zip(folder, shards, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    return True


@pytest.mark.parametrize("form", FORMS)
def test_a_data_set_of_torch_gives_the_batches_of_its_files(images, tmp_path, form):
    out = tmp_path / "out"
    tree = pack_datasets(*(Pictures(images, split, FORMS[form]) for split in ("train", "val")), out)
    assert tree == {"name": "shards", "root": str(out)}
    assert (out / "classes.txt").read_text().split() == [f"class{k}" for k in range(5)]
    assert same_batches(images, out)


def test_gray_and_palette_images_and_numbered_classes(tmp_path):
    gray = np.arange(256, dtype=np.uint8).reshape(16, 16)
    palette = Image.fromarray(gray).convert("P")
    train = [(gray, 0), (gray[..., None], 1), (Image.fromarray(gray), torch.tensor(2)), (palette, np.int64(2))]
    pack_datasets(train, train, tmp_path / "out")
    assert (tmp_path / "out/classes.txt").read_text().split() == ["0", "1", "2"]
    assert open_index(Shards(root=str(tmp_path / "out"), **WINDOW), "train").labels.tolist() == [0, 1, 2, 2]


def write_parquet(images, folder, *, names=True):
    """The images as Hugging Face writes them, in two files of train and one of validation."""
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    folder.mkdir()
    classes = [f"class{k}" for k in range(5)]
    features = {"info": {"features": {"label": {"names": classes, "_type": "ClassLabel"}}}}
    for split, name, count in (("train", "train", 2), ("val", "validation", 1)):
        data = Pictures(images, split)
        parts = np.array_split(np.arange(len(data)), count)
        for number, part in enumerate(parts):
            cells = [{"bytes": data.files[i].read_bytes(), "path": data.files[i].name} for i in part]
            table = arrow.table({"image": cells, "label": [data[int(i)][1] for i in part]})
            meta = {b"huggingface": json.dumps(features).encode()} if names else None
            file = folder / f"{name}-{number:05d}-of-{count:05d}.parquet"
            parquet.write_table(table.replace_schema_metadata(meta), file)
    return folder


@pytest.mark.parametrize("names", [True, False])
def test_parquet_gives_the_batches_of_its_files(images, tmp_path, names):
    root, out = write_parquet(images, tmp_path / "data", names=names), tmp_path / "out"
    assert pack([str(root), str(out), "--shard-bytes", "4000"]) == 0
    assert len(list(out.glob("train/*.tar"))) > 2
    assert (out / "classes.txt").read_text().split() == [f"class{k}" if names else str(k) for k in range(5)]
    assert same_batches(images, out)


def trainer_for(data, folder):
    tree = tiny({"name": "pskd"}, folder, folder, epochs=2, save={"every_steps": 1, "keep": 9})
    tree["data"] = {**data, **{key: tree["data"][key] for key in ("train", "eval", "threads")}}
    checkpoints = Checkpoints(folder / "checkpoints", 9, print)
    return build(Recipe.model_validate(tree), folder, CPU, checkpoints, Events([]))


def test_a_method_with_a_memory_of_samples_goes_on_exactly(images, tmp_path):
    data = pack_datasets(Pictures(images, "train"), Pictures(images, "val"), tmp_path / "out")
    whole = trainer_for(data, tmp_path / "whole")
    whole.run()
    content = torch.load(tmp_path / "whole/checkpoints/step-0000000004.pt", weights_only=True)
    again = trainer_for(data, tmp_path / "again")
    again.restore(content["parts"])
    assert (again.clock.step, again.clock.steps) == (4, 6)
    again.run()
    for part in ("student", "optimizer", "method", "rng"):
        assert equal(whole.parts[part].state_dict(), again.parts[part].state_dict()), part


def test_the_lines_of_the_page_run(images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs/data.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names = {"train": Pictures(images, "train"), "val": Pictures(images, "val")}
    exec(code, names)
    assert len(open_index(Shards(root=names["data"]["root"], **WINDOW), "train")) == 30
    write_parquet(images, tmp_path / "FOLDER")
    (line,) = re.findall(r"^lsdali pack (\S+ \S+)", page, re.MULTILINE)
    assert pack(line.split()) == 0
    assert same_batches(images, tmp_path / "OUT")


# ---- sentences


def refused(train, val=(), **options):
    with pytest.raises(UserError) as caught:
        pack_datasets(train, val or train, **options)
    return str(caught.value)


def test_what_is_no_data_set_of_pixels(tmp_path):
    gray = np.zeros((4, 4), np.uint8)
    rng = np.random.default_rng(0)

    class Random:
        def __len__(self):
            return 2

        def __getitem__(self, i):
            return rng.integers(0, 255, (4, 4), dtype=np.uint8), 0

    for number, (data, classes, said) in enumerate(
        [
            ([(gray, 0), (gray, 2)], ["a", "b"], "train sample 1 has the label 2, and there are 2 classes"),
            ([gray], None, "sample 0 is no pair of an image and a class number"),
            (
                [(torch.zeros(3, 4, 4), 0)],
                ["a", "b"],
                "train sample 0 is float32 [4, 4, 3]: give PIL images or uint8 pixels, and leave tensors of numbers "
                "and normalisation to the recipe",
            ),
            (
                Random(),
                ["a", "b"],
                "train sample 0 is another image when it is read again: leave random transforms to data.train",
            ),
        ]
    ):
        assert refused(data, out=tmp_path / str(number), classes=classes) == said


def test_parquet_that_does_not_fit(images, tmp_path, capsys):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    picture = io.BytesIO()
    Image.new("RGB", (4, 4)).save(picture, "PNG")
    good = {"bytes": picture.getvalue(), "path": None}
    for name, train, said in (
        ("lone", None, "{root} has no Parquet files of val: names begin with validation or valid or val or test"),
        (
            "names",
            {"photo": [good], "label": [0]},
            "{file} has no column of images (image, img); its columns are photo, label",
        ),
        ("empty", {"image": [None], "label": [0]}, "{file}, row 0: the column image holds no image's bytes"),
        ("label", {"image": [good, good], "label": [0, -1]}, "{file}, row 1: the label -1 is none of 1 classes"),
    ):
        root = tmp_path / name
        root.mkdir()
        file = root / "train.parquet"
        parquet.write_table(arrow.table(train or {"image": [good], "label": [0]}), file)
        if train is not None:
            parquet.write_table(arrow.table(train), root / "test.parquet")
        assert pack([str(root), str(tmp_path / f"out_{name}")]) == 2
        assert capsys.readouterr().err == f"error: {said.format(root=root, file=file)}\n"
    (tmp_path / "lone/test.parquet").write_bytes(b"x")
    (tmp_path / "lone/train.parquet").write_bytes(b"x")
    assert pack([str(tmp_path / "lone"), str(tmp_path / "out_bytes")]) == 2
    assert "cannot be read as Parquet" in capsys.readouterr().err
