"""Implementations agree, states travel, groups are whole, apex is refused by a sentence."""

import math
import sys
from copy import deepcopy
from types import ModuleType
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from lsdali.errors import UserError
from lsdali.optim import (
    LAMB,
    OPTIMIZERS,
    SGD,
    Adam,
    AdamW,
    Nesterov,
    NovoGrad,
    Optimizer,
    OptimizerConfig,
    build_optimizer,
)
from lsdali.optim.apex import APEX_CLASSES
from lsdali.optim.configs import TORCH

CPU = torch.device("cpu")
IMPLEMENTATIONS = ["torch-fused", "foreach", "loop"]
parse = TypeAdapter(OptimizerConfig).validate_python


def net() -> nn.Sequential:
    # No bias before the norm: its gradient is rounding noise, which Adam would blow up to full steps.
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )


def build(model: nn.Module, name: str, implementation: str = "auto", **options: Any) -> Optimizer:
    config = {"name": name, "lr": 0.05, "weight_decay": 0.01, "implementation": implementation, **options}
    return build_optimizer(model, parse(config), CPU)


def steps(model: nn.Module, optimizer: Optimizer, first: int, last: int) -> None:
    for s in range(first, last):
        g = torch.Generator().manual_seed(s)
        x, y = torch.randn(4, 3, 8, 8, generator=g), torch.randint(5, (4,), generator=g)
        optimizer.set_lr(0.05 / (1 + s))
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero()


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize("name", TORCH)
def test_implementations_agree(name: str, clip: float | None) -> None:
    results = []
    for implementation in IMPLEMENTATIONS:
        model = net()
        steps(model, build(model, name, implementation, clip=clip), 0, 20)
        results.append(weights(model))
    assert not torch.equal(results[0], weights(net()))
    assert torch.allclose(results[0], results[1], rtol=0, atol=1e-6)
    assert torch.allclose(results[0], results[2], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "plain"),
    [
        (
            SGD(lr=0.1, momentum=0.8, weight_decay=0.1),
            lambda p: torch.optim.SGD(p, 0.1, 0.8, weight_decay=0.1),
        ),
        (
            Nesterov(lr=0.1, weight_decay=0.1),
            lambda p: torch.optim.SGD(p, 0.1, 0.9, weight_decay=0.1, nesterov=True),
        ),
        (
            Adam(lr=0.1, betas=(0.8, 0.9), weight_decay=0.1),
            lambda p: torch.optim.Adam(p, 0.1, (0.8, 0.9), weight_decay=0.1),
        ),
        (
            AdamW(lr=0.1, eps=1e-3, weight_decay=0.1),
            lambda p: torch.optim.AdamW(p, 0.1, eps=1e-3, weight_decay=0.1),
        ),
    ],
)
def test_each_name_is_its_algorithm(config: OptimizerConfig, plain: Any) -> None:
    ours, theirs = nn.Linear(4, 3, bias=False), nn.Linear(4, 3, bias=False)
    theirs.load_state_dict(ours.state_dict())
    a, b = build_optimizer(ours, config, CPU), plain(theirs.parameters())
    for _ in range(5):
        for model, optimizer in ((ours, a), (theirs, b)):
            model(torch.ones(2, 4)).square().sum().backward()
            optimizer.step()
        a.zero()
        b.zero_grad()
    assert torch.allclose(ours.weight, theirs.weight, atol=1e-6)


@pytest.mark.parametrize("name", TORCH)
@pytest.mark.parametrize("wrote", IMPLEMENTATIONS)
@pytest.mark.parametrize("reads", IMPLEMENTATIONS)
def test_states_travel_between_implementations(name: str, wrote: str, reads: str) -> None:
    straight = net()
    steps(straight, build(straight, name, wrote), 0, 6)

    first = net()
    optimizer = build(first, name, wrote)
    steps(first, optimizer, 0, 3)
    state = deepcopy(optimizer.state_dict())
    second = deepcopy(first)
    resumed = build(second, name, reads)
    own = [{k: v for k, v in g.items() if k != "params"} for g in resumed.inner.param_groups]
    resumed.load_state_dict(state)
    assert [{k: v for k, v in g.items() if k != "params"} for g in resumed.inner.param_groups] == own
    steps(second, resumed, 3, 6)
    assert torch.allclose(weights(straight), weights(second), rtol=0, atol=1e-6)
    if wrote == reads:
        assert torch.equal(weights(straight), weights(second))


