"""Batch norm whose statistics are those of the images of all ranks.

Only models that start at random train their batch norm (`augfpn.experiments.scales`). PyTorch's `SyncBatchNorm` does
the same on GPUs only; this one also where ranks are processes on a CPU.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from augfpn.errors import UserError


class SharedBatchNorm2d(nn.BatchNorm2d):
    """``x (B, C, H, W)``, B images of this rank."""

    def forward(self, x: Tensor) -> Tensor:
        return _normalised(self, x) if self.training else super().forward(x)


class SharedBatchNormAct2d(BatchNormAct2d):  # type: ignore[misc]
    """timm's, which has an activation behind it."""

    def forward(self, x: Tensor) -> Tensor:
        normalised: Tensor = self.act(self.drop(_normalised(self, x))) if self.training else super().forward(x)
        return normalised


_SHARED: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm2d: SharedBatchNorm2d,
    BatchNormAct2d: SharedBatchNormAct2d,
}


def share_statistics(model: nn.Module) -> None:
    """Turns the model's batch norm into one with shared statistics, in place: whoever holds a layer still holds it."""
    for name, module in model.named_modules():
        if type(module) in _SHARED:
            module.__class__ = _SHARED[type(module)]
        elif isinstance(module, nn.modules.batchnorm._BatchNorm) and type(module) not in _SHARED.values():
            raise UserError(
                f"{name} is a {type(module).__name__}, whose statistics cannot be shared between devices; train this "
                "model on one, or with frozen batch norm."
            )


def _normalised(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    values = x.float()
    # Of images with other padding, a rank has more cells or fewer.
    sums = torch.cat([values.sum(dim=(0, 2, 3)), values.new_full((1,), values.numel() / values.shape[1])])
    sums = _SumOverRanks.apply(sums)
    count = sums[-1].detach()
    mean = sums[:-1] / count
    centred = values - mean[:, None, None]
    variance = _SumOverRanks.apply(centred.square().sum(dim=(0, 2, 3))) / count
    if norm.track_running_stats and norm.running_mean is not None and norm.running_var is not None:
        assert norm.momentum is not None
        with torch.no_grad():
            norm.running_mean.lerp_(mean.detach(), norm.momentum)
            norm.running_var.lerp_(variance.detach() * count / (count - 1), norm.momentum)
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked.add_(1)
    scale = (variance + norm.eps).rsqrt() * norm.weight
    normalised: Tensor = centred * scale[:, None, None] + norm.bias[:, None, None]
    return normalised.to(x.dtype)


class _SumOverRanks(torch.autograd.Function):
    """Whatever one rank's values do to the sum, they do to the losses of all ranks."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total
