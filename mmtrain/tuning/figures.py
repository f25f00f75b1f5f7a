"""Figures of a sweep: what mattered, scores over trials, and the front, in the report's ink."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mmtrain.report.figures import ACCENT, INK, apply_ink
from mmtrain.tuning.sweep import LARGER_IS_BETTER, Objective
from mmtrain.tuning.trials import SweepOutcome, TrialRecord

LABELS: Mapping[Objective, str] = {
    "score": "score (0 trivial, 1 reference)",
    "subset_score": "score on subsets, share of targets hit",
    "kept_flops": "operations of subsets, share of the whole",
    "latency_ms": "latency, ms",
    "parameters": "parameters",
}
_GREY = "#9b9fa6"


def importance_figure(shares: Mapping[str, float]) -> Figure:
    """How much each field mattered, the most first."""
    figure, (axes,) = _figure(6.8, 0.8 + 0.28 * len(shares))
    ordered = sorted(shares.items(), key=lambda pair: pair[1])
    axes.barh([name for name, _ in ordered], [share for _, share in ordered], color=ACCENT)
    axes.set(xlim=(0, 1), xlabel="share of what mattered for the score")
    return _inked(figure)


def scores_figure(records: Sequence[TrialRecord], *, objective: Objective) -> Figure:
    """Each measured trial's value, and the best up to it."""
    figure, (axes,) = _figure(6.8, 2.6)
    measured = [record for record in records if objective in record.objectives]
    numbers = np.array([record.number for record in measured])
    values = np.array([record.objectives[objective] for record in measured])
    finished = np.array([record.state == "finished" for record in measured], dtype=bool)
    axes.scatter(numbers, values, c=np.where(finished, ACCENT, _GREY), s=22, zorder=2)
    if finished.any():
        best = np.maximum if objective in LARGER_IS_BETTER else np.minimum
        steps = best.accumulate(values[finished])
        axes.step(numbers[finished], steps, where="post", color=INK, linewidth=1)
    axes.set(xlabel="trial (grey: stopped on the way)", ylabel=LABELS[objective])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return _inked(figure)


def front_figure(outcome: SweepOutcome, *, objectives: Sequence[Objective]) -> Figure:
    """Finished trials, the first objective over each of the others; the front and its knee.

    A trial of the front may look beaten in one panel: it is better in another. So of two objectives
    in all the front is a line, of more it is none.
    """
    first, *others = objectives
    figure, panels = _figure(3.6 * len(others), 3.2, panels=len(others))
    finished = [record for record in outcome.trials if record.state == "finished"]
    front = [record for record in finished if record.number in outcome.front]
    for axes, other in zip(panels, others, strict=True):

        def points(records: Sequence[TrialRecord], across: str = other) -> tuple[list[float], ...]:
            return tuple([r.objectives[name] for r in records] for name in (across, first))

        axes.scatter(*points([r for r in finished if r not in front]), color=_GREY, s=16)
        if len(others) == 1:
            line = sorted(front, key=lambda record: record.objectives[others[0]])
            axes.plot(*points(line), color=ACCENT, lw=0.8)
        axes.scatter(*points(front), color=ACCENT, s=26, zorder=2)
        axes.scatter(
            *points([outcome.best_trial]), s=110, facecolors="none", edgecolors=INK, zorder=3
        )
        for record in front:
            name = f"{record.number}{', knee' * (record.number == outcome.best)}"
            at, size = (record.objectives[other], record.objectives[first]), 8
            axes.annotate(
                name, at, xytext=(6, -9), textcoords="offset points", fontsize=size, color=INK
            )
        axes.margins(0.12)
        axes.set(xlabel=LABELS[other], ylabel="" if axes is not panels[0] else LABELS[first])
    return _inked(figure)


def _figure(width: float, height: float, *, panels: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure, inches wide and high, with panels beside each other."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(1, panels, squeeze=False).flat)


def _inked(figure: Figure) -> Figure:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color=INK, alpha=0.12, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.yaxis.label.set(color=INK, fontsize=8)
        apply_ink(axes)
    return figure
