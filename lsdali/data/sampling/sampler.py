"""Samplers: the order of samples as a function of (seed, epoch), the same on any number of ranks.

Random numbers come from a counter-based hash (splitmix64; Steele, Lea and Flood, 2014), not from a
generator with a state, so a run can start anywhere without replaying anything.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from math import lcm

import numpy as np
from numpy.typing import NDArray

from lsdali.clock import PerEpoch
from lsdali.errors import UserError

Ints = NDArray[np.int64]
Words = NDArray[np.uint64]
Sampler = Callable[[Ints, int, int, int], Ints]

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_EPOCH_ORDER, _PAIR_ORDER, SUBSET = 101, 102, 103  # streams; crops.py uses the small numbers
_CLASS_ORDER, _BALANCED = 106, 107


def _mix(z: Words) -> Words:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z


def _hashes(seed: int, epoch: int, stream: int, index: Ints) -> Words:
    """[n] -> [n] distinct numbers for distinct indices."""
    key = np.zeros(1, np.uint64)
    for part in (seed, epoch, stream):
        key = _mix((key ^ np.uint64(part & 0xFFFFFFFFFFFFFFFF)) * _GAMMA + _GAMMA)
    return _mix((index.astype(np.uint64) ^ key) * _GAMMA + _GAMMA)


def uniforms(seed: int, epoch: int, index: Ints, k: int, stream: int = 0) -> NDArray[np.float64]:
    """Map [n] sample numbers -> [n, k] in [0, 1); other streams are independent."""
    columns = _GAMMA * np.arange(1, k + 1, dtype=np.uint64)
    z: Words = _mix(_hashes(seed, epoch, stream, index)[:, None] + columns) >> np.uint64(11)
    return np.ldexp(z.astype(np.float64), -53)


def epoch_permutation(seed: int, epoch: int, n: int, stream: int = _EPOCH_ORDER) -> Ints:
    """Return [n]: 0 to n - 1, shuffled. Sorting distinct hashes gives the same answer in every NumPy version."""
    return np.argsort(_hashes(seed, epoch, stream, np.arange(n)), kind="stable").astype(np.int64)


def stratified(labels: Ints, n: int, seed: int = 0) -> Ints:
    """Return `n` of the samples, in the classes' own proportions, the same ones for a seed; their numbers, rising."""
    shuffled = epoch_permutation(seed, 0, len(labels), SUBSET)
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    counts = np.bincount(labels)
    position = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    part = (position + 0.5) / np.repeat(counts, counts)
    return np.sort(by_class[np.argsort(part, kind="stable")[:n]])


