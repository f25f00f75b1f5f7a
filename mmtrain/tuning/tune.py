"""Sweeps on Ray Tune: trials run, are compared, and go on after an interruption.

The records in the sweep's folder are the truth (`tuning/trials.py`). Ray Tune and Optuna get what
they must know of earlier trials from there, so nothing of theirs has to survive.
"""

import json
import logging
import math
import os
import random
import tempfile
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import ray
from ray import tune as ray_tune
from ray.tune.error import TuneError
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    PopulationBasedTraining,
    TrialScheduler,
)
from ray.tune.search import BasicVariantGenerator, SearchAlgorithm, Searcher
from ray.tune.search.optuna import OptunaSearch
from rich.console import Console

from mmtrain.cluster import cluster_of, read_board, reason
from mmtrain.files import LOG
from mmtrain.process.environment import environment
from mmtrain.process.errors import RunFailedError
from mmtrain.process.logs import LogFile, hush
from mmtrain.recipe import Recipe
from mmtrain.run.job import Job
from mmtrain.run.progress import RunProgress
from mmtrain.train import run_workers, train_worker
from mmtrain.tuning.display import SweepBoard, SweepDisplay, SweepProgress
from mmtrain.tuning.study import (
    STUDY,
    build_sampler,
    from_optuna,
    optuna_distribution,
    population,
    study_storage,
    to_optuna,
)
from mmtrain.tuning.sweep import (
    LARGER_IS_BETTER,
    Choice,
    Distribution,
    LogUniform,
    SweepConfig,
    Uniform,
    check_sweep_resources,
    measured_steps,
    sweep_cpus,
)
from mmtrain.tuning.trial import TrialPlan, run_segments, take_over
from mmtrain.tuning.trials import (
    TrialRecord,
    read_record,
    read_records,
    values_key,
    write_record,
)

logger = logging.getLogger(__name__)

_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",  # the new one prints even when told not to
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # failed trials have none
}
NUMBER = "trial_number"  # in a trial's config beside its values
STEP = "step"
_TAKEN = "taken.json"  # in a Ray checkpoint: which trial, at which step


# ---- in a trial's process


def _trial(config: dict[str, Any], plan: TrialPlan, board: Any) -> None:
    """A trial: what it knows from before is reported again, then it goes on to its end."""
    identity = ray_tune.get_context().get_trial_id()
    number: int = ray.get(board.number_of.remote(identity, config[NUMBER]))
    deadline = threading.Timer(plan.sweep.timeout_s, _give_up, args=(plan.sweep.timeout_s,))
    deadline.daemon = True
    deadline.start()
    try:
        record, is_new = _begin(config, plan, number=number)
        if is_new:
            for point in record.points:
                _report({STEP: point.step, "score": point.score, **record.objectives}, record)
        if not record.has_ended:
            for measured in run_segments(plan, record, train=_train(board, number)):
                _report({STEP: measured.step, **measured.objectives}, measured)
    finally:
        deadline.cancel()


def _begin(config: Mapping[str, Any], plan: TrialPlan, *, number: int) -> tuple[TrialRecord, bool]:
    """The record of a trial, and whether Tune has not heard of it in this call."""
    values = from_optuna(config, space=plan.sweep.space)
    record = read_record(plan.out, number)
    if record is None:
        num_steps = plan.recipe_of(values).num_steps
        record = TrialRecord(number=number, values=values, num_steps=num_steps)
        write_record(record, out=plan.out)
    taken = ray_tune.get_checkpoint()
    if taken is None:
        return record, True
    with taken.as_directory() as folder:
        place = json.loads((Path(folder) / _TAKEN).read_text())
    record = record.model_copy(update={"values": values})
    if place["number"] != number:
        donor = read_record(plan.out, place["number"])
        assert donor is not None
        record = take_over(plan, record, donor=donor, step=place[STEP])
    return record, False


def _report(metrics: Mapping[str, float], record: TrialRecord) -> None:
    """Tells Tune; where trials take over from others, also where to."""
    with tempfile.TemporaryDirectory() as folder:
        place = {"number": record.number, STEP: record.step}
        (Path(folder) / _TAKEN).write_text(json.dumps(place))
        ray_tune.report(dict(metrics), checkpoint=ray_tune.Checkpoint.from_directory(folder))


def _train(board: Any, number: int) -> Any:
    """One worker trains here; several are a run of Ray Train, launched from here."""

    def post(progress: RunProgress) -> None:
        board.write.remote(number, progress.step)

    def train(job: Job, recipe: Recipe) -> None:
        if recipe.num_workers == 1:
            with LogFile(job.out / LOG, who="rank 0"):
                train_worker(job, post)
        else:
            run_workers(job, recipe, console=Console(quiet=True))

    return train


