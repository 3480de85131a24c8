"""Data sets, from files on disk to batches on the device.

catalog, arrays, lists, finegrained and shards (what a data set is) -> index (one cached scan), splits (which samples
and labels) -> order and windows (who reads what when, and which part of it) -> graph and runner (the DALI pipelines),
loader and resident (batches) -> choose (which of the two).
Only graph and loader import nvidia.dali.
"""

from lsdali.data.arrays import ARRAYS
from lsdali.data.catalog import DataSet, Digits, Folder, ImageNet, TinyImageNet
from lsdali.data.finegrained import LISTS
from lsdali.data.shards import Shards

DATASETS: dict[str, type[DataSet]] = {
    "folder": Folder,
    "imagenet": ImageNet,
    "tinyimagenet": TinyImageNet,
    "digits": Digits,
    "shards": Shards,
    **ARRAYS,
    **LISTS,
}
