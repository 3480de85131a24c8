"""Look at a data set before training: `lsdali scan ROOT [--full] [--json FILE] [--html FILE]`.

Counts, sizes, formats, bad files, copies, and images that train and val share. It also renews the index that
training reads. The exit status is 0 if nothing is to be mended, 1 if something is, 2 for bad input.
"""

import argparse
import json
import re
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lsdali.errors import UserError, command
from lsdali.terminal import say

WNID = re.compile(r"n\d{8}")


@command
def main(argv: Sequence[str] | None = None) -> int:
    given = sys.argv[1:] if argv is None else list(argv)
    return scan(arguments().parse_args(given), shlex.join(["lsdali", "scan", *given]))


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lsdali scan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", metavar="ROOT", help="folder of the data set, as in data.root")
    parser.add_argument("--data", metavar="NAME", help="the recipe's data.name; guessed from the folder if left out")
    parser.add_argument("--train-dir", metavar="DIR", help="as in data.train_dir")
    parser.add_argument("--val-dir", metavar="DIR", help="as in data.val_dir")
    parser.add_argument("--full", action="store_true", help="also decode every file, to find damaged bodies")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything found to FILE")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with a contact sheet to FILE")
    return parser


def scan(args: argparse.Namespace, command: str) -> int:
    """Scan both splits, print what was found, write what was asked for; `command` stands on the page."""
    from lsdali.data.index.scan_report import as_html, as_text, contact_sheet, problems, summarize
    from lsdali.data.index.scan_split import SplitScan, copies, corrupt, scan_split
    from lsdali.data.io.byte_range import is_url
    from lsdali.page.render import write_file

    if is_url(args.root):
        raise UserError("lsdali scan reads folders of this machine; look at the files before they go into a store")
    config = dataset(args)
    parts: dict[Any, SplitScan] = {}
    summary: dict[str, Any] = {"root": args.root, "data": config.name, "splits": {}}
    for split in ("train", "val"):
        started = time.perf_counter()
        parts[split] = scan_split(config, split)
        part = summary["splits"][split] = summarize(parts[split])
        part["seconds"] = round(time.perf_counter() - started, 3)
        if args.full:
            part["corrupt"] = corrupt(parts[split])
    summary |= sorted_copies(copies(parts))
    say(as_text(summary))
    if args.json is not None:
        write_file(args.json, json.dumps(summary, indent=1))
    if args.html is not None:
        sheets = {split: contact_sheet(part) for split, part in parts.items()}
        write_file(args.html, as_html(summary, sheets, command))
    return 1 if problems(summary) else 0


def dataset(args: argparse.Namespace) -> Any:
    """Return the data set's config, as a recipe that names it would have it."""
    from lsdali.data import DATASETS
    from lsdali.data.sets.catalog import CenterCrop, RandomResizedCrop

    name = args.data or guess(Path(args.root).expanduser(), args.train_dir or "train")
    if name not in DATASETS:
        raise UserError(f"--data {name} is unknown; choose from {', '.join(DATASETS)}")
    kind = DATASETS[name]
    given: dict[str, Any] = {"root": args.root}
    for key in ("train_dir", "val_dir"):
        if (value := getattr(args, key)) is not None:
            if key not in kind.model_fields:
                raise UserError(f"data set {name} has its own folders; leave --{key.replace('_', '-')} out")
            given[key] = value
    if kind.model_fields["train"].is_required():  # crops play no part in a scan
        given |= {"train": RandomResizedCrop(size=224), "eval": CenterCrop(resize=256, size=224)}
    return kind(**given)


def guess(root: Path, train_dir: str) -> str:
    """Return tinyimagenet by its wnids.txt, shards by their ending, imagenet by its class names, else folder."""
    from lsdali.data.sets.listing import class_names

    if (root / "wnids.txt").is_file():
        return "tinyimagenet"
    train = root / train_dir
    if any(train.glob("*.tar")):
        return "shards"
    names = class_names(root, train_dir) if train.is_dir() else []
    return "imagenet" if names and all(WNID.fullmatch(name) for name in names) else "folder"


def sorted_copies(groups: list[list[dict[str, str]]]) -> dict[str, list[list[dict[str, str]]]]:
    """Return each group once: shared by train and val, else under several classes, else in one class."""
    out: dict[str, list[list[dict[str, str]]]] = {"shared": [], "label_conflicts": [], "repeated": []}
    for group in groups:
        if len({f["split"] for f in group}) > 1:
            out["shared"].append(group)
        elif len({f["class"] for f in group}) > 1:
            out["label_conflicts"].append(group)
        else:
            out["repeated"].append(group)
    return out


if __name__ == "__main__":
    sys.exit(main())
