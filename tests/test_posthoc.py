"""Temperature scaling, ensembles, reliability and the distance of tables, against published numbers and twins."""

import json
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import entropy
from sklearn.calibration import CalibratedClassifierCV, calibration_curve
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from lsdali import functional as f
from lsdali.errors import UserError
from lsdali.metrics import binned, calibration_error, equal_bins, pskd_bins, reliability
from lsdali.posthoc import (
    IBLS,
    centroids,
    ensemble,
    fit_temperature,
    principal_plane,
    projected,
    template_basis,
)

VECTORS = json.loads((Path(__file__).parent / "reference/evaluation_vectors.json").read_text())


def real(x):
    return torch.tensor(x, dtype=torch.float64)


def forty():
    v = VECTORS["I16"]["inputs"]
    return real(v["logits"]), torch.tensor(v["labels"])


def nll(logits, labels, temperature):
    return log_loss(labels.numpy(), (logits / temperature).softmax(1).numpy(), labels=np.arange(logits.shape[1]))


def problem(n=400, classes=6):
    g = torch.Generator().manual_seed(1)
    labels = torch.randint(classes, (n,), generator=g)
    logits = 4 * torch.randn(n, classes, generator=g, dtype=torch.float64)
    logits[torch.arange(n), labels] += 4
    return logits, labels


# ---- temperature


def test_I16_the_temperature_of_ibls():
    logits, labels = forty()
    expected = VECTORS["I16"]["expected"]
    for found in (fit_temperature(logits, labels, IBLS), fit_temperature(logits, labels)):
        assert found == pytest.approx(expected["temperature_lbfgsb"], abs=1e-3)
        assert nll(logits, labels, found) == pytest.approx(expected["nll_at_opt"], abs=1e-9)
    assert nll(logits, labels, 1) == pytest.approx(expected["nll_at_1"], abs=1e-12)
    grid = np.linspace(0.8, 10, 921)
    losses = [torch.nn.functional.cross_entropy(logits / t, labels).item() for t in grid]
    assert grid[np.argmin(losses)] == pytest.approx(expected["temperature_grid"])


def test_I17_neither_published_solver_reaches_the_least_loss():
    """Fifty small steps from 1.5 do not, whether or not the gradient is zeroed."""
    logits, labels = forty()
    expected = VECTORS["I17"]["expected"]
    best = nll(logits, labels, fit_temperature(logits, labels))
    for solver in ("reference", "with_zero_grad"):
        there = nll(logits, labels, expected[f"temperature_{solver}"])
        assert there == pytest.approx(expected[f"nll_{solver}"], abs=1e-9)
        assert there > best + 1e-3


@pytest.mark.parametrize("scale", [0.05, 1.0, 30.0])
def test_the_temperature_is_scikit_learns(scale):
    """Its solver works on the same loss; without bounds that matter ours finds it at every scale of the logits."""
    logits, labels = problem()
    logits = scale * logits
    # A linear classifier whose decision function hands the logits on.
    line = LogisticRegression()
    line.classes_, line.coef_, line.intercept_ = np.arange(6), np.eye(6), np.zeros(6)
    line.n_features_in_ = 6
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = CalibratedClassifierCV(FrozenEstimator(line), method="temperature")
        theirs.fit(logits.numpy(), labels.numpy())
    ours = fit_temperature(logits, labels)
    expected = theirs.predict_proba(logits.numpy())
    np.testing.assert_allclose((logits / ours).softmax(1).numpy(), expected, atol=2e-4)
    assert nll(logits, labels, ours) <= log_loss(labels.numpy(), expected) + 1e-12
    assert fit_temperature(logits, labels) == pytest.approx(scale * fit_temperature(logits / scale, labels), rel=1e-6)


def test_bounds_hold_and_large_logits_do_not_overflow():
    logits, labels = problem()
    assert fit_temperature(30 * logits, labels, IBLS) == 3.0
    assert fit_temperature(0.01 * logits, labels, IBLS) == 0.8
    assert math.isfinite(fit_temperature(1e4 * logits.float(), labels))
    assert fit_temperature(100 * torch.eye(3), torch.arange(3)) <= 1, "every sample right: no least loss"


def test_a_masked_class_changes_no_temperature():
    logits, labels = problem()
    more = torch.cat([logits, torch.full((len(labels), 1), -torch.inf)], 1)
    assert fit_temperature(more, labels) == pytest.approx(fit_temperature(logits, labels), rel=1e-9)


def test_what_cannot_be_fitted_is_said():
    with pytest.raises(UserError, match="on no samples"):
        fit_temperature(torch.empty(0, 3), torch.empty(0, dtype=torch.int64))
    rows = torch.tensor([[0.0, 1.0], [math.nan, 0.0], [-math.inf, 0.0], [math.inf, 0.0]])
    with pytest.raises(UserError, match="log loss of 3 samples is infinite"):
        fit_temperature(rows, torch.tensor([0, 0, 0, 1]))


# ---- ensemble and table


