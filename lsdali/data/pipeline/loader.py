"""Loaders: from an index to batches.

Because order and crops are functions of the step, there is no state to save: a loader starts at any step.
When DALI reports an error, the batch is known, so its files are decoded one at a time, the bad ones are
named, and the pipeline is built anew from that very batch.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lsdali import dist
from lsdali.batch import Batch
from lsdali.clock import PerEpoch
from lsdali.data.io.header import FAULTS, GOOD
from lsdali.data.pipeline.dali_pipeline import BatchArrays, DaliPipeline
from lsdali.data.pipeline.decoder import decoder_report
from lsdali.data.pipeline.graph import GraphSpec, padded_graph, resized_graph
from lsdali.data.pipeline.options import LoaderOptions
from lsdali.data.pipeline.outage import Recovery
from lsdali.data.sampling.augment import draw_choices
from lsdali.data.sampling.crops import (
    center_crop,
    crop_uniforms,
    flips,
    mirrored,
    pad_crop,
    random_resized_crop,
    squared_crop,
)
from lsdali.data.sampling.sampler import Ints, Plan, eval_slices
from lsdali.data.sets.catalog import DataSet, PadCrop, SquaredCrop
from lsdali.data.sets.listing import few
from lsdali.data.sets.resizing import Resizing
from lsdali.data.sets.sample_index import Index
from lsdali.errors import UserError
from lsdali.limits import cpu_cores


class TrainLoader:
    """Training batches of this rank.

    The window and augmentation of a sample depend on (seed, epoch, sample, copy) alone, and the image size on
    the epoch: they are the same on any number of ranks and after any seek. A file that cannot be read keeps its
    position in the order; a stand-in fills it, the next readable sample of its class, and reports its own index and
    label. `options.log` gets one line for each bad file, on rank 0: at once if rank 0 met it, else at the
    epoch's end.

    Raises UserError if the batch does not fit ranks or data, if images are too small for the crop, or more than
    config.max_bad_files files are bad.
    """

    def __init__(self, index: Index, config: DataSet, options: LoaderOptions) -> None:
        self.index, self._config, self._seed, self._say = index, config, options.seed, options.log
        self._plan = Plan(
            np.asarray(index.labels), options.batch, dist.world(), options.seed, options.sampler, config.train.repeats
        )
        self._good = np.asarray(index.status) == GOOD
        self._bad = {int(i): FAULTS[index.status[i]] for i in index.bad()}
        self._stand_ins: dict[int, NDArray[np.bool_]] = {}  # of the steps that DALI was told
        self._found: dict[int, str] = {}  # by this rank, not yet told to the others
        self._refuse_many_bad()
        self._name(self._bad)
        if isinstance(config.train, PadCrop):
            _refuse_small(index, config.train)
        most = max(number for _, number in options.batch.spans) // dist.world()
        spec = _spec(index, config, batch=most, size=config.train.size, device=options.device, half=options.half)
        spec = replace(spec, augment=config.train.augment, **resizing(config.train))
        graph = padded_graph if isinstance(config.train, PadCrop) else resized_graph
        self._runner = DaliPipeline(index, graph, spec, self._arrays)
        on_gpu = options.device.type == "cuda" and config.decoder == "device" and index.form != "pixels"
        if on_gpu and dist.is_main():
            options.log(decoder_report().describe())
        self._recovery = Recovery(index, self._runner, config.wait_seconds, options.log)
        self._valid = torch.ones(most, dtype=torch.bool, device=options.device)

    @property
    def steps_per_epoch(self) -> PerEpoch:
        return self._plan.steps_per_epoch

    def epoch(self, step: int) -> Iterator[Batch]:
        """Yield batches from global step `step` to its epoch's end; cheap if `step` follows the last batch.

        Its end is a collective.
        """
        epoch, _ = self.steps_per_epoch.locate(step)
        stop = self.steps_per_epoch.before(epoch + 1)
        self._runner.seek(step)
        self._runner.resize(self._config.train.size_at(epoch))
        while self._runner.position < stop:
            try:
                images, index = self._runner.run()
            except RuntimeError as error:
                self._recover(error)
                continue
            batch = _batch(self.index, images, index, self._valid[: len(index)])
            stand_in = self._stand_ins.pop(self._runner.position - 1)
            # None where there is none: a memory of samples then writes whole rows, without a mask and its copy.
            yield replace(batch, stand_in=torch.from_numpy(stand_in)) if stand_in.any() else batch
        self._sync_bad_files()

    def close(self) -> None:
        """Free DALI's threads and memory."""
        self._runner.close()

    def _arrays(self, step: int) -> BatchArrays:
        """What the graph reads for one step of this rank."""
        planned = self._plan.indices(step, dist.rank())
        i = self._replaced(planned)
        self._stand_ins[step] = i != planned
        epoch, _ = self.steps_per_epoch.locate(step)
        crop, size = self._config.train, self.index.size[i]
        copy = self._plan.copies(epoch, dist.rank())
        key = i + len(self.index) * copy  # copies of a sample draw as samples beyond N
        images, mirror = self.index.images(i), flips(self._seed, epoch, key, crop.flip)
        u = crop_uniforms(self._seed, epoch, key)
        choices = draw_choices(crop.augment, self._seed, epoch, key, crop.size_at(epoch), copy == 0)
        if isinstance(crop, PadCrop):
            return images, i, pad_crop(u, size, crop.size, crop.pad), mirror, *choices
        if isinstance(crop, SquaredCrop):
            w = squared_crop(u, size, crop.resize, crop.size, crop.interpolation)
            return images, i, w.start, w.shape, *mirrored(w.low, w.high, mirror), *choices
        start, shape = random_resized_crop(u, size, crop.scale, crop.ratio)
        return images, i, start, shape, *mirrored(np.zeros(shape.shape), shape.astype(float), mirror), *choices

    def _replaced(self, index: Ints) -> Ints:
        """The samples, with a stand-in for each bad one: the next good one of its class, else of all."""
        out: Ints = index.copy()
        for k in np.flatnonzero(~self._good[index]):
            mates = np.flatnonzero(self._good & (self._plan.labels == self._plan.labels[index[k]]))
            if not len(mates):
                mates = np.flatnonzero(self._good)
            out[k] = mates[np.searchsorted(mates, index[k]) % len(mates)]
        return out

    def _recover(self, error: RuntimeError) -> None:
        for i, reason in self._recovery.bad_files(error).items():
            self._found[i] = self._bad[i] = reason
            self._good[i] = False
            self._name([i])
        self._refuse_many_bad()

    def _sync_bad_files(self) -> None:
        """Ranks tell each other what they found: rank 0 names it, no other rank meets it, and all count alike."""
        found = {i: reason for part in dist.gather_objects(self._found) for i, reason in part.items()}
        self._found = {}
        if not found:
            return
        if met_by_others := sorted(found.keys() - self._bad.keys()):
            self._bad |= found
            self._good[met_by_others] = False
            self._runner.close()  # batches prepared ahead hold them
            self._name(met_by_others)
        with dist.raise_together():
            self._refuse_many_bad()

    def _name(self, numbers: Iterable[int]) -> None:
        for i in numbers if dist.is_main() else ():
            self._say(f"bad file: {self.index.path(i)} ({self._bad[i]}); a stand-in is used")

    def _refuse_many_bad(self) -> None:
        most = self._config.bad_files_allowed(len(self.index))
        if len(self._bad) > most or not self._good.any():
            names = few([f"{self.index.path(i)} ({fault})" for i, fault in sorted(self._bad.items())])
            given = self._config.max_bad_files
            limit = f"{given}" if isinstance(given, int) else f"{given:g} of {len(self.index):,} files, which is {most}"
            raise UserError(
                f"{len(self._bad)} training files are bad, more than max_bad_files = {limit}: "
                f"{names}; repair or remove them, or raise max_bad_files"
            )


