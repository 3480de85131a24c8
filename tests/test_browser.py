"""The pages in a real browser, as wide as a phone and as a screen, light and dark: all fits and can be read."""

import json
import re
import shutil
import subprocess
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lsdali.evaluate.figures import row
from lsdali.page import render
from lsdali.page.evaluation import evaluation
from lsdali.report import main as report
from lsdali.scan import main as scan
from tests.harness import make_images
from tests.test_report import begun, make_run

CHROMIUM = shutil.which("chromium")
pytestmark = [pytest.mark.cluster, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")]
FLAGS = ["no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking", "headless=new"]
FLAGS += ["disable-component-update", "disable-sync", "dump-dom"]
LOOK = """<script>
const light = text => { const [r, g, b] = text.match(/[\\d.]+/g).map(Number).map(v => v / 255)
  .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b };
const style = getComputedStyle(document.body);
const [low, high] = [light(style.color), light(style.backgroundColor)].sort((a, b) => a - b);
const wide = [...document.querySelectorAll("body *")].filter(e => !e.closest(".scroll, svg")
  && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.tagName);
const figures = [...document.querySelectorAll("figure > svg")].map(e => e.getBoundingClientRect());
document.querySelectorAll(".sortable button")[5]?.click();
const order = [...document.querySelectorAll(".sortable tbody tr")].map(row => row.cells[5].dataset.value);
const dark = matchMedia("(prefers-color-scheme: dark)").matches, ink = light(style.color);
const large = figures.filter(b => b.width > 99 && b.height > 80).length;
const found = { contrast: (high + .05) / (low + .05), wide, order, dark, ink, width: innerWidth, figures: large };
parent.document.body.innerHTML = "<pre>" + JSON.stringify(found) + "</pre>";
</script></body>"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One page of each kind, and how many figures it has."""
    base = tmp_path_factory.mktemp("pages")
    make_run(base / "runs/ce0", begun(0), [50.0, 62.0, 60.0])
    make_run(base / "runs/ce1", begun(1), [52.0, 63.0, 64.0])
    make_run(base / "runs" / ("long_" * 20), begun(0, "method={name: ls}"), [55.0, 70.0, 69.0])
    assert report([str(base / "runs"), "--html", str(base / "report.html")]) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LSDALI_CACHE", str(base / "cache"))
        assert scan([str(make_images(base / "images")), "--html", str(base / "scan.html")]) == 0
    found = evaluated()
    page = render("evaluate.html", "lsdali evaluate " + "runs/" * 40, part=evaluation(found, "runs/" * 40))
    (base / "evaluate.html").write_text(page)
    return {name: (base / f"{name}.html").read_text() for name in ("report", "scan", "evaluate")}


def evaluated() -> dict[str, Any]:
    """What --json would hold of two made-up runs with long names."""
    random = np.random.default_rng(0)
    names = ["runs/" * 12 + "a", "runs/" * 12 + "b"]
    labels = torch.from_numpy(random.integers(0, 4, 80))
    rows = [row(name, "all", torch.from_numpy(random.normal(size=(80, 4))), labels, ()) for name in names]
    facts = {"weights": "model", "epoch": 1, "step": 3, "data": "the test data"}
    classes = ["cat", "dog", "ship", "a class with a very long name indeed"]
    found = {"runs": [{"run": name, "checkpoint": name, **facts} for name in names], "rows": [asdict(r) for r in rows]}
    return {**found, "views": None, "classes": classes, "temperature": None, "fits": [], "ensembles": []}


@pytest.mark.parametrize("scheme", ["dark", "light"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize(("name", "figures"), [("report", 6), ("evaluate", 4), ("scan", 0)])
def test_a_page_fits_and_is_readable(
    pages: dict[str, str], tmp_path: Path, name: str, figures: int, width: int, scheme: str
) -> None:
    copy = tmp_path / "page.html"
    inner = escape(pages[name].replace("</body>", LOOK))  # a window cannot be narrower than 500 pixels, a frame can
    style = f"border: 0; width: {width}px; height: 800px"
    copy.write_text(f'<body><iframe style="{style}" srcdoc="{inner}"></iframe></body>')
    flags = [*FLAGS, f"user-data-dir={tmp_path / 'profile'}", "window-size=1400,900"]
    flags.append(f"blink-settings=preferredColorScheme={['dark', 'light'].index(scheme)}")
    command = [str(CHROMIUM), *(f"--{flag}" for flag in flags), copy.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = json.loads(re.search("<pre>(.*)</pre>", done.stdout)[1].replace("&gt;", ">"))  # type: ignore[index]
    assert found["width"] == width
    assert found["dark"] == (scheme == "dark")
    assert (found["ink"] > 0.5) == (scheme == "dark")
    assert found["contrast"] > 7  # WCAG 2, level AAA
    assert found["wide"] == []
    assert found["figures"] >= figures
    if name == "report":
        assert found["order"] == sorted(found["order"], key=float)
        assert len(found["order"]) == 4