def _give_up(timeout_s: float) -> None:
    """A trial that takes too long ends its process; Tune restarts it as often as it may."""
    logger.error("a trial took longer than %.0f s and is ended", timeout_s)
    os._exit(1)


# ---- what Tune is given


class _NumberedSearch(OptunaSearch):
    """Optuna's search that says each trial's number; known values keep theirs."""

    def number_trials(self, records: Sequence[TrialRecord], sweep: SweepConfig) -> None:
        """Takes note of the trials of before."""
        self._space_of = dict(sweep.space)
        self._number = {values_key(record.values): record.number for record in records}

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Optuna's values with their number."""
        params = super().suggest(trial_id)
        if params is None:
            return None
        key = values_key(from_optuna(params, space=self._space_of))
        return {**params, NUMBER: self._number.setdefault(key, self._next())}

    def _next(self) -> int:
        return max(self._number.values(), default=-1) + 1


def build_search(
    sweep: SweepConfig, records: Sequence[TrialRecord]
) -> tuple[Searcher | SearchAlgorithm, dict[str, Any], int]:
    """Where values come from, Tune's space, and how many trials are still to run.

    Trials that were cut off come first, with the values that they had.
    """
    cut_off = [record for record in records if not record.has_ended]
    num_ended = len(records) - len(cut_off)
    todo = max(0, sweep.num_trials - num_ended)
    if sweep.scheduler == "pbt":
        return _population(sweep, cut_off, taken=records, todo=todo)
    modes = ["max" if name in LARGER_IS_BETTER else "min" for name in sweep.objectives]
    single = len(modes) == 1
    search = _NumberedSearch(
        space={name: optuna_distribution(one) for name, one in sweep.space.items()},
        metric=sweep.objectives[0] if single else list(sweep.objectives),
        mode=modes[0] if single else modes,
        points_to_evaluate=[to_optuna(record.values, space=sweep.space) for record in cut_off],
        sampler=build_sampler(sweep, num_known=len(records)),
        study_name=STUDY,
        storage=study_storage(sweep, records),
    )
    search.number_trials(records, sweep)
    return search, {}, todo


def _population(
    sweep: SweepConfig,
    cut_off: Sequence[TrialRecord],
    *,
    taken: Sequence[TrialRecord],
    todo: int,
) -> tuple[SearchAlgorithm, dict[str, Any], int]:
    """Members that were cut off, then new ones drawn as the sweep's seed says."""
    members = [
        {**to_optuna(values, space=sweep.space), NUMBER: number}
        for number, values in population(sweep, cut_off, taken=taken, todo=todo).items()
    ]
    space = {name: _tune_domain(one) for name, one in sweep.space.items()}
    largest = max((member[NUMBER] for member in members), default=0)
    space[NUMBER] = ray_tune.randint(0, largest + 1)
    return BasicVariantGenerator(points_to_evaluate=members), space, len(members)


def _tune_domain(distribution: Distribution) -> Any:
    """The same distribution in Tune's terms; of a choice, the values as JSON texts."""
    if isinstance(distribution, Choice):
        return ray_tune.choice([json.dumps(value) for value in distribution.values])
    if isinstance(distribution, Uniform):
        return ray_tune.uniform(distribution.low, distribution.high)
    if isinstance(distribution, LogUniform):
        return ray_tune.loguniform(distribution.low, distribution.high)
    return ray_tune.randint(int(distribution.low), int(distribution.high) + 1)


def build_scheduler(
    sweep: SweepConfig, *, num_steps: int, records: Sequence[TrialRecord]
) -> TrialScheduler:
    """Which trials go on; earlier trials stand in their rungs."""
    steps = measured_steps(num_steps, sweep=sweep)
    if sweep.scheduler == "none" or len(steps) == 1:
        return FIFOScheduler()
    if sweep.scheduler == "pbt":
        return _pbt(sweep, interval=steps[0])
    scheduler = ASHAScheduler(
        time_attr=STEP,
        metric="score",
        mode="max",
        max_t=num_steps,
        grace_period=steps[0],
        reduction_factor=sweep.reduction,
    )
    for record in records:
        for point in record.points:  # Tune has no public way to tell of trials of before
            known = SimpleNamespace(trial_id=f"before-{record.number}")
            scheduler._brackets[0].on_result(known, point.step, point.score)  # type: ignore[arg-type]  # it asks for an identity alone
    return scheduler


def _pbt(sweep: SweepConfig, *, interval: int) -> PopulationBasedTraining:
    """Values of a better trial times 0.8 or 1.2, or drawn anew, kept within their range."""

    def within(config: dict[str, Any]) -> dict[str, Any]:
        for name, one in sweep.space.items():
            if not isinstance(one, Choice):
                config[name] = min(max(config[name], one.low), one.high)
        return config

    random.seed(sweep.seed)  # Tune draws perturbations from the global generators
    np.random.seed(sweep.seed % 2**32)
    return PopulationBasedTraining(
        time_attr=STEP,
        metric="score",
        mode="max",
        perturbation_interval=interval,
        hyperparam_mutations={
            name: [json.dumps(value) for value in one.values]
            if isinstance(one, Choice)
            else _tune_domain(one)
            for name, one in sweep.space.items()
        },
        custom_explore_fn=within,
        log_config=False,
    )


