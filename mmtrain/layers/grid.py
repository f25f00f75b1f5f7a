"""Convolutions over grids, (B, Y, X, C): images, spectrograms, and sounds as grids one bin wide.

Padding is symmetric, so that an axis of n positions and stride s leaves ceil(n / s) and what is
behind the real rows never moves them: rows of padding are masked before each convolution and pool.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtrain.layers.conv import EPSILON, SEPARABLE_SITES, separable_units
from mmtrain.layers.strided import GridFilters, Pair
from mmtrain.layers.units import WHOLE, ScaleSite, UnitChoice, UnitCounts, UnitGate, UnitGroup

Ends = Literal["same", "left"]
Entry = Literal["relu", "linear"]  # what an ordinary convolution does first


def stride_lengths(lengths_B: Tensor, stride: int) -> Tensor:
    """Real rows left after a stride: ceil(n / s)."""
    return (lengths_B + stride - 1) // stride


def row_mask(lengths_B: Tensor, rows: int) -> Tensor:
    """(B, Y) bool, True for the first `lengths_B` rows."""
    return torch.arange(rows, device=lengths_B.device) < lengths_B[:, None]


def mask_rows(x_BYXC: Tensor, lengths_B: Tensor | None, *, fill: float = 0.0) -> Tensor:
    """The grid with its padding rows set to `fill`; None: all rows are real."""
    if lengths_B is None:
        return x_BYXC
    keep_BY = row_mask(lengths_B, x_BYXC.shape[1])
    return x_BYXC.masked_fill(~keep_BY[:, :, None, None], fill)


def standardise(x_BYXC: Tensor, lengths_B: Tensor | None) -> Tensor:
    """(x - mean) / max(std, 1 / sqrt(count)) over each example's real rows; padding becomes 0."""
    x_BYXC = mask_rows(x_BYXC, lengths_B)
    rows = x_BYXC.shape[1] if lengths_B is None else lengths_B.clamp(min=1)[:, None, None, None]
    count = rows * x_BYXC[0, 0].numel()
    mean = x_BYXC.sum((1, 2, 3), keepdim=True) / count
    centred_BYXC = mask_rows(x_BYXC - mean, lengths_B)
    deviation = (centred_BYXC.square().sum((1, 2, 3), keepdim=True) / count).sqrt()
    least = torch.as_tensor(count, dtype=x_BYXC.dtype, device=x_BYXC.device).rsqrt()
    return centred_BYXC / torch.maximum(deviation, least)


