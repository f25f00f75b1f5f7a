"""Convolutions over grids that no CPU's kernels get wrong."""

from torch import Tensor, nn

Pair = tuple[int, int]


class GridFilters(nn.Conv2d):
    """`nn.Conv2d` whose stride over a kernel of 1 is taken before the convolution, not within it.

    Every s-th position, then a kernel of 1 with stride 1: the same values from the same weights.
    oneDNN 3.12 (torch 2.13.0), on CPUs with AVX2 and no AVX-512, writes beyond its buffer in the
    weight gradient of a 1x1 convolution with a stride over channels-last input
    (`jit_avx2_1x1_convolution_bwd_weights_t` with its `rtus_driver_t`): the process aborts, at once
    or later. `ONEDNN_MAX_CPU_ISA=AVX2` shows it anywhere; a test forbids the pattern in all models.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        kernel: Pair,
        *,
        stride: Pair,
        padding: Pair,
        groups: int = 1,
        bias: bool = False,
    ) -> None:
        self.steps: Pair = (1, 1)
        if kernel == (1, 1):
            self.steps, stride = stride, (1, 1)
        super().__init__(dim, out_dim, kernel, stride, padding, groups=groups, bias=bias)

    def forward(  # type: ignore[override]  # torch's own names no shape
        self, x_BCYX: Tensor
    ) -> Tensor:
        if self.steps != (1, 1):
            x_BCYX = x_BCYX[:, :, :: self.steps[0], :: self.steps[1]]
        return super().forward(x_BCYX)
