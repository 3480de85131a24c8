"""Class subsets, held-out parts and label noise: seeded, stratified, and told by the fingerprint."""

import numpy as np
import pytest
from scipy.stats import chi2

from lsdali.data.index.index import open_index
from lsdali.data.pipeline.loaders import open_dataset
from lsdali.data.sets.splits import Holdout, held_out, noisy, of_classes, whole
from lsdali.errors import UserError
from lsdali.label_noise import MatrixNoise, PairNoise, SymmetricNoise

NAMES = tuple(f"class{k}" for k in range(5))


@pytest.fixture
def many():
    """20,000 samples in classes of 1 to 5 parts."""
    labels = np.repeat(np.arange(5), np.arange(1, 6) * 20_000 // 15)
    return whole(np.random.default_rng(0).permutation(labels), NAMES)


def test_I21_I22_the_split_of_the_ibls_code():
    """NumPy's legacy generator with seed 42, which shuffles the numbers of all samples."""
    some = whole(np.zeros(20, np.int64), ("one",))
    published = Holdout(fraction=0.2, seed=42, by="numpy")
    assert held_out(some, "train", published).numbers.tolist() == sorted(
        [0, 17, 15, 1, 8, 5, 11, 3, 18, 16, 13, 2, 9, 19, 4, 12]
    )
    assert held_out(some, "val", published).numbers.tolist() == sorted([7, 10, 14, 6])
    cifar = whole(np.zeros(50_000, np.int64), ("one",))
    train, val = (held_out(cifar, side, published).numbers for side in ("train", "val"))
    assert (len(train), len(val)) == (40_000, 10_000)
    assert {33553, 9427, 199, 12447, 39489, 42724, 10822, 49498, 4144, 36958} <= set(train.tolist())
    assert {7928, 2107, 30363, 31262, 42135, 38216, 19465, 47451, 30624, 10447} <= set(val.tolist())


def test_a_held_out_part_is_the_rest_stratified_and_seeded(many):
    train, val = (held_out(many, side, Holdout(fraction=0.1)) for side in ("train", "val"))
    assert sorted([*train.numbers, *val.numbers]) == list(range(len(many.labels)))
    assert len(val.numbers) == round(0.1 * len(many.labels))
    assert np.abs(np.bincount(val.labels) - 0.1 * np.bincount(many.labels)).max() <= 1
    assert (train.labels == many.labels[train.numbers]).all()
    again = held_out(many, "val", Holdout(fraction=0.1))
    other = held_out(many, "val", Holdout(fraction=0.1, seed=1))
    assert np.array_equal(val.numbers, again.numbers)
    assert len(np.intersect1d(val.numbers, other.numbers)) < 0.15 * len(val.numbers)
    with pytest.raises(UserError, match=r"0\.001 of 20 training files leaves 0 to validate on and 20 to train on"):
        held_out(many.at(np.arange(20)), "val", Holdout(fraction=0.001))


def test_class_subsets_are_renumbered_in_the_given_order(many):
    part = of_classes(many, ("class4", "class1"))
    assert part.classes == ("class4", "class1")
    assert (many.labels[part.numbers] == np.array([4, 1])[part.labels]).all()
    assert len(part.numbers) == np.isin(many.labels, [1, 4]).sum()
    with pytest.raises(UserError, match=r"^data.classes: the data has no class clas2; did you mean class2\?$"):
        of_classes(many, ("class1", "clas2"))
    with pytest.raises(UserError, match="class1 is given twice"):
        of_classes(many, ("class1", "class1"))


@pytest.mark.parametrize("kind", ["symmetric", "pair", "matrix"])
def test_noise_follows_its_matrix(many, tmp_path, kind):
    matrix = np.random.default_rng(1).dirichlet(np.ones(5), 5)
    np.save(tmp_path / "t.npy", matrix)
    noise = {
        "symmetric": SymmetricNoise(rate=0.4),
        "pair": PairNoise(rate=0.4),
        "matrix": MatrixNoise(file=str(tmp_path / "t.npy")),
    }[kind]
    expected = {
        "symmetric": np.where(np.eye(5, dtype=bool), 0.6, 0.1),
        "pair": 0.6 * np.eye(5) + 0.4 * np.eye(5)[[1, 2, 3, 4, 0]],
        "matrix": matrix,
    }[kind]
    found = noisy(many, noise, 0)
    assert (found.clean == many.labels).all()
    counts = np.zeros((5, 5))
    np.add.at(counts, (found.clean, found.labels), 1)
    wanted = expected * np.bincount(many.labels)[:, None]
    assert not counts[wanted == 0].any()
    spread = ((counts - wanted)[wanted > 0] ** 2 / wanted[wanted > 0]).sum()
    assert spread < chi2.ppf(0.999, (wanted > 0).sum() - 5)


def test_noise_belongs_to_the_sample_and_the_seed(many):
    found = noisy(many, SymmetricNoise(rate=0.5), 0)
    half = np.flatnonzero(np.arange(len(many.labels)) % 2)
    assert (noisy(many.at(half), SymmetricNoise(rate=0.5), 0).labels == found.labels[half]).all()
    other = noisy(many, SymmetricNoise(rate=0.5), 1).labels
    assert 0.3 < (other == found.labels).mean() < 0.4  # 1/4 + 4/64
    assert (noisy(many, SymmetricNoise(rate=1.0), 0).labels != many.labels).all()


def test_matrices_that_do_not_fit(many, tmp_path):
    file = tmp_path / "t.txt"

    def refusal(text):
        file.write_text(text)
        with pytest.raises(UserError) as caught:
            noisy(many, MatrixNoise(file=str(file)), 0)
        return str(caught.value)

    rows = [" ".join("1" if j == i else "0" for j in range(5)) for i in range(5)]
    assert "has the shape [2, 5]; 5 classes need" in refusal("\n".join(rows[:2]))
    assert f"row 1 of {file} is no distribution" in refusal("\n".join([rows[0], "0.5 0.4 0 0 0", *rows[2:]]))
    assert f"row 4 of {file} is no distribution" in refusal("\n".join([*rows[:4], "2 -1 0 0 0"]))
    assert "cannot be read as a matrix of numbers" in refusal("one two")
    empty = file.with_suffix(".npy")
    empty.touch()
    with pytest.raises(UserError, match="cannot be read"):
        noisy(many, MatrixNoise(file=str(empty)), 0)
    file.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        noisy(many, MatrixNoise(file=str(file)), 0)


def test_a_recipe_chooses_samples_and_labels(tree, plain):
    root = tree(each=20)
    base = plain(root)

    def opened(side, **more):
        return open_index(base.model_validate(base.model_dump() | more), side)

    whole_set = opened("train")
    held = [opened(side, holdout={"fraction": 0.25, "seed": 2}) for side in ("train", "val")]
    assert [len(index) for index in held] == [30, 10]
    paths = [[index.path(i) for i in range(len(index))] for index in held]
    assert sorted(paths[0] + paths[1]) == [whole_set.path(i) for i in range(40)]
    wrong = opened("train", noise={"name": "pair", "rate": 0.5})
    assert (wrong.clean == whole_set.labels).all()
    assert 0 < (wrong.labels != wrong.clean).sum() < 40
    both = {"holdout": {"fraction": 0.25, "seed": 2}, "noise": {"name": "pair", "rate": 1.0}}
    assert (opened("val", **both).labels == held[1].labels).all()
    assert (opened("train", **both).labels == 1 - held[0].labels).all()
    reversed_set = opened("train", classes=("bee", "ant"))
    assert reversed_set.classes == ("bee", "ant")
    prints = [i.fingerprint for i in (whole_set, *held, wrong, reversed_set, opened("train", **both))]
    assert len(set(prints)) == 6


def test_no_validation_folder_is_needed_to_hold_out(tree, plain):
    root = tree()
    for file in sorted((root / "val").rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    (root / "val").rmdir()
    with pytest.raises(UserError, match="has no folder val"):
        open_index(plain(root), "val")
    config = plain(root, holdout=Holdout(fraction=0.5))
    assert len(open_dataset(config, "val", print)) == 12
    assert config.validation() == "50 % of the training files, held out with seed 0"
