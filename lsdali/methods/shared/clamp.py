"""The clamp of the published OLS code, for methods that compare with it."""

from lsdali.methods.base import Variant

CLAMP = 1e-7
"""The distance that the OLS code keeps between probabilities and 0 or 1."""


def clamp_of(variant: Variant) -> float | None:
    """Return how far probabilities stay away from 0 and 1; None for the exact logarithm."""
    return CLAMP if variant == "code" else None
