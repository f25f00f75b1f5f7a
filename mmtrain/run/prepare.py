"""What is settled before a run's workers start: every check, then the claim of its folder."""

from pathlib import Path

import torch

from mmtrain import checkpoint
from mmtrain.checkpoint import CheckpointRef, Progress
from mmtrain.engines import check_combination, check_optimizer
from mmtrain.engines.ranks import Ranks
from mmtrain.evaluate.baselines import check_baseline
from mmtrain.evaluate.metrics import check_metrics
from mmtrain.files import CHECKPOINTS, FAILURE, RECIPE
from mmtrain.layers.moe import MoE
from mmtrain.losses import check_loss
from mmtrain.losses.mixup import check_mixup
from mmtrain.recipe import Recipe, RecipeError
from mmtrain.run.components import training_plan, validation_plan
from mmtrain.run.corpora import open_corpora
from mmtrain.run.model import fitted, recipe_model
from mmtrain.run.preflight import check_disk, checkpoint_bytes
from mmtrain.run.resume import check_resume
from mmtrain.start.entry import plan_recipe_start, tell_start
from mmtrain.start.initialize import frozen_owners
from mmtrain.step.gradients import check_balancing
from mmtrain.step.passes import Passes, check_pruning
from mmtrain.step.rates import check_decays
from pipelines.augment import check_augmentations
from pipelines.files import write_whole


def prepare_run(
    recipe: Recipe, *, out: Path, data_dir: Path, resume: bool, tracking_uri: str | None = None
) -> str | None:
    """Checks all that can be checked before a process starts, then claims the run's folder.

    Returns:
        What is loaded of the weights that the run starts from, or what changed since the
        checkpoint that it goes on from, in a line; None: nothing.

    Raises:
        MMTrainError: of the kind that says what is wrong; nothing was written.
    """
    fitted(recipe)
    for name, task in recipe.tasks.items():
        check_loss(task)
        check_metrics(task.metrics, task.targets, task=name)
        check_baseline(task.baseline, feature=task.targets, task=name)
        check_augmentations(task)
        check_mixup(task)
        check_decays(recipe.optimizer, task)
    check_balancing(recipe.balancing, engine=recipe.engine, schedule=recipe.schedule)
    check_pruning(recipe.pruning, tasks=recipe.tasks, engine=recipe.engine)
    corpora = open_corpora(recipe, data_dir)
    ranks = Ranks(rank=0, world_size=recipe.num_workers, device=torch.device("cpu"))
    training_plan(recipe, corpora.train, ranks=ranks, start=Progress(step=0))
    validation_plan(recipe, corpora.validation, ranks=ranks)
    with torch.device("meta"):
        model = recipe_model(recipe, corpora.vocabulary)
        Passes.build(recipe.pruning, model, tasks=recipe.tasks, seed=recipe.seed)
    experts = [layer.num_experts for layer in model.modules() if isinstance(layer, MoE)]
    check_combination(recipe.engine, world_size=recipe.num_workers, num_experts=experts)
    check_optimizer(recipe.engine, optimizer=recipe.optimizer)
    check_decay_loss(recipe)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    check_disk(out, needed_bytes=checkpoint_bytes(num_parameters, keep=recipe.keep_checkpoints))
    saved = checkpoint.latest(out / CHECKPOINTS)
    if saved and resume:
        frozen_owners(model, recipe.frozen)
        progress = checkpoint.read_progress(saved)
        told = check_resume(
            recipe,
            progress,
            uri=saved.uri,
            corpora=corpora.train,
            vocabulary=corpora.vocabulary,
        )
    else:
        start = plan_recipe_start(
            recipe,
            model,
            vocabulary=corpora.vocabulary,
            tracking_uri=tracking_uri,
            only_shapes=True,
        )
        told = tell_start(recipe, start) if start else None
    _claim(recipe, out=out, saved=saved, resume=resume)
    return told


def check_decay_loss(recipe: Recipe) -> None:
    """Refuses a decay in the loss where weights are in parts.

    Raises:
        RecipeError: names the fields at odds.
    """
    if recipe.optimizer.weight_decay_loss and recipe.engine.zero_stage == 3:
        raise RecipeError(
            "optimizer.weight_decay_loss reads whole weights, engine.zero_stage=3 has parts of "
            "them; set optimizer.weight_decay, or a lower stage"
        )


def _claim(recipe: Recipe, *, out: Path, saved: CheckpointRef | None, resume: bool) -> None:
    if saved and not resume:
        raise RecipeError(
            f"{out} holds a run at step {saved.step}; go on with --resume, or give another --out"
        )
    out.mkdir(parents=True, exist_ok=True)
    (out / FAILURE).unlink(missing_ok=True)
    write_whole(out / RECIPE, recipe.model_dump_json(indent=1) + "\n")
