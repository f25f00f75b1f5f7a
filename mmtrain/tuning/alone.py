"""Tasks tuned each by itself, and the recipe that joins them.

In PolyViT every task keeps, trained together with others, the hyper-parameters of its own
single-task run (arXiv:2111.12993, Sec. 3.3), so that nothing is searched for the joint run.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from mmtrain.recipe import Recipe
from mmtrain.run.task_steps import built_examples, built_splits, task_steps
from mmtrain.store.config import TrackingConfig
from mmtrain.tuning.run import BEST, SWEEP, run_sweep, tracked_sweep
from mmtrain.tuning.score import REFERENCES
from mmtrain.tuning.sweep import SweepConfig, SweepError, apply_values
from mmtrain.tuning.trials import JointOutcome, SweepOutcome, TrialRecord
from pipelines.files import write_whole
from pipelines.ownership import owns_out


@owns_out
def run_alone_sweeps(
    recipe: Recipe,
    sweep: SweepConfig,
    *,
    out: Path,
    data_dir: Path,
    resume: bool = False,
    tracking: TrackingConfig | None = None,
    console: Console | None = None,
    **where: Any,
) -> JointOutcome:
    """Tunes each task of a recipe alone, then joins their values; see `run_sweep`.

    Each task's sweep is in `tasks/<task>`, its run in MLflow under the joint one.
    """
    began, out, console = time.monotonic(), out.absolute(), console or Console()
    sizes = built_examples(built_splits(recipe, data_dir))
    parts = {task: alone_sweep(sweep, task) for task in recipe.tasks}  # refused before any starts
    out.mkdir(parents=True, exist_ok=True)
    name, outcomes = f"{sweep.name}_per_task", dict[str, SweepOutcome]()
    with tracked_sweep(tracking, out=out, name=name, resume=resume) as (tracker, under):
        for task, part in parts.items():
            console.print(f"{task} alone ...", highlight=False)
            outcomes[task] = run_sweep(
                alone_recipe(recipe, task, num_examples=sizes),
                part,
                out=out / "tasks" / task,
                data_dir=data_dir,
                resume=resume and (out / "tasks" / task / SWEEP).exists(),
                tracking=under.model_copy(update={"run_name": f"{sweep.name} {task}"}),
                console=console,
                **where,
            )
        best = {task: outcome.best_trial for task, outcome in outcomes.items()}
        joint = joint_recipe(recipe, best)
        write_whole(out / BEST, joint.model_dump_json(indent=1) + "\n")
        references = {task: record.tasks[task].value for task, record in best.items()}
        write_whole(out / REFERENCES, json.dumps(references, indent=1) + "\n")
        for file in (BEST, REFERENCES):
            tracker.log_artifact(out / file)
    return JointOutcome(
        name=sweep.name,
        out=out,
        best_recipe=out / BEST,
        seconds=time.monotonic() - began,
        tasks=outcomes,
    )


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
    own = {field: one for field, one in sweep.space.items() if field.startswith(f"tasks.{task}.")}
    if not own:
        raise SweepError(
            f"the space has no field of task {task}; give tasks.{task}.FIELD, or name the tasks "
            "to tune with --task"
        )
    return sweep.model_copy(
        update={
            "space": own,  # rates name all tasks, and one task has all steps:
            "settings": tuple(s for s in sweep.settings if not s.startswith("schedule.")),
            "weights": {},
            "references": {name: r for name, r in sweep.references.items() if name == task},
        }
    )


def joint_recipe(recipe: Recipe, best: Mapping[str, TrialRecord]) -> Recipe:
    """The recipe with the values that each task was best with alone."""
    return apply_values(
        recipe, {field: value for record in best.values() for field, value in record.values.items()}
    )
