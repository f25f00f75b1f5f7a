"""A sweep from its first trial to its report: the folder that it leaves.

sweep.json, recipe.json    what was asked for
trials/<number>/           a run each: trial.json, series.jsonl; the best one's bundle
best.json                  the recipe of the best trial; `mmtrain train best.json` repeats it
sweep_results.json         all trials, the best, the front; report.html shows them
references.json            of --per-task: what each task reached alone
"""

import json
import logging
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from rich.console import Console

from mmtrain.bundle import code_version
from mmtrain.files import BUNDLE, CHECKPOINTS, RECIPE
from mmtrain.process.errors import RunFailedError, RunInterruptedError
from mmtrain.process.termination import interruption
from mmtrain.recipe import Recipe
from mmtrain.run.prepare import prepare_run
from mmtrain.run.task_steps import built_examples, built_splits
from mmtrain.store.config import TrackingConfig, tracking_uri
from mmtrain.store.journal import JournalError
from mmtrain.store.tracking import Tracker, status_of
from mmtrain.tuning.alone import alone_recipe, alone_sweep, joint_recipe, write_references
from mmtrain.tuning.report import tell_figures, write_sweep_report
from mmtrain.tuning.sweep import (
    SweepConfig,
    SweepError,
    apply_values,
    base_recipe,
    check_sweep,
)
from mmtrain.tuning.trial import TrialPlan, tell_trial
from mmtrain.tuning.trials import (
    TrialRecord,
    best_trial,
    pareto_front,
    read_records,
    trial_folder,
)
from mmtrain.tuning.tune import TrialsRun, run_trials
from pipelines.errors import first_problem
from pipelines.files import read_retried, write_whole
from pipelines.ownership import owns_out

Held = TypeVar("Held", bound=BaseModel)

logger = logging.getLogger(__name__)

SWEEP, BEST, RESULTS, REPORT = "sweep.json", "best.json", "sweep_results.json", "report.html"
_MAY_CHANGE = ("num_trials", "concurrent", "max_failures", "timeout_s")  # when it goes on


@dataclass(frozen=True, slots=True)
class SweepOutcome:
    """A sweep that has ended: of several objectives the best is the knee of the front."""

    name: str
    out: Path
    best: TrialRecord
    front: tuple[int, ...]
    records: tuple[TrialRecord, ...]
    run_id: str | None
    seconds: float

    @property
    def best_recipe(self) -> Path:
        """The best trial's recipe."""
        return self.out / BEST

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "name": self.name,
            "out": str(self.out),
            "best": self.best.number,
            "best_recipe": str(self.best_recipe),
            "front": list(self.front),
            "run_id": self.run_id,
            "seconds": self.seconds,
            "trials": [record.model_dump(mode="json") for record in self.records],
        }


@owns_out
def run_sweep(
    recipe: Recipe,
    sweep: SweepConfig,
    *,
    out: Path,
    data_dir: Path,
    resume: bool = False,
    address: str | None = None,
    tracking: TrackingConfig | None = None,
    console: Console | None = None,
) -> SweepOutcome:
    """Runs a sweep to its end, or goes on with the one in `out`.

    Args:
        recipe: what its trials change.
        sweep: what is searched and how.
        out: the sweep's folder, on a file system that all machines see.
        data_dir: folder of the built corpora, likewise.
        resume: go on with the sweep in `out`: no trial that has ended is repeated.
        address: Ray cluster; None: one on this machine, which ends with the sweep.
        tracking: where MLflow is; None: a SQLite file in `out`.
        console: where progress is shown.

    Raises:
        MMTrainError: of the kind that says what the user can mend.
    """
    began, out, data_dir = time.monotonic(), out.absolute(), data_dir.absolute()
    recipe = base_recipe(recipe, sweep)
    check_sweep(sweep, recipe)
    _check_recipe(recipe, data_dir=data_dir, tracking=tracking)
    _claim(recipe, sweep, out=out, resume=resume)
    config = tracking or TrackingConfig()
    config = config.model_copy(update={"uri": tracking_uri(config, out=out)})
    tracker = Tracker.open(config, out=out, name=sweep.name, resume=resume)
    try:
        _tell_start(tracker, recipe, sweep)
        under = config.model_copy(update={"parent_run_id": tracker.run_id, "run_name": None})
        plan = TrialPlan(sweep, recipe.model_dump_json(), out, data_dir, under)
        try:
            ran = run_trials(plan, address=address, console=console or Console())
        finally:
            _close_trials(plan, read_records(out))
        best = _best(sweep, ran)
        outcome = SweepOutcome(
            name=sweep.name,
            out=out,
            best=best,
            front=tuple(r.number for r in pareto_front(ran.records, objectives=sweep.objectives)),
            records=ran.records,
            run_id=tracker.run_id,
            seconds=time.monotonic() - began,
        )
        _finish(plan, outcome, tracker=tracker)
    except BaseException as error:
        tracker.close(status=status_of(error))
        raise
    tracker.close(status="FINISHED")
    return outcome


