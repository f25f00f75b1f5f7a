"""A sequence inside the model: what stems, bodies and heads hand on."""

from dataclasses import dataclass

from torch import Tensor

from mmtrain.layers.moe import Balance


@dataclass(frozen=True, slots=True)
class Encoded:
    """A sequence inside the model.

    Args:
        values_BSD: the positions.
        mask_BS: True where a position is real.
        grid: (Y, X) when S = Y * X row-major; None for a sequence.
        balance: how the experts on the way here were used.
        drop_layer: stochastic depth of the task, the share dropped of the last layer.
    """

    values_BSD: Tensor
    mask_BS: Tensor
    grid: tuple[int, int] | None = None
    balance: tuple[Balance, ...] = ()
    drop_layer: float = 0.0
