"""Training: the driver checks and starts workers on Ray; every worker runs THE MAIN LOOP.

Which examples a step sees, its dropout and its gate noise are functions of (seed, step, rank),
never of what ran before; so a resumed run needs the parameters, the step and one integer a task.
"""

import time
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.exceptions import RayError
from ray.train.torch import TorchConfig, TorchTrainer
from rich.console import Console

from mmtrain import checkpoint
from mmtrain.checkpoint import Progress
from mmtrain.cluster import cluster_of, read_board, wait_for_board
from mmtrain.engines import build_engine
from mmtrain.engines.ranks import Ranks, check_same_batches, gather_ids, seed_step
from mmtrain.files import BUNDLE, CHECKPOINTS, LOG
from mmtrain.losses.balancing import add_log_variances
from mmtrain.process.errors import RunInterruptedError
from mmtrain.process.logs import LogFile, hush, relayed
from mmtrain.process.termination import interruption
from mmtrain.recipe import Recipe
from mmtrain.run.components import (
    build_feed,
    build_monitor,
    build_objective,
    run_optimizer,
    validation_plan,
)
from mmtrain.run.corpora import open_corpora
from mmtrain.run.export import export_run
from mmtrain.run.failures import failure_of, lost_run, note_error, raise_failure, write_failure
from mmtrain.run.job import Job, TrainedRun
from mmtrain.run.model import fitted, recipe_model
from mmtrain.run.preflight import check_resources
from mmtrain.run.prepare import prepare_run
from mmtrain.run.progress import ProgressBoard, ProgressDisplay, RunProgress, build_display
from mmtrain.run.runlog import RunLog
from mmtrain.run.tracked import tracked
from mmtrain.start.entry import start_model, with_fixed_source
from mmtrain.step.gradients import build_gradients
from mmtrain.step.passes import Passes
from mmtrain.step.policies import NonFiniteLossError, is_due, is_healthy
from mmtrain.step.rates import step_rates
from mmtrain.step.series import Series
from mmtrain.step.validation import validate
from mmtrain.store.config import TrackingConfig
from pipelines.build import build
from pipelines.errors import MMTrainError
from pipelines.ownership import owns_out
from pipelines.shards import Manifest
from pipelines.stream import read_batches

Post = Callable[[RunProgress], object]


