"""Small image trees, and a cache folder of each test's own."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lsdali import dist
from lsdali.data.sets.catalog import Folder
from tests.data.plain import PLAIN

Texture = Callable[..., Image.Image]
Tree = Callable[..., Path]
Plain = Callable[..., Folder]
AsRank = Callable[[int, int], None]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSDALI_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def as_rank(monkeypatch: pytest.MonkeyPatch) -> AsRank:
    """(rank, world): let this process think that it is one of several."""

    def pretend(rank: int, world: int) -> None:
        monkeypatch.setattr(dist, "rank", lambda: rank)
        monkeypatch.setattr(dist, "world", lambda: world)

    return pretend


@pytest.fixture
def texture() -> Texture:
    """(width, height, seed) -> an RGB image with waves, edges and a little noise."""

    def make(width: int, height: int, seed: int = 0) -> Image.Image:
        rng = np.random.default_rng(seed)
        y, x = np.mgrid[:height, :width]
        planes = []
        for _ in range(3):
            a, b, c = rng.uniform(0.02, 0.4, 3)
            plane = 128 + 60 * np.sin(a * x + b * y) + 40 * np.sign(np.sin(c * (x - y)))
            planes.append(plane + rng.normal(0, 6, plane.shape))
        return Image.fromarray(np.clip(np.stack(planes, -1), 0, 255).astype(np.uint8))

    return make


@pytest.fixture
def tree(tmp_path: Path, texture: Texture) -> Tree:
    """(images a class, classes, validation images a class, side) -> root of train and val folders."""

    def make(each: int = 12, classes: tuple[str, ...] = ("ant", "bee"), val: int = 4, side: int = 48) -> Path:
        for split, count in (("train", each), ("val", val)):
            for c, name in enumerate(classes):
                folder = tmp_path / "images" / split / name
                folder.mkdir(parents=True)
                for i in range(count):
                    wide = side + 7 * (i % 3)
                    image = texture(wide, side + 5 * (i % 2), 1000 * c + i + (500 if split == "val" else 0))
                    image.save(folder / f"{i:03d}.jpg", quality=92)
        return tmp_path / "images"

    return make


@pytest.fixture
def plain() -> Plain:
    """(root, more settings) -> a Folder whose loaders give pixels as level / 255."""

    def make(root: Path, **more: object) -> Folder:
        return Folder(root=str(root), **(PLAIN | more))  # type: ignore[arg-type]

    return make
