"""What every network can do, each tried here: size, dense votes, one graph for the compiler, DDP, memory layout.

Start it with torchrun on two ranks; they share the work. On one process the column about ranks stays empty.
"""

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torchvision
from torch import Tensor, nn

from benchmarks.layouts import COPYING, conversions
from benchmarks.models import image_size, known
from lsdali import dist
from lsdali.bench.machine import found_version, hardware
from lsdali.build import wrap
from lsdali.errors import UserError, first_line
from lsdali.models import CIFAR, MODELS, ModelConfig, build_network
from lsdali.models.aux_heads import DenseVotes
from lsdali.models.digest import weights_digest
from lsdali.models.families.torchvision import TORCHVISION, torchvision_name
from lsdali.models.student import Network, Student
from tests.models.published import MILLIONS, PUBLISHED

CLASSES = 10
HEADER = ("network", "px", "parameters", "published", "stages", "dense votes", "one graph", "two ranks", "copies")


@dataclass(frozen=True, slots=True)
class Row:
    """What was found of one network; `notes` are told below the table."""

    cells: tuple[str, ...]
    notes: tuple[str, ...]


def small_size(name: str) -> int:
    """The side of images that show the same as the network's own, in less time."""
    if name.startswith("san"):
        return 128
    return image_size(name) if name in CIFAR or "/" in name else 96


def fresh(name: str) -> Student:
    """The network with dense votes where its head can read single positions, its numbers drawn from seed 0."""
    torch.manual_seed(0)
    network = build_network(ModelConfig(name=name), CLASSES)
    return Student(network, {"votes": DenseVotes()} if network.channels and network.positionwise else {})


def images_for(name: str, seed: int) -> Tensor:
    """[2, 3, H, W], channels last."""
    side = small_size(name)
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(seed))
    return images.to(memory_format=torch.channels_last)


def tried(check: Callable[[], str]) -> str:
    """What the check says, or why it failed."""
    try:
        return check()
    except Exception as fault:  # whatever a network, a compiler or a process group raises is the answer
        return f"no: {type(fault).__name__}: {first_line(fault)}"[:200]


# ---- the checks


def published(name: str) -> dict[int, str]:
    """Parameters by number of classes, as the papers' code, the papers or torchvision give them."""
    found = {k: f"{n:,}" for (key, k), n in PUBLISHED.items() if key == name}
    found |= {k: f"{n} M" for (key, k), n in MILLIONS.items() if key == name}
    if not found and name in TORCHVISION and name != "densenet264":
        weights = next(iter(torchvision.models.get_model_weights(torchvision_name(name))))
        found = {1000: f"{weights.meta['num_params']:,}"}
    return found


def sizes(name: str) -> tuple[str, str]:
    """Parameters here and as published, for the number of classes that the source has."""
    classes, told = next(iter(published(name).items()), (100 if name in CIFAR else 1000, ""))
    with torch.device("meta"):
        count = sum(p.numel() for p in build_network(ModelConfig(name=name), classes).parameters())
    return f"{count:,} ({classes})", told


