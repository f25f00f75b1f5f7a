"""The trained model of a run as a bundle, with where it comes from."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from mmtrain.bundle import Lineage, bundle_task, code_version, save_bundle
from mmtrain.files import BUNDLE
from mmtrain.losses.balancing import without_log_variances
from mmtrain.models.model import MultiTaskModel
from mmtrain.recipe import Recipe
from mmtrain.run.corpora import Corpora
from mmtrain.run.job import Job, Spent


def export_run(
    job: Job,
    recipe: Recipe,
    corpora: Corpora,
    *,
    model: MultiTaskModel,
    weights: Mapping[str, Tensor],
    spent: Spent,
) -> Path:
    """Writes the trained model as the run's bundle."""
    lineage = Lineage(
        recipe=recipe.name,
        recipe_digest=recipe.digest(),
        code_version=code_version(),
        corpora={task: manifest.digest for task, manifest in corpora.train.items()},
        run_id=job.run_id,
        step=job.until or recipe.num_steps,
        seconds=spent.seconds,
        task_steps=dict(spent.task_steps),
        task_seconds=dict(spent.task_seconds),
        init_from=recipe.init_from,
    )
    return save_bundle(
        job.out / BUNDLE,
        model=model.config,
        tasks={
            name: bundle_task(corpora.train[name].task, spec=spec)
            for name, spec in model.tasks.items()
        },
        state=without_log_variances(weights),
        vocabulary=corpora.vocabulary,
        lineage=lineage,
        pruning=recipe.pruning,
    )
