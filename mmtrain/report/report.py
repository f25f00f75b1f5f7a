"""The report of a run: `report.html`, one file that needs no other, and the terminal's table.

Both are drawn from `Results`; nothing is measured here. Every text that comes from data or from a
model is escaped; media are `data:` URIs and nothing is loaded from elsewhere (see the policy in
the page's head), so that a report can be mailed and opened anywhere.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from mmtrain.evaluate.results import Results, Sample, Score, SplitResult, TaskResult
from mmtrain.process.duration import duration
from pipelines.files import write_whole

if TYPE_CHECKING:
    from mmtrain.masks.kept import KeptPoint  # torch: a page needs none

Curves = Mapping[str, "list[tuple[int, float]]"]
Routing = Mapping[str, "list[list[int]]"]
Counts = Sequence[tuple[int, Mapping[str, int]]]

_POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"
_YES, _NO = '<span class="good">&#10003;</span>', '<span class="bad">&#10007;</span>'


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

    curves: Curves = field(default_factory=dict)
    counts: Counts = ()
    routing: Routing = field(default_factory=dict)
    routing_tasks: tuple[str, ...] = ()
    agreement: Sequence[Sequence[float | None]] = ()
    agreement_tasks: tuple[str, ...] = ()
    kept: "Mapping[int, KeptPoint]" = field(default_factory=dict)
    tradeoff: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    recipe: str = ""
    corpora: Mapping[str, str] = field(default_factory=dict)
    times: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)


def write_report(results: Results, *, run: Run, path: Path) -> None:
    """Writes the page, whole or not at all."""
    write_whole(path, report_page(results, run=run))


def report_page(results: Results, *, run: Run) -> str:
    """The page as HTML."""
    title = escape(f"{results.name}: {results.totals.tasks} tasks, one model")
    sections = [
        _head(results, title=title),
        section("Tasks", _task_table(results)),
        section("Loss by step", _curve_grid(run.curves)),
        section(
            "Tasks by step", _shares(run), note="Share of the batches between points of the series."
        ),
        section("Experts by task", _routing_grid(run), note="Share of a task's rows per expert."),
        section(
            "Agreement of gradients",
            _agreement(run),
            note="Cosine of tasks' gradients on what they share, mean over the run's samples.",
        ),
        section(
            "Units kept",
            _kept(run),
            note="Share of the units that each subtask keeps: of all by step, of each group at the "
            "end; and units that two subtasks both keep over those that either keeps.",
        ),
        section(
            "Trade-off",
            _tradeoff(run),
            note="Networks cut down to unions of subtasks: share of targets hit, true tokens "
            "given, over the share of the whole network's operations.",
        ),
        section("Predictions", "".join(_samples(n, t) for n, t in results.tasks.items())),
        section("All metrics", _metric_table(results)),
        section("Run", _run_details(run)),
    ]
    return html_page("".join(sections), title=title)


def html_page(body: str, *, title: str) -> str:
    """A page that needs no other file; both are HTML already."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_style()}</style></head><body><main>{body}</main></body></html>\n"
    )


def results_table(results: Results) -> Group:
    """The table for a terminal: a line for each task, the harder split beneath its own."""
    table = Table(box=None, padding=(0, 2), header_style="dim")
    for name in ("task", "metric"):
        table.add_column(name)
    for name in ("value", "baseline", "steps", "time"):
        table.add_column(name, justify="right")
    for name, task in results.tasks.items():
        colour = "green" if task.beats_baseline else "red"
        value = Text(shown(task.value, task.unit), style=f"bold {colour}")
        baseline = shown(task.baseline, task.unit)
        steps, time = f"{task.steps:,}", duration(task.seconds)
        table.add_row(Text(name), task.label, value, baseline, steps, time)
        for split in task.splits[1:]:
            own = split.scores[0]
            line = (f"  {split.split}", own.label, shown(own.value, own.unit))
            table.add_row(*line, shown(own.baseline, own.unit), "", "", style="dim")
    totals = results.totals
    table.add_section()
    table.add_row("", "", "", "", f"{totals.steps:,}", duration(totals.seconds), style="bold")
    return Group(table, Text(f"  {beaten_line(results)}", style="bold"))


def beaten_line(results: Results) -> str:
    """How many tasks beat their baseline; a line of its own, for a column would wrap it."""
    totals = results.totals
    return f"{totals.beating_baseline} of {totals.tasks} beat their baseline"


def shown(value: float, unit: str) -> str:
    """A metric's value with its unit, one decimal for shares, three for nats, four without one."""
    if unit == "%":
        return f"{value:.1f} %"
    return f"{value:.3f} {unit}" if unit else f"{value:.4f}"