def test_states_of_others_are_refused() -> None:
    model = net()
    adam, sgd = build(model, "adam"), build(model, "sgd")
    with pytest.raises(UserError, match="optimizer is 'torch adam' and the recipe's is 'torch sgd'"):
        sgd.load_state_dict(adam.state_dict())
    with pytest.raises(UserError, match="other parameter groups"):
        build(model, "adam", decay="all").load_state_dict(adam.state_dict())


class Odd(nn.Module):
    """Shared weights, a frozen layer, norms of every kind, one with two-dimensional parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
        self.b.weight = self.a.weight
        self.frozen = nn.Linear(6, 6).requires_grad_(requires_grad=False)
        self.wide = nn.LayerNorm((4, 6))
        self.others = nn.ModuleList([nn.GroupNorm(2, 6), nn.BatchNorm1d(6), nn.RMSNorm(6), nn.InstanceNorm1d(6)])
        self.scale = nn.Parameter(torch.ones(6))
        self.norm_like_name = nn.Linear(6, 6, bias=False)


@pytest.mark.parametrize("decay", ["weights", "all"])
def test_each_trainable_parameter_is_in_exactly_one_group(decay: str) -> None:
    model = Odd()
    optimizer = build(model, "sgd", decay=decay)
    ids = [id(p) for p in optimizer.parameters()]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(p) for p in model.parameters() if p.requires_grad}
    decayed = {id(p) for g in optimizer.inner.param_groups if g["weight_decay"] > 0 for p in g["params"]}
    if decay == "all":
        assert decayed == set(ids)
    else:
        assert decayed == {id(model.a.weight), id(model.norm_like_name.weight)}


def test_nothing_to_train_is_an_error() -> None:
    with pytest.raises(UserError, match="no trainable parameter"):
        build(nn.ReLU(), "sgd")


def test_clip_bounds_the_whole_gradient() -> None:
    model = nn.Linear(3, 3)
    before = weights(model)
    optimizer = build_optimizer(model, SGD(lr=1.0, momentum=0.0, clip=0.5), CPU)
    for p in model.parameters():
        p.grad = torch.full_like(p, 7.0)
    optimizer.step()
    assert (weights(model) - before).norm().item() == pytest.approx(0.5, abs=1e-5)


def test_describe_says_what_and_why() -> None:
    line = build(net(), "sgd").describe()
    assert line == (
        "sgd by torch-fused, the fewest kernels a step on cpu; 2 tensors with decay 0.01, 3 tensors with decay 0"
    )
    assert build(net(), "adam", "loop", decay="all").describe() == (
        "adam by loop, as the recipe asks; 5 tensors with decay 0.01"
    )


def test_recipes_are_strict() -> None:
    assert parse({"name": "adamw", "lr": 1, "betas": [0.9, 0.95]}) == AdamW(lr=1.0, betas=(0.9, 0.95))
    for name, kind in OPTIMIZERS.items():
        assert kind.model_fields["name"].default == name
    for wrong in (
        {"name": "sgd", "lr": "0.1"},
        {"name": "sgd", "lr": 0.0},
        {"name": "sgd", "lr": 0.1, "betas": [0.9, 0.999]},
        {"name": "nesterov", "lr": 0.1, "momentum": 0.0},
        {"name": "adam", "lr": 0.1, "betas": ["0.9", 0.95]},
        {"name": "lion", "lr": 0.1},
        {"name": "lamb", "lr": 0.1, "implementation": "loop"},
        {"name": "timm", "lr": 0.1},
    ):
        with pytest.raises(ValidationError):
            parse(wrong)


class Recorder(torch.optim.SGD):
    """Stands in for apex's classes: remembers its arguments."""

    def __init__(self, params: Any, lr: float, **options: Any) -> None:
        super().__init__(params, lr)
        self.options = options

    def zero_grad(self) -> None:  # type: ignore[override]
        raise AssertionError("apex's zero_grad has a signature of its own")


