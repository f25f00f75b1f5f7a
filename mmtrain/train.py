"""Training: the driver starts workers on Ray; every worker runs THE MAIN LOOP, `train_worker`.

The order of examples, dropout and gate noise are functions of (seed, step, rank), never of what
ran before; so a resumed run needs the parameters, the step and one integer a task.
"""

import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from rich.console import Console

from mmtrain import checkpoint, losses, tracking
from mmtrain.checkpoint import Progress
from mmtrain.engines import build_engine
from mmtrain.export import save_bundle
from mmtrain.models.model import build_model
from mmtrain.optim import learning_rate
from mmtrain.policies import NonFiniteLossError, is_due, is_healthy
from mmtrain.preflight import check_disk, check_resources, checkpoint_bytes
from mmtrain.progress import ProgressDisplay, RunProgress
from mmtrain.recipe import Recipe, RecipeError
from mmtrain.series import Series, run_progress, sum_over_ranks
from mmtrain.setup import Ranks, open_corpora, seed_step, task_specs, to_tensors
from mmtrain.validation import validate
from pipelines.build import build as build_shards
from pipelines.errors import MMTrainError
from pipelines.plan import Plan
from pipelines.stream import stream

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """What the driver hands to every worker; all workers see `out` and `data_dir`."""

    recipe: str  # JSON
    out: str
    data_dir: str
    tracking_uri: str
    run_id: str


def train_worker(job: Job, post: Any = None) -> None:
    """THE MAIN LOOP: build, restore, then step by step; policies decide, this text acts.

    Args:
        job: what to train and where.
        post: called with `RunProgress` at each point, on rank 0.
    """
    # ---- build
    recipe, ranks = Recipe.model_validate_json(job.recipe), Ranks.current()
    corpora = open_corpora(recipe, Path(job.data_dir))
    model = build_model(recipe.model, task_specs(recipe, corpora.vocabulary), seed=recipe.seed)
    engine = build_engine(recipe.engine, model=model, optimizer=recipe.optimizer, device=ranks.device)
    plan = Plan(
        corpora.train,
        recipe.schedule,
        num_steps=recipe.num_steps,
        seed=recipe.seed,
        rank=ranks.rank,
        world_size=ranks.world_size,
        shuffle_window=recipe.stream.shuffle_window,
        accumulation=recipe.engine.accumulation,
    )
    series = Series(tuple(recipe.tasks), device=ranks.device)
    tracker = tracking.Tracker(job.tracking_uri, run_id=job.run_id, out=Path(job.out)) if ranks.rank == 0 else None

    # ---- restore
    saved = checkpoint.latest(Path(job.out) / "checkpoints")
    first = checkpoint.restore(saved, engine=engine) if saved else Progress(step=0, cursors={})

    # ---- train
    batches = stream(plan, start_step=first.step, cursors=first.cursors, config=recipe.stream)
    began = time.monotonic()
    for step in range(first.step, recipe.num_steps):
        seed_step(recipe.seed, step, ranks.rank)
        micros = [next(batches) for _ in range(plan.micro_batches(step))]
        counts = sum_over_ranks(losses.target_counts(micros, device=ranks.device))
        for micro, count in zip(micros, counts, strict=True):
            task = recipe.tasks[micro.task]
            tensors = to_tensors(micro, ranks.device)
            outputs = engine.forward(task=micro.task, **tensors)
            loss = losses.cross_entropy(outputs.logits, tensors["targets"], smoothing=task.label_smoothing)
            share = task.loss_weight * loss.total / count
            engine.backward(share + outputs.auxiliary_loss / (len(micros) * ranks.world_size))
