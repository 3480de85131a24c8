"""Made-up points in the plane: their law, their pixels, and the network for them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from torch import nn

from lsdali.data.index.index import open_index
from lsdali.data.pipeline.loaders import eval_loader, open_dataset
from lsdali.data.sets.gaussians import Gaussians, centres, draw_points
from lsdali.models import ModelConfig, build_network
from lsdali.sweep.cells import expand, load_sweep


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSDALI_CACHE", str(tmp_path / "cache"))


def test_the_best_possible_classifier() -> None:
    """By SciPy's densities it has the 82 % of the study on test points."""
    points, labels = draw_points(0, "all")
    density = np.zeros((len(points), 3))
    for k, (dense, sparse) in enumerate(centres()):
        density[:, k] = 0.8 * multivariate_normal(dense, 1.0).pdf(points)
        density[:, k] += 0.2 * multivariate_normal(sparse, 0.36).pdf(points)
    assert (density.argmax(1) == labels).mean() == pytest.approx(0.82, abs=0.01)


def test_the_parts_of_a_data_set() -> None:
    points, labels = draw_points(3, "all")
    assert np.bincount(labels).tolist() == [5000] * 3
    parts = [draw_points(3, part)[0] for part in ("dense", "sparse")]
    assert len(parts[1]) / len(points) == pytest.approx(0.2, abs=0.01)
    assert {*map(tuple, np.concatenate(parts))} == {*map(tuple, points)}
    sparse, own = draw_points(3, "sparse")
    away = sparse - centres()[own, 1]
    assert away.std(0) == pytest.approx([0.6, 0.6], rel=0.05)
    assert np.bincount(draw_points(3, "train")[1]).tolist() == [100] * 3
    assert not np.allclose(draw_points(4, "all")[0], points)


def test_a_point_is_a_pixel() -> None:
    data = Gaussians(draw=2, holdout={"fraction": 0.5})
    kept = [open_index(data, split) for split in ("train", "val")]
    assert [np.bincount(index.labels).tolist() for index in kept] == [[50] * 3, [50] * 3]
    assert not {*kept[0].numbers.tolist()} & {*kept[1].numbers.tolist()}
    test = Gaussians(draw=2, part="sparse")
    loader = eval_loader(open_dataset(test, "val", log=print), test, batch=512, device=torch.device("cpu"), half=False)
    images = torch.cat([batch.images[batch.valid] for batch in loader])
    loader.close()
    points, _ = draw_points(2, "sparse")
    assert images.shape == (len(points), 3, 1, 1)
    coordinates = (images[:, :2, 0, 0].double().numpy() * 0.125 + 0.5) * 16 - 8
    assert np.abs(coordinates - points).max() <= 8 / 255 + 1e-5
    assert not images[:, 2].any()


def test_the_network_is_a_row_of_linear_layers() -> None:
    network = build_network(ModelConfig(name="mlp"), 3)
    layers: list[nn.Module] = []
    weights = [p.detach().flatten(1) if p.ndim > 1 else p.detach() for p in network.parameters()]
    for weight, bias in zip(weights[::2], weights[1::2], strict=True):
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.load_state_dict({"weight": weight, "bias": bias})
        layers += [layer, nn.ReLU()]
    x = torch.randn(7, 3)
    assert torch.allclose(network(x[:, :, None, None]), nn.Sequential(*layers[:-1])(x), atol=1e-6)
    assert [layer.out_features for layer in layers[::2]] == [64] * 5 + [3]


def test_a_seed_of_a_sweep_names_its_data_set(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        "{epochs: 2, batch: 50, data: gaussians, model: mlp, method: ce, optimizer: {name: sgd, lr: 0.1}, "
        "schedule: constant}"
    )
    text = 'stages: {a: {recipe: r.yaml, set: {data.draw: "{seed}"}}}\nseeds: [4, 7]\ntables: {}\n'
    (tmp_path / "s.yaml").write_text(text)
    cells = expand(load_sweep(tmp_path / "s.yaml"), tmp_path / "s.yaml")
    assert [cell.recipe().data.draw for cell in cells] == [4, 7]  # type: ignore[attr-defined]
    assert not any(cell.needs for cell in cells)
