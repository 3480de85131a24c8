"""Slow, obvious twins of lsdali.functional.features and of the losses that use it, in plain Python, float64.

Maps are nested lists [B][C][H][W]; the sides of the smaller map divide those of the larger.
"""

import math
from itertools import product


def shrunk(channel, height, width):
    """Means of the rectangles that a channel [H][W] is cut into."""
    tall, wide = len(channel) // height, len(channel[0]) // width
    return [
        [
            math.fsum(channel[y * tall + dy][x * wide + dx] for dy in range(tall) for dx in range(wide)) / (tall * wide)
            for x in range(width)
        ]
        for y in range(height)
    ]


def at_one_size(a, b):
    height = min(len(a[0][0]), len(b[0][0]))
    width = min(len(a[0][0][0]), len(b[0][0][0]))
    return [[[shrunk(channel, height, width) for channel in sample] for sample in maps] for maps in (a, b)]


def mean(values):
    values = list(values)
    return math.fsum(values) / len(values)


def numbers(nested):
    return [x for part in nested for x in numbers(part)] if isinstance(nested, list) else [nested]


def regressed(maps, weight, bias):
    """A 1x1 convolution: weight [D][C], bias [D]."""
    return [
        [
            [
                [
                    bias[d] + math.fsum(weight[d][c] * sample[c][y][x] for c in range(len(sample)))
                    for x in range(len(sample[0][0]))
                ]
                for y in range(len(sample[0]))
            ]
            for d in range(len(weight))
        ]
        for sample in maps
    ]


def hint(student, teacher):
    """FitNets: mean over everything of squared differences."""
    a, b = (numbers(maps) for maps in at_one_size(student, teacher))
    return mean((x - y) ** 2 for x, y in zip(a, b, strict=True))


def attention_of(sample):
    """One sample's attention: mean over channels of squares, by position, as a unit vector."""
    raw = [
        math.fsum(channel[y][x] ** 2 for channel in sample) / len(sample)
        for y in range(len(sample[0]))
        for x in range(len(sample[0][0]))
    ]
    length = math.sqrt(math.fsum(v * v for v in raw))
    return [v / length for v in raw]


def attention(student, teacher):
    pairs = zip(*at_one_size(student, teacher), strict=True)
    return mean((x - y) ** 2 for s, t in pairs for x, y in zip(attention_of(s), attention_of(t), strict=True))


def huber(x, y):
    away = abs(x - y)
    return 0.5 * away * away if away < 1 else away - 0.5


def relation(student, teacher):
    """RKD: the loss of the distances and that of the angles, from rows of features."""

    def distances(rows):
        plain = [[math.dist(a, b) for b in rows] for a in rows]
        scale = mean(d for row in plain for d in row if d > 0)
        return [d / scale for row in plain for d in row]

    def cosine(rows, i, j, k):
        to_i = [a - b for a, b in zip(rows[i], rows[j], strict=True)]
        to_k = [a - b for a, b in zip(rows[k], rows[j], strict=True)]
        lengths = math.hypot(*to_i) * math.hypot(*to_k)
        return math.fsum(a * b for a, b in zip(to_i, to_k, strict=True)) / lengths if lengths else 0.0

    lengths = mean(map(huber, distances(student), distances(teacher)))
    triples = list(product(range(len(student)), repeat=3))
    angles = mean(huber(cosine(student, *at), cosine(teacher, *at)) for at in triples)
    return lengths, angles
