"""Names from outside: never raw on the terminal, on pages and in tables, and no stream breaks at them."""

import ast
import io
import json
import os
import re
import shutil
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import yaml

from lsdali.errors import UserError, report_error
from lsdali.events import Bar, Lines, Message
from lsdali.report import main as report
from lsdali.scan import main as scan
from lsdali.terminal import console, printable, printable_lines, say
from lsdali.train import main
from tests.harness import ROOT, make_images, tiny

HOSTILE = "a\x1b[2Jb\x9bc\x07\rd\u202ee\u2066f\u2028g\x7fh"
BYTES = os.fsencode(HOSTILE.replace("\x9b", "")) + b"\xff\xfe"  # a name that is not UTF-8
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def test_what_is_escaped_and_what_stays() -> None:
    assert printable("größe 数据 😀 a'b\"c\\d") == "größe 数据 😀 a'b\"c\\d"
    assert printable("\x1b[31m\n\t\r\0\x7f\x85") == r"\x1b[31m\n\t\r\x00\x7f\x85"
    assert printable("\u202e\u2066\u200f\u061c\u2028\udcff") == r"\u202e\u2066\u200f\u061c\u2028\udcff"
    assert printable_lines("a\tb\nc\x1b") == "a\tb\nc\\x1b"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_no_stream_breaks(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding=encoding)
    say("数据", "\udcff", "±", file=stream, end="|")
    monkeypatch.setattr(sys, "stdout", stream)
    Lines().write(Message("数据 \x1b[2J"))
    console(80).print("数据")
    stream.flush()
    text = written.getvalue().decode(encoding)
    data = "数据" if encoding == "utf-8" else r"\u6570\u636e"
    assert text == f"{data} \\udcff {'±' if encoding != 'ascii' else chr(92) + 'xb1'}|{data} \\x1b[2J\n{data}\n"


def test_a_bar_shows_no_escape_sequence_of_a_name() -> None:
    out = io.StringIO()
    from rich.console import Console

    bar = Bar(Console(file=out, force_terminal=True, color_system=None))
    bar.write(Message(f"bad file {HOSTILE}"))
    assert r"\x1b[2J" in out.getvalue()
    assert "\x1b[2J" not in out.getvalue()
    assert "\u202e" not in out.getvalue()


def test_a_name_makes_no_second_line_of_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    report_error(UserError("no folder x\nerror: all is well\n  and so on"))
    assert capsys.readouterr().err == "error: no folder x\\nerror: all is well\n  and so on\n"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A data set with a class of a hostile name, and a damaged file of a name that is not even UTF-8."""
    root = make_images(tmp_path / "images")
    for split in ("train", "val"):
        (root / split / "class4").rename(root / split / HOSTILE)
    (root / "train/class0/0.png").unlink()
    with open(os.fsencode(root) + b"/train/class0/" + BYTES + b".png", "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n damaged")
    return root


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_a_run_its_report_and_a_scan_of_hostile_names(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    monkeypatch.setenv("LSDALI_CACHE", str(tmp_path / "cache"))
    tree = tiny({"name": "ce"}, images, tmp_path / f"runs/{HOSTILE}\nerror: x", epochs=1)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree))
    pages, said = [tmp_path / "report.html", tmp_path / "scan.html"], [tmp_path / "out.txt", tmp_path / "err.txt"]
    with (  # as PYTHONIOENCODING
        said[0].open("w", encoding=encoding) as out,
        said[1].open("w", encoding=encoding) as err,
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        assert main([str(tmp_path / "recipe.yaml")]) == 0
        assert main([str(tmp_path / "recipe.yaml"), "optimizer.lr=0.5"]) == 2
        shutil.copytree(tree["run_dir"], tmp_path / "runs/other")
        (tmp_path / "runs/other/summary.json").write_text("{")
        assert report([str(tmp_path / "runs"), "--html", str(pages[0])]) == 0
        for kind in ("csv", "markdown", "latex"):
            assert report([str(tmp_path / "runs"), "--format", kind]) == 0
        assert scan([str(images), "--json", str(tmp_path / "scan.json"), "--html", str(pages[1])]) == 1
    texts = [file.read_text(encoding) for file in said]
    texts += [page.read_text() for page in pages]
    texts += [(Path(tree["run_dir"]) / name).read_text() for name in ("events.jsonl", "recipe.yaml", "summary.json")]
    for text in texts:
        assert (found := RAW.search(text)) is None, text[found.start() - 100 : found.end() + 100]
    assert "\nerror: x" not in texts[0] + texts[1]
    assert r"\x1b[2J" in texts[0]
    assert r"\udcff\udcfe" in texts[0], "the damaged file is named"
    assert json.loads((tmp_path / "scan.json").read_text())["splits"]["train"]["bad"]


def test_everything_is_said_in_one_place() -> None:
    for path in sorted((ROOT / "lsdali").rglob("*.py")):
        if path.name in ("terminal.py", "predict.py") or path.parent.name == "bench":  # predict: a bar without names
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("print", "Console"), f"{path}:{node.lineno}"
