"""What `mmtrain plan` prints for a person."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from mmtrain.planning.estimate import Layout, RunPlan
from mmtrain.planning.refusals import Combination

SHARES = ("weights", "masters", "moments", "gradients", "buckets", "activations")
KINDS = ("all_reduce", "reduce_scatter", "all_gather", "all_to_all")


def print_plan(plan: RunPlan, *, console: Console) -> None:
    """Tables of a plan, the most asked for first."""
    engine = plan.engine
    console.print(
        f"[bold]{plan.recipe}[/bold]: {plan.num_steps:,} steps, engine {engine.name}, "
        f"ZeRO {engine.zero_stage}, {engine.precision}, ep_size {engine.ep_size}, "
        f"accumulation {engine.accumulation}",
        highlight=False,
    )
    for table in (
        parameter_table(plan), memory_table(plan.layouts), traffic_table(plan.layouts),
        batch_table(plan), combination_table(plan.combinations),
    ):  # fmt: skip
        console.print(table)
    for reason, count in reasons(plan.combinations).items():
        console.print(f"  [red]refused[/red] x{count}: ", end="")
        console.print(reason, markup=False, highlight=False, soft_wrap=True)
    _print_needs(plan, console=console)


def _print_needs(plan: RunPlan, *, console: Console) -> None:
    needs = ", ".join(f"{name} {amount:g}" for name, amount in plan.resources.items())
    console.print(
        f"\ncheckpoint {size(plan.checkpoint)}; disk for those kept, one being written and the "
        f"bundle {size(plan.disk)}\nRay needs: {needs}",
        highlight=False,
    )
    if plan.lacking:
        console.print(f"[red]does not fit:[/red] {plan.lacking}", highlight=False)
    if plan.smallest is not None:
        console.print(f"fewest GPUs that fit: [bold]{plan.smallest}[/bold]", highlight=False)
    for line in plan.assumed:
        console.print(f"[yellow]assumed:[/yellow] {line}", highlight=False, soft_wrap=True)


def _table(title: str, first: str, rest: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 1))
    table.add_column(first, no_wrap=True)
    for heading in rest:
        table.add_column(heading.replace("_", "-"), justify="right", no_wrap=True)
    return table


def parameter_table(plan: RunPlan) -> Table:
    """Parameters by owner."""
    table = _table("\nparameters", "owner", ["elements"])
    for owner, numel in plan.parameters.items():
        table.add_row(owner, f"{numel:,}")
    table.add_row("[bold]all[/bold]", f"[bold]{sum(plan.parameters.values()):,}[/bold]")
    return table


def memory_table(layouts: Sequence[Layout]) -> Table:
    """Memory of a rank at the moment at which it is most: a column for each number of workers."""
    table = _table("\nmemory of a rank, at most", "workers", [str(one.workers) for one in layouts])
    for share in (*SHARES, "total", "host"):
        table.add_row(
            share, *(size(getattr(one.memory, share)) if one.memory else "-" for one in layouts)
        )
    table.add_row("moment", *(one.memory.moment if one.memory else "-" for one in layouts))
    table.add_row("starts", *("refused" if one.refused else "yes" for one in layouts))
    return table


def traffic_table(layouts: Sequence[Layout]) -> Table:
    """Payloads of a rank's collectives."""
    table = _table("\nsent by a rank in the step that sends most", "workers", KINDS)
    for layout in layouts:
        if layout.traffic:
            cells = [size(getattr(layout.traffic, kind)) for kind in KINDS]
            table.add_row(str(layout.workers), *cells)
    return table


def batch_table(plan: RunPlan) -> Table:
    """Batches of each task."""
    headings = ["batch", "a rank", "in", "out", "steps", "examples", "epochs"]
    table = _table("\nbatches, longest input and target", "task", headings)
    for name, task in plan.tasks.items():
        table.add_row(
            name, spread(task.batch_sizes), spread(task.micro_sizes), f"{task.longest_input:,}",
            f"{task.longest_target:,}", f"{task.steps:,}",
            "not built" if task.examples is None else f"{task.examples:,}",
            "" if task.epochs is None else f"{task.epochs:.1f}",
        )  # fmt: skip
    return table


def combination_table(found: Sequence[Combination]) -> Table:
    """Which engines can be: a row for each number of workers and engine, a column a share."""
    sizes = sorted({one.ep_size for one in found})
    table = _table("\nengines", "workers", ["engine", "ZeRO", *(f"ep {n}" for n in sizes)])
    rows: dict[tuple[int, str, int], dict[int, list[str]]] = {}
    for one in found:
        cells = rows.setdefault((one.workers, one.engine, one.zero_stage), {})
        if one.refused is None:
            cells.setdefault(one.ep_size, []).append(one.precision)
        else:
            cells.setdefault(one.ep_size, [])
    for (workers, engine, stage), cells in rows.items():
        said = [_allowed(cells[n]) if n in cells else "" for n in sizes]
        table.add_row(str(workers), engine, str(stage), *said)
    return table


def _allowed(precisions: Sequence[str]) -> str:
    return f"[green]{' '.join(precisions)}[/green]" if precisions else "[red]-[/red]"


def reasons(found: Sequence[Combination]) -> dict[str, int]:
    """Why combinations are refused, and how many for each reason."""
    counts: dict[str, int] = {}
    for one in found:
        if one.refused:
            counts[one.refused] = counts.get(one.refused, 0) + 1
    return counts


def spread(values: Sequence[int]) -> str:
    """One number, or the least and the greatest."""
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,}-{high:,}"


def size(num_bytes: float) -> str:
    """Bytes with three digits and a unit."""
    if num_bytes == 0:
        return "0"
    for unit in ("B", "kB", "MB", "GB"):
        if abs(num_bytes) < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"
