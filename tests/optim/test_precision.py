"""Number formats, their refusals, and loss scaling, on the CPU too, where torch has a scaler."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lsdali.errors import UserError
from lsdali.optim import (
    LAMB,
    LARS,
    SGD,
    Adam,
    AdamW,
    Nesterov,
    Optimizer,
    OptimizerConfig,
    Precision,
    build_optimizer,
)
from lsdali.optim.precision import Name, Scaler

CPU = torch.device("cpu")


def scaled() -> Precision:
    """fp32 arithmetic with fp16's loss scaling."""
    precision = Precision("fp32", CPU)
    precision.scaler = Scaler("cpu", init_scale=16.0, growth_interval=3)
    return precision


def setting(config: OptimizerConfig) -> tuple[nn.Linear, Optimizer]:
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    return model, build_optimizer(model, config, CPU)


def loss_of(model: nn.Module, factor: float = 1.0) -> Tensor:
    return model(torch.ones(3, 4)).square().mean() * factor


@pytest.mark.parametrize("name", ["fp16", "tf32"])
def test_cpu_refusals(name: Name) -> None:
    with pytest.raises(UserError, match=f"precision: {name} needs a CUDA device and this is the cpu; use fp32 or bf16"):
        Precision(name, CPU)


@pytest.mark.parametrize("name", ["bf16", "tf32"])
def test_old_gpu_refusals(name: Name, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(UserError, match=rf"{name} needs compute capability 8.0 .* has 7.5; use fp16 or fp32"):
        Precision(name, torch.device("cuda"))


def test_tf32_sets_the_switches_and_fp32_resets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    switches = lambda: (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)  # noqa: E731
    Precision("tf32", torch.device("cuda"))
    assert switches() == (True, True)
    Precision("fp32", CPU)
    assert switches() == (False, False)


def test_autocast() -> None:
    model = nn.Linear(4, 2)
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with Precision(name, CPU).autocast():
            with torch.no_grad():  # a method's first look must not keep the second from learning
                model(torch.ones(1, 4))
            out = model(torch.ones(1, 4))
        assert out.dtype == dtype
        out.float().sum().backward()
        assert model.weight.grad is not None
        assert model.weight.grad.dtype == torch.float32
        model.zero_grad()


@pytest.mark.parametrize("implementation", ["torch-fused", "foreach", "loop"])
@pytest.mark.parametrize("clip", [None, 0.01])
def test_scaling_changes_nothing_but_the_range(implementation: str, clip: float | None) -> None:
    results = []
    for precision in (Precision("fp32", CPU), scaled()):
        model, optimizer = setting(Adam(lr=0.01, clip=clip, implementation=implementation))
        for _ in range(5):
            precision.backward(loss_of(model))
            precision.step(optimizer)
            assert model.weight.grad is None
        results.append(model.weight.detach().clone())
    assert torch.allclose(results[0], results[1], rtol=0, atol=1e-7)


@pytest.mark.parametrize("implementation", ["torch-fused", "foreach", "loop"])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_overflow_skips_the_step_and_is_counted(implementation: str, clip: float | None) -> None:
    model, optimizer = setting(Adam(lr=0.1, clip=clip, implementation=implementation))
    precision = scaled()
    for factor in (1.0, math.inf, 1.0, math.nan):
        before = model.weight.detach().clone()
        precision.backward(loss_of(model, factor))
        precision.step(optimizer)
        assert torch.equal(before, model.weight) == (factor != 1.0)
    assert precision.skipped == 2
    assert precision.scaler is not None
    assert precision.scaler.get_scale() == 4.0
    assert model.weight.isfinite().all()


def scaled_steps(config: OptimizerConfig, overflows: int) -> nn.Linear:
    """Twelve steps with loss scaling, of which one overflows."""
    junk = [torch.full((n,), math.nan) for n in (2, 8) for _ in range(64)]  # what uninitialised memory may hold
    del junk
    model, optimizer = setting(config)
    precision = scaled()
    for step in range(1, 13):
        precision.backward(loss_of(model, math.inf if step == overflows else 1.0))
        precision.step(optimizer)
    assert precision.skipped == 1
    return model


LAYERWISE = [LARS(lr=5.0, weight_decay=0.1), LAMB(lr=0.05, weight_decay=0.1)]


@pytest.mark.parametrize("overflows", [1, 2, 10])
@pytest.mark.parametrize("implementation", ["torch-fused", "foreach"])
@pytest.mark.parametrize(
    "config",
    [
        SGD(lr=0.01),
        SGD(lr=0.01, momentum=0.0),
        Nesterov(lr=0.01, weight_decay=0.1),
        Adam(lr=0.01, weight_decay=0.1),
        AdamW(lr=0.01, weight_decay=0.1),
    ],
    ids=["sgd", "plain", "nesterov", "adam", "adamw"],
)
def test_an_overflow_leaves_what_the_loop_leaves(config: Any, implementation: str, overflows: int) -> None:
    ours = scaled_steps(config.model_copy(update={"implementation": implementation}), overflows)
    loop = scaled_steps(config.model_copy(update={"implementation": "loop"}), overflows)
    assert torch.allclose(ours.weight, loop.weight, rtol=0, atol=1e-6)
    assert torch.allclose(ours.bias, loop.bias, rtol=0, atol=1e-6)


@pytest.mark.parametrize("overflows", [1, 2, 10])
@pytest.mark.parametrize("config", LAYERWISE, ids=["lars", "lamb"])
def test_an_overflow_is_a_step_that_was_not_made(config: OptimizerConfig, overflows: int) -> None:
    skipping = scaled_steps(config, overflows)
    model, optimizer = setting(config)
    before = model.weight.detach().clone()
    for _ in range(11):
        loss_of(model).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero()
    assert not torch.equal(before, model.weight)
    assert torch.allclose(skipping.weight, model.weight, rtol=0, atol=1e-6)
    assert torch.allclose(skipping.bias, model.bias, rtol=0, atol=1e-6)


def test_momentum_that_was_never_written_is_zero_after_a_resume_too() -> None:
    """A checkpoint of `loop` whose every step overflowed holds no momentum."""
    model, optimizer = setting(SGD(lr=0.01))
    optimizer.load_state_dict(setting(SGD(lr=0.01, implementation="loop"))[1].state_dict())
    assert all((optimizer.inner.state[p]["momentum_buffer"] == 0).all() for p in model.parameters())


@pytest.mark.parametrize("precision", [Precision("fp32", CPU), scaled()])
def test_micro_batches_add_up(precision: Precision) -> None:
    weights = []
    for parts in (1, 4):
        model, optimizer = setting(SGD(lr=0.1))
        for _ in range(parts):
            precision.backward(loss_of(model) / parts)
        precision.step(optimizer)
        weights.append(model.weight.detach().clone())
    assert torch.allclose(weights[0], weights[1], rtol=0, atol=1e-7)


def test_the_scaler_resumes() -> None:
    model, optimizer = setting(SGD(lr=0.0001))
    one, two = scaled(), scaled()
    for factor in (1.0, math.inf, 1.0, 1.0):
        one.backward(loss_of(model, factor))
        one.step(optimizer)
    two.load_state_dict(one.state_dict())
    assert two.state_dict() == one.state_dict()
    assert two.skipped == 1
    for precision in (one, two):
        for factor in (1.0, math.inf):
            precision.backward(loss_of(model, factor))
            precision.step(optimizer)
    assert two.state_dict() == one.state_dict()
    assert two.skipped == 2


def test_states_of_another_precision_are_refused() -> None:
    plain = Precision("bf16", CPU)
    assert plain.state_dict() == {}
    assert plain.skipped == 0
    plain.load_state_dict({})
    with pytest.raises(UserError, match="written with loss scaling and bf16 goes without it"):
        plain.load_state_dict(scaled().state_dict())
    with pytest.raises(UserError, match="written without loss scaling and fp32 goes with it"):
        scaled().load_state_dict({})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["fp32", "tf32", "bf16", "fp16"])
@pytest.mark.parametrize("implementation", ["torch-fused", "foreach", "loop"])
def test_on_a_gpu(name: Name, implementation: str) -> None:
    cuda = torch.device("cuda")
    model = nn.Linear(4, 2).to(cuda)
    config = Adam(lr=0.01, clip=1.0, implementation=implementation)
    optimizer, precision = build_optimizer(model, config, cuda), Precision(name, cuda)
    losses = []
    for _ in range(10):
        with precision.autocast():
            loss = model(torch.ones(3, 4, device=cuda)).float().square().mean()
        losses.append(loss.item())
        precision.backward(loss)
        precision.step(optimizer)
        optimizer.load_state_dict(optimizer.state_dict())
    assert losses[-1] < losses[0]
    Precision("fp32", cuda)
