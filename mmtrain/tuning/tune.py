"""Sweeps on Ray Tune: trials run beside each other, and go on after an interruption.

Optuna says what to try (`study.py`), Ray Tune runs it, restarts what dies, and lets the trials of a
population take over from each other. The records in the sweep's folder are the truth (`trials.py`):
nothing of Ray's has to survive, and a sweep that goes on may have more trials than before, which
`Tuner.restore` does not allow.
"""

import itertools
import logging
import math
import os
import random
import tempfile
import threading
import time
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from ray import tune as ray_tune
from ray.tune.error import TuneError
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.schedulers import FIFOScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search import Searcher
from rich.console import Console

from mmtrain.cluster import cluster_of, reason
from mmtrain.files import LOG
from mmtrain.process.environment import environment
from mmtrain.process.errors import RunFailedError
from mmtrain.process.logs import LogFile, hush
from mmtrain.recipe import Recipe
from mmtrain.run.job import Job
from mmtrain.train import run_workers, train_worker
from mmtrain.tuning.display import SweepDisplay
from mmtrain.tuning.study import build_sampler, draw_values, optuna_space
from mmtrain.tuning.sweep import (
    Choice,
    SweepConfig,
    check_sweep_resources,
    measured_steps,
    sweep_cpus,
)
from mmtrain.tuning.trial import TrialPlan, run_segments, take_over
from mmtrain.tuning.trials import TrialRecord, read_record, read_records, write_record

logger = logging.getLogger(__name__)

_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",  # the new one prints even when told not to
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # failed trials have none
}
NUMBER = "trial_number"  # in a trial's config beside its values; Tune's name of it
STEP = "step"


# ---- in a trial's process


def _trial(config: dict[str, Any], plan: TrialPlan) -> None:
    """A trial goes on to its end from where it is, or from where a better trial is."""
    number = int(ray_tune.get_context().get_trial_name())  # the config may be another's
    record = read_record(plan.out, number)
    assert record is not None
    deadline = threading.Timer(plan.sweep.timeout_s, _give_up, args=(plan.sweep.timeout_s,))
    deadline.daemon = True
    deadline.start()
    try:
        checkpoint: Any = ray_tune.get_checkpoint()
        place = checkpoint.get_metadata() if checkpoint else {NUMBER: number}
        if place[NUMBER] != number:
            donor = read_record(plan.out, place[NUMBER])
            assert donor is not None
            values = {field: config[field] for field in plan.sweep.space}
            record = take_over(plan, record.with_(values=values), donor=donor, step=place[STEP])
        if not record.has_ended:
            for measured in run_segments(plan, record, train=_train):
                _report(measured)
    finally:
        deadline.cancel()


def _report(record: TrialRecord) -> None:
    """Tells Tune of a measurement, and who takes over from this trial where its weights are."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = ray_tune.Checkpoint.from_directory(folder)
        checkpoint.set_metadata({NUMBER: record.number, STEP: record.step})
        ray_tune.report({STEP: record.step, "score": record.score}, checkpoint=checkpoint)


def _train(job: Job, recipe: Recipe) -> None:
    """One worker trains here; several are a run of Ray Train, launched from here."""
    if recipe.num_workers == 1:
        with LogFile(job.out / LOG, who="rank 0"):
            train_worker(job, lambda progress: None)
    else:
        run_workers(job, recipe, console=Console(quiet=True))


def _give_up(timeout_s: float) -> None:
    """A trial that takes too long ends its process; Tune restarts it as often as it may."""
    logger.error("a trial took longer than %.0f s and is ended", timeout_s)
    os._exit(1)


# ---- what Tune is given


class SweepSearch(Searcher):
    """Trials that were cut off, then new ones that Optuna draws; each with its number.

    Args:
        plan: of the sweep.
        records: of the trials of before.
    """

    def __init__(self, plan: TrialPlan, records: Sequence[TrialRecord]) -> None:
        super().__init__()
        self._plan = plan
        self._cut_off = [record for record in records if not record.has_ended]
        self._numbers = itertools.count(max((record.number for record in records), default=-1) + 1)
        self._sampler = build_sampler(plan.sweep, num_known=len(records))

    def suggest(self, trial_id: str) -> dict[str, Any]:
        """Number and values of the next trial, whose record is written."""
        if self._cut_off:
            record = self._cut_off.pop(0)
        else:
            values = draw_values(
                self._plan.sweep, read_records(self._plan.out), sampler=self._sampler
            )
            number, num_steps = next(self._numbers), self._plan.recipe_of({}).num_steps
            record = TrialRecord(number=number, values=values, num_steps=num_steps)
        write_record(record.with_(state="running", message=""), out=self._plan.out)
        return {**record.values, NUMBER: record.number}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """The records say it."""

    def save(self, checkpoint_path: str) -> None:
        """The records say all that has to survive."""


def population(search: SweepSearch, *, size: int) -> dict[str, Any]:
    """A space whose only points are the next trials: Tune 2.60 takes no search beside PBT."""
    members = [search.suggest("") for _ in range(size)]
    by_number = {member[NUMBER]: member for member in members}

    def value_of(name: str, spec: Any) -> Any:
        return by_number[spec.config[NUMBER]][name]

    fields = {name: ray_tune.sample_from(partial(value_of, name)) for name in members[0]}
    return {**fields, NUMBER: ray_tune.grid_search(list(by_number))}


def build_scheduler(sweep: SweepConfig, *, num_steps: int) -> TrialScheduler:
    """Which trials take over from which; those of 'asha' stop by themselves (`run_segments`).

    In a population values of a better trial are multiplied by 0.8 or 1.2, or drawn anew, and kept
    within their range.
    """
    steps = measured_steps(num_steps, sweep=sweep)
    if sweep.scheduler != "pbt" or len(steps) == 1:
        return FIFOScheduler()
    sampler: Any = build_sampler(sweep, num_known=sweep.num_trials)  # a random one
    space = optuna_space(sweep)
    draw = partial(sampler.sample_independent, None, None)  # heeds no study and no trial

    def within(config: dict[str, Any]) -> dict[str, Any]:
        for name, one in sweep.space.items():
            if not isinstance(one, Choice):
                config[name] = min(max(config[name], one.low), one.high)
        return config

    random.seed(sweep.seed)  # Tune 2.60 draws perturbations from the global generators
    np.random.seed(sweep.seed % 2**32)
    return PopulationBasedTraining(
        time_attr=STEP,
        metric="score",
        mode="max",
        perturbation_interval=steps[0],
        hyperparam_mutations={
            name: list(one.values) if isinstance(one, Choice) else partial(draw, name, space[name])
            for name, one in sweep.space.items()
        },
        custom_explore_fn=within,
        log_config=False,
    )


class _Watch(TrialProgressCallback):
    """Notes trials that Tune has lost; stands where Tune 2.60 would print even at verbosity 0."""

    def __init__(self, plan: TrialPlan) -> None:
        super().__init__()
        self._plan = plan

    def _print(self, msg: str) -> None:
        pass

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Its process died more often than it may."""
        record = read_record(self._plan.out, int(str(trial)))
        if record and record.state == "running":
            message = reason(trial.get_error() or "its process died")
            write_record(record.with_(state="lost", message=message), out=self._plan.out)


