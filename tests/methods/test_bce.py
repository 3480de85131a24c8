"""Binary cross-entropy against timm's, with and without mixed images."""

import pytest
import torch
from timm.data.mixup import mixup_target
from timm.loss import BinaryCrossEntropy

from lsdali.batch import Batch, Mixture
from lsdali.models.student import Outputs
from tests.methods.test_distillation import CLOCK, make

B, K = 8, 10


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("threshold", [0.2, None])
@pytest.mark.parametrize("sum_classes", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_timms(mixed, threshold, sum_classes, smoothing):
    torch.manual_seed(0)
    logits, labels, lam = torch.randn(B, K) * 3, torch.randint(K, (B,)), 0.85
    partners = labels.flip(0)  # timm's partner of a sample is its mirror image in the batch
    target = mixup_target(labels, K, lam if mixed else 1.0, smoothing)
    theirs = BinaryCrossEntropy(target_threshold=threshold, sum_classes=sum_classes)(logits, target)
    tree = {"name": "bce", "smoothing": smoothing, "threshold": threshold, "sum_classes": sum_classes}
    every = torch.ones(B, dtype=torch.bool)
    batch = Batch(logits, labels, torch.arange(B), every, mixture=Mixture(partners, lam) if mixed else None)
    ours = make(tree, classes=K).loss(lambda x: Outputs(x, x, {}), batch, CLOCK).total
    torch.testing.assert_close(ours, theirs)