class _Watch(TrialProgressCallback):  # in its place, which prints even when told not to
    """Counts trials that are over, and notes in the records how Tune ended one.

    Of trials that run when a sweep is interrupted or out of time it is not told.
    """

    def __init__(self, plan: TrialPlan, board: Any) -> None:
        super().__init__()
        self._plan, self._board = plan, board
        self.num_over = 0

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """The records say it."""

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The scheduler stopped it, or it is over."""
        self._note(trial, state="stopped")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Its process died more often than it may."""
        self._note(trial, state="lost")

    def _note(self, trial: Any, *, state: str) -> None:
        self.num_over += 1
        numbers: Any = ray.get(self._board.numbers.remote())
        number = numbers.get(trial.trial_id)
        record = None if number is None else read_record(self._plan.out, number)
        if record is not None and record.state == "running":
            error = trial.get_error() or "its process died"
            message = "" if state == "stopped" else reason(error)
            note = {"state": state, "message": message}
            write_record(record.model_copy(update=note), out=self._plan.out)


# ---- the driver


@dataclass(frozen=True, slots=True)
class TrialsRun:
    """Records of all trials of a sweep; not whole where it was interrupted or out of time."""

    records: tuple[TrialRecord, ...]
    is_whole: bool


def run_trials(plan: TrialPlan, *, address: str | None, console: Console) -> TrialsRun:
    """Runs what is left of a sweep's trials.

    Raises:
        SweepError: the cluster is too small; nothing was started.
    """
    sweep, recipe = plan.sweep, Recipe.model_validate_json(plan.recipe)
    records = read_records(plan.out)
    search, space, todo = build_search(sweep, records)
    if todo == 0:
        return TrialsRun(tuple(records), is_whole=True)
    cpus = sweep_cpus(recipe, concurrent=sweep.at_once)
    gpus = sweep.concurrent * recipe.num_workers if recipe.use_gpu else 0
    began = time.monotonic()
    cluster = cluster_of(cpus, num_gpus=gpus, address=address)
    with environment(_SETTINGS), cluster as resources:
        check_sweep_resources(resources, concurrent=sweep.at_once, recipe=recipe)
        board: Any = ray.remote(num_cpus=0)(SweepBoard).remote()  # ray types it as a function

        watch = _Watch(plan, board)

        def latest() -> SweepProgress:
            steps: Any = read_board(board) or {}
            elapsed_s = time.monotonic() - began
            return SweepProgress(read_records(plan.out), steps, sweep.num_trials, elapsed_s)

        tuner = ray_tune.Tuner(
            ray_tune.with_resources(
                ray_tune.with_parameters(_trial, plan=plan, board=board), _resources(recipe)
            ),
            param_space=space,
            tune_config=ray_tune.TuneConfig(
                search_alg=search,
                scheduler=build_scheduler(sweep, num_steps=recipe.num_steps, records=records),
                num_samples=todo,
                max_concurrent_trials=sweep.at_once,
                time_budget_s=_budget_s(sweep, todo),
            ),
            run_config=ray_tune.RunConfig(
                name=f"sweep-{time.time_ns()}",
                storage_path=str(plan.out / "ray"),
                failure_config=ray_tune.FailureConfig(max_failures=sweep.max_failures),
                callbacks=[watch],
                verbose=0,
            ),
        )
        hush("ray.tune")
        with SweepDisplay(latest, console=console), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Consider boosting PBT")
            try:
                tuner.fit()
            except TuneError as error:
                raise RunFailedError(
                    f"Ray Tune stopped: {reason(error)}. Trials that are over stand; go on with "
                    "--resume"
                ) from error
    return TrialsRun(tuple(read_records(plan.out)), is_whole=watch.num_over >= todo)


def _resources(recipe: Recipe) -> Any:
    """A trial of one worker is that worker; else it waits for a run of Ray Train."""
    alone = recipe.num_workers == 1
    one = {"CPU": 1.0 if alone else 0.001, "GPU": float(alone and recipe.use_gpu)}
    return ray_tune.PlacementGroupFactory([{name: n for name, n in one.items() if n}])


def _budget_s(sweep: SweepConfig, todo: int) -> float:
    """Longest time of all trials, each restarted as often as it may."""
    rounds = math.ceil(todo / sweep.at_once)
    return sweep.timeout_s * rounds * (1 + sweep.max_failures)
