"""Summary of a scan: one plain dictionary, as text and as an HTML page with pictures."""

import base64
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lsdali.data.index.scan_split import FORMAT, HEIGHT, LENGTH, STATUS, TURN, WIDTH, SplitScan, bad, odd
from lsdali.data.io.byte_range import ByteRange
from lsdali.data.io.header import GOOD
from lsdali.data.io.image_formats import FORMAT_NAMES
from lsdali.page import render
from lsdali.terminal import printable

ROWS_SHOWN = 20  # rows of a list in text; JSON has them all
TILE, COLUMNS, TILES = 96, 12, 60  # the contact sheet: pixels a side, pictures a row, pictures in all


def summarize(part: SplitScan) -> dict[str, Any]:
    """Return counts, sizes, formats and faults of one split."""
    facts = part.facts[part.facts[:, STATUS] == GOOD]
    counts = np.bincount(part.index.labels, minlength=len(part.index.classes))
    return {
        "files": len(part.facts),
        "bytes": int(part.facts[:, LENGTH].sum()),
        "classes": dict(zip(part.index.classes, counts.tolist())),
        "per_class": _spread(counts),
        "width": _spread(facts[:, WIDTH]),
        "height": _spread(facts[:, HEIGHT]),
        "formats": {FORMAT_NAMES[k]: n for k, n in _counted(facts[:, FORMAT])},
        "orientations": {str(k): n for k, n in _counted(facts[:, TURN])},
        "misnamed": [part.path(int(i)) for i in part.misnamed()],
        "odd": odd(part),
        "left_out": part.index.left_out.summary(),
        "bad": bad(part),
    }


def _spread(values: NDArray[np.int64]) -> list[int]:
    """Smallest, median and largest; empty for nothing."""
    return [int(values.min()), int(np.median(values)), int(values.max())] if len(values) else []


def _counted(values: NDArray[np.int64]) -> list[tuple[int, int]]:
    kinds, counts = np.unique(values, return_counts=True)
    return list(zip(kinds.tolist(), counts.tolist()))


def problems(summary: dict[str, Any]) -> int:
    """Return how many things must be mended: bad files, and groups of images that train and val share."""
    files = sum(len(part["bad"]) + len(part.get("corrupt", [])) for part in summary["splits"].values())
    return files + len(summary["shared"])


def as_text(summary: dict[str, Any]) -> str:
    """Return what a terminal shows."""
    lines = [f"{summary['root']}, as data set {summary['data']}"]
    for split, part in summary["splits"].items():
        lines += ["", *_split_lines(split, part)]
    lines += ["", *_groups("images with the same bytes in train and val", summary["shared"])]
    lines += _groups("images with the same bytes under different classes", summary["label_conflicts"])
    lines += _groups("images with the same bytes in one class", summary["repeated"])
    found = problems(summary)
    lines += ["", "nothing to mend" if not found else f"{found} {'thing' if found == 1 else 'things'} to mend"]
    return "\n".join(map(printable, lines))


def _split_lines(split: str, part: dict[str, Any]) -> list[str]:
    def spread(name: str) -> str:
        return " / ".join(str(n) for n in part[name]) or "-"

    lines = [
        f"{split}: {part['files']:,} files in {len(part['classes']):,} classes, {part['bytes'] / 1e6:,.1f} MB",
        f"  files a class (least / median / most): {spread('per_class')}",
        f"  width: {spread('width')}   height: {spread('height')}",
        f"  formats: {', '.join(f'{k} {n:,}' for k, n in part['formats'].items()) or '-'}",
        f"  EXIF orientation: {', '.join(f'{k}: {n:,}' for k, n in part['orientations'].items()) or '-'}"
        " (1 is upright; data.exif_orientation turns the others)",
    ]
    empty = [name for name, n in part["classes"].items() if n == 0]
    lines += _rows("classes with no file", empty)
    lines += _rows("files whose ending names another format", part["misnamed"])
    lines += _rows("files whose pixels Pillow reads differently", [f"{b['path']}: {b['fault']}" for b in part["odd"]])
    lines += _left_out(part["left_out"])
    lines += _rows("bad files", [f"{b['path']}: {b['fault']}" for b in part["bad"]])
    if "corrupt" in part:
        lines += _rows("files with a damaged body", [f"{b['path']}: {b['fault']}" for b in part["corrupt"]])
    return lines


def _left_out(found: dict[str, Any]) -> list[str]:
    """What is among the files and is no data: kinds, counts, first names."""
    lines = []
    for kind, entry in found.items():
        if kind == "endings":
            lines.append(f"  endings left out: {', '.join(f'{ending} {n:,}' for ending, n in entry.items())}")
        else:
            more = [f"    and {entry['count'] - len(entry['first'])} more"] if entry["count"] > ROWS_SHOWN else []
            lines += [f"  left out, {kind}: {entry['count']:,}", *(f"    {name}" for name in entry["first"]), *more]
    return lines


def _rows(title: str, rows: list[str]) -> list[str]:
    more = [f"    and {len(rows) - ROWS_SHOWN} more"] if len(rows) > ROWS_SHOWN else []
    return [f"  {title}: {len(rows)}", *(f"    {row}" for row in rows[:ROWS_SHOWN]), *more]


def _groups(title: str, groups: list[list[dict[str, str]]]) -> list[str]:
    return _rows(title, [" = ".join(f"{f['path']} ({f['class']})" for f in group) for group in groups])


# ---- the page


def contact_sheet(part: SplitScan) -> str:
    """Return one good image of each of up to TILES classes, as the text of a data URL; empty if there is none."""
    good = np.flatnonzero(part.facts[:, STATUS] == GOOD)
    _, first = np.unique(part.index.labels[good], return_index=True)
    chosen = good[first][np.unique(np.linspace(0, len(first) - 1, min(TILES, len(first))).astype(int))]
    tiles = [tile for i in chosen.tolist() if (tile := _tile(part.byte_range(i))) is not None]
    if not tiles:
        return ""
    columns = min(COLUMNS, len(tiles))
    sheet = Image.new("RGB", (columns * TILE, -(-len(tiles) // columns) * TILE), "gray")
    for k, tile in enumerate(tiles):
        sheet.paste(tile, (k % columns * TILE + 2, k // columns * TILE + 2))
    out = io.BytesIO()
    sheet.save(out, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def _tile(byte_range: ByteRange) -> Image.Image | None:
    try:
        with Image.open(io.BytesIO(byte_range.content())) as image:
            image.draft("RGB", (2 * TILE, 2 * TILE))
            tile: Image.Image = image.convert("RGB")
    except Exception:  # a body that cannot be decoded has no picture
        return None
    tile.thumbnail((TILE - 4, TILE - 4))
    return tile


def as_html(summary: dict[str, Any], sheets: dict[str, str], command: str) -> str:
    """Return a page that stands alone; sheets: split -> data URL of its contact sheet."""
    return render("scan.html", command, s=summary, sheets=sheets, found=problems(summary))
