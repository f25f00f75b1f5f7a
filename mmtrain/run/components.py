"""A recipe's components: each is given what it needs, and knows nothing of the recipe."""

from mmtrain.checkpoint import Progress
from mmtrain.engines.optim import OptimizerConfig
from mmtrain.engines.ranks import Ranks
from mmtrain.models.model import MultiTaskModel
from mmtrain.recipe import Recipe
from mmtrain.run.corpora import check_corpora
from mmtrain.step.feed import Feed
from mmtrain.step.gradient_monitor import GradientMonitor
from mmtrain.step.objective import Objective
from mmtrain.step.rates import on_one_clock
from pipelines.adaptive import Mixing
from pipelines.plan import Plan
from pipelines.schedule import ScheduleConfig
from pipelines.shards import Manifest


def training_plan(
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


def build_feed(
    recipe: Recipe, manifests: dict[str, Manifest], *, ranks: Ranks, start: Progress
) -> Feed:
    """A rank's micro-batches from `start` on.

    Raises:
        CorpusError: a split is not the one that `start` counts in.
    """
    check_corpora(start, manifests)
    plan = training_plan(recipe, manifests, ranks=ranks, start=start)
    return Feed(plan, config=recipe.stream, mixing=start.mixing)


def build_monitor(recipe: Recipe, model: MultiTaskModel) -> GradientMonitor:
    """Samples how the tasks' gradients agree; `model` is not yet an engine's."""
    every = recipe.monitor_every
    return GradientMonitor(model, tasks=tuple(recipe.tasks), every=every, seed=recipe.seed)


def build_objective(recipe: Recipe, ranks: Ranks) -> Objective:
    """The loss of the recipe's steps on these ranks."""
    return Objective(
        tasks=recipe.tasks,
        ranks=ranks,
        seed=recipe.seed,
        accumulation=recipe.engine.accumulation,
        weight_decay=recipe.optimizer.weight_decay_loss,
        balancing=recipe.balancing,
    )


def run_optimizer(recipe: Recipe) -> OptimizerConfig:
    """The optimizer's config with the warm-up of the whole run."""
    tasks = recipe.tasks.values()
    tasks_per_step = recipe.schedule.kind.together(len(tasks))
    return on_one_clock(recipe.optimizer, tasks, tasks_per_step=tasks_per_step)
