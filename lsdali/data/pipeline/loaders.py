"""From a recipe's data to an index, and to the loader that suits it: DALI, or images held on the device.

`open_dataset` decides which, once; `Index.held` says what it decided.
"""

from dataclasses import replace

import torch

from lsdali import dist
from lsdali.data.index.decode_cache import decode, one_size
from lsdali.data.index.index import as_begun, open_whole, select
from lsdali.data.index.stored import Log
from lsdali.data.pipeline.loader import EvalLoader, TrainLoader
from lsdali.data.pipeline.options import LoaderOptions
from lsdali.data.pipeline.resident import ResidentEval, ResidentTrain, obstacle
from lsdali.data.sets.catalog import DataSet, Files
from lsdali.data.sets.listing import Split
from lsdali.data.sets.sample_index import Index
from lsdali.errors import UserError


def open_dataset(config: DataSet, split: Split, log: Log = print, begun: str | None = None) -> Index:
    """Return the samples that the recipe uses of one split, with their pixels if they are to be held on the device.

    `begun` is the fingerprint of the training set with which a run began that is to go on: files that are gone since
    are marked as missing, so that the others keep their numbers.

    Holding images changes no pixel on a CPU, so `auto` may decide otherwise on another machine. Arrays whose images
    cannot be held go through DALI.
    Raises UserError for a wrong layout or choice, and if images must be held and cannot. Collective.
    """
    index = open_whole(config, split, log)
    if begun is not None:
        index = as_begun(config, split, index, begun)
    if (left_out := index.left_out.describe()) and dist.is_main():
        log(f"{split} folders hold what is no data; {left_out}; lsdali scan names them")
    if isinstance(config, Files):
        return _held(config, split, select(config, split, index), index, log)
    why = obstacle(config, split, index)
    index = replace(index, held=index.pixels is not None and not why)
    if why and dist.is_main():
        log(f"{split} images go through DALI: {why}")
    return select(config, split, index)


def _held(config: Files, split: Split, index: Index, whole: Index, log: Log) -> Index:
    """The samples in use of a whole split, with their pixels if config.resident wants and allows it."""
    if config.resident == "never":
        return index
    size = one_size(index)
    if config.resident == "auto" and (size is None or 3 * size[0] * size[1] * len(index) > config.resident_bytes):
        return index
    why = obstacle(config, split, index)
    if not why:
        index, why = decode(index, whole, log)
        index = replace(index, held=not why)
    if config.resident == "always" and why:
        raise UserError(f"data.resident: {split} images cannot be held on the device: {why}; use auto or never")
    if dist.is_main():
        log(f"{split} images are {f'read by DALI: {why}' if why else 'held on the device'}")
    return index


def train_loader(index: Index, config: DataSet, options: LoaderOptions) -> TrainLoader | ResidentTrain:
    """Return the loader of training batches."""
    kind = ResidentTrain if index.held else TrainLoader
    return kind(index, config, options)


def eval_loader(
    index: Index, config: DataSet, *, batch: int, device: torch.device, half: bool
) -> EvalLoader | ResidentEval:
    """Return the loader of validation batches; `batch` is per process."""
    kind = ResidentEval if index.held else EvalLoader
    return kind(index, config, batch=batch, device=device, half=half)
