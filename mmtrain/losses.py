"""Losses. Each returns a sum with its count, never a mean: ranks and micro-batches add both, then divide once."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class LossSum:
    """Loss summed over valid targets; ranks add totals and counts, then divide once."""

    total: Tensor
    count: Tensor
