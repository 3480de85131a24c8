"""The method part of every recipe, for tests."""

from pathlib import Path
from typing import Any

import yaml

from lsdali.methods import METHODS, Method
from lsdali.testing.small import float64, trainer_for, trainer_in_float64
from tests.harness import ROOT

__all__ = [
    "CONFIGS",
    "EACH",
    "STATEFUL",
    "float64",
    "method_configs",
    "named",
    "trainer_for",
    "trainer_in_float64",
    "with_teacher",
]


def method_configs(teacher: Path) -> list[Any]:
    """Every method part of every recipe in the repository, once each, with teachers replaced by one of this test."""
    found: dict[str, Any] = {}
    for path in sorted(ROOT.glob("recipes/**/*.yaml")):
        config = yaml.safe_load(path.read_text())["method"]
        if "teacher" in config:
            config["teacher"] = {"source": "checkpoint", "path": str(teacher)}
        if "epochs" in config.get("noise", {}):
            config["noise"]["epochs"] = 1  # these runs have two
        found[yaml.safe_dump(config)] = config
    return list(found.values())


CONFIGS = method_configs(Path("TEACHER"))
EACH = list({config["name"]: config for config in CONFIGS}.values())
"""One of each method."""
STATEFUL = [config for config in CONFIGS if METHODS[config["name"]].state_dict is not Method.state_dict]
"""Those of methods that have a state."""


def with_teacher(config: Any, base: Path) -> Any:
    return yaml.safe_load(yaml.safe_dump(config).replace("TEACHER", str(base / "teacher/checkpoints/best.pt")))


def named(config: Any) -> str:
    """Return the method's name and the values of its keys, without its teacher's."""
    values = (named(v) if isinstance(v, dict) else str(v) for k, v in config.items() if k != "teacher")
    return "-".join(values)
