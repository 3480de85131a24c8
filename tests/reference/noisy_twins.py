"""Slow, obvious twins of rank weights, class means and losses for noisy labels, in plain Python."""

import math
from math import exp, fsum, log

from label_twins import log_softmax


def mean(values):
    values = list(values)
    return fsum(values) / len(values)


# ---- weights of ranks: a row of ranks -> a row of weights


def linear(row, smallest):
    k = len(row)
    step = 2 * (1 - k * smallest) / (k * (k - 1))
    return [smallest + step * (k - r) for r in row]


def exponential(row, rate):
    return [exp(-rate * (r - 1)) for r in row]


def unbiased(row, power, left, right):
    """The numerical integral of x^-power over the cells of the classes at a rank, shared among them."""
    out = []
    for r in row:
        tied = sum(1 for other in row if other == r)
        cell = (right - left) / len(row)
        start, stop = left + (r - 1) * cell, left + (r + tied - 1) * cell
        n = 4000
        x = [start * (stop / start) ** ((i + 0.5) / n) for i in range(n)]
        out.append(fsum(v ** (1 - power) for v in x) * log(stop / start) / n / tied)
    return out


def off_label(weights, label):
    total = fsum(w for k, w in enumerate(weights) if k != label)
    return [0.0 if k == label else w / total for k, w in enumerate(weights)]


def nearest(features):
    out = []
    for i, a in enumerate(features):
        distances = [(fsum((x - y) ** 2 for x, y in zip(a, b)), j) for j, b in enumerate(features) if j != i]
        out.append(min(distances)[1])
    return out


# ---- online label smoothing


def class_averages(logits, labels, classes):
    rows = []
    for c in range(classes):
        right = [[exp(x) for x in log_softmax(z)] for z, y in zip(logits, labels) if y == c and z.index(max(z)) == y]
        rows.append([mean(p[k] for p in right) if right else 1 / classes for k in range(classes)])
    return rows


# ---- losses


def symmetric(logits, labels, forward, reverse, zero):
    total = []
    for z, y in zip(logits, labels):
        logs = log_softmax(z)
        back = fsum(exp(x) * (0.0 if k == y else log(zero)) for k, x in enumerate(logs))
        total.append(-forward * logs[y] - reverse * back)
    return mean(total)


def generalised(logits, labels, q):
    return mean((1 - exp(log_softmax(z)[y]) ** q) / q for z, y in zip(logits, labels))


def joint(logits, labels, prior, spread):
    p = [[exp(x) for x in log_softmax(z)] for z in logits]
    ce = mean(-log(row[y]) for row, y in zip(p, labels))
    classes = range(len(p[0]))
    class_prior_kl = -mean(log(mean(row[k] for row in p)) for k in classes)
    entropy = mean(-fsum(x * log(x) for x in row) for row in p)
    return ce + prior * class_prior_kl + spread * entropy


def bootstrap(logits, labels, trust, kind):
    total = []
    for z, y in zip(logits, labels):
        logs = log_softmax(z)
        guess = [exp(x) for x in logs] if kind == "soft" else [float(k == z.index(max(z))) for k in range(len(z))]
        target = [trust * (k == y) + (1 - trust) * g for k, g in enumerate(guess)]
        total.append(-fsum(t * x for t, x in zip(target, logs)))
    return mean(total)


def forward(logits, labels, noise):
    return mean(-log(fsum(exp(x) * noise[k][y] for k, x in enumerate(log_softmax(z)))) for z, y in zip(logits, labels))


def backward(logits, labels, inverse):
    return mean(-fsum(inverse[y][k] * x for k, x in enumerate(log_softmax(z))) for z, y in zip(logits, labels))


def confusion(x, over):
    half = len(x) // 2
    gaps = [[a - b for a, b in zip(x[i], x[half + i])] for i in range(half)]
    rows = gaps if over == "classes" else list(zip(*gaps))
    return fsum(math.sqrt(fsum(g * g for g in row)) for row in rows) / len(x)
