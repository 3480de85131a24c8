"""The published tables: every cell has a recipe, and every loss that they name can take a step."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lsdali.models import ModelConfig, build_network
from lsdali.recipe import Recipe
from lsdali.sweep.cells import Cell, expand, load_sweep
from lsdali.sweep.figures import check_figures
from tests.harness import ROOT, tiny
from tests.methods.trainers import trainer_for

SWEEPS = sorted(ROOT.glob("sweeps/*.yaml"))
CELLS: dict[str, int] = {  # without seeds: what the tables have
    "zls_cifar100": 6,
    "zls_tinyimagenet": 6 + 5,
    "zls_imagenet": 21 + 5,
    "zls_inat21": 21 + 5,
    "ols_finegrained": 64,
    "ols_ensemble": 3,
    "ols_cifar": 14 * 3 + 2 * 12 + 3 * 3 + 2 * 4 * 12,
    "lskd_imagenet": 2 + 16,
    "lskd_cub": 2 + 2 + 40,
    "ibls": 4 + 24 + 24,
    "ibls_synthetic": 1 + 5 + 1 + 6 + 4 + 8,
    "pskd_cifar100": 25,
    "pskd_imagenet": 6,
    "digits": 3,
    "cifar10_small": 12,
}


@pytest.fixture(scope="module")
def cells() -> dict[str, list[Cell]]:
    return {path.stem: expand(load_sweep(path), path) for path in SWEEPS}


@pytest.fixture(scope="module")
def recipes(cells: dict[str, list[Cell]]) -> list[Recipe]:
    """Of every cell, whatever its seed."""
    first = {(c.stage, *c.labels.items(), *c.base.parts, name): c for name, own in cells.items() for c in own}
    return [cell.recipe() for cell in first.values()]


def test_every_table_is_whole(cells: dict[str, list[Cell]], recipes: list[Recipe]) -> None:
    assert {name: len({(c.stage, *c.labels.items()) for c in own}) for name, own in cells.items()} == CELLS
    assert len(recipes) == sum(CELLS.values())
    for path in SWEEPS:
        check_figures(load_sweep(path), cells[path.stem])


R50 = {"ResNet-50"}
LESS_THAN_ZIPF = {"constant", "random_uniform", "random_pareto", "linear_decay"}
PUBLISHED: dict[str, list[tuple[str, str, dict[str, set[str]], int]]] = {  # system: (file, stage, labels, cells)
    "ZLS": [
        ("zls_cifar100", "train", {}, 6),
        ("zls_tinyimagenet", "train", {}, 6),
        *((name, "train", {"network": R50}, 3) for name in ("zls_imagenet", "zls_inat21")),
        *((name, "train", {"method": {"ZLS"}}, 7) for name in ("zls_imagenet", "zls_inat21")),
        *((name, "distributions", {"distribution": LESS_THAN_ZIPF}, 4) for name in ("zls_imagenet", "zls_inat21")),
    ],
    "OLS": [
        ("ols_finegrained", "train", {}, 64),
        ("ols_cifar", "networks", {"network": {"ResNet-34", "ResNeXt-29 2x64d"}, "method": {"OLS"}}, 2),
    ],
    "LS-KD": [
        ("lskd_imagenet", "imagenet_teachers", {}, 2),
        ("lskd_imagenet", "imagenet_students", {}, 16),
        ("lskd_cub", "cub_teachers", {}, 2),
        ("lskd_cub", "cub_students", {"student": {"ResNet-18", "ResNet-50", "MobileNetV2"}}, 24),
    ],
    "IBLS": [("ibls", "plain", {}, 4), ("ibls", "smoothed", {"smoothing": {"0.1"}}, 8)],
    "PS-KD": [("pskd_cifar100", "train", {}, 25), ("pskd_imagenet", "train", {}, 6)],
}
"""The cells of the tables in the systems' READMEs. A cell with two roles, as ZLS with ResNet-50, is in two rows."""