def _check_recipe(recipe: Recipe, *, data_dir: Path, tracking: TrackingConfig | None) -> None:
    """Refuses what no trial could train, as `mmtrain train` would; leaves nothing behind."""
    with tempfile.TemporaryDirectory() as folder:
        uri = tracking.uri if tracking else None
        prepare_run(recipe, out=Path(folder), data_dir=data_dir, resume=False, tracking_uri=uri)


def _claim(recipe: Recipe, sweep: SweepConfig, *, out: Path, resume: bool) -> None:
    """Writes what is asked for; a folder in use is gone on with, by the same sweep alone.

    Raises:
        SweepError: it holds a sweep, and this is another or is not to go on with it.
    """
    path = out / SWEEP
    if path.exists():
        if not resume:
            count = len(read_records(out))
            raise SweepError(
                f"{out} holds a sweep of {count} trials; go on with --resume, or give another --out"
            )
        _check_same(recipe, sweep, out=out)
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / RECIPE, recipe.model_dump_json(indent=1) + "\n")
    write_whole(path, sweep.model_dump_json(indent=1) + "\n")  # last: what has none is no sweep


def _check_same(recipe: Recipe, sweep: SweepConfig, *, out: Path) -> None:
    before = _read(out / SWEEP, SweepConfig)
    for field in type(sweep).model_fields:
        mine, its = getattr(sweep, field), getattr(before, field)
        if mine != its and field not in _MAY_CHANGE:
            raise SweepError(
                f"{out} holds a sweep with {field} {its!s:.200}, this one has {mine!s:.200}; go on "
                f"with `--sweep {out / SWEEP}`, or give another --out"
            )
    if recipe != _read(out / RECIPE, Recipe):
        raise SweepError(
            f"{out} holds a sweep of another recipe; go on with the recipe {out / RECIPE}, or "
            "give another --out"
        )


def _read(path: Path, kind: type[Held]) -> Held:
    """What a sweep's folder holds of itself.

    Raises:
        SweepError: it is missing, damaged, or of another version.
    """
    try:
        return kind.model_validate_json(read_retried(path.read_bytes, path=path))
    except FileNotFoundError:
        raise SweepError(f"{path} is missing; give another --out") from None
    except ValidationError as error:
        raise SweepError(
            f"{path} is damaged or of another version: {first_problem(error)}; give another --out"
        ) from None


def _tell_start(tracker: Tracker, recipe: Recipe, sweep: SweepConfig) -> None:
    tracker.log_params({"sweep": sweep.model_dump(mode="json"), "recipe": recipe.name})
    tracker.log_text(sweep.model_dump_json(indent=1), name=SWEEP)
    tracker.log_text(recipe.model_dump_json(indent=1), name=RECIPE)
    tracker.log_tags({"sweep": sweep.name, "recipe": recipe.name, "code_version": code_version()})


def _close_trials(plan: TrialPlan, records: Sequence[TrialRecord]) -> None:
    """Ends the runs of trials that could not do so themselves."""
    for record in records:
        tracks = (trial_folder(plan.out, record.number) / "tracking").exists()
        is_cut_off = record.state == "running" and tracks
        if not is_cut_off and record.state not in ("stopped", "failed", "lost"):
            continue
        failed = record.state in ("failed", "lost")
        try:
            tell_trial(plan, record, status="FAILED" if failed else "KILLED")
        except JournalError as error:  # its process does not end
            logger.warning("MLflow is not told of the end of trial %d: %s", record.number, error)


def _best(sweep: SweepConfig, ran: TrialsRun) -> TrialRecord:
    """The best trial of a sweep that is over.

    Raises:
        RunFailedError: the sweep was cut off, or no trial has finished.
    """
    if not ran.is_whole:
        over = sum(record.has_ended for record in ran.records)
        raise RunInterruptedError(
            f"{interruption()}; {over} of {sweep.num_trials} trials are over, go on with --resume"
        )
    best = best_trial(ran.records, objectives=sweep.objectives)
    if best is None:
        why = next((record.message for record in ran.records if record.message), "none began")
        raise RunFailedError(f"no trial of {len(ran.records)} has finished: {why}")
    return best


