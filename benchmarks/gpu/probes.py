"""Questions with short answers, for the first minutes on a GPU: `python -m benchmarks.gpu.probes TREE [JSON]`.

TREE has class folders in train and val. No answer stops the others. Without a GPU those run that a CPU can answer.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.session import ROOT
from lsdali.bench.methods import SHAPES, Shape, begun_method, configs_of, synthetic
from lsdali.clock import Clock, PerEpoch
from lsdali.data.index.index import open_index
from lsdali.data.pipeline.decoder import decoder_report
from lsdali.data.pipeline.loader import TrainLoader
from lsdali.data.pipeline.options import LoaderOptions
from lsdali.data.sampling.augment.erasing import RandomErasing
from lsdali.data.sets.catalog import CenterCrop, Folder, RandomResizedCrop
from lsdali.methods import METHODS
from lsdali.optim import SGD, build_optimizer
from lsdali.optim.precision import Precision, Scaler

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda", 0) if CUDA else torch.device("cpu")
SMALL = Shape("preact_resnet10", 32, 10, 8, 8)
QUESTIONS: dict[str, tuple[bool, Callable[[str], str]]] = {}  # question -> whether it needs a GPU, answer


def asked(question: str, *, gpu: bool = False) -> Callable[[Callable[[str], str]], Callable[[str], str]]:
    def keep(answer: Callable[[str], str]) -> Callable[[str], str]:
        QUESTIONS[question] = gpu, answer
        return answer

    return keep


def loader_of(tree: str, batch: int, *, half: bool = CUDA, **train: Any) -> TrainLoader:
    crop = RandomResizedCrop(size=224, **train)
    config = Folder(root=tree, train=crop, eval=CenterCrop(resize=256, size=224), resident="never", threads=4)
    options = LoaderOptions(PerEpoch(batch), 0, DEVICE, half, log=lambda line: None)
    return TrainLoader(open_index(config, "train"), config, options)


@asked("which decoders are installed, and which way do they ask for a window?")
def decoders(tree: str) -> str:
    return decoder_report().describe()


@asked("is fused SGD with momentum right after an overflow in the first step?")
def overflow(tree: str) -> str:
    junk = [torch.full((300_000,), 1e30, device=DEVICE) for _ in range(20)]
    del junk
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 64, 3), torch.nn.Conv2d(64, 64, 3)).to(DEVICE)
    optimizer = build_optimizer(network, SGD(lr=0.01, weight_decay=0.0), DEVICE)
    precision = Precision("fp32", DEVICE)
    precision.scaler = Scaler(DEVICE.type)
    for number in range(5):
        loss = network(torch.ones(2, 3, 16, 16, device=DEVICE)).square().mean()
        precision.backward(loss * (float("inf") if number == 0 else 1.0))
        precision.step(optimizer)
    largest = max(float(p.detach().abs().max()) for p in network.parameters())
    return verdict(largest < 1, f"the largest weight is {largest:.3g}")


@asked("does any method's step wait for the device?", gpu=True)
def waits(tree: str) -> str:
    configs = {"ce": METHODS["ce"].Config(name="ce")}
    configs |= configs_of([str(path) for path in sorted((ROOT / "recipes/digits").glob("*.yaml"))])
    waiting = []
    for label, config in configs.items():
        method, student = begun_method(config, SMALL, 4096, DEVICE)
        optimizer = build_optimizer(student, SGD(lr=1e-3, weight_decay=1e-4), DEVICE)
        precision, data = Precision("bf16", DEVICE), synthetic(SMALL, 8, DEVICE)
        for number in range(3):  # the first steps may tune and allocate
            torch.cuda.set_sync_debug_mode("error" if number == 2 else "default")
            try:
                with precision.autocast():
                    loss = method.loss(student, data, Clock(512 + number, PerEpoch(512), 10))
                precision.backward(loss.total)
                precision.step(optimizer)
                method.observe(data, loss.observed)
            except RuntimeError as error:
                waiting.append(f"{label}: {str(error).splitlines()[0][:80]}")
                break
            finally:
                torch.cuda.set_sync_debug_mode("default")
    return verdict(not waiting, "; ".join(waiting) or f"none of {len(configs)}")


@asked("random erasing of images in the type that the device trains in")
def erasing(tree: str) -> str:
    batch = next(loader_of(tree, 8, augment=(RandomErasing(probability=1.0),)).epoch(0))
    return verdict(bool(torch.isfinite(batch.images).all()), f"{batch.images.dtype}, all finite")


@asked("are batches right when the device reads them late?")
def lifetime(tree: str) -> str:
    busy, sums, truth = torch.randn(2048 if CUDA else 64, 2048 if CUDA else 64, device=DEVICE), [], []
    late, calm = loader_of(tree, 8), loader_of(tree, 8)
    for number, batch in zip(range(5), late.epoch(0), strict=False):
        for _ in range(8):
            busy = (busy @ busy).clamp(-1, 1)  # so that the sum waits in the stream when the batch is dropped
        sums.append(batch.images.float().sum() + 0 * busy[0, 0] + 0 * number)
    for _, batch in zip(range(5), calm.epoch(0), strict=False):
        truth.append(batch.images.float().sum().item())
    wrong = sum(abs(a.item() - b) > 1e-3 * max(abs(b), 1) for a, b in zip(sums, truth, strict=True))
    return verdict(wrong == 0, f"{wrong} of {len(truth)} differ")


@asked("decoding on the device against the CPU: how many grey levels apart?", gpu=True)
def levels(tree: str) -> str:
    crop = RandomResizedCrop(size=224)
    config = Folder(root=tree, train=crop, eval=CenterCrop(resize=256, size=224), resident="never", threads=4)
    index, images = open_index(config, "train"), []
    for device in (DEVICE, torch.device("cpu")):
        options = LoaderOptions(PerEpoch(32), 0, device, half=False, log=lambda line: None)
        images.append(next(TrainLoader(index, config, options).epoch(0)).images.cpu().numpy())
    std = np.array(config.std, np.float32)[None, :, None, None]
    apart = np.abs(images[0] - images[1]) * std * 255
    return verdict(float(apart.mean()) < 1, f"mean {apart.mean():.3f}, 99.9 % below {np.quantile(apart, 0.999):.1f}")


@asked("does a compiled step (CUDA graphs) train beside the loader?", gpu=True)
def graphs(tree: str) -> str:
    method, student = begun_method(METHODS["ce"].Config(name="ce"), SHAPES["imagenet"], 4096, DEVICE)
    student.compile(mode="reduce-overhead", dynamic=False)
    optimizer, precision = build_optimizer(student, SGD(lr=1e-3, weight_decay=1e-4), DEVICE), Precision("bf16", DEVICE)
    losses = []
    for _, batch in zip(range(6), loader_of(tree, 32).epoch(0), strict=False):
        with precision.autocast():
            loss = method.loss(student, batch, Clock(0, PerEpoch(10), 2))
        precision.backward(loss.total)
        precision.step(optimizer)
        losses.append(float(loss.total))
    return verdict(all(np.isfinite(losses)), f"losses {losses[0]:.2f} to {losses[-1]:.2f}")


def verdict(right: bool, said: str) -> str:
    return f"{'right' if right else 'WRONG'}: {said}"


def main(tree: str, report: str | None = None) -> int:
    answers: dict[str, dict[str, Any]] = {}
    for question, (gpu, answer) in QUESTIONS.items():
        if gpu and not CUDA:
            answers[question] = {"said": "needs a GPU", "seconds": 0.0}
            continue
        began = time.perf_counter()
        try:
            said = answer(tree)
        except Exception as error:  # one question must not stop the others
            said = f"FAILED: {type(error).__name__}: {' | '.join(str(error).splitlines()[:3])[:300]}"
        answers[question] = {"said": said, "seconds": round(time.perf_counter() - began, 1)}
        print(f"{question}\n    {said}", flush=True)
    if report is not None:
        Path(report).write_text(json.dumps(answers, indent=1))
    bad = [question for question, found in answers.items() if found["said"].startswith(("WRONG", "FAILED"))]
    print(f"{len(bad)} of {len(answers)} answers are wrong", flush=True)
    return int(bool(bad))


if __name__ == "__main__":
    status = main(*sys.argv[1:3])
    sys.stdout.flush()
    os._exit(status)  # whatever a broken device does at the end
