"""Which engines a recipe can be trained with, and why not with the others: a whole grid."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, get_args

from mmtrain.engines import EngineConfig, check_combination, check_optimizer, divisors
from mmtrain.planning.longest import LongestBatch
from mmtrain.recipe import Recipe
from mmtrain.run.prepare import check_decay_loss
from mmtrain.step.gradients import check_balancing
from mmtrain.step.passes import check_pruning
from pipelines.errors import MMTrainError
from pipelines.plan import check_divides


@dataclass(frozen=True, slots=True)
class Combination:
    """An engine on a number of workers; `refused` says why not, None: it can be."""

    engine: str
    zero_stage: int
    precision: str
    ep_size: int
    workers: int
    refused: str | None


def why_refused(
    recipe: Recipe, *, num_experts: Sequence[int], batches: Sequence[LongestBatch] = ()
) -> str | None:
    """What a run of the recipe would be refused for before it starts; None: for nothing here."""
    try:
        check_combination(recipe.engine, world_size=recipe.num_workers, num_experts=num_experts)
        check_optimizer(recipe.engine, optimizer=recipe.optimizer)
        check_balancing(recipe.balancing, engine=recipe.engine, schedule=recipe.schedule)
        check_pruning(recipe.pruning, tasks=recipe.tasks, engine=recipe.engine)
        check_decay_loss(recipe)
        for batch in batches:
            check_divides(
                batch.task, [batch.size],
                world_size=recipe.num_workers, accumulation=recipe.engine.accumulation,
            )  # fmt: skip
    except MMTrainError as error:
        return str(error)
    return None


def combinations(
    recipe: Recipe,
    *,
    num_experts: Sequence[int],
    batches: Sequence[LongestBatch],
    workers: Sequence[int],
) -> Iterator[Combination]:
    """Every engine, stage, precision and share of experts on each number of workers."""
    choices = [
        get_args(EngineConfig.model_fields[field].annotation)
        for field in ("name", "zero_stage", "precision")
    ]
    for count in workers:
        shares = {1, 2, recipe.engine.ep_size, *divisors(count)} if num_experts else {1, 2}
        for name, stage, precision, ep_size in product(*choices, sorted(shares)):
            engine: dict[str, Any] = {
                "name": name, "zero_stage": stage, "precision": precision, "ep_size": ep_size,
            }  # fmt: skip
            changed = recipe.engine.model_copy(update=engine)
            trial = recipe.model_copy(update={"engine": changed, "num_workers": count})
            refused = why_refused(trial, num_experts=num_experts, batches=batches)
            yield Combination(name, stage, precision, ep_size, count, refused)