def _finish(plan: TrialPlan, outcome: SweepOutcome, *, tracker: Tracker) -> None:
    """Best recipe, results, figures and report, on disk and in MLflow."""
    out, best = outcome.out, outcome.best
    _write_best(plan, best)
    write_whole(out / RESULTS, json.dumps(outcome.to_dict(), indent=1) + "\n")
    write_sweep_report(outcome.records, sweep=plan.sweep, best=best, path=out / REPORT)
    _tell_end(tracker, outcome, sweep=plan.sweep)
    _clear(outcome)


def _write_best(plan: TrialPlan, best: TrialRecord) -> None:
    recipe = apply_values(Recipe.model_validate_json(plan.recipe), best.values)
    write_whole(plan.out / BEST, recipe.model_dump_json(indent=1) + "\n")


def _tell_end(tracker: Tracker, outcome: SweepOutcome, *, sweep: SweepConfig) -> None:
    finished = [record for record in outcome.records if record.state == "finished"]
    for record in finished:
        tracker.log_metrics(record.objectives, step=record.number)
    best = {f"best/{name}": value for name, value in outcome.best.objectives.items()}
    tracker.log_metrics(best, step=len(finished))
    tracker.log_tags({"best_trial": str(outcome.best.number)})
    tell_figures(tracker, outcome.records, sweep=sweep, best=outcome.best)
    for name in (BEST, RESULTS, REPORT):
        tracker.log_artifact(outcome.out / name)


def _clear(outcome: SweepOutcome) -> None:
    """Checkpoints go, and all bundles but the best trial's."""
    shutil.rmtree(outcome.out / "ray", ignore_errors=True)
    for record in outcome.records:
        folder = trial_folder(outcome.out, record.number)
        names = ("ray", CHECKPOINTS) if record == outcome.best else ("ray", CHECKPOINTS, BUNDLE)
        for name in names:
            shutil.rmtree(folder / name, ignore_errors=True)


# ---- tasks alone


@dataclass(frozen=True, slots=True)
class JointOutcome:
    """Sweeps of tasks alone and what they make together."""

    name: str
    out: Path
    by_task: dict[str, SweepOutcome]
    seconds: float

    @property
    def best_recipe(self) -> Path:
        """The joint recipe."""
        return self.out / BEST

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "name": self.name,
            "out": str(self.out),
            "best_recipe": str(self.best_recipe),
            "seconds": self.seconds,
            "tasks": {task: outcome.to_dict() for task, outcome in self.by_task.items()},
        }


@owns_out
def run_alone_sweeps(
    recipe: Recipe,
    sweep: SweepConfig,
    *,
    out: Path,
    data_dir: Path,
    resume: bool = False,
    tracking: TrackingConfig | None = None,
    console: Console | None = None,
    **where: Any,
) -> JointOutcome:
    """Tunes each task of a recipe alone, then joins their values; see `run_sweep`.

    Each task's sweep is in `tasks/<task>`, its run in MLflow under the joint one.
    """
    began, out, console = time.monotonic(), out.absolute(), console or Console()
    sizes = built_examples(built_splits(recipe, data_dir))
    parts = {task: alone_sweep(sweep, task) for task in recipe.tasks}  # refused before any starts
    config = tracking or TrackingConfig()
    config = config.model_copy(update={"uri": tracking_uri(config, out=out)})
    out.mkdir(parents=True, exist_ok=True)
    tracker = Tracker.open(config, out=out, name=f"{sweep.name}_per_task", resume=resume)
    under = config.model_copy(update={"parent_run_id": tracker.run_id})
    found: dict[str, SweepOutcome] = {}
    try:
        for task, part in parts.items():
            console.print(f"{task} alone ...", highlight=False)
            found[task] = run_sweep(
                alone_recipe(recipe, task, num_examples=sizes),
                part,
                out=out / "tasks" / task,
                data_dir=data_dir,
                resume=resume and (out / "tasks" / task / SWEEP).exists(),
                tracking=under.model_copy(update={"run_name": f"{sweep.name} {task}"}),
                console=console,
                **where,
            )
        best = {task: outcome.best for task, outcome in found.items()}
        joint = joint_recipe(recipe, best)
        write_whole(out / BEST, joint.model_dump_json(indent=1) + "\n")
        for path in (out / BEST, write_references(best, out=out)):
            tracker.log_artifact(path)
    except BaseException as error:
        tracker.close(status=status_of(error))
        raise
    tracker.close(status="FINISHED")
    return JointOutcome(sweep.name, out, found, time.monotonic() - began)
