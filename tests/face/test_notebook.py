"""The notebook, cell by cell: from images to a report."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.harness import ROOT, summary


def test_the_notebook_goes_from_images_to_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LSDALI_CACHE", str(tmp_path / "cache"))
    cells = json.loads((ROOT / "docs/own_images.ipynb").read_text())["cells"]
    names: dict[str, Any] = {"__name__": "notebook"}
    for cell in cells:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [], "outputs are not kept in the repository"
            exec("".join(cell["source"]), names)
    assert (tmp_path / "scan.html").stat().st_size > 1000
    page = (tmp_path / "report.html").read_text()
    for name in ("ce", "ls"):
        assert f"{summary(tmp_path / 'runs' / name)['last']['top1']:.2f}" in page
    assert [one.fault for one in names["predictions"]] == [None] * 8
