"""Metrics against the reference's numbers, torchmetrics, scikit-learn and slow twins; on many ranks."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss, top_k_accuracy_score
from torch import Tensor
from torchmetrics.functional.classification import (
    binary_calibration_error,
    multiclass_accuracy,
    multiclass_calibration_error,
)

from lsdali import dist
from lsdali.batch import Batch
from lsdali.errors import UserError
from lsdali.metrics import (
    Bins,
    MetricAccumulator,
    aurc,
    bin_gaps,
    binned,
    brier,
    calibration_error,
    class_accuracies,
    classwise_error,
    equal_bins,
    excess_aurc,
    ibls_bins,
    label_errors,
    label_rank,
    mass_bins,
    measure,
    pskd_bins,
    reliability,
    risks,
)
from tests.ranks import OnRanks

VECTORS = json.loads((Path(__file__).parent / "reference" / "metrics_vectors.json").read_text())
CPU = torch.device("cpu")
N, K = 63, 11


def batch_of(labels: Tensor, index: Tensor, valid: Tensor | None = None) -> Batch:
    valid = torch.ones(len(labels), dtype=torch.bool) if valid is None else valid
    return Batch(torch.empty(len(labels), 3, 1, 1), labels, index, valid)


def problem(n: int = N, classes: int = K) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(3)
    labels = torch.randint(classes, (n,), generator=g)
    logits = 2 * torch.randn(n, classes, generator=g)
    logits[torch.arange(n), labels] += 2
    logits[n // 2 :] = logits[: n - n // 2].clone()  # ties in the confidence
    return logits, labels


def evaluate(logits: Tensor, labels: Tensor, size: int = 64, order: Tensor | None = None) -> dict[str, float]:
    evaluation = MetricAccumulator(logits.shape[1], CPU)
    order = torch.arange(len(logits)) if order is None else order
    for rows in order.split(size):
        evaluation.update(logits[rows], batch_of(labels[rows], rows))
    return evaluation.result()


@pytest.mark.parametrize("name", VECTORS["ranked"])
def test_reference_calibration_and_ranking(name: str) -> None:
    v = VECTORS["ranked"][name]
    confidence, right = torch.tensor(v["confidence"], dtype=torch.float64), torch.tensor(v["right"])
    index = torch.arange(len(right))
    assert aurc(confidence, right, index).item() == pytest.approx(v["aurc"], abs=1e-9)
    assert excess_aurc(confidence, right, index).item() == pytest.approx(v["eaurc"], abs=1e-9)
    if "ece" in v:
        ece = calibration_error(confidence, right, pskd_bins(v["width"])).item()
        assert ece == pytest.approx(v["ece"], abs=1e-9)


@pytest.mark.parametrize("name", [name for name, v in VECTORS["ranked"].items() if "bins" in v])
def test_reference_bins(name: str) -> None:
    v = VECTORS["ranked"][name]
    confidence, right = torch.tensor(v["confidence"], dtype=torch.float64), torch.tensor(v["right"])
    rows = reliability(confidence, right, pskd_bins(v["width"]))
    full = [[row["count"], row["accuracy"], row["confidence"]] for row in rows if row["count"]]
    assert full == [pytest.approx(row, abs=1e-12) for row in v["bins"]]


@pytest.mark.parametrize("name", VECTORS["netcal"])
@pytest.mark.parametrize(("kind", "make"), [("width", equal_bins), ("ibls", ibls_bins)])
def test_reference_bins_of_ibls(name: str, kind: str, make: Callable[[int], Bins]) -> None:
    """netcal 1.0 has (lower, upper] like ours of equal width; 1.1 has [lower, upper)."""
    v = VECTORS["netcal"][name]
    p, labels = torch.tensor(v["probs"], dtype=torch.float64), torch.tensor(v["labels"])
    confidence, prediction = p.max(1)
    right = prediction == labels
    for count, expected in v[kind].items():
        gaps = bin_gaps(confidence, right, make(int(count)))
        found = [calibration_error(confidence, right, make(int(count))), gaps.max(), gaps.mean()]
        assert [x.item() / 100 for x in found] == pytest.approx(expected, abs=1e-12)
    found = label_errors(confidence, right, labels, make(15))
    assert [x / 100 for x in found] == pytest.approx(v["labels_ece"], abs=1e-12)


@pytest.mark.parametrize("name", VECTORS["probabilities"])
def test_reference_brier(name: str) -> None:
    """A probability of 0 for the label has an infinite loss here; the reference clips it, and so hides it."""
    v = VECTORS["probabilities"][name]
    p, labels = torch.tensor(v["probs"], dtype=torch.float64), torch.tensor(v["labels"])
    assert brier(p, labels)[1] == pytest.approx(v["brier_label"], abs=1e-12)
    result = evaluate(p.log(), labels)
    assert result["top1"] == pytest.approx(100 * v["accuracy"])
    assert result["nll"] == (math.inf if v["log_loss"] is None else pytest.approx(v["log_loss"], abs=1e-12))


@pytest.mark.parametrize("name", VECTORS["logits"])
def test_reference_nll(name: str) -> None:
    v = VECTORS["logits"][name]
    evaluation = MetricAccumulator(len(v["batches"][0][0][0]), CPU)
    seen = 0
    for logits, labels in v["batches"]:
        index = torch.arange(seen, seen + len(labels))
        evaluation.update(torch.tensor(logits), batch_of(torch.tensor(labels), index))
        seen += len(labels)
    assert evaluation.result()["nll"] == pytest.approx(v["nll"], abs=1e-7)


@pytest.mark.parametrize("name", VECTORS["top"])
def test_reference_top_k(name: str) -> None:
    v = VECTORS["top"][name]
    rank = label_rank(torch.tensor(v["logits"]), torch.tensor(v["labels"]))
    for k, percent in v["top"].items():
        assert 100 * (rank < int(k)).double().mean().item() == pytest.approx(percent, abs=1e-5)


def test_pskd_edges() -> None:
    lower, upper = pskd_bins()
    assert upper.tolist() == np.arange(0.1, 1.1, 0.1).tolist()
    assert lower[[2, 3, 6, 7]].tolist() == [
        0.20000000000000004,
        0.30000000000000004,
        0.6000000000000001,
        0.7000000000000001,
    ]


def test_equal_bins_are_open_below_and_hold_every_confidence() -> None:
    lower, upper = equal_bins(15)
    confidence = torch.tensor([0.0, 1 / 15, 0.2, 1.0, 1.0000001], dtype=torch.float64)
    places = [((c > lower) & (c <= upper)).nonzero()[:, 0].tolist() for c in confidence]
    assert places == [[0], [0], [2], [14], [14]]


def test_torchmetrics_and_scikit_learn_agree() -> None:
    logits, labels = problem()
    ours = evaluate(logits.double(), labels)
    p = logits.double().softmax(1)
    for k in (1, 5):
        theirs = multiclass_accuracy(logits, labels, K, average="micro", top_k=k)
        assert ours[f"top{k}"] == pytest.approx(100 * theirs.item(), abs=1e-4)
        sk = top_k_accuracy_score(labels.numpy(), p.numpy(), k=k, labels=np.arange(K))
        assert ours[f"top{k}"] == pytest.approx(100 * sk, abs=1e-9)
    ece = multiclass_calibration_error(p, labels, K, n_bins=15, norm="l1")
    assert ours["ece"] == pytest.approx(100 * ece.item(), abs=1e-5)
    assert ours["nll"] == pytest.approx(log_loss(labels.numpy(), p.numpy(), labels=np.arange(K)), abs=1e-9)
    assert ours["n"] == N


def test_calibration_is_that_of_torchmetrics_and_scikit_learn() -> None:
    logits, labels = problem(1000)
    p = logits.double().softmax(1)
    confidence, prediction = p.max(1)
    right = prediction == labels
    for count in (7, 16):  # no edge falls on a sample, where rounding would decide
        worst = multiclass_calibration_error(p, labels, K, n_bins=count, norm="max").item()
        assert bin_gaps(confidence, right, equal_bins(count)).max().item() == pytest.approx(100 * worst, abs=1e-4)
        bins = mass_bins(confidence, count)
        accuracy, mean = calibration_curve(right.numpy(), confidence.numpy(), n_bins=count, strategy="quantile")
        gaps = bin_gaps(confidence, right, bins)
        assert gaps.tolist() == pytest.approx((100 * abs(accuracy - mean)).tolist(), abs=1e-9)
        assert calibration_error(confidence, right, bins).item() == pytest.approx(gaps.mean().item(), rel=0.05)
        of_classes = [
            binary_calibration_error(p[:, k].contiguous(), (labels == k).long(), n_bins=count) for k in range(K)
        ]
        expected = 100 * torch.stack(of_classes).mean().item()
        assert classwise_error(p, labels, equal_bins(count)).item() == pytest.approx(expected, abs=1e-4)
    assert brier(p, labels)[0] == pytest.approx(brier_score_loss(labels.numpy(), p.numpy(), scale_by_half=False))
    accuracies = multiclass_accuracy(logits, labels, K, average=None)
    assert class_accuracies(right, labels, K) == pytest.approx((100 * accuracies).tolist(), abs=1e-4)
    assert class_accuracies(right[:1], labels[:1], K).count(None) == K - 1


def test_equally_full_bins_hold_equal_confidences_together() -> None:
    confidence = torch.tensor([0.5] * 5 + [0.6, 0.7, 0.9], dtype=torch.float64)
    counts, _, _ = binned(confidence, torch.ones(8), mass_bins(confidence, 4))
    assert counts.tolist() == [5, 0, 1, 2]


def test_the_risk_of_everything_is_the_error() -> None:
    confidence, right = torch.tensor([0.9, 0.2, 0.5, 0.5]), torch.tensor([True, False, False, True])
    risk = risks(confidence, right, torch.arange(4))
    assert risk.tolist() == pytest.approx([0, 0, 1 / 3, 2 / 4])


def slow_aurc(confidence: Tensor, right: Tensor, index: Tensor) -> float:
    rows = sorted(zip(confidence.tolist(), index.tolist(), right.tolist(), strict=True), reverse=True)
    risks = [sum(1 - r for _, _, r in rows[:i]) / i for i in range(1, len(rows) + 1)]
    return 1000 * sum(risks) / len(risks)


def test_aurc_is_its_slow_twin_in_any_order() -> None:
    logits, labels = problem()
    confidence, prediction = logits.double().softmax(1).max(1)
    right, index = prediction == labels, torch.arange(N)
    slow = slow_aurc(confidence, right.long(), index)
    for seed in range(3):
        p = torch.randperm(N, generator=torch.Generator().manual_seed(seed))
        assert aurc(confidence[p], right[p], index[p]).item() == pytest.approx(slow, abs=1e-9)


def test_no_batch_size_or_order_changes_a_number() -> None:
    logits, labels = problem()
    whole = evaluate(logits, labels)
    for size in (1, 7, 64):
        assert evaluate(logits, labels, size) == whole
        assert evaluate(logits, labels, size, torch.arange(N).flip(0)) == whole


def test_no_number_of_threads_changes_a_number() -> None:
    """torchrun gives each process one thread, a plain process has one a core."""
    g = torch.Generator().manual_seed(0)
    confidence = torch.rand(50000, generator=g, dtype=torch.float64)
    right = (torch.rand(50000, generator=g) < confidence).double()
    scores = torch.stack([right, right, -confidence.log(), confidence], 1)
    threads, found = torch.get_num_threads(), []
    for count in (1, 2, 4):
        torch.set_num_threads(count)
        found.append(measure(scores))
    torch.set_num_threads(threads)
    assert found[0] == found[1] == found[2]


def test_padding_does_not_count() -> None:
    logits, labels = problem()
    evaluation = MetricAccumulator(K, CPU)
    valid = torch.arange(N) < 40
    with torch.inference_mode():
        evaluation.update(logits.clone(), batch_of(labels, torch.arange(N), valid))
    assert evaluation.result() == evaluate(logits[:40], labels[:40])


def test_equal_logits_are_decided_as_argmax_decides() -> None:
    labels = torch.arange(8)
    ours = evaluate(torch.zeros(8, 8), labels)
    assert (ours["top1"], ours["top5"]) == (12.5, 62.5)
    coarse, labels = problem(1000)[0].round(), problem(1000)[1]
    rank = label_rank(coarse, labels)
    assert torch.equal(rank < 1, coarse.argmax(1) == labels)
    best = coarse.sort(dim=1, descending=True, stable=True).indices[:, :5]
    assert torch.equal(rank < 5, (best == labels[:, None]).any(1))


@pytest.mark.parametrize(
    "row",
    [
        [math.nan] * 3,
        [math.nan, 0.0, 0.0],
        [0.0, 0.0, math.nan],
        [math.inf, 0.0, 0.0],
        [0.0, math.inf, 0.0],
        [-math.inf] * 3,
        [-math.inf, 0.0, 0.0],
    ],
)
def test_logits_that_are_not_finite_are_never_right(row: list[float]) -> None:
    result = evaluate(torch.tensor([row, [5.0, 0.0, 0.0]]), torch.tensor([0, 0]))
    assert (result["top1"], result["top5"], result["n"]) == (50.0, 50.0, 2.0)
    assert result["nll"] == math.inf
    assert all(math.isfinite(result[key]) for key in ("ece", "ece_pskd", "aurc"))


def test_a_masked_class_is_no_fault() -> None:
    result = evaluate(torch.tensor([[1.0, 0.0, -math.inf]]), torch.tensor([0]))
    assert result["top1"] == 100.0
    assert result["nll"] == pytest.approx(math.log(1 + math.exp(-1)))


def test_errors_are_sentences() -> None:
    with pytest.raises(UserError, match="no valid sample"):
        MetricAccumulator(K, CPU).result()
    with pytest.raises(UserError, match=r"shape \[4, 10\]; the data set asks for \[4, 11\]"):
        MetricAccumulator(K, CPU).update(
            torch.zeros(4, 10), batch_of(torch.zeros(4, dtype=torch.long), torch.arange(4))
        )


def shard(rank: int, world: int) -> Tensor:
    """Uneven shards; with three ranks the second has nothing."""
    bounds = {1: [0, N], 2: [0, 50, N], 3: [0, 40, 40, N]}[world]
    return torch.arange(N)[bounds[rank] : bounds[rank + 1]]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_simulated_ranks_give_the_same_numbers(world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = problem()
    parts = []
    for rank in range(world):
        part = MetricAccumulator(K, CPU)
        for rows in shard(rank, world).split(7):
            part.update(logits[rows], batch_of(labels[rows], rows))
        with monkeypatch.context() as patch:
            patch.setattr(dist, "all_rows", lambda x: parts.append(x) or torch.zeros(1, 5))
            part.result()
    monkeypatch.setattr(dist, "all_rows", lambda x: torch.cat(parts))
    assert MetricAccumulator(K, CPU).result() == evaluate(logits, labels)


def metrics_on_a_rank(folder: Path) -> None:
    logits, labels = problem()
    part = MetricAccumulator(K, CPU)
    for rows in shard(dist.rank(), dist.world()).split(7):
        part.update(logits[rows], batch_of(labels[rows], rows))
    (folder / f"{dist.rank()}.json").write_text(json.dumps(part.result()))


@pytest.mark.ranks
@pytest.mark.parametrize("world", [2, 3])
def test_real_ranks_give_the_same_numbers(world: int, tmp_path: Path, on_ranks: OnRanks) -> None:
    on_ranks(world, metrics_on_a_rank, tmp_path)
    alone = evaluate(*problem())
    for rank in range(world):
        ours = json.loads((tmp_path / f"{rank}.json").read_text())
        assert {k: f"{v:.6f}" for k, v in ours.items()} == {k: f"{v:.6f}" for k, v in alone.items()}
