"""A sweep from its first trial to its report: the folder that it leaves.

sweep.json, recipe.json    what was asked for
trials/<number>/           a run each: trial.json, series.jsonl; the best one's bundle
best.json                  the recipe of the best trial; `mmtrain train best.json` repeats it
sweep_results.json         all trials, the best, the front; report.html shows them
references.json            of --per-task: what each task reached alone (`alone.py`)
"""

import json
import logging
import shutil
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from rich.console import Console

from mmtrain.bundle import code_version
from mmtrain.files import BUNDLE, CHECKPOINTS, RECIPE
from mmtrain.process.errors import RunFailedError, RunInterruptedError
from mmtrain.process.termination import interruption
from mmtrain.recipe import Recipe
from mmtrain.run.prepare import prepare_run
from mmtrain.store.config import TrackingConfig, tracking_uri
from mmtrain.store.journal import JournalError
from mmtrain.store.tracking import Tracker, status_of
from mmtrain.tuning.report import sweep_figures, sweep_page
from mmtrain.tuning.study import knee, pareto_front
from mmtrain.tuning.sweep import SweepConfig, SweepError, base_recipe, check_sweep
from mmtrain.tuning.trial import TrialPlan, tell_trial
from mmtrain.tuning.trials import SweepOutcome, TrialRecord, read_records, trial_folder
from mmtrain.tuning.tune import run_trials
from pipelines.errors import first_problem
from pipelines.files import read_retried, write_whole
from pipelines.ownership import owns_out

Held = TypeVar("Held", bound=BaseModel)

logger = logging.getLogger(__name__)

SWEEP, BEST, RESULTS, REPORT = "sweep.json", "best.json", "sweep_results.json", "report.html"
_MAY_CHANGE = ("num_trials", "concurrent", "max_failures", "timeout_s")  # when it goes on


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
    with tracked_sweep(tracking, out=out, name=sweep.name, resume=resume) as (tracker, under):
        tracker.log_params({"sweep": sweep.model_dump(mode="json"), "recipe": recipe.name})
        names = {"sweep": sweep.name, "recipe": recipe.name}
        tracker.log_tags({**names, "code_version": code_version()})
        for name in (SWEEP, RECIPE):
            tracker.log_artifact(out / name)
        under = under.model_copy(update={"run_name": None})
        plan = TrialPlan(sweep, recipe.model_dump_json(), out, data_dir, under)
        try:
            run_trials(plan, address=address, console=console or Console())
        finally:
            records = read_records(out)
            _close_trials(plan, records)
        front = _front(sweep, records)
        outcome = SweepOutcome(
            name=sweep.name,
            out=out,
            best=knee(front, objectives=sweep.objectives).number,
            best_recipe=out / BEST,
            front=tuple(record.number for record in front),
            run_id=tracker.run_id,
            seconds=time.monotonic() - began,
            trials=tuple(records),
        )
        _finish(plan, outcome, tracker=tracker)
    return outcome


@contextmanager
def tracked_sweep(
    tracking: TrackingConfig | None, *, out: Path, name: str, resume: bool
) -> Generator[tuple[Tracker, TrackingConfig]]:
    """The run of a sweep in MLflow, and where the runs under it go; it ends as the body does."""
    config = tracking or TrackingConfig()
    config = config.model_copy(update={"uri": tracking_uri(config, out=out)})
    tracker = Tracker.open(config, out=out, name=name, resume=resume)
    try:
        yield tracker, config.model_copy(update={"parent_run_id": tracker.run_id})
    except BaseException as error:
        tracker.close(status=status_of(error))
        raise
    tracker.close(status="FINISHED")


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
        new, old = getattr(sweep, field), getattr(before, field)
        if new != old and field not in _MAY_CHANGE:
            raise SweepError(
                f"{out} holds a sweep with {field} {old!s:.200}, this one has {new!s:.200}; go on "
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


def _front(sweep: SweepConfig, records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The best trials of a sweep that is over: of one objective those that share the best value.

    Raises:
        RunFailedError: the sweep was cut off, or no trial has finished.
    """
    num_over = sum(record.state != "running" for record in records)
    if num_over < sweep.num_trials:
        over = sum(record.has_ended for record in records)
        raise RunInterruptedError(
            f"{interruption()}; {over} of {sweep.num_trials} trials are over, go on with --resume"
        )
    front = pareto_front(records, sweep=sweep)
    if not front:
        why = next((record.message for record in records if record.message), "none began")
        raise RunFailedError(f"no trial of {len(records)} has finished: {why}")
    return front


def _finish(plan: TrialPlan, outcome: SweepOutcome, *, tracker: Tracker) -> None:
    """Best recipe, results, figures and report, on disk and in MLflow."""
    out, best = outcome.out, outcome.best_trial
    figures = sweep_figures(outcome, sweep=plan.sweep)
    recipe = plan.recipe_of(best.values)
    write_whole(out / BEST, recipe.model_dump_json(indent=1) + "\n")
    write_whole(out / RESULTS, json.dumps(outcome.model_dump(mode="json"), indent=1) + "\n")
    write_whole(out / REPORT, sweep_page(outcome, sweep=plan.sweep, figures=figures))
    finished = [record for record in outcome.trials if record.state == "finished"]
    for record in finished:
        tracker.log_metrics(record.objectives, step=record.number)
    values = {f"best/{name}": value for name, value in best.objectives.items()}
    tracker.log_metrics(values, step=len(finished))
    tracker.log_tags({"best_trial": str(best.number)})
    for name, figure in figures.items():
        tracker.log_figure(figure, name=f"figures/{name}.png")
    for name in (BEST, RESULTS, REPORT):
        tracker.log_artifact(out / name)
    _clear(outcome)


def _clear(outcome: SweepOutcome) -> None:
    """Checkpoints go, and all bundles but the best trial's."""
    shutil.rmtree(outcome.out / "ray", ignore_errors=True)
    for record in outcome.trials:
        folder = trial_folder(outcome.out, record.number)
        bundle = () if record.number == outcome.best else (BUNDLE,)
        for name in ("ray", CHECKPOINTS, *bundle):
            shutil.rmtree(folder / name, ignore_errors=True)
