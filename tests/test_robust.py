"""Shifts, noise and attacks: each against another formulation, and the same digits on any number of processes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lsdali.batch import Batch
from lsdali.build import build
from lsdali.evaluate import perturb
from lsdali.evaluate.__main__ import evaluate, parse, start
from lsdali.evaluate.robust import agreement_figures, along_diagonal, diagonal_figures, parse_disturbance
from lsdali.evaluate.runs import open_run, open_samples, read_outputs
from lsdali.events import Events
from lsdali.metrics import score
from lsdali.recipe import Recipe
from lsdali.state.checkpoint import Checkpoints
from tests.harness import make_images, tiny

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
CPU = torch.device("cpu")
ALL = ("shift", "diagonal", "noise:16", "fgsm:4", "pgd:4:1:3")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on 16 pixels, of images of 20."""
    base = tmp_path_factory.mktemp("robust")
    make_images(base / "images", size=20)
    tree = tiny({"name": "ce"}, base / "images", base / "run")
    tree["data"]["eval"] = {"resize": 20, "size": 16}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LSDALI_CACHE", str(base / "cache"))
        checkpoints = Checkpoints(base / "run/checkpoints", 2, print)
        build(Recipe.model_validate(tree), base / "run", CPU, checkpoints, Events([])).run()
    return base


@pytest.fixture(autouse=True)
def cache(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSDALI_CACHE", str(base / "cache"))


def to_net(pixels: Tensor) -> Tensor:
    """Pixels in 0..1, normalised."""
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (MEAN, STD))
    return (pixels - mean) / std


def to_pixels(images: Tensor) -> Tensor:
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (MEAN, STD))
    return images * std + mean


def batch_of(pixels: Tensor, labels: list[int], first: int = 0) -> Batch:
    count = len(pixels)
    numbers = torch.arange(first, first + count)
    return Batch(to_net(pixels), torch.tensor(labels), numbers, torch.ones(count, dtype=torch.bool))


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 4)
    network = nn.Sequential(*layers).double()
    network(torch.randn(16, 3, 8, 8, dtype=torch.float64))
    return network.eval()


@pytest.fixture
def batch() -> Batch:
    g = torch.Generator().manual_seed(1)
    return batch_of(torch.rand(6, 3, 8, 8, generator=g, dtype=torch.float64), [0, 1, 2, 3, 0, 1])


LEVELS = perturb.Levels.of((MEAN, STD), CPU)


def pgd_twin(network: nn.Module, pixels: Tensor, labels: Tensor, size: float, step: float, steps: int) -> Tensor:
    """Madry's attack on pixels in 0..1, one image at a time, with an optimizer's view of the gradient."""
    out = []
    for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        start = np.random.Generator(np.random.Philox(key=[107, number])).uniform(-1, 1, image.shape)
        moved = (image + size * torch.from_numpy(start.astype(np.float32))).clamp(0, 1)
        for _ in range(steps):
            moved = nn.Parameter(moved.detach())
            (-network(to_net(moved[None])).log_softmax(1)[0, label]).backward()
            moved = moved.detach() + step * moved.grad.sign()
            moved = (image + (moved - image).clamp(-size, size)).clamp(0, 1)
        out.append(moved)
    return torch.stack(out)


def test_pgd_is_that_of_a_loop_over_pixels(network: nn.Module, batch: Batch) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found = perturb.pgd(network, batch, LEVELS, 8, 2, 5)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())
    twin = pgd_twin(network, to_pixels(batch.images), batch.labels, 8 / 255, 2 / 255, 5)
    assert torch.allclose(to_pixels(found), twin, atol=1e-6)
    moved = (to_pixels(found) - to_pixels(batch.images)).abs()
    assert moved.max() <= 8 / 255 + 1e-6
    losses = [score(network(x), batch.labels)[:, 2] for x in (batch.images, found)]
    assert (losses[1] > losses[0]).all()


def test_fgsm_of_a_linear_network_is_known(batch: Batch) -> None:
    g = torch.Generator().manual_seed(2)
    weight = torch.randn(4, 192, generator=g, dtype=torch.float64)
    found = perturb.fgsm(lambda x: x.flatten(1) @ weight.T, batch, LEVELS, 3)
    p = (batch.images.flatten(1) @ weight.T).softmax(1)
    slope = (p - torch.eye(4)[batch.labels]) @ weight
    expected = (to_pixels(batch.images) + 3 / 255 * slope.reshape(batch.images.shape).sign()).clamp(0, 1)
    assert torch.allclose(to_pixels(found), expected, atol=1e-6)