def fake_apex(patch: pytest.MonkeyPatch) -> None:
    optimizers = ModuleType("apex.optimizers")
    for name in APEX_CLASSES.values():
        setattr(optimizers, name, Recorder)
    for name, module in {
        "apex": ModuleType("apex"),
        "apex.optimizers": optimizers,
        "amp_C": ModuleType("amp_C"),
    }.items():
        patch.setitem(sys.modules, name, module)


def test_missing_apex_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "apex", None)
    sentence = r"needs the module apex.optimizers.*`apex` on PyPI is an unrelated package.*use auto"
    with pytest.raises(UserError, match=sentence):
        build(net(), "sgd", "apex")


def test_pypis_apex_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [m for m in sys.modules if m.split(".")[0] == "apex"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "apex", ModuleType("apex"))
    with pytest.raises(UserError, match=r"needs the module apex.optimizers.*unrelated package"):
        build(net(), "sgd", "apex")


def test_apex_without_kernels_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_apex(monkeypatch)
    monkeypatch.setitem(sys.modules, "amp_C", None)
    with pytest.raises(UserError, match=r"needs the module amp_C"):
        build(net(), "adam", "apex")


def test_apex_on_the_cpu_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_apex(monkeypatch)
    with pytest.raises(UserError, match="runs on CUDA only and this is the cpu"):
        build(net(), "adam", "apex")


def test_apex_gets_the_right_algorithm(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_apex(monkeypatch)
    cuda = torch.device("cuda")
    modes = {}
    for config in (Adam(lr=0.1, implementation="apex"), AdamW(lr=0.1, implementation="apex")):
        optimizer = build_optimizer(net(), config, cuda)
        modes[config.name] = optimizer.inner.options["adam_w_mode"]  # type: ignore[attr-defined]
        optimizer.zero()
    assert modes == {"adam": False, "adamw": True}
    sgd = build_optimizer(net(), Nesterov(lr=0.1, implementation="apex"), cuda)
    assert sgd.inner.options == {"momentum": 0.9, "nesterov": True}  # type: ignore[attr-defined]
    lamb = build_optimizer(net(), LAMB(lr=0.1, implementation="apex"), cuda)
    assert lamb.inner.options["max_grad_norm"] == math.inf, "clipping is the recipe's"  # type: ignore[attr-defined]
    novograd = build_optimizer(net(), NovoGrad(lr=0.1), cuda)
    assert novograd.inner.options == {"betas": (0.95, 0.98), "eps": 1e-8}  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="FusedSGD never updates bf16 parameters"):
        build_optimizer(net().bfloat16(), SGD(lr=0.1, implementation="apex"), cuda)
    with pytest.raises(UserError, match="FusedLAMB never updates bf16 parameters"):
        build_optimizer(net().bfloat16(), LAMB(lr=0.1, implementation="apex"), cuda)
    with pytest.raises(UserError, match="'apex lamb' and the recipe's is 'own lamb'"):
        build_optimizer(net(), LAMB(lr=0.1), torch.device("cpu")).load_state_dict(lamb.state_dict())
    assert "waits for the device at each step" in sgd.describe()


class ApexAdam(torch.optim.Optimizer):
    """Adam with apex's state: the count in the group, moments with the parameters. Formulas of Kingma 2014."""

    def __init__(self, params: Any, lr: float, betas: Any, eps: float, adam_w_mode: bool) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})
        self.decoupled = adam_w_mode

    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            (first, second), lr, decay = group["betas"], group["lr"], group["weight_decay"]
            for p in group["params"]:
                state = self.state[p]
                for name in ("exp_avg", "exp_avg_sq"):
                    state.setdefault(name, torch.zeros_like(p))
                gradient = p.grad if self.decoupled else p.grad + decay * p
                state["exp_avg"] += (1 - first) * (gradient - state["exp_avg"])
                state["exp_avg_sq"] += (1 - second) * (gradient**2 - state["exp_avg_sq"])
                mean = state["exp_avg"] / (1 - first ** group["step"])
                spread = (state["exp_avg_sq"] / (1 - second ** group["step"])).sqrt() + group["eps"]
                p.data -= lr * (mean / spread + (decay * p.data if self.decoupled else 0))


