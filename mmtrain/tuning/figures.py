"""Figures of a sweep: what mattered, scores over trials, and the front, in the report's ink."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mmtrain.report.figures import ACCENT, INK, apply_ink
from mmtrain.tuning.sweep import LARGER_IS_BETTER, Objective
from mmtrain.tuning.trials import TrialRecord

LABELS: Mapping[Objective, str] = {
    "score": "score (0 trivial, 1 reference)",
    "subset_score": "score on subsets, share of targets hit",
    "kept_flops": "operations of subsets, share of the whole",
    "latency_ms": "latency, ms",
    "parameters": "parameters",
}


def importance_figure(shares: Mapping[str, float]) -> Figure:
    """How much each field mattered, the most first."""
    figure = Figure(figsize=(6.8, 0.8 + 0.28 * len(shares)), layout="constrained")
    axes = figure.subplots()
    ordered = sorted(shares.items(), key=lambda pair: pair[1])
    axes.barh([name for name, _ in ordered], [share for _, share in ordered], color=ACCENT)
    axes.set(xlim=(0, 1), xlabel="share of what mattered for the score")
    _plain(axes)
    return figure


def scores_figure(records: Sequence[TrialRecord], *, objective: Objective) -> Figure:
    """Each measured trial's value, and the best up to it."""
    figure = Figure(figsize=(6.8, 2.6), layout="constrained")
    axes = figure.subplots()
    measured = [record for record in records if objective in record.objectives]
    places = [record.number for record in measured]
    values = [record.objectives[objective] for record in measured]
    best = np.maximum if objective in LARGER_IS_BETTER else np.minimum
    ended = [record.state == "finished" for record in measured]
    colours = [ACCENT if whole else "#9b9fa6" for whole in ended]
    axes.scatter(places, values, c=colours, s=22, zorder=2)
    known = [(p, v) for p, v, whole in zip(places, values, ended, strict=True) if whole]
    if known:
        steps = best.accumulate([value for _, value in known])
        axes.step([place for place, _ in known], steps, where="post", color=INK, linewidth=1)
    axes.set(xlabel="trial (grey: stopped on the way)", ylabel=LABELS[objective])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _plain(axes)
    return figure


def front_figure(
    records: Sequence[TrialRecord],
    front: Sequence[TrialRecord],
    *,
    knee: TrialRecord,
    objectives: Sequence[Objective],
) -> Figure:
    """Finished trials, the first objective over each of the others; the front and its knee.

    A trial of the front may look beaten in one panel: it is better in another.
    """
    first, *others = objectives
    figure = Figure(figsize=(3.6 * len(others), 3.2), layout="constrained")
    for place, (axes, other) in enumerate(
        zip(figure.subplots(1, len(others), squeeze=False).flat, others, strict=True)
    ):
        _draw_front(
            axes, records, front, knee=knee, across=other, up=first, is_line=len(others) == 1
        )
        axes.set(xlabel=LABELS[other], ylabel="" if place else LABELS[first])
        _plain(axes)
    return figure


def _draw_front(
    axes: Axes,
    records: Sequence[TrialRecord],
    front: Sequence[TrialRecord],
    *,
    knee: TrialRecord,
    across: Objective,
    up: Objective,
    is_line: bool,
) -> None:
    """One panel; of two objectives in all the front is a line, of more it is none."""

    def places(some: Sequence[TrialRecord]) -> tuple[list[float], list[float]]:
        return [r.objectives[across] for r in some], [r.objectives[up] for r in some]

    kept = {record.number for record in front}
    axes.scatter(
        *places([r for r in records if r.state == "finished" and r.number not in kept]),
        color="#9b9fa6",
        s=16,
    )
    if is_line:
        axes.plot(*places(sorted(front, key=lambda r: r.objectives[across])), color=ACCENT, lw=0.8)
    axes.scatter(*places(front), color=ACCENT, s=26, zorder=2)
    axes.scatter(*places([knee]), s=110, facecolors="none", edgecolors=INK, zorder=3)
    for record in front:
        name = f"{record.number}, knee" if record is knee else str(record.number)
        axes.annotate(
            name,
            (record.objectives[across], record.objectives[up]),
            xytext=(6, -9),
            textcoords="offset points",
            fontsize=8,
            color=INK,
        )
    axes.margins(0.12)


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=INK, alpha=0.12, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.yaxis.label.set(color=INK, fontsize=8)
    apply_ink(axes)