def train_worker(job: Job, post: Post) -> None:
    """THE MAIN LOOP: build, restore, then step by step; policies decide, this text acts.

    Args:
        job: what to train and where.
        post: takes what the display shows, on rank 0.
    """
    # ---- build
    recipe = Recipe.model_validate_json(job.recipe_json)
    ranks = Ranks.current(use_gpu=recipe.use_gpu)
    corpora = open_corpora(recipe, job.data_dir)
    model = recipe_model(recipe, corpora.vocabulary)
    saved = checkpoint.agree(job.out / CHECKPOINTS, member=ranks)
    passes = Passes.build(recipe.pruning, model, tasks=recipe.tasks, seed=recipe.seed)
    start_model(
        model, recipe, corpora.vocabulary, registry=job.tracking.uri, resumes=saved is not None
    )
    if recipe.balancing == "uncertainty":
        add_log_variances(model)
    owners = {task: model.owners(task) for task in recipe.tasks}
    monitor, objective = build_monitor(recipe, model), build_objective(recipe, ranks)
    optimizer, device = run_optimizer(recipe), ranks.device
    engine = build_engine(recipe.engine, model=model, optimizer=optimizer, device=device)
    gradients = build_gradients(recipe.balancing, engine=engine, seed=recipe.seed)

    # ---- restore
    start = checkpoint.restore(saved, engine=engine) if saved else Progress(step=0)

    # ---- data
    feed = build_feed(recipe, corpora.train, ranks=ranks, start=start)
    held_out = validation_plan(recipe, corpora.validation, ranks=ranks)
    series = Series(tuple(recipe.tasks), device=device)
    log = RunLog(job, recipe, post=post, first_step=start.step) if ranks.rank == 0 else None

    # ---- train
    last = recipe.num_steps
    end = min(last, job.until or last)
    for step in range(start.step, end):
        seed_step(recipe.seed, step, ranks.rank)
        micros = feed.micros(step)
        if recipe.check_ranks:
            check_same_batches(micros, ranks)
            example_ids = gather_ids(micros, ranks)
            if log:
                log.examples(step, example_ids)
        tasks = {micro.task: recipe.tasks[micro.task] for micro in micros}
        rates = step_rates(
            optimizer, step=step, num_steps=last, tasks=tasks, owners=owners, scales=passes.scales
        )
        num_targets = objective.count_targets(micros)
        for micro, drawn in passes.each(micros):
            with passes.masked(drawn), monitor.watching(micro.task, ordinal=feed.ordinal(micro)):
                micro_loss = objective.micro_loss(
                    engine, micro, num_targets=num_targets, rates=rates, masked=drawn
                )
                series.add(micro.task, micro_loss, examples=len(micro.example_ids) * drawn.part)
                feed.learned(micro.task, micro_loss.loss.total)
                gradients.add(micro.task, micro_loss.share)
        gradients.finish(step)
        feed.end_step(num_targets)
        monitor.end_step()
        active_owners = {owner for task in tasks for owner in owners[task]}  # others keep still
        stats = engine.step(active_owners, learning_rates=rates.learning_rates, **rates.decays)
        if not is_healthy(stats.gradient_norm):
            ids = gather_ids(micros, ranks)
            raise NonFiniteLossError(", ".join(tasks), step, ids, stats.gradient_norm)

        done = step + 1
        if is_due(done, every=recipe.log_every, last=end):
            point = series.point()
            if log:
                log.point(done, point, stats=stats, counts=feed.plan.cursors(done))
                log.gradients(done, monitor.point())
                log.kept(done, passes.kept())
        if is_due(done, every=recipe.validate_every, last=end):
            with passes.whole():
                measured = validate(engine, read_batches(held_out), device=device)
            if log:
                log.validation(done, measured)
        if is_due(done, every=recipe.save_every, last=end):
            progress = feed.progress(done, recipe_json=job.recipe_json, run_id=job.run_id or "")
            folder, keep = job.out / CHECKPOINTS, recipe.keep_checkpoints
            checkpoint.save(folder, engine=engine, progress=progress, keep=keep)

    # ---- export
    weights = engine.model_state()
    if log:
        export_run(job, recipe, corpora, model=model, weights=weights, spent=log.close())


# ---- the driver


@owns_out
def train(
    recipe: Recipe,
    *,
    out: Path,
    data_dir: Path,
    resume: bool = False,
    address: str | None = None,
    tracking: TrackingConfig | None = None,
    console: Console | None = None,
) -> TrainedRun:
    """Trains a recipe to its end; the run's folder holds all that it leaves.

    Args:
        recipe: what to train.
        out: the run's folder, on a file system that all workers see.
        data_dir: folder of the built corpora, likewise.
        resume: go on with the run in `out`.
        address: Ray cluster; None: one on this machine, which ends with the run.
        tracking: where MLflow is; None: a SQLite file in `out`.
        console: where progress is shown.

    Raises:
        MMTrainError: of the kind that says what the user can mend.
    """
    out, data_dir = out.absolute(), data_dir.absolute()
    tracking = tracking or TrackingConfig()
    recipe, console = with_fixed_source(recipe, registry=tracking.uri), console or Console()
    begins = prepare_run(
        recipe, out=out, data_dir=data_dir, resume=resume, tracking_uri=tracking.uri
    )
    if begins:
        console.print(begins, highlight=False, markup=False, soft_wrap=True)
    began = time.monotonic()
    with (
        ray_cluster(recipe, address=address),
        tracked(recipe, tracking, out=out, data_dir=data_dir) as run_id,
    ):
        job = Job(recipe.model_dump_json(), out, data_dir, tracking, run_id)
        run_workers(job, recipe, console=console)
    return TrainedRun(
        name=recipe.name,
        out=out,
        bundle=out / BUNDLE,
        data_dir=data_dir,
        run_id=run_id,
        step=recipe.num_steps,
        seconds=time.monotonic() - began,
    )


