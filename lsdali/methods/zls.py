"""Zipf's label smoothing."""

from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import Self

from lsdali import dist
from lsdali.batch import Batch
from lsdali.clock import Clock
from lsdali.config import Config as Part
from lsdali.errors import UserError
from lsdali.functional import (
    Mass,
    competition_rank,
    count_votes,
    cross_entropy,
    label_and_others,
    label_smoothing,
    masked_mean,
    nearest,
    off_label_kl,
    off_label_target,
    soft_cross_entropy,
    soft_rank,
    sorted_weights,
    tie_size,
    vote_rank,
    vote_target,
)
from lsdali.methods.base import Loss, Method, MethodContext
from lsdali.methods.shared.deep_heads import Exits
from lsdali.methods.shared.distributions import (
    SOFT,
    UNRANKED,
    Constant,
    Distribution,
    Random,
    RankZipf,
    SortedPareto,
    UnbiasedZipf,
    check_distribution,
    random_numbers,
    rank_weights,
)
from lsdali.methods.shared.draws import ZIPF_WEIGHTS, draws, to_device
from lsdali.models.aux_heads import DenseVotes, Upsample
from lsdali.models.student import AuxHead, Forward, Outputs


class HardLabel(Part):
    """Cross-entropy."""

    name: Literal["ce"] = "ce"


class Smoothed(Part):
    """Label smoothing."""

    name: Literal["ls"] = "ls"
    smoothing: float = Field(0.1, ge=0, lt=1)
    """Probability mass that the label gives away."""
    mass: Mass = "others"
    """Where the smoothed mass goes, as in the method ls."""


class SmoothedByRank(Part):
    """Label smoothing that spreads its mass like the Zipf target: cross-entropy against one mixed target.

    The published `label_smooth_zipf` means this and stops at the first batch (losses.py:26-47).
    """

    name: Literal["ls_zipf"] = "ls_zipf"
    smoothing: float = Field(0.1, ge=0, lt=1)
    """Probability mass that the label gives away."""


Criterion = Annotated[HardLabel | Smoothed | SmoothedByRank, Field(discriminator="name")]


class SoftRanks(Part):
    """Ranks that follow the distances between scores (Blondel et al. 2020); the published `rank soft` cannot run.

    `strength` is a distance of scores: those further apart have plain ranks, nearer ones ranks on a line with slope
    1 / strength. With the published strength, votes or logits of many classes are all near to each other beside K
    ranks, and the target is almost even; a far smaller one tells classes apart. Equal scores share the mean of their
    ranks. The target is without gradient here as with plain ranks, as everywhere in the published code.
    """

    strength: float = Field(0.5, ge=1e-6, le=1e6)
    """Distance of scores from which on they have plain ranks."""


class DeepVotes(Part):
    """Earlier stages with heads of their own, whose positions vote beside those of the last stage."""

    exits: int = Field(1, ge=1, le=2)
    """How many of the stages before the last; published as deeplayer 2 and 3, which is one more."""
    weight: float = Field(0.5, ge=0, le=1e9)
    """Weight of the criterion on each head's own logits."""


