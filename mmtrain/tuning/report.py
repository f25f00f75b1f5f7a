"""The report of a sweep: one page that needs no other file, and the same figures in MLflow."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from mmtrain.process.duration import duration
from mmtrain.report.report import render
from mmtrain.store.tracking import Tracker
from mmtrain.tuning.figures import LABELS, front_figure, importance_figure, scores_figure
from mmtrain.tuning.study import importances
from mmtrain.tuning.sweep import Objective, SweepConfig
from mmtrain.tuning.trials import TrialRecord, pareto_front
from pipelines.files import write_whole


def write_sweep_report(
    records: Sequence[TrialRecord], *, sweep: SweepConfig, best: TrialRecord, path: Path
) -> None:
    """Writes the page, whole or not at all."""
    write_whole(path, sweep_page(records, sweep=sweep, best=best))


def tell_figures(
    tracker: Tracker,
    records: Sequence[TrialRecord],
    *,
    sweep: SweepConfig,
    best: TrialRecord,
) -> None:
    """The sweep's figures as PNG files in its run."""
    for name, figure in sweep_figures(records, sweep=sweep, best=best).items():
        tracker.log_figure(figure, name=f"figures/{name}.png")


def sweep_figures(
    records: Sequence[TrialRecord], *, sweep: SweepConfig, best: TrialRecord
) -> dict[str, Figure]:
    """Scores by trial; what mattered, where enough trials tell; the front of several objectives."""
    first = sweep.objectives[0]
    figures = {"scores": scores_figure(records, objective=first)}
    if shares := importances(records, sweep=sweep, objective=first):
        figures["importance"] = importance_figure(shares)
    if len(sweep.objectives) > 1:
        front = pareto_front(records, objectives=sweep.objectives)
        figures["front"] = front_figure(records, front, knee=best, objectives=sweep.objectives)
    return figures


def sweep_page(records: Sequence[TrialRecord], *, sweep: SweepConfig, best: TrialRecord) -> str:
    """The page as HTML."""
    labels = [LABELS[name].partition(" (")[0].partition(",")[0] for name in sweep.objectives]
    fields = [field.removeprefix("tasks.") for field in sweep.space]
    return render(
        "sweep.html",
        title=f"Sweep {sweep.name}: {len(records)} trials",
        sweep=sweep,
        best=best,
        facts=_facts(records, sweep=sweep, best=best),
        values={field: _shown(value) for field, value in best.values.items()},
        figures=sweep_figures(records, sweep=sweep, best=best),
        columns=[(name, "n") for name in (*labels, *fields)],
        trials=_trials(records, sweep=sweep, best=best),
    )


def objective_text(name: Objective, value: float) -> str:
    """An objective's value as a person reads it."""
    if name == "parameters":
        return f"{value:,.0f}"
    return f"{value:.2f} ms" if name == "latency_ms" else f"{value:.3f}"


def _facts(
    records: Sequence[TrialRecord], *, sweep: SweepConfig, best: TrialRecord
) -> dict[str, str]:
    counts = Counter(record.state for record in records)
    facts: dict[str, str] = {
        name.replace("_", " "): objective_text(name, best.objectives[name])
        for name in sweep.objectives
    }
    facts |= {"finished": str(counts["finished"]), "stopped on the way": str(counts["stopped"])}
    return facts | {"time of trials": duration(sum(record.seconds for record in records))}


def _shown(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _trials(
    records: Sequence[TrialRecord], *, sweep: SweepConfig, best: TrialRecord
) -> list[tuple[TrialRecord, list[str], str]]:
    """Each trial with what was measured and set, as text, and with its mark."""
    several = len(sweep.objectives) > 1
    front = (
        {r.number for r in pareto_front(records, objectives=sweep.objectives)} if several else ()
    )
    rows: list[tuple[TrialRecord, list[str], str]] = []
    for record in records:
        cells = [
            objective_text(name, record.objectives[name]) if name in record.objectives else ""
            for name in sweep.objectives
        ]
        cells += [_shown(record.values.get(field, "")) for field in sweep.space]
        mark = "front" if record.number in front else ""
        if record.number == best.number:
            mark = "knee" if mark else "best"
        rows.append((record, cells, mark))
    return rows