class BadImages(UserError):
    """Validation files cannot be read; `found` holds the numbers of those in the failed batch."""

    def __init__(self, faults: list[tuple[str, str]], found: Mapping[int, str] = MappingProxyType({})) -> None:
        names = few([f"{path} ({fault})" for path, fault in faults])
        super().__init__(f"validation data has bad files, {len(faults)} in all: {names}; repair or remove them")
        self.found = found


class EvalLoader:
    """This rank's part of the validation data, in order, as often as it is iterated; `batch` is per process.

    Ranks can have different numbers of batches, and a rank can have none. Raises UserError for bad files:
    numbers over part of the validation data would not compare.
    """

    def __init__(self, index: Index, config: DataSet, *, batch: int, device: torch.device, half: bool) -> None:
        self.index, self._config = index, config
        if faults := index.faults():
            raise BadImages(faults)
        self._slices = eval_slices(len(index), dist.rank(), dist.world(), batch)
        self._valid = [torch.from_numpy(valid).to(device) for _, valid in self._slices]
        spec = _spec(index, config, batch=batch, size=config.eval.size, device=device, half=half)
        spec = replace(spec, **resizing(config.eval))
        self._runner = DaliPipeline(index, resized_graph, spec, self._arrays)
        self._recovery = Recovery(index, self._runner, config.wait_seconds)

    def __len__(self) -> int:
        return len(self._slices)

    def __iter__(self) -> Iterator[Batch]:
        # The pipeline goes round: while one evaluation ends, the next one's first batches are prepared.
        if self._slices and self._runner.position % len(self):
            self._runner.seek(0)
        for valid in self._valid:
            yield _batch(self.index, *self._next(), valid)

    def _next(self) -> tuple[Tensor, Tensor]:
        while True:
            try:
                return self._runner.run()
            except RuntimeError as error:
                if bad := self._recovery.bad_files(error):
                    raise BadImages([(self.index.path(i), reason) for i, reason in bad.items()], bad) from None

    def close(self) -> None:
        """Free DALI's threads and memory."""
        self._runner.close()

    def _arrays(self, position: int) -> BatchArrays:
        i, _ = self._slices[position % len(self)]
        crop = self._config.eval
        w = center_crop(self.index.size[i], crop.resize, crop.size, crop.sides, crop.interpolation)
        low, high = w.low.astype(np.float32), w.high.astype(np.float32)
        return self.index.images(i), i, w.start, w.shape, low, high


