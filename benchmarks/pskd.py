"""What PS-KD's forms of memory cost in bytes, and what they change in the loss.

The loss is that of targets of which the past is a given share, in the dense float32 form and in the others. Past and
present are made-up logits of a stated spread (normal; the label's raised), or what two checkpoints of one run say to
its validation images, which both see alike.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from lsdali.bench.machine import hardware
from lsdali.data.pipeline.loaders import eval_loader, open_dataset
from lsdali.functional import progressive_target, soft_cross_entropy
from lsdali.models.teacher import network_from_checkpoint, read_checkpoint
from lsdali.recipe import Recipe
from lsdali.state.memory import Layout, SampleMemory

CPU = torch.device("cpu")
BUMP = 3.0  # of the label's logit, in spreads
DRIFT = 0.5  # of past and present from each other, in spreads


def pskd(options: argparse.Namespace) -> None:
    """Bytes of each form of PS-KD's memory, and its error of loss and gradient."""
    print(hardware(f"{torch.get_num_threads()} torch threads") + "\n")
    print(f"{'form':14}{'rows':>12}{'classes':>10}{'GB':>10}{'GB in use when full':>22}")
    for name, layout in forms(options.classes, options.keep).items():
        size = layout.row_bytes * options.samples / 1e9
        used = f"{in_use(options.samples, layout) / 1e9:.3f}" if size <= options.touch else "not tried"
        print(f"{name:14}{options.samples:>12}{options.classes:>10}{size:>10.3f}{used:>22}")
    print(f"\nshare of the past: {options.share}")
    print(f"{'past and present':34}{'form':14}{'in 16 greatest':>16}{'error of loss':>16}{'of gradient':>14}")
    for source, past, present, labels in sources(options):
        mass = past.softmax(1).topk(min(16, past.shape[1]), 1).values.sum(1).mean().item()
        for name, layout in forms(past.shape[1], options.keep).items():
            loss, gradient = errors(past, present, labels, options.share, layout)
            print(f"{source:34}{name:14}{mass:>16.4f}{loss:>16.2e}{gradient:>14.2e}")


def forms(classes: int, keep: list[int]) -> dict[str, Layout]:
    tops = {f"topk, {k}": Layout("topk", classes, k) for k in keep if k <= classes}
    return {"dense32": Layout("dense32", classes), "dense16": Layout("dense16", classes), **tops}


def in_use(samples: int, layout: Layout) -> int:
    """Bytes of shared memory that this process has in use more when every row is written."""
    memory = SampleMemory(samples, layout, CPU)
    before = shared_bytes()
    memory.open()
    rows = torch.rand(4096, layout.classes)
    for index in torch.split(torch.arange(samples), len(rows)):
        memory.write(index, rows[: len(index)])
    return shared_bytes() - before


def shared_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("RssShmem"))


def sources(options: argparse.Namespace) -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
    """(name, past [N, K], present [N, K], labels [N])."""
    for spread in options.spread:
        yield f"made up, spread {spread:g}", *made_up(4096, options.classes, spread)
    if options.checkpoints:
        past, present = options.checkpoints
        before, labels = answers(past)
        yield f"{past.stem}, {present.stem}", before, answers(present)[0], labels


def made_up(count: int, classes: int, spread: float) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (count,), generator=generator)
    shared = torch.randn(count, classes, generator=generator)
    shared[torch.arange(count), labels] += BUMP
    past, present = (spread * (shared + DRIFT * torch.randn(count, classes, generator=generator)) for _ in range(2))
    return past, present, labels


@torch.no_grad()
def answers(path: Path) -> tuple[Tensor, Tensor]:
    """Logits [N, K] of a checkpoint's network for the validation images of its own recipe, and labels [N]."""
    content = read_checkpoint(path)
    network = network_from_checkpoint(path, content["classes"])[0].eval()
    recipe = Recipe.model_validate(content["recipe"])
    index = open_dataset(recipe.data, "val", lambda text: None)
    batches = list(eval_loader(index, recipe.data, batch=recipe.evaluate.batch, device=CPU, half=False))
    logits = torch.cat([network(batch.images)[batch.valid] for batch in batches])
    return logits, torch.cat([batch.labels[batch.valid] for batch in batches])


def errors(past: Tensor, present: Tensor, labels: Tensor, share: float, layout: Layout) -> tuple[float, float]:
    """Relative error of the mean loss, and of its gradient at the logits as a norm, against the dense float32 form."""
    exact = past.softmax(1)
    found = [with_gradient(present, labels, history, share) for history in (exact, layout.unpack(layout.pack(exact)))]
    (loss, gradient), (other, approximate) = found
    return abs(other / loss - 1).item(), ((approximate - gradient).norm() / gradient.norm()).item()


def with_gradient(present: Tensor, labels: Tensor, history: Tensor, share: float) -> tuple[Tensor, Tensor]:
    logits = present.clone().requires_grad_()
    target = progressive_target(labels, history, torch.full((len(labels),), share))
    loss = soft_cross_entropy(logits, target)
    (gradient,) = torch.autograd.grad(loss, logits)
    return loss.detach(), gradient


def add_arguments(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    sub = commands.add_parser("pskd", help="PS-KD's memory: bytes and errors", description=pskd.__doc__)
    sub.add_argument("--samples", type=int, default=1_281_167)
    sub.add_argument("--classes", type=int, default=1000)
    sub.add_argument("--keep", type=int, nargs="+", default=[4, 16, 64], help="of the form topk")
    sub.add_argument("--share", type=float, default=0.8, help="of the past in the target")
    sub.add_argument("--spread", type=float, nargs="*", default=[1.0, 2.0, 4.0], help="of made-up logits")
    sub.add_argument("--touch", type=float, default=3.0, help="largest form to be filled, in GB")
    sub.add_argument("--checkpoints", type=Path, nargs=2, metavar=("PAST", "PRESENT"), help="of one run")
    sub.set_defaults(run_command=pskd)
