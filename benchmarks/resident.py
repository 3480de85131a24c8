"""What small images cost: held on the device, against torchvision's DataLoader.

Made-up images in CIFAR's shape: padded crop, flip and normalisation. The contestants take turns; medians. Time on the
CPU is of the process and its children.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from lsdali.bench.loader import Cost, cpu_seconds
from lsdali.bench.machine import hardware, spread
from lsdali.clock import PerEpoch
from lsdali.data.pipeline.options import LoaderOptions
from lsdali.data.pipeline.resident import ResidentTrain
from lsdali.data.sets.arrays import Cifar10
from lsdali.data.sets.sample_index import Index

SAMPLES, SIDE, BATCH = 20_000, 32, 128
Loader = Callable[[int], Iterator[int]]  # an epoch's number -> sizes of its batches


def resident(options: argparse.Namespace) -> None:
    """Compare images held on the device with torchvision's DataLoader."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pixels = np.random.default_rng(0).integers(0, 256, (SAMPLES, SIDE, SIDE, 3), np.uint8)
    loaders = {"lsdali, held on the device": held(pixels, device)}
    loaders |= {f"PIL, {n} workers": pil(pixels, n) for n in (0, 2)}
    costs: dict[str, list[Cost]] = {name: [] for name in loaders}
    for turn in range(options.reps + 1):
        for name, loader in loaders.items():
            cost = measure(loader, turn, options.seconds, device)
            if turn:  # the first is a warm-up
                costs[name].append(cost)
    print(hardware(f"{torch.get_num_threads()} torch threads"))
    print(f"{SAMPLES} images of {SIDE}x{SIDE}, pad 4, flip, normalise to float32, batch {BATCH};")
    print(f"medians of {options.reps} interleaved runs of {options.seconds} s, lowest to highest in brackets\n")
    base = statistics.median(c.images_per_second for c in costs["PIL, 2 workers"])
    print(f"{'loader':32}{'images/s':>26}{'CPU-us/image':>22}{'times PIL, 2 workers':>22}")
    for name, runs in costs.items():
        rates = [c.images_per_second for c in runs]
        cpu = spread([1000 * c.cpu_ms for c in runs], 1)
        print(f"{name:32}{spread(rates, 0):>26}{cpu}{statistics.median(rates) / base:>22.1f}")


def held(pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], device: torch.device) -> Loader:
    n = len(pixels)
    labels = np.arange(n) % 10
    size = np.full((n, 2), SIDE, np.int32)
    index = Index(Path("/"), np.zeros(n, "S1"), labels, tuple("0123456789"), pixels=pixels, size=size)
    loader = ResidentTrain(index, Cifar10(root="."), LoaderOptions(PerEpoch(BATCH), 0, device))

    def epoch(number: int) -> Iterator[int]:
        return (len(batch) for batch in loader.epoch(loader.steps_per_epoch.before(number)))

    return epoch


def pil(pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], workers: int) -> Loader:
    from PIL import Image
    from torchvision import transforms as tv

    crop = [tv.RandomCrop(SIDE, 4), tv.RandomHorizontalFlip(), tv.ToTensor()]
    config = Cifar10(root=".")
    change = tv.Compose([*crop, tv.Normalize(config.mean, config.std)])

    class Images(torch.utils.data.Dataset[torch.Tensor]):
        def __len__(self) -> int:
            return len(pixels)

        def __getitem__(self, i: int) -> torch.Tensor:
            image: torch.Tensor = change(Image.fromarray(pixels[i]))
            return image

    more = {"persistent_workers": True} if workers else {}
    loader = torch.utils.data.DataLoader(Images(), BATCH, shuffle=True, drop_last=True, num_workers=workers, **more)  # type: ignore[arg-type]
    return lambda number: (len(images) for images in loader)


def measure(loader: Loader, turn: int, seconds: float, device: torch.device) -> Cost:
    """Whole batches for about so many seconds, from the first batch on."""
    sizes = loader(turn)
    next(sizes)  # starts workers
    clock, cpu, count = time.perf_counter(), cpu_seconds(os.getpid()), 0
    while time.perf_counter() - clock < seconds:
        size = next(sizes, None)
        if size is None:
            sizes = loader(turn + 1)
            continue
        count += size
    if device.type == "cuda":
        torch.cuda.synchronize()
    spent, work = time.perf_counter() - clock, cpu_seconds(os.getpid()) - cpu
    return Cost(count / spent, 1000 * work / count)


def add_arguments(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    sub = commands.add_parser("resident", help="small images held on the device", description=resident.__doc__)
    sub.add_argument("--reps", type=int, default=7, help="runs of each loader")
    sub.add_argument("--seconds", type=float, default=1.0, help="length of a run")
    sub.set_defaults(run_command=resident)
