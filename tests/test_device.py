"""What can be known without a GPU: that every tensor is where it must be, in the right type, and nothing waits."""

from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch._subclasses.fake_tensor import FakeTensorDeviceMismatchError as Mismatch
from torch.utils._python_dispatch import _disable_current_modes

from lsdali import build
from lsdali.batch import Batch
from lsdali.clock import Clock, PerEpoch
from lsdali.data.index.index import open_index
from lsdali.data.pipeline.dali_ops import EFFECTS
from lsdali.data.pipeline.graph import Graph, GraphSpec, padded_graph, resized_graph
from lsdali.data.pipeline.loaders import eval_loader, open_dataset, train_loader
from lsdali.data.pipeline.options import LoaderOptions
from lsdali.data.sampling.mixing import CutMix, MixedBatches, Mixup
from lsdali.data.sets.sample_index import SampleForm
from lsdali.meter import Meter
from lsdali.metrics import MetricAccumulator
from lsdali.models.answer_rows import RowFormat
from lsdali.models.teacher import Teacher, load_teacher
from lsdali.models.teacher_configs import TeacherConfig
from lsdali.recipe import Recipe, teachers
from lsdali.trainer import Trainer
from tests.data.test_augment import EVERY
from tests.harness import tiny
from tests.made_up_cuda import CUDA, half_precision, made_up_cuda
from tests.methods.trainers import CONFIGS, named, trainer_for, with_teacher


def test_the_made_up_device_refuses_what_a_real_one_does() -> None:
    with made_up_cuda() as host:
        x, index = torch.arange(4.0, device=CUDA), torch.arange(4)
        assert x.cpu().shape == (4,)
        host.strict = True
        assert (x[index.to(CUDA)] + 1).device == CUDA
        assert index.tolist() == [0, 1, 2, 3], "the host's tensors are real"
        with pytest.raises(Mismatch):
            x + index
        for wait, refusal in (
            (lambda: x.sum().item(), DataDependentOutputException),
            (lambda: bool(x.sum() > 1), DataDependentOutputException),
            (lambda: x.equal(x), DataDependentOutputException),
            (lambda: x.tolist(), DataDependentOutputException),
            (lambda: x[x > 1], DynamicOutputShapeException),
            (lambda: x.nonzero(), DynamicOutputShapeException),
            (lambda: x.numpy(), RuntimeError),
            (lambda: x.cpu(), AssertionError),
            (lambda: index.copy_(x), AssertionError),
        ):
            with pytest.raises(refusal):
                wait()


