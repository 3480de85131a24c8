"""The DALI graphs. Nothing here is random: images, crops, flips and augmentations' choices come from Python.

One word decides the device: decoding is "mixed" on a GPU and "cpu" elsewhere, and later operators follow.
Against PIL, resized pixels agree within one grey level, except in the outermost row and column of a window
that touches the image's edge or was decoded alone: there DALI repeats pixels where PIL weighs fewer of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray
from nvidia.dali import backend, fn, pipeline_def, types

from lsdali.data.io.byte_range import Bytes
from lsdali.data.pipeline import dali_ops
from lsdali.data.pipeline.decoder import Way
from lsdali.data.sampling.augment.base import Augmentation
from lsdali.data.sets.sample_index import SampleForm

# What ImageNet's largest image takes, by NVIDIA's examples: bytes of device and of pinned memory a thread.
LARGEST_DEVICE, LARGEST_HOST = 211_025_920, 140_544_512

FILTERS = {"bilinear": types.INTERP_LINEAR, "bicubic": types.INTERP_CUBIC}

# DALI's BatchInfo -> arrays of one batch, [B, ...] each; bytes are lists of B arrays.
ArraySource = Callable[[Any], tuple[NDArray[Any] | list[NDArray[Any]], ...]]
Graph = Callable[[ArraySource, "GraphSpec"], Any]  # -> a pipeline


@dataclass(frozen=True, slots=True)
class GraphSpec:
    """What a pipeline is built from."""

    batch: int
    threads: int
    prefetch: int
    device_id: int | None  # None: no GPU
    half: bool
    size: int
    mean: tuple[float, float, float]  # of values in 0..1, as std
    std: tuple[float, float, float]
    largest: int  # pixels that no image exceeds
    augment: tuple[Augmentation, ...] = ()
    images: SampleForm = "paths"
    way: Way = "window"  # how a part of an image is decoded
    on_cpu: bool = False  # decode on the CPU, beside a GPU too
    read_ahead: int = 0  # batches whose files the system is told of before the graph asks for them
    hw_decoder_load: float | None = None  # share of images for the GPU's own JPEG engines; None: DALI's
    upright: bool = False  # turn images by their EXIF orientation
    interpolation: str = "bilinear"  # a key of FILTERS
    antialias: bool = True

    @property
    def decoder(self) -> dict[str, Any]:
        # jpeg_fancy_upsampling=True: the pixels that PIL and torchvision see.
        base = {"jpeg_fancy_upsampling": True, "adjust_orientation": self.upright}
        if self.device_id is None or self.on_cpu:
            return base | {"device": "cpu"}
        load = {} if self.hw_decoder_load is None else {"hw_decoder_load": self.hw_decoder_load}
        return (
            base
            | load
            | {
                "device": "mixed",
                "device_memory_padding": min(3 * self.largest, LARGEST_DEVICE),
                "host_memory_padding": min(2 * self.largest, LARGEST_HOST),
            }
        )

    @property
    def pipeline(self) -> dict[str, Any]:
        # A dict as prefetch_queue_depth would turn off the executor whose outputs are never overwritten.
        return {
            "batch_size": self.batch,
            "num_threads": self.threads,
            "device_id": self.device_id,
            "prefetch_queue_depth": self.prefetch,
            "enable_conditionals": bool(self.augment),
        }

    def augmented(self, after: str) -> list[Augmentation]:
        """Return the augmentations after the crop, or those after normalisation."""
        return [a for a in self.augment if a.after == after]

    @property
    def choices(self) -> int:
        """How many arrays the augmentations read."""
        return sum(a.outputs for a in self.augment)


def resized_graph(source: ArraySource, spec: GraphSpec) -> Any:
    """Build the graph from image, index, start, shape, low, high, choices to images [B, size, size, 3] and index.

    [start, start + shape), int32, is decoded, and [low, high), float32, of that resized; where low is above
    high in x, the image is mirrored.
    """
    return _resized(source, spec, **spec.pipeline)


def padded_graph(source: ArraySource, spec: GraphSpec) -> Any:
    """Build the graph from image, index, start, mirror, choices to images [B, size, size, 3] and index.

    The window that begins at start (int32) may reach beyond the image; there it is black.
    """
    return _padded(source, spec, **spec.pipeline)


@pipeline_def  # type: ignore[untyped-decorator]
def _resized(source: ArraySource, spec: GraphSpec) -> Any:
    image, index, start, shape, low, high, *choices = _inputs(source, spec, 6 + spec.choices)
    window = {"start": start, "shape": shape, "axis_names": "HW"}
    if spec.images == "pixels":
        x = fn.slice(_placed(image, spec), **window)
    elif spec.way == "whole":
        x = fn.slice(fn.decoders.image(_bytes(image, spec), **spec.decoder), **window)
    else:
        x = _moved(fn.decoders.image_slice(_bytes(image, spec), **window, **spec.decoder), spec)
    how = {"interp_type": FILTERS[spec.interpolation], "antialias": spec.antialias}
    x = fn.resize(x, size=[spec.size, spec.size], roi_start=low, roi_end=high, **how)
    return _finished(x, spec, choices), index


@pipeline_def  # type: ignore[untyped-decorator]
def _padded(source: ArraySource, spec: GraphSpec) -> Any:
    image, index, start, mirror, *choices = _inputs(source, spec, 4 + spec.choices)
    if spec.images == "pixels":
        x = _placed(image, spec)
    else:
        x = _moved(fn.decoders.image(_bytes(image, spec), **spec.decoder), spec)
    x = fn.slice(
        x,
        start=start,
        shape=[spec.size, spec.size],
        axis_names="HW",
        out_of_bounds_policy="pad",
        fill_values=0,
    )
    return _finished(x, spec, choices, mirror=mirror), index


def _inputs(source: ArraySource, spec: GraphSpec, outputs: int) -> Any:
    """Bytes are not copied: the source holds them until the batch has come out."""
    held = spec.images == "encoded"
    return fn.external_source(
        source=source, num_outputs=outputs, batch=True, batch_info=True, parallel=False, no_copy=held
    )


def tensor_list(images: list[Bytes]) -> Any:
    """Return the bytes of a batch as DALI takes them, without a copy."""
    listed: Any = backend.TensorListCPU  # its types are wrong
    return listed([backend.TensorCPU(image) for image in images], contiguous=False)


def _bytes(image: Any, spec: GraphSpec) -> Any:
    # Reading is as fast as mapping, and a mapped file that shrinks meanwhile kills the process (SIGBUS).
    return fn.io.file.read(image, dont_use_mmap=True) if spec.images == "paths" else image


def _placed(pixels: Any, spec: GraphSpec) -> Any:
    """Where the decoder would have put them."""
    pixels = fn.reshape(pixels, layout="HWC")
    return pixels if spec.device_id is None else pixels.gpu()


def _moved(pixels: Any, spec: GraphSpec) -> Any:
    """What was decoded, on the device that goes on with it."""
    return pixels.gpu() if spec.on_cpu and spec.device_id is not None else pixels


def _finished(x: Any, spec: GraphSpec, choices: Sequence[Any], **mirror: Any) -> Any:
    """Augmented and normalised. What follows normalisation works in float32: DALI's GPU Erase knows no float16."""
    early, late = spec.augmented("crop"), spec.augmented("normalisation")
    split = sum(a.outputs for a in early)
    x = dali_ops.add_ops(x, early, choices[:split], spec.size)
    if not late:
        return _normalised(x, spec, types.FLOAT16 if spec.half else types.FLOAT, **mirror)
    x = dali_ops.add_ops(_normalised(x, spec, types.FLOAT, **mirror), late, choices[split:], spec.size)
    return fn.cast(x, dtype=types.FLOAT16) if spec.half else x


def _normalised(x: Any, spec: GraphSpec, dtype: Any, **mirror: Any) -> Any:
    return fn.crop_mirror_normalize(
        x,
        **mirror,
        dtype=dtype,
        output_layout="HWC",
        mean=[255 * m for m in spec.mean],
        std=[255 * s for s in spec.std],
    )
