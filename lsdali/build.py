"""Recipe -> live objects: the only place that turns names into objects."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from inspect import signature
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

from lsdali import dist, parts
from lsdali.batch import Batch
from lsdali.clock import Clock
from lsdali.data.pipeline.loaders import eval_loader, open_dataset, train_loader
from lsdali.data.pipeline.options import LoaderOptions
from lsdali.data.sampling.mixing import MixedBatches
from lsdali.data.sets.sample_index import Index
from lsdali.errors import SharedError, UserError, first_line
from lsdali.events import Events
from lsdali.fit import check_shares, check_start
from lsdali.methods import METHODS
from lsdali.methods.base import Method, MethodContext
from lsdali.methods.shared.class_weights import recipe_weights
from lsdali.models import build_network
from lsdali.models.checks import check_features, check_image_size, check_memory, count_classes
from lsdali.models.layers import depths
from lsdali.models.opened import open_student
from lsdali.models.pretrained import load_weights, shorten
from lsdali.models.shared_norm import share_norms
from lsdali.models.student import Network, Student
from lsdali.models.teacher import Teacher
from lsdali.models.teacher_cache import CachedTeacher
from lsdali.models.teacher_configs import TeacherConfig
from lsdali.optim import build_optimizer
from lsdali.optim.ema import Average
from lsdali.optim.precision import Precision
from lsdali.optim.schedule import schedule
from lsdali.recipe import Recipe
from lsdali.recipe.teachers import recipe_teacher
from lsdali.state.checkpoint import Checkpoints, Stateful
from lsdali.state.module_state import ModuleState, RankBuffers
from lsdali.state.rng import Generators, seed_all
from lsdali.trainer import Trainer, WeightAverage


def build(
    recipe: Recipe,
    folder: Path,
    device: torch.device,
    checkpoints: Checkpoints,
    events: Events,
    *,
    begun: str | None = None,
) -> Trainer:
    """Build a trainer at step 0, on every rank.

    `begun` is the fingerprint of the training set of a run that goes on; its state is yet to be restored, all weights
    with it.

    Raises:
        SharedError: the recipe does not fit the data, the device, the teacher or the number of processes.
    """
    with dist.raise_together(), enough_memory():
        trainer = prepare(recipe, folder, device, checkpoints, events, begun=begun)
    with dist.raise_together():
        trainer.method.begin(trainer.student)
    if recipe.model.sync_batchnorm:
        with dist.raise_together():
            share_norms(trainer.student, device, recipe.model.name)
    if dist.active():
        wrapped = wrap(trainer.student, device)
        fix_bucket_order(wrapped, trainer, recipe)
        trainer.forward, trainer.unsynced = wrapped, wrapped.no_sync
    if recipe.compile is not None:
        trainer.student.compile(mode=recipe.compile, dynamic=False)  # each size of image or batch its own kernels
    seed_all(recipe.seed)
    return trainer


@contextmanager
def enough_memory() -> Iterator[None]:
    """Raise UserError if a block asks for more memory than there is."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(word in str(error) for word in ("allocat", "out of memory")):
            raise
        raise UserError(
            f"there is no memory for this run ({first_line(error)}): lower batch, data.train.size, model.width, "
            "model.classes or data.prefetch"
        ) from error


def prepare(
    recipe: Recipe, folder: Path, device: torch.device, checkpoints: Checkpoints, events: Events, *, begun: str | None
) -> Trainer:
    """Build everything except DDP, whose construction is a collective that a rank with an error would miss."""
    precision = Precision(recipe.precision, device)
    train_index, val_index = (open_dataset(recipe.data, split, events.log, begun) for split in ("train", "val"))
    classes = count_classes(recipe.model.classes, train_index.classes, train_index.root)
    network = new_network(recipe, classes, events.log, pretrained=begun is None)
    val = eval_loader(
        val_index, recipe.data, batch=recipe.evaluate.batch_on(device.type), device=device, half=precision.half
    )
    method, teachers = build_method(recipe, network, train_index, device, val)
    check_shares(recipe, method)
    check_start(recipe, method)
    aux_heads, name = method.aux_heads(), cast(Any, recipe.method).name
    check_features(network, recipe.model.name, method.reads_features, name)
    student = open_student(network, recipe.model, aux_heads, device, name)
    layers = depths(student, recipe.model.name) if recipe.optimizer.layer_decay != 1 else None
    optimizer = build_optimizer(student, recipe.optimizer, device, student.head(), layers)
    options = LoaderOptions(recipe.batches, recipe.seed, device, precision.half, recipe.sampler, events.log)
    train = train_loader(train_index, recipe.data, options)
    clock = Clock(0, train.steps_per_epoch, recipe.epochs)
    averages: dict[str, WeightAverage] = {} if recipe.ema is None else {"ema": Average(recipe.ema, student)}
    trainer = Trainer(
        recipe=recipe,
        folder=folder,
        clock=clock,
        student=student,
        forward=student,
        unsynced=nullcontext,
        method=method,
        optimizer=optimizer,
        precision=precision,
        schedule=schedule(recipe.schedule, recipe.optimizer.lr, clock.steps_per_epoch, clock.epochs),
        averages=averages,
        train=train if recipe.mix is None else MixedBatches(train, recipe.mix, recipe.seed),
        val=val,
        checkpoints=checkpoints,
        events=events,
        header={
            "recipe": recipe.model_dump(mode="json"),
            "classes": classes,
            "names": list(train_index.classes),
            "data": train_index.fingerprint,
            "teachers": teachers,
            "class_weights": None if method.class_weights is None else method.class_weights.tolist(),
            "uses": parts.in_use(recipe.names),
            "threads": torch.get_num_threads(),
        },
        parts={},
        classes=classes,
        device=device,
        data=describe(recipe, train_index, val_index),
    )
    trainer.parts = parts_of(trainer)
    return trainer


