"""The figures by name: what each asks for, reads and draws."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from lsdali.evaluate.runs import Run

Numbers = Callable[[Sequence["Run"], argparse.Namespace, "torch.device"], dict[str, Any]]
"""Runs, arguments (with `overrides` and `titles`), device -> what --out FILE.json holds. Collective."""


@dataclass(frozen=True)
class FigureKind:
    """One figure."""

    text: str  # for the help
    options: Callable[[argparse.ArgumentParser], None]
    module: str  # in lsdali.figure: it has `numbers`, and `size` and `draw`, or `write_files` where nothing is drawn
    drawn: bool = True


def embedding_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--classes", nargs="+", required=True, metavar="CLASS", help="such as dog cat ship")
    parser.add_argument("--of", choices=("logits", "features"), default="logits", help="default: logits")
    shared_options(parser, "images of each class (default: all)")


def shared_options(parser: argparse.ArgumentParser, most: str) -> None:
    parser.add_argument("--split", choices=("train", "val"), default="val", help="of which split (default: val)")
    parser.add_argument("--most", type=int, metavar="N", help=f"the first N {most}")


def projector_options(parser: argparse.ArgumentParser) -> None:
    spread_options(parser)
    parser.add_argument("--of", choices=("logits", "features"), default="features", help="default: features")
    parser.add_argument("--into", metavar="FOLDER", help="default: the folder tensorboard of each run")


def tsne_options(parser: argparse.ArgumentParser) -> None:
    embedding_options(parser)
    parser.add_argument("--perplexity", type=float, default=30.0, help="of t-SNE (default: 30)")
    parser.add_argument("--seed", type=int, default=0, help="of t-SNE (default: 0)")


def projection_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--classes", nargs=3, required=True, metavar="CLASS", help="two alike and another")


def diffusion_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--target", required=True, metavar="CLASS", help="the class whose distances are compared")
    parser.add_argument("--similar", nargs="+", required=True, metavar="CLASS")
    parser.add_argument("--dissimilar", nargs="+", required=True, metavar="CLASS")
    shared_options(parser, "images of each class (default: all)")


def matrix_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--collect", choices=("train", "val"), help="collect it now from a split, not from the checkpoint of an OLS run"
    )
    parser.add_argument("--human", metavar="FILE", help="compare with the votes in CIFAR-10H's cifar10h-probs.npy")


def spread_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--classes", nargs="+", metavar="CLASS", help="of these classes (default: all)")
    shared_options(parser, "images of each class (default: all)")


FIGURE_KINDS: Mapping[str, FigureKind] = {
    "tsne": FigureKind("t-SNE of the logits or features of some classes, a panel per run", tsne_options, "embedding"),
    "pca": FigureKind("their first two principal components", embedding_options, "embedding"),
    "projection": FigureKind("LS-KD's sheet: features of three classes in a plane", projection_options, "sheet"),
    "diffusion": FigureKind("LS-KD's diffusion index of later runs against the first", diffusion_options, "diffusion"),
    "ols": FigureKind("OLS's matrix of soft labels as a heat map, and nearest classes", matrix_options, "matrix"),
    "projector": FigureKind("features for the Projector of TensorBoard", projector_options, "projector", drawn=False),
    "spread": FigureKind("spread inside classes and separability", spread_options, "classes"),
}
