"""Distributions of mass over classes, by rank or without: those that Liang et al. 2022 compare.

Bounds on powers and rates keep weights within float32: where it holds 0 for every class but the label, the order
of the ranks is lost.
"""

from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import Self

from lsdali.config import Config
from lsdali.errors import UserError
from lsdali.functional import (
    as_float32,
    exponential_weights,
    linear_weights,
    unbiased_zipf_weights,
    zipf_weights,
)
from lsdali.methods.shared.draws import Reals, half_normal, lomax


class RankZipf(Config):
    """rank^-power."""

    name: Literal["rank_zipf"] = "rank_zipf"
    power: float = Field(1.0, gt=0, le=5)
    """Exponent of the power law."""


class Constant(Config):
    """The same for every class but the label."""

    name: Literal["constant"] = "constant"


class RandomUniform(Config):
    """Uniform on [0, 1), drawn for every sample, class and epoch."""

    name: Literal["random_uniform"] = "random_uniform"


class RandomGaussian(Config):
    """The absolute value of a standard normal number, drawn for every sample, class and epoch."""

    name: Literal["random_gaussian"] = "random_gaussian"


class RandomPareto(Config):
    """Lomax with shape 1, drawn for every sample, class and epoch."""

    name: Literal["random_pareto"] = "random_pareto"


class SortedPareto(Config):
    """Lomax with shape 1, drawn as in random_pareto; the class of rank r takes the r-th greatest."""

    name: Literal["sorted_pareto"] = "sorted_pareto"


class LinearDecay(Config):
    """A straight line from the first rank down to `smallest_prob` at the last."""

    name: Literal["linear_decay"] = "linear_decay"
    smallest_prob: float = Field(ge=0, le=1e9)
    """The mass of rank K; at most 1/K, which makes all equal."""


class ExponentialDecay(Config):
    """exp(-exp_lambda (rank - 1))."""

    name: Literal["exponential_decay"] = "exponential_decay"
    exp_lambda: float = Field(gt=0, le=40)
    """Decay rate per rank."""


class UnbiasedZipf(Config):
    """The integral of x^-power over the rank's cell of [left_bound, right_bound] cut into K, averaged over ties."""

    name: Literal["unbiased_zipf"] = "unbiased_zipf"
    power: float = Field(1.0, gt=0, le=5)
    """Exponent of the power law."""
    left_bound: float = Field(0.001, ge=1e-6, le=1e9)
    """Start of the interval, which belongs to rank 1."""
    right_bound: float = Field(1.0, gt=0, le=1e6)
    """End of the interval."""

    @model_validator(mode="after")
    def bounds_rise(self) -> Self:
        if self.left_bound >= self.right_bound:
            raise ValueError(f"left_bound {self.left_bound} must be less than right_bound {self.right_bound}")
        return self


Distribution = Annotated[
    RankZipf
    | Constant
    | RandomUniform
    | RandomGaussian
    | RandomPareto
    | SortedPareto
    | LinearDecay
    | ExponentialDecay
    | UnbiasedZipf,
    Field(discriminator="name"),
]

UNRANKED = (Constant, RandomUniform, RandomGaussian, RandomPareto)
"""Distributions that read no ranks."""

Random = RandomUniform | RandomGaussian | RandomPareto | SortedPareto


def check_distribution(distribution: Distribution, classes: int) -> None:
    """Raise UserError if a distribution does not fit the number of classes."""
    if isinstance(distribution, LinearDecay) and distribution.smallest_prob > 1 / classes:
        raise UserError(
            f"method.distribution.smallest_prob is {distribution.smallest_prob}, but with {classes} classes "
            f"it can be at most 1/{classes} = {1 / classes:.6g}"
        )


SOFT = (RankZipf, LinearDecay, ExponentialDecay)
"""Distributions that read ranks which are no whole numbers."""


def rank_weights(distribution: Distribution, rank: Tensor, tied: Tensor, classes: int) -> Tensor:
    """Map [B, n] ranks, [B, n] how many classes share each -> [B, n] weights, if they depend on the rank alone."""
    match distribution:
        case RankZipf(power=power):
            return zipf_weights(rank, power)
        case LinearDecay(smallest_prob=smallest):
            return linear_weights(rank, classes, smallest)
        case ExponentialDecay(exp_lambda=rate):
            # Ratios alone count. Soft ranks may all lie far from 1, where every weight is 0 in float32: rank 1 is put
            # where the second-best class stands, because the best may be the label, which is dropped.
            second = as_float32(rank).kthvalue(2, 1, keepdim=True).values
            return exponential_weights((rank - second + 1).clamp(min=1 - 80 / rate), rate)
        case UnbiasedZipf(power=power, left_bound=left, right_bound=right):
            return unbiased_zipf_weights(rank, tied, classes, power, left, right)
        case _:
            raise AssertionError(distribution.name)


def random_numbers(distribution: Random, uniform: Callable[[int], Reals]) -> Reals:
    """Return [B, K] numbers of at least 0; `uniform` gives [B, `k` columns for each class] in [0, 1)."""
    match distribution:
        case RandomUniform():
            return uniform(1)
        case RandomGaussian():
            return half_normal(uniform(2))
        case _:
            return lomax(uniform(1))
