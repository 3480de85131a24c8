"""One command: its verbs, what it says of a wrong one, what it lists, and that it answers quickly."""

import subprocess
import sys

import pytest

from lsdali import __version__
from lsdali.cli import VERBS, main
from lsdali.list import LISTINGS
from lsdali.models import MODELS
from lsdali.optim import OPTIMIZERS
from lsdali.recipe import Recipe
from tests.harness import ROOT


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command that succeeds prints."""
    assert main(arguments) == 0
    return capsys.readouterr().out


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ((), ("--help",)):
        assert all(f"\n  {verb} " in said(capsys, *arguments) or verb in said(capsys, *arguments) for verb in VERBS)
    assert said(capsys, "--version") == f"lsdali {__version__}\n"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_its_own_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0
    assert f"usage: lsdali {verb}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["trian"], "there is no command 'trian'; did you mean `lsdali train`?"),
        (["recipes/digits/ce.yaml"], "did you mean `lsdali train recipes/digits/ce.yaml`?"),
        (["export", "nowhere"], "nowhere"),
        (
            ["keys", "optimizer.sdg"],
            f"there is no key 'sdg' in optimizer.sdg; here are {', '.join(sorted(OPTIMIZERS))}",
        ),
    ],
)
def test_bad_input_is_one_sentence(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert sentence in err


def test_lists_are_complete_and_have_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    for what in LISTINGS:
        rows = [line.split(None, 1) for line in said(capsys, "list", what).splitlines()]
        assert all(len(row) == 2 for row in rows), what
    assert {row.split()[0] for row in said(capsys, "list", "models").splitlines()} >= set(MODELS)
    assert said(capsys, "list", "models", "wrn_28").split()[0] == "wrn_28_10"


def test_keys_show_types_defaults_and_descriptions(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "keys", "save.keep") == (
        "keep: whole number (>= 1, <= 100000) = 2\n    How many of the newest checkpoints are kept, beside the best.\n"
    )
    top = said(capsys, "keys")
    assert all(f"\n{name}: " in top for name in Recipe.model_fields)
    assert "optimizer.adamw  Weight decay is decoupled" in said(capsys, "keys", "optimizer")
    assert "\npad: whole number (>= 0, <= 512) = 4\n" in said(capsys, "keys", "data.cifar10.train.pad")


@pytest.mark.parametrize("arguments", ["--help", *(f"{verb} --help" for verb in VERBS), "bench methods --help"])
def test_help_imports_nothing_heavy(arguments: str) -> None:
    imports = "import sys, contextlib\nfrom lsdali.cli import main\n"
    code = f"{imports}with contextlib.suppress(SystemExit): main({arguments.split()})\n"
    heavy = "print({'torch', 'pydantic', 'numpy'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code + heavy], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_a_recipe_is_read_without_the_descriptions_of_keys() -> None:
    """Neither its sources are parsed, nor is rich imported, which only a terminal needs."""
    code = "import sys; from lsdali.recipe import load; load('recipes/imagenet_zls.yaml')"
    code += "; from lsdali.config import field_docstrings as f; print(f.cache_info().currsize, 'rich' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "False"]


def test_a_recipe_is_read_without_torchvision() -> None:
    code = "import sys; from lsdali.recipe import load; load('recipes/imagenet_zls.yaml')"
    code += "; print('torchvision' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
