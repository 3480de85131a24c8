"""What the README shows runs, and what it names exists."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.readme import HEAD, mended
from lsdali.data import DATASETS
from lsdali.list import LISTINGS
from lsdali.methods import METHODS
from lsdali.models import MODELS
from lsdali.optim import OPTIMIZERS
from tests.harness import ROOT

TEXT = (ROOT / "README.md").read_text()


def test_the_lines_for_a_loop_of_ones_own() -> None:
    torch.manual_seed(0)
    classes, batch = 7, 6
    maps = torch.randn(batch, 5, 3, 3, requires_grad=True)
    classifier = nn.Linear(5, classes)
    logits = classifier(maps.mean((2, 3)))
    labels = torch.randint(classes, (batch,))
    names = {
        **{"torch": torch, "maps": maps, "classifier": classifier, "logits": logits, "labels": labels},
        **{"classes": classes, "epoch": 2, "epochs": 10, "index": torch.arange(batch)},
        **{"table": torch.zeros(classes, classes), "memory": torch.full((20, classes), 1 / classes)},
        **{"sums": torch.zeros(classes, classes), "counts": torch.zeros(classes)},
    }
    _, code = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    losses = []
    for part in code.split("\n\n"):
        exec(part, names)
        if "loss" in names:
            losses.append(names["loss"])
            (gradient,) = torch.autograd.grad(names["loss"], maps, retain_graph=True)
            assert gradient.isfinite().all()
            assert gradient.any()
    assert len(losses) == 3
    torch.testing.assert_close(names["table"].sum(1), torch.ones(classes))
    torch.testing.assert_close(names["memory"][:batch], logits.softmax(1).detach())


MEND = "`python -m benchmarks readme` mends this"


def names_in_the_table(text: str) -> list[str]:
    table = text.split(HEAD)[1].split("\n\n")[0]
    return [name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])]


def test_its_figures_are_those_of_the_registries() -> None:
    for what, known in (("methods", METHODS), ("networks", MODELS), ("kinds of data sets", DATASETS)):
        assert re.findall(rf"(\d+) {what}", TEXT) == [str(len(known))], MEND


def test_its_table_of_methods_names_each_once() -> None:
    assert sorted(names_in_the_table(TEXT)) == sorted(METHODS), MEND


def test_a_command_mends_figures_and_table() -> None:
    sentences = {name: f"What {name} does" for name in METHODS}
    assert mended(TEXT, sentences, len(MODELS), len(DATASETS)) == TEXT
    with_poly = mended(TEXT, {**sentences, "poly1": "Cross-entropy and more"}, 3, 4)
    assert f"| {len(METHODS) + 1} methods," in with_poly
    assert "| 3 networks," in with_poly
    assert "| 4 kinds of data sets," in with_poly
    assert "| `poly1` | Cross-entropy and more |\n\n" in with_poly
    gone = {name: text for name, text in sentences.items() if name not in ("kd", "ls")}
    assert sorted(names_in_the_table(mended(with_poly, gone, 1, 1))) == sorted(gone)


def test_what_its_text_names_of_data_sets_optimizers_and_schedules_is_all_there_is() -> None:
    part = TEXT.split("## Networks and data")[1].split("## Before")[0]
    augmentations = {name for name, _ in LISTINGS["augmentations"]()}
    for known in (DATASETS, OPTIMIZERS, augmentations, {name for name, _ in LISTINGS["schedules"]()}):
        assert [name for name in known if f"`{name}`" not in part and name != "timm"] == []


def test_the_lines_in_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSDALI_CACHE", str(tmp_path))
    code, _ = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    code = code.replace("epochs=1, method", f"epochs=1, run_dir={str(tmp_path / 'run')!r}, method")
    small = '**{"data.max_samples": 200, "model": {"name": "preact_resnet10", "width": 16}, "schedule": "constant"})'
    names: dict[str, Any] = {}
    exec(code.replace('"ls")', f'"ls", {small}'), names)
    assert names["result"].recipe.method.model_dump()["name"] == "ls"
    assert names["step"] == names["images"].steps_per_epoch - 1
    assert names["batch"].images.shape == (96, 3, 32, 32)


def test_it_says_how_to_list_what_a_recipe_can_name() -> None:
    assert "lsdali list" in TEXT


def test_files_that_it_links_to_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (ROOT / target).exists(), target


def test_the_tests_that_the_page_of_faults_names_exist() -> None:
    text = (ROOT / "docs/faults.md").read_text()
    named = {path.replace("t/", "tests/", 1) for path in re.findall(r"`(t/[\w/]+\.py)`", text)}
    named |= set(re.findall(r"tests/[\w/]+\.py", text))
    assert len(named) > 20
    assert not [path for path in sorted(named) if not (ROOT / path).is_file()]
