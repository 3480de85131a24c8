"""From a sweep file to cells: every mistake is one sentence, and every cell has the recipe that the file says."""

import json
import math
import time
from itertools import count

import pytest

from lsdali.errors import UserError
from lsdali.recipe import load as load_recipe
from lsdali.sweep import plan
from lsdali.sweep.__main__ import main
from lsdali.sweep.cells import label_text
from lsdali.sweep.figures import figure, lookup_of, winner
from lsdali.sweep.pace import Pace, measure_pace
from lsdali.sweep.plan import RunSize, Stopwatch, dry_run, size
from lsdali.sweep.schema import Sweep
from lsdali.sweep.work import members
from tests.harness import ROOT
from tests.sweep.conftest import Open

DIGITS_VAL = 360
"""Validation images of the digits."""

GOOD = """
seeds: [0, 1]
stages:
  teachers:
    recipe: RECIPES/ce.yaml
    set: {epochs: 3}
    axes:
      alpha:
        points:
          0.0: {}
          0.1: {method: {name: ls, smoothing: 0.1}}
      width: {key: model.width, values: [16, 32]}
    select: {over: [width], by: best.nll}
  students:
    recipe: RECIPES/kd.yaml
    set: {method.teacher.path: "{teachers}/checkpoints/best.pt"}
    seeds: [1]
    axes:
      T: {key: method.temperature, values: [1.0, 64.0]}
      alpha: {points: {0.0: {}, 0.1: {}}}
    rules:
      - {when: {T: 64.0, alpha: 0.1}, set: {epochs: 5}}
    skip:
      - {T: 64.0, alpha: 0.0}
tables:
  main:
    stages: [students]
    rows: [T]
    columns: [alpha]
    figures: {top-1: {of: best.top1}}
    published:
      - {source: a paper, by: [T, alpha], values: {1.0: {0.0: [71.5], 0.1: [71.7 ± 0.1]}}}
"""


def test_the_grid_its_rules_and_its_gaps(opened: Open) -> None:
    _, cells = opened(GOOD)
    names = [cell.name for cell in cells]
    assert names[:3] == [
        "teachers/alpha=0.0_width=16_seed0",
        "teachers/alpha=0.0_width=16_seed1",
        "teachers/alpha=0.0_width=32_seed0",
    ]
    assert names[8:] == [
        f"students/T={t}_alpha={a}_seed1" for t, a in (("1.0", "0.0"), ("1.0", "0.1"), ("64.0", "0.1"))
    ]
    recipes = [cell.recipe() for cell in cells]
    assert [recipe.epochs for recipe in recipes] == [3] * 8 + [16, 16, 5]
    assert [recipe.seed for recipe in recipes[:2]] == [0, 1]
    assert recipes[2].model.width == 32
    assert recipes[4].run_dir == "runs/mine/teachers/alpha=0.1_width=16_seed0"


def test_a_cell_is_the_command_that_it_shows(opened: Open) -> None:
    _, cells = opened(GOOD, "data.max_samples=96", "schedule={name: linear}")
    for cell in cells:
        base, *overrides = cell.arguments()
        assert load_recipe(base, overrides) == cell.recipe()
        assert cell.recipe().data.max_samples == 96
    assert [label_text(v) for v in (1e-5, None, "null", "a: b", [1, {"b": 0.5}])] == [
        "1.0e-05",
        "null",
        "'null'",
        "'a: b'",
        "[1, {b: 0.5}]",
    ]


def test_a_student_takes_the_teacher_with_its_labels_and_seed_that_was_chosen(opened: Open) -> None:
    _, cells = opened(GOOD)
    student = next(cell for cell in cells if cell.name == "students/T=1.0_alpha=0.1_seed1")
    needs = student.needs["teachers"]
    assert [need.name for need in needs] == [f"teachers/alpha=0.1_width={w}_seed1" for w in (16, 32)]
    for need, nll in zip(needs, (0.9, 0.3), strict=True):
        need.folder.mkdir(parents=True)
        content = {"best": {"nll": nll, "top1": 100 * nll}}
        (need.folder / "summary.json").write_text(json.dumps(content))
    assert winner(needs) is needs[1]
    assert figure(needs[0], "best.top1") == 90
    teacher = student.recipe(lookup_of(student)).method.teacher  # type: ignore[attr-defined]
    assert teacher.path == "runs/mine/teachers/alpha=0.1_width=32_seed1/checkpoints/best.pt"


