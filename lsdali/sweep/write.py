"""A table in the terminal, and as Markdown, CSV and LaTeX."""

import csv
import io
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table as RichTable

from lsdali.sweep.tables import Entry, Grid
from lsdali.terminal import printable

Show = Callable[[Entry], str]
TEX_ESCAPES = {c: f"\\{c}" for c in "&%$#_{}"} | {"±": "$\\pm$", "~": "\\textasciitilde{}", "\\": "\\textbackslash{}"}


def headings(grid: Grid) -> list[str]:
    """Return the heading of each column.

    These are the axes of the rows, then for each column its figures and their published numbers.
    """
    out = list(grid.axes[0])
    for column in grid.columns:
        prefix = [f"{axis}={label}" for axis, label in zip(grid.axes[1], column, strict=True)]
        for name, known in grid.figures.items():
            out.append(" ".join([*prefix, name]))
            out += [" ".join([*prefix, "published"])] if known else []
    return out


def text_rows(grid: Grid, show: Show, plain: Callable[[str], str] = str) -> list[list[str]]:
    """Return the text of each cell, row by row; `plain` is done to labels and published numbers."""
    out = []
    for row in grid.rows:
        line = [plain(label) for label in row]
        for column in grid.columns:
            for name, known in grid.figures.items():
                entry = grid.entries.get((row, column, name))
                line.append(show(entry) if entry else "")
                line += [plain(entry.published) if entry else ""] if known else []
        out.append(line)
    return out


def ends_group(grid: Grid, number: int) -> bool:
    """Return whether the next row has another label on the first axis."""
    following = grid.rows[number + 1 : number + 2]
    return len(grid.axes[0]) > 1 and bool(following) and following[0][0] != grid.rows[number][0]


def to_terminal(grid: Grid, console: Console) -> None:
    out = RichTable(*headings(grid), title=grid.caption)
    for number, line in enumerate(text_rows(grid, lambda e: f"[bold]{e.text()}[/bold]" if e.best else e.text())):
        out.add_row(*map(printable, line), end_section=ends_group(grid, number))
    console.print(out)
    for note in grid.notes:
        console.print(printable(note), highlight=False, soft_wrap=True, markup=False)


def to_markdown(grid: Grid) -> str:
    rows = [headings(grid), *text_rows(grid, lambda e: f"**{e.text()}**" if e.best else e.text())]
    texts = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    rule = "|" + " --- |" * len(rows[0])
    return "\n".join([f"**{grid.caption}**", "", texts[0], rule, *texts[1:], "", "  \n".join(grid.notes), ""])


def to_latex(grid: Grid) -> str:
    """Return a tabular for the package booktabs."""

    def bold(entry: Entry) -> str:
        return rf"\textbf{{{escaped(entry.text())}}}" if entry.best else escaped(entry.text())

    own = len(grid.axes[0])
    out = [f"% {grid.caption}", rf"\begin{{tabular}}{{{'l' * own}{'r' * (len(headings(grid)) - own)}}}", r"\toprule"]
    out += [" & ".join(map(escaped, headings(grid))) + r" \\", r"\midrule"]
    for number, line in enumerate(text_rows(grid, bold, escaped)):
        out.append(" & ".join(line) + r" \\")
        out += [r"\midrule"] if ends_group(grid, number) else []
    return "\n".join([*out, r"\bottomrule", r"\end{tabular}", *(f"% {note}" for note in grid.notes), ""])


def escaped(text: str) -> str:
    return "".join(TEX_ESCAPES.get(c, c) for c in text)


def to_csv(grid: Grid) -> str:
    """Return one line a figure of a cell: labels, figure, mean, std, seeds, published, best; the numbers in full."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*grid.axes[0], *grid.axes[1], "figure", "mean", "std", "seeds", "published", "best"])
    for (row, column, name), entry in grid.entries.items():
        mean = [entry.mean] if entry.values else [""]
        std = [entry.std] if len(entry.values) > 1 else [""]
        writer.writerow([*row, *column, name, *mean, *std, len(entry.values), entry.published, int(entry.best)])
    return file.getvalue()


def write_tables(grids: Sequence[Grid], folder: Path) -> list[Path]:
    """Write every table in the three forms; the files."""
    out = []
    folder.mkdir(parents=True, exist_ok=True)
    for grid in grids:
        name = re.sub(r"\W+", "-", grid.caption.lower()).strip("-")
        for suffix, text in (("md", to_markdown(grid)), ("csv", to_csv(grid)), ("tex", to_latex(grid))):
            path = folder / f"{name}.{suffix}"
            part = folder / f".{path.name}.{os.getpid()}"  # several sweeps may write at once
            part.write_text(text, encoding="utf-8")
            part.replace(path)
            out.append(path)
    return out
