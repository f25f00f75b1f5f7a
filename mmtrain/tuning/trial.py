"""One trial: its recipe, what is measured of it, and what MLflow is told. No Ray.

A trial is a run in segments: trained up to a step, measured on the validation split, and on. The
learning rates are those of the whole run, so segments change nothing but where it is measured.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

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
from mmtrain.tuning.score import combine_scores, measure_tasks
from mmtrain.tuning.study import is_pruned
from mmtrain.tuning.sweep import (
    OF_MASKS,
    Objective,
    SweepConfig,
    Values,
    apply_values,
    measured_steps,
)
from mmtrain.tuning.trials import (
    RungPoint,
    State,
    TrialRecord,
    read_records,
    trial_folder,
    write_record,
)
from pipelines.errors import MMTrainError

_BASELINE_EXAMPLES = 10_000  # that a trivial predictor is fitted on

Train = Callable[[Job, Recipe], None]  # trains a job up to its `until`


@dataclass(frozen=True, slots=True)
class TrialPlan:
    """What all trials of a sweep share; it travels to their processes."""

    sweep: SweepConfig
    recipe_json: str
    out: Path
    data_dir: Path
    tracking: TrackingConfig  # with the sweep's run as the parent

    def recipe_of(self, values: Values) -> Recipe:
        """The recipe of a trial."""
        return apply_values(Recipe.model_validate_json(self.recipe_json), values)

    def tracking_of(self, number: int) -> TrackingConfig:
        """Where a trial is tracked."""
        return self.tracking.model_copy(update={"run_name": f"trial {number}"})


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


def measure_trial(plan: TrialPlan, record: TrialRecord, *, at_end: bool) -> TrialRecord:
    """Measures a trial's bundle on the validation split; costs are measured at its end.

    Raises:
        SweepError: a reference is no better than the trivial baseline.
    """
    sweep, bundle = plan.sweep, trial_folder(plan.out, record.number) / BUNDLE
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
    point = RungPoint(step=record.step, score=score, values=record.values)
    return record.with_(
        points=(*record.points, point), tasks=tasks, objectives={"score": score, **measured}
    )


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
            found["subset_score"] = mean(point.score for point in points)
            found["kept_flops"] = mean(point.operations for point in points)
        if "latency_ms" in objectives:
            found["latency_ms"] = mean(cuts.latency_ms(union) for union in basis)
    return {name: found[name] for name in objectives if name != "score"}


def _latency_ms(predictor: Predictor, *, data_dir: Path) -> float:
    """Of a pass of one example of each task, summed over tasks."""
    batches = [
        task_inputs(predictor, task, read_drawn(data_dir, task=task, split="validation", limit=1))
        for task in predictor.tasks
    ]
    return latencies({"whole": predictor.model}, batches)["whole"]


def tell_trial(plan: TrialPlan, record: TrialRecord, *, status: Status | None) -> str | None:
    """The newest measurement of a trial to its run; with a status the run ends.

    Args:
        plan: of the sweep.
        record: of the trial.
        status: how it ended; None: it goes on.

    Returns:
        MLflow's id of the run; None while MLflow has not been reached.
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
    return tracker.run_id


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
        record = record.with_(run_id=job.run_id, num_steps=recipe.num_steps)
        write_record(record, out=plan.out)
        for until in measured_steps(recipe.num_steps, sweep=plan.sweep):
            if until <= record.step:
                continue
            train(replace(job, until=until), recipe)
            at_end = until == record.num_steps
            record = measure_trial(plan, record.with_(step=until), at_end=at_end)
            record = record.with_(seconds=time.monotonic() - began, state=_state(plan, record))
            run_id = tell_trial(plan, record, status="FINISHED" if at_end else None)
            record = record.with_(run_id=run_id)
            write_record(record, out=plan.out)
            yield record
            if record.has_ended:
                return
    except MMTrainError as error:
        failed = record.with_(state="failed", message=str(error))
        write_record(failed, out=plan.out)  # told by the driver: the run's log is still open here


def _state(plan: TrialPlan, record: TrialRecord) -> State:
    """How a trial stands after a measurement: at its end, left behind, or going on."""
    if record.step == record.num_steps:
        return "finished"
    others = [one for one in read_records(plan.out) if one.number != record.number]
    return "stopped" if is_pruned(plan.sweep, record, others) else "running"


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
    own, better = (trial_folder(plan.out, r.number) / CHECKPOINTS for r in (record, donor))
    *_, source = sorted(better.glob(f"{folder_name(step, 0)}*"))  # later attempts are newer
    shutil.rmtree(own, ignore_errors=True)
    shutil.copytree(source, own / source.name)
    points = tuple(point for point in donor.points if point.step <= step)
    record = record.with_(state="running", step=step, points=points)
    write_record(record, out=plan.out)
    return record