@torch.no_grad()
def votes_are_predictions(name: str) -> str:
    """Whether the vote of a position is what the network predicts from a last map that is this position alone."""
    student = fresh(name)
    network = student.network
    if "votes" not in student.aux_heads:
        return "no: the head reads all positions at once" if network.channels else "no: it has no maps"
    images = images_for(name, 1)
    know_norms(student, images)
    out = student.eval()(images)
    if not out.logits.isfinite().all():
        return "no: its outputs are not finite"
    votes = out.aux_heads["votes"]
    stage, last = list(network.maps(images).items())[-1]
    wide = last.shape[3]
    for position in range(votes.shape[1]):
        one = {stage: last[:, :, position // wide, position % wide][:, :, None, None]}
        if not torch.equal(votes[:, position], best_class(network, one)):
            return f"no: position {position} votes for another class"
    return f"yes, {votes.shape[1]} positions"


@torch.no_grad()
def know_norms(student: Student, images: Tensor) -> None:
    """Set running statistics to those of a batch; with the ones they begin with, deep maps of SAN overflow."""
    for part in student.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = None  # the mean over all batches, and this is the first
    student.train()(images)


def best_class(network: Network, maps: dict[str, Tensor]) -> Tensor:
    """[B] int64 by the network's own head; SqueezeNet's last ReLU, under which classes tie at 0, is left out."""
    features = network.features(maps)
    out: Tensor = network.classifier(features)
    return out.argmax(1)


def one_graph(name: str) -> str:
    """Whether torch.compile finds one graph for a training forward, with the same outputs."""
    torch.compiler.reset()
    found = []
    for compiled in (False, True):
        student = fresh(name)
        forward = torch.compile(student, backend="eager", fullgraph=True) if compiled else student
        torch.manual_seed(1)
        out = forward(images_for(name, 1))
        found.append([out.logits.detach(), *out.aux_heads.values()])
    torch.compiler.reset()
    same = all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    return "yes" if same else "no: other outputs"


def two_ranks(name: str) -> str:
    """Whether a step under DDP gives every parameter a gradient, the same on all ranks. Call it on every rank."""
    student = fresh(name)
    wrapped = wrap(student, torch.device("cpu"))
    images = images_for(name, dist.rank())
    nn.functional.cross_entropy(wrapped(images).logits, torch.tensor([0, 1])).backward()  # type: ignore[no-untyped-call]
    without = [key for key, p in student.named_parameters() if p.grad is None]
    digests = dist.gather_objects(
        weights_digest({k: p.grad for k, p in student.named_parameters() if p.grad is not None})
    )
    if without:
        return f"no: no gradient for {without[0]}"
    return "yes" if len(set(digests)) == 1 else "no: the ranks have other gradients"


def copies(name: str) -> tuple[str, tuple[str, ...]]:
    """How many operations of a training step bring maps into another layout, and which, by whose code."""
    found = conversions(fresh(name), images_for(name, 1))
    copying = {key: count for key, count in found.items() if key[0] in COPYING}
    return str(sum(copying.values())), tuple(f"{op} in {position} x {n}" for (op, position), n in copying.items())


def row(name: str, ranks: str) -> Row:
    ours, published = sizes(name)
    channels = fresh(name).network.channels
    moved, notes = copies(name)
    votes, graph = tried(lambda: votes_are_predictions(name)), tried(lambda: one_graph(name))
    cells = (name, str(small_size(name)), ours, published, str(len(channels)), votes, graph, ranks, moved)
    return Row(cells, notes)


# ---- the table


def networks(options: argparse.Namespace) -> None:
    """Every network and what it can do."""
    for name in options.names:
        known(name)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of torch's deprecations, once a network
    with dist.session() as device:
        if device.type != "cpu":
            raise UserError("this table is made on the CPU: set CUDA_VISIBLE_DEVICES= to hide the GPUs")
        mine: dict[str, Row] = {}
        for number, name in enumerate(options.names):
            # Both ranks first, then each the rest of its share, so that neither waits long for the other.
            ranks = tried(lambda name=name: two_ranks(name)) if dist.active() else ""  # type: ignore[misc]
            if number % dist.world() == dist.rank():
                mine[name] = row(name, ranks)
                print(f"{name}: {mine[name].cells[3:]}", file=sys.stderr, flush=True)
        found = {name: one for part in dist.gather_objects(mine) for name, one in part.items()}
        if dist.is_main():
            tell([found[name] for name in options.names])


def tell(rows: Sequence[Row]) -> None:
    """The table in Markdown on stdout."""
    timm = found_version("timm")
    print(hardware(f"timm {timm}, {dist.world()} processes of 1 torch thread, {CLASSES} classes, batch 2"))
    print("\n| " + " | ".join(HEADER) + " |")
    print("|---" * len(HEADER) + "|")
    for one in rows:
        print("| " + " | ".join(one.cells) + " |")
    noted = [f"* {one.cells[0]}: {', '.join(one.notes)}" for one in rows if one.notes]
    print("\nOperations that copy maps into another layout:\n\n" + ("\n".join(noted) or "none"))


def add_arguments(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    sub = commands.add_parser("networks", help="what every network can do", description=__doc__)
    sub.add_argument("names", nargs="*", default=list(MODELS), metavar="NAME", help="networks, as in recipes")
    sub.set_defaults(run_command=networks)