def _style() -> str:
    from mmtrain.report.style import STYLE

    return STYLE


def section(title: str, body: str, *, note: str = "") -> str:
    """A section of HTML under a title; empty where there is no body."""
    paragraph = f"<p>{escape(note)}</p>" if note else ""
    return f"<section><h2>{escape(title)}</h2>{paragraph}{body}</section>" if body else ""


def _head(results: Results, *, title: str) -> str:
    totals = results.totals
    facts = {
        "beat their baseline": f"{totals.beating_baseline} of {totals.tasks}",
        "steps": f"{totals.steps:,}",
        "training": duration(totals.seconds),
        "evaluation": duration(totals.evaluation_seconds),
        "parameters": f"{totals.num_parameters / 1e6:,.2f} M",
    }
    items = "".join(
        f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items()
    )
    return f'<h1>{title}</h1><dl class="facts">{items}</dl>'


def html_table(head: Iterable[tuple[str, str]], rows: Iterable[str]) -> str:
    """A table of cells that are HTML already; `head` is names with the class of their column."""
    names = "".join(f'<th class="{kind}">{escape(name)}</th>' for name, kind in head)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return (
        f'<div class="wide"><table><thead><tr>{names}</tr></thead><tbody>{body}</tbody>'
        "</table></div>"
    )


def _task_table(results: Results) -> str:
    head = [
        ("task", ""),
        ("metric", ""),
        ("value", "n"),
        ("bar: value, mark: baseline", "later"),
        ("baseline", "n"),
        ("", ""),
        ("steps", "n later"),
        ("time", "n later"),
    ]
    return html_table(head, (_task_row(name, task) for name, task in results.tasks.items()))


def _task_row(name: str, task: TaskResult) -> str:
    own = task.splits[0].scores[0]
    trivial = task.splits[0].baseline.replace("_", " ")
    return (
        f"<th>{escape(name.replace('_', ' '))}</th>"
        f"<td>{escape(task.label)}{_direction(own)}</td>"
        f'<td class="n"><b>{shown(task.value, task.unit)}</b></td>'
        f'<td class="later">{_bar(own)}</td>'
        f'<td class="n soft" title="{escape(trivial)}">{shown(task.baseline, task.unit)}</td>'
        f"<td>{_YES if task.beats_baseline else _NO}</td>"
        f'<td class="n later">{task.steps:,}</td>'
        f'<td class="n later">{duration(task.seconds)}</td>'
    )


def _direction(score: Score) -> str:
    return "" if score.higher_is_better else ' <span class="soft">(lower is better)</span>'


def _bar(score: Score) -> str:
    """The value as a bar with the baseline as a mark; 100 % (or the larger of both) is full."""
    full = 100.0 if score.unit == "%" else max(score.value, score.baseline, 1e-9)
    value, baseline = (min(100.0, 100.0 * v / full) for v in (score.value, score.baseline))
    return (
        f'<div class="bar" role="img" aria-label="{value:.0f} of 100, baseline {baseline:.0f}">'
        f'<i style="width:{value:.1f}%"></i><b style="left:{baseline:.1f}%"></b></div>'
    )


def _curve_grid(curves: Curves) -> str:
    from mmtrain.report.figures import (  # matplotlib: the terminal's table needs none
        curve_figure,
        to_svg,
    )

    panels = [
        f"<figure><figcaption>{escape(name.replace('_', ' '))}</figcaption>"
        f"{to_svg(curve_figure(curve))}</figure>"
        for name, curve in curves.items()
        if curve
    ]
    return f'<div class="grid">{"".join(panels)}</div>' if panels else ""


def _shares(run: Run) -> str:
    from mmtrain.report.figures import shares_figure, to_svg

    if len(run.counts) < 2 or len(run.counts[0][1]) < 2:
        return ""
    steps = [step for step, _ in run.counts]
    by_task = {name: [counts.get(name, 0) for _, counts in run.counts] for name in run.counts[0][1]}
    return f"<figure>{to_svg(shares_figure(steps, by_task))}</figure>"


def _routing_grid(run: Run) -> str:
    from mmtrain.report.figures import routing_figure, to_svg

    panels = [
        f"<figure><figcaption>{escape(layer)}</figcaption>"
        f"{to_svg(routing_figure(rows, tasks=run.routing_tasks))}</figure>"
        for layer, rows in run.routing.items()
    ]
    return f'<div class="grid routing">{"".join(panels)}</div>' if panels else ""


