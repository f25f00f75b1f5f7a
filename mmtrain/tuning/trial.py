"""One trial: its recipe, what is measured of it, and what MLflow is told. No Ray.

A trial is a run in segments: trained up to a step, measured on the validation split, and on. The
learning rates are those of the whole run, so segments change nothing but where it is measured.
"""

import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmtrain.bundle import load_bundle
from mmtrain.checkpoint.files import folder_name
from mmtrain.derive.measurement import latencies, task_inputs
from mmtrain.derive.tradeoff import Cuts, read_drawn
from mmtrain.evaluate.evaluate import EvaluationConfig, evaluate
from mmtrain.files import BUNDLE, CHECKPOINTS
from mmtrain.predict.predictor import Predictor
from mmtrain.recipe import Recipe
from mmtrain.run.job import Job
from mmtrain.run.prepare import prepare_run
from mmtrain.run.tracked import start_tracking
from mmtrain.store.config import TrackingConfig
from mmtrain.store.tracking import Status, Tracker
from mmtrain.tuning.score import TaskMeasure, combine_scores, measure_tasks
from mmtrain.tuning.sweep import (
    OF_MASKS,
    Objective,
    SweepConfig,
    Values,
    apply_values,
    measured_steps,
)
from mmtrain.tuning.trials import RungPoint, TrialRecord, trial_folder, write_record
from pipelines.errors import MMTrainError

_BASELINE_EXAMPLES = 10_000  # that a trivial predictor is fitted on

Train = Callable[[Job, Recipe], None]  # trains a job up to its `until`


@dataclass(frozen=True, slots=True)
class TrialPlan:
    """What all trials of a sweep share; it travels to their processes."""

    sweep: SweepConfig
    recipe: str  # JSON
    out: Path
    data_dir: Path
    tracking: TrackingConfig  # with the sweep's run as the parent

    def recipe_of(self, values: Values) -> Recipe:
        """The recipe of a trial."""
        return apply_values(Recipe.model_validate_json(self.recipe), values)

    def tracking_of(self, number: int) -> TrackingConfig:
        """Where a trial is tracked."""
        return self.tracking.model_copy(update={"run_name": f"trial {number}"})


@dataclass(frozen=True, slots=True)
class Measured:
    """What was found after a segment."""

    score: float
    tasks: dict[str, TaskMeasure]
    objectives: dict[str, float]


def start_trial(plan: TrialPlan, recipe: Recipe, *, number: int) -> Job:
    """Checks a trial's recipe, claims its folder and opens its run, new or the one of before.

    Raises:
        MMTrainError: the recipe cannot be trained; says why.
    """
    out, tracking = trial_folder(plan.out, number), plan.tracking_of(number)
    prepare_run(
        recipe, out=out, data_dir=plan.data_dir, resume=True, tracking_uri=plan.tracking.uri
    )
    run_id = start_tracking(recipe, tracking, out=out, data_dir=plan.data_dir)
    return Job(recipe.model_dump_json(), out, plan.data_dir, tracking, run_id)


def measure_trial(plan: TrialPlan, *, number: int, at_end: bool) -> Measured:
    """Measures a trial's bundle on the validation split; costs are measured at its end.

    Raises:
        SweepError: a reference is no better than the trivial baseline.
    """
    sweep, bundle = plan.sweep, trial_folder(plan.out, number) / BUNDLE
    predictor = Predictor(load_bundle(bundle))
    config = EvaluationConfig(
        limit=sweep.examples, num_samples=0, baseline_examples=_BASELINE_EXAMPLES
    )
    results = evaluate(predictor, data_dir=plan.data_dir, split="validation", config=config)
    tasks = measure_tasks(results, references=sweep.references)
    scores = {name: task.score for name, task in tasks.items()}
    score = combine_scores(scores, combine=sweep.combine, weights=sweep.weights)
    costs = sweep.objectives if at_end else ()
    measured = measure_costs(
        predictor, data_dir=plan.data_dir, objectives=costs, limit=sweep.examples
    )
    return Measured(score, tasks, {"score": score, **measured})


def measure_costs(
    predictor: Predictor, *, data_dir: Path, objectives: tuple[Objective, ...], limit: int
) -> dict[str, float]:
    """What a model costs, by objective.

    Of a model with masks, means over its basis subtasks: share of targets that the networks cut
    down to them hit, their operations over the whole network's, their latency. Of a model without,
    the latency is its own: a forward pass of one example of each task.

    Args:
        predictor: the model, opened.
        data_dir: folder of its corpora.
        objectives: what to measure; "score" is left out, it is no cost.
        limit: examples of a task.
    """
    found: dict[str, float] = {"parameters": float(predictor.bundle.card.num_parameters)}
    if predictor.bundle.card.pruning is None:
        if "latency_ms" in objectives:
            found["latency_ms"] = _latency_ms(predictor, data_dir=data_dir)
    elif objectives:
        cuts = Cuts(predictor, data_dir=data_dir, limit=limit)
        basis = [(name,) for name in cuts.subtasks]
        if any(name in OF_MASKS for name in objectives):
            points = [cuts.point(union) for union in basis]
            found["subset_score"] = statistics.mean(point.score for point in points)
            found["kept_flops"] = statistics.mean(point.operations for point in points)
        if "latency_ms" in objectives:
            found["latency_ms"] = statistics.mean(cuts.latency_ms(union) for union in basis)
    return {name: found[name] for name in objectives if name != "score"}


