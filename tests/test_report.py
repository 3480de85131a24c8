"""Reports of made-up run folders: groups, curves, damage, and the page in a browser."""

import csv
import io
import json
import re
import shlex
from pathlib import Path

import pytest

from lsdali.evaluate.__main__ import parse
from lsdali.evaluate.binning import check_bins
from lsdali.events import Begun, Evaluated, JsonLines, Trained
from lsdali.figure.__main__ import arguments as figure_arguments
from lsdali.recipe import load
from lsdali.report import main
from lsdali.report.command import arguments
from lsdali.report.groups import grouped, mean_std
from lsdali.report.runs import find_runs, read_run
from lsdali.report.tables import ReportCell, ReportTable, as_latex, as_markdown
from tests.harness import ROOT


def metrics(top1: float) -> dict[str, float]:
    return {"top1": top1, "top5": 99.0, "nll": 1.0, "ece": 5.0, "ece_pskd": 5.5, "aurc": 70.0, "n": 100.0}


def begun(seed: int, *overrides: str, step: int = 0) -> Begun:
    recipe = load(ROOT / "recipes/digits/ce.yaml", [f"seed={seed}", "epochs=3", *overrides])
    return Begun(
        recipe=recipe.model_dump(mode="json"),
        versions={"torch": "2.0"},
        device="cpu",
        world=1,
        step=step,
        steps=30,
        epoch=step // 10,
        epochs=3,
        parameters=1000,
        optimizer="sgd",
        data={"train": 900, "val": 100, "validation": "a fifth of the training data"},
    )


