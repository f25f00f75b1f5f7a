"""The report of a sweep: one page that needs no other file (`page.html`), and its figures."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from mmtrain.process.duration import duration
from mmtrain.report.figures import to_svg
from mmtrain.report.report import html_page
from mmtrain.tuning.figures import LABELS, front_figure, importance_figure, scores_figure
from mmtrain.tuning.study import importances
from mmtrain.tuning.sweep import Objective, SweepConfig
from mmtrain.tuning.trials import SweepOutcome, TrialRecord


def sweep_figures(outcome: SweepOutcome, *, sweep: SweepConfig) -> dict[str, Figure]:
    """Scores by trial; what mattered, where enough trials tell; the front of several objectives."""
    figures = {"scores": scores_figure(outcome.trials, objective=sweep.objectives[0])}
    if shares := importances(outcome.trials, sweep=sweep):
        figures["importance"] = importance_figure(shares)
    if len(sweep.objectives) > 1:
        figures["front"] = front_figure(outcome, objectives=sweep.objectives)
    return figures


def sweep_page(
    outcome: SweepOutcome, *, sweep: SweepConfig, figures: Mapping[str, Figure] | None = None
) -> str:
    """The page as HTML.

    Args:
        outcome: of the sweep.
        sweep: what was searched.
        figures: of `sweep_figures`; None: they are drawn.
    """
    drawn = figures or sweep_figures(outcome, sweep=sweep)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    body = environment.get_template("page.html").render(
        outcome=outcome,
        sweep=sweep,
        best=outcome.best_trial,
        figures={name: to_svg(figure) for name, figure in drawn.items()},
        count=[record.state for record in outcome.trials].count,
        seconds=duration(sum(record.seconds for record in outcome.trials)),
        heads=[LABELS[name].partition(" (")[0].partition(",")[0] for name in sweep.objectives],
        objective_text=objective_text,
        shown=_shown,
        mark=partial(_mark, outcome=outcome, several=len(sweep.objectives) > 1),
    )
    return html_page(body, title=f"Sweep {sweep.name}: {len(outcome.trials)} trials")


def objective_text(name: Objective, value: float) -> str:
    """An objective's value as a person reads it."""
    if name == "parameters":
        return f"{value:,.0f}"
    return f"{value:.2f} ms" if name == "latency_ms" else f"{value:.3f}"


def _shown(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _mark(record: TrialRecord, *, outcome: SweepOutcome, several: bool) -> str:
    """What a trial is among the others."""
    if record.number == outcome.best:
        return "knee" if several else "best"
    return "front" if several and record.number in outcome.front else ""
