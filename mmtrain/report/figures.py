"""Figures of a run: loss curves and routing heat maps, drawn once for MLflow and for the report.

Lines and text are drawn in one ink, which `to_svg` makes the page's own text colour; so a figure
is legible by day and in the dark. No pyplot: it keeps global state and wants the main thread.
"""

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

if TYPE_CHECKING:
    from mmtrain.masks.kept import KeptPoint  # torch: a figure needs none

Curve = Sequence[tuple[int, float]]  # (step, value), steps ascending
Routing = Mapping[str, Sequence[Sequence[int]]]  # rows by layer: (task, expert)

INK = "#010203"  # stands for the page's text colour
ACCENT = "#2a78d6"
_WIDTH, _HEIGHT = 3.4, 1.9  # inches of one panel
_MAX_POINTS = 400
_MAX_BARS = 120  # moments shown of the tasks' shares


def curve_figure(curve: Curve) -> Figure:
    """One task's loss by step."""
    figure, axes = _panel(_WIDTH, _HEIGHT)
    _draw_curve(axes, curve)
    return figure


def curves_figure(curves: Mapping[str, Curve]) -> Figure:
    """All tasks' losses, a panel each, three in a line."""
    columns = min(3, max(1, len(curves)))
    lines = max(1, math.ceil(len(curves) / columns))
    figure = Figure(figsize=(columns * _WIDTH, lines * (_HEIGHT + 0.25)), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flat
    for axes, (name, curve) in zip(panels, curves.items(), strict=False):
        _draw_curve(axes, curve)
        axes.set_title(name, fontsize=9)
    for axes in list(panels):
        axes.set_visible(False)
    return figure


def routing_figure(rows: Sequence[Sequence[int]], *, tasks: Sequence[str]) -> Figure:
    """One layer: which share of a task's rows each expert took; the colours start at 0."""
    figure, axes = _panel(2 * _WIDTH, 0.55 + 0.22 * len(tasks))
    counts = np.asarray(rows, dtype=float)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1.0)
    image = axes.imshow(shares, aspect="auto", cmap="Blues", vmin=0.0, interpolation="nearest")
    axes.set_yticks(range(len(tasks)), tasks)
    axes.set_xlabel("expert")
    _add_bar(axes, image, form="{x:.0%}")
    return figure


def agreement_figure(cosines: Sequence[Sequence[float | None]], *, tasks: Sequence[str]) -> Figure:
    """How tasks' gradients agree: the cosine of each two, from -1 (red) to 1 (blue); a pair that
    was not measured is left out.
    """
    values = np.array([[np.nan if c is None else c for c in row] for row in cosines], dtype=float)
    return _square_figure(values, names=tasks, cmap="RdBu", lowest=-1.0)


def shares_figure(counts: Sequence[tuple[int, Mapping[str, int]]]) -> Figure:
    """Which share of the batches each task had, between points of the series.

    Args:
        counts: by step, ascending, the batches of each task up to it.
    """
    names, steps = list(counts[0][1]), np.array([step for step, _ in counts])
    totals = np.array([[count.get(name, 0) for _, count in counts] for name in names], dtype=float)
    new = np.diff(totals, axis=1, prepend=0.0)
    shares = new / np.maximum(new.sum(axis=0), 1.0)
    tops = np.cumsum(shares, axis=0)
    figure, axes = _panel(2 * _WIDTH, 0.9 + 0.22 * max(6, len(names)))
    places = np.linspace(0, len(steps) - 1, min(len(steps), _MAX_BARS)).astype(int)
    for i, (name, colour) in enumerate(zip(names, _colours(len(names)), strict=True)):
        bottom, top = (tops - shares)[i, places], tops[i, places]
        axes.fill_between(
            steps[places], bottom, top, step="mid", color=colour, label=name, linewidth=0
        )
    axes.set(ylim=(0, 1), xlabel="step")
    axes.spines[:].set_visible(False)
    _add_legend(axes)
    return figure


def kept_figures(points: "Mapping[int, KeptPoint]") -> dict[str, Figure]:
    """What subtasks keep, by name: `kept` of all units by step, the last of them, all together, in
    ink; at the end `kept_by_group`, and `overlap`: of each two subtasks the units that both keep
    over those that either keeps.
    """
    if not points:
        return {}
    *_, last = points.values()
    shares = [point.shares() for point in points.values()]
    by_group = np.array(list(last.group_shares().values())).T
    kept, axes = _panel(2 * _WIDTH, 0.9 + 0.22 * max(6, len(last.kept)))
    for name, colour in zip(last.kept, [*_colours(len(last.kept))[:-1], INK], strict=True):
        values = [share[name] for share in shares]
        axes.plot(list(points), values, color=colour, label=name, linewidth=1.4)
    axes.set(ylim=(0, 1.02), xlabel="step")
    _open(axes)
    _add_legend(axes)
    groups, axes = _panel(2 * _WIDTH, 0.6 + 0.2 * len(last.groups))
    image = axes.imshow(by_group, aspect="auto", cmap="Blues", vmin=0.0, vmax=1.0)
    axes.set_xticks(range(len(last.kept)), list(last.kept), rotation=90)
    axes.set_yticks(range(len(last.groups)), list(last.groups))
    _add_bar(axes, image, form="{x:.0%}")
    overlap = np.array(list(last.overlap.values()))
    return {
        "kept": kept,
        "kept_by_group": groups,
        "overlap": _square_figure(overlap, names=tuple(last.overlap), cmap="Blues", lowest=0),
    }


