"""The report of a run: `report.html`, one file that needs no other, and the terminal's table.

Both are drawn from `Results`; nothing is measured here. The page's text is in `templates/`, where
every value that comes from data or from a model is escaped; media are `data:` URIs and nothing is
loaded from elsewhere (see the policy in the page's head), so that a report can be mailed and opened
anywhere.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from rich.console import Group
from rich.table import Table
from rich.text import Text

from mmtrain.evaluate.results import Results, Score, with_unit
from mmtrain.process.duration import duration
from pipelines.files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mmtrain.masks.kept import KeptPoint  # torch: a page needs none

Curves = Mapping[str, "list[tuple[int, float]]"]
Routing = Mapping[str, "list[list[int]]"]
Counts = Sequence[tuple[int, Mapping[str, int]]]


@dataclass(frozen=True, slots=True)
class Run:
    """What the report shows of a run beside its results.

    Args:
        curves: training loss by task, as (step, loss), steps ascending.
        counts: batches of each task up to a step, steps ascending.
        routing: rows sent to experts by layer, (task, expert), tasks as in `routing_tasks`.
        routing_tasks: the rows' tasks.
        agreement: mean cosines between the gradients of `agreement_tasks`; none: not sampled.
        agreement_tasks: its rows and columns.
        kept: units that subtasks keep, by step; empty: the run has no masks.
        tradeoff: by union of subtasks, its network's share of operations and its score.
        recipe: the recipe as JSON.
        corpora: digest of each corpus.
        times: seconds of each phase (corpora, training, evaluation ...).
        facts: anything else worth a line: MLflow run, registered version, code version.
    """

    curves: Curves = field(default_factory=dict[str, "list[tuple[int, float]]"])
    counts: Counts = ()
    routing: Routing = field(default_factory=dict[str, "list[list[int]]"])
    routing_tasks: tuple[str, ...] = ()
    agreement: Sequence[Sequence[float | None]] = ()
    agreement_tasks: tuple[str, ...] = ()
    kept: "Mapping[int, KeptPoint]" = field(default_factory=dict[int, "KeptPoint"])
    tradeoff: Mapping[str, tuple[float, float]] = field(
        default_factory=dict[str, tuple[float, float]]
    )
    recipe: str = ""
    corpora: Mapping[str, str] = field(default_factory=dict[str, str])
    times: Mapping[str, float] = field(default_factory=dict[str, float])
    facts: Mapping[str, str] = field(default_factory=dict[str, str])


def write_report(results: Results, *, run: Run, path: Path) -> None:
    """Writes the page, whole or not at all."""
    write_whole(path, report_page(results, run=run))


def report_page(results: Results, *, run: Run) -> str:
    """The page as HTML."""
    title = f"{results.name}: {results.totals.tasks} tasks, one model"
    return render("run.html", title=title, results=results, run=run, figures=_figures(run))


def render(template: str, **values: Any) -> str:
    """A page from a file of `templates/`; every text among the values is escaped."""
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("mmtrain.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    filters: dict[str, Any] = environment.filters
    filters |= {"duration": duration, "of_full": _of_full, "svg": _svg}
    filters |= {"with_unit": with_unit, "words": _words}
    return environment


def _figures(run: Run) -> "dict[str, dict[str, Figure]]":
    """Figures of each section by caption; a section without data has none."""
    from mmtrain.report import figures  # matplotlib: the terminal's table needs none

    drawn: dict[str, dict[str, Figure]] = {
        "curves": {
            _words(name): figures.curve_figure(curve) for name, curve in run.curves.items() if curve
        },
        "shares": {},
        "routing": {
            layer: figures.routing_figure(rows, tasks=run.routing_tasks)
            for layer, rows in run.routing.items()
        },
        "agreement": {},
        "kept": figures.kept_figures(run.kept),
        "tradeoff": {},
    }
    if len(run.counts) > 1 and len(run.counts[0][1]) > 1:
        drawn["shares"][""] = figures.shares_figure(run.counts)
    if run.agreement:
        drawn["agreement"][""] = figures.agreement_figure(run.agreement, tasks=run.agreement_tasks)
    if run.tradeoff:
        drawn["tradeoff"][""] = figures.tradeoff_figure(run.tradeoff)
    return drawn


def _svg(figure: "Figure") -> str:
    from mmtrain.report.figures import to_svg

    return to_svg(figure)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _of_full(score: Score) -> tuple[float, float]:
    """Value and baseline in percent of a full bar: of 100 %, or of the larger of both."""
    full = 100.0 if score.unit == "%" else max(score.value, score.baseline, 1e-9)
    value, baseline = (min(100.0, 100.0 * v / full) for v in (score.value, score.baseline))
    return value, baseline


def results_table(results: Results) -> Group:
    """The table for a terminal: a line for each task, the harder split beneath its own."""
    table = Table(box=None, padding=(0, 2), header_style="dim")
    for name in ("task", "metric"):
        table.add_column(name)
    for name in ("value", "baseline", "steps", "time"):
        table.add_column(name, justify="right")
    for name, task in results.tasks.items():
        colour = "green" if task.beats_baseline else "red"
        value = Text(with_unit(task.value, task.unit), style=f"bold {colour}")
        baseline = with_unit(task.baseline, task.unit)
        steps, time = f"{task.steps:,}", duration(task.seconds)
        table.add_row(Text(name), task.label, value, baseline, steps, time)
        for split in task.splits[1:]:
            own = split.scores[0]
            line = (f"  {split.split}", own.label, with_unit(own.value, own.unit))
            table.add_row(*line, with_unit(own.baseline, own.unit), "", "", style="dim")
    totals = results.totals
    table.add_section()
    table.add_row("", "", "", "", f"{totals.steps:,}", duration(totals.seconds), style="bold")
    beaten = f"  {totals.beating_baseline} of {totals.tasks} beat their baseline"
    return Group(table, Text(beaten, style="bold"))  # no row: a column would wrap it