def test_O13_the_ensemble_adds_probabilities():
    v = VECTORS["O13"]["inputs"], VECTORS["O13"]["expected"]
    logits = [real(x) for x in v[0]["logits_per_model"]]
    found = ensemble(logits)
    torch.testing.assert_close(3 * found.exp(), real(v[1]["sum_of_probabilities"]), rtol=1e-10, atol=0)
    assert found.argmax(1).tolist() == v[1]["prediction"]
    assert [x.argmax(1).tolist() for x in logits] == v[1]["single_model_predictions"]
    torch.testing.assert_close(ensemble(logits[:1]), logits[0].log_softmax(1))
    far = [real([[0.0, -2000.0, -3000.0]]), real([[0.0, -3000.0, -2500.0]])]
    assert ensemble(far).argsort(descending=True).tolist() == [[0, 1, 2]], "below the smallest double"


def test_O16_tables_of_people_and_of_ols():
    v = VECTORS["O16"]["inputs"], VECTORS["O16"]["expected"]
    human, table = real(v[0]["human"]), real(v[0]["matrix"])
    cross, kl = f.table_distance(human, table)
    assert cross.item() == pytest.approx(v[1]["soft_cross_entropy"], abs=1e-10)
    assert kl.item() == pytest.approx(v[1]["kl"], abs=1e-10)
    people = torch.eye(4, dtype=torch.float64) * 0.9 + 0.1 * torch.eye(4, dtype=torch.float64).roll(1, 0)
    cross, kl = f.table_distance(people, table)
    assert kl.item() == pytest.approx(entropy(people.numpy(), table.numpy(), axis=1).mean(), abs=1e-12)
    assert cross.item() == pytest.approx(kl.item() + entropy(people.numpy(), axis=1).mean(), abs=1e-12)
    assert f.table_distance(people, people.round()) == (torch.inf, torch.inf)


# ---- reliability


def test_reliability_is_scikit_learns_and_adds_up_to_the_ece():
    logits, labels = problem()
    confidence, prediction = logits.softmax(1).max(1)
    right = prediction == labels
    found = [b for b in reliability(confidence, right, equal_bins(15)) if b["count"]]
    accuracy, mean = calibration_curve(right.numpy(), confidence.numpy(), n_bins=15)
    np.testing.assert_allclose([b["accuracy"] for b in found], accuracy, rtol=1e-12)
    np.testing.assert_allclose([b["confidence"] for b in found], mean, rtol=1e-12)
    total = sum(b["count"] * abs(b["accuracy"] - b["confidence"]) for b in found) / len(labels)
    assert calibration_error(confidence, right, equal_bins(15)).item() == pytest.approx(100 * total, rel=1e-12)
    assert all(b["lower"] < b["confidence"] <= b["upper"] for b in found)
    empty = reliability(confidence[:1], right[:1], equal_bins(15))[0]
    assert empty == {"lower": 0, "upper": 1 / 15, "count": 0, "confidence": None, "accuracy": None}


def test_samples_in_no_bin_are_in_none():
    counts, _, _ = binned(real([0.05, math.nextafter(0.2, 1), 1.5]), torch.ones(3), pskd_bins())
    assert counts.tolist() == [1, *[0] * 9]


def test_I26_the_published_curve_adds_up_bins():
    """There a sample is in every bin above its confidence too; adding up our bins gives that curve."""
    v = VECTORS["I26"]["inputs"], VECTORS["I26"]["expected"]
    confidence, prediction = real(v[0]["probs"]).max(1)
    right = prediction == torch.tensor(v[0]["labels"])
    edges = real(v[0]["edges"])
    counts, sums, rights = binned(confidence, right, (torch.cat([real([-math.inf]), edges[:-1]]), edges))
    assert counts.tolist() == [0, 0, 0, 1, 0, 2, 0, 1, 1, 1]
    n = counts.cumsum(0)
    assert n.tolist() == v[1]["counts"]
    filled = n > 0
    for name, total in (("mean_confidence", sums), ("accuracy", rights)):
        expected = real([x for x in v[1][name] if x is not None])
        torch.testing.assert_close((total.cumsum(0) / n)[filled], expected, rtol=1e-12, atol=0)


def test_features_in_a_plane():
    """proj-07 and pca-09: LS-KD's projection with each class's own bias, and the plane fitted on training images."""
    given, expected = VECTORS["proj-07"]["inputs"], VECTORS["proj-07"]["expected"]
    rows, labels = given["class_rows"], torch.tensor(given["labels"])
    basis = template_basis(real(given["fc_weight"])[rows], real(given["fc_bias"])[rows])
    torch.testing.assert_close(basis, real(expected["basis_sign_fixed"]))
    torch.testing.assert_close(basis @ basis.T, real(expected["projector_Q_Qt"]))
    points = projected(real(given["features"]), basis)
    torch.testing.assert_close(points, real(expected["projected_features_sign_fixed"]))
    middles = centroids(points, labels, 3)
    torch.testing.assert_close(middles, real(expected["projected_centroids_sign_fixed"]))
    given, expected = VECTORS["pca-09"]["inputs"], VECTORS["pca-09"]["expected"]
    mean, axes = principal_plane(torch.cat([points, middles]))
    torch.testing.assert_close(mean, real(expected["mean"]))
    torch.testing.assert_close(axes, real(expected["components"]))
    unseen = projected(real(given["validation_features"]), basis)
    for some, name in ((points, "train_2d"), (middles, "centroids_2d"), (unseen, "validation_2d")):
        torch.testing.assert_close((some - mean) @ axes.T, real(expected[name]))
