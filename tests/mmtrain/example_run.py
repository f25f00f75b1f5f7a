"""A run's steps in this process, without Ray: from built corpora to an exported model."""

from itertools import groupby
from pathlib import Path

import torch

from mmtrain.checkpoint import Progress
from mmtrain.engines import build_engine
from mmtrain.engines.ranks import Ranks
from mmtrain.models.model import build_model
from mmtrain.recipe import Recipe
from mmtrain.run.corpora import open_corpora
from mmtrain.run.export import export_run
from mmtrain.run.job import Job, Spent
from mmtrain.run.model import fitted, task_specs
from mmtrain.run.prepare import prepare_run
from mmtrain.step.objective import count_targets, micro_loss
from mmtrain.step.passes import Pass
from mmtrain.step.plans import build_plan
from mmtrain.step.rates import step_rates
from mmtrain.store.config import TrackingConfig
from pipelines.stream import read_batches


def train_here(recipe: Recipe, out: Path, *, data_dir: Path) -> None:
    """Prepares, trains and exports a run whose model has neither masks nor experts."""
    prepare_run(recipe, out=out, data_dir=data_dir, resume=False)
    corpora, ranks = open_corpora(recipe, data_dir), Ranks(0, 1, torch.device("cpu"))
    specs = task_specs(recipe, corpora.vocabulary)
    model = build_model(fitted(recipe, corpora.vocabulary), specs, seed=0)
    engine = build_engine(recipe.engine, model=model, optimizer=recipe.optimizer)
    owners = {name: model.owners(name) for name in recipe.tasks}
    plan = build_plan(recipe, corpora.train, ranks=ranks, start=Progress(step=0))
    for step, batches in groupby(read_batches(plan), key=lambda batch: batch.step):
        micros = list(batches)
        rates = step_rates(
            recipe.optimizer, step=step, num_steps=recipe.num_steps, owners=owners,
            tasks={micro.task: recipe.tasks[micro.task] for micro in micros},
        )  # fmt: skip
        counts = count_targets(micros, recipe, ranks)
        for micro in micros:
            loss = micro_loss(
                engine, micro, recipe, ranks, num_targets=counts, rates=rates, masked=Pass()
            )
            engine.backward(loss.share)
        engine.step(learning_rates=rates.learning_rates, **rates.decays)
    job = Job(recipe.model_dump_json(), out, data_dir, TrackingConfig(), run_id=None)
    export_run(
        job, recipe, corpora, model=model.config, specs=specs, weights=engine.model_state(),
        spent=Spent(0.0, {}, {}),
    )  # fmt: skip
