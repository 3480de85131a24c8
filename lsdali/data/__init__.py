"""Data sets, from files on disk to batches on the device.

catalog (what a data set is) -> index (one cached scan) -> order and windows (who reads what when, and which
part of it) -> graph, runner (the DALI pipelines) -> loader (batches). Only graph and loader import
nvidia.dali.
"""

from lsdali.data.catalog import DATASETS

__all__ = ["DATASETS"]