def on_the_device(config: TeacherConfig, classes: int, device: torch.device, names: tuple[str, ...]) -> Teacher:
    """`load_teacher`, which reads real weights before they can be made up."""
    with _disable_current_modes():
        teacher = load_teacher(config, classes, torch.device("cpu"), names)
    teacher._network.to(device)
    return teacher


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")  # by deepcopy
@pytest.mark.parametrize("config", CONFIGS, ids=named)
def test_every_method(config: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe.model_validate(tiny(with_teacher(config, folder), folder / "images", tmp_path))
    monkeypatch.setattr(teachers, "load_teacher", on_the_device)
    index = open_index(recipe.data, "train")
    with made_up_cuda() as host:
        network = build.new_network(recipe, 5, print, pretrained=False)
        method, _ = build.build_method(recipe, network, index, CUDA, [])
        student = build.open_student(network, recipe.model, method.aux_heads(), CUDA, "the method")
        method.begin(student)
        images = torch.empty(8, 3, 16, 16, device=CUDA, dtype=torch.float16)
        labels = torch.zeros(8, dtype=torch.int64, device=CUDA)
        batch = Batch(images.contiguous(memory_format=torch.channels_last), labels, torch.arange(8), labels.bool())
        for epoch in range(2):
            host.strict = True
            with half_precision():
                loss = method.loss(student, batch, Clock(5 * epoch, PerEpoch(5), 2))
            method.observe(batch, loss.observed)
            host.strict = False
            assert loss.total.is_cuda
            assert loss.total.dtype == torch.float32, "the loss is rounded to half precision"
            assert all(term.is_cuda for term in loss.terms.values())
            with suppress(DynamicOutputShapeException, DataDependentOutputException):  # it may look at numbers
                method.end_epoch(student, Clock(5 * epoch + 5, PerEpoch(5), 2))


@pytest.mark.parametrize("form", [RowFormat(9, 9, "fp32"), RowFormat(9, 4, "fp16"), RowFormat(9, 4, "fp32")])
def test_answers_of_a_teacher_cache(form: RowFormat) -> None:
    rows = form.pack(torch.randn(6, 9))
    with made_up_cuda() as host:
        host.strict = True
        logits = form.unpack(rows, CUDA)
    assert logits.is_cuda
    assert (logits.shape, logits.dtype) == ((6, 9), torch.float32)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("config", CONFIGS, ids=named)
def test_a_gpu_trains_as_the_cpu_does(config: Any, folder: Path, tmp_path: Path) -> None:
    """Two epochs of a few steps: decoding and arithmetic differ a little, a wrong label or row would differ much."""
    runs = []
    for device in ("cpu", "cuda"):
        trainer = trainer_for(with_teacher(config, folder), folder / tmp_path.name / device, device)
        steps = []
        while not trainer.clock.done:
            for batch in trainer.train.epoch(trainer.clock.step):
                steps.append({name: value.item() for name, value in trainer.step(batch).items()})
                trainer.clock = trainer.clock.tick()
            trainer.method.end_epoch(trainer.student, trainer.clock)
        runs.append(steps)
    assert len(runs[0]) == len(runs[1]) > 8
    for cpu, gpu in zip(*runs, strict=True):
        assert gpu == pytest.approx(cpu, rel=0.05, abs=0.02)


@pytest.mark.parametrize("mix", [Mixup(alpha=0.2), CutMix(alpha=1.0)], ids=["mixup", "cutmix"])
def test_images_held_on_the_device(mix: Mixup | CutMix, folder: Path, tmp_path: Path) -> None:
    data = {"train": {"crop": "pad", "size": 16, "pad": 2}, "resident": "always"}
    tree = tiny({"name": "ce"}, folder / "images", tmp_path)
    recipe = Recipe.model_validate({**tree, "data": {**tree["data"], **data}})
    train, val = (open_dataset(recipe.data, split) for split in ("train", "val"))
    with made_up_cuda() as host:
        loader = train_loader(train, recipe.data, LoaderOptions(recipe.batches, 0, CUDA, half=True))
        batches = MixedBatches(loader, mix, 0).epoch(0)
        evaluation = MetricAccumulator(5, CUDA)
        held = eval_loader(val, recipe.data, batch=8, device=CUDA, half=True)
        host.strict = True
        in_order(next(batches))
        for batch in held:
            in_order(batch)
            evaluation.update(torch.zeros(len(batch), 5, device=CUDA, dtype=torch.float16), batch)


def in_order(batch: Batch) -> None:
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.images.dtype == torch.float16
    assert all(x.is_cuda for x in (batch.images, batch.labels, batch.valid))
    assert not batch.index.is_cuda
    assert np.all(batch.index.numpy() >= 0), "the index has real numbers"


@pytest.mark.parametrize("images", ["paths", "encoded", "pixels"])
@pytest.mark.parametrize("graph", [resized_graph, padded_graph])
def test_graphs_of_dali(graph: Graph, images: SampleForm) -> None:
    """Defined for a GPU, though not built: DALI checks what may follow what, and where; once with all augmentations."""
    everything = (graph, images) == (padded_graph, "pixels")
    spec = GraphSpec(
        batch=4,
        threads=1,
        prefetch=2,
        device_id=0,
        half=True,
        size=32,
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
        largest=250_000,
        augment=tuple(a for several in EVERY[:-1] for a in several) if everything else (),
        images=images,
    )
    assert {a.name for a in spec.augment} == (set(EFFECTS) if everything else set())
    pixels, index = graph(lambda info: (), spec)._graph_out
    assert (pixels.device, index.device) == ("gpu", "cpu")


def test_the_wait_for_data_is_the_devices_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU gets to each batch 20 ms after it was asked for, though the host goes on at once."""
    clock = iter(range(0, 1000, 20))

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = next(clock)

        def elapsed_time(self, other: "Event") -> float:
            return other.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    for device, seconds in ((CUDA, 0.06), (torch.device("cpu"), None)):
        meter, trainer = Meter(), object.__new__(Trainer)
        trainer.device, trainer.pulse = device, MagicMock()
        batches: Any = iter(range(3))
        while trainer.next(batches, meter) is not None:
            pass
        del meter.marks[3:]  # the end of the epoch
        assert meter.data_seconds() == (meter.waited if seconds is None else pytest.approx(seconds))
