"""Data sets, from files on disk to batches on the device.

io (bytes, headers, cache) and sampling (pure functions: order, crops, augmentations) stand alone; sets says what a data
set is; index scans it once; pipeline delivers batches. Only pipeline.graph and pipeline.dali_ops import nvidia.dali.
"""

from lsdali import parts
from lsdali.data.sets.catalog import DataSet

SETS = (
    "catalog",
    "gaussians",
    "shards",
    "arrays",
    "finegrained",
)
"""Files in sets/, each with a dict DATA_SETS."""

DATASETS: dict[str, type[DataSet]] = parts.from_files("lsdali.data.sets", SETS, "DATA_SETS")
parts.opened("DATASETS", DATASETS, "data set", parts.tagged(DataSet, lambda kind: kind))
