"""Slow, obvious twins of lsdali.functional.teacher, in plain Python and NumPy, float64."""

import math

import numpy as np


def softmax(row, temperature=1.0):
    weights = [math.exp((x - max(row)) / temperature) for x in row]
    return [w / math.fsum(weights) for w in weights]


def ensemble(logits, features, temperature, propagation, rounds=2000):
    """BAKE by walking: predictions spread from neighbour to neighbour until nothing moves."""
    unit = [np.array(f) / math.sqrt(sum(x * x for x in f)) for f in features]
    affinity = np.zeros((len(unit), len(unit)))
    for i, a in enumerate(unit):
        others = [j for j in range(len(unit)) if j != i]
        affinity[i, others] = softmax([float(a @ unit[j]) for j in others])
    own = np.array([softmax(row, temperature) for row in logits])
    mixed = own
    for _ in range(rounds):
        mixed = propagation * affinity @ mixed + (1 - propagation) * own
    return mixed


def ibls(teacher, label, smoothing, temperature, rule, shift=0.8, coefficient=2.0):
    """One row of IBLS."""
    count = len(teacher)
    others = [k for k in range(count) if k != label]
    p = softmax(teacher, temperature)
    if rule.startswith("logits"):
        low = min(teacher)
        g = [x - low if rule == "logits" or low < 0 else x for x in teacher]
        taken = smoothing * (g[label] / sum(g) if sum(g) > 0 else 1 / count)
        rest = [g[k] for k in others]
    elif rule.startswith("paper"):
        taken = min(smoothing, coefficient * (softmax(teacher, 1.0)[label] - shift) ** 2)
        rest = [1.0 if rule == "paper_ils1" else p[k] for k in others]
    else:
        taken = smoothing * {"ils1": p[label], "ils12": p[label], "ils2": 1.0}.get(rule, 1 - p[label])
        rest = [1.0 if rule in ("ils1", "ils11") else p[k] for k in others]
    out = [0.0] * count
    out[label] = 1 - taken
    for k, weight in zip(others, rest):
        out[k] = taken * (weight / sum(rest) if sum(rest) > 0 else 1 / len(others))
    return out


def progressive(label, past, trust):
    return [(1 - trust) * (k == label) + trust * x for k, x in enumerate(past)]


def kept(probabilities, keep):
    """The `keep` greatest stay; the others share what is left."""
    order = sorted(range(len(probabilities)), key=lambda k: -probabilities[k])[:keep]
    left = 1 - math.fsum(probabilities[k] for k in order)
    others = len(probabilities) - keep
    return [probabilities[k] if k in order else left / others for k in range(len(probabilities))]
