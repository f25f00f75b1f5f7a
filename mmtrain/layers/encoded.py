"""A sequence inside the model: what stems, bodies and heads hand on."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from mmtrain.layers.moe import Balance


@dataclass(frozen=True, slots=True)
class Encoded:
    """A sequence inside the model.

    Args:
        values_BSD: the positions.
        mask_BS: True where a position is real.
        grid: (Y, X) when S = Y * X row-major, or 1 + Y * X behind a class token; None for a
            sequence.
        balance: how the experts on the way here were used.
        drop_layer: stochastic depth of the task, the share dropped of the last layer.
        padding: "none": every position is real, known without a look at the mask.
        patch: rows and columns of the input that a position of the grid stands for.
        frames: this many rows of B after each other are frames of one example, until the body has
            combined them.
    """

    values_BSD: Tensor
    mask_BS: Tensor
    grid: tuple[int, int] | None = None
    balance: tuple[Balance, ...] = ()
    drop_layer: float = 0.0
    padding: Literal["none", "masked"] = "masked"
    patch: tuple[int, int] | None = None
    frames: int = 1
