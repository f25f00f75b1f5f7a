"""What `mmtrain prune` prints: the comparison of a cut model, and the cuts that are registered."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from mmtrain.derive.comparison import ComparedNetwork
from mmtrain.derive.prune import Pruned

if TYPE_CHECKING:
    from mmtrain.store.models import ModelVersion


def print_pruned(
    pruned: Pruned, *, version: "ModelVersion | None", console: Console, as_json: bool
) -> None:
    """Tells of a cut model: the comparison, what was settled by itself, where it is."""
    if as_json:
        registered = {"version": f"models:/{version.name}/{version.version}"} if version else {}
        print(json.dumps(pruned.to_dict() | registered, indent=1, default=str))
        return
    if pruned.rows:
        console.print(comparison_table(pruned.rows))
    kept, units = (sum(counts) for counts in zip(*pruned.kept.values(), strict=True))
    lines = [f"{pruned.subset}: {kept:,} of {units:,} units kept, in {pruned.out}"]
    if pruned.emptied:
        lines.append(
            f"no unit of {', '.join(pruned.emptied)} is above {pruned.threshold:g}; the best one "
            "of each is kept"
        )
    if pruned.recalibrated:
        lines.append(f"batch norms recalibrated on {pruned.recalibrated} unlabelled batches")
    if version:
        lines.append(f"registered as {version.uri}, version {version.version}")
    data = f" --data {pruned.corpora}" if pruned.corpora else ""
    lines.append(f"next: mmtrain evaluate {pruned.out}{data}")
    if pruned.recipe:
        lines.append(f"      mmtrain train --init-from {pruned.out}{data}")
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def comparison_table(rows: Sequence[ComparedNetwork]) -> Table:
    """A column for each model; shares are of the whole model."""
    whole = rows[0]
    table = Table(box=None, padding=(0, 2))
    table.add_column("")
    for row in rows:
        table.add_column(row.name, justify="right", no_wrap=True)
    for task, values in whole.scores.items():
        metric = next(iter(values))
        table.add_row(f"{task}, {metric}", *(f"{row.scores[task][metric]:.1f}" for row in rows))
    figures = {
        "parameters": ([float(row.parameters) for row in rows], ",.0f"),
        "MFLOPs an example": ([row.flops / 1e6 for row in rows], ",.3f"),
        "kB of weights": ([row.bytes / 1e3 for row in rows], ",.1f"),
    }
    for size in whole.latency_ms:
        figures[f"ms a batch of {size}"] = ([row.latency_ms[size] for row in rows], ",.2f")
    for label, ((first, *others), form) in figures.items():
        cells = [f"{value:{form}} {value / first:6.1%}" for value in others]
        table.add_row(label, f"{first:{form}}", *cells)
    return table


def print_cuts(versions: Sequence["ModelVersion"], *, console: Console, as_json: bool) -> None:
    """Tells which cuts of a model are registered."""
    if as_json:
        rows = [
            {"version": f"models:/{v.name}/{v.version}", "aliases": v.aliases} | dict(v.lineage)
            for v in versions
        ]
        print(json.dumps(rows, indent=1))
        return
    if not versions:
        console.print("no cut of the model is registered; mmtrain prune ... --register NAME")
        return
    table = Table(box=None, padding=(0, 2))
    for heading in ("version", "subset", "FLOPs", "parameters", "scores"):
        table.add_column(heading, overflow="fold")
    for version in versions:
        tags = version.lineage
        shares = (
            f"{float(tags[name]):.1%}" if name in tags else "-"
            for name in ("flops_share", "parameter_share")
        )
        scores = [
            f"{name.removeprefix('score.')} {float(value):.1f}"
            for name, value in sorted(tags.items())
            if name.startswith("score.")
        ]
        table.add_row(version.uri, tags["subset"], *shares, ", ".join(scores) or "-")
    console.print(table)
