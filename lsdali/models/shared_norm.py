"""BatchNorm over the batch of all ranks."""

import torch
from torch import Tensor, nn

from lsdali import dist
from lsdali.errors import UserError

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class SharedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm whose mean and variance in training are those of all ranks' samples, for CPUs.

    Exact: the variance is taken about the common mean, and the gradient goes through both sums (Ioffe and Szegedy,
    2015).
    torch's own form exists for GPUs only.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        """Take maps of any number of dimensions."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise [B, C, ...]; the shape stays."""
        if not self.training:
            return super().forward(input)
        dims = [0, *range(2, input.dim())]
        wide = input if input.dtype == torch.float64 else input.float()
        shape = [1, -1, *(1 for _ in dims[1:])]
        count = dist.all_sum(torch.tensor(float(input.numel() // input.shape[1]), dtype=torch.float64)).item()
        mean = dist.sum_with_gradient(wide.sum(dims)) / count
        away = wide - mean.view(shape)
        variance = dist.sum_with_gradient(away.square().sum(dims)) / count
        self.note(mean.detach(), variance.detach() * (count / max(count - 1, 1)))
        out = away * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        return out.to(input.dtype).contiguous(memory_format=layout_of(input))

    @torch.no_grad()
    def note(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics as BatchNorm does."""
        if self.num_batches_tracked is None or self.running_mean is None or self.running_var is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        for running, new in ((self.running_mean, mean), (self.running_var, variance)):
            running.mul_(1 - share).add_(new.to(running.dtype), alpha=share)


def layout_of(x: Tensor) -> torch.memory_format:
    channels_last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last else torch.contiguous_format


def share_norms(module: nn.Module, device: torch.device, name: str) -> None:
    """Let every BatchNorm inside a module normalise over all ranks; parameters and buffers stay the same tensors.

    Raises:
        UserError: it has none, or one of a kind of its own.
    """
    norms = [x for x in module.modules() if isinstance(x, nn.modules.batchnorm._BatchNorm)]
    foreign = [type(x).__name__ for x in norms if type(x) not in BATCH_NORMS]
    if not norms:
        raise UserError(f"model.sync_batchnorm: '{name}' has no BatchNorm; leave the key out")
    if foreign:
        raise UserError(
            f"model.sync_batchnorm: '{name}' has norms of its own kind ({foreign[0]}), which are not known to be "
            "exact over ranks; leave the key out"
        )
    if not dist.active():
        return
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
        return
    for parent in list(module.modules()):
        for key, child in list(parent.named_children()):
            if type(child) in BATCH_NORMS:
                setattr(parent, key, shared(child))


def shared(norm: nn.Module) -> SharedBatchNorm:
    """Return the same BatchNorm, over all ranks."""
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
    new = SharedBatchNorm(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    new._parameters, new._buffers, new.training = norm._parameters, norm._buffers, norm.training
    return new
