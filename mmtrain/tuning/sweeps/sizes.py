"""Sweeps of the model's sizes."""

from typing import Any

from mmtrain.recipe import Recipe
from mmtrain.tuning.sweep import Choice, SweepConfig, SweepError

_SIZES = (
    "model_dim", "num_layers", "mlp_dim", "expert_dim", "encoder_conv_blocks", "decoder_blocks",
    "widths",
)  # fmt: skip


def model_size(recipe: Recipe) -> SweepConfig:
    """Widths and depths of the body, halved, the same and doubled: score over parameters."""
    body = recipe.model.body
    space = {
        f"model.body.{field}": Choice(values=_around(getattr(body, field)))
        for field in _SIZES
        if field in type(body).model_fields
    }
    if not space:
        raise SweepError(f"family {recipe.model.family} has none of {', '.join(_SIZES)}")
    return SweepConfig(
        name="model_size", objectives=("score", "parameters"), scheduler="none", space=space
    )


def _around(size: Any) -> tuple[Any, ...]:
    """Half of a size, itself, twice; of several sizes all at once."""
    if isinstance(size, int):
        return tuple(sorted({max(1, size // 2), size, size * 2}))
    return tuple([max(1, round(one * by)) for one in size] for by in (0.5, 1, 2))
