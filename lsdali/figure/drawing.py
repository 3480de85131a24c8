"""Drawing for papers: matplotlib figures into SVG, PDF and PNG files, and their numbers into JSON."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lsdali.errors import UserError
from lsdali.page.figures import COLOURS, MARKERS

SUFFIXES = (".svg", ".pdf", ".png", ".json")
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "lsdali",
    "pdf.fonttype": 42,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "savefig.dpi": 200,
}
PANEL = 2.6  # inches a side

Draw = Callable[[Any, Mapping[str, Any]], None]  # a matplotlib figure, what to draw


def check_files(paths: Sequence[Path]) -> None:
    """Raise UserError if a file has another ending than those known, cannot be written, or needs matplotlib."""
    for path in paths:
        if path.suffix not in SUFFIXES:
            raise UserError(f"--out {path}: the ending says the format: {', '.join(SUFFIXES)}")
        if not path.parent.is_dir():
            raise UserError(f"{path} cannot be written: there is no folder {path.parent}")
    if any(path.suffix != ".json" for path in paths):
        try:
            import matplotlib  # noqa: F401
        except ImportError:
            raise UserError(
                "figures need matplotlib: pip install 'lsdali[plots]', or --out FILE.json for the numbers alone"
            ) from None


def write(paths: Sequence[Path], found: Mapping[str, Any], size: tuple[float, float], draw: Draw) -> None:
    """Write the numbers, and the figure of so many inches, drawn once for all formats."""
    pictures = [path for path in paths if path.suffix != ".json"]
    for path in paths:
        if path.suffix == ".json":
            path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if not pictures:
        return
    import matplotlib
    from matplotlib.figure import Figure

    style: Any = STYLE
    with matplotlib.rc_context(style):
        figure = Figure(size, layout="constrained")
        draw(figure, found)
        for path in pictures:
            dates: Any = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
            figure.savefig(path, metadata=dates.get(path.suffix))


def scatter(
    axes: Any,
    points: Sequence[Sequence[float]],
    labels: Sequence[int],
    names: Sequence[str],
    middles: Sequence[Sequence[float]] = (),
) -> None:
    """Draw points [N, 2] of classes, each with its colour and marker, and a star at each class's centroid."""
    for k, name in enumerate(names):
        own = [p for p, label in zip(points, labels, strict=True) if label == k]
        kind = {"color": COLOURS[k % len(COLOURS)], "linestyle": "", "label": name}
        marker = MARKERS[k % len(MARKERS)]
        axes.plot([p[0] for p in own], [p[1] for p in own], marker=marker, markersize=3, alpha=0.6, mew=0, **kind)
    for k, (x, y) in enumerate(middles):
        axes.plot([x], [y], marker="*", markersize=12, color=COLOURS[k % len(COLOURS)], mec="black", mew=0.6)


def legend(figure: Any, axes: Any) -> None:
    """Draw one legend for all panels, above them."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, markerscale=2)
