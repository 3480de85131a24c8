"""Figures for papers: their numbers against other formulations, and files that can be read."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from scipy.special import softmax
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from lsdali.build import build
from lsdali.evaluate.__main__ import parse as parse_evaluate
from lsdali.evaluate.__main__ import start as evaluate
from lsdali.events import Events
from lsdali.figure.__main__ import arguments, make, start
from lsdali.figure.measures import class_spread, diffusion, human_matrix, matrix_distance, nearest_classes, right_means
from lsdali.recipe import Recipe
from lsdali.state.checkpoint import Checkpoints
from tests.harness import make_images, tiny

CPU = torch.device("cpu")
RUNS = {"ce": {"name": "ce"}, "ols": {"name": "ols"}}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs on five classes, the second of OLS."""
    base = tmp_path_factory.mktemp("figure")
    make_images(base / "images")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LSDALI_CACHE", str(base / "cache"))
        for name, method in RUNS.items():
            recipe = Recipe.model_validate(tiny(method, base / "images", base / name))
            checkpoints = Checkpoints(base / name / "checkpoints", 2, print)
            build(recipe, base / name, CPU, checkpoints, Events([])).run()
    return base


@pytest.fixture(autouse=True)
def cache(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSDALI_CACHE", str(base / "cache"))


def drawn(folder: Path, *argv: object, files: str = "svg") -> dict:
    """What `lsdali figure` writes as JSON, beside a figure."""
    paths = [f"--out={folder}/x.{suffix}" for suffix in ("json", *files.split())]
    assert start(arguments().parse_args([*map(str, argv), *paths])) == 0
    return json.loads((folder / "x.json").read_text())


def said(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    capsys.readouterr()
    assert start(arguments().parse_args([*map(str, argv)])) == 2
    return capsys.readouterr().err


def logits_of(run: Path, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Validation logits and labels, as `lsdali evaluate` writes them."""
    assert evaluate(parse_evaluate([str(run), "--predictions", str(folder / "p.npz")])) == 0
    content = np.load(folder / "p.npz")
    return content["logits"], content["labels"]


# ---- measures


def test_the_diffusion_index_of_a_published_example() -> None:
    """Centroids of the vector that goes with our definition."""
    before = torch.tensor([[1.0, 0.2, 0.0], [0.8, 0.9, 0.1], [1.3, -0.5, 0.4], [-2.0, 1.0, 3.0], [0.0, -3.0, -2.5]])
    after = torch.tensor([[1.1, 0.3, 0.1], [0.95, 0.75, 0.15], [1.2, -0.2, 0.35], [-2.6, 1.2, 3.8], [-0.2, -3.6, -3.1]])
    found = diffusion(before.double(), after.double(), 0, [1, 2], [3, 4])
    assert found["index"]["similar"] == pytest.approx(-34.538345025829905, rel=1e-6)
    assert found["index"]["dissimilar"] == pytest.approx(23.77310320779397, rel=1e-6)
    assert found["index_scale_free"]["similar"] == pytest.approx(-42.85586628677635, rel=1e-6)
    assert found["index_scale_free"]["dissimilar"] == pytest.approx(8.046561954439492, rel=1e-6)
    assert found["before"] == pytest.approx([0.73484692, 0.86023253, 4.31740663, 4.18210473], rel=1e-6)


def test_matrix_distances_of_a_published_example() -> None:
    rows = [[0.9, 0.05, 0.03, 0.02], [0.1, 0.8, 0.05, 0.05], [0.02, 0.08, 0.85, 0.05], [0.01, 0.01, 0.03, 0.95]]
    human = torch.tensor(rows)
    matrix = torch.tensor(
        [
            [0.6384729998333775, 0.1789974460183046, 0.09196356425666245, 0.09056598990865554],
            [0.0766941627159897, 0.6506622466934544, 0.21280932631214985, 0.05983426427840606],
            [0.2363277823215377, 0.2611825921550756, 0.28865140515740234, 0.21383822036598443],
            [0.1548748908969897, 0.0721099233928024, 0.07891407990736894, 0.694101105802839],
        ]
    )
    found = matrix_distance(human, matrix)
    assert found["soft_cross_entropy"] == pytest.approx(0.7914446234364969, rel=1e-6)
    assert found["kl"] == pytest.approx(0.3037821038825863, rel=1e-6)
    assert nearest_classes(matrix, 2)[1] == [2, 0]


def test_spread_by_loops() -> None:
    rng = np.random.default_rng(0)
    labels = np.array([0, 1, 2] * 7)
    x = rng.normal(size=(21, 4)) + 5 * np.eye(4)[labels]
    found = class_spread(torch.from_numpy(x), torch.from_numpy(labels), 3)
    middles = np.stack([x[labels == k].mean(0) for k in range(3)])
    within = sum(((row - middles[k]) ** 2).sum() for row, k in zip(x, labels, strict=True))
    between = sum(7 * ((middle - x.mean(0)) ** 2).sum() for middle in middles)
    assert found["fisher"] == pytest.approx(between / within)
    for k in range(3):
        own = np.mean([np.sqrt(((row - middles[k]) ** 2).sum()) for row in x[labels == k]])
        away = cdist(middles, middles)[k]
        away[k] = np.inf
        assert found["spread"][k] == pytest.approx(own)
        assert found["nearest"][k] == away.argmin()
        assert found["separability"][k] == pytest.approx(away.min() / own)


def test_human_votes_by_loops() -> None:
    votes = np.array([[0.8, 0.2, 0.0], [0.5, 0.4, 0.1], [0.1, 0.9, 0.0], [0.3, 0.2, 0.5]])
    expected = [[0.65, 0.3, 0.05], [0.1, 0.9, 0.0], [0.3, 0.2, 0.5]]
    assert np.allclose(human_matrix(torch.from_numpy(votes)), expected)


# ---- the command


def test_pca_of_logits_is_that_of_scikit_learn(base: Path, tmp_path: Path) -> None:
    names = ["class3", "class0", "class1"]
    found = drawn(tmp_path, "pca", base / "ce", base / "ols", "--classes", *names, files="svg pdf png")
    assert [run["title"] for run in found["runs"]] == ["ce", "ols"]
    logits, labels = logits_of(base / "ols", tmp_path)
    chosen = np.isin(labels, (0, 1, 3))
    expected = PCA(2, svd_solver="full").fit_transform(logits[chosen].astype(np.float64))
    points = np.array(found["runs"][1]["points"])
    assert np.allclose(np.abs(points), np.abs(expected), atol=1e-6)
    assert found["runs"][1]["labels"] == [{3: 0, 0: 1, 1: 2}[k] for k in labels[chosen]]
    svg = (tmp_path / "x.svg").read_text()
    assert all(f">{name}</text>" in svg for name in (*names, "ce", "ols"))
    assert (tmp_path / "x.pdf").read_bytes().startswith(b"%PDF")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_tsne_is_a_function_of_its_seed(base: Path, tmp_path: Path) -> None:
    argv = ("tsne", base / "ce", "--classes", "class0", "class1", "--perplexity", 4)
    first = drawn(tmp_path, *argv)
    assert first == drawn(tmp_path, *argv)
    assert (first["perplexity"], first["seed"], first["of"]) == (4, 0, "logits")
    logits, labels = logits_of(base / "ce", tmp_path)
    expected = TSNE(perplexity=4, random_state=0).fit_transform(logits[labels < 2])
    assert np.allclose(first["runs"][0]["points"], expected)
    assert np.array(first["runs"][0]["points"]).shape == (10, 2)


def test_the_sheet_has_two_runs_a_row(base: Path, tmp_path: Path) -> None:
    runs = [base / name for name in ("ce", "ols", "ols", "ce")]
    titles = ["T=1 a=0", "T=1 a=0.1", "T=2 a=0", "T=2 a=0.1"]
    found = drawn(tmp_path, "projection", *runs, "--classes", "class0", "class1", "class2", "--titles", *titles)
    assert len(found["runs"][0]["train"]["points"]) == 24
    assert len(found["runs"][0]["val"]["centroids"]) == 3
    assert found["runs"][0]["val"] == found["runs"][3]["val"]
    shown = re.findall(r">(T=[^<]*)</text>", (tmp_path / "x.svg").read_text())
    assert shown == [f"T={t} a={a}, {s}" for t in (1, 2) for s in ("training", "validation") for a in ("0", "0.1")]


def test_the_diffusion_of_two_runs(base: Path, tmp_path: Path) -> None:
    classes = ("--target", "class0", "--similar", "class1", "--dissimilar", "class2", "class3")
    found = drawn(tmp_path, "diffusion", base / "ce", base / "ols", base / "ce", *classes)
    assert [run["title"] for run in found["runs"]] == ["ols", "ce"]
    assert found["runs"][1]["index"] == {"similar": 0.0, "dissimilar": 0.0}
    assert found["runs"][0]["index"]["similar"] != 0
    assert found["definition"].startswith("our definition")


def test_the_matrix_of_ols(base: Path, tmp_path: Path) -> None:
    own = drawn(tmp_path, "ols", base / "ols", "--checkpoint", "last")
    content = torch.load(sorted((base / "ols/checkpoints").glob("step-*.pt"))[-1], weights_only=True)
    assert torch.tensor(own["runs"][0]["matrix"]).allclose(content["parts"]["method"]["matrix"])
    assert own["classes"] == [f"class{k}" for k in range(5)]
    votes = np.eye(5)[[0, 1, 2, 3, 4]] * 0.9 + 0.02
    np.save(tmp_path / "votes.npy", votes)
    found = drawn(tmp_path, "ols", base / "ce", "--collect", "val", "--human", tmp_path / "votes.npy")
    logits, labels = logits_of(base / "ce", tmp_path)
    p = softmax(logits.astype(np.float64), axis=1)
    right = p.argmax(1) == labels
    own = [p[right & (labels == k)] for k in range(5)]
    expected = np.stack([rows.mean(0) if len(rows) else np.full(5, 0.2) for rows in own])
    matrix = np.array(found["runs"][0]["matrix"])
    assert np.allclose(matrix, expected, atol=1e-6)
    kl = (votes * np.log(votes / expected)).sum(1).mean()
    assert found["runs"][0]["human"]["kl"] == pytest.approx(kl, rel=1e-5)
    assert len(found["runs"][0]["nearest"]["class0"]) == 3
    assert torch.allclose(right_means(torch.from_numpy(logits), torch.from_numpy(labels)), torch.from_numpy(expected))


def test_spread_of_a_run(base: Path, tmp_path: Path) -> None:
    found = drawn(tmp_path, "spread", base / "ce", base / "ols", "--most", 4)
    assert [len(run["spread"]) for run in found["runs"]] == [5, 5]
    assert min(found["runs"][0]["spread"]) > 0


def test_the_projector_reads_features_and_classes(base: Path, tmp_path: Path) -> None:
    tensorboard = base / "ce/tensorboard"
    assert start(arguments().parse_args(["projector", str(base / "ce"), "--most", "4"])) == 0
    config = (tensorboard / "projector_config.pbtxt").read_text()
    files = dict(re.findall(r'(tensor_path|metadata_path): "(.*)"', config))
    vectors = np.loadtxt(tensorboard / files["tensor_path"], delimiter="\t")
    labels = (tensorboard / files["metadata_path"]).read_text().splitlines()
    assert len(vectors) == len(labels) == 20
    assert [labels.count(f"class{k}") for k in range(5)] == [4] * 5
    names = [f"class{k}" for k in range(5)]
    found = drawn(tmp_path, "pca", base / "ce", "--classes", *names, "--most", 4, "--of", "features")
    expected = PCA(2).fit_transform(vectors)
    points = np.array(found["runs"][0]["points"])
    assert np.abs(points) == pytest.approx(np.abs(expected), abs=1e-3)
    both = ["projector", str(base / "ce"), str(base / "ols"), "--of", "logits", "--into", str(tmp_path / "both")]
    assert start(arguments().parse_args(both)) == 0
    config = (tmp_path / "both/projector_config.pbtxt").read_text()
    tables = re.findall(r'tensor_path: "(.*)"', config)
    logits = [np.loadtxt(tmp_path / "both" / table, delimiter="\t") for table in tables]
    assert logits[0] == pytest.approx(logits_of(base / "ce", tmp_path)[0], rel=1e-4)
    assert logits[1] == pytest.approx(logits_of(base / "ols", tmp_path)[0], rel=1e-4)


def make_here(argv: list[str]) -> None:
    make(arguments().parse_args(argv), CPU)


@pytest.mark.ranks
def test_two_ranks_read_the_same(base: Path, tmp_path: Path, on_ranks) -> None:
    argv = ["spread", str(base / "ce"), "evaluate.batch=4"]
    alone = drawn(tmp_path, *argv)
    on_ranks(2, make_here, [*argv, "--out", str(tmp_path / "two.json")])
    assert json.loads((tmp_path / "two.json").read_text()) == alone


def test_what_cannot_be_drawn_is_said(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ce = base / "ce"
    two = ("--classes", "class0", "class1")
    assert "the ending says the format: .svg, .pdf, .png, .json" in said(capsys, "pca", ce, *two, "--out", "x.gif")
    assert "there is no folder" in said(capsys, "pca", ce, *two, "--out", tmp_path / "none/x.svg")
    out = ("--out", tmp_path / "x.json")
    assert "needs more than 10 images: give a smaller one" in said(capsys, "tsne", ce, *two, *out)
    assert "did you mean class0?" in said(capsys, "pca", ce, "--classes", "clas0", *out)
    assert "keeps no matrix of OLS: add --collect val" in said(capsys, "ols", ce, *out)
    classes = ("--target", "class0", "--similar", "class1", "--dissimilar", "class2")
    assert "name two or more" in said(capsys, "diffusion", ce, *classes, *out)
    assert "--titles names 1 runs, and these are 2" in said(capsys, "spread", ce, ce, "--titles", "a", *out)
    assert "two runs a row" in said(capsys, "projection", ce, ce, ce, "--classes", "class0", "class1", "class2", *out)
    assert "draws nothing: leave out --out" in said(capsys, "projector", ce, *out)
    (tmp_path / "votes.npy").write_bytes(b"none")
    votes = ("--collect", "val", "--human", tmp_path / "votes.npy")
    assert "cannot be read: give cifar10h-probs.npy" in said(capsys, "ols", ce, *votes, *out)
