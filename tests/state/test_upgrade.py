"""Recipes in checkpoints of version 0.1 are read under today's keys."""

from typing import Any

import pytest

from lsdali.state.module_state import current_names
from lsdali.state.upgrade import upgraded


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            {"data": {"split": None, "limit": 5, "max_bad": 9}},
            {"data": {"holdout": None, "max_samples": 5, "max_bad_files": 9}},
        ),
        (
            {"data": {"noise": {"kind": "pair", "rate": 0.5, "seed": 3}}},
            {"data": {"noise": {"name": "pair", "rate": 0.5}, "noise_seed": 3}},
        ),
        (
            {"method": {"name": "forward", "noise": {"name": "file", "path": "m.npy"}, "clamp": None}},
            {"method": {"name": "forward", "noise": {"name": "matrix", "file": "m.npy"}, "variant": "paper"}},
        ),
        ({"method": {"name": "sce", "clamp": 1e-7}}, {"method": {"name": "sce", "variant": "code"}}),
        ({"method": {"name": "tfkd", "rule": "text"}}, {"method": {"name": "tfkd", "variant": "paper"}}),
        ({"method": {"name": "kd", "mean": "elements"}}, {"method": {"name": "kd", "variant": "code"}}),
        ({"method": {"name": "ibls", "rule": "ils2"}}, {"method": {"name": "ibls", "rule": "ils2"}}),
        (
            {"method": {"name": "ols_deep", "first_epoch": "final_only"}},
            {"method": {"name": "ols_deep", "variant": "code"}},
        ),
    ],
)
def test_old_keys_become_todays(old: dict[str, Any], new: dict[str, Any]) -> None:
    assert upgraded(old) == new
    assert upgraded(new) == new


def test_heads_have_todays_name() -> None:
    assert current_names({"network.stem": 1, "probes.exit.weight": 2}) == {
        "network.stem": 1,
        "aux_heads.exit.weight": 2,
    }
