"""The report of a sweep: one page that needs no other file, and the same figures in MLflow."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from matplotlib.figure import Figure

from mmtrain.report.figures import to_svg
from mmtrain.report.report import details, duration, html_page, html_table, section
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
    figures = sweep_figures(records, sweep=sweep, best=best)
    drawn = {name: f"<figure>{to_svg(figure)}</figure>" for name, figure in figures.items()}
    several = len(sweep.objectives) > 1
    title = escape(f"Sweep {sweep.name}: {len(records)} trials")
    as_json = sweep.model_dump_json(indent=1)
    sections = [
        f"<h1>{title}</h1>{_facts(records, sweep=sweep, best=best)}",
        section(
            f"{'Knee' if several else 'Best'}: trial {best.number}",
            _values(best),
            note="best.json is its recipe; mmtrain train best.json repeats it.",
        ),
        section("Tasks of it", _tasks(best), note="Validation; 0 is trivial, 1 the reference."),
        section("Front", drawn.get("front", ""), note="No trial is better in every objective."),
        section("Scores", drawn["scores"]),
        section(
            "What mattered",
            drawn.get("importance", ""),
            note="Share of each field, by PED-ANOVA; of few trials it is a hint.",
        ),
        section("Trials", _trials(records, sweep=sweep, best=best)),
        section("Sweep", details("As JSON", f"<pre>{escape(as_json)}</pre>")),
    ]
    return html_page("".join(sections), title=title)


def objective_text(name: Objective, value: float) -> str:
    """An objective's value as a person reads it."""
    if name == "parameters":
        return f"{value:,.0f}"
    return f"{value:.2f} ms" if name == "latency_ms" else f"{value:.3f}"


def _facts(records: Sequence[TrialRecord], *, sweep: SweepConfig, best: TrialRecord) -> str:
    counts = {state: sum(r.state == state for r in records) for state in ("finished", "stopped")}
    facts: dict[str, str] = {
        name.replace("_", " "): objective_text(name, best.objectives[name])
        for name in sweep.objectives
    }
    facts |= {"finished": str(counts["finished"]), "stopped on the way": str(counts["stopped"])}
    facts["time of trials"] = duration(sum(record.seconds for record in records))
    items = "".join(
        f"<div><dt>{escape(n)}</dt><dd>{escape(v)}</dd></div>" for n, v in facts.items()
    )
    return f'<dl class="facts">{items}</dl>'


def _values(best: TrialRecord) -> str:
    rows = (
        f"<th><code>{escape(field)}</code></th><td>{escape(_shown(value))}</td>"
        for field, value in best.values.items()
    )
    return html_table([("field", ""), ("value", "")], rows)


def _shown(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _tasks(best: TrialRecord) -> str:
    head = [("task", ""), ("metric", ""), ("value", "n"), ("trivial", "n"), ("reference", "n")]
    rows = (
        f"<th>{escape(name)}</th><td>{escape(task.metric)}</td>"
        + "".join(
            f'<td class="n">{value:.2f}</td>'
            for value in (task.value, task.baseline, task.reference)
        )
        + f'<td class="n"><b>{task.score:.3f}</b></td>'
        for name, task in best.tasks.items()
    )
    return html_table([*head, ("score", "n")], rows) if best.tasks else ""


def _trials(records: Sequence[TrialRecord], *, sweep: SweepConfig, best: TrialRecord) -> str:
    """All trials, those with the best first objective first."""
    numbers = {r.number for r in pareto_front(records, objectives=sweep.objectives)}
    head = [("trial", "n"), ("state", ""), ("steps", "n")]
    head += [(LABELS[name].partition(" (")[0].partition(",")[0], "n") for name in sweep.objectives]
    head += [(field.removeprefix("tasks."), "n") for field in sweep.space] + [("", "")]
    return html_table(head, (_trial(r, sweep=sweep, best=best, front=numbers) for r in records))


def _trial(record: TrialRecord, *, sweep: SweepConfig, best: TrialRecord, front: set[int]) -> str:
    marks: Mapping[bool, str] = {True: "best", False: ""}
    mark = marks[record.number == best.number]
    if len(sweep.objectives) > 1 and record.number in front:
        mark = "knee" if mark else "front"
    measured = [
        objective_text(name, record.objectives[name]) if name in record.objectives else ""
        for name in sweep.objectives
    ]
    values = [_shown(record.values.get(field, "")) for field in sweep.space]
    cells = "".join(f'<td class="n">{escape(text)}</td>' for text in (*measured, *values))
    state = f'<td title="{escape(record.message, quote=True)}">{record.state}</td>'
    return (
        f'<td class="n">{record.number}</td>{state}<td class="n">{record.step:,}</td>{cells}'
        f"<td><b>{mark}</b></td>"
    )