def test_noise_belongs_to_the_image_and_not_to_the_batch() -> None:
    grey = torch.full((4, 3, 32, 32), 0.5, dtype=torch.float64)
    whole = perturb.gaussian(batch_of(grey, [0] * 4), LEVELS, 10)
    noise = 255 * (to_pixels(whole) - 0.5)
    assert noise.std().item() == pytest.approx(10, rel=0.03)
    assert abs(noise.mean().item()) < 0.5
    assert not torch.equal(noise[0], noise[1])
    assert torch.equal(perturb.gaussian(batch_of(grey[2:], [0] * 2, first=2), LEVELS, 10), whole[2:])
    white = perturb.gaussian(batch_of(torch.ones_like(grey), [0] * 4), LEVELS, 10)
    assert to_pixels(white).max() <= 1 + 1e-6


def test_agreement_of_a_published_example() -> None:
    """The four samples on which the code of OLS counts two agreements."""
    first = torch.eye(3)[[0, 1, 2, 0]]
    second = torch.eye(3)[[0, 2, 2, 1]]
    rows = torch.stack([first.argmax(1) == second.argmax(1), torch.ones(4), torch.zeros(4)], 1).float()
    assert agreement_figures(rows) == {"agreement": 50.0, "top1": 50.0}


def test_random_crops_lie_at_all_offsets() -> None:
    ramp = torch.arange(64.0).reshape(8, 8)
    pixels = ramp.expand(400, 3, 8, 8)
    batch = Batch(pixels, torch.zeros(400), torch.arange(400), torch.ones(400, dtype=torch.bool))
    first, second = perturb.random_crops(batch, 5)
    corners = torch.cat([first, second])[:, 0, 0, 0]
    assert set(corners.tolist()) == {8.0 * y + x for y in range(3) for x in range(3)}
    assert (first != second).flatten(1).any(1).float().mean() > 0.8
    y, x = divmod(int(corners[7]), 8)
    assert torch.equal(first[7, 1], ramp[y : y + 5, x : x + 5])


def test_diagonal_crops_by_hand(network: nn.Module) -> None:
    g = torch.Generator().manual_seed(3)
    batch = batch_of(torch.rand(5, 3, 10, 10, generator=g, dtype=torch.float64), [0, 1, 2, 3, 0])
    rows = along_diagonal(network, 8, batch).detach().reshape(5, 3, 4)
    found = diagonal_figures(rows)
    own, other, hits = [], [], []
    for k in range(3):
        p = network(batch.images[:, :, k : k + 8, k : k + 8]).softmax(1).detach().numpy()
        for row, label in zip(p, batch.labels.tolist(), strict=True):
            own.append(row[label])
            other.append(max(np.delete(row, label)))
            hits.append(row.argmax() == label)
    assert found["label_probability"] == pytest.approx(np.mean(own), rel=1e-5)
    assert found["other_probability"] == pytest.approx(np.mean(other), rel=1e-5)
    assert found["top1"] == pytest.approx(100 * np.mean(hits))
    assert found["top5"] == 100
    assert found["by_offset"]["label_probability"][1] == pytest.approx(np.mean(own[5:10]), rel=1e-5)


def arguments(base: Path, file: Path) -> list[str]:
    return [str(base / "run"), *(f"--robust={kind}" for kind in ALL), "--json", str(file)]


def evaluate_here(argv: list[str]) -> None:
    evaluate(parse(argv), CPU)