class GridConv(nn.Module):
    """LN(Conv(x)), or LN(Conv(relu(x))): an ordinary convolution, "linear" where x is raw values.

    The convolution has a bias. A separable one without, on one channel, followed by a layer norm,
    gives every position the same pattern up to its sign, and nothing can be learned from that.
    """

    def __init__(self, dim: int, out_dim: int, *, kernel: Pair, stride: Pair, entry: Entry) -> None:
        super().__init__()
        self.entry = entry
        padding = (kernel[0] // 2, kernel[1] // 2)
        self.conv = GridFilters(dim, out_dim, kernel, stride=stride, padding=padding, bias=True)
        self.norm = nn.LayerNorm(out_dim, eps=EPSILON)
        nn.init.orthogonal_(self.conv.weight)

    def forward(self, x_BYXC: Tensor, lengths_B: Tensor | None) -> Tensor:
        x_BYXC = x_BYXC.relu() if self.entry == "relu" else x_BYXC
        x_BYXC = mask_rows(x_BYXC, lengths_B).to(self.conv.weight.dtype)
        return self.norm(self.conv(x_BYXC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class GridConvStep(nn.Module):
    """LN(SepConv(relu(x))) over a grid; MultiModel, arXiv:1706.05137, Sec. 2.1.

    `ends="left"` pads the first axis before its first row only, so that no row sees a later one.
    Units are "channels", as those of a `ConvStep`.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        *,
        kernel: Pair,
        stride: Pair = (1, 1),
        ends: Ends = "same",
        units: UnitCounts = WHOLE,
    ) -> None:
        super().__init__()
        self.above = kernel[0] - 1 if ends == "left" else 0
        padding = (0 if ends == "left" else kernel[0] // 2, kernel[1] // 2)
        count = units.count("channels", of=dim)
        self.choice = UnitChoice(count, of=dim)
        self.depthwise = GridFilters(
            count, count, kernel, stride=stride, padding=padding, groups=count
        )
        self.channel_gate = UnitGate()
        self.pointwise = nn.Linear(count, out_dim, bias=False)
        self.norm = nn.LayerNorm(out_dim, eps=EPSILON)
        nn.init.orthogonal_(self.depthwise.weight)
        nn.init.orthogonal_(self.pointwise.weight)

    def forward(self, x_BYXC: Tensor, lengths_B: Tensor | None) -> Tensor:
        x_BYXC = mask_rows(self.choice(x_BYXC).relu(), lengths_B)
        if self.above:
            x_BYXC = F.pad(x_BYXC, (0, 0, 0, 0, self.above, 0))
        x_BYXC = self.depthwise(x_BYXC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.norm(self.pointwise(self.channel_gate(x_BYXC)))

    def own_units(self) -> tuple[UnitGroup, ...]:
        """The channels."""
        return separable_units(self.pointwise.in_features, depthwise_axis=0)

    def own_sites(self) -> tuple[ScaleSite, ...]:
        """The pointwise convolution."""
        return SEPARABLE_SITES


def max_pool(
    x_BYXC: Tensor, lengths_B: Tensor | None, *, kernel: Pair, stride: Pair, ends: Ends = "same"
) -> Tensor:
    """The largest value of each window, channel by channel; padding never wins."""
    lowest = torch.finfo(x_BYXC.dtype).min
    x_BYXC = mask_rows(x_BYXC, lengths_B, fill=lowest)
    padding = (kernel[0] // 2, kernel[1] // 2)
    if ends == "left":
        x_BYXC = F.pad(x_BYXC, (0, 0, 0, 0, kernel[0] - 1, 0), value=lowest)
        padding = (0, kernel[1] // 2)
    pooled = F.max_pool2d(x_BYXC.permute(0, 3, 1, 2), kernel, stride, padding)
    left_B = None if lengths_B is None else stride_lengths(lengths_B, stride[0])
    return mask_rows(pooled.permute(0, 2, 3, 1), left_B)  # a window of padding alone had `lowest`


class ConvRes(nn.Module):
    """Two conv steps and a pool beside a strided shortcut.

        ConvRes(x, F) = MaxPool_3x3,s(ConvStep_F(ConvStep_F(x))) + LN(Conv_1x1,s(relu(x)))

    MultiModel, Sec. 2.5.2. `shortcut="linear"` leaves out the shortcut's ReLU. `units` says how
    many channels each step has left.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        *,
        kernel: Pair,
        stride: Pair,
        shortcut: Entry,
        units: UnitCounts = WHOLE,
    ) -> None:
        super().__init__()
        self.step1 = GridConvStep(dim, out_dim, kernel=kernel, units=units.below("step1"))
        self.step2 = GridConvStep(out_dim, out_dim, kernel=kernel, units=units.below("step2"))
        self.across = nn.Linear(dim, out_dim, bias=False)
        self.norm = nn.LayerNorm(out_dim, eps=EPSILON)
        self.kernel, self.stride, self.shortcut = kernel, stride, shortcut
        nn.init.orthogonal_(self.across.weight)

    def forward(self, x_BYXC: Tensor, lengths_B: Tensor | None) -> Tensor:
        deep_BYXC = self.step2(self.step1(x_BYXC, lengths_B), lengths_B)
        pooled_BYXC = max_pool(deep_BYXC, lengths_B, kernel=self.kernel, stride=self.stride)
        kept_BYXC = x_BYXC[:, :: self.stride[0], :: self.stride[1]]
        kept_BYXC = kept_BYXC.relu() if self.shortcut == "relu" else kept_BYXC
        return pooled_BYXC + self.norm(self.across(kept_BYXC))
