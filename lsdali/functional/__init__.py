"""Label mathematics: pure functions from logits, labels and votes to targets and losses.

Everything is computed in float32 whatever comes in (float64 stays float64), so autocast cannot reach it. No
function waits for the device, has shapes that depend on data, or compares every class with every other.

B batch, K classes, L places (locations of a feature map).
"""

from lsdali.functional.labels import (
    Mass,
    cross_entropy,
    distillation_kl,
    label_smoothing,
    lift,
    masked_mean,
    smooth_targets,
    smoothing_share,
    soft_cross_entropy,
)
from lsdali.functional.noisy import (
    backward_correction,
    clamped_symmetric_cross_entropy,
    confusion,
    entropy,
    forward_correction,
    generalised_cross_entropy,
    hard_bootstrap,
    log_probabilities,
    prior_term,
    soft_bootstrap,
    symmetric_cross_entropy,
)
from lsdali.functional.online import (
    add_right,
    anchors,
    class_means,
    keep_sharp_rows,
)
from lsdali.functional.ranks import (
    competition_rank,
    count_votes,
    exponential_weights,
    label_and_others,
    linear_weights,
    nearest,
    off_label_kl,
    off_label_target,
    sorted_weights,
    tie_size,
    unbiased_zipf_weights,
    vote_rank,
    zipf_target,
    zipf_weights,
)

__all__ = [
    "Mass",
    "add_right",
    "anchors",
    "backward_correction",
    "clamped_symmetric_cross_entropy",
    "class_means",
    "competition_rank",
    "confusion",
    "count_votes",
    "cross_entropy",
    "distillation_kl",
    "entropy",
    "exponential_weights",
    "forward_correction",
    "generalised_cross_entropy",
    "hard_bootstrap",
    "keep_sharp_rows",
    "label_and_others",
    "label_smoothing",
    "lift",
    "linear_weights",
    "log_probabilities",
    "masked_mean",
    "nearest",
    "off_label_kl",
    "off_label_target",
    "prior_term",
    "smooth_targets",
    "smoothing_share",
    "soft_bootstrap",
    "soft_cross_entropy",
    "sorted_weights",
    "symmetric_cross_entropy",
    "tie_size",
    "unbiased_zipf_weights",
    "vote_rank",
    "zipf_target",
    "zipf_weights",
]
