"""`python -m pipelines build [TASK ...]`: corpora to shards, without the model's half installed."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from pipelines.errors import MMTrainError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def pipelines() -> None:
    """The data plane: raw corpora to shards that training streams."""


@app.command()
def build(
    tasks: Annotated[
        list[str] | None,
        typer.Argument(help="Tasks, or my_tasks.py:MY_TASK; all shipped ones when none is named."),
    ] = None,
    data: Annotated[Path, typer.Option(help="Folder of corpora and shards.")] = Path("corpora"),
) -> None:
    """Make or read raw corpora and write shards; what is built and unchanged stays."""
    from pipelines.build import build as build_tasks  # imports Ray, which help does without
    from pipelines.tasks import load_task, task_names

    manifests = build_tasks([load_task(name) for name in tasks or task_names()], data_dir=data)
    table = Table("task", "split", "examples", "bad", "longest", "digest", box=None)
    for (task, split), manifest in manifests.items():
        longest = f"{manifest.stats['longest_input']:g} -> {manifest.stats['longest_target']:g}"
        table.add_row(
            task,
            split,
            f"{manifest.num_examples:,}",
            str(manifest.num_quarantined),
            longest,
            manifest.digest[:12],
        )
    Console().print(table)


def main() -> None:
    """What is the user's to mend is one line and status 2, without a traceback."""
    try:
        app()
    except MMTrainError as error:
        Console(stderr=True).print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
