"""DALI's operations of the policies: RandAugment, TrivialAugment, AutoAugment."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from nvidia.dali import fn, types
from nvidia.dali.auto_aug import auto_augment, rand_augment, trivial_augment
from nvidia.dali.auto_aug.augmentations import identity
from nvidia.dali.auto_aug.core import augmentation, select, signed_bin

from lsdali.data.sampling.augment import policies
from lsdali.data.sampling.augment.policies import BINS, IDENTITY, STAGES, SUB_POLICIES, SUITE

# The longest shift: RandAugment's and AutoAugment's pixels, on images of 331 pixels; TrivialAugment's are absolute.
RAND_SHIFT, AUTO_SHIFT = 150 / 331, 150 / 331
TRIVIAL_SHIFT = 32

# DALI's own two call deprecated names of the same operators, with a warning at each.


@augmentation(name="equalize")  # type: ignore[untyped-decorator]
def _equalize(data: Any, _: Any) -> Any:
    return fn.equalize(data)


@augmentation(name="sharpness", param_device="auto")  # type: ignore[untyped-decorator]
def _sharpness(data: Any, kernel: Any) -> Any:
    return fn.filter(data, kernel)


def patched_effect(effect: Any) -> Any:
    """Return the operation without deprecated names, with its own range of magnitudes."""
    if effect.name == "equalize":
        return _equalize
    if effect.name == "sharpness":
        return _sharpness.augmentation(effect.mag_range, effect.randomly_negate, effect.mag_to_param)
    return effect


def _rand_augment(x: Any, config: policies.RandAugment, inputs: Sequence[Any], side: int) -> Any:
    suite = [patched_effect(e) for e in rand_augment.get_rand_augment_suite(max_translate_abs=RAND_SHIFT * side)]
    assert len(suite) == SUITE
    assert suite[IDENTITY].name == "identity"
    operation, sign = inputs
    magnitude = signed_bin(config.m, random_sign=sign)
    for k in range(config.n):
        x = select(
            suite,
            operation[k],
            data=x,
            magnitude_bin=magnitude[k],
            num_magnitude_bins=BINS,
            fill_value=config.fill,
        )
    return x


def _trivial_augment(x: Any, config: policies.TrivialAugment, inputs: Sequence[Any], side: int) -> Any:
    suite = [patched_effect(e) for e in trivial_augment.get_trivial_augment_wide_suite(max_translate_abs=TRIVIAL_SHIFT)]
    assert len(suite) == SUITE
    operation, magnitude, sign = inputs
    return select(
        suite,
        operation,
        data=x,
        magnitude_bin=signed_bin(magnitude, random_sign=sign),
        num_magnitude_bins=BINS,
        fill_value=config.fill,
    )


def _auto_augment(x: Any, config: policies.AutoAugment, inputs: Sequence[Any], side: int) -> Any:
    published = {"imagenet": auto_augment.get_image_net_policy, "cifar10": auto_augment.get_reduced_cifar10_policy}
    policy = published[config.policy](max_translate_abs=AUTO_SHIFT * side)
    suite, operations, chances, magnitudes = tables(policy.sub_policies)
    pair, drawn, sign = inputs
    for k in range(STAGES):
        wanted = types.Constant(operations[:, k])[pair]
        hit = drawn[k] < types.Constant(chances[:, k])[pair]
        x = select(
            suite,
            wanted * fn.cast(hit, dtype=types.INT32),  # 0 is identity
            data=x,
            magnitude_bin=signed_bin(types.Constant(magnitudes[:, k])[pair], random_sign=sign[k]),
            num_magnitude_bins=policy.num_magnitude_bins,
            fill_value=config.fill,
        )
    return x


def tables(pairs: Sequence[Any]) -> tuple[list[Any], np.ndarray, np.ndarray, np.ndarray]:
    """Map AutoAugment's pairs -> operations, and [25, 2] each: position in them, chance, magnitude. 0 is identity."""
    assert len(pairs) == SUB_POLICIES
    suite: list[Any] = [identity]
    operation, chance, magnitude = (np.zeros((SUB_POLICIES, STAGES), t) for t in (np.int32, np.float32, np.int32))
    for p, pair in enumerate(pairs):
        for k, (effect, share, level) in enumerate(pair):
            if effect not in suite:
                suite.append(effect)
            operation[p, k], chance[p, k], magnitude[p, k] = suite.index(effect), share, level or 0
    return [patched_effect(e) for e in suite], operation, chance, magnitude


EFFECTS = {
    "rand_augment": _rand_augment,
    "trivial_augment_wide": _trivial_augment,
    "auto_augment": _auto_augment,
}
