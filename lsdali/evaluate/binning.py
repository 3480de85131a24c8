"""Bins that a user may ask for beside the 15 of equal width: `width:10`, `mass:15`, `pskd:0.1`, `ibls:15`."""

from collections.abc import Callable

from torch import Tensor

from lsdali.errors import UserError
from lsdali.metrics import Bins, bin_gaps, calibration_error, equal_bins, ibls_bins, mass_bins, pskd_bins

BIN_KINDS: dict[str, Callable[[Tensor, float], Bins]] = {
    "width": lambda confidence, size: equal_bins(int(size)),
    "mass": lambda confidence, size: mass_bins(confidence, int(size)),
    "pskd": lambda confidence, size: pskd_bins(size),
    "ibls": lambda confidence, size: ibls_bins(int(size)),
}


def check_bins(text: str) -> None:
    """Raise UserError unless the text is KIND:SIZE, a number of bins, for pskd their width."""
    kind, _, size = text.partition(":")
    try:
        valid = 0 < float(size) <= 1 if kind == "pskd" else int(size) > 0
    except ValueError:
        valid = False
    if kind not in BIN_KINDS or not valid:
        raise UserError(f"--bins {text}: write width:15, mass:15, ibls:15 (a number) or pskd:0.1 (a width)")


def binned_metrics(confidence: Tensor, right: Tensor, asked: str) -> dict[str, float]:
    """Map [N], [N] -> ECE, MCE and ACE in % with the bins that were asked for."""
    kind, _, size = asked.partition(":")
    bins = BIN_KINDS[kind](confidence, float(size))
    gaps = bin_gaps(confidence, right, bins)
    values = calibration_error(confidence, right, bins), gaps.max(), gaps.mean()
    return {f"{name} {asked}": value.item() for name, value in zip(("ece", "mce", "ace"), values)}