def test_every_published_cell_has_one_of_a_sweep(cells: dict[str, list[Cell]]) -> None:
    found: dict[str, int] = {}
    for system, rows in PUBLISHED.items():
        for name, stage, wanted, count in rows:
            own = [cell for cell in cells[name] if cell.stage == stage]
            fit = [cell for cell in own if all(cell.labels[axis] in labels for axis, labels in wanted.items())]
            assert len({tuple(c.labels.items()) for c in fit}) == count, (name, stage, wanted)
            for cell in {tuple(cell.labels.items()): cell for cell in fit}.values():
                assert cell.recipe().run_dir == str(cell.folder)
            found[system] = found.get(system, 0) + count
    assert found == {"ZLS": 40, "OLS": 66, "LS-KD": 44, "IBLS": 12, "PS-KD": 31}
    assert sum(found.values()) == 193


def test_every_file_says_where_its_numbers_come_from() -> None:
    for path in SWEEPS:
        head = path.read_text().split("title:")[0]
        assert "Source:" in head or "our own" in head, path


def test_students_learn_from_their_own_teachers(cells: dict[str, list[Cell]]) -> None:
    student = next(c for c in cells["lskd_cub"] if c.name == "cub_students/MobileNetV2_T=64.0_alpha=0.1_seed2021")
    (teacher,) = student.needs["cub_teachers"]
    (start,) = teacher.needs["imagenet_teachers"]
    assert (teacher.name, start.name) == ("cub_teachers/alpha=0.1_seed0", "imagenet_teachers/alpha=0.1_seed0")
    shared = next(c for c in cells["lskd_imagenet"] if c.name == start.name)
    assert shared.folder == start.folder
    assert shared.recipe() == start.recipe()
    scaled = next(c for c in cells["ibls"] if c.name == "students/CIFAR-100-ResNet50_ILS_with_seed2")
    chosen_from = [need.name for need in scaled.needs["smoothed"]]
    assert chosen_from == [f"smoothed/CIFAR-100-ResNet50_ILS_smoothing={a}_seed2" for a in (0.01, 0.05, 0.1)]
    assert scaled.recipe().model.name == "shallow_cnn"


def test_a_protocol_is_kept_by_all_of_its_methods(cells: dict[str, list[Cell]]) -> None:
    for name, same in (("pskd_cifar100", 1), ("zls_cifar100", 1), ("pskd_imagenet", 1), ("ols_finegrained", 1)):
        shared = {"epochs", "batch", "optimizer", "schedule"}
        dumps = {yaml.safe_dump(cell.recipe().model_dump(mode="json", include=shared)) for cell in cells[name]}
        assert len(dumps) == same, name


def method_parts(recipes: list[Recipe]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each method part of a table once, and what of the recipe it needs to begin: its epochs and noise."""
    seen = set()
    for recipe in recipes:
        tree = recipe.model_dump(mode="json")
        part, noise = tree["method"], tree["data"]["noise"]
        if "teacher" in part and part["teacher"] is not None:
            part["teacher"] = {"source": "checkpoint", "path": "TEACHER"}
        text = yaml.safe_dump(part)
        if text not in seen:
            seen.add(text)
            yield part, {"epochs": recipe.epochs, "noise": noise}


def test_every_method_of_the_tables_takes_a_step(recipes: list[Recipe], folder: Path) -> None:
    teacher = str(folder / "teacher/checkpoints/best.pt")
    data = tiny("", folder / "images", folder)["data"]
    for number, (part, needs) in enumerate(method_parts(recipes)):
        config = yaml.safe_load(yaml.safe_dump(part).replace("TEACHER", teacher))
        place = folder / f"step{number}"
        trainer = trainer_for(config, place, epochs=needs["epochs"], data={**data, "noise": needs["noise"]})
        trainer.student.train()
        terms = trainer.step(next(iter(trainer.train.epoch(0))))
        assert terms["loss"].isfinite(), part
        shutil.rmtree(place, ignore_errors=True)


def test_every_small_network_of_the_tables_can_be_built(recipes: list[Recipe]) -> None:
    names = {recipe.model.name for recipe in recipes}
    small = {
        n for n in names if n.startswith(("cifar_", "preact_", "wrn_40", "resnext29_2", "shallow", "densenet_plain"))
    }
    assert len(small) >= 15
    for name in small - {"cifar_resnet101", "cifar_resnet152", "cifar_inception_v4"}:  # these take seconds
        network = build_network(ModelConfig(name=name), 10)
        assert sum(p.numel() for p in network.parameters()) > 0
