"""The pre-flight scan: it finds what is there, says so in three forms, and leaves the index that training reads."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lsdali.data.index import stored
from lsdali.data.index.index import open_index
from lsdali.data.index.scan_split import SIZE, examine
from lsdali.data.io.byte_range import Memory
from lsdali.data.io.header import HEAD
from lsdali.data.io.quirks import traits
from lsdali.data.sets.catalog import CenterCrop, Folder, RandomResizedCrop
from lsdali.scan import main


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSDALI_CACHE", str(tmp_path_factory.mktemp("cache")))


def picture(seed: int, side: int = 40) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (side, side + seed % 7, 3)).astype(np.uint8))


@pytest.fixture
def clean(tmp_path) -> Path:
    """2 classes, 6 and 3 files each."""
    root = tmp_path / "data <set>"
    for split, count, base in (("train", 6, 0), ("val", 3, 100)):
        for c, name in enumerate(("ant", "bee")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                picture(base + 10 * c + i).save(root / split / name / f"{i}.jpg")
    return root


def scan(root: Path, *more: str) -> tuple[int, dict]:
    file = root.parent / "out.json"
    status = main([str(root), "--json", str(file), *more])
    return status, json.loads(file.read_text())


def names(rows) -> dict[str, str]:
    return {Path(r["path"]).name: r["fault"] for r in rows}


def test_a_clean_set(clean, capsys):
    status, found = scan(clean)
    assert status == 0
    assert found["data"] == "folder"
    train = found["splits"]["train"]
    assert train["classes"] == {"ant": 6, "bee": 6}
    assert train["files"] == 12
    assert train["bytes"] == sum(p.stat().st_size for p in clean.glob("train/*/*"))
    assert train["height"] == [40, 40, 40]
    assert train["width"] == [40, 43, 46]
    assert train["formats"] == {"JPEG": 12}
    assert train["orientations"] == {"1": 12}
    assert (train["bad"], train["misnamed"], found["shared"]) == ([], [], [])
    assert capsys.readouterr().out.endswith("nothing to mend\n")


def test_the_zoo(clean, capsys):
    ant = clean / "train/ant"
    whole = (ant / "0.jpg").read_bytes()
    (ant / "0.jpg").write_bytes(whole[: len(whole) // 2])
    (ant / "1.jpg").write_bytes(b"")
    (ant / "2.jpg").write_text("<html>404</html>")
    (ant / "3.jpg").write_bytes(b"GIF89a" + bytes(300))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(4).save(ant / "4.jpg", exif=exif)
    picture(5).save(ant / "5.jpg", format="png")
    (ant / "gone.jpg").symlink_to(ant / "nowhere.jpg")
    status, found = scan(clean)
    assert status == 1
    train = found["splits"]["train"]
    assert names(train["bad"]) == {
        "0.jpg": "truncated",
        "1.jpg": "empty",
        "2.jpg": "text or HTML",
        "3.jpg": "GIF is not supported",
        "gone.jpg": "missing",
    }
    assert {r["class"] for r in train["bad"]} == {"ant"}
    assert train["formats"] == {"JPEG": 7, "PNG": 1}
    assert train["orientations"] == {"1": 7, "6": 1}
    assert [Path(p).name for p in train["misnamed"]] == ["5.jpg"]
    out = capsys.readouterr().out
    assert f"{ant}/2.jpg: text or HTML" in out
    assert out.endswith("5 things to mend\n")


def test_copies_are_told_apart_by_where_they_are(clean):
    shutil.copy(clean / "train/ant/0.jpg", clean / "val/ant/0.jpg")
    shutil.copy(clean / "train/ant/1.jpg", clean / "train/bee/1.jpg")
    shutil.copy(clean / "train/bee/2.jpg", clean / "train/bee/3.jpg")
    # The same length and the same first bytes, but another image.
    big = [picture(k, 90) for k in (300, 300)]
    for k, image in enumerate(big):
        image.save(clean / f"train/ant/{4 + k}.jpg", quality=95)
    data = bytearray((clean / "train/ant/5.jpg").read_bytes())
    assert len(data) > HEAD + 2000
    data[-500] ^= 1
    (clean / "train/ant/5.jpg").write_bytes(data)
    assert examine(bytes(clean / "train/ant/4.jpg"))[:SIZE] == examine(bytes(clean / "train/ant/5.jpg"))[:SIZE]
    status, found = scan(clean)
    assert status == 1
    groups = {
        kind: [sorted(f["path"].removeprefix(f"{clean}/") for f in g) for g in found[kind]]
        for kind in ("shared", "label_conflicts", "repeated")
    }
    assert groups == {
        "shared": [["train/ant/0.jpg", "val/ant/0.jpg"]],
        "label_conflicts": [["train/ant/1.jpg", "train/bee/1.jpg"]],
        "repeated": [["train/bee/2.jpg", "train/bee/3.jpg"]],
    }


def test_a_full_scan_finds_damaged_bodies(clean):
    path = clean / "train/bee/3.jpg"
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 300] = bytes(300)
    path.write_bytes(data)
    picture(1).convert("CMYK").save(clean / "train/bee/4.jpg")
    picture(1).convert("L").save(clean / "train/bee/5.jpg")
    picture(2).save(clean / "train/ant/3.jpg", format="png")
    png = bytearray((clean / "train/ant/3.jpg").read_bytes())
    png[200:260] = bytes(60)
    (clean / "train/ant/3.jpg").write_bytes(png)
    status, found = scan(clean)
    assert status == 0
    status, found = scan(clean, "--full")
    assert status == 1
    corrupt = names(found["splits"]["train"]["corrupt"])
    assert set(corrupt) == {"3.jpg"}
    assert len(found["splits"]["train"]["corrupt"]) == 2
    assert all(fault.startswith("the body is damaged: ") for fault in corrupt.values())
    assert found["splits"]["val"]["corrupt"] == []


def test_the_page_shows_everything_and_escapes_names(clean):
    (clean / "train/ant/<i>.jpg").write_bytes(b"")
    page = clean.parent / "page.html"
    status, _ = scan(clean, "--html", str(page))
    assert status == 1
    text = page.read_text()
    assert "&lt;i&gt;.jpg" in text
    assert "<i>" not in text
    assert "data &lt;set&gt;" in text
    assert text.count("data:image/jpeg;base64,") == 2
    assert "1 thing to mend" in text


def test_training_reads_the_index_that_the_scan_wrote(clean, monkeypatch):
    config = Folder(root=str(clean), train=RandomResizedCrop(size=8), eval=CenterCrop(resize=8, size=8))
    old = open_index(config, "train")
    before = clean.joinpath("train/ant").stat().st_mtime_ns
    (clean / "train/ant/0.jpg").write_bytes(b"")  # changes no folder, so the cached index would stay
    assert clean.joinpath("train/ant").stat().st_mtime_ns == before
    assert scan(clean)[0] == 1
    monkeypatch.setattr(stored, "each_file", lambda *a: pytest.fail("scanned again"))
    new = open_index(config, "train")
    assert new.fingerprint == old.fingerprint
    assert (old.status[0], new.status[0]) == (0, 3)
    assert np.array_equal(new.size[1:], old.size[1:])


def test_layouts_are_guessed_and_bad_input_is_one_sentence(clean, tmp_path, capsys):
    for name, other in (("ant", "n01440764"), ("bee", "n01443537")):
        for split in ("train", "val"):
            (clean / split / name).rename(clean / split / other)
    assert scan(clean)[1]["data"] == "imagenet"
    assert scan(clean, "--data", "folder")[1]["data"] == "folder"
    (clean / "train").rename(clean / "learn")
    assert scan(clean, "--train-dir", "learn")[1]["splits"]["train"]["files"] == 12
    for arguments, said in (
        ([str(clean)], "has no folder train"),
        ([str(tmp_path / "absent")], "is no folder"),
        ([str(clean), "--data", "imagnet"], "--data imagnet is unknown; choose from folder, imagenet"),
        ([str(clean), "--data", "digits", "--val-dir", "x"], "leave --val-dir out"),
        ([str(clean), "--train-dir", "learn", "--html", str(tmp_path / "no/page")], "cannot be written: No such"),
    ):
        assert main(arguments) == 2
        assert said in capsys.readouterr().err


def test_orientation_survives_broken_exif():
    def orientation(data: bytes) -> int:
        return traits(Memory(data), data)[0]

    assert orientation(b"\xff\xd8\xff\xe1\0\x20Exif\0\0II*\0") == 1
    assert orientation(b"") == 1
    big = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x08\0\0"
    assert orientation(b"\xff\xd8\xff\xe1\0\x20Exif\0\0" + big) == 8
