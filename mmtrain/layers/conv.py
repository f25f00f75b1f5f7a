"""Separable convolutions over the positions of a sequence, (B, L, D), and blocks of them.

A depthwise convolution is a sum of shifted copies of its input, one for each tap; taps that lie
beyond the sequence are left out, so that a short sequence pays for the taps that reach it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtrain.layers.memory import Memory
from mmtrain.layers.units import (
    WHOLE,
    ScaleSite,
    Slice,
    UnitChoice,
    UnitCounts,
    UnitGate,
    UnitGroup,
)

EPSILON = 1e-6  # of layer norms; tensor2tensor v1.0.3

Padding = Literal["same", "left"]
Residual = Literal["stack_input", "standard"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a block works: which positions are real, their timing, what they may look at.

    Args:
        mask_BL1: 1.0 where a position is real, 0.0 where it is padding; the values' dtype.
        timing_BLD: the timing signal of the positions; B may be 1.
        bias: added to the scores of self-attention, broadcast to (B, H, L, M).
        memory: kept from earlier positions; None: the positions given are all there are.
    """

    mask_BL1: Tensor
    timing_BLD: Tensor
    bias: Tensor
    memory: Memory | None = None


class DepthwiseTaps(torch.autograd.Function):
    """Depthwise convolution of relu(x) * mask by shifted multiply-adds.

    r = relu(x) * mask;   out[t] = sum_j weight[j] * r[t + j * dilation - left],   r = 0 outside
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_BLD: Tensor,
        mask_BL1: Tensor,
        weight_KD: Tensor,
        dilation: int,
        left: int,
    ) -> Tensor:
        rectified_BLD = x_BLD.relu().mul_(mask_BL1)
        out_BLD = torch.zeros_like(rectified_BLD)
        length, taps = x_BLD.shape[1], weight_KD.shape[0]
        for tap, to, source in _overlaps(taps, length, dilation=dilation, left=left):
            out_BLD[:, to].addcmul_(rectified_BLD[:, source], weight_KD[tap])
        ctx.save_for_backward(rectified_BLD, weight_KD)
        ctx.dilation, ctx.left = dilation, left
        return out_BLD

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, Tensor, None, None]:
        (grad_BLD,) = grad_outputs
        rectified_BLD, weight_KD = ctx.saved_tensors
        grad_x_BLD = torch.zeros_like(grad_BLD)
        grad_weight_KD = torch.zeros_like(weight_KD)
        length, taps = grad_BLD.shape[1], weight_KD.shape[0]
        for tap, to, source in _overlaps(taps, length, dilation=ctx.dilation, left=ctx.left):
            grad_to_BLD = grad_BLD[:, to]
            grad_x_BLD[:, source].addcmul_(grad_to_BLD, weight_KD[tap])
            grad_weight_KD[tap] = (grad_to_BLD * rectified_BLD[:, source]).sum((0, 1))
        # r > 0 only where x > 0 and the position is real: the gradient of relu and mask in one
        grad_x_BLD = torch.ops.aten.threshold_backward(grad_x_BLD, rectified_BLD, 0)
        return grad_x_BLD, None, grad_weight_KD, None, None


def _overlaps(
    taps: int, length: int, *, dilation: int, left: int
) -> Iterator[tuple[int, slice, slice]]:
    """Tap, the positions it writes and those it reads, for each tap within reach."""
    for tap in range(taps):
        shift = tap * dilation - left
        first, last = max(0, -shift), min(length, length - shift)
        if first < last:
            yield tap, slice(first, last), slice(first + shift, last + shift)


class DepthwiseConv(nn.Module):
    """One filter of `kernel` taps for each channel, over relu(x) with padding set to zero.

    "same" looks at both sides; "left" is causal: (kernel - 1) * dilation zeros before the first
    position and none after the last.
    """

    def __init__(self, dim: int, *, kernel: int, dilation: int, padding: Padding) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(kernel, dim))
        self.dilation, self.reach = dilation, (kernel - 1) * dilation
        self.left = self.reach if padding == "left" else self.reach // 2
        nn.init.orthogonal_(self.weight)

    def forward(self, x_BLD: Tensor, place: Place) -> Tensor:
        if place.memory is not None and self.left == self.reach:
            return self._recall(x_BLD, place, place.memory)
        if x_BLD.device.type != "cpu":
            return self._native(x_BLD, place)
        out: Any = DepthwiseTaps.apply(x_BLD, place.mask_BL1, self.weight, self.dilation, self.left)
        return out

    def _native(self, x_BLD: Tensor, place: Place) -> Tensor:
        """The same by the device's own kernel; a CPU has none that is fast."""
        rectified_BDL = (x_BLD.relu() * place.mask_BL1).transpose(1, 2)
        padded_BDL = F.pad(rectified_BDL, (self.left, self.reach - self.left))
        weight_D1K = self.weight.t().unsqueeze(1)
        out_BDL = F.conv1d(
            padded_BDL, weight_D1K, dilation=self.dilation, groups=weight_D1K.shape[0]
        )
        return out_BDL.transpose(1, 2)

    def _recall(self, x_BLD: Tensor, place: Place, memory: Memory) -> Tensor:
        """New positions, after those that the memory holds."""
        new_BLD = x_BLD.relu() * place.mask_BL1
        seen_BLD = memory.roll(self, "inputs", new_BLD, size=self.reach)
        windows_BLDK = seen_BLD.unfold(1, self.reach + 1, 1)[..., :: self.dilation]
        return torch.einsum("bldk,kd->bld", windows_BLDK, self.weight)