def make_run(folder: Path, start: Begun, top1: list[float], *, finished: bool = True) -> Path:
    """A run of ten steps an epoch that was evaluated as told."""
    folder.mkdir(parents=True)
    sink = JsonLines(folder / "events.jsonl")
    sink.write(start)
    for epoch, value in enumerate(top1, 1):
        sink.write(Trained(10 * epoch, epoch, 2.0 / epoch, 0.1, 500.0, 0.25))
        sink.write(Evaluated(10 * epoch, epoch, "model", metrics(value)))
    sink.close()
    if finished:
        rows = [{**metrics(value), "epoch": epoch} for epoch, value in enumerate(top1, 1)]
        best = max(rows, key=lambda row: row["top1"])
        content = {"last": rows[-1], "best": best, "images_per_second": 480.0, "wall_seconds": 360.0, "stopped": None}
        (folder / "summary.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two seeds of one recipe, another method, an unfinished run, and an empty one."""
    base = tmp_path / "runs"
    make_run(base / "ce0", begun(0), [50.0, 62.0, 60.0])
    make_run(base / "ce1", begun(1), [52.0, 63.0, 64.0])
    make_run(base / "deep/<i>ls", begun(0, "method={name: ls}"), [55.0, 70.0, 69.0])
    make_run(base / "half", begun(0, "optimizer.lr=0.5"), [40.0, 41.0], finished=False)
    (base / "empty").mkdir()
    (base / "empty/events.jsonl").write_text("")
    return base


def rows_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[dict[str, str]]:
    assert main([*map(str, arguments), "--format", "csv"]) == 0
    return list(csv.DictReader(io.StringIO(capsys.readouterr().out)))


def test_groups_are_runs_that_differ_by_their_seed_alone(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_of(capsys, runs)
    assert [row["runs"] for row in rows] == [name for name in ("ce0 (+ 1)", "deep/<i>ls", "half") for _ in "lb"]
    last, best = rows[:2]
    assert (last["figures of"], last["of epoch"], last["seeds"]) == ("last", "3", "0, 1")
    assert (last["top-1 (%)"], last["top-1 error (%)"]) == ("62.00 ± 2.83", "38.00 ± 2.83")
    assert (best["figures of"], best["of epoch"], best["top-1 (%)"]) == ("best (by top1)", "2, 3", "63.00 ± 1.41")
    assert {row["validated on"] for row in rows} == {"a fifth of the training data"}
    assert (rows[3]["method"], rows[3]["top-1 (%)"], rows[3]["hours"]) == ("ls", "70.00", "0.10")
    assert (rows[4]["epochs"], rows[4]["top-1 (%)"], rows[4]["images/s"]) == ("2/3, unfinished", "41.00", "-")


def test_runs_of_a_cell_with_a_teacher_each_are_one_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def kd(seed: int, *more: str) -> Begun:
        teacher = f"{{source: run, path: runs/ce_seed{seed}, temperature: 1.{seed}}}"
        return begun(seed, f"method={{name: kd, temperature: 4.0, teacher: {teacher}}}", *more)

    for seed, top1 in ((0, 60.0), (1, 64.0)):
        make_run(tmp_path / f"students/T=4.0_seed{seed}", kd(seed), [top1])
        make_run(tmp_path / f"mine/student{seed}", kd(seed), [top1])
    make_run(tmp_path / "students/T=4.0_seed2", kd(2, "optimizer.lr=0.5"), [50.0])
    rows = {row["runs"]: row["top-1 (%)"] for row in rows_of(capsys, tmp_path) if row["figures of"] == "last"}
    assert rows == {
        "mine/student0": "60.00",
        "mine/student1": "64.00",
        "students/T=4.0_seed0 (+ 1)": "62.00 ± 2.83",
        "students/T=4.0_seed2": "50.00",
    }
    (group,) = (g for g in grouped(find_runs([tmp_path / "students"])) if len(g.runs) == 2)
    assert group.settings["method.teacher.path"] == group.settings["method.teacher.temperature"] == "by seed"
    assert group.settings["method.temperature"] == 4.0


def test_mean_and_standard_deviation() -> None:
    assert mean_std([1.0, 2.0, 4.0]) == (pytest.approx(7 / 3), pytest.approx((7 / 3) ** 0.5))
    assert mean_std([5.0]) == (5.0, None)


def test_steps_that_were_done_again_count_once(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", begun(0), [50.0, 60.0], finished=False)
    sink = JsonLines(folder / "events.jsonl")
    sink.write(begun(0, step=15))
    sink.write(Evaluated(20, 2, "model", metrics(61.0)))
    sink.close()
    run = read_run(folder)
    assert [line["metrics"]["top1"] for line in run.evaluated] == [50.0, 61.0]
    assert [line["step"] for line in run.trained] == [10]


def test_damage_is_named_and_survived(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "ce0/summary.json").write_text('{"last": ')
    with (runs / "half/events.jsonl").open("a") as file:
        file.write('{"event": "trained", "st')
    assert main([str(runs)]) == 0
    out, err = capsys.readouterr()
    assert f"note: {runs}/ce0/summary.json is damaged; the figures are those of events.jsonl" in err
    assert f"note: {runs}/half/events.jsonl: line 6 cannot be read and left out" in err
    assert f"note: {runs}/empty: nothing was trained here" in err
    assert "62.00 ± 2.83" in out
    assert "3/3, no summary; 3/3, finished" in out


@pytest.mark.parametrize(
    ("folder", "sentence"),
    [("none", "there is no folder"), ("", "no run here"), ("runs/empty", "nothing was trained here")],
)
def test_what_is_no_run_is_said(runs: Path, capsys: pytest.CaptureFixture[str], folder: str, sentence: str) -> None:
    (runs.parent / "other").mkdir()
    assert main([str(runs.parent / (folder or "other"))]) == 2
    assert sentence in capsys.readouterr().err


def test_markup_in_names_is_escaped() -> None:
    table = ReportTable(["run", "top-1 (%)"], [[ReportCell("a|b_c"), ReportCell("1 ± 2", 1.0, best=True)]])
    assert as_markdown(table).splitlines()[2] == r"| a\|b_c | **1 ± 2** |"
    assert r"a|b\_c & \textbf{1 $\pm$ 2} \\" in as_latex(table)
    assert r"run & top-1 (\%) \\" in as_latex(table)


EVALUATION = {
    "runs": [{"run": "a", "checkpoint": "best.pt", "epoch": 2, "step": 20, "weights": "model", "data": "digits"}],
    "views": None,
    "classes": ["<b>", "dog"],
    "temperature": "half of the samples",
    "rows": [
        {
            "name": name,
            "samples": "all",
            "metrics": {"top1": 50.0, "error1": 50.0, "nll": 1.0, "ece": 3.0},
            "reliability": [{"lower": 0.5, "upper": 1.0, "count": 4, "confidence": 0.7, "accuracy": 0.5}],
            "risk": [[50.0, 0.0], [100.0, 50.0]],
            "per_class": [50.0 + gain, 50.0],
            "scaled": temperature is not None,
            "temperature": temperature,
        }
        for name, temperature, gain in (("a", None, 0), ("b", None, 10), ("a", 1.5, 0))
    ],
    "ensembles": [{"run": "a", "curve": [{"members": 1, "metrics": {"error1": 50.0, "nll": 1.0, "ece": 3.0}}]}],
}


@pytest.fixture
def page(runs: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A report that finds an evaluation, and one that is none."""
    (runs / "ce0/evaluation.json").write_text(json.dumps(EVALUATION))
    (runs / "ce1/evaluation.json").write_text('{"rows": 3}')
    assert main([str(runs), "--html", str(runs.parent / "page.html")]) == 0
    return runs.parent / "page.html"


def test_the_page_stands_alone(page: Path) -> None:
    text = page.read_text()
    assert "deep/&lt;i&gt;ls" in text
    assert "<i>ls" not in text
    assert "&lt;b&gt;" in text
    assert "<b></td>" not in text
    assert not re.search(r"https?:|\bsrc=|@import|url\((?!#)", text)
    for label in ("Validation error", "Validation loss", "Calibration", "Training loss", "Throughput", "Waiting"):
        assert f'aria-label="{label}' in text
    assert text.count('aria-label="reliability diagram"') == 3
    for label in ("Risk and coverage", "Ensembles of the newest checkpoints", "Gains of the classes"):
        assert f'aria-label="{label}' in text
    assert "ce1/evaluation.json is not a file that lsdali evaluate --json has written" in text
    assert f"lsdali report {page.parent}/runs --html {page}" in text
    assert re.search(r"<th>optimizer.lr</th>", text)


COMMANDS = re.findall(
    r"^lsdali (report|evaluate|figure) ([^#\n]*)",
    "".join((ROOT / "docs" / name).read_text() for name in ("reports.md", "evaluate.md", "figures.md")),
    re.MULTILINE,
)


@pytest.mark.parametrize(("verb", "line"), COMMANDS)
def test_documented_commands_are_understood(verb: str, line: str) -> None:
    parsers = {"report": arguments().parse_args, "evaluate": parse, "figure": figure_arguments().parse_args}
    args = parsers[verb](shlex.split(line))
    for text in getattr(args, "bins", []):
        check_bins(text)
