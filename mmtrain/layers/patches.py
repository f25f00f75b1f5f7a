"""Patches: a grid of any number of axes cut into equal blocks, each of which becomes a position.

A class token stands before the patches, and every position has its own learned vector.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.errors import MMTrainError

POSITION_DEVIATION = 0.02  # of learned positions at the start; arXiv:2010.11929's released code
TRUNCATED_DEVIATION = 0.879625661  # of a unit normal cut off at two deviations


class InputSizeError(MMTrainError):
    """An input has not the size that a net was built for, or a size that patches do not divide."""


def grid_of(size: Sequence[int], *, patch: Sequence[int], axes: Sequence[str]) -> tuple[int, ...]:
    """Patches along each axis.

    Raises:
        InputSizeError: an axis is shorter than a patch or is not a multiple of it.
    """
    for length, step, axis in zip(size, patch, axes, strict=True):
        if length < step:
            raise InputSizeError(
                f"{length} {axis} are fewer than the {step} of a patch; use a patch of at most "
                f"{length} {axis}, or longer inputs"
            )
        if length % step:
            near = length // step * step
            raise InputSizeError(
                f"{length} {axis} are no multiple of the {step} of a patch; use {near} or "
                f"{near + step} {axis}, or a patch that divides {length}"
            )
    return tuple(length // step for length, step in zip(size, patch, strict=True))


def known(*sizes: int | None) -> tuple[int, ...]:
    """Sizes that a config was given, or that were taken from its tasks (`fitting.py`)."""
    assert None not in sizes, "a net is built of a config that was fitted to its tasks"
    return tuple(size for size in sizes if size is not None)


def check_size(inputs: Tensor, expected: Sequence[int], *, net: str) -> None:
    """Refuses inputs (B, ...) whose other axes are not as expected."""
    if tuple(inputs.shape[1:]) != tuple(expected):
        raise InputSizeError(
            f"net {net} takes inputs of {_by(expected)} and was given {_by(inputs.shape[1:])}; set "
            f"its size in model.nets.{net}, or resize the task's inputs to it"
        )


def _by(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))


def cut(grid_BC: Tensor, patch: Sequence[int]) -> Tensor:
    """(B, n1, .., nk, C) to (B, S, W): blocks row by row, each in the order C, p1, .., pk."""
    axes = len(patch)
    parts = [(length // step, step) for length, step in zip(grid_BC.shape[1:], patch, strict=False)]
    blocks = grid_BC.reshape(grid_BC.shape[0], *(n for part in parts for n in part), -1)
    outer, inner = range(1, 2 * axes, 2), range(2, 2 * axes + 1, 2)
    blocks = blocks.permute(0, *outer, 2 * axes + 1, *inner)
    return blocks.flatten(axes + 1).flatten(1, axes)


class PatchEmbedding(nn.Module):
    """A convolution whose kernel and stride are the patch: one vector of width D for each.

    The weight has a convolution's shape, (D, C, p1, .., pk), and is applied as one matrix product.
    """

    def __init__(self, channels: int, dim: int, *, patch: Sequence[int]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim, channels, *patch))
        self.bias = nn.Parameter(torch.zeros(dim))
        lecun_normal_(self.weight)

    def forward(self, grid_BC: Tensor) -> Tensor:
        """(B, n1, .., nk, C) to (B, S, D)."""
        patches_BSW = cut(grid_BC.to(self.weight.dtype), self.weight.shape[2:])
        return F.linear(patches_BSW, self.weight.flatten(1), self.bias)


class Tokens(nn.Module):
    """A class token before the positions, then a learned vector added to each, then dropout."""

    def __init__(self, num_tokens: int, dim: int, *, drop_prob: float) -> None:
        super().__init__()
        self.class_token = nn.Parameter(torch.zeros(dim))
        self.positions = nn.Parameter(torch.empty(1 + num_tokens, dim))
        self.dropout = nn.Dropout(drop_prob)
        nn.init.normal_(self.positions, std=POSITION_DEVIATION)

    def forward(self, values_BSD: Tensor) -> Tensor:
        """(B, S, D) to (B, 1 + S, D); S may be less than the positions there are."""
        class_B1D = self.class_token.expand(values_BSD.shape[0], 1, -1)
        tokens_BSD = torch.cat([class_B1D, values_BSD], dim=1)
        return self.dropout(tokens_BSD + self.positions[: tokens_BSD.shape[1]])


def lecun_normal_(weight: Tensor) -> None:
    """Normal with variance 1 / inputs of an output, cut off at two deviations."""
    fan_in = weight[0].numel()
    deviation = math.sqrt(1 / fan_in) / TRUNCATED_DEVIATION
    nn.init.trunc_normal_(weight, std=deviation, a=-2 * deviation, b=2 * deviation)