def _latency_ms(predictor: Predictor, *, data_dir: Path) -> float:
    """Of a pass of one example of each task, summed over tasks."""
    batches = [
        task_inputs(predictor, task, read_drawn(data_dir, task=task, split="validation", limit=1))
        for task in predictor.tasks
    ]
    return latencies({"whole": predictor.model}, batches)["whole"]


def tell_trial(plan: TrialPlan, record: TrialRecord, *, status: Status | None) -> None:
    """The newest measurement of a trial to its run; with a status the run ends.

    Args:
        plan: of the sweep.
        record: of the trial.
        status: how it ended; None: it goes on.
    """
    tracker = Tracker.open(
        plan.tracking_of(record.number),
        out=trial_folder(plan.out, record.number),
        name=f"trial {record.number}",
        resume=True,
        start_s=0,
    )
    tracker.log_params({f"trial.{field}": value for field, value in record.values.items()})
    tracker.log_tags({"trial": str(record.number), "trial_state": record.state})
    if record.points:
        values = {f"score/{name}": task.score for name, task in record.tasks.items()}
        values |= {
            f"validation/{name}/{task.metric}": task.value for name, task in record.tasks.items()
        }
        tracker.log_metrics({**values, **record.objectives}, step=record.step)
    tracker.close(status=status)


def run_segments(plan: TrialPlan, record: TrialRecord, *, train: Train) -> Iterator[TrialRecord]:
    """Trains a trial from where it is to its end; yields its record after each measurement.

    What a restart does not mend ends the trial as "failed", with its message, and yields nothing.

    Args:
        plan: of the sweep.
        record: of the trial; its step is where its newest checkpoint is, or before.
        train: trains a job up to its `until`.
    """
    began = time.monotonic() - record.seconds
    try:
        recipe = plan.recipe_of(record.values)
        job = start_trial(plan, _with_checkpoints(recipe, plan.sweep), number=record.number)
        record = _update(record, run_id=job.run_id)
        write_record(record, out=plan.out)
        for until in measured_steps(recipe.num_steps, sweep=plan.sweep):
            if until <= record.step:
                continue
            train(replace(job, until=until), recipe)
            record = _measured(plan, record, until=until, seconds=time.monotonic() - began)
            yield record
    except MMTrainError as error:
        failed = _update(record, state="failed", message=str(error))
        write_record(failed, out=plan.out)  # told by the driver: the run's log is still open here


def _measured(plan: TrialPlan, record: TrialRecord, *, until: int, seconds: float) -> TrialRecord:
    """Measures, writes and tells; the trial has ended where these were its last steps."""
    at_end = until == record.num_steps
    found = measure_trial(plan, number=record.number, at_end=at_end)
    point = RungPoint(step=until, score=found.score, values=record.values)
    record = _update(
        record,
        step=until,
        state="finished" if at_end else "running",
        points=(*record.points, point),
        tasks=found.tasks,
        objectives=found.objectives,
        seconds=seconds,
    )
    tell_trial(plan, record, status="FINISHED" if at_end else None)
    write_record(record, out=plan.out)
    return record


def _update(record: TrialRecord, **fields: Any) -> TrialRecord:
    return record.model_copy(update=fields)


def _with_checkpoints(recipe: Recipe, sweep: SweepConfig) -> Recipe:
    """All checkpoints stay where other trials may go on from them."""
    return recipe.with_(keep_checkpoints=10_000) if sweep.scheduler == "pbt" else recipe


def take_over(
    plan: TrialPlan, record: TrialRecord, *, donor: TrialRecord, step: int
) -> TrialRecord:
    """A trial that goes on from another's measurement, with its own values.

    Args:
        plan: of the sweep.
        record: of the trial that is left behind; its values are the new ones.
        donor: of the better trial.
        step: of the donor's measurement.
    """
    mine, its = (trial_folder(plan.out, r.number) / CHECKPOINTS for r in (record, donor))
    *_, source = sorted(its.glob(f"{folder_name(step, 0)}*"))  # later attempts are newer
    shutil.rmtree(mine, ignore_errors=True)
    shutil.copytree(source, mine / source.name)
    points = tuple(point for point in donor.points if point.step <= step)
    record = _update(record, state="running", step=step, points=points)
    write_record(record, out=plan.out)
    return record