def describe(recipe: Recipe, train: Index, val: Index) -> dict[str, Any]:
    """Return what a run tells of its data: numbers of samples, what it validates on, labels that noise has changed."""
    changed = int((np.asarray(train.labels) != np.asarray(train.clean)).sum())
    return {"train": len(train), "val": len(val), "validation": recipe.data.validation(), "wrong_labels": changed}


def parts_of(trainer: Trainer) -> dict[str, Stateful]:
    """Return everything that a checkpoint holds, by name."""
    return {
        "student": ModuleState(trainer.student),
        "buffers": RankBuffers(trainer.student),
        "optimizer": trainer.optimizer,
        "precision": trainer.precision,
        "method": trainer.method,
        "rng": Generators(trainer.device),
        "trainer": trainer,
        **trainer.averages,
    }


def new_network(recipe: Recipe, classes: int, log: Callable[[str], None], *, pretrained: bool) -> Network:
    """Build the network as it is initialised, or with the recipe's weights if it is to be `pretrained`."""
    model, data = recipe.model, recipe.data
    check_memory(model, classes)
    torch.manual_seed(recipe.seed)
    network = build_network(model, classes)
    check_image_size(network, model.name, (*data.train.sizes(recipe.epochs), data.eval.size))
    for note in network.notes:
        log(note)
    if pretrained and model.weights is not None:
        load_weights(network, model.name, model.weights, log)
    return network


def build_method(
    recipe: Recipe, network: Network, train: Index, device: torch.device, validation: Iterable[Batch]
) -> tuple[Method, list[str]]:
    """Build the method; return it and the digests of the teachers that it asked for."""
    digests: list[str] = []

    def teacher(config: TeacherConfig) -> Teacher:
        loaded = recipe_teacher(recipe, config, train, network.classes, device)
        kept = f" ({loaded.describe()})" if isinstance(loaded, CachedTeacher) else ""
        digests.append(loaded.digest + kept)
        return loaded

    kind = cast(Any, METHODS[cast(Any, recipe.method).name])
    context = MethodContext(
        classes=network.classes,
        samples=len(train),
        channels=network.channels,
        device=device,
        seed=recipe.seed,
        teacher=teacher,
        label_noise=recipe.data.noise,
        class_weights=recipe_weights(recipe.class_weights, recipe.method, METHODS, train, network.classes, device),
        validation=validation,
    )
    return cast(Method, kind(recipe.method, context)), digests


def wrap(student: Student, device: torch.device) -> DistributedDataParallel:
    """Return the student inside DDP. Buffers are not broadcast: ranks agree at each epoch's end."""
    ids = [device.index] if device.type == "cuda" else None
    named = "forward_sync_buffers" in signature(DistributedDataParallel).parameters  # torch 2.15 renamed the option
    quiet: Any = {"forward_sync_buffers" if named else "broadcast_buffers": False}
    return DistributedDataParallel(student, device_ids=ids, gradient_as_bucket_view=True, **quiet)


def fix_bucket_order(wrapped: DistributedDataParallel, trainer: Trainer, recipe: Recipe) -> None:
    """Let DDP lay out its gradient buckets now, with a pass that leaves no other trace.

    DDP rearranges its buckets after the first backward pass, and a gradient's position in them decides the order in
    which three or more ranks add it up. A resumed run would add its first step in another order than the run that never
    stopped. Images have the shape, type and layout of training, because cuDNN looks for the fastest kernels here.
    """
    student, size = trainer.student, recipe.data.train.size
    buffers = [b.clone() for b in student.buffers()]
    share = recipe.batch // dist.world()
    dtype = torch.float16 if trainer.precision.half else next(student.parameters()).dtype
    images = torch.zeros(min(recipe.micro_batch or share, share), 3, size, size, device=trainer.device, dtype=dtype)
    with trainer.precision.autocast():
        out = wrapped(images.contiguous(memory_format=torch.channels_last))
    outputs = [out.logits, out.features, *out.aux_heads.values()]
    torch.stack([x.float().sum() for x in outputs if x.requires_grad]).sum().backward()  # type: ignore[no-untyped-call]
    idle = [name for name, p in student.named_parameters() if p.requires_grad and p.grad is None]
    with torch.no_grad():
        for buffer, before in zip(student.buffers(), buffers, strict=True):
            buffer.copy_(before)
    student.zero_grad()
    if idle:  # DDP would wait for their gradients, in the second step
        raise SharedError(
            f"no output depends on {shorten(idle)} of '{recipe.model.name}': on several processes every trained "
            "parameter must be used; remove it from the module, or set its requires_grad to False"
        )
