"""Compare the cost of loading with torchvision's loaders on this machine.

Each repetition is a fresh process, the loaders take turns, and the table shows medians. Time on the CPU (of the process
and all its children) is the figure to compare: it hardly changes with what else the machine does.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from itertools import count
from pathlib import Path

import numpy as np
import torch

from lsdali.bench.machine import hardware, spread
from lsdali.errors import UserError


@dataclass(frozen=True, slots=True)
class LoaderRun:
    """One measurement: `images` after `warmup` images, in batches of `batch` at `size` pixels a side."""

    contestant: str
    root: str
    size: int
    batch: int = 64
    workers: int = 2
    warmup: int = 512
    images: int = 1024


@dataclass(frozen=True, slots=True)
class Cost:
    images_per_second: float
    cpu_ms: float  # per image, of the process and its descendants


Loader = Callable[[LoaderRun], Iterator[int]]  # yields the number of images of each batch, without end


def dali(run: LoaderRun) -> Iterator[int]:
    from lsdali.clock import PerEpoch
    from lsdali.data.index.index import open_index
    from lsdali.data.pipeline.loader import TrainLoader
    from lsdali.data.pipeline.options import LoaderOptions
    from lsdali.data.sets.catalog import ImageNet, RandomResizedCrop

    config = ImageNet(root=run.root, train=RandomResizedCrop(size=run.size), threads=run.workers)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    index = open_index(config, "train")
    half = device.type == "cuda"  # as GPUs train in 16 bit
    loader = TrainLoader(index, config, LoaderOptions(PerEpoch(run.batch), 0, device, half, log=lambda line: None))
    step = 0
    while True:
        for batch in loader.epoch(step):
            step += 1
            yield len(batch)


def pil(run: LoaderRun) -> Iterator[int]:
    from torchvision import datasets
    from torchvision import transforms as tv

    from lsdali.data.sets.catalog import IMAGENET_MEAN, IMAGENET_STD

    normalize = tv.Normalize(IMAGENET_MEAN, IMAGENET_STD)
    crop = tv.Compose([tv.RandomResizedCrop(run.size), tv.RandomHorizontalFlip(), tv.ToTensor(), normalize])
    return _data_loader(datasets.ImageFolder(f"{run.root}/train", crop), run)


def pil_v2(run: LoaderRun) -> Iterator[int]:
    from torchvision import datasets
    from torchvision.transforms import v2

    from lsdali.data.sets.catalog import IMAGENET_MEAN, IMAGENET_STD

    window = [v2.RandomResizedCrop(run.size, antialias=True), v2.RandomHorizontalFlip(), v2.PILToTensor()]
    crop = v2.Compose([*window, v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)])
    return _data_loader(datasets.ImageFolder(f"{run.root}/train", crop), run)


def decode_jpeg(run: LoaderRun) -> Iterator[int]:
    from torchvision import datasets, io
    from torchvision.transforms import v2

    def read(path: str) -> torch.Tensor:
        pixels: torch.Tensor = io.decode_image(io.read_file(path), mode=io.ImageReadMode.RGB)
        return pixels

    crop = v2.Compose([v2.RandomResizedCrop(run.size, antialias=True), v2.RandomHorizontalFlip()])
    return _data_loader(datasets.ImageFolder(f"{run.root}/train", crop, loader=read), run)


def _data_loader(data: "torch.utils.data.Dataset[tuple[torch.Tensor, int]]", run: LoaderRun) -> Iterator[int]:
    loader = torch.utils.data.DataLoader(
        data, run.batch, shuffle=True, drop_last=True, num_workers=run.workers, persistent_workers=run.workers > 0
    )
    while True:
        for images, _ in loader:
            yield len(images)


def ffcv(run: LoaderRun) -> Iterator[int]:
    """Yield batches of FFCV (Leclerc et al., 2022), its ImageNet pipeline.

    Its file holds every image as a JPEG of quality 90.
    """
    from ffcv.fields import IntField, RGBImageField
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import NormalizeImage, RandomHorizontalFlip, ToTensor, ToTorchImage
    from ffcv.writer import DatasetWriter
    from torchvision import datasets

    from lsdali.data.sets.catalog import IMAGENET_MEAN, IMAGENET_STD

    file = Path(run.root) / "images.beton"
    if not file.exists():
        fields = {"image": RGBImageField(write_mode="jpg"), "label": IntField()}
        DatasetWriter(str(file), fields, num_workers=run.workers).from_indexed_dataset(
            datasets.ImageFolder(f"{run.root}/train")
        )
    mean, std = (255 * np.array(values) for values in (IMAGENET_MEAN, IMAGENET_STD))
    window = [RandomResizedCropRGBImageDecoder((run.size, run.size)), RandomHorizontalFlip()]
    crop = [*window, NormalizeImage(mean, std, np.float32), ToTensor(), ToTorchImage(convert_back_int16=False)]
    pipelines = {"image": crop, "label": None}
    loader = Loader(str(file), run.batch, run.workers, order=OrderOption.RANDOM, drop_last=True, pipelines=pipelines)
    while True:
        for (images,) in loader:
            yield len(images)


def floor(run: LoaderRun) -> Iterator[int]:
    """Read files and decode whole JPEGs with libjpeg-turbo; other formats are read only."""
    import simplejpeg

    files = sorted(Path(run.root).glob("train/*/*"))

    def decode(file: Path) -> int:
        data = file.read_bytes()
        return len(simplejpeg.decode_jpeg(data) if simplejpeg.is_jpeg(data) else data) > 0

    with ThreadPoolExecutor(max(run.workers, 1)) as pool:
        for start in count(step=run.batch):
            yield sum(pool.map(decode, [files[(start + k) % len(files)] for k in range(run.batch)]))


LOADERS: dict[str, Loader] = {
    "lsdali, float32": dali,
    "ImageFolder + PIL, float32": pil,
    "ImageFolder + PIL, transforms.v2, float32": pil_v2,
    "torchvision decode_jpeg, uint8": decode_jpeg,
    **({"FFCV, float32": ffcv} if find_spec("ffcv") else {}),
    "libjpeg-turbo, decoding alone": floor,
}
REFERENCE = "ImageFolder + PIL, float32"


def cpu_seconds(pid: int) -> float:
    """Return user and system time of a process and its descendants, dead children included."""
    total, ticks = 0.0, os.sysconf("SC_CLK_TCK")
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        children = {c for task in Path(f"/proc/{pid}/task").iterdir() for c in (task / "children").read_text().split()}
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    total = sum(map(int, fields[11:15])) / ticks
    return total + sum(cpu_seconds(int(child)) for child in children)


def measure_loader(run: LoaderRun) -> Cost:
    """Measure in this process; start a fresh one for each call."""
    sizes = LOADERS[run.contestant](run)
    _consume(sizes, run.warmup)
    clock, cpu = time.perf_counter(), cpu_seconds(os.getpid())
    images = _consume(sizes, run.images)
    clock, cpu = time.perf_counter() - clock, cpu_seconds(os.getpid()) - cpu
    return Cost(images / clock, 1000 * cpu / images)


def _consume(sizes: Iterator[int], images: int) -> int:
    seen = 0
    while seen < images:
        seen += next(sizes)
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # a GPU has been told of the batches; now it has made them
    return seen


def _in_new_process(run: LoaderRun, cache: str) -> Cost:
    command = [sys.executable, "-W", "ignore", "-m", "lsdali.bench", "once", json.dumps(asdict(run))]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "LSDALI_CACHE": cache})
    if done.returncode:
        raise UserError(f"{run.contestant} failed: {done.stderr.strip()}")
    return Cost(**json.loads(done.stdout.splitlines()[-1]))


def link_images(root: Path, into: Path, most: int) -> int:
    """Link up to `most` images anywhere below root, as one class, in train and (one) in val."""
    from lsdali.data.io.image_formats import EXTENSIONS

    suffixes = tuple(e.decode() for e in EXTENSIONS)
    found = sorted(p for p in root.expanduser().absolute().rglob("*") if p.name.lower().endswith(suffixes))
    if not found:
        raise UserError(f"{root} holds no image; name a folder of images")
    chosen = found[:: max(len(found) // most, 1)][:most]
    for split, files in (("train", chosen), ("val", chosen[:1])):
        folder = into / split / "all"
        folder.mkdir(parents=True)
        for k, file in enumerate(files):
            (folder / f"{k:06d}{file.suffix}").symlink_to(file)
    return len(chosen)


def loader(options: argparse.Namespace) -> None:
    """Compare lsdali's training loader with torchvision's."""
    costs: dict[str, list[Cost]] = {name: [] for name in LOADERS}
    with tempfile.TemporaryDirectory() as folder:
        files = link_images(Path(options.root), Path(folder), options.files)
        for _ in range(options.reps):
            for name in LOADERS:
                run = LoaderRun(name, folder, options.size, workers=options.workers)
                costs[name].append(_in_new_process(run, f"{folder}/cache"))
    print(hardware(f"{options.workers} threads or workers"))
    print(f"{files} files, random resized crop {options.size}, batch {run.batch}, {run.images} images a run;")
    print(f"medians of {options.reps} runs, lowest to highest in brackets\n")
    print(f"{'loader':42}{'images/s':>22}{'CPU-ms/image':>22}{'times cheaper than PIL':>24}")
    base = statistics.median(c.cpu_ms for c in costs[REFERENCE])
    for name, runs in costs.items():
        cpu = [c.cpu_ms for c in runs]
        ratio = base / statistics.median(cpu)
        print(f"{name:42}{spread([c.images_per_second for c in runs], 0)}{spread(cpu, 2)}{ratio:>24.2f}")


def once(options: argparse.Namespace) -> None:
    """Print one measurement as JSON; what the other commands start."""
    print(json.dumps(asdict(measure_loader(LoaderRun(**json.loads(options.run))))))
