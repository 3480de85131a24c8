"""Post-hoc processing of trained networks: temperature scaling, ensembles, features in a plane."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lsdali.errors import UserError

WIDE_BOUNDS = (1e-4, 1e4)
"""Bounds of a temperature that only end the search if no loss is the least, for example if every sample is right."""
IBLS = (0.8, 3.0)
"""The bounds that the code of IBLS publishes (Maher and Kull 2021)."""


def fit_temperature(logits: Tensor, labels: Tensor, bounds: tuple[float, float] = WIDE_BOUNDS) -> float:
    """Map [N, K], [N] -> the T within the bounds with the least log loss of softmax(logits / T) (Guo et al. 2017).

    By SciPy's L-BFGS-B from T = 1. It searches 1 / T, in which the loss is convex, with the exact gradient. Guo's own
    code and the one that preceded IBLS's take 50 iterations of torch's LBFGS at rate 0.01 from 1.5 and never zero the
    gradient; on the 40 samples of the tests they end at 1.085, with zeroing at 1.348, and the least loss is at 1.197.
    Raises UserError if there is no sample, or one whose loss is infinite at every temperature.
    """
    from scipy.optimize import minimize

    if len(logits) == 0:
        raise UserError("a temperature cannot be fitted on no samples")
    z = logits.detach().cpu().double()
    z = z - z.amax(1, keepdim=True)  # a row without a greatest logit is NaN from here on
    own = z.gather(1, labels.cpu()[:, None])[:, 0]
    if lost := int((z.isnan().any(1) | own.isinf()).sum()):
        raise UserError(f"a temperature cannot be fitted: at every one the log loss of {lost} samples is infinite")
    finite = z.masked_fill(z.isinf(), 0.0)  # masked classes have no probability

    def loss_and_slope(at: NDArray[np.float64]) -> tuple[float, float]:
        scaled = float(at[0]) * z
        losses = scaled.logsumexp(1) - float(at[0]) * own
        slopes = (scaled.softmax(1) * finite).sum(1) - own
        # NumPy adds in one order, torch in one that the number of threads decides.
        return float(losses.numpy().mean()), float(slopes.numpy().mean())

    inverse = (1 / bounds[1], 1 / bounds[0])
    options = {"ftol": 1e-15, "gtol": 1e-10}
    found = minimize(loss_and_slope, 1.0, jac=True, method="L-BFGS-B", bounds=[inverse], options=options)
    return min(max(1 / float(found.x[0]), bounds[0]), bounds[1])


def ensemble(logits: Sequence[Tensor]) -> Tensor:
    """Map M times [N, K] -> [N, K] fp64: the logarithm of the mean of the M softmax outputs."""
    log_p = torch.stack([x.detach().double().log_softmax(1) for x in logits])
    return log_p.logsumexp(0) - float(np.log(len(logits)))


def template_basis(weight: Tensor, bias: Tensor) -> Tensor:
    """Return an orthonormal basis [D + 1, n] fp64 of the rows [w, b] of a linear classifier for n classes, [n, D], [n].

    By QR (Mueller et al. 2019, figure 1), signs chosen so that R has a positive diagonal. The code of LS-KD takes the
    biases of the classes 0, 1, 2 for any three (alpha-LS-KD_imagenet_centroids.py); here each has its own.
    """
    templates = torch.cat([weight, bias[:, None]], 1).double()
    basis, upper = torch.linalg.qr(templates.T)
    turned: Tensor = basis * upper.diagonal().sign()
    return turned


def projected(features: Tensor, basis: Tensor) -> Tensor:
    """Map [N, D] features, [D + 1, n] of `template_basis` -> [N, n] fp64: where [x, 1] lies in its span."""
    return features.double() @ basis[:-1] + basis[-1]


def centroids(points: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Map [N, n], [N] -> [classes, n]: the mean of each class."""
    return torch.stack([points[labels == k].mean(0) for k in range(classes)])


def principal_plane(points: Tensor) -> tuple[Tensor, Tensor]:
    """Map [M, n] -> their mean [n] and two principal axes [2, n], the largest component of each positive."""
    from sklearn.decomposition import PCA

    fit = PCA(n_components=2, svd_solver="full").fit(points.numpy())
    axes = torch.from_numpy(fit.components_)
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    return torch.from_numpy(fit.mean_), axes * largest.sign()
