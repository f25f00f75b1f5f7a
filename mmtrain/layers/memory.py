"""What causal layers keep while a target is decoded one position after the other.

A layer that looks back writes here what later positions will look at: a convolution its last
inputs, an attention its keys and values. With a memory, a layer is given the new positions only,
and returns what the full pass would have returned for them.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Memory:
    """Tensors kept by layer and name; axis 0 is the example, axis 1 the position."""

    def __init__(self) -> None:
        self._kept: dict[tuple[nn.Module, str], Tensor] = {}
        self._buffers: dict[tuple[nn.Module, str], Tensor] = {}

    def append(self, layer: nn.Module, name: str, new_BL: Tensor) -> Tensor:
        """Everything appended so far, the new positions last; amortised O(1) copies a position."""
        key = (layer, name)
        past = self._kept[key].shape[1] if key in self._kept else 0
        length = past + new_BL.shape[1]
        buffer = self._buffers.get(key)
        if buffer is None or buffer.shape[1] < length:
            grown = new_BL.new_empty((new_BL.shape[0], max(32, 2 * length), *new_BL.shape[2:]))
            if past:
                grown[:, :past] = self._kept[key]
            self._buffers[key] = buffer = grown
        buffer[:, past:length] = new_BL
        self._kept[key] = buffer[:, :length]
        return self._kept[key]

    def roll(self, layer: nn.Module, name: str, new_BL: Tensor, *, size: int) -> Tensor:
        """The `size` positions before the new ones (zeros at the start), then the new ones."""
        key = (layer, name)
        past = self._kept.get(key)
        if past is None:
            past = new_BL.new_zeros((new_BL.shape[0], size, *new_BL.shape[2:]))
        joined = torch.cat([past, new_BL], dim=1)
        self._kept[key] = joined[:, joined.shape[1] - size :]
        return joined

    def once(self, layer: nn.Module, name: str, make: Callable[[], Tensor]) -> Tensor:
        """What `make` returned the first time."""
        key = (layer, name)
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def length(self, layer: nn.Module, name: str) -> int:
        """Positions kept."""
        key = (layer, name)
        return self._kept[key].shape[1] if key in self._kept else 0

    def select(self, rows_B: Tensor) -> None:
        """Goes on with these examples: a beam keeps some rows and copies others."""
        self._kept = {key: kept.index_select(0, rows_B) for key, kept in self._kept.items()}
        self._buffers = {}
