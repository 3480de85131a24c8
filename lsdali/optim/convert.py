"""States of NVIDIA apex's optimizers as torch's, and back: apex counts steps by group, torch by parameter."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

ALIKE = ("sgd", "nesterov", "adam", "adamw")
"""Of these both keep the same moments under the same names."""


def as_kind(state: Mapping[str, Any], kind: str) -> Mapping[str, Any] | None:
    """Return a state of `Optimizer.state_dict` as one of another kind ("torch adam"); None if that cannot be done."""
    (wrote, _, name), (reads, _, own) = (text.partition(" ") for text in (state["kind"], kind))
    if state["kind"] == kind:
        return state
    if name != own or name not in ALIKE or {wrote, reads} != {"torch", "apex"}:
        return None
    groups = to_torch(state) if reads == "torch" else to_apex(state)
    return {**state, **groups, "kind": kind}


def to_torch(state: Mapping[str, Any]) -> dict[str, Any]:
    """Give each parameter the count of its group."""
    entries, groups = dict(state["state"]), []
    for group in state["param_groups"]:
        groups.append({key: value for key, value in group.items() if key != "step"})
        if "step" in group:
            count = torch.tensor(float(group["step"]))
            counted = {number: {"step": count.clone(), **entries[number]} for number in group["params"]}
            entries.update(counted)
    return {"state": entries, "param_groups": groups}


def to_apex(state: Mapping[str, Any]) -> dict[str, Any]:
    """Give each group the count of its parameters, which is one and the same: they are updated together."""
    counts = {number: entry["step"] for number, entry in state["state"].items() if "step" in entry}
    entries = {number: without_count(entry) for number, entry in state["state"].items()}
    groups = []
    for group in state["param_groups"]:
        own = {int(counts[number]) for number in group["params"] if number in counts}
        groups.append({**group, "step": max(own)} if own else dict(group))
    return {"state": entries, "param_groups": groups}


def without_count(entry: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in entry.items() if name != "step" and value is not None}
