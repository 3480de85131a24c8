"""What lies among the images and is none; kinds that decoders read differently; what the system cannot read."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from lsdali.data.index.index import open_index
from lsdali.data.index.scan_split import examine
from lsdali.data.io.header import FAULTS, read_header
from lsdali.data.io.quirks import CMYK, FLOATS, ODDITIES, READ_ALIKE
from lsdali.data.pipeline.loader import EvalLoader
from lsdali.data.sets.catalog import CenterCrop
from lsdali.data.sets.listing import list_folders
from lsdali.errors import UserError
from lsdali.face.images import files_in
from lsdali.scan import main
from tests.data.conftest import Plain, Texture, Tree


def test_only_images_are_data_and_the_rest_is_counted(
    tree: Tree, plain: Plain, texture: Texture, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tree(each=2)
    ant = root / "train/ant"
    before = open_index(plain(root), "train")
    (root / "train/.ipynb_checkpoints").mkdir()
    (ant / ".ipynb_checkpoints").mkdir()
    for name in ("._000.jpg", ".ipynb_checkpoints/000.jpg", ".hidden.png"):
        texture(20, 20).save(ant / name, format="png")
    (ant / "Thumbs.db").write_bytes(b"x")
    (ant / "photo.heic").write_bytes(b"x")
    (ant / "notes.txt").write_text("x")
    os.mkfifo(ant / "pipe.jpg")
    (ant / "again").symlink_to(root / "train")
    (ant / "zero.jpg").symlink_to("/dev/zero")
    texture(20, 20).save(ant / "camera.JFIF", format="jpeg")
    listing = list_folders(str(root), "train", "val", "train")
    assert listing.classes == before.classes
    names = [Path(os.fsdecode(path)).name for path in listing.paths.tolist()]
    assert names == ["000.jpg", "001.jpg", "camera.JFIF", "000.jpg", "001.jpg"]
    left = listing.left_out.summary()
    assert {kind: entry["count"] for kind, entry in left.items() if kind != "endings"} == {
        "hidden or system files": 5,
        "links to a folder above": 1,
        "no regular files (FIFO, socket, device)": 2,
        "other endings": 2,
    }
    assert left["endings"] == {".heic": 1, ".txt": 1}
    assert left["links to a folder above"]["first"] == ["train/ant/again"]
    assert ".heic 1, .txt 1" in open_index(plain(root), "train").left_out.describe()
    assert main([str(root)]) == 0
    assert "train/ant/again" in capsys.readouterr().out


def test_pixels_that_decoders_read_differently_are_told(tmp_path: Path, texture: Texture) -> None:
    plain, cmyk, floats = (tmp_path / name for name in ("a.jpg", "b.jpg", "c.tif"))
    texture(30, 20).save(plain)
    texture(30, 20).convert("CMYK").save(cmyk)
    assert ODDITIES[examine(bytes(cmyk))[7]] == ODDITIES[READ_ALIKE]  # Pillow writes Adobe's marker
    data = cmyk.read_bytes()
    at = data.index(b"\xff\xee")
    cmyk.write_bytes(data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :])
    Image.fromarray(np.zeros((20, 30), np.float32)).save(floats)
    assert [examine(bytes(file))[7] for file in (plain, cmyk, floats)] == [READ_ALIKE, CMYK, FLOATS]
    assert [examine(bytes(file))[:3] for file in (plain, cmyk, floats)] == [(30, 20, 0)] * 3


def test_images_of_too_many_pixels_are_bad_by_name(tree: Tree, plain: Plain, texture: Texture) -> None:
    root = tree(each=3)
    texture(100, 90).save(root / "train/ant/001.jpg")
    assert not len(open_index(plain(root, max_pixels=9000), "train").bad())
    assert open_index(plain(root, max_pixels=8999), "train").faults() == [
        (f"{root}/train/ant/001.jpg", "more pixels than data.max_pixels")
    ]


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES, errno.EIO, errno.ESTALE])
def test_a_failing_system_is_told_in_its_words(
    tree: Tree, plain: Plain, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    root = tree(each=2)
    file = root / "train/ant/001.jpg"
    real = os.open

    def fail(path: str | bytes, *more: int) -> int:
        if os.fsdecode(path) == str(file):
            raise OSError(number, os.strerror(number), path)
        return real(path, *more)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", fail)
        with pytest.raises(UserError) as caught:
            open_index(plain(root), "train")
    said = f"{file} cannot be read: {os.strerror(number)}; the same command goes on once it can"
    assert str(caught.value) == said
    assert not len(open_index(plain(root), "train").bad())  # nothing of it is kept


def test_a_fifo_is_no_image_and_nobody_waits_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    assert FAULTS[read_header(tmp_path / "pipe.jpg")[2]] == "no regular file"


@pytest.mark.parametrize("turn", [3, 6, 8])
def test_exif_orientation_gives_the_upright_image(tree: Tree, plain: Plain, texture: Texture, turn: int) -> None:
    root = tree(each=1, val=1)
    exif = Image.Exif()
    exif[0x0112] = turn
    texture(60, 40).save(root / "val/ant/000.jpg", exif=exif, quality=95)
    for upright in (False, True):
        crop = CenterCrop(resize=40, size=40, sides="both")
        config = plain(root, exif_orientation=upright, eval=crop)
        index = open_index(config, "val")
        (batch,) = EvalLoader(index, config, batch=2, device=torch.device("cpu"), half=False)
        with Image.open(root / "val/ant/000.jpg") as image:
            seen = ImageOps.exif_transpose(image) if upright else image.copy()
        assert tuple(index.size[0]) == seen.size
        wanted = np.asarray(seen.resize((40, 40), Image.Resampling.BILINEAR), np.float32) / 255
        assert np.abs(batch.images[0].permute(1, 2, 0).numpy() - wanted).mean() < 0.01


def test_predict_reads_what_training_would(tmp_path: Path, texture: Texture) -> None:
    for name in ("a.jpg", "deep/b.jpg", "@eaDir/thumb.jpg", "__MACOSX/a.jpg", ".trash/c.jpg", "deep/._b.jpg"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        texture(20, 20).save(file)
    assert files_in([tmp_path]) == [f"{tmp_path}/a.jpg", f"{tmp_path}/deep/b.jpg"]
