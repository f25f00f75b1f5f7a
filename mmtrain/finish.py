"""What follows training: measure the bundle, write results and report, register, tell MLflow."""

import concurrent.futures
import json
import multiprocessing
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from rich.console import Console

from mmtrain.bundle import code_version, load_card
from mmtrain.derive.tradeoff import TRADEOFF, Cuts, TradeoffPoint
from mmtrain.evaluate import evaluate
from mmtrain.evaluate.results import RESULTS_FILE, Results, run_results, to_metrics, write_results
from mmtrain.predict.predictor import Predictor
from mmtrain.recipe import Recipe
from mmtrain.registry.register import register as register_bundle
from mmtrain.report import figures
from mmtrain.report.report import Run, write_report
from mmtrain.run.job import TrainedRun
from mmtrain.run.runlog import (
    GRADIENTS,
    KEPT,
    ROUTING,
    SERIES,
    read_agreement,
    read_kept,
    read_routing,
    read_series,
)
from mmtrain.store.config import TrackingConfig
from mmtrain.store.models import ModelVersion, RegistryError
from mmtrain.store.tracking import Tracker
from pipelines.files import write_whole

REPORT = "report.html"


@dataclass(frozen=True, slots=True)
class Finished:
    """A run that was measured and reported; `version` is None where MLflow was away."""

    results: Results
    report: Path
    version: ModelVersion | None
    times: Mapping[str, float] = field(default_factory=dict)


def finish_run(
    run: TrainedRun,
    recipe: Recipe,
    *,
    data_dir: Path,
    tracking: TrackingConfig,
    times: Mapping[str, float],
    console: Console,
) -> Finished:
    """Measures, writes `results.json` and `report.html`, registers the model.

    Args:
        run: the trained run.
        recipe: its recipe.
        data_dir: folder of the built corpora.
        tracking: where MLflow is.
        times: seconds of the phases before, for the report.
        console: where it is told.
    """
    began = time.monotonic()
    console.print("evaluating on the test splits ...")
    results = evaluate_in_parallel(run.bundle, data_dir=data_dir, tasks=tuple(recipe.tasks))
    write_results(results, path=run.out / RESULTS_FILE)
    tradeoff = _measure_tradeoff(run, recipe, data_dir=data_dir)
    times = {**times, "evaluation": time.monotonic() - began}
    metrics = to_metrics(results)
    with Tracker.open(tracking, out=run.out, name=recipe.name, resume=True) as tracker:
        tracker.log_metrics(metrics, step=results.step)
        tracker.flush(timeout_s=10)
        run_id = run.run_id or tracker.run_id  # MLflow may have been away when the run began
        version = _register(
            run, recipe, uri=tracker.uri, run_id=run_id, metrics=metrics, console=console
        )
        report = run.out / REPORT
        story = replace(
            _story(run, recipe, times=times, version=version),
            tradeoff={name: (point.operations, point.score) for name, point in tradeoff.items()},
        )
        write_report(results, run=story, path=report)
        _tell(tracker, story=story, report=report)
    return Finished(results, report, version, times)


def evaluate_in_parallel(bundle: Path, *, data_dir: Path, tasks: tuple[str, ...]) -> Results:
    """`evaluate_model`, tasks shared over a process for each core; the same numbers as in one."""
    num_processes = min(os.cpu_count() or 1, len(tasks))
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(
        num_processes, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        calls = [
            pool.submit(evaluate.evaluate_model, bundle, data_dir=data_dir, tasks=(task,))
            for task in tasks
        ]
        rows = [call.result() for call in calls]
    first = rows[0]
    return run_results(
        {name: row for result in rows for name, row in result.tasks.items()},
        name=first.name,
        step=first.step,
        seconds=first.totals.seconds,
        num_parameters=first.totals.num_parameters,
    )


def _register(
    run: TrainedRun,
    recipe: Recipe,
    *,
    uri: str,
    run_id: str | None,
    metrics: Mapping[str, float],
    console: Console,
) -> ModelVersion | None:
    try:
        return register_bundle(
            run.bundle, name=recipe.name, tracking_uri=uri, run_id=run_id, metrics=metrics
        )
    except RegistryError as error:  # the run is whole without it
        console.print(f"not registered: {error}", style="yellow", markup=False)
        return None


def _measure_tradeoff(
    run: TrainedRun, recipe: Recipe, *, data_dir: Path
) -> dict[str, TradeoffPoint]:
    """What unions of the subtasks cost and do, also as `tradeoff.json`; none without masks."""
    if recipe.pruning is None:
        return {}
    points = Cuts(Predictor.load(run.bundle), data_dir=data_dir).tradeoff()
    shown = {name: asdict(point) for name, point in points.items()}
    write_whole(run.out / TRADEOFF, json.dumps(shown, indent=1) + "\n")
    return points


def _story(
    run: TrainedRun, recipe: Recipe, *, times: Mapping[str, float], version: ModelVersion | None
) -> Run:
    """What the report tells beside the results."""
    lines = read_series(run.out / SERIES)
    routing = read_routing(run.out / ROUTING)
    agreement = read_agreement(run.out / GRADIENTS)
    card, _ = load_card(run.bundle)
    facts = {"MLflow run": run.run_id or "none", "code": code_version()}
    if version:
        facts["registered as"] = f"{version.uri}, version {version.version}"
    return Run(
        curves={
            task: [(line["step"], line["loss"][task]) for line in lines if task in line["loss"]]
            for task in recipe.tasks
        },
        counts=[(line["step"], line["task_steps"]) for line in lines],
        routing=routing.layers,
        routing_tasks=routing.tasks,
        agreement=agreement.cosines,
        agreement_tasks=agreement.tasks,
        kept=read_kept(run.out / KEPT),
        recipe=recipe.model_dump_json(indent=1),
        corpora=card.lineage.corpora,
        times=times,
        facts=facts,
    )


def _tell(tracker: Tracker, *, story: Run, report: Path) -> None:
    """Figures and the report to MLflow."""
    tracker.log_figure(figures.curves_figure(story.curves), name="figures/losses.png")
    for layer, rows in story.routing.items():
        figure = figures.routing_figure(rows, tasks=story.routing_tasks)
        tracker.log_figure(figure, name=f"figures/routing_{layer.replace('.', '_')}.png")
    if story.agreement:
        figure = figures.agreement_figure(story.agreement, tasks=story.agreement_tasks)
        tracker.log_figure(figure, name="figures/gradient_agreement.png")
        tracker.log_artifact(report.with_name(GRADIENTS))
    if story.kept:
        _tell_kept(tracker, story=story, report=report)
    tracker.log_artifact(report)
    tracker.log_artifact(report.with_name(RESULTS_FILE))


def _tell_kept(tracker: Tracker, *, story: Run, report: Path) -> None:
    """What subtasks keep, and the trade-off, to MLflow."""
    drawn = figures.kept_figures(story.kept)
    drawn["tradeoff"] = figures.tradeoff_figure(story.tradeoff)
    for name, figure in drawn.items():
        tracker.log_figure(figure, name=f"figures/{name}.png")
    for name in (KEPT, TRADEOFF):
        tracker.log_artifact(report.with_name(name))