def shuffled(labels: Ints, seed: int, epoch: int, batch: int) -> Ints:
    """Return every sample once, less the tail that fills no batch."""
    n = len(labels)
    return epoch_permutation(seed, epoch, n)[: n // batch * batch]


def class_pairs(labels: Ints, seed: int, epoch: int, batch: int) -> Ints:
    """Return an order in which samples 2j and 2j + 1 of every batch are two samples of one class.

    No sample comes twice.

    For class-wise self-distillation (Yun et al., 2020). A class with an odd number of samples leaves one
    out, a random one in each epoch. Raises UserError for an odd batch and for a class with a single sample.
    """
    if batch % 2:
        raise UserError(f"batch {batch} is odd; the sampler class_pairs needs an even batch, such as {batch + 1}")
    counts = np.bincount(labels)
    if len(lone := np.flatnonzero(counts == 1)):
        raise UserError(f"class {lone[0]} has one sample; the sampler class_pairs needs two or more of every class")
    permutation = epoch_permutation(seed, epoch, len(labels))
    by_class = permutation[np.argsort(labels[permutation], kind="stable")]
    position = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    paired = position < np.repeat(counts // 2 * 2, counts)
    pairs = by_class[paired].reshape(-1, 2)
    order = pairs[epoch_permutation(seed, epoch, len(pairs), _PAIR_ORDER)].reshape(-1)
    return order[: len(order) // batch * batch]


def balanced(labels: Ints, seed: int, epoch: int, batch: int) -> Ints:
    """Return as many samples as `shuffled` reads, every class once in each run of K positions, K classes with samples.

    So the classes' counts differ by at most one, and so do those of the samples of one class. Each class reads its
    samples in a shuffled order, and in another one when all of them have been read.
    """
    n = len(labels) // batch * batch
    counts = np.bincount(labels)
    present = np.flatnonzero(counts)
    runs = -(-n // len(present))
    # [runs, K]: which class has each position
    ranks = _hashes(seed, epoch, _CLASS_ORDER, np.arange(runs * len(present))).reshape(runs, -1)
    classes = present[np.argsort(ranks, axis=1, kind="stable")]
    # Every class's samples, round after round, each round shuffled: at least `runs` of them.
    rounds = -(-runs // np.maximum(counts, 1))
    samples = np.repeat(np.arange(len(labels)), rounds[labels])
    starts = np.cumsum(rounds[labels]) - rounds[labels]
    turn = np.arange(len(samples)) - np.repeat(starts, rounds[labels])
    key = _hashes(seed, epoch, _BALANCED, turn * len(labels) + samples)
    queue = samples[np.lexsort((key, turn, labels[samples]))]
    first = np.cumsum(counts * rounds) - counts * rounds
    order: Ints = queue[first[classes] + np.arange(runs)[:, None]].reshape(-1)[:n]
    return order


def as_listed(labels: Ints, seed: int, epoch: int, batch: int) -> Ints:
    """Return every sample once, as they are numbered; the last one again until a batch is full."""
    n = len(labels)
    return np.minimum(np.arange(-(-n // batch) * batch), n - 1)


SAMPLERS: dict[str, Sampler] = {
    "shuffled": shuffled,
    "class_pairs": class_pairs,
    "balanced": balanced,
    "as_listed": as_listed,
}


@dataclass(frozen=True, eq=False)
class Plan:
    """Training: which samples each rank reads at each step. `batch` is the global batch of each epoch.

    Repeated augmentation (Hoffer et al., 2020; Berman et al., 2019): every global batch holds each of its samples
    `repeats` times, first all of them once, then all again. An epoch still reads N samples, N / repeats different
    ones, others in every epoch.

    Raises UserError if the batch cannot be shared among the ranks or is larger than the data.
    """

    labels: Ints  # [N]
    batch: PerEpoch
    world: int
    seed: int
    sampler: str = "shuffled"
    repeats: int = 1
    _epochs: dict[int, Ints] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise UserError(f"sampler {self.sampler} is unknown; choose from {', '.join(SAMPLERS)}")
        pair = 2 if self.sampler == "class_pairs" else 1
        unit = lcm(self.world * pair, self.repeats * pair)
        for _, batch in self.batch.spans:
            if batch < 1 or batch % unit:
                low, high = batch // unit * unit, (batch // unit + 1) * unit
                near = f"{low} or {high}" if low else str(high)
                how = (" in pairs" if pair > 1 else "") + (f" in {self.repeats} copies" if self.repeats > 1 else "")
                raise UserError(f"batch {batch} cannot be shared{how} among {self.world} ranks; use {near}")
        for epoch, batch in self.batch.spans:
            if not len(self._epoch(epoch)):
                raise UserError(f"batch {batch} is larger than the data with its {len(self.labels)} samples")

    @cached_property
    def steps_per_epoch(self) -> PerEpoch:
        first, *changes = ((epoch, len(self._epoch(epoch)) // batch) for epoch, batch in self.batch.spans)
        return PerEpoch(first[1], tuple(changes))

    def indices(self, step: int, rank: int) -> Ints:
        """Return [batch / world]: the samples that `rank` reads at global step `step`."""
        epoch, position = self.steps_per_epoch.locate(step)
        batch = self.batch.at(epoch)
        part = batch // self.world
        start = position * batch + rank * part
        return self._epoch(epoch)[start : start + part]

    def copies(self, epoch: int, rank: int) -> Ints:
        """Return [batch / world]: the copy of its sample, 0 to repeats - 1, for each position of a step of `rank`."""
        batch = self.batch.at(epoch)
        part = batch // self.world
        return np.arange(rank * part, (rank + 1) * part) // (batch // self.repeats)

    def _epoch(self, epoch: int) -> Ints:
        if epoch not in self._epochs:
            self._epochs.clear()
            distinct = self.batch.at(epoch) // self.repeats
            order = SAMPLERS[self.sampler](self.labels, self.seed, epoch, distinct)
            steps = len(order) // distinct // self.repeats
            self._epochs[epoch] = np.tile(order[: steps * distinct].reshape(steps, distinct), self.repeats).reshape(-1)
        return self._epochs[epoch]


def eval_slices(n: int, rank: int, world: int, batch: int) -> list[tuple[Ints, NDArray[np.bool_]]]:
    """Return the batches of one rank's contiguous part of n samples: ([batch] indices, [batch] valid) each.

    The last batch repeats its last sample with valid False. A rank may have no batch at all.
    """
    own = np.arange(n * rank // world, n * (rank + 1) // world, dtype=np.int64)
    out = []
    for start in range(0, len(own), batch):
        part = own[start : start + batch]
        index = np.concatenate([part, np.full(batch - len(part), part[-1])])
        out.append((index, np.arange(batch) < len(part)))
    return out
