"""The timing signal: sines that tell positions apart, added to a sequence."""

import functools

import torch
from torch import Tensor


def timing_signal(length: int, *, depth: int, like: Tensor) -> Tensor:
    """Signal of positions 0 to length - 1, (length, depth), with the dtype and device of `like`.

        Delta(2c) = 10000^(-2c/depth);  signal[t, 2c] = sin(t Delta(2c)),
        signal[t, 2c+1] = cos(t Delta(2c))          MultiModel, arXiv:1706.05137, Sec. 2.2

    At position 0 it is (0, 1, 0, 1, ...).
    """
    rounded = 1 << max(length - 1, 63).bit_length()  # few tables, whatever the lengths
    return _table(rounded, depth, like.dtype, like.device)[:length]


@functools.lru_cache(maxsize=32)
def _table(length: int, depth: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    pairs = torch.arange(0, depth, 2, dtype=torch.float64)
    rates = torch.pow(torch.tensor(10000.0, dtype=torch.float64), -pairs / depth)
    angles = torch.arange(length, dtype=torch.float64)[:, None] * rates
    signal = torch.stack([angles.sin(), angles.cos()], dim=-1).reshape(length, -1)
    return signal[:, :depth].to(device=device, dtype=dtype)


def forget_tables() -> None:
    """Drops all tables: those made while a model was traced without data have none."""
    _table.cache_clear()