def _agreement(run: Run) -> str:
    from mmtrain.report.figures import agreement_figure, to_svg

    if not run.agreement:
        return ""
    return f"<figure>{to_svg(agreement_figure(run.agreement, tasks=run.agreement_tasks))}</figure>"


def _kept(run: Run) -> str:
    from mmtrain.report.figures import kept_by_group_figure, kept_figure, overlap_figure, to_svg

    if not run.kept:
        return ""
    steps, last = list(run.kept), list(run.kept.values())[-1]
    shares = [point.shares() for point in run.kept.values()]
    by_step = {name: [share[name] for share in shares] for name in last.kept}
    figures = (
        kept_figure(steps, by_step),
        kept_by_group_figure(last.group_shares(), groups=tuple(last.groups)),
        overlap_figure(last.overlap),
    )
    return "".join(f"<figure>{to_svg(figure)}</figure>" for figure in figures)


def _tradeoff(run: Run) -> str:
    from mmtrain.report.figures import to_svg, tradeoff_figure

    if not run.tradeoff:
        return ""
    return f"<figure>{to_svg(tradeoff_figure(run.tradeoff))}</figure>"


def _samples(name: str, task: TaskResult) -> str:
    cards = "".join(
        _sample(sample, split=split) for split in task.splits for sample in split.samples
    )
    title = f"<h3>{escape(name.replace('_', ' '))}</h3>"
    return f'{title}<div class="grid samples">{cards}</div>' if cards else ""


def _sample(sample: Sample, *, split: SplitResult) -> str:
    right = sample.prediction == sample.reference
    mark = "" if sample.prediction_picture else _YES if right else _NO  # seldom to the last pixel
    rows = [("said", f"{escape(sample.prediction)} {mark}")]
    if not right:
        rows.append(("true", escape(sample.reference)))
    if sample.input_kind == "text":
        rows.insert(0, ("input", escape(sample.input)))
    listed = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in rows)
    where = f"{split.split} {sample.example_id}"
    if sample.log_prob is not None:
        where += f", log-probability {sample.log_prob:.2f}"
    return (
        f'<div class="sample">{_media(sample)}<dl>{listed}</dl>'
        f'<div class="soft">{escape(where)}</div></div>'
    )


def _media(sample: Sample) -> str:
    source = escape(sample.input, quote=True)
    if sample.prediction_picture and sample.reference_picture:
        pictures = (
            ("input", sample.input),
            ("said", sample.prediction_picture),
            ("true", sample.reference_picture),
        )
        drawn = "".join(
            f'<span><img src="{escape(uri, quote=True)}" alt="{name} of example '
            f'{sample.example_id}"><small>{name}</small></span>'
            for name, uri in pictures
        )
        return f'<div class="drawn">{drawn}</div>'
    if sample.input_kind == "image":
        return f'<img src="{source}" alt="input of example {sample.example_id}">'
    if sample.input_kind == "audio":
        return f'<audio controls preload="none" src="{source}"></audio>'
    return ""


def _metric_table(results: Results) -> str:
    head = [
        ("task", ""),
        ("split", ""),
        ("examples", "n"),
        ("metric", ""),
        ("value", "n"),
        ("baseline", "n"),
        ("", ""),
    ]
    rows = (
        f"<th>{escape(name.replace('_', ' '))}</th><td>{escape(split.split)}</td>"
        f'<td class="n">{split.num_examples:,}</td><td>{escape(score.label)}{_direction(score)}'
        f'</td><td class="n"><b>{shown(score.value, score.unit)}</b></td>'
        f'<td class="n soft">{shown(score.baseline, score.unit)}</td>'
        f"<td>{_YES if score.beats_baseline else _NO}</td>"
        for name, task in results.tasks.items()
        for split in task.splits
        for score in split.scores
    )
    return html_table(head, rows)


def _run_details(run: Run) -> str:
    times = {name: duration(seconds) for name, seconds in run.times.items()}
    tables = [("Facts", run.facts), ("Times", times), ("Corpora (digests)", run.corpora)]
    parts = [details(title, _pairs(values)) for title, values in tables if values]
    if run.recipe:
        parts.append(details("Recipe", f"<pre>{escape(run.recipe)}</pre>"))
    return "".join(parts)


def details(title: str, body: str) -> str:
    """HTML that is opened by a click."""
    return f"<details><summary>{escape(title)}</summary>{body}</details>"


def _pairs(values: Mapping[str, str]) -> str:
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td><code>{escape(value)}</code></td></tr>"
        for name, value in values.items()
    )
    return f"<table><tbody>{rows}</tbody></table>"
