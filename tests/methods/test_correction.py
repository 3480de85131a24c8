"""The noise matrix of forward and backward correction: given, estimated, or refused."""

import json

import numpy as np
import pytest
import torch

from lsdali import dist
from lsdali.clock import Clock, PerEpoch
from lsdali.errors import UserError
from lsdali.label_noise import MatrixNoise
from lsdali.methods.base import MethodContext
from lsdali.methods.correction import ForwardCorrection
from tests.harness import equal
from tests.methods.test_noisy import batch_of, make
from tests.methods.trainers import trainer_for


def test_symmetric_noise():
    matrix = make(name="forward", noise={"name": "symmetric", "rate": 0.3}).matrix
    expected = torch.full((4, 4), 0.1).fill_diagonal_(0.7)
    torch.testing.assert_close(matrix, expected)


@pytest.mark.parametrize("name", ["forward", "backward"])
def test_noise_is_estimated_from_the_surest_samples(name):
    method = make(classes=3, name=name, noise={"name": "estimated", "epochs": 2})
    assert torch.equal(method.matrix, torch.eye(3))
    generator = torch.Generator().manual_seed(0)
    first, *batches = [torch.randn(8, 3, generator=generator) * 2 for _ in range(3)]
    method.observe(batch_of([0] * 8), first * 100)  # of an epoch that does not count
    method.end_epoch(None, Clock(10, PerEpoch(10), 3))
    assert torch.equal(method.matrix, torch.eye(3))
    for logits in batches:
        method.observe(batch_of([0] * 8), logits)
    resumed = make(classes=3, name=name, noise={"name": "estimated", "epochs": 2})
    resumed.load_state_dict(method.state_dict())
    p = torch.cat(batches).softmax(1)
    expected = p[p.argmax(0)]
    for each in (method, resumed):
        each.end_epoch(None, Clock(20, PerEpoch(10), 3))
        torch.testing.assert_close(each.matrix, expected)
        assert each.matrix.diagonal().tolist() == p.amax(0).tolist()
        before = each.matrix.clone()
        each.observe(batch_of([0] * 8), first)
        each.end_epoch(None, Clock(30, PerEpoch(10), 3))
        assert torch.equal(each.matrix, before), "an estimate stays"
        assert list(each.state_dict()) == ["matrix"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([[1.0, 0.0], [0.0, 1.0]], "has the shape [2, 2]; 3 classes need"),
        ([[1, 0, 0], [0, 0.5, 0.4], [0, 0, 1]], "row 1 of"),
        ([[1, 0, 0], [0, 1, 0], [0, 2, -1]], "row 2 of"),
        ([[1, 0, 0], [1, 0, 0], [0, 0, 1]], "column 1 of the matrix is all 0, so no sample could bear that label"),
        ("nonsense", "cannot be read as a matrix of numbers"),
    ],
)
def test_a_wrong_matrix_is_refused(content, expected, tmp_path):
    path = tmp_path / "noise.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError) as caught:
        make(classes=3, name="forward", noise={"name": "matrix", "file": str(path)})
    assert expected in str(caught.value)


def test_a_missing_matrix_and_one_without_inverse(tmp_path):
    with pytest.raises(UserError, match="cannot be read as a matrix of numbers"):
        make(name="forward", noise={"name": "matrix", "file": str(tmp_path / "none.npy")})
    with pytest.raises(UserError, match="has no inverse"):
        make(name="backward", noise={"name": "symmetric", "rate": 0.75})
    with pytest.raises(UserError, match="all rows of the matrix are the same"):
        make(name="forward", noise={"name": "symmetric", "rate": 0.75})
    (tmp_path / "empty.npy").touch()
    with pytest.raises(UserError, match="cannot be read as a matrix of numbers"):
        make(name="forward", noise={"name": "matrix", "file": str(tmp_path / "empty.npy")})


def test_state_of_another_method_is_refused():
    with pytest.raises(UserError, match="saved by another method"):
        make(name="forward", noise={"name": "estimated", "epochs": 1}).load_state_dict({"ranks": []})
    with pytest.raises(UserError, match="keeps no state"):
        make(name="forward").load_state_dict({"matrix": torch.eye(4)})


def estimate_on_a_rank(folder):
    method = make(classes=3, name="forward", noise={"name": "estimated", "epochs": 1})
    method.observe(batch_of([0] * 4), logits_of(dist.rank()))
    state = method.state_dict()
    method.load_state_dict(state)
    method.end_epoch(None, Clock(10, PerEpoch(10), 3))
    torch.save({"inside": state, "after": method.state_dict()}, folder / f"{dist.rank()}.pt")


def logits_of(rank):
    return 2 * torch.randn(4, 3, generator=torch.Generator().manual_seed(rank))


@pytest.mark.ranks
def test_the_surest_samples_are_those_of_all_ranks(tmp_path, on_ranks):
    on_ranks(2, estimate_on_a_rank, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert equal(first, second)
    p = torch.cat([logits_of(0), logits_of(1)]).softmax(1)
    assert len(set((p.argmax(0) // 4).tolist())) == 2, "both ranks have a row"
    torch.testing.assert_close(first["after"]["matrix"], p[p.argmax(0)])
    torch.testing.assert_close(first["inside"]["best"], p.amax(0))


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({"name": "forward", "noise": {"name": "estimated", "epochs": 2}}, "method.noise.epochs"),
        ({"name": "pairwise_confusion", "from_epoch": 2}, "method.from_epoch"),
    ],
)
def test_a_run_that_ends_before_its_method_starts_is_refused(config, key, place):
    with pytest.raises(UserError) as caught:
        trainer_for(config, place)
    assert str(caught.value) == (
        f"{key} 2 leaves no epoch of 2 to the method '{config['name']}', which would be cross-entropy throughout; "
        "give at most 1"
    )


def test_the_noise_of_the_data_is_corrected(tmp_path):
    """Data and method read a matrix alike; `data` takes the one of the data."""
    rows = np.array([[0.9, 0.1 + 2e-5, 0], [0, 1, 0], [0.2, 0, 0.8]], np.float32)
    np.save(tmp_path / "m.npy", rows)
    np.savetxt(tmp_path / "m.txt", rows)
    (tmp_path / "m.json").write_text(json.dumps(rows.tolist()))
    for name in ("m.npy", "m.txt", "m.json"):
        noise = MatrixNoise(file=str(tmp_path / name))
        given = make(classes=3, name="forward", noise=noise.model_dump())
        context = MethodContext(3, 10, {}, torch.device("cpu"), 0, lambda config: None, label_noise=noise)
        taken = ForwardCorrection(ForwardCorrection.Config(noise={"name": "data"}), context)
        assert torch.equal(given.matrix, taken.matrix)
        assert torch.equal(given.matrix, torch.from_numpy(noise.matrix(3)).float())
    with pytest.raises(UserError, match=r"data takes the noise of the data, and data\.noise is not set"):
        make(classes=3, name="backward", noise={"name": "data"})
