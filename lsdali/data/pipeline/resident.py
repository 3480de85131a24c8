"""Small images held on the device as one uint8 tensor: pad-crop, flip and normalisation without DALI.

The same order, crops and batches as loader.py, to the bit on the CPU. What would resize an image stays with
DALI: `obstacle` says what.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from lsdali import dist
from lsdali.batch import Batch
from lsdali.clock import PerEpoch
from lsdali.data.index.decode_cache import one_size
from lsdali.data.pipeline.options import LoaderOptions
from lsdali.data.sampling.crops import center_crop, crop_uniforms, flips, pad_crop
from lsdali.data.sampling.sampler import Ints, Plan, eval_slices
from lsdali.data.sets.catalog import DataSet, PadCrop
from lsdali.data.sets.listing import Split
from lsdali.data.sets.sample_index import Index


def obstacle(config: DataSet, split: Split, index: Index) -> str:
    """Return why the data cannot be held on the device bit-identically to DALI; empty if it can."""
    size = one_size(index)
    if size is None:
        return "the images have different sizes, or some are bad"
    if config.exif_orientation:
        return "data.exif_orientation needs DALI"
    if split == "val":
        if config.eval.resize != min(size) or (config.eval.sides == "both" and size[0] != size[1]):
            return f"data.eval.resize {config.eval.resize} resizes images of {size[0]}x{size[1]} pixels"
        return ""
    if not isinstance(config.train, PadCrop):
        return f"data.train.crop {config.train.crop} resizes images; pad does not"
    if config.train.augment or config.train.repeats > 1 or config.train.ramp is not None:
        return "data.train.augment, repeats and ramp need DALI"
    least = config.train.size - 2 * config.train.pad
    if min(size) < least:
        return f"images of {size[0]}x{size[1]} pixels are too small for crop {config.train.size}"
    return ""


class ResidentTrain:
    """Training batches of this rank, as TrainLoader gives them.

    Raises UserError if the batch does not fit ranks or data.
    """

    def __init__(self, index: Index, config: DataSet, options: LoaderOptions) -> None:
        assert isinstance(config.train, PadCrop), "obstacle() was not asked"
        device, batch = options.device, options.batch
        self.index, self._crop, self._seed, self._device = index, config.train, options.seed, device
        self._plan = Plan(np.asarray(index.labels), batch, dist.world(), options.seed, options.sampler)
        side, pad = self._crop.size, self._crop.pad
        images = _on_device(index, device, pad)
        # [N, y, x, side, side, C]: every window is a view
        self._windows = images.unfold(1, side, 1).unfold(2, side, 1).permute(0, 1, 2, 4, 5, 3)
        self._labels = torch.from_numpy(np.array(index.labels)).to(device)
        self._normalise = Normalise(config, side, device, options.half)
        self._valid = torch.ones(max(n for _, n in batch.spans) // dist.world(), dtype=torch.bool, device=device)

    @property
    def steps_per_epoch(self) -> PerEpoch:
        return self._plan.steps_per_epoch

    def epoch(self, step: int) -> Iterator[Batch]:
        """Yield batches from global step `step` to its epoch's end."""
        epoch, _ = self.steps_per_epoch.locate(step)
        for position in range(step, self.steps_per_epoch.before(epoch + 1)):
            yield self._batch(epoch, self._plan.indices(position, dist.rank()))

    def close(self) -> None:
        """Do nothing: there is nothing to stop."""

    def _batch(self, epoch: int, i: Ints) -> Batch:
        crop = self._crop
        start = pad_crop(crop_uniforms(self._seed, epoch, i), self.index.size[i], crop.size, crop.pad) + crop.pad
        images = _picked(self._windows, np.column_stack([i, start]))
        mirror = np.flatnonzero(flips(self._seed, epoch, i, crop.flip))  # known here: the device need not be asked
        if len(mirror):
            _mirror(images, mirror)
        labels = self._labels[_to(i, self._device)]
        return Batch(self._normalise(images), labels, torch.from_numpy(i), self._valid[: len(i)])