class ZipfLabelSmoothing(Method):
    """Liang et al. 2022: the positions of the last map vote for classes; rank r earns a mass like 1/r.

    Mixed images (mixup, CutMix), which the paper does not train on: the votes are those of the mixed image, and the
    loss is the whole loss for either label, weighted as the images are. Each label's Zipf target is 0 on that label
    alone, so that the partner's class earns its mass there by its rank.
    """

    class Config(Method.Config):
        """Criterion + weight KL(target by rank || softmax without the label)."""

        name: Literal["zls"] = "zls"
        weight: float = Field(1.0, ge=0, le=1e9)
        """Weight of the Zipf term; published: 0.1 (CIFAR-100, ImageNet), 1.0 (TinyImageNet, INAT21)."""
        distribution: Distribution = RankZipf()
        """The mass of each rank."""
        ranking: Literal["dense", "pooled", "friends"] = "dense"
        """Classes are ranked by: dense: votes of the positions; pooled: the sample's own logits; friends: the logits of
        the other sample of the batch whose features are nearest. In 16-bit precision some of a thousand logits tie;
        votes are counted in float32."""
        soft: SoftRanks | None = None
        """Soft ranks of what `ranking` names; null: whole ranks, equal scores sharing the smallest."""
        upsample: Upsample | None = None
        """How maps are interpolated to twice their size before they vote; null: not at all."""
        samples: Literal["all", "correct"] = "all"
        """Samples of the Zipf term: all, or those of the batch that the student classifies correctly."""
        criterion: Criterion = HardLabel()
        """The loss beside the Zipf term."""
        deep: DeepVotes | None = None
        """Heads and votes of earlier stages; null: the last stage alone."""

        @model_validator(mode="after")
        def nothing_is_dead(self) -> Self:
            ranked = not isinstance(self.distribution, UNRANKED)
            if not ranked and (self.upsample is not None or self.ranking != "dense"):
                raise ValueError(
                    f"the distribution {self.distribution.name} reads no ranks; leave out `ranking` and `upsample`"
                )
            if self.soft is not None and not isinstance(self.distribution, SOFT):
                names = ", ".join(kind.model_fields["name"].default for kind in SOFT)
                raise ValueError(
                    f"the distribution {self.distribution.name} reads no soft ranks; "
                    f"leave out `soft`, or use one of {names}"
                )
            if self.ranking != "dense" and self.upsample is not None:
                raise ValueError(f"the ranking '{self.ranking}' reads no votes; leave out `upsample`")
            return self

    config: Config

    def __init__(self, config: Config, context: MethodContext) -> None:
        super().__init__(config, context)
        if context.classes < 3:
            raise UserError(
                f"the method '{config.name}' ranks the classes beside the label, and of {context.classes} classes that "
                "is one: its term is 0 for any network; use another method, such as ls"
            )
        check_distribution(config.distribution, context.classes)
        self.seed, self.classes = context.seed, context.classes
        self.compares = 2 if config.ranking == "friends" else 1
        self.dense = config.ranking == "dense" and not isinstance(config.distribution, UNRANKED)
        self.exits = Exits(context, 0 if config.deep is None else config.deep.exits, key="method.deep.exits")

    def aux_heads(self) -> dict[str, AuxHead]:
        exits, upsample = self.exits.heads(), self.config.upsample
        if not self.dense:
            return {**exits}
        votes = {f"votes_{head.stage}": DenseVotes(upsample, head) for head in exits.values()}
        return {**exits, "votes": DenseVotes(upsample), **votes}

    def loss(self, student: Forward, batch: Batch, clock: Clock) -> Loss:
        out = student(batch.images)
        total, terms = self.total(out, batch, clock)
        return Loss(total, out.logits.detach(), {name: term.detach() for name, term in terms.items()})

    def total(self, out: Outputs, batch: Batch, clock: Clock) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss [], and what to log of it."""
        names = [self.config.criterion.name, "zipf", *(["exits"] if self.config.deep is not None else [])]
        values = batch.per_label(lambda labels: torch.stack(self.terms(out, batch, labels, clock)))
        terms = dict(zip(names, values.unbind(), strict=True))
        weights = [1.0, self.config.weight, *([self.config.deep.weight] if self.config.deep is not None else [])]
        return torch.stack([w * term for w, term in zip(weights, terms.values(), strict=True)]).sum(), terms

    def terms(self, out: Outputs, batch: Batch, labels: Tensor, clock: Clock) -> list[Tensor]:
        """Return [] each: the criterion, the Zipf term, and with exits the sum of the criterion on them."""
        target = self.target(out, batch, labels, clock)
        kl = off_label_kl(out.logits, target, labels)
        right = out.logits.argmax(1) == labels
        found = [
            self.criterion(out.logits, labels, target),
            kl.mean() if self.config.samples == "all" else masked_mean(dist.whole_batch(kl), dist.whole_batch(right)),
        ]
        if self.config.deep is not None:
            exits = [self.criterion(z, labels, target) for z in self.exits.logits(out)]
            found.append(torch.stack(exits).sum())
        return found

    def criterion(self, logits: Tensor, labels: Tensor, target: Tensor) -> Tensor:
        match self.config.criterion:
            case HardLabel():
                return cross_entropy(logits, labels)
            case Smoothed(smoothing=smoothing, mass=mass):
                return label_smoothing(logits, labels, smoothing, mass)
            case SmoothedByRank(smoothing=smoothing):
                return soft_cross_entropy(logits, label_and_others(target, labels, smoothing))

    def target(self, out: Outputs, batch: Batch, labels: Tensor, clock: Clock) -> Tensor:
        """Return [B, K] with 0 on the label, rows summing to 1; without gradient."""
        distribution, classes = self.config.distribution, out.logits.shape[1]
        dtype = torch.promote_types(out.logits.dtype, torch.float32)
        if isinstance(distribution, Constant):
            weights = torch.ones_like(out.logits.detach(), dtype=dtype)
        elif isinstance(distribution, Random):
            numbers = random_numbers(distribution, lambda k: draws(self.seed, clock, batch, k * classes, ZIPF_WEIGHTS))
            weights = to_device(numbers, out.logits.device)
            if isinstance(distribution, SortedPareto):
                weights = sorted_weights(self.rank(out), weights)
        else:
            weigh = partial(rank_weights, distribution, classes=classes)
            if self.dense and self.config.soft is None:
                return vote_target(self.votes(out), labels, classes, weigh, dtype)
            rank = self.rank(out)
            # Ties count for one distribution only; the others are spared them.
            weights = weigh(rank, tie_size(rank) if isinstance(distribution, UnbiasedZipf) else rank)
        return off_label_target(weights, labels)

    @property
    def reads_features(self) -> bool:
        """Whether it looks for friends."""
        return bool(self.config.ranking == "friends")

    def rank(self, out: Outputs) -> Tensor:
        """Return [B, K] from 1; int64, or float32 if ranks are soft."""
        scores = self.scores(out)
        if self.config.soft is not None:
            return soft_rank(scores, self.config.soft.strength)
        return vote_rank(scores, self.votes(out).shape[1]) if self.dense else competition_rank(scores)

    def scores(self, out: Outputs) -> Tensor:
        """Return [B, K] what classes are ranked by, the greatest first."""
        logits = out.logits.detach()
        match self.config.ranking:
            case "pooled":
                return logits
            case "friends":
                friends = dist.own_rows(nearest(dist.whole_batch(out.features.detach())))
                return dist.whole_batch(logits)[friends]
            case "dense":
                return count_votes(self.votes(out), logits.shape[1])

    def votes(self, out: Outputs) -> Tensor:
        """Return [B, L] int64: of the last stage and of those with exits."""
        names = ["votes", *(f"votes_{name}" for name in self.exits.stages)]
        return torch.cat([out.aux_heads[name] for name in names], 1)


METHODS = {"zls": ZipfLabelSmoothing}
