"""Batch normalisation over the batch of all processes.

torch.nn.SyncBatchNorm does so on CUDA alone; here two differentiable sums over the processes do it anywhere,
so that data-parallel training is the training of one process, to rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kolmo.images import parallel


class BatchNorm(nn.BatchNorm2d):
    """nn.BatchNorm2d of x (N, C, H, W) whose batch is that of all processes, N images in each of them."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or parallel.count() == 1:
            return super().forward(x)
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        numbers = x if x.dtype == torch.float64 else x.float()
        mean = parallel.mean(numbers.mean(dim=(0, 2, 3)))
        centred = numbers - mean[:, None, None]
        variance = parallel.mean(centred.square().mean(dim=(0, 2, 3)))
        with torch.no_grad():
            total = parallel.count() * x.numel() / x.shape[1]
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (total / (total - 1)), self.momentum)
            self.num_batches_tracked += 1
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)
