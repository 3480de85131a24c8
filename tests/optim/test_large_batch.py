"""LARS and LAMB against the papers' formulas and timm's code; every optimizer against itself, stopped and resumed."""

import io
import warnings
from copy import deepcopy
from typing import Any

import pytest
import torch
from timm.optim import Lamb, Lars, list_optimizers
from torch import Tensor, nn

from lsdali.errors import UserError
from lsdali.optim import Optimizer, build_optimizer
from lsdali.optim.optimizer import UNUSABLE
from tests.made_up_cuda import CUDA, made_up_cuda
from tests.optim.test_optimizer import build, net, parse, steps, weights

OURS = ["lars", "lamb"]


def gradients(model: nn.Module, step: int) -> None:
    g = torch.Generator().manual_seed(step)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=g, dtype=p.dtype)


def lars_twin(w: Tensor, g: Tensor, state: dict[str, Any], lr: float, decay: float) -> Tensor:
    """Algorithm 1 of You, Gitman and Ginsburg; where the rate is constant, its place does not matter."""
    local = 1e-3 * w.norm() / (g.norm() + decay * w.norm()) if decay else 1.0
    state["v"] = 0.9 * state.get("v", 0.0) + lr * local * (g + decay * w)
    return w - state["v"]


def lamb_twin(w: Tensor, g: Tensor, state: dict[str, Any], lr: float, decay: float) -> Tensor:
    """Algorithm 2 of You et al., with phi the identity."""
    t = state["t"] = state.get("t", 0) + 1
    state["m"] = 0.9 * state.get("m", 0.0) + 0.1 * g
    state["v"] = 0.999 * state.get("v", 0.0) + 0.001 * g**2
    u = state["m"] / (1 - 0.9**t) / ((state["v"] / (1 - 0.999**t)).sqrt() + 1e-6) + decay * w
    return w - lr * (w.norm() / u.norm() if decay else 1.0) * u


@pytest.mark.parametrize(("name", "twin"), [("lars", lars_twin), ("lamb", lamb_twin)])
def test_formulas_of_the_papers(name: str, twin: Any) -> None:
    model = net().double()
    optimizer, states = build(model, name), [{} for _ in model.parameters()]  # type: ignore[var-annotated]
    expected = [p.detach().clone() for p in model.parameters()]
    for step in range(6):
        gradients(model, step)
        for k, p in enumerate(model.parameters()):
            expected[k] = twin(expected[k], p.grad, states[k], 0.05, 0.01 if p.ndim > 1 else 0.0)
        optimizer.step()
    for p, right in zip(model.parameters(), expected, strict=True):
        assert torch.allclose(p, right, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", OURS)
def test_they_are_timms(name: str) -> None:
    ours, theirs = net(), net()
    groups = [
        {**g, "params": list(map(dict(zip(map(id, ours.parameters()), theirs.parameters())).get, map(id, g["params"])))}
        for g in ({k: g[k] for k in ("params", "weight_decay")} for g in build(ours, name).inner.param_groups)
    ]
    other = Lars(groups, 0.05, momentum=0.9) if name == "lars" else Lamb(groups, 0.05, max_grad_norm=0.5)
    optimizer = build(ours, name, clip=None if name == "lars" else 0.5)
    for step in range(10):
        gradients(ours, step)
        gradients(theirs, step)
        for group in other.param_groups:
            group["lr"] = 0.05 / (1 + step)
        optimizer.set_lr(0.05 / (1 + step))
        optimizer.step()
        other.step()
    assert not torch.equal(weights(ours), weights(net()))
    assert torch.allclose(weights(ours), weights(theirs), rtol=0, atol=1e-6)


def test_a_tensor_of_zeros_moves() -> None:
    for name in OURS:
        model = nn.Linear(3, 2, bias=False)
        nn.init.zeros_(model.weight)
        optimizer = build(model, name)
        gradients(model, 0)
        optimizer.step()
        assert model.weight.abs().min() > 0


def resumed_like(name: str) -> None:
    """Six steps, and the same with a checkpoint on disk after three."""
    straight, stopped = net(), net()
    steps(straight, opened(straight, name), 0, 6)
    first = opened(stopped, name)
    steps(stopped, first, 0, 3)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = deepcopy(stopped)
    again = opened(second, name)
    again.load_state_dict(torch.load(file, weights_only=True))
    steps(second, again, 3, 6)
    assert not torch.equal(weights(straight), weights(net())), name
    assert torch.equal(weights(straight), weights(second)), name


def opened(model: nn.Module, name: str) -> Optimizer:
    torch.manual_seed(1)
    return build(model, name)


@pytest.mark.parametrize("name", [*OURS, *(f"timm/{n}" for n in list_optimizers() if not n.startswith(UNUSABLE))])
def test_resume_is_exact(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        resumed_like(name)


def test_what_timm_does_not_have_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"timm/lionn cannot be used here; did you mean timm/lion\?"):
        build(net(), "timm/lionn")
    with pytest.raises(UserError, match="timm/fusedlamb cannot be used here"):
        build(net(), "timm/fusedlamb")
    with pytest.raises(UserError, match=r"optimizer.options: timm/lion refuses \{'beta': 1\}"):
        build(net(), "timm/lion", options={"beta": 1})
    assert build(net(), "timm/lion").describe().startswith("lion by timm; 2 tensors with decay 0.01")


@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "scaled"])
@pytest.mark.parametrize("name", OURS)
def test_no_step_waits_for_the_device(name: str, scaled: bool) -> None:
    with made_up_cuda() as host:
        model = net().to(CUDA)
        optimizer = build_optimizer(model, parse({"name": name, "lr": 0.1, "weight_decay": 0.1}), CUDA)
        for p in model.parameters():
            p.grad = torch.empty_like(p)
        if scaled:
            optimizer.inner.grad_scale = torch.ones((), device=CUDA)  # type: ignore[attr-defined]
            optimizer.inner.found_inf = torch.zeros((), device=CUDA)  # type: ignore[attr-defined]
        host.strict = True
        for _ in range(2):
            optimizer.step()