def tradeoff_figure(points: Mapping[str, tuple[float, float]]) -> Figure:
    """Each union's quality over what its network costs.

    Args:
        points: by name of the union, its share of the whole's operations, and its score in 0..1.
    """
    figure, axes = _panel(1.6 * _WIDTH, 1.6 * _HEIGHT)
    costs, scores = zip(*points.values(), strict=True)
    axes.scatter(costs, scores, color=ACCENT, s=18)
    for name, place in points.items():
        size = name.count(" + ") + 1
        axes.annotate(
            name if size == 1 else f"{size} subtasks",
            place,
            xytext=(2, -5),
            textcoords="offset points",
            rotation=-35,  # so that neighbours' words stand apart
            rotation_mode="anchor",
            fontsize=6,
            color=INK,
        )
    lowest = min(0.9, min(scores) - 0.05)
    axes.set(xlim=(0, 1.02), ylim=(lowest, 1.01), xlabel="operations, share of the whole")
    _open(axes, grid="both")
    return figure


def _square_figure(values: np.ndarray, *, names: Sequence[str], cmap: str, lowest: float) -> Figure:
    """A value of each two names, from `lowest` to 1, written in its cell; nan is left out."""
    side = 1.4 + 0.32 * len(names)
    figure, axes = _panel(side + 1.0, side)
    image = axes.imshow(values, cmap=cmap, vmin=lowest, vmax=1.0, interpolation="nearest")
    shown = [name.replace("_", " ") for name in names]
    axes.set_xticks(range(len(names)), shown, rotation=90)
    axes.set_yticks(range(len(names)), shown)
    for row, column in np.argwhere(np.isfinite(values)):
        value = values[row, column]
        ink = "white" if abs(value) > 0.6 else "black"
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=6, color=ink)
    _add_bar(axes, image)
    return figure


def _panel(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty figure of one panel, in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _colours(count: int) -> np.ndarray:
    return matplotlib.colormaps["tab20"](np.arange(count) % 20)


def _draw_curve(axes: Axes, curve: Curve) -> None:
    """The points pale, their moving mean strong."""
    steps, values = _thinned(curve)
    axes.plot(steps, values, color=ACCENT, alpha=0.3, linewidth=0.8)
    axes.plot(steps, _moving_mean(values), color=ACCENT, linewidth=1.6)
    axes.set_ylim(bottom=min(0.0, float(np.nanmin(values, initial=0.0))))
    _open(axes)


def _open(axes: Axes, *, grid: Literal["y", "both"] = "y") -> None:
    """Axes without a frame at the top and the right, over a pale grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color=INK, alpha=0.12, linewidth=0.6)
    apply_ink(axes)


def _add_legend(axes: Axes) -> None:
    """The names of what is drawn, at the right."""
    axes.legend(
        loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8, labelcolor=INK
    )
    apply_ink(axes)


def _add_bar(axes: Axes, image: AxesImage, *, form: str | None = None) -> None:
    """The scale of a picture of values, beside it."""
    axes.spines[:].set_visible(False)
    assert axes.figure is not None
    bar = axes.figure.colorbar(image, ax=axes, pad=0.02, format=form)
    bar.outline.set_visible(False)  # type: ignore[operator]  # matplotlib types it as a Spine set
    apply_ink(axes)
    apply_ink(bar.ax)


def to_svg(figure: Figure) -> str:
    """The figure as SVG text to stand inside a page, in the page's text colour and font."""
    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "mmtrain"}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :].replace(INK, "currentColor")


def _thinned(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values, at most `_MAX_POINTS`, each the mean of its stretch."""
    points = np.array([point for point in curve if math.isfinite(point[1])], dtype=float)
    points = points.reshape(-1, 2)
    parts = np.array_split(points, min(len(points), _MAX_POINTS)) if len(points) else []
    means = np.array([part.mean(axis=0) for part in parts]).reshape(-1, 2)
    return means[:, 0], means[:, 1]


def _moving_mean(values: np.ndarray) -> np.ndarray:
    """Mean over a window of about a twentieth of the points, centred, cut at the ends."""
    half = len(values) // 40
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    first, last = np.maximum(places - half, 0), np.minimum(places + half + 1, len(values))
    return (sums[last] - sums[first]) / (last - first)


def apply_ink(axes: Axes) -> None:
    """Ticks, labels and spines in the one ink."""
    axes.tick_params(colors=INK, labelsize=8, length=2)
    axes.xaxis.label.set(color=INK, fontsize=8)
    for spine in axes.spines.values():
        spine.set_color(INK)
        spine.set_alpha(0.4)
