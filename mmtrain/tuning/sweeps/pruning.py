"""Sweeps of how masks are learned, for models that are cut down to subsets of their subtasks."""

from mmtrain.recipe import Recipe
from mmtrain.tuning.sweep import LogUniform, SweepConfig, SweepError


def gamma(recipe: Recipe) -> SweepConfig:
    """Price of units with sigma and beta: score of the cut networks, their cost, their latency."""
    if recipe.pruning is None:
        raise SweepError(
            f"recipe {recipe.name} has no masks; use one with `pruning`, e.g. san_resnet"
        )
    price = recipe.pruning.gamma or 0.1
    return SweepConfig(
        name="gamma",
        objectives=("subset_score", "kept_flops", "latency_ms"),
        scheduler="none",
        space={
            "pruning.gamma": LogUniform(low=price / 10, high=price * 10),
            "pruning.sigma": LogUniform(low=0.3, high=3.0),
            "pruning.beta": LogUniform(low=1.0, high=30.0),
        },
    )
