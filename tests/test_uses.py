"""Parts of recipes from another package: `uses`, installed entry points, and the importable contract test."""

import re
import shutil
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from lsdali import parts
from lsdali.cli import main
from lsdali.errors import UserError
from lsdali.optim import OPTIMIZERS
from lsdali.recipe import Recipe, load
from lsdali.state import checkpoint
from lsdali.testing import check_method
from tests.harness import ROOT, equal, events, make_images, tiny

PACKAGE = ROOT / "tests/outside/lsdali_outside"
OUTSIDE = "lsdali_outside.parts"
RECIPE = """
uses: [lsdali_outside.parts]
epochs: 2
batch: 8
data:
  name: outside_folder
  root: {images}
  train: {{crop: random_resized, size: 16, augment: [{{name: invert, probability: 0.5}}]}}
  eval: {{resize: 16, size: 16}}
  threads: 1
model: outside_net
method: {{name: poly1, epsilon: 0.5}}
optimizer: {{name: adagrad, lr: 0.01}}
schedule: constant
save: {{every_steps: 5}}
"""


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path with a copy of the package, of which nothing is left in our registries afterwards."""
    shutil.copytree(PACKAGE, tmp_path / "path/lsdali_outside")
    monkeypatch.syspath_prepend(tmp_path / "path")
    monkeypatch.setenv("LSDALI_CACHE", str(tmp_path / "cache"))
    yield tmp_path
    forget()


def forget() -> None:
    """Leave nothing of the package in our registries, nor among the imported modules."""
    for part in parts.USED.values():
        for registry, names in part.adds.items():
            for name in names:
                del parts.OPEN_REGISTRIES[registry].entries[name]
    parts.USED.clear()
    parts._modules.clear()
    parts._announced.clear()
    parts._grown()
    for name in [name for name in sys.modules if name.startswith("lsdali_outside")]:
        del sys.modules[name]


@pytest.fixture
def recipe(outside: Path) -> Path:
    make_images(outside / "images")
    path = outside / "outside.yaml"
    path.write_text(RECIPE.format(images=outside / "images"))
    return path


def test_a_recipe_trains_with_parts_of_another_package_and_resumes(
    recipe: Path, outside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from lsdali.train import run

    device = torch.device("cpu", 0)
    run(load(recipe, [f"run_dir={outside / 'whole'}"]), device)
    content = checkpoint.read(outside / "whole/checkpoints/best.pt")
    (used,) = content["uses"]
    assert (used["name"], used["version"]) == (OUTSIDE, "0.3")
    assert used["digest"] == parts.files_digest(sys.modules[OUTSIDE])
    assert events(outside / "whole", "begun")[0]["versions"][OUTSIDE] == "0.3"
    # The same again from the checkpoint in the middle, with another file in the package.
    shutil.copytree(outside / "whole", outside / "again")
    (outside / "again/checkpoints/step-0000000010.pt").unlink()
    (outside / "again/summary.json").unlink()
    (outside / "path/lsdali_outside/notes.py").write_text("# another file\n")
    forget()
    run(load(recipe, [f"run_dir={outside / 'again'}"]), device)
    told = [line["text"] for line in events(outside / "again", "message")]
    assert f"{OUTSIDE} has changed since the run was saved (files); it goes on with what is there" in told
    last = "checkpoints/step-0000000010.pt"
    first, second = (checkpoint.read(outside / name / last)["parts"]["student"] for name in ("whole", "again"))
    assert equal(dict(first), dict(second))


def test_a_logger_of_another_package_writes_what_the_run_reports(recipe: Path, outside: Path) -> None:
    from lsdali.train import main as train

    loggers = "log.loggers=[csv, {name: diary, file: mine.txt}]"
    assert train([str(recipe), f"run_dir={outside / 'run'}", loggers]) == 0
    lines = [f"{line['epoch']} {line['metrics']['top1']}" for line in events(outside / "run", "evaluated")]
    assert (outside / "run/mine.txt").read_text().splitlines() == lines
    assert len(lines) == 2
    (used,) = checkpoint.read(outside / "run/checkpoints/best.pt")["uses"]
    assert used["name"] == OUTSIDE


def test_a_loss_of_features_of_another_package(recipe: Path, outside: Path) -> None:
    from lsdali.train import main as train

    run = ["model=preact_resnet10", "model.width=16", "epochs=1"]
    assert train([str(recipe), f"run_dir={outside / 'teacher'}", *run]) == 0
    teacher = f"teacher: {{source: run, path: {outside / 'teacher'}}}"
    method = f"method={{name: kd, {teacher}, features: {{stages: [stage2], loss: overlap}}}}"
    assert train([str(recipe), f"run_dir={outside / 'run'}", *run, method]) == 0
    assert all(0 < line["terms"]["features"] < 4 for line in events(outside / "run", "trained"))
    with pytest.raises(UserError, match=r"method\.features\.loss\.name: 'overla'"):
        load(recipe, [method.replace("overlap", "overla")])


def test_evaluate_opens_a_checkpoint_that_uses_a_package(recipe: Path, outside: Path) -> None:
    from lsdali.evaluate.runs import open_run
    from lsdali.train import run

    run(load(recipe, [f"run_dir={outside / 'run'}", "epochs=1"]), torch.device("cpu", 0))
    forget()
    network = open_run(outside / "run", "best", "model").network
    assert (list(network.stages), network.classes) == (["only"], 5)


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 0
    return capsys.readouterr().out


def test_list_keys_and_schema_show_it(outside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {"methods": "poly1", "models": "outside_net", "data": "outside_folder", "optimizers": "adagrad"}
    for what, name in {**rows, "augmentations": "invert", "loggers": "diary"}.items():
        (line,) = [row for row in said(capsys, "list", what, "--uses", OUTSIDE).splitlines() if row.startswith(name)]
        assert line.endswith(f"  [{OUTSIDE}]")
    keys = said(capsys, "keys", "method.poly1", "--uses", OUTSIDE)
    assert "epsilon: number (>= 0) = 1.0\n    Weight of 1 - p" in keys
    kinds = Recipe.model_json_schema()
    assert "poly1" in kinds["properties"]["method"]["discriminator"]["mapping"]
    assert "outside_net" in kinds["$defs"]["ModelConfig"]["properties"]["name"]["anyOf"][0]["enum"]


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("log.loggers=[diar]", "log.loggers.0.name: 'diar' is not allowed; did you mean 'diary'?"),
        ("method.epsilon=-1", "method.epsilon: must be greater than or equal to 0"),
        ("method.epsilo=1", "method.epsilo: unknown key; did you mean 'epsilon'?"),
        ("method=poly", "method.name: 'poly' is not allowed; did you mean 'poly1'?"),
        ("model=outside_ne", "there is no model 'outside_ne'; did you mean 'outside_net'?"),
        ("uses=[nobody.has.this]", "uses: there is no module nobody.has.this to import"),
        ("uses=[json]", "uses: json has nothing for a recipe: it needs one of the dicts METHODS, MODELS"),
        ("uses=[lsdali_outside.broken]", "broken cannot be imported: ZeroDivisionError"),
        ("uses=[lsdali_outside.taken]", "lsdali_outside.taken has a method 'ce', a name that lsdali has taken"),
        ("uses=[lsdali_outside.misnamed]", """must be a class whose Config has `name: Literal["focal"] = "focal"`"""),
        ("uses=lsdali_outside.parts", "uses: expected a list, got the text"),
    ],
)
def test_errors_are_one_sentence(override: str, sentence: str, recipe: Path) -> None:
    with pytest.raises(UserError) as error:
        load(recipe, [override])
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_no_uses_refuses_by_name(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(parts.FORBIDDEN, "0")  # restored afterwards
    assert main(["train", str(recipe), "--print", "--no-uses"]) == 2
    assert capsys.readouterr().err == (
        f"error: {recipe}:2: uses: this needs code from {OUTSIDE}, which --no-uses refuses\n"
    )
    assert OUTSIDE not in sys.modules


@pytest.fixture(scope="module")
def used_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe that names the package, a sweep of it, and a run of it."""
    from lsdali.train import main as train

    base = tmp_path_factory.mktemp("used")
    shutil.copytree(PACKAGE, base / "path/lsdali_outside")
    make_images(base / "images")
    (base / "outside.yaml").write_text(RECIPE.format(images=base / "images"))
    (base / "sweep.yaml").write_text(
        f"title: T\nstages: {{train: {{recipe: {base}/outside.yaml, axes: {{a: {{key: epochs, values: [1, 2]}}}}}}}}\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(base / "path")
        patch.setenv("LSDALI_CACHE", str(base / "cache"))
        assert train([str(base / "outside.yaml"), f"run_dir={base / 'run'}", "epochs=1"]) == 0
        forget()
    return base


@pytest.mark.filterwarnings("ignore:Unable to enable fault handler")  # the output is caught
@pytest.mark.parametrize(
    "command",
    [
        ("train", "{recipe}", "--print"),
        ("bench", "stream", "{recipe}"),
        ("bench", "methods", "{recipe}"),
        ("bench", "step", "--recipe", "{recipe}"),
        ("bench", "train", "{recipe}"),
        ("bench", "scale", "{recipe}"),
        ("bench", "eval", "{recipe}"),
        ("bench", "save", "{recipe}"),
        ("bench", "start", "{recipe}"),
        ("bench", "memory", "{recipe}"),
        ("cache", "{recipe}", "somewhere"),
        ("sweep", "{sweep}"),
        ("evaluate", "{run}"),
        ("figure", "ols", "{run}"),
        ("export", "{run}"),
        ("predict", "{run}", "{image}"),
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_every_command_that_reads_recipes_refuses_by_name(
    command: tuple[str, ...],
    used_run: Path,
    outside: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    places = {
        "recipe": used_run / "outside.yaml",
        "sweep": used_run / "sweep.yaml",
        "run": used_run / "run",
        "image": used_run / "images/val/class0/0.png",
    }
    monkeypatch.setenv(parts.FORBIDDEN, "0")  # restored afterwards
    assert main([*(word.format(**places) for word in command), "--no-uses"]) == 2
    assert f"needs code from {OUTSIDE}, which --no-uses refuses" in capsys.readouterr().err
    assert OUTSIDE not in sys.modules


def test_an_installed_entry_point_needs_no_uses(outside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = outside / "path/lsdali_outside-0.3.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: lsdali_outside\nVersion: 0.3\n")
    (folder / "entry_points.txt").write_text(f"[lsdali.parts]\noutside = {OUTSIDE}\n")
    parts._announced.clear()
    assert said(capsys, "list", "methods", "poly").startswith("poly1  Poly-1 loss")
    found = load(ROOT / "recipes/digits/ce.yaml", ["method.name=poly1"])
    assert parts.in_use(found.names)[0]["name"] == OUTSIDE
    assert parts.in_use(load(ROOT / "recipes/digits/ce.yaml").names) == []


def test_options_of_torch_that_an_optimizer_lacks_are_refused(recipe: Path) -> None:
    from lsdali.optim import build_optimizer

    found = load(recipe, ["optimizer={name: halving, lr: 0.1, implementation: foreach}"])
    with pytest.raises(UserError, match="implementation: halving has no foreach; use auto"):
        build_optimizer(torch.nn.Linear(2, 2), found.optimizer, torch.device("cpu"))
    auto = OPTIMIZERS["halving"].model_validate({"lr": 0.1})
    built = build_optimizer(torch.nn.Linear(2, 2), auto, torch.device("cpu"))
    assert built.describe().startswith("halving as its package has it")


def test_the_page_s_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs/parts.md").read_text()
    module, test = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (recipe,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package/parts.py").write_text(module)
    (tmp_path / "mine.yaml").write_text(recipe)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        assert load(tmp_path / "mine.yaml").method.model_dump() == {"name": "poly1", "epsilon": 2.0}
        for line in re.findall(r"^lsdali (.*?) *#", page, re.MULTILINE):
            assert main(line.split()) == 0
        names: dict[str, Any] = {}
        monkeypatch.setattr("lsdali.testing.check_method", partial(check_method, ranks=()))
        exec(test, names)
        names["test_poly1"]()
    finally:
        forget()


@pytest.mark.ranks
def test_the_contract_test_takes_a_method_of_another_package(outside: Path) -> None:
    check_method({"name": "poly1", "epsilon": 0.5}, uses=[OUTSIDE], ranks=(1, 2))


@pytest.mark.parametrize(("name", "promise"), [("writes", "wrote to the method's state"), ("forgets", "took state")])
def test_the_contract_test_finds_a_broken_promise(name: str, promise: str, outside: Path) -> None:
    with pytest.raises(AssertionError, match=promise):
        check_method(name, uses=["lsdali_outside.promises"], ranks=())


def test_resume_on_one_rank_finds_state_that_is_not_saved(outside: Path) -> None:
    with pytest.raises(AssertionError, match="student differs after a resume"):
        check_method("unsaved", uses=["lsdali_outside.promises"], ranks=(1,))


def test_tiny_recipes_use_nothing(tmp_path: Path) -> None:
    assert Recipe.model_validate(tiny({"name": "ce"}, tmp_path, tmp_path)).uses == ()