def test_figures_of_evaluations_fill_places(opened: Open) -> None:
    text = GOOD.replace("    select:", "    evaluate: {test: {temperature: half}}\n    select:")
    text = text.replace('best.pt"}', 'best.pt", method.teacher.temperature: "{teachers:test.temperature}"}')
    _, cells = opened(text)
    student = cells[-1]
    for k, need in enumerate(student.needs["teachers"]):
        need.folder.mkdir(parents=True)
        (need.folder / "summary.json").write_text(json.dumps({"best": {"nll": k}}))
        rows = [{"scaled": scaled, "metrics": {"ece": value}} for scaled, value in ((False, 1), (False, 2), (True, 3))]
        (need.folder / "test.json").write_text(json.dumps({"fits": [{"temperature": 1.5 + k}], "rows": rows}))
    assert student.recipe(lookup_of(student)).method.teacher.temperature == 1.5  # type: ignore[attr-defined]
    assert [figure(need, f"test.{name}") for name in ("ece", "scaled.ece")] == [2, 3]


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("seeds: [0, 1]", "seed: [0, 1]", "seed: unknown key; did you mean 'seeds'?"),
        ("    set: {epochs: 3}", "    sets: {epochs: 3}", "stages.teachers.sets: unknown key; did you mean 'set'?"),
        ("key: model.width", "keys: model.width", "stages.teachers.axes.width.keys: unknown key; did you mean 'key'?"),
        ("key: model.width, ", "", "stages.teachers.axes.width: give either `points`, or `key` and `values`"),
        ("seeds: [0, 1]", "seeds: [0, -1]", "seeds.1: must be greater than or equal to 0, got -1"),
        ("key: model.width", "key: model.widht", "model.widht: unknown key; did you mean 'width'?"),
        ("RECIPES/ce.yaml", "RECIPES/cee.yaml", r"no recipe \S+/cee.yaml; did you mean \S+/ce.yaml\?"),
        ("recipe: RECIPES/ce.yaml", "", "teachers/alpha=0.0_width=16_seed0 has no recipe"),
        ("{teachers}", "{teacher}", "needs the stage teacher, which does not come before it; earlier stages: teachers"),
        ("    select: {over: [width], by: best.nll}", "", "stage teachers, which varies along width: give the stage"),
        ("by: best.nll", "by: best.loss", "stage teachers: there is no figure best.loss"),
        ("over: [width]", "over: [width, depth]", "a stage has no axis depth; it has alpha, width"),
        ("seeds: [1]", "seeds: [7]", "needs a run of the stage teachers that is left out there, or of another seed"),
        ("{T: 64.0, alpha: 0.1}", "{T: 65.0}", "axis T has no 65.0; here are 1.0, 64.0"),
        ("{T: 64.0, alpha: 0.0}", "{t: 64.0}", "stage students has no axis t; here are T, alpha"),
        ("values: [16, 32]", "values: [16, 16]", "stages.teachers.axes.width: the value 16 is given twice"),
        ("0.0: {}\n", "a b: {}\n          a-b: {}\n", "would share the folder runs/mine/teachers/a-b_width=16_seed0"),
        ("rows: [T]", "rows: [t]", "table main: a stage has no axis t; it has T, alpha"),
        (
            "stages: [students]",
            "stages: [student]",
            "table main: there is no stage student; here are teachers, students",
        ),
        ("0.1: [71.7 ± 0.1]", "0.2: [71.7]", "table main: the published numbers of 1.0 / 0.2 have no cell"),
        ("[71.7 ± 0.1]", "[71.7, 1]", "published: 1.0 / 0.1 has 2 entries for 1 figures"),
        ("by: [T, alpha]", "by: [T]", "published: 1.0 must hold a list, one entry a figure"),
        (
            "columns: [alpha]",
            "columns: [alpha]\n    best_of: [beta]",
            "best_of: beta is neither in rows nor in columns",
        ),
    ],
)
def test_the_sentence_of_each_mistake(opened: Open, old: str, new: str, sentence: str) -> None:
    assert old in GOOD
    with pytest.raises(
        UserError, match=sentence.replace("[", r"\[").replace("?", r"\?") if "\\" not in sentence else sentence
    ):
        opened(GOOD.replace(old, new, 1))


