"""The average of the weights against a plain loop, its swap, and its resume."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lsdali import dist
from lsdali.clock import Clock, PerEpoch
from lsdali.errors import UserError
from lsdali.optim import EMA, Average
from tests.ranks import OnRanks


def net(width: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width))


def move(model: nn.Module, step: int) -> None:
    """Stands in for a training step: every weight and statistic changes."""
    g = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=g))
    model(torch.randn(8, 4, generator=g))


def run(model: nn.Module, average: Average, first: int, last: int) -> None:
    for step in range(first, last):
        move(model, step)
        average.after_step(model, Clock(step, PerEpoch(10), 10))


def values(module: nn.Module) -> dict[str, Tensor]:
    return {name: x.clone() for name, x in module.state_dict().items()}


@pytest.mark.parametrize("every", [1, 3])
def test_plain_loop(every: int) -> None:
    model = net()
    average = Average(EMA(decay=0.9, every=every), model)
    twin = values(model)
    for step in range(10):
        run(model, average, step, step + 1)
        if step % every == every - 1:
            for name, x in model.state_dict().items():
                twin[name] = 0.9 * twin[name] + 0.1 * x if x.is_floating_point() else x.clone()
    state = average.state_dict()["weights"]
    assert state.keys() == twin.keys()
    assert state["1.num_batches_tracked"].item() == 10 // every * every
    for name, x in twin.items():
        assert torch.allclose(state[name], x, rtol=0, atol=1e-6), name


def test_swap_is_exact() -> None:
    model = net()
    average = Average(EMA(decay=0.5), model)
    run(model, average, 0, 4)
    own = values(model)
    with average.swapped(model):
        inside = values(model)
        assert all(torch.equal(inside[k], v) for k, v in average.state_dict()["weights"].items())
        assert not torch.equal(inside["0.weight"], own["0.weight"])
    assert all(torch.equal(values(model)[k], v) for k, v in own.items())
    with pytest.raises(ZeroDivisionError), average.swapped(model):
        raise ZeroDivisionError
    assert all(torch.equal(values(model)[k], v) for k, v in own.items())


def test_resume_is_exact() -> None:
    model = net()
    average = Average(EMA(decay=0.9), model)
    run(model, average, 0, 5)
    state, weights = deepcopy(average.state_dict()), deepcopy(model)
    run(model, average, 5, 9)
    resumed = Average(EMA(decay=0.9), net())
    resumed.load_state_dict(state)
    run(weights, resumed, 5, 9)
    assert all(torch.equal(resumed.state_dict()["weights"][k], v) for k, v in average.state_dict()["weights"].items())


def test_another_models_average_is_refused() -> None:
    state = Average(EMA(decay=0.9), net(5)).state_dict()
    with pytest.raises(UserError, match="ema: the checkpoint's average is of another model"):
        Average(EMA(decay=0.9), net()).load_state_dict(state)


def test_the_student_still_learns() -> None:
    model = net()
    average = Average(EMA(decay=0.9), model)
    with average.swapped(model):
        pass
    assert all(p.requires_grad for p in model.parameters())


def average_on_a_rank(folder: Path) -> None:
    model = net()
    average = Average(EMA(decay=0.5), model)
    model(torch.randn(8, 4, generator=torch.Generator().manual_seed(dist.rank())))  # buffers part ways
    average.after_step(model, Clock(0, PerEpoch(1), 1))
    mine = model[1].running_mean.clone()
    with average.swapped(model):
        inside = model[1].running_mean.clone()
    assert torch.equal(model[1].running_mean, mine)
    torch.save([mine, inside, average.state_dict()["weights"]["1.running_mean"]], folder / f"{dist.rank()}.pt")


@pytest.mark.ranks
def test_ranks_agree_on_the_averaged_statistics(tmp_path: Path, on_ranks: OnRanks) -> None:
    on_ranks(2, average_on_a_rank, tmp_path)
    (mine, inside, state), (mine1, inside1, state1) = (torch.load(tmp_path / f"{r}.pt") for r in range(2))
    assert not torch.equal(mine, mine1)
    assert torch.equal(inside, inside1)
    assert torch.equal(state, state1)
    assert torch.allclose(state, (mine + mine1) / 4)  # half of the start's zero, half of the ranks' mean


def test_a_warm_up_trusts_the_newest_weights_first() -> None:
    """d = min(decay, (1 + n) / (10 + n)) at update n, as timm's ModelEmaV3 without its power form."""
    model = net()
    expected = values(model)
    average = Average(EMA(decay=0.6, every=2, warmup=True), model)
    for step in range(60):
        move(model, step)
        average.after_step(model, Clock(step, PerEpoch(10), 10))
        if (step + 1) % 2 == 0:
            n = (step + 1) // 2
            d = min(0.6, (1 + n) / (10 + n))
            new = values(model)
            expected = {k: d * x + (1 - d) * new[k] if x.is_floating_point() else new[k] for k, x in expected.items()}
    with average.swapped(model):
        torch.testing.assert_close(values(model), expected)
