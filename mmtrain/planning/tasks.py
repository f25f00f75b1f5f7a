"""The tasks of a run before it starts: what is built of their corpora, and how long each trains."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmtrain.planning.longest import LongestBatch
from mmtrain.recipe import Recipe
from mmtrain.run.task_steps import built_examples, task_steps
from pipelines.plan import one_vocabulary
from pipelines.shards import Manifest, vocabulary_path
from pipelines.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class TaskPlan:
    """A task in a run.

    Args:
        batch_sizes: examples of a global batch, of each length bucket.
        micro_sizes: examples of a rank's micro-batch, likewise, rounded up.
        longest_input: positions of axis 1, padding included.
        longest_target: likewise.
        steps: mini-batches in the run.
        examples: of the training split; None: it is not built.
        epochs: how often each is read; None: likewise.
    """

    batch_sizes: tuple[int, ...]
    micro_sizes: tuple[int, ...]
    longest_input: int
    longest_target: int
    steps: int
    examples: int | None
    epochs: float | None


def built_vocabulary(
    manifests: Mapping[str, Manifest | None], *, data_dir: Path
) -> Vocabulary | None:
    """The joint vocabulary of a run's text; None: it has none, or not all of it is built."""
    if None in manifests.values():
        return None
    digest = one_vocabulary({name: held for name, held in manifests.items() if held})
    return Vocabulary.load(vocabulary_path(data_dir, digest=digest)) if digest else None


def task_plans(
    recipe: Recipe,
    batches: Mapping[str, Sequence[LongestBatch]],
    manifests: Mapping[str, Manifest | None],
) -> dict[str, TaskPlan]:
    """Each task of a recipe, by what is built of it and its longest batches."""
    equal = dict.fromkeys(manifests, 1) if sizes_are_assumed(recipe, manifests) else None
    steps = task_steps(recipe, num_examples=equal or built_examples(manifests))
    parts = recipe.num_workers * recipe.engine.accumulation
    plans: dict[str, TaskPlan] = {}
    for name, some in batches.items():
        manifest, sizes = manifests[name], tuple(batch.size for batch in some)
        examples = manifest.num_examples if manifest else None
        mean = sum(sizes) / len(sizes)
        plans[name] = TaskPlan(
            batch_sizes=sizes,
            micro_sizes=tuple(-(-size // parts) for size in sizes),
            longest_input=max(batch.inputs[0] for batch in some),
            longest_target=max(batch.targets[0] for batch in some),
            steps=steps[name],
            examples=examples,
            epochs=steps[name] * mean / examples if examples else None,
        )
    return plans


def sizes_are_assumed(recipe: Recipe, manifests: Mapping[str, Manifest | None]) -> bool:
    """Whether the schedule goes by sizes of corpora that are not all built."""
    return recipe.schedule.kind.shares_by == "sizes" and None in manifests.values()
