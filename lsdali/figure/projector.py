"""Features of images for the Projector of TensorBoard: vectors and labels as text, and the file that names them."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lsdali.disk import write_whole
from lsdali.errors import UserError
from lsdali.evaluate.runs import RECIPE_ENDINGS, Run
from lsdali.figure.reading import outputs_of
from lsdali.terminal import printable

CONFIG = "projector_config.pbtxt"


def numbers(runs: Sequence[Run], args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Return vectors and names of classes of each run, and into which folder they go. Collective.

    Raises UserError for a recipe without a run, where TensorBoard would look for nothing.
    """
    panels = []
    for run, title in zip(runs, args.titles, strict=True):
        if args.into is None and run.path.suffix in RECIPE_ENDINGS:
            raise UserError(f"{run.path} has no run folder: name the folder of TensorBoard with --into")
        found = outputs_of(run, args.overrides, args.classes, args.split, args.most, args.of, device)
        names = [found.names[label] for label in found.labels.tolist()]
        folder = args.into or run.path.parents[1] / "tensorboard"
        panels.append({"title": title, "folder": str(folder), "values": found.values.numpy(), "names": names})
    return {"figure": args.name, "of": args.of, "split": args.split, "runs": panels}


def write_files(found: Mapping[str, Any]) -> list[Path]:
    """Write a pair of files for each run, and one that names those of a folder; return them all."""
    out: list[Path] = []
    entries: dict[Path, list[str]] = {}
    for number, run in enumerate(found["runs"]):
        folder = Path(run["folder"])
        folder.mkdir(parents=True, exist_ok=True)
        stem = f"{found['split']}_{found['of']}" + (f"_{number}" if folder in entries else "")
        lines = ("\t".join(f"{value:.6g}" for value in row) for row in run["values"])
        tables = {f"{stem}.tsv": lines, f"{stem}_labels.tsv": map(printable, run["names"])}
        for name, rows in tables.items():
            write_whole(folder / name, "".join(f"{row}\n" for row in rows))
            out.append(folder / name)
        title = json.dumps(f"{run['title']}, {found['of']}, {found['split']}", ensure_ascii=False)
        entries.setdefault(folder, []).append(
            f'embeddings {{\n  tensor_name: {title}\n  tensor_path: "{stem}.tsv"\n'
            f'  metadata_path: "{stem}_labels.tsv"\n}}\n'
        )
    for folder, parts in entries.items():
        write_whole(folder / CONFIG, "".join(parts))
        out.append(folder / CONFIG)
    return out
