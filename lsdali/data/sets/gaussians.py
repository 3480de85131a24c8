"""Points in the plane as images of one pixel: the synthetic study of IBLS, whose every probability is known."""

from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from lsdali.config import PathText
from lsdali.data.io.cache import cache_dir
from lsdali.data.sets.catalog import CenterCrop, Channels, DataSet, PadCrop, TrainCrop
from lsdali.data.sets.listing import Split
from lsdali.data.sets.sample_index import Index

Floats = NDArray[np.float64]
Region = Literal["all", "dense", "sparse"]

CORNERS = ("north", "southwest", "southeast")
ANGLES = np.deg2rad([90, 210, 330])
SHARES, RADII, SIGMAS = (0.8, 0.2), (1.7, -2.7), (1.0, 0.6)
"""Of the dense and the sparse part of each class. A class's sparse part lies behind the other two, as seen from it."""
REACH = 8.0  # from -REACH to REACH, 256 levels
TRAIN, TEST = 100, 5000  # points of each class


class Gaussians(DataSet):
    """Points of three classes, each of a dense and a sparse Gaussian (80 and 20 %), for the study of IBLS (2021).

    100 points a class to train (in the study, a half of them is held out to validate) and 5,000 to test. The paper's
    appendix gives numbers of points and shares; its means and variances are in figures only, so these are ours, with a
    best possible accuracy of 82 % as there.
    A point is an image of one pixel: red and green are its coordinates from -8 to 8 in 256 levels, blue is 0.
    """

    name: Literal["gaussians"] = "gaussians"
    root: PathText = Field(default_factory=lambda: str(cache_dir() / "gaussians"))
    """A folder; nothing is written into it."""
    draw: int = Field(0, ge=0, le=1_000_000_000)
    """Seed of the points."""
    part: Region = "all"
    """Which test points: all, or those of the dense or of the sparse parts."""
    train: TrainCrop = PadCrop(size=1, pad=0, flip=0.0)
    eval: CenterCrop = CenterCrop(resize=1, size=1)
    mean: Channels = (0.5, 0.5, 0.0)
    std: Channels = (0.125, 0.125, 1.0)

    def listing(self, split: Split) -> Index:
        root = Path(self.root)
        root.mkdir(parents=True, exist_ok=True)
        points, labels = draw_points(self.draw, "train" if split == "train" or self.holdout else self.part)
        paths = np.array([f"{self.part}{self.draw}-{split}#{n}" for n in range(len(labels))], "S")
        return Index(root, paths.astype(f"S{paths.itemsize + 1}"), labels, CORNERS, pixels=to_pixels(points))

    def layout(self) -> tuple[str, ...]:
        return (str(self.draw), "train" if self.holdout else self.part)


def centres() -> Floats:
    """Return [3, 2, 2]: x and y of the dense and of the sparse part of each class."""
    directions = np.stack([np.cos(ANGLES), np.sin(ANGLES)], 1)
    middles: Floats = directions[:, None] * np.array(RADII)[:, None]
    return middles


def draw_points(draw: int, part: str) -> tuple[Floats, NDArray[np.int64]]:
    """Return [N, 2] points and [N] labels of the training points, or of all, dense or sparse test points."""
    train = part == "train"
    count = TRAIN if train else TEST
    random = np.random.Generator(np.random.Philox(key=[draw, 0 if train else 1]))
    labels = np.repeat(np.arange(len(CORNERS)), count)
    kind = (random.random(len(labels)) < SHARES[1]).astype(np.int64)
    noise = random.standard_normal((len(labels), 2)) * np.array(SIGMAS)[kind][:, None]
    points = centres()[labels, kind] + noise
    kept = kind == {"dense": 0, "sparse": 1}[part] if part in ("dense", "sparse") else np.ones(len(kind), bool)
    return points[kept], labels[kept]


def to_pixels(points: Floats) -> NDArray[np.uint8]:
    """Map [N, 2] -> [N, 1, 1, 3], rounded to the nearest level."""
    levels = np.clip(np.round((points + REACH) * 255 / (2 * REACH)), 0, 255).astype(np.uint8)
    return np.concatenate([levels, np.zeros_like(levels[:, :1])], 1)[:, None, None]


DATA_SETS = {"gaussians": Gaussians}
