"""BatchNorm over all ranks gives what one process gives for the whole batch."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lsdali import dist
from lsdali.errors import UserError
from lsdali.models.shared_norm import SharedBatchNorm, share_norms, shared
from tests.ranks import OnRanks

SHARES = [3, 5]
"""Images of each rank."""


def one_step(norm: nn.Module, x: Tensor, weight: Tensor) -> dict[str, Tensor]:
    """Outputs, gradients and statistics after two batches, for a loss that is no function of single samples' sums."""
    for _ in range(2):
        x = x.detach().requires_grad_()
        out = norm(x)
        (out.square() * weight).sum().backward()
    state = {k: v for k, v in norm.state_dict().items() if k not in ("weight", "bias")}
    assert x.grad is not None
    return {"out": out.detach(), "x": x.grad, "scale": norm.weight.grad, "shift": norm.bias.grad, **state}


def check_against_one(dtype: torch.dtype, dims: int, momentum: float | None) -> None:
    torch.manual_seed(0)
    kind = nn.BatchNorm2d if dims == 4 else nn.BatchNorm1d
    x, weight = (torch.randn((sum(SHARES), 3, 4, 2)[:dims], dtype=torch.float64).to(dtype) for _ in range(2))
    whole, norm = (kind(3, momentum=momentum, dtype=dtype) for _ in range(2))
    norm = shared(norm)
    if dims == 4:
        x, weight = (y.contiguous(memory_format=torch.channels_last) for y in (x, weight))
    expected = one_step(whole, x, weight)
    rows = torch.split(torch.arange(len(x)), SHARES)[dist.rank()]
    found = one_step(norm, x[rows], weight[rows])
    if dims == 4:
        assert found["out"].is_contiguous(memory_format=torch.channels_last)
    for name in ("scale", "shift"):
        found[name] = dist.all_sum(found[name])
    for name in ("out", "x"):
        expected[name] = expected[name][rows]
    limit = 1e-12 if dtype == torch.float64 else 3e-6
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=limit, atol=limit, msg=name)
    norm.eval()
    whole.eval()
    torch.testing.assert_close(norm(x), whole(x), rtol=limit, atol=limit)


@pytest.mark.ranks
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("dims", [2, 4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_two_ranks_of_unlike_shares_normalise_as_one(
    dtype: torch.dtype, dims: int, momentum: float | None, on_ranks: OnRanks
) -> None:
    on_ranks(2, check_against_one, dtype, dims, momentum)


def check_sharing(place: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4)), nn.Linear(2, 2))
    before = dict(network.state_dict(keep_vars=True))
    share_norms(network, torch.device("cpu"), "name")
    assert isinstance(network[1][0], SharedBatchNorm)
    after = network.state_dict(keep_vars=True)
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before), "an optimizer that has the parameters keeps them"


@pytest.mark.ranks
def test_parameters_and_buffers_stay_the_same_tensors(tmp_path: Path, on_ranks: OnRanks) -> None:
    on_ranks(2, check_sharing, tmp_path)


class OwnNorm(nn.BatchNorm2d):
    pass


@pytest.mark.parametrize(
    ("network", "sentence"),
    [(nn.Conv2d(3, 4, 1), "'name' has no BatchNorm"), (OwnNorm(3), r"'name' has norms of its own kind \(OwnNorm\)")],
)
def test_networks_without_plain_norms_are_refused(network: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        share_norms(network, torch.device("cpu"), "name")
