"""The worked examples of docs/extend, applied to a copy of the tree: the tests that concern them pass there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import ROOT

BLOCK = re.compile(
    r"^(New file|In) `([^`]+)`(?:, (after|before) `([^`]+)`)?:\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL
)

TESTS = {
    "method": ["tests/methods/test_contract.py", "tests/test_rooms.py", "-k", "tested or poly1", "-m", "not ranks"],
    "data_set": [
        "tests/test_pets.py",
        "tests/data/test_catalog.py",
        "tests/test_rooms.py",
        "-k",
        "pets or agree or table",
    ],
    "augmentation": [
        "tests/data/test_augment.py",
        "tests/test_recipe.py",
        "tests/test_rooms.py",
        "-k",
        "blur or described",
    ],
    "network": ["tests/models", "tests/test_rooms.py", "-k", "regnet"],
    "optimizer": ["tests/optim/test_optimizer.py", "-k", "adagrad or strict"],
}


def apply(page: str, tree: Path) -> None:
    """Write the new files of a page and insert its lines beside the anchors, each a whole line that occurs once."""
    for new, file, side, anchor, code in BLOCK.findall(page):
        path = tree / file
        if new == "New file":
            assert not path.exists(), file
            path.write_text(code)
            continue
        lines = path.read_text().splitlines(keepends=True)
        (found,) = [k for k, line in enumerate(lines) if line.strip() == anchor]
        place = found + (side == "after")
        path.write_text("".join([*lines[:place], code, *lines[place:]]))


@pytest.mark.parametrize("page", TESTS)
def test_example_works(page: str, tmp_path: Path) -> None:
    for part in ("lsdali", "tests", "recipes", "benchmarks"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("README.md", ".pytest.ini"):
        shutil.copy(ROOT / file, tmp_path)
    text = (ROOT / f"docs/extend/{page}.md").read_text()
    assert text.count("```") == 2 * len(BLOCK.findall(text)), "a block of code does not say where it goes"
    apply(text, tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS[page]],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


@pytest.mark.parametrize("page", TESTS)
def test_page_counts_its_files_and_lines(page: str) -> None:
    text = (ROOT / f"docs/extend/{page}.md").read_text()
    blocks = BLOCK.findall(text)
    files = {file for _, file, *_ in blocks}
    lines = [line for *_, code in blocks for line in code.splitlines() if line]
    claims = [(int(f), int(n)) for f, n in re.findall(r"takes\s(\d+)\sfiles?\sand\s(\d+)\slines,", text)]
    assert claims == [(len(files), len(lines))]


@pytest.mark.parametrize("page", ["method", "network", "data_set"])
def test_a_part_is_one_file_and_one_line_of_the_package(page: str) -> None:
    assert len(changes_of_the_package(page)) == 2


def test_an_augmentation_is_two_files_and_one_line_of_the_package() -> None:
    assert len(changes_of_the_package("augmentation")) == 3


def changes_of_the_package(page: str) -> list[str]:
    """Which of its files an example makes or changes, once it is known that the only change is one line."""
    blocks = BLOCK.findall((ROOT / f"docs/extend/{page}.md").read_text())
    package = [(new, code.count("\n"), file) for new, file, _, _, code in blocks if file.startswith("lsdali/")]
    assert [lines for new, lines, _ in package if new == "In"] == [1]
    return [file for *_, file in package]


def test_every_page_is_tested() -> None:
    assert {path.stem for path in (ROOT / "docs/extend").glob("*.md")} == TESTS.keys()
