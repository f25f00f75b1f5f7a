"""How many mini-batches each task gets in a recipe's run, before the run is started."""

from collections.abc import Mapping
from pathlib import Path

from mmtrain.recipe import Recipe
from pipelines.errors import CorpusError
from pipelines.schedule import build_schedule
from pipelines.scheduled import scheduled
from pipelines.shards import Manifest, open_task


def task_steps(recipe: Recipe, *, num_examples: Mapping[str, int] | None = None) -> dict[str, int]:
    """Mini-batches of each task in a run of the recipe.

    Args:
        recipe: the run.
        num_examples: of the training splits that are built, by task; None: none is known.

    Raises:
        PlanError: the steps cannot be shared out, or the schedule goes by sizes not known.
    """
    tasks = scheduled(recipe.tasks, num_examples=num_examples or {})
    schedule = build_schedule(
        recipe.schedule, tasks=tasks, num_steps=recipe.num_steps, seed=recipe.seed
    )
    return schedule.counts_before(recipe.num_steps)


def built_splits(recipe: Recipe, data_dir: Path) -> dict[str, Manifest | None]:
    """The training split of each task; None: it is not built as the task says."""
    return {name: _built(recipe, name, data_dir) for name in recipe.tasks}


def built_examples(splits: Mapping[str, Manifest | None]) -> dict[str, int]:
    """Examples of the splits that are built."""
    return {name: split.num_examples for name, split in splits.items() if split}


def _built(recipe: Recipe, task: str, data_dir: Path) -> Manifest | None:
    try:
        return open_task(recipe.tasks[task], split="train", data_dir=data_dir)
    except CorpusError:
        return None
