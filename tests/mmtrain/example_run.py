"""A run's steps in this process, without Ray: from built corpora to an exported model."""

from itertools import groupby
from pathlib import Path

import torch

from mmtrain.checkpoint import Progress
from mmtrain.engines import build_engine
from mmtrain.engines.ranks import Ranks
from mmtrain.recipe import Recipe
from mmtrain.run.components import build_objective, training_plan
from mmtrain.run.corpora import open_corpora
from mmtrain.run.export import export_run
from mmtrain.run.job import Job, Spent
from mmtrain.run.model import recipe_model
from mmtrain.run.prepare import prepare_run
from mmtrain.step.passes import Pass
from mmtrain.step.rates import step_rates
from mmtrain.store.config import TrackingConfig
from pipelines.stream import read_batches


def train_here(recipe: Recipe, out: Path, *, data_dir: Path) -> None:
    """Prepares, trains and exports a run whose model has neither masks nor experts."""
    prepare_run(recipe, out=out, data_dir=data_dir, resume=False)
    corpora, ranks = open_corpora(recipe, data_dir), Ranks(0, 1, torch.device("cpu"))
    model, objective = recipe_model(recipe, corpora.vocabulary), build_objective(recipe, ranks)
    engine = build_engine(recipe.engine, model=model, optimizer=recipe.optimizer)
    owners = {name: model.owners(name) for name in recipe.tasks}
    plan = training_plan(recipe, corpora.train, ranks=ranks, start=Progress(step=0))
    for step, batches in groupby(read_batches(plan), key=lambda batch: batch.step):
        micros = list(batches)
        rates = step_rates(
            recipe.optimizer, step=step, num_steps=recipe.num_steps, owners=owners,
            tasks={micro.task: recipe.tasks[micro.task] for micro in micros},
        )  # fmt: skip
        counts = objective.count_targets(micros)
        for micro in micros:
            loss = objective.micro_loss(
                engine, micro, num_targets=counts, rates=rates, masked=Pass()
            )
            engine.backward(loss.share)
        engine.step(rates.learning_rates, learning_rates=rates.learning_rates, **rates.decays)
    job = Job(recipe.model_dump_json(), out, data_dir, TrackingConfig(), run_id=None)
    export_run(
        job, recipe, corpora, model=model, weights=engine.model_state(),
        spent=Spent(0.0, {}, {}),
    )  # fmt: skip