def test_a_dry_run_counts_what_a_run_reads(opened: Open) -> None:
    _, cells = opened(GOOD, "batch=48", "batch_schedule=[{epoch: 2, batch: 96}]", "data.max_samples=500")
    assert size(cells[0].recipe()) == RunSize(steps=10 + 10 + 5, images=3 * 480, evaluated=3 * DIGITS_VAL)
    table, unknown = dry_run(cells, None, jobs=1)
    assert list(table.columns[4].cells)[:2] == ["1,440", "1,440"]
    assert not unknown
    _, cells = opened(GOOD, "data={name: cub, root: nowhere}")
    table, unknown = dry_run(cells, Stopwatch(480.0), jobs=1)
    assert list(table.columns[3].cells) == ["?"] * 11 + ["0"]
    assert len(unknown) == 1
    assert "nowhere" in unknown[0]


def test_hours_come_from_a_rate_or_from_steps_measured_once_a_kind(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, cells = opened(GOOD, "batch=48", "data.max_samples=480", "evaluate.every_epochs=2")
    table, _ = dry_run(cells, Stopwatch(480.0 / 3600), jobs=2)
    assert next(iter(table.columns[5].cells)) == "3"
    kinds = []
    monkeypatch.setattr(plan, "measure_pace", lambda recipe, classes: kinds.append(recipe) or Pace(1.0, 0.5))
    table, unknown = dry_run(cells, Stopwatch(None), jobs=2)
    hours = [float(text) for text in table.columns[5].cells]
    assert hours[0] == pytest.approx((3 * 480 + 0.5 * 2 * DIGITS_VAL) / 3600, rel=5e-3)
    assert hours[-1] == pytest.approx(sum(hours[:-1]) / 2, rel=5e-3)
    assert not unknown
    assert len(kinds) == 4 + 2  # two methods of teachers in two widths, and students at two temperatures


@pytest.mark.parametrize("name", ["kd", "zls", "cskd", "bake"])
def test_a_step_of_a_kind_is_measured_by_the_clock(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = count()
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)))
    recipe = load_recipe(ROOT / f"recipes/digits/{name}.yaml", ["batch=12", "model.width=16"])
    assert measure_pace(recipe, 10) == Pace(1 / 12, 1 / 12)


def test_every_key_says_what_it_is() -> None:
    kinds = Sweep.model_json_schema()["$defs"]
    missing = [
        f"{kind}.{key}"
        for kind, tree in kinds.items()
        for key, v in tree["properties"].items()
        if "description" not in v
    ]
    assert len(kinds) >= 8
    assert not missing


def test_the_keys_of_a_part_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--keys", "stages.evaluate"]) == 0
    out = capsys.readouterr().out
    assert "checkpoint: best|last" in out
    assert "members: whole number (>= 1) or null = null" in out
    assert main(["--keys"]) == 0
    assert "By name, in order: a stage may use runs of earlier ones." in capsys.readouterr().out
    assert main(["--keys", "stages.evaluat"]) == 2
    assert "there is no key 'evaluat' in stages.evaluat; here are axes, evaluate" in capsys.readouterr().err


def test_a_figure_that_is_not_finite_is_the_worst(opened: Open) -> None:
    """The log loss of a network that is sure and wrong is infinite, which JSON has no number for."""
    _, cells = opened(GOOD)
    narrow, wide = (cell for cell in cells if cell.name.startswith("teachers/alpha=0.1") and cell.seed == 0)
    for cell, nll in ((narrow, None), (wide, 2.5)):
        cell.folder.mkdir(parents=True)
        (cell.folder / "summary.json").write_text(json.dumps({"best": {"nll": nll, "top1": nll}}))
    assert figure(narrow, "best.nll") == math.inf
    assert figure(narrow, "best.top1") == -math.inf
    assert winner([narrow, wide]) is wide


def test_members_of_an_ensemble_are_evenly_spaced(opened: Open) -> None:
    _, cells = opened(GOOD)
    run = cells[0].folder
    (run / "checkpoints").mkdir(parents=True)
    (run / "summary.json").write_text(json.dumps({"steps": 60}))
    for step in (10, 20, 30, 40, 60):
        (run / f"checkpoints/step-{step:010d}.pt").touch()
    assert [path[-5:-3] for path in members(cells[0], 3)] == ["20", "40", "60"]
    assert members(cells[0], 1) == [f"{run}/checkpoints/step-0000000060.pt"]
    with pytest.raises(UserError, match=r"kept no \S+step-0000000050.pt: an ensemble of 6 needs save.every_epochs"):
        members(cells[0], 6)
