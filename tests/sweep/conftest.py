"""Sweep files for tests."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lsdali.sweep.cells import Cell, expand, load_sweep
from lsdali.sweep.figures import check_figures
from lsdali.sweep.schema import Sweep
from tests.harness import ROOT

Open = Callable[..., tuple[Sweep, list[Cell]]]


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Open:
    """Write a sweep file into an empty folder, and return it with its cells."""
    monkeypatch.chdir(tmp_path)

    def write(text: str, *overrides: str) -> tuple[Sweep, list[Cell]]:
        path = tmp_path / "mine.yaml"
        path.write_text(text.replace("RECIPES", str(ROOT / "recipes/digits")))
        sweep = load_sweep(path)
        cells = expand(sweep, path, overrides)
        check_figures(sweep, cells)
        for cell in cells:
            cell.recipe()
        return sweep, cells

    return write