class ResidentEval:
    """This rank's part of the validation data, as EvalLoader gives it; `batch` is per process."""

    def __init__(self, index: Index, config: DataSet, *, batch: int, device: torch.device, half: bool) -> None:
        self.index = index
        self._slices = eval_slices(len(index), dist.rank(), dist.world(), batch)
        self._valid = [torch.from_numpy(valid).to(device) for _, valid in self._slices]
        side = config.eval.size
        window = center_crop(index.size[:1], config.eval.resize, side, config.eval.sides)
        y, x = np.rint(window.start + window.low)[0].astype(int).tolist()
        images = _on_device(index, device, 0)
        self._images = images[:, y : y + side, x : x + side].contiguous()
        self._labels = torch.from_numpy(np.array(index.labels)).to(device)
        self._normalise = Normalise(config, side, device, half)

    def __len__(self) -> int:
        return len(self._slices)

    def __iter__(self) -> Iterator[Batch]:
        for (i, _), valid in zip(self._slices, self._valid, strict=True):
            rows = _to(i, self._images.device)
            yield Batch(self._normalise(self._images[rows]), self._labels[rows], torch.from_numpy(i), valid)

    def close(self) -> None:
        """Do nothing: there is nothing to stop."""


class Normalise:
    """[B, S, S, 1 or 3] uint8 -> [B, 3, S, S] float, channels last; the operations and the roundings of DALI."""

    def __init__(self, config: DataSet, side: int, device: torch.device, half: bool) -> None:
        self._dtype = torch.float16 if half else torch.float32
        self._mean = torch.tensor([255 * m for m in config.mean], device=device).repeat(side * side)
        self._scale = (1 / torch.tensor([255 * s for s in config.std], device=device)).repeat(side * side)

    def __call__(self, images: Tensor) -> Tensor:
        b, h, w, _ = images.shape
        # Whole rows: a last dimension of three is slow to broadcast.
        flat = images.expand(b, h, w, 3).float().reshape(b, -1).sub_(self._mean).mul_(self._scale)
        return flat.view(b, h, w, 3).to(self._dtype).permute(0, 3, 1, 2)


def _on_device(index: Index, device: torch.device, pad: int) -> Tensor:
    """[N, H + 2 pad, W + 2 pad, 1 or 3] uint8, black around each image."""
    assert index.pixels is not None, "the images are not decoded"
    _, h, w, c = index.pixels.shape
    out = torch.zeros(len(index), h + 2 * pad, w + 2 * pad, c, dtype=torch.uint8, device=device)
    for start in range(0, len(index), 4096):  # in parts: fancy indexing copies
        part = torch.from_numpy(index.pixels[index.numbers[start : start + 4096]])
        out[start : start + 4096, pad : pad + h, pad : pad + w] = part.to(device)
    return out


def _picked(windows: Tensor, offsets: Ints) -> Tensor:
    """[N, y, x, side, side, C] views, [B, 3] sample, y and x -> [B, side, side, C]."""
    if windows.device.type == "cpu":  # NumPy copies rows of a window, torch single bytes: ten times the time
        return torch.from_numpy(windows.numpy()[tuple(offsets.T)])
    return windows[tuple(_to(offsets, windows.device).T)]


def _mirror(images: Tensor, rows: Ints) -> None:
    """Flip these of the images [B, side, side, C], in place."""
    where = _to(rows, images.device)
    flipped = images.index_select(0, where).flip(2)
    if images.device.type == "cpu":  # as above
        images.numpy()[rows] = flipped.numpy()
    else:
        images[where] = flipped


def _to(array: Ints, device: torch.device) -> Tensor:
    host = torch.from_numpy(array)
    return host if device.type == "cpu" else host.pin_memory().to(device, non_blocking=True)