# ---- the driver


def run_trials(plan: TrialPlan, *, address: str | None, console: Console) -> None:
    """Runs what is left of a sweep's trials.

    An interruption, or the end of the time that all may take, leaves trials "running".

    Raises:
        SweepError: the cluster is too small; nothing was started.
        RunFailedError: Ray Tune stopped.
    """
    sweep, recipe = plan.sweep, plan.recipe_of({})
    records = read_records(plan.out)
    todo = sweep.num_trials - sum(record.has_ended for record in records)
    if todo <= 0:
        return
    cpus = sweep_cpus(recipe, concurrent=sweep.at_once)
    gpus = sweep.concurrent * recipe.num_workers if recipe.use_gpu else 0
    cluster = cluster_of(cpus, num_gpus=gpus, address=address)
    with environment(_SETTINGS), cluster as resources:
        check_sweep_resources(resources, concurrent=sweep.at_once, recipe=recipe)
        tuner = _build_tuner(plan, records, recipe=recipe, todo=todo)
        hush("ray.tune")
        display = SweepDisplay(plan.out, num_trials=sweep.num_trials, console=console)
        with display, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Consider boosting PBT")
            try:
                tuner.fit()
            except TuneError as error:
                raise RunFailedError(
                    f"Ray Tune stopped: {reason(error)}. Trials that are over stand; go on with "
                    "--resume"
                ) from error


def _build_tuner(
    plan: TrialPlan, records: Sequence[TrialRecord], *, recipe: Recipe, todo: int
) -> ray_tune.Tuner:
    """A trial of one worker is that worker; else it waits for a run of Ray Train."""
    sweep, is_worker = plan.sweep, recipe.num_workers == 1
    needs = {"CPU": 1.0 if is_worker else 0.001}
    if is_worker and recipe.use_gpu:
        needs["GPU"] = 1.0
    rounds = math.ceil(todo / sweep.at_once) * (1 + sweep.max_failures)
    search, takes_over = SweepSearch(plan, records), sweep.scheduler == "pbt"
    return ray_tune.Tuner(
        ray_tune.with_resources(
            ray_tune.with_parameters(_trial, plan=plan), ray_tune.PlacementGroupFactory([needs])
        ),
        param_space=population(search, size=todo) if takes_over else {},
        tune_config=ray_tune.TuneConfig(
            search_alg=None if takes_over else search,
            scheduler=build_scheduler(sweep, num_steps=recipe.num_steps),
            num_samples=1 if takes_over else todo,
            max_concurrent_trials=sweep.at_once,
            time_budget_s=sweep.timeout_s * rounds,
            trial_name_creator=lambda trial: str(trial.config[NUMBER]),
        ),
        run_config=ray_tune.RunConfig(
            name=f"sweep-{time.time_ns()}",
            storage_path=str(plan.out / "ray"),
            failure_config=ray_tune.FailureConfig(max_failures=sweep.max_failures),
            callbacks=[_Watch(plan)],
            verbose=0,
        ),
    )
