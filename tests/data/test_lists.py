"""Data sets with lists of their own: small trees in the official formats, and what is said where they do not fit."""

import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from lsdali.data import DATASETS
from lsdali.data.index.index import open_index
from lsdali.data.sets import catalog
from lsdali.data.sets.finegrained import DATA_SETS
from lsdali.data.sets.list_lines import read_rows
from lsdali.data.sets.lists import Listed
from lsdali.errors import UserError

OFFICIAL = {k: (dict(v.samples), getattr(v, "count", None)) for k, v in DATA_SETS.items() if issubclass(v, Listed)}


def test_official_counts():
    assert OFFICIAL["inat21"] == ({"train": 2_686_843, "train_mini": 500_000, "val": 100_000}, 10_000)
    assert OFFICIAL["cub"] == ({"train": 5_994, "val": 5_794}, 200)
    assert OFFICIAL["cars"] == ({"train": 8_144, "val": 8_041}, 196)
    assert OFFICIAL["aircraft"] == ({"train": 6_667, "val": 3_333}, None)
    assert OFFICIAL["flowers"] == ({"train": 1_020, "trainval": 2_040, "val": 6_149}, 102)
    assert OFFICIAL["dogs"] == ({"train": 12_000, "val": 8_580}, 120)


@pytest.fixture
def image(texture):
    def make(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        texture(24, 20).save(path)

    return make


@pytest.fixture
def small(monkeypatch):
    def make(name, count, **samples):
        monkeypatch.setattr(DATASETS[name], "samples", samples)
        monkeypatch.setattr(DATASETS[name], "count", count, raising=False)

    return make


def content(name, root, part="train", **more):
    """Class names and (path below root, class) of every sample; every image must be readable."""
    index = open_index(DATASETS[name].model_validate({"root": str(root), **more}), part)
    assert not index.faults()
    rows = [(index.path(i).removeprefix(f"{root}/"), index.classes[index.labels[i]]) for i in range(len(index))]
    return index.classes, rows


def refusal(name, root, **more):
    with pytest.raises(UserError) as caught:
        open_index(DATASETS[name].model_validate({"root": str(root), **more}), "train")
    return str(caught.value)


def test_inat21(tmp_path, image, small):
    small("inat21", 2, train=3, train_mini=2, val=2)
    classes = [{"id": 7, "name": "Apis mellifera"}, {"id": 3, "name": "Formica rufa"}]
    for part, species in (("train", [7, 3, 7]), ("train_mini", [7, 3]), ("val", [3, 7])):
        paths = [f"{part}/{c:05d}/{k}.jpg" for k, c in enumerate(species)]
        for path in paths:
            image(tmp_path / path)
        whole = {
            "categories": classes,
            "images": [{"id": 10 + k, "file_name": p} for k, p in enumerate(paths)][::-1],
            "annotations": [{"id": k, "image_id": 10 + k, "category_id": c} for k, c in enumerate(species)],
        }
        (tmp_path / f"{part}.json").write_text(json.dumps(whole))
    names, rows = content("inat21", tmp_path)
    assert names == ("Formica rufa", "Apis mellifera")
    assert rows == [("train_mini/00003/1.jpg", "Formica rufa"), ("train_mini/00007/0.jpg", "Apis mellifera")]
    assert len(content("inat21", tmp_path, subset="train")[1]) == 3
    assert content("inat21", tmp_path, "val")[1][0] == ("val/00003/0.jpg", "Formica rufa")
    (tmp_path / "train_mini.json").write_text('{"images": []}')
    assert refusal("inat21", tmp_path) == (
        f"{tmp_path}/train_mini.json is no list of iNaturalist (KeyError('categories')): expected categories (id, "
        "name), images (id, file_name) and annotations (image_id, category_id)"
    )


def test_inat21_as_torchvision_unpacks_it(tmp_path, image, small, monkeypatch):
    """Its downloader is asked for both parts; folders give the labels and names that the lists give."""
    small("inat21", 2, train=3, train_mini=3, val=2)
    ants, bees = (
        f"{k:05d}_Animalia_Arthropoda_Insecta_Hymenoptera_{name}"
        for k, name in ((0, "Formicidae_Formica_rufa"), (1, "Apidae_Apis_mellifera_carnica"))
    )
    asked = []

    class INaturalist:
        def __init__(self, root, version, download):
            assert download
            asked.append(version)
            for name in (ants, bees):
                image(Path(root) / version / name / "0.jpg")
            if version != "2021_valid":
                image(Path(root) / version / bees / "1.jpg")

    monkeypatch.setattr("torchvision.datasets.INaturalist", INaturalist)
    names, rows = content("inat21", tmp_path / "new", download=True)
    assert asked == ["2021_train_mini", "2021_valid"]
    assert names == ("Formica rufa", "Apis mellifera carnica")
    assert rows == [
        (f"2021_train_mini/{ants}/0.jpg", "Formica rufa"),
        (f"2021_train_mini/{bees}/0.jpg", "Apis mellifera carnica"),
        (f"2021_train_mini/{bees}/1.jpg", "Apis mellifera carnica"),
    ]
    assert len(content("inat21", tmp_path / "new", "val")[1]) == 2
    (tmp_path / "new/2021_train_mini/00002_Animalia").mkdir()
    assert refusal("inat21", tmp_path / "new") == (
        f"{tmp_path}/new/2021_train_mini holds 00002_Animalia; a folder of iNaturalist is named "
        "number_kingdom_phylum_class_order_family_genus_species"
    )


def write_cub(root, image):
    base = root / "CUB_200_2011"
    names = ["001.Albatross", "002.Blackbird", "010.Crow"]
    images = [(1, 0, 1), (2, 0, 0), (3, 1, 1), (4, 1, 0), (5, 2, 1), (6, 2, 0)]
    for i, c, _ in images:
        image(base / f"images/{names[c]}/{i}.jpg")
    (base / "images.txt").write_text("".join(f"{i} {names[c]}/{i}.jpg\n" for i, c, _ in images))
    (base / "image_class_labels.txt").write_text("".join(f"{i} {c + 1}\n" for i, c, _ in images))
    (base / "train_test_split.txt").write_text("".join(f"{i} {t}\n" for i, _, t in images))
    (base / "classes.txt").write_text("".join(f"{k + 1} {name}\n" for k, name in enumerate(names)))
    return base, names


def test_cub(tmp_path, image, small):
    small("cub", 3, train=3, val=3)
    base, names = write_cub(tmp_path, image)
    classes, rows = content("cub", base)
    assert classes == tuple(names)
    assert rows == [(f"images/{n}/{i}.jpg", n) for n, i in zip(names, (1, 3, 5))]
    assert content("cub", base, "val")[1] == [(f"images/{n}/{i}.jpg", n) for n, i in zip(names, (2, 4, 6))]
    held = [content("cub", base, split, holdout={"fraction": 0.34})[1] for split in ("train", "val")]
    assert sorted(held[0] + held[1]) == rows
    assert len(held[1]) == 1
    assert len(content("cub", tmp_path, "train")[1]) == 3  # one folder up
    file = base / "train_test_split.txt"
    file.write_text(file.read_text().replace("2 0", "2 1"))
    assert refusal("cub", base) == (
        f"{base} lists 4 train images of 3 classes; cub has 3 of 3: get the lists again; for a part of it keep them "
        "whole and give data.classes or data.max_samples, or write lists of your own and use data.name=list"
    )
    file.unlink()
    assert f"; {base} lacks train_test_split.txt; expected CUB_200_2011/ with images.txt" in refusal("cub", tmp_path)


def struct_rows(**columns):
    names = list(columns)
    out = np.zeros((1, len(columns[names[0]])), [(name, object) for name in names])
    for name in names:
        for k, value in enumerate(columns[name]):
            out[0, k][name] = value
    return out


def cells(texts):
    out = np.empty((1, len(texts)), object)
    out[0, :] = texts
    return out


def test_cars_in_both_layouts(tmp_path, image, small):
    small("cars", 2, train=2, val=1)
    names = ["AM General Hummer 2000", "Audi TT/RS 2012"]
    one, two = tmp_path / "one", tmp_path / "two"
    for k in range(3):
        image(one / f"car_ims/{k}.jpg")
    rows = struct_rows(
        relative_im_path=[f"car_ims/{k}.jpg" for k in range(3)], **{"class": [2, 1, 2], "test": [0, 0, 1]}
    )
    savemat(one / "cars_annos.mat", {"annotations": rows, "class_names": cells(names)})
    classes, found = content("cars", one)
    assert classes == tuple(names)
    assert found == [("car_ims/1.jpg", names[0]), ("car_ims/0.jpg", names[1])]
    assert content("cars", one, "val")[1] == [("car_ims/2.jpg", names[1])]
    for path in ("cars_train/a.jpg", "cars_train/b.jpg", "cars_test/a.jpg"):
        image(two / path)
    (two / "devkit").mkdir()
    savemat(two / "devkit/cars_meta.mat", {"class_names": cells(names)})
    for file, files, labels in (
        ("devkit/cars_train_annos.mat", ["a.jpg", "b.jpg"], [1, 2]),
        ("cars_test_annos_withlabels.mat", ["a.jpg"], [2]),
    ):
        savemat(two / file, {"annotations": struct_rows(**{"fname": files, "class": labels})})
    assert content("cars", two)[1] == [("cars_train/a.jpg", names[0]), ("cars_train/b.jpg", names[1])]
    assert content("cars", two, "val")[1] == [("cars_test/a.jpg", names[1])]


def test_aircraft_at_every_level(tmp_path, image, monkeypatch):
    kind = DATASETS["aircraft"]
    monkeypatch.setattr(kind, "samples", {"train": 2, "val": 1})
    monkeypatch.setattr(kind, "counts", {"variant": 3, "family": 2, "manufacturer": 1})
    data = tmp_path / "fgvc-aircraft-2013b/data"
    lists = {
        "variant": ["707-320", "727-200", "737-200"],
        "family": ["Boeing 707", "Boeing 737"],
        "manufacturer": ["Boeing"],
    }
    chosen = {"variant": [2, 0, 1], "family": [1, 0, 1], "manufacturer": [0, 0, 0]}
    for k in range(3):
        image(data / f"images/000{k}.jpg")
    plural = {"variant": "variants", "family": "families", "manufacturer": "manufacturers"}
    for level, names in lists.items():
        (data / f"{plural[level]}.txt").write_text("\n".join(names) + "\n")
        rows = [f"000{k} {names[c]}\n" for k, c in enumerate(chosen[level])]
        (data / f"images_{level}_trainval.txt").write_text("".join(rows[:2]))
        (data / f"images_{level}_test.txt").write_text(rows[2])
    assert content("aircraft", data) == (
        tuple(lists["variant"]),
        [("images/0001.jpg", "707-320"), ("images/0000.jpg", "737-200")],
    )
    assert content("aircraft", data, "val", level="family")[1] == [("images/0002.jpg", "Boeing 737")]
    assert content("aircraft", data, level="manufacturer")[0] == ("Boeing",)
    (data / "images_family_trainval.txt").write_text("0000 Boeing 747\n0001 Boeing 737\n")
    assert "families.txt lacks: Boeing 747" in refusal("aircraft", data, level="family")


VARIANT_LIST = (
    "707-320|727-200|737-200|737-300|737-400|737-500|737-600|737-700|737-800|737-900|747-100|747-200|747-300|"
    "747-400|757-200|757-300|767-200|767-300|767-400|777-200|777-300|A300B4|A310|A318|A319|A320|A321|A330-200|"
    "A330-300|A340-200|A340-300|A340-500|A340-600|A380|ATR-42|ATR-72|An-12|BAE 146-200|BAE 146-300|BAE-125|"
    "Beechcraft 1900|Boeing 717|C-130|C-47|CRJ-200|CRJ-700|CRJ-900|Cessna 172|Cessna 208|Cessna 525|"
    "Cessna 560|Challenger 600|DC-10|DC-3|DC-6|DC-8|DC-9-30|DH-82|DHC-1|DHC-6|DHC-8-100|DHC-8-300|DR-400|"
    "Dornier 328|E-170|E-190|E-195|EMB-120|ERJ 135|ERJ 145|Embraer Legacy 600|Eurofighter Typhoon|F-16A/B|"
    "F/A-18|Falcon 2000|Falcon 900|Fokker 100|Fokker 50|Fokker 70|Global Express|Gulfstream IV|Gulfstream V|"
    "Hawk T1|Il-76|L-1011|MD-11|MD-80|MD-87|MD-90|Metroliner|Model B200|PA-28|SR-20|Saab 2000|Saab 340|"
    "Spitfire|Tornado|Tu-134|Tu-154|Yak-42"
)
"""The official list, in its order."""
VARIANTS = VARIANT_LIST.split("|")


def test_aircraft_as_ols_merges_them(tmp_path, image, monkeypatch):
    """OLS's lists have 90 labels; seven of them hold more than one variant: these, so many."""
    monkeypatch.setattr(DATASETS["aircraft"], "samples", {"train": 100, "val": 1})
    for level, plural in (("variant", "variants"), ("family", "families"), ("manufacturer", "manufacturers")):
        (tmp_path / f"{plural}.txt").write_text("".join(f"{name}\n" for name in VARIANTS))
        rows = [f"{k:04d} {name}\n" for k, name in enumerate(VARIANTS)]
        (tmp_path / f"images_{level}_trainval.txt").write_text("".join(rows))
        (tmp_path / f"images_{level}_test.txt").write_text(rows[0])
    for k in range(100):
        image(tmp_path / f"images/{k:04d}.jpg")
    names, rows = content("aircraft", tmp_path, level="merged")
    assert len(names) == 90
    several = {names.index(name): n for name, n in Counter(name for _, name in rows).items() if n > 1}
    assert several == {37: 2, 46: 4, 64: 2, 69: 2, 70: 3, 72: 2, 84: 2}
    assert (names[46], names[40], names[89]) == ("Cessna", "Boeing 717", "Yak-42")


def test_flowers(tmp_path, image, small):
    small("flowers", 3, train=2, trainval=3, val=2)
    for k in range(5):
        image(tmp_path / f"jpg/image_{k + 1:05d}.jpg")
    savemat(tmp_path / "imagelabels.mat", {"labels": np.array([[2, 1, 3, 1, 2]], np.uint8)})
    savemat(tmp_path / "setid.mat", {"trnid": [[2, 5]], "valid": [[3]], "tstid": [[4, 1]]})
    assert content("flowers", tmp_path) == (
        ("1", "2", "3"),
        [("jpg/image_00002.jpg", "1"), ("jpg/image_00005.jpg", "2"), ("jpg/image_00003.jpg", "3")],
    )
    assert len(content("flowers", tmp_path, training="train")[1]) == 2
    assert content("flowers", tmp_path, "val")[1] == [("jpg/image_00004.jpg", "1"), ("jpg/image_00001.jpg", "2")]
    savemat(tmp_path / "setid.mat", {"trnid": [[2, 6]], "valid": [[3]], "tstid": [[4, 1]]})
    assert "setid.mat names images that imagelabels.mat lacks" in refusal("flowers", tmp_path)


def test_dogs(tmp_path, image, small):
    small("dogs", 2, train=2, val=2)
    breeds = ["n01-Chihuahua", "n02-Shih-Tzu"]
    for file, numbers in (("train_list", (0, 1)), ("test_list", (2, 3))):
        paths = [f"{breeds[n % 2]}/n_{n}.jpg" for n in numbers]
        for path in paths:
            image(tmp_path / "Images" / path)
        savemat(tmp_path / f"{file}.mat", {"file_list": cells(paths).T, "labels": np.array([[1], [2]], np.uint8)})
    assert content("dogs", tmp_path) == (
        ("Chihuahua", "Shih-Tzu"),
        [("Images/n01-Chihuahua/n_0.jpg", "Chihuahua"), ("Images/n02-Shih-Tzu/n_1.jpg", "Shih-Tzu")],
    )
    assert content("dogs", tmp_path, "val")[1][1] == ("Images/n02-Shih-Tzu/n_3.jpg", "Shih-Tzu")


def test_lists_of_anybodys(tmp_path, image):
    for name in ("a b.png", "c.png", "d.png"):
        image(tmp_path / "pics" / name)
    (tmp_path / "train.txt").write_text("a b.png 0\n\nc.png 02\n")
    (tmp_path / "val.txt").write_text("d.png 2\n")
    assert content("list", tmp_path, images="pics") == (("0", "1", "2"), [("pics/a b.png", "0"), ("pics/c.png", "2")])
    assert content("list", tmp_path, "val", images="pics")[1] == [("pics/d.png", "2")]
    (tmp_path / "train.txt").write_text("pics/a b.png wolf\npics/c.png fox\n")
    (tmp_path / "val.txt").write_text("pics/d.png fox\n")
    assert content("list", tmp_path) == (("fox", "wolf"), [("pics/c.png", "fox"), ("pics/a b.png", "wolf")])
    (tmp_path / "val.txt").write_text("pics/d.png bear\n")
    assert refusal("list", tmp_path) == f"{tmp_path}/val.txt has labels that train.txt lacks: bear"
    (tmp_path / "val.txt").write_text("pics/c.png wolf\n")
    assert refusal("list", tmp_path) == (
        f"pics/c.png: in both {tmp_path}/train.txt and {tmp_path}/val.txt; validate on other images"
    )
    for separator, wolf in (("\t", "grey wolf"), (";", "grey wolf"), (",", "grey wolf"), (" ", "wolf")):
        (tmp_path / "train.txt").write_text(f"pics/a b.png{separator}{wolf}\npics/c.png{separator}fox\n")
        (tmp_path / "val.txt").write_text(f"pics/d.png{separator}{wolf}\n")
        assert content("list", tmp_path) == (("fox", wolf), [("pics/c.png", "fox"), ("pics/a b.png", wolf)])
    (tmp_path / "train.txt").write_text("image,label\npics/a b.png,1\npics/c.png,0\n")
    assert refusal("list", tmp_path) == (
        f"{tmp_path}/train.txt, line 1 names no image, as all others do: remove the line of titles"
    )
    (tmp_path / "train.txt").write_text("pics/c.png\n")
    assert refusal("list", tmp_path) == (
        f"{tmp_path}/train.txt, line 1: expected a path, a space (or tab, ; or ,) and a label"
    )


ROWS = [("pics/a b.png", "0"), ("pics/c.png", "1")]
WRITTEN = {
    "quoted": '"pics/a b.png",0\n"pics/c.png",1\n',
    "with a mark": "\ufeffpics/a b.png 0\npics/c.png 1\n",
    "by Windows": "pics\\a b.png 0\r\npics\\c.png 1\r\n",
    "with zeros": "pics/a b.png 000\npics/c.png 001\n",
}
WRONG = {
    "pics/a b.png 0 train\npics/c.png 1 train\n": " has three columns; expected lines of: path label",
    "0 pics/a b.png\n1 pics/c.png\n": " has the label first; expected lines of: path label",
    "pics/a b.png -1\npics/c.png 1\n": " has the label -1; labels that are numbers count from 0",
    "pics/a b.png 0\npics/c.png 1000000000000\n": (
        " has the label 1000000000000; labels that are numbers count the classes from 0"
    ),
    "pics/c.png 0\npics/a b.png 1\npics/c.png 1\n": " gives pics/c.png two labels; give it one",
}


@pytest.mark.parametrize("text", WRITTEN.values(), ids=WRITTEN)
def test_lists_as_others_write_them(tmp_path, image, text):
    for path, _ in ROWS:
        image(tmp_path / path)
    (tmp_path / "train.txt").write_text(text, encoding="utf-8", newline="")
    assert read_rows(tmp_path / "train.txt", tmp_path) == ROWS


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_in_a_list_is_said(tmp_path, text):
    (tmp_path / "train.txt").write_text(text)
    with pytest.raises(UserError) as caught:
        read_rows(tmp_path / "train.txt", tmp_path)
    assert str(caught.value) == f"{tmp_path}/train.txt{WRONG[text]}"
    (tmp_path / "train.txt").write_bytes("pics/c.png 0\n".encode("utf-16"))
    with pytest.raises(UserError, match="is in UTF-16: save it as UTF-8"):
        read_rows(tmp_path / "train.txt", tmp_path)
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(UserError, match=r"pipe\.txt is no file; expected text"):
        read_rows(tmp_path / "pipe.txt", tmp_path)


def test_complete_sets_of_class_folders_are_counted(tree, monkeypatch):
    root = tree(each=3)
    assert len(content("imagenet", root)[1]) == 6
    monkeypatch.setattr(catalog, "IMAGENET_COUNTS", catalog.IMAGENET_COUNTS._replace(classes=2))
    (root / "train/ant/more.jpg").write_bytes((root / "train/ant/000.jpg").read_bytes())
    said = refusal("imagenet", root)
    assert said.startswith(f"train of {root} has 7 images in 2 classes; ImageNet-1k has 1,281,167: unpack it again")
    monkeypatch.setattr(catalog, "IMAGENET_COUNTS", catalog.Whole("ImageNet-1k", 2, {"train": 7}))
    assert len(content("imagenet", root)[1]) == 7
    monkeypatch.setattr(catalog, "TINY_COUNTS", catalog.TINY_COUNTS._replace(classes=2))
    said = refusal("tinyimagenet", root)
    assert said.startswith(f"train of {root} has 7 images in 2 classes; Tiny ImageNet has 100,000: unpack it again")


def test_what_lacks_is_named(tmp_path):
    for name in DATA_SETS:
        said = refusal(name, tmp_path)
        assert str(tmp_path) in said
        assert "\n" not in said
    assert refusal("dogs", tmp_path) == (
        f"data root {tmp_path} does not hold the data; expected Images, train_list.mat, test_list.mat; get it from "
        "http://vision.stanford.edu/aditya86/ImageNetDogs"
    )