class ApexSGD(torch.optim.Optimizer):
    """SGD with apex's state: a momentum of zeros from the start. Formula of torch's documentation."""

    def __init__(self, params: Any, lr: float, momentum: float, nesterov: bool = False) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})
        self.nesterov = nesterov

    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                gradient = p.grad + group["weight_decay"] * p.data
                speed = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                speed.mul_(group["momentum"]).add_(gradient)
                p.data -= group["lr"] * (gradient + group["momentum"] * speed if self.nesterov else speed)


@pytest.mark.parametrize("config", [SGD(lr=0.1), Nesterov(lr=0.1), Adam(lr=0.1), AdamW(lr=0.1)], ids=lambda c: c.name)
@pytest.mark.parametrize("first", ["auto", "apex"])
def test_a_run_goes_over_from_apex_to_torch_and_back(monkeypatch: pytest.MonkeyPatch, config: Any, first: str) -> None:
    """Three steps of one and three of the other are six of torch's."""
    fake_apex(monkeypatch)
    for name, kind in {"FusedAdam": ApexAdam, "FusedSGD": ApexSGD}.items():
        monkeypatch.setattr(sys.modules["apex.optimizers"], name, kind)

    def made(model: nn.Module, implementation: str) -> Optimizer:
        device = torch.device("cuda" if implementation == "apex" else "cpu")
        changes = {"implementation": implementation, "weight_decay": 0.01}
        return build_optimizer(model, config.model_copy(update=changes), device)

    whole, parts = net(), net()
    parts.load_state_dict(whole.state_dict())
    expected, one = made(whole, "auto"), made(parts, first)
    gradients = [[torch.randn_like(p) for p in whole.parameters()] for _ in range(6)]
    for number, given in enumerate(gradients):
        if number == 3:
            other = made(parts, "apex" if first == "auto" else "auto")
            other.load_state_dict(one.state_dict())
            one = other
        for model, optimizer in ((whole, expected), (parts, one)):
            for p, gradient in zip(model.parameters(), given, strict=True):
                p.grad = gradient.clone()
            optimizer.step()
    for p, q in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_apexs_step_count_is_state(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_apex(monkeypatch)
    one, two = (build_optimizer(net(), Adam(lr=0.1, implementation="apex"), torch.device("cuda")) for _ in "ab")
    one.inner.param_groups[0]["step"] = 7
    two.load_state_dict(one.state_dict())
    assert two.inner.param_groups[0]["step"] == 7


# ---- fine-tuning


def test_backbone_learns_at_its_own_rate():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 2))
    config = SGD(lr=0.1, weight_decay=0.01, backbone_lr_scale=0.25)
    optimizer = build_optimizer(model, config, torch.device("cpu"), model[2].parameters())
    optimizer.set_lr(0.8)
    rates = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.inner.param_groups for p in g["params"]}
    assert [rates[id(p)] for p in model.parameters()] == [
        (0.2, 0.01),
        (0.2, 0.0),
        (0.2, 0.0),
        (0.2, 0.0),
        (0.8, 0.01),
        (0.8, 0.0),
    ]
    assert "1 tensors with decay 0.01 and learning rate x 0.25" in optimizer.describe()
    again = build_optimizer(model, config, torch.device("cpu"), model[2].parameters())
    again.load_state_dict(optimizer.state_dict())
    again.set_lr(0.4)
    assert [g["lr"] for g in again.inner.param_groups] == [0.1, 0.4, 0.1, 0.4]


def test_without_a_scale_groups_are_what_they_were():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Linear(4, 2))
    plain = build_optimizer(model, SGD(lr=0.1), torch.device("cpu"))
    named = build_optimizer(model, SGD(lr=0.1), torch.device("cpu"), model[1].parameters())
    assert plain.describe() == named.describe()
    assert len(named.inner.param_groups) == 2
