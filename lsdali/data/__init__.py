"""Data sets, from files on disk to batches on the device.

io (bytes, headers, cache) and sampling (pure functions: order, crops, augmentations) stand alone; sets says what a data
set is; index scans it once; pipeline delivers batches. Only pipeline.graph and pipeline.dali_ops import nvidia.dali.
"""

from lsdali import parts
from lsdali.data.sets.arrays import ARRAYS
from lsdali.data.sets.catalog import DataSet, Digits, Folder, ImageNet, TinyImageNet
from lsdali.data.sets.finegrained import LISTS
from lsdali.data.sets.gaussians import Gaussians
from lsdali.data.sets.shards import Shards

DATASETS: dict[str, type[DataSet]] = {
    "folder": Folder,
    "imagenet": ImageNet,
    "tinyimagenet": TinyImageNet,
    "digits": Digits,
    "gaussians": Gaussians,
    "shards": Shards,
    **ARRAYS,
    **LISTS,
}

parts.opened("DATASETS", DATASETS, "data set", parts.tagged(DataSet, lambda kind: kind))
