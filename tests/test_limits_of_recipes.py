"""Numbers and texts beyond sense in recipes: each is refused in one sentence, or what follows is bounded."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args

import pytest
import torch
import yaml
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, TypeAdapter, ValidationError

from lsdali.build import build
from lsdali.clock import PerEpoch
from lsdali.data.sampling.augment import TrainImages
from lsdali.errors import UserError
from lsdali.events import Events
from lsdali.models import checks
from lsdali.recipe import Recipe, load
from lsdali.recipe.kinds import kinds_in
from lsdali.state.checkpoint import Checkpoints
from tests.harness import ROOT, make_images, tiny

CE = ROOT / "recipes/digits/ce.yaml"


def numbers(annotation: Any, constraints: tuple[Any, ...]) -> Iterator[tuple[type, tuple[Any, ...]]]:
    """Each number type in an annotation, with the constraints on it."""
    if annotation in (int, float):
        yield annotation, tuple(c for c in constraints if isinstance(c, Ge | Gt | Le | Lt))
    elif hasattr(annotation, "__metadata__"):
        own = [c for x in annotation.__metadata__ for c in (getattr(x, "metadata", None) or [x])]
        yield from numbers(annotation.__origin__, (*constraints, *own))
    else:
        for argument in get_args(annotation):
            if isinstance(argument, type) or hasattr(argument, "__metadata__") or get_args(argument):
                yield from numbers(argument, constraints)


def kinds(root: type[BaseModel], seen: set[type[BaseModel]]) -> Iterator[type[BaseModel]]:
    """The Config of a recipe, and all below it."""
    if root not in seen:
        seen.add(root)
        yield root
        for field in root.model_fields.values():
            for below in kinds_in(field.annotation):
                yield from kinds(below, seen)


FIELDS = [
    pytest.param(kind, name, id=f"{kind.__qualname__}.{name}")
    for kind in kinds(Recipe, set())
    for name, field in kind.model_fields.items()
    if any(numbers(field.annotation, tuple(field.metadata)))
]
HUGE = (10**20, 2**64, -(10**18), 10**400, 1e300, -1e300, math.inf, -math.inf, math.nan)


@pytest.mark.parametrize(("kind", "name"), FIELDS)
def test_every_number_of_a_recipe_has_bounds_that_hold(kind: type[BaseModel], name: str) -> None:
    field = kind.model_fields[name]
    for number, constraints in numbers(field.annotation, tuple(field.metadata)):
        assert any(isinstance(c, Ge | Gt) for c in constraints), "no lower bound"
        assert any(isinstance(c, Le | Lt) for c in constraints), "no upper bound"
        strict: Any = TypeAdapter(Annotated[(number, *constraints)], config=kind.model_config)
        for value in HUGE:
            with pytest.raises(ValidationError):
                strict.validate_python(value if number is int or not isinstance(value, int) else float(str(value)))


OVERRIDES = [
    ("epochs=1000000000000000000", "epochs: must be less than or equal to 1000000"),
    ("data.prefetch=1000000", "data.prefetch: must be less than or equal to 64"),
    ("data.threads=1000000", "data.threads: must be less"),
    ("seed=18446744073709551616", "seed: must be less than 18446744073709551616"),
    (f"seed={'9' * 5000}", "override seed: the number in line 1 has 5000 digits"),
    ("data.train.size=100000", "data.train.size: must be less than or equal to 4096"),
    ("model.width=1000000000", "model.width: must be less than or equal to 1024"),
    ("model.classes=1000000000", "model.classes: must be less than or equal to 100000"),
    ("evaluate.batch=1000000", "evaluate.batch: must be less than or equal to 16384"),
    ("batch=-1", "batch: must be greater than or equal to 1"),
    ("log.every_steps=0", "log.every_steps: must be greater"),
    ("save.every_steps=1.0e+30", "save.every_steps: "),
    ("optimizer.lr=.nan", "optimizer.lr: must be a finite number"),
    ("optimizer.lr=1e400", "optimizer.lr: must be a finite number"),
    ("optimizer.weight_decay=-.inf", "optimizer.weight_decay: must be "),
    ("data.std=[1.0e-40, 1, 1]", "data.std.0: must be greater than or equal to 0.000001"),
    ("run_dir=''", "run_dir: a path cannot be empty"),
    ('run_dir="a\\0b"', "run_dir: text cannot hold the character NUL"),
    ('data.root="a\\0b"', "data.root: text cannot hold the character NUL"),
    ('data.classes=["a\\0b", c]', "data.classes.0: text cannot hold the character NUL"),
    (f"model.name={'a' * 100_000}", "model.name: a text of 100,000 characters; at most 4,096 are read"),
    (f"data={'[' * 3000}{']' * 3000}", "override data: it is nested too deeply, more than 50 levels"),
    (f"data={'{a: ' * 3000}1{'}' * 3000}", "override data: it is nested too deeply, more than 50 levels"),
    (f"data.{'a.' * 3000}b=1", "no key has more than 50 parts"),
    (f"{'a' * 100_000}=1", "unknown key"),
]


@pytest.mark.parametrize(("override", "sentence"), OVERRIDES, ids=[sentence for _, sentence in OVERRIDES])
def test_what_is_beyond_sense_is_refused_in_one_short_line(override: str, sentence: str) -> None:
    with pytest.raises(UserError) as refused:
        load(CE, [override])
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 600


def bomb(opening: str, closing: str, key: bool) -> str:
    """Ten lines of aliases that stand for 10^9 values."""
    lines = [f"x-0: &a0 {opening}{', '.join(f'k{n}: 1' if key else '1' for n in range(10))}{closing}"]
    for level in range(1, 9):
        inside = ", ".join(f"k{n}: *a{level - 1}" if key else f"*a{level - 1}" for n in range(10))
        lines.append(f"x-{level}: &a{level} {opening}{inside}{closing}")
    return "\n".join(lines)


FILES = {
    "lists": (bomb("[", "]", key=False) + "\nmix: *a8", "its aliases stand for more than 1,000,000 values"),
    "mappings": (bomb("{", "}", key=True) + "\nmix: *a8", "its aliases stand for more than 1,000,000 values"),
    "merged": (bomb("{", "}", key=True) + "\nmix:\n  <<: *a8", "its aliases stand for more than 1,000,000 values"),
    "itself": ("x-a: &a [*a]", "stands for something that it is in"),
    "itself in a key": ("mix: &a {b: *a}", "stands for something that it is in"),
    "chain": (
        "x-0: &a0 [1]\n" + "\n".join(f"x-{n}: &a{n} [*a{n - 1}]" for n in range(1, 3000)),
        "nested too deeply",
    ),
    "blocks": ("\n".join(f"{' ' * n}a{n}:" for n in range(1500)), "nested too deeply"),
    "nul": ("x-a: \0", "special characters are not allowed"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_stand_for_more_than_memory_are_refused(tmp_path: Path, name: str) -> None:
    text, sentence = FILES[name]
    (tmp_path / "recipe.yaml").write_text(CE.read_text() + "\n" + text)
    with pytest.raises(UserError, match=sentence):
        load(tmp_path / "recipe.yaml")


@pytest.mark.parametrize("name", ["a\0b.yaml", "a" * 5000 + ".yaml", "."])
def test_names_of_recipes_that_cannot_be(name: str) -> None:
    with pytest.raises(UserError, match=r"^no recipe "):
        load(name)


# ---- nothing is built that grows with the epochs


@pytest.mark.parametrize("epochs", [1, 4, 7, 10, 23])
def test_sizes_of_a_ramp_are_those_of_its_epochs(epochs: int) -> None:
    ramp = {"first": 16, "start": 3, "end": 19, "multiple": 8}
    images = TrainImages.model_validate({"size": 100, "ramp": ramp})
    assert images.sizes(epochs) == sorted({images.size_at(epoch) for epoch in range(epochs)})
    assert TrainImages(size=9).sizes(10**18) == [9]
    assert images.sizes(10**18)[-1] == 100


@pytest.mark.parametrize("epoch", [0, 1, 3, 5, 8, 20])
def test_a_sum_of_products_over_epochs(epoch: int) -> None:
    batches, lengths = PerEpoch(10, ((3, 20), (7, 5))), PerEpoch(8, ((3, 4), (5, 9)))
    assert lengths.weighted(batches, epoch) == sum(batches.at(e) * lengths.at(e) for e in range(epoch))
    assert PerEpoch(3).weighted(PerEpoch(5), 10**18) == 15 * 10**18


LARGEST = {
    "seed": 2**64 - 1,
    "epochs": 10**6,
    "micro_batch": 10**6,
    "save": {"every_epochs": 10**6, "every_steps": 10**9, "keep": 10**5},
    "log": {"every_steps": 10**9},
    "faults": {"stall_minutes": 1e6, "max_skipped_steps": 10**9},
    "stop": {"patience": 10**6},
    "evaluate": {"batch": 4096, "every_epochs": 10**6},
}


def built(tree: dict[str, Any], folder: Path) -> Any:
    recipe = Recipe.model_validate(tree)
    return build(recipe, folder, torch.device("cpu"), Checkpoints(folder / "checkpoints", 1, print), Events([]))


def test_the_largest_numbers_make_a_bounded_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSDALI_CACHE", str(tmp_path / "cache"))
    tree = tiny({"name": "ce"}, make_images(tmp_path / "images"), tmp_path / "run", **LARGEST)
    tree["data"].update(prefetch=64, max_bad_files=10**9, wait_seconds=86_400, max_pixels=10**10)
    trainer = built(tree, tmp_path)
    assert trainer.clock.steps == 5 * 10**6
    assert trainer.step(next(trainer.train.epoch(0)))["loss"].isfinite()


def test_a_network_that_memory_does_not_hold_is_refused_before_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LSDALI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(checks, "free_bytes", lambda: 2**30)
    tree = tiny({"name": "ce"}, make_images(tmp_path / "images"), tmp_path / "run")
    for model in ({"name": "preact_resnet10", "width": 1024}, {"name": "resnet50", "classes": 100_000}):
        with pytest.raises(UserError, match=r"has weights of .* GB|MB, .* and 1.1 GB are free"):
            built({**tree, "model": model}, tmp_path)


def test_a_state_that_memory_does_not_hold_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSDALI_CACHE", str(tmp_path / "cache"))
    tree = tiny({"name": "ols"}, make_images(tmp_path / "images"), tmp_path / "run")

    def none_left(*_: Any, **__: Any) -> Any:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("lsdali.build.open_student", none_left)
    with pytest.raises(UserError, match=r"there is no memory for this run \(.*\): lower batch"):
        built(tree, tmp_path)


def test_recipes_are_as_before(tmp_path: Path) -> None:
    """What people write stays readable: aliases, lists of thousands of numbers, text in other scripts."""
    text = CE.read_text() + "\nx-a: &a {every_epochs: 7}\nevaluate: *a\n"
    (tmp_path / "recipe.yaml").write_text(text)
    milestones = yaml.safe_dump(list(range(1, 5000)), default_flow_style=True, width=10**9).strip()
    recipe = load(
        tmp_path / "recipe.yaml", ["data.root=/größe/数据", f"schedule={{name: step, milestones: {milestones}}}"]
    )
    assert recipe.evaluate.every_epochs == 7
    assert recipe.data.root == "/größe/数据"