class ConvStep(nn.Module):
    """LN(SepConv(relu(x))), (B, L, D) to (B, L, F); the normalisation comes last.

    MultiModel, arXiv:1706.05137, Sec. 2.1. The convolutions have no bias: the layer norm shifts.
    Units are "channels": a channel's filter and its column of the pointwise map. What comes out
    cannot be cut, for the norm is over all of it.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        *,
        kernel: int,
        padding: Padding,
        dilation: int = 1,
        units: UnitCounts = WHOLE,
    ) -> None:
        super().__init__()
        channels = units.count("channels", of=dim)
        self.choice = UnitChoice(channels, of=dim)
        self.depthwise = DepthwiseConv(channels, kernel=kernel, dilation=dilation, padding=padding)
        self.channel_gate = UnitGate()
        self.pointwise = nn.Linear(channels, out_dim, bias=False)
        self.norm = nn.LayerNorm(out_dim, eps=EPSILON)
        nn.init.orthogonal_(self.pointwise.weight)

    def forward(self, x_BLD: Tensor, place: Place) -> Tensor:
        x_BLD = self.channel_gate(self.depthwise(self.choice(x_BLD), place))
        return self.norm(self.pointwise(x_BLD))

    def own_units(self) -> tuple[UnitGroup, ...]:
        """The channels."""
        return separable_units(self.pointwise.in_features, depthwise_axis=1)

    def own_sites(self) -> tuple[ScaleSite, ...]:
        """The pointwise convolution."""
        return SEPARABLE_SITES


SEPARABLE_SITES = (ScaleSite("channel_gate", "channels", "pointwise.weight"),)


def separable_units(channels: int, *, depthwise_axis: int) -> tuple[UnitGroup, ...]:
    """The channels of a depthwise convolution that a pointwise one follows."""
    slices = (Slice("depthwise.weight", axis=depthwise_axis), Slice("pointwise.weight", axis=1))
    gates, numbers = ("channel_gate",), ("choice.numbers",)
    return (UnitGroup("channels", "filter", channels, gates, slices, numbers),)


class ConvBlock(nn.Module):
    """Four conv steps, two skips and dropout; the width stays.

        h1 = ConvStep_3(x);    h2 = x + ConvStep_3(h1)
        h3 = ConvStep_15(h2);  h4 = x + ConvStep_15,d(h3)      MultiModel, Sec. 2.1

    With `residual="standard"` the last line starts at h2, as released code does. `units` says how
    many channels each step has left.
    """

    def __init__(
        self,
        dim: int,
        *,
        padding: Padding,
        dilation: int,
        drop_prob: float,
        residual: Residual = "stack_input",
        units: UnitCounts = WHOLE,
    ) -> None:
        super().__init__()

        def step(name: str, **shape: int) -> ConvStep:
            return ConvStep(dim, dim, padding=padding, units=units.below(name), **shape)

        self.step1, self.step2 = step("step1", kernel=3), step("step2", kernel=3)
        self.step3 = step("step3", kernel=15)
        self.step4 = step("step4", kernel=15, dilation=dilation)
        self.dropout = nn.Dropout(drop_prob)
        self.residual = residual

    def forward(self, x_BLD: Tensor, place: Place) -> Tensor:
        h2_BLD = x_BLD + self.step2(self.step1(x_BLD, place), place)
        skip_BLD = x_BLD if self.residual == "stack_input" else h2_BLD
        return self.dropout(skip_BLD + self.step4(self.step3(h2_BLD, place), place))