def resizing(crop: Any) -> dict[str, Any]:
    """Return what a graph knows of how a crop resizes."""
    return crop.model_dump(include={"interpolation", "antialias"}) if isinstance(crop, Resizing) else {}


def _batch(index: Index, images: Tensor, i: Tensor, valid: Tensor) -> Batch:
    labels = torch.from_numpy(index.labels[i.numpy()])
    if images.is_cuda:
        labels = labels.pin_memory().to(images.device, non_blocking=True)
    return Batch(images, labels, i, valid)


def _spec(index: Index, config: DataSet, *, batch: int, size: int, device: torch.device, half: bool) -> GraphSpec:
    threads = config.threads or min(cpu_cores(dist.local_world()), 8)
    device_id = None if device.type == "cpu" else (device.index or 0)
    largest = int(index.size.astype(np.int64).prod(1).max())
    on_cpu = config.decoder == "cpu"
    return GraphSpec(
        batch,
        threads,
        config.prefetch or (2 if device_id is None else 3),
        device_id,
        half,
        size,
        config.mean,
        config.std,
        largest,
        images=index.form,
        way="window" if device_id is None or on_cpu else decoder_report().way,
        on_cpu=on_cpu,
        hw_decoder_load=config.hw_decoder_load,
        read_ahead=config.read_ahead,
        upright=config.exif_orientation,
    )


def _refuse_small(index: Index, crop: PadCrop) -> None:
    least = crop.size - 2 * crop.pad
    small = np.flatnonzero((np.asarray(index.status) == GOOD) & (np.asarray(index.size).min(1) < least))
    if len(small):
        width, height = index.size[small[0]]
        raise UserError(
            f"{index.path(int(small[0]))} has {width}x{height} pixels, too few for crop {crop.size} with pad "
            f"{crop.pad}; use random_resized or images of at least {least} pixels a side"
        )
