"""Slow, obvious twins of lsdali.functional and of DenseVotes, in plain Python, NumPy and SciPy, float64."""

import math

import numpy as np
from scipy.optimize import isotonic_regression
from scipy.stats import rankdata


def counts(votes, classes):
    """[B, L] lists -> [B, K]."""
    out = np.zeros((len(votes), classes), dtype=int)
    for i, row in enumerate(votes):
        for k in row:
            out[i, k] += 1
    return out


def ranks(scores):
    """[B, K] -> [B, K]: 1 for the greatest, equal scores share the smallest rank."""
    return np.stack([rankdata(-np.asarray(row, dtype=float), method="min").astype(int) for row in scores])


def soft_ranks(scores, strength):
    """[B, K] -> [B, K]: scores sorted, less the falling fit of what the ranks leave of them, a row at a time."""
    out = np.zeros(np.shape(scores))
    for row, given in zip(out, np.asarray(scores, dtype=float)):
        theta = -given / strength
        order = np.argsort(-theta, kind="stable")
        steps = np.arange(len(theta), 0, -1)
        row[order] = theta[order] - isotonic_regression(theta[order] - steps, increasing=False).x
    return out


def zipf(rank, labels, power):
    """[B, K], [B] -> [B, K] with 0 on the label."""
    out = np.zeros(rank.shape)
    for i, label in enumerate(labels):
        weights = [0.0 if k == label else float(r) ** -power for k, r in enumerate(rank[i])]
        out[i] = np.array(weights) / math.fsum(weights)
    return out


def log_softmax(row):
    top = max(row)
    total = math.log(math.fsum(math.exp(x - top) for x in row))
    return [x - top - total for x in row]


def kl(p, log_q):
    return math.fsum(x * (math.log(x) - y) for x, y in zip(p, log_q) if x > 0)


def off_label_kl(logits, target, labels):
    """-> [B]."""
    out = []
    for row, p, label in zip(logits, target, labels):
        others = [k for k in range(len(row)) if k != label]
        out.append(kl([p[k] for k in others], log_softmax([row[k] for k in others])))
    return out


def soft_cross_entropy(logits, target):
    rows = [-math.fsum(p * x for p, x in zip(t, log_softmax(row))) for row, t in zip(logits, target)]
    return math.fsum(rows) / len(rows)


def smooth_targets(labels, classes, smoothing, mass):
    out = np.zeros((len(labels), classes))
    for i, label in enumerate(labels):
        for k in range(classes):
            if mass == "all":
                out[i, k] = smoothing / classes + (1 - smoothing if k == label else 0)
            else:
                out[i, k] = 1 - smoothing if k == label else smoothing / (classes - 1)
    return out


def distillation_kl(student, teacher, temperature):
    rows = [
        kl(np.exp(log_softmax([x / temperature for x in t])), log_softmax([x / temperature for x in s]))
        for s, t in zip(student, teacher)
    ]
    return temperature**2 * math.fsum(rows) / len(rows)