@pytest.mark.ranks
def test_figures_are_those_of_the_parts_on_any_number_of_ranks(base: Path, tmp_path: Path, on_ranks, capsys) -> None:
    file = tmp_path / "found.json"
    assert start(parse(arguments(base, file))) == 0
    found = json.loads(file.read_text())
    shift, diagonal = found["shifts"]
    assert f"shift consistency {shift['agreement']:.2f} %: two random crops of 16 from 20" in capsys.readouterr().out
    names = ["all", "Gaussian noise, sigma 16/255", "FGSM, 4/255"]
    assert [row["samples"] for row in found["rows"]] == [*names, "PGD, 4/255, 3 steps of 1/255, random start"]
    clean, _, fgsm, pgd = (row["metrics"]["nll"] for row in found["rows"])
    assert fgsm > clean
    assert pgd > clean
    assert len(diagonal["by_offset"]["top1"]) == 5
    # The crop in the middle of the diagonal is what the network sees otherwise.
    assert diagonal["by_offset"]["top1"][2] == pytest.approx(found["rows"][0]["metrics"]["top1"])
    other = tmp_path / "two.json"
    on_ranks(2, evaluate_here, arguments(base, other))
    assert json.loads(other.read_text()) == found


def test_arrays_of_each_image_have_the_means_that_are_told(base: Path, tmp_path: Path) -> None:
    file, arrays = tmp_path / "found.json", tmp_path / "found.npz"
    chosen = ["--robust", "shift", "--robust", "diagonal", "--predictions", str(arrays)]
    assert start(parse([str(base / "run"), *chosen, "--json", str(file)])) == 0
    shift, diagonal = json.loads(file.read_text())["shifts"]
    kept = np.load(arrays)
    count, crops = len(kept["labels"]), diagonal["of"] - diagonal["size"] + 1
    assert kept["shift_right"].shape == (count, 2)
    assert 100 * kept["shift_agree"].mean() == pytest.approx(shift["agreement"])
    assert 100 * kept["shift_right"].mean() == pytest.approx(shift["top1"])
    assert (kept["shift_agree"] >= kept["shift_right"].all(1)).all()
    for name, key, scale in (
        ("label_probability", "label_probability", 1),
        ("other_probability", "other_probability", 1),
        ("right", "top1", 100),
        ("right5", "top5", 100),
    ):
        array = kept[f"diagonal_{name}"]
        assert array.shape == (count, crops)
        assert scale * array.mean(0) == pytest.approx(diagonal["by_offset"][key], abs=1e-5)
    # In the middle of the diagonal lies what the network sees otherwise: the images in the order of their logits.
    logits = kept["logits"].astype(np.float64)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    own = p[np.arange(count), kept["labels"]]
    assert kept["diagonal_label_probability"][:, crops // 2] == pytest.approx(own, abs=1e-5)
    right = kept["diagonal_label_probability"] > kept["diagonal_other_probability"]
    assert (right == kept["diagonal_right"]).all()


def test_attacks_leave_the_network_as_it_was(base: Path) -> None:
    run = open_run(base / "run", "best", "model")
    samples = open_samples(run, [])
    first, labels, _ = read_outputs(run.network, 5, samples, CPU)
    before = {name: value.clone() for name, value in run.network.state_dict().items()}
    data = samples.recipe.data
    batch = Batch(torch.randn(4, 3, 16, 16), labels[:4], torch.arange(4), torch.ones(4, dtype=torch.bool))
    perturb.pgd(run.network, batch, perturb.Levels.of((data.mean, data.std), CPU), 8, 2, 3)
    assert all(torch.equal(value, before[name]) for name, value in run.network.state_dict().items())
    assert torch.equal(read_outputs(run.network, 5, samples, CPU)[0], first)


@pytest.mark.parametrize("text", ["pgd", "pgd:8:2:2.5", "fgsm:0", "noise:x", "shift:3", "blur:1", "pgd:1:2:3:4"])
def test_what_is_no_disturbance_is_said(base: Path, text: str, capsys) -> None:
    assert start(parse([str(base / "run"), "--robust", text])) == 2
    assert f"error: --robust {text}: write shift, diagonal, noise:SIGMA, fgsm:SIZE or pgd" in capsys.readouterr().err


def test_what_does_not_go_together_is_said(base: Path, capsys) -> None:
    assert start(parse([str(base / "run"), "--robust", "shift", "data.eval.size=20"])) == 2
    assert "--robust shift crops the images, but data.eval.resize and data.eval.size" in capsys.readouterr().err
    assert start(parse([str(base / "run"), "--robust", "shift", "--views", "flip"])) == 2
    assert "leave out --views" in capsys.readouterr().err


def test_the_usual_steps_of_pgd() -> None:
    one = parse_disturbance("pgd:8")
    assert (one.size, one.step, one.steps) == (8, 2, 10)
    assert parse_disturbance("noise:25.5").size == 25.5
