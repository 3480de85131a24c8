"""Settings of data sets whose loaders give pixels as level / 255."""

from lsdali.data.sets.catalog import CenterCrop, RandomResizedCrop

PLAIN: dict[str, object] = {
    "train": RandomResizedCrop(size=32),
    "eval": CenterCrop(resize=36, size=32),
    "mean": (0.0, 0.0, 0.0),
    "std": (1.0, 1.0, 1.0),
    "threads": 2,
    "max_bad_files": 100,
}
