"""Figures as inline SVG. Text and axes take the colour of the page's text, so that a dark page stays readable."""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from lsdali.errors import UserError

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Those of Okabe and Ito (2008) that read well on white and on black: told apart with any common colour blindness."""
MARKERS = ("o", "^", "s")
DASHES = ((), (6, 2), (2, 2), (6, 2, 2, 2))
INK = "#010203"  # stands for the page's own text colour


@dataclass(frozen=True)
class PlotLine:
    """A curve with an optional band; `style` numbers its colour and dashes, and its name in the Panel."""

    x: Sequence[float]
    y: Sequence[float]
    style: int
    low: Sequence[float] = field(default_factory=list)
    high: Sequence[float] = field(default_factory=list)


@dataclass(frozen=True)
class Panel:
    """Figures that share a legend."""

    names: Sequence[str]  # of the styles 0, 1, 2, ...
    svgs: Sequence[str]

    @property
    def legend(self) -> list[tuple[str, str, str]]:
        """Name, colour and SVG dash pattern of each style."""
        return [(name, colour(k), " ".join(map(str, dashes(k)))) for k, name in enumerate(self.names)]


def colour(style: int) -> str:
    return COLOURS[style % len(COLOURS)]


def dashes(style: int) -> tuple[int, ...]:
    return DASHES[style // len(COLOURS) % len(DASHES)]


@contextmanager
def drawing(size: tuple[float, float]) -> Iterator[tuple[Any, list[str]]]:
    """Yield a matplotlib Figure of so many inches, and a list that holds its SVG at the end.

    Raises UserError if matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("figures need matplotlib: pip install 'lsdali[plots]', or leave out --html") from None
    names = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color")
    style: Any = {
        **dict.fromkeys(names, INK),
        "svg.fonttype": "none",
        "font.size": 10,
        "font.family": "sans-serif",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.15,
        "path.simplify_threshold": 0.5,
    }
    with matplotlib.rc_context(style):
        figure = Figure(size, layout="constrained")
        canvas: Any = FigureCanvasSVG(figure)
        svg: list[str] = []
        file = io.StringIO()
        yield figure, svg
        figure.patch.set_visible(False)
        for axes in figure.axes:
            axes.patch.set_visible(False)
        canvas.print_svg(file, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    svg.append(inline(file.getvalue()))


def inline(svg: str) -> str:
    """Return an SVG file as an element of a page: no prolog, no addresses, text in the page's colour, two decimals."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r' xmlns(:\w+)?="[^"]*"', "", body)
    body = re.sub(r' id="[A-Za-z][A-Za-z0-9.]*_\d+"', "", body)  # the same in every figure, and used by none
    body = re.sub(r"<[^>]+>", lambda tag: re.sub(r"(\d+\.\d{2})\d+", r"\1", tag[0]), body)
    body = re.sub(r"font-family: '[^;]*;", "font-family: system-ui, sans-serif;", body)
    return body.replace(INK, "currentColor")


def curve_figure(title: str, x: str, y: str, curves: Sequence[PlotLine]) -> str:
    """Return curves over one axis; a curve of one point is a dot."""
    with drawing((4.1, 2.8)) as (figure, svg):
        axes = figure.add_subplot(title=title, xlabel=x, ylabel=y)
        for curve in curves:
            marker = "o" if len(curve.x) == 1 else ""
            dash = (0, dashes(curve.style)) if dashes(curve.style) else "-"
            axes.plot(curve.x, curve.y, color=colour(curve.style), linestyle=dash, marker=marker, linewidth=1.5)
            if len(curve.low):
                axes.fill_between(curve.x, curve.low, curve.high, color=colour(curve.style), alpha=0.2, linewidth=0)
        axes.xaxis.get_major_locator().set_params(integer=all(float(x).is_integer() for c in curves for x in c.x))
    return described(svg[0], f"{title}: {y} over {x}")


def reliability_figure(bins: Sequence[Mapping[str, Any]]) -> str:
    """Return accuracy against mean confidence of each bin that holds samples, and below it the share of samples."""
    total = sum(b["count"] for b in bins)
    full = [b for b in bins if b["count"]]
    left, width = [b["lower"] for b in full], [b["upper"] - b["lower"] for b in full]
    with drawing((3.4, 4.0)) as (figure, svg):
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        bars = [b["accuracy"] for b in full]
        upper.bar(left, bars, width, align="edge", color=COLOURS[0], alpha=0.55)
        upper.plot([b["confidence"] for b in full], bars, "o", color=COLOURS[1], markersize=4)
        upper.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle="--")
        upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
        lower.bar(left, [100 * b["count"] / total for b in full], width, align="edge", color=COLOURS[0])
        lower.set(xlabel="confidence", ylabel="samples (%)")
    return described(svg[0], "reliability diagram")


def gains_figure(title: str, values: Sequence[float]) -> str:
    """Return gains of the classes, sorted, as bars around zero."""
    values = sorted(values, reverse=True)
    with drawing((4.1, 2.5)) as (figure, svg):
        axes = figure.add_subplot(title=title, xlabel="classes, sorted by gain", ylabel="accuracy gain (points)")
        colours = [COLOURS[0] if value >= 0 else COLOURS[1] for value in values]
        axes.bar(range(1, len(values) + 1), values, width=1.0, color=colours)
        axes.axhline(0, color=INK, linewidth=0.8)
    return described(svg[0], title)


def scatter_figure(
    points: Sequence[Sequence[float]], labels: Sequence[int], centroids: Sequence[Sequence[float]]
) -> str:
    """Return points of classes in a plane with equal scales, and the classes' centroids."""
    with drawing((4.1, 4.1)) as (figure, svg):
        axes = figure.add_subplot(xlabel="first principal axis", ylabel="second principal axis")
        for k, (x, y) in enumerate(centroids):
            own = [point for point, label in zip(points, labels, strict=True) if label == k]
            kind = {"color": colour(k), "marker": MARKERS[k % len(MARKERS)], "linestyle": ""}
            axes.plot([p[0] for p in own], [p[1] for p in own], markersize=4, alpha=0.5, **kind)
            axes.plot([x], [y], markersize=11, markeredgecolor=INK, **kind)
        axes.set_aspect("equal", adjustable="datalim")
    return described(svg[0], "features in a plane")


def described(svg: str, text: str) -> str:
    """Give screen readers a name for the figure, instead of its labels one by one."""
    from html import escape

    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(text)}"', 1)
