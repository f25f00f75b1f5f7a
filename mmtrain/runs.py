"""A run's folder and what is settled before its workers start.

recipe.json      the resolved recipe; a recipe itself
checkpoints/     see checkpoint.py
bundle/          the trained model; see export.py
tracking/        the journal of what MLflow is told; mlruns.db beside it by default
routing.json, losses.json, results.json, report.html
kept.jsonl, tradeoff.json    of a run with masks: units that subtasks keep; quality over cost
"""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from dataclasses import field as dataclass_field
from pathlib import Path

import torch
from torch import Tensor

from mmtrain import checkpoint, losses
from mmtrain.balancing import without_log_variances
from mmtrain.baselines import check_baseline
from mmtrain.checkpoint import CheckpointRef, Progress
from mmtrain.engines import check_combination
from mmtrain.export import Lineage, bundle_task, code_version, save_bundle
from mmtrain.fitting import fitted
from mmtrain.gradients import check_balancing
from mmtrain.initialize import frozen_owners, plan_recipe_start, tell_start
from mmtrain.layers.moe import MoE
from mmtrain.metrics import check_metrics
from mmtrain.mixup import check_mixup
from mmtrain.models.model import ModelConfig, TaskSpec, build_model, net_of
from mmtrain.optim import OptimizerConfig
from mmtrain.preflight import check_disk, checkpoint_bytes
from mmtrain.pruning.passes import Passes, check_pruning
from mmtrain.ranks import Ranks
from mmtrain.rates import check_decays, on_one_clock
from mmtrain.recipe import Recipe, RecipeError
from mmtrain.resume import check_resume
from mmtrain.tracking import TrackingConfig
from pipelines.adaptive import Mixing
from pipelines.augment import check_augmentations
from pipelines.files import write_whole
from pipelines.plan import Plan, one_vocabulary
from pipelines.schedule import ScheduleConfig
from pipelines.shards import Manifest, open_task, vocabulary_path
from pipelines.vocabulary import Vocabulary

RECIPE, CHECKPOINTS, BUNDLE, FAILURE = "recipe.json", "checkpoints", "bundle", "failure.json"


@dataclass(frozen=True, slots=True)
class Job:
    """What the driver hands to every worker; all workers see both folders.

    `until` stops a run early, its learning rates falling as if it went on; None: at its end.
    `attempt` is this call of the driver: what a worker of another leaves in the folder is not its.
    """

    recipe: str  # JSON
    out: Path
    data_dir: Path
    tracking: TrackingConfig
    run_id: str | None
    until: int | None = None
    attempt: str = dataclass_field(default_factory=lambda: uuid.uuid4().hex)


@dataclass(frozen=True, slots=True)
class TrainedRun:
    """A run that has ended: its folder, the bundle, its corpora, steps taken and wall time."""

    name: str
    out: Path
    bundle: Path
    data_dir: Path
    run_id: str | None
    step: int
    seconds: float

    def to_dict(self) -> dict[str, object]:
        """As JSON holds it."""
        folders = {name: str(getattr(self, name)) for name in ("out", "bundle", "data_dir")}
        return {**asdict(self), **folders}


@dataclass(frozen=True, slots=True)
class Spent:
    """Seconds of training, and steps and seconds by task, over all attempts of a run."""

    seconds: float
    task_steps: Mapping[str, int]
    task_seconds: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Corpora:
    """The built splits that a run reads, and the joint vocabulary of those that have text."""

    train: dict[str, Manifest]
    validation: dict[str, Manifest]
    vocabulary: Vocabulary | None


def open_corpora(recipe: Recipe, data_dir: Path) -> Corpora:
    """Opens what was built for a recipe's tasks.

    Raises:
        CorpusError: a split is not built, or is not what the task says; with the remedy.
    """
    splits = {
        split: {
            name: open_task(task, split=split, data_dir=data_dir)
            for name, task in recipe.tasks.items()
        }
        for split in ("train", "validation")
    }
    both = {f"{name} {split}": m for split, some in splits.items() for name, m in some.items()}
    digest = one_vocabulary(both)
    vocabulary = Vocabulary.load(vocabulary_path(data_dir, digest=digest)) if digest else None
    return Corpora(**splits, vocabulary=vocabulary)


def task_specs(recipe: Recipe, vocabulary: Vocabulary | None) -> list[TaskSpec]:
    """What the model must know of each task of a recipe."""
    family = recipe.model.family
    return [
        TaskSpec(
            name=task.name,
            input_net=net_of(family, task.inputs),
            output_net=net_of(family, task.targets),
            num_outputs=task.targets.num_outputs,
            output_groups=task.targets.output_groups,
            loss=task.loss or task.targets.loss,
            drop_layer=task.drop_layer,
            command_id=vocabulary.command_id(task.command) if vocabulary and task.command else None,
            head_init=task.head_init,
        )
        for task in recipe.tasks.values()
    ]


def build_plan(
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


def run_optimizer(recipe: Recipe) -> OptimizerConfig:
    """The optimizer's config with the warm-up of the whole run."""
    tasks = recipe.tasks.values()
    together = len(tasks) if recipe.schedule.name == "accumulating" else 1
    return on_one_clock(recipe.optimizer, tasks, tasks_per_step=together)


def validation_plan(recipe: Recipe, manifests: dict[str, Manifest], *, ranks: Ranks) -> Plan:
    """The same few batches of every task, at every validation."""
    return Plan(
        manifests,
        ScheduleConfig(name="alternating"),
        num_steps=recipe.validation_batches * len(manifests),
        rank=ranks.rank,
        world_size=ranks.world_size,
    )


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
        losses.check_loss(task.loss or task.targets.loss, task.targets, task=name)
        check_metrics(task.metrics, task.targets, task=name)
        check_baseline(task.baseline, modality=task.targets.modality, task=name)
        check_augmentations(task)
        check_mixup(task)
        check_decays(recipe.optimizer, task)
    check_balancing(recipe.balancing, engine=recipe.engine, schedule=recipe.schedule)
    check_pruning(recipe)
    corpora = open_corpora(recipe, data_dir)
    ranks = Ranks(rank=0, world_size=recipe.num_workers, device=torch.device("cpu"))
    build_plan(recipe, corpora.train, ranks=ranks, start=Progress(step=0))
    validation_plan(recipe, corpora.validation, ranks=ranks)
    with torch.device("meta"):
        config = fitted(recipe, corpora.vocabulary)
        model = build_model(config, task_specs(recipe, corpora.vocabulary), seed=recipe.seed)
        Passes.build(recipe, model)
    experts = [layer.num_experts for layer in model.modules() if isinstance(layer, MoE)]
    check_combination(recipe.engine, world_size=recipe.num_workers, num_experts=experts)
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


def export_run(
    job: Job,
    recipe: Recipe,
    corpora: Corpora,
    *,
    model: ModelConfig,
    specs: Sequence[TaskSpec],
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
        model=model,
        tasks={spec.name: bundle_task(corpora.train[spec.name].task, spec=spec) for spec in specs},
        state=without_log_variances(weights),
        vocabulary=corpora.vocabulary,
        lineage=lineage,
        pruning=recipe.pruning,
    )
