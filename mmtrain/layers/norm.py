"""Batch norm that keeps its statistics in full precision."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_STATISTICS = ("running_mean", "running_var")


class GridNorm(nn.BatchNorm2d):
    """Batch norm of (B, C, Y, X), Ioffe & Szegedy, arXiv:1502.03167, computed in fp32.

    Running statistics stay fp32 in a model of bf16 weights, where a step of a tenth of a batch
    would be rounded away.
    """

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "GridNorm":
        super()._apply(fn, recurse)
        for name in _STATISTICS:
            value = self._buffers[name]
            if value is not None and value.dtype in (torch.bfloat16, torch.float16):
                self._buffers[name] = value.float()
        return self

    def forward(  # type: ignore[override]  # torch's own names no shape
        self, x_BCYX: Tensor
    ) -> Tensor:
        if self.weight.dtype in (torch.float32, torch.float64):
            return super().forward(x_BCYX)
        assert self.num_batches_tracked is not None, "statistics are tracked"
        momentum = self.momentum
        if self.training:
            self.num_batches_tracked.add_(1)
            if momentum is None:  # the cumulative mean
                momentum = 1 / float(self.num_batches_tracked)
        y_BCYX = F.batch_norm(
            x_BCYX.float(),
            self.running_mean,
            self.running_var,
            self.weight.float(),
            self.bias.float(),
            self.training,
            momentum or 0.0,
            self.eps,
        )
        return y_BCYX.to(x_BCYX.dtype)
