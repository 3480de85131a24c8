"""What a wrong value in a recipe's method is told: one line that names the key and what would be right."""

from pathlib import Path

import pytest
import yaml

from lsdali.errors import UserError
from lsdali.recipe import load
from tests.harness import ROOT

T = {"source": "checkpoint", "path": "teacher.pt"}
VIRTUAL = {"name": "tfkd", "form": "virtual", "alpha": 0.5, "temperature": 1.0}
LINEAR = {"name": "linear_decay", "smallest_prob": -0.1}

BAD = [
    *(
        ({**tree, "temperature": 0.0}, "method.temperature: must be greater than 0, got 0.0")
        for tree in (
            {"name": "kd", "teacher": T},
            {"name": "zls_kd", "teacher": T},
            {"name": "ibls", "teacher": T},
            {"name": "ibls_cls", "teacher": T},
            {"name": "cskd"},
            {"name": "bake"},
            VIRTUAL,
        )
    ),
    *(
        ({"name": name, key: -1.0}, f"method.{key}: must be greater than or equal to 0, got -1.0")
        for name, key in [
            ("zls", "weight"),
            ("ols", "hard"),
            ("ols", "soft"),
            ("cskd", "weight"),
            ("bake", "weight"),
            ("pskd", "alpha"),
            ("ls", "smoothing"),
        ]
    ),
    *(({"name": name}, "method.teacher: missing") for name in ("kd", "zls_kd", "ibls", "ibls_cls")),
    ({"name": "pskd", "alpha": 1.0}, "method.alpha: must be less than 1, got 1.0"),
    ({**VIRTUAL, "alpha": 1.0}, "method.alpha: must be less than 1, got 1.0"),
    ({"name": "zls_kd", "teacher": T, "alpha": 1.5}, "method.alpha: must be less than or equal to 1, got 1.5"),
    ({"name": "ls", "smoothing": 1.0}, "method.smoothing: must be less than 1, got 1.0"),
    (
        {"name": "zls", "distribution": LINEAR},
        "method.distribution.smallest_prob: must be greater than or equal to 0, got -0.1",
    ),
    ({"name": "zls", "distribution": {"name": "linear_decay"}}, "method.distribution.smallest_prob: missing"),
    (
        {"name": "zls", "soft": {"strength": 0.0}},
        "method.soft.strength: must be greater than or equal to 0.000001, got 0.0",
    ),
    (
        {"name": "zls", "distribution": {"name": "unbiased_zipf", "power": 40.0}},
        "method.distribution.power: must be less than or equal to 5, got 40.0",
    ),
    (
        {"name": "zls_kd", "teacher": T, "temperature": 1e30},
        "method.temperature: must be less than or equal to 1000, got 1e+30",
    ),
    (
        {"name": "exits", "hard_epochs": 1},
        "method: without smoothing every epoch is hard; give `smoothing`, or leave out `hard_epochs`",
    ),
    (
        {"name": "exits", "exit_weight": 0.0},
        "method: nothing trains the exits; give `exit_weight` or `distill`, or use the method ce or ls",
    ),
    ({"name": "ibls", "teacher": T, "rule": "ils3"}, "method.rule: 'ils3' is not allowed; did you mean 'ils2'?"),
    (
        {"name": "ibls", "teacher": T, "quadratic": {"shift": 0.5}},
        "method: the rule logits has no curve; leave out `quadratic`, or use one of paper_ils1, paper_ils",
    ),
    (
        {"name": "ibls", "teacher": T, "temperature": 2.0},
        "method: the rule logits reads no temperature; leave out `temperature`",
    ),
    (
        {"name": "kd", "teacher": {**T, "temperature": 0.0}},
        "method.teacher.temperature: must be greater than 0, got 0.0",
    ),
    ({"name": "zls", "weight": float("inf")}, "method.weight: must be a finite number, got inf"),
    ({"name": "bake", "temperature": float("nan")}, "method.temperature: must be a finite number, got nan"),
]


@pytest.mark.parametrize(("method", "sentence"), BAD, ids=[s for _, s in BAD])
def test_a_wrong_value_is_one_line(method, sentence, tmp_path: Path):
    tree = yaml.safe_load((ROOT / "recipes/digits/ce.yaml").read_text())
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump({**tree, "method": method}))
    with pytest.raises(UserError) as caught:
        load(path)
    place, _, said = str(caught.value).partition(": ")
    assert (place.rpartition(":")[0], said) == (str(path), sentence)
