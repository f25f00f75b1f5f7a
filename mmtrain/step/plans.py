"""The plans of a run: which examples make a rank's part of a step, and of a validation."""

from collections.abc import Mapping

from mmtrain.checkpoint import Progress
from mmtrain.engines.ranks import Ranks
from mmtrain.recipe import Recipe
from pipelines.adaptive import Mixing
from pipelines.errors import CorpusError
from pipelines.plan import Plan
from pipelines.schedule import ScheduleConfig
from pipelines.shards import Manifest


def build_plan(
    recipe: Recipe, manifests: dict[str, Manifest], *, ranks: Ranks, start: Progress
) -> Plan:
    """The plan of a rank; the sequence of examples over all ranks is the same for any number."""
    schedule = recipe.schedule
    if start.mixing:
        decided = Mixing.model_validate(start.mixing).decisions
        schedule = schedule.model_copy(update={"rates_at": decided})
    return Plan(
        manifests,
        schedule,
        num_steps=recipe.num_steps,
        seed=recipe.seed,
        rank=ranks.rank,
        world_size=ranks.world_size,
        shuffle_window=recipe.stream.shuffle_window,
        accumulation=recipe.engine.accumulation,
        start_step=start.step,
        start_cursors=start.cursors or None,
        examples="augmented",
    )


def validation_plan(recipe: Recipe, manifests: dict[str, Manifest], *, ranks: Ranks) -> Plan:
    """The same few batches of every task, at every validation."""
    return Plan(
        manifests,
        ScheduleConfig(name="alternating"),
        num_steps=recipe.validation_batches * len(manifests),
        rank=ranks.rank,
        world_size=ranks.world_size,
    )


def check_corpora(progress: Progress, corpora: Mapping[str, Manifest]) -> None:
    """The training splits must be those that the cursors count in; older checkpoints do not say.

    Raises:
        CorpusError: one has other examples; names it with both digests.
    """
    for task, digest in progress.corpora.items():
        if task in corpora and corpora[task].digest != digest:
            raise CorpusError(
                f"{corpora[task].folder} is not the corpus that the run was saved with at step "
                f"{progress.step}: its digest is {corpora[task].digest[:12]}, it was "
                f"{digest[:12]}; its cursor would count other examples. Bring that corpus back, or "
                "begin anew with another --out"
            )
