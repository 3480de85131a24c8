"""Label mathematics: pure functions from logits, labels and votes to targets and losses.

Everything is computed in float32 whatever comes in (float64 stays float64), so autocast cannot reach it. No
function waits for the device, has shapes that depend on data, or builds anything of size [K, K].

B batch, K classes, L places (locations of a feature map).
"""

from lsdali.functional.distil import (
    Strength,
    alone_target,
    ensemble_targets,
    even_target,
    instance_strength,
    logit_target,
    progressive_target,
    rest_row,
    soft_kl,
    teacher_spread,
    top_row,
    virtual_teacher,
)
from lsdali.functional.labels import (
    Mass,
    competition_rank,
    count_votes,
    cross_entropy,
    distillation_kl,
    label_smoothing,
    lift,
    masked_mean,
    off_label_kl,
    smooth_targets,
    smoothing_share,
    soft_cross_entropy,
    vote_rank,
    zipf_target,
)

__all__ = [
    "Mass",
    "Strength",
    "alone_target",
    "competition_rank",
    "count_votes",
    "cross_entropy",
    "distillation_kl",
    "ensemble_targets",
    "even_target",
    "instance_strength",
    "label_smoothing",
    "lift",
    "logit_target",
    "masked_mean",
    "off_label_kl",
    "progressive_target",
    "rest_row",
    "smooth_targets",
    "smoothing_share",
    "soft_cross_entropy",
    "soft_kl",
    "teacher_spread",
    "top_row",
    "virtual_teacher",
    "vote_rank",
    "zipf_target",
]
