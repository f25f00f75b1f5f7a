"""Tasks tuned each by itself, and the recipe that joins them.

In PolyViT every task keeps, trained together with others, the hyper-parameters of its own
single-task run (arXiv:2111.12993, Sec. 3.3), so that nothing is searched for the joint run.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from mmtrain.recipe import Recipe
from mmtrain.run.task_steps import task_steps
from mmtrain.tuning.score import REFERENCES
from mmtrain.tuning.sweep import SweepConfig, SweepError, Values, apply_values
from mmtrain.tuning.trials import TrialRecord
from pipelines.files import write_whole


def alone_recipe(
    recipe: Recipe, task: str, *, num_examples: Mapping[str, int] | None = None
) -> Recipe:
    """The recipe of one task, for as many steps as it has in the joint run."""
    steps = task_steps(recipe, num_examples=num_examples)
    return recipe.only([task]).with_(num_steps=steps[task])


def alone_sweep(sweep: SweepConfig, task: str) -> SweepConfig:
    """The part of a sweep that is the task's own.

    Raises:
        SweepError: the sweep has a field of all tasks, or none of this one.
    """
    shared = [field for field in sweep.space if not field.startswith("tasks.")]
    if shared:
        raise SweepError(
            f"{', '.join(shared)}: all tasks share it, so it cannot be tuned for each alone; leave "
            "it out, or leave out --per-task"
        )
    own = {
        field: distribution
        for field, distribution in sweep.space.items()
        if field.startswith(f"tasks.{task}.")
    }
    if not own:
        raise SweepError(
            f"the space has no field of task {task}; give tasks.{task}.FIELD, or name the tasks "
            "to tune with --task"
        )
    of_others = ("schedule.",)  # rates name all tasks, and one task has all steps
    return sweep.model_copy(
        update={
            "space": own,
            "settings": tuple(s for s in sweep.settings if not s.startswith(of_others)),
            "weights": {},
            "references": {name: r for name, r in sweep.references.items() if name == task},
        }
    )


def joint_values(best: Mapping[str, TrialRecord]) -> Values:
    """Values of all tasks' best trials together."""
    return {field: value for record in best.values() for field, value in record.values.items()}


def joint_recipe(recipe: Recipe, best: Mapping[str, TrialRecord]) -> Recipe:
    """The recipe with the values that each task was best with alone."""
    return apply_values(recipe, joint_values(best))


def write_references(best: Mapping[str, TrialRecord], *, out: Path) -> Path:
    """Metrics of the tasks' best trials: 1 of their scores in sweeps of the joint run."""
    path = out / REFERENCES
    values = {task: record.tasks[task].value for task, record in best.items()}
    write_whole(path, json.dumps(values, indent=1) + "\n")
    return path
