"""The report of a sweep: one page that needs no other file (`page.html`), and its figures."""

from collections.abc import Mapping

from matplotlib.figure import Figure

from mmtrain.process.duration import duration
from mmtrain.report.report import render
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


def sweep_page(outcome: SweepOutcome, *, sweep: SweepConfig, figures: Mapping[str, Figure]) -> str:
    """The page as HTML; the figures are those of `sweep_figures`."""
    best, states = outcome.best_trial, [record.state for record in outcome.trials]
    facts = {
        name.replace("_", " "): _text(name, best.objectives[name]) for name in sweep.objectives
    }
    labels = [LABELS[name].partition(" (")[0].partition(",")[0] for name in sweep.objectives]
    fields = [field.removeprefix("tasks.") for field in sweep.space]
    return render(
        "sweep.html",
        title=f"Sweep {sweep.name}: {len(outcome.trials)} trials",
        sweep=sweep,
        best=best,
        facts={
            **facts,
            "finished": states.count("finished"),
            "stopped on the way": states.count("stopped"),
            "time of trials": duration(sum(record.seconds for record in outcome.trials)),
        },
        values={field: _shown(value) for field, value in best.values.items()},
        figures=figures,
        columns=[(name, "n") for name in (*labels, *fields)],
        trials=[_row(record, outcome, sweep=sweep) for record in outcome.trials],
    )


def _row(
    record: TrialRecord, outcome: SweepOutcome, *, sweep: SweepConfig
) -> tuple[TrialRecord, list[str], str]:
    """A trial with what was measured and set, as text, and what it is among the others."""
    several, measured = len(sweep.objectives) > 1, record.objectives
    cells = [_text(name, measured[name]) if name in measured else "" for name in sweep.objectives]
    cells += [_shown(record.values.get(field, "")) for field in sweep.space]
    if record.number == outcome.best:
        return record, cells, "knee" if several else "best"
    return record, cells, "front" if several and record.number in outcome.front else ""


def _text(objective: Objective, value: float) -> str:
    """An objective's value as a person reads it."""
    if objective == "parameters":
        return f"{value:,.0f}"
    return f"{value:.2f} ms" if objective == "latency_ms" else f"{value:.3f}"


def _shown(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
