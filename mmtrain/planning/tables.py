"""What `mmtrain plan` prints for a person."""

from collections import Counter
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

from mmtrain.planning.estimate import Layout, RunPlan
from mmtrain.planning.refusals import Combination
from mmtrain.planning.zero_memory import SHARES

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
    parameters = [(owner, f"{numel:,}") for owner, numel in plan.parameters.items()]
    parameters.append(("[bold]all[/bold]", f"[bold]{sum(plan.parameters.values()):,}[/bold]"))
    console.print(_table("parameters", ["owner", "elements"], parameters))
    console.print(memory_table(plan.layouts))
    sent = [
        (str(layout.workers), *(size(getattr(layout.traffic, kind)) for kind in KINDS))
        for layout in plan.layouts
        if layout.traffic
    ]
    headings = ["workers", *(kind.replace("_", "-") for kind in KINDS)]
    console.print(_table("sent by a rank in the step that sends most", headings, sent))
    console.print(batch_table(plan))
    console.print(combination_table(plan.combinations))
    reasons = Counter(one.refused for one in plan.combinations if one.refused)
    for reason, count in reasons.items():
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


def _table(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(
        title=f"\n{title}", title_justify="left", title_style="bold", box=None, padding=(0, 1)
    )
    for column, heading in enumerate(headings):
        table.add_column(heading, justify="right" if column else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def memory_table(layouts: Sequence[Layout]) -> Table:
    """Memory of a rank at the moment at which it is most: a column for each number of workers."""
    memories = [layout.memory for layout in layouts]
    rows = [
        (share, *(size(getattr(memory, share)) if memory else "-" for memory in memories))
        for share in (*SHARES, "total", "host")
    ]
    rows.append(("moment", *(memory.moment if memory else "-" for memory in memories)))
    rows.append(("starts", *("refused" if layout.refused else "yes" for layout in layouts)))
    headings = ["workers", *(str(layout.workers) for layout in layouts)]
    return _table("memory of a rank, at most", headings, rows)


def batch_table(plan: RunPlan) -> Table:
    """Batches of each task."""
    headings = ["task", "batch", "a rank", "in", "out", "steps", "examples", "epochs"]
    rows = [
        (
            name, spread(task.batch_sizes), spread(task.micro_sizes), f"{task.longest_input:,}",
            f"{task.longest_target:,}", f"{task.steps:,}",
            "not built" if task.examples is None else f"{task.examples:,}",
            "" if task.epochs is None else f"{task.epochs:.1f}",
        )
        for name, task in plan.tasks.items()
    ]  # fmt: skip
    return _table("batches, longest input and target", headings, rows)


def combination_table(combinations: Sequence[Combination]) -> Table:
    """Which engines can be: a row for each number of workers and engine, a column a share."""
    shares = sorted({one.ep_size for one in combinations})
    rows: dict[tuple[str, str, str], dict[int, list[str]]] = {}
    for one in combinations:
        cells = rows.setdefault((str(one.workers), one.engine, str(one.zero_stage)), {})
        cells.setdefault(one.ep_size, []).extend([] if one.refused else [one.precision])
    return _table(
        "engines",
        ["workers", "engine", "ZeRO", *(f"ep {share}" for share in shares)],
        [(*row, *(_allowed(cells.get(share)) for share in shares)) for row, cells in rows.items()],
    )


def _allowed(precisions: Sequence[str] | None) -> str:
    if precisions is None:
        return ""  # this number of workers was not tried with that share
    return f"[green]{' '.join(precisions)}[/green]" if precisions else "[red]-[/red]"


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