def build_corpora(
    recipe: Recipe, *, data_dir: Path, address: str | None = None, console: Console | None = None
) -> dict[tuple[str, str], Manifest]:
    """Makes and builds what is missing or changed of a recipe's corpora, and shows how far it is.

    Raises:
        BuildError: a source is missing, too many records are bad, or the disk is full.
    """
    fitted(recipe)  # minutes of building are lost on a recipe that makes no model
    tasks = tuple(recipe.tasks.values())
    with ray_cluster(recipe, address=address), build_display(console or Console()) as told:
        return build(tasks, data_dir=data_dir, config=recipe.build, progress=told)


@contextmanager
def ray_cluster(recipe: Recipe, *, address: str | None = None) -> Generator[None]:
    """A Ray cluster with room for the run; see `cluster_of`.

    Raises:
        PreflightError: the cluster is too small.
    """
    num_cpus = recipe.num_workers * (1 + recipe.stream.num_cpus)
    num_gpus = recipe.num_workers if recipe.use_gpu else 0
    with cluster_of(num_cpus, num_gpus=num_gpus, address=address) as resources:
        check_resources(
            resources,
            num_workers=recipe.num_workers,
            data_cpus=recipe.stream.num_cpus,
            use_gpu=recipe.use_gpu,
        )
        yield


def run_workers(job: Job, recipe: Recipe, *, console: Console) -> None:
    """Runs `train_worker` on every rank, restarting after a lost worker, and shows progress.

    Raises:
        RunFailedError: the run stopped, or workers were lost more often than the recipe allows.
    """
    board: Any = ray.remote(num_cpus=0)(ProgressBoard).remote()  # ray types it as a function
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"job": job, "board": board},
        scaling_config=ray.train.ScalingConfig(
            num_workers=recipe.num_workers, use_gpu=recipe.use_gpu
        ),
        torch_config=TorchConfig(timeout_s=600),
        run_config=ray.train.RunConfig(
            name=f"{recipe.name}-{time.time_ns()}",  # a name used before would be resumed by Ray
            storage_path=str(job.out / "ray"),
            failure_config=ray.train.FailureConfig(
                max_failures=recipe.max_failures, controller_failure_limit=2
            ),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
    )
    hush("ray.train")

    def latest() -> RunProgress | None:
        progress, records = read_board(board) or (None, [])
        for record in records:
            log_file.take(record)
        return progress

    with LogFile(job.out / LOG) as log_file, ProgressDisplay(latest, console=console):
        try:
            trainer.fit()
        except (KeyboardInterrupt, SystemExit):  # Ray's answer to Ctrl-C is a silent exit
            raise RunInterruptedError(
                f"{interruption()}; what was saved in {job.out} stands, go on with --resume"
            ) from None
        except (ray.train.TrainingFailedError, RayError) as error:
            raise_failure(job)
            raise lost_run(job, error, max_failures=recipe.max_failures) from error
    raise_failure(job)


def _worker(config: dict[str, Any]) -> None:
    """`train_worker` under Ray Train. What a restart does not mend ends the run without one."""
    job, board = config["job"], config["board"]
    if failure_of(job):
        return  # another rank, or this one before a restart, left word of why
    try:
        with relayed(board.log.remote, rank=Ranks.current(use_gpu=False).rank):
            train_worker(job, board.write.remote)
    except MMTrainError as error:
        write_failure(job, error)
        raise
    except Exception:
        note_error(job.out, traceback.format_exc())
        raise
    finally:
        wait_for_board(board)
