"""Options that several commands have, and the two places where a command prints.

Results go to `console`; what a person reads beside JSON, and mistakes, to `errors`.
"""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

console = Console()
errors = Console(stderr=True)

DataDir = Annotated[Path, typer.Option("--data", help="Folder of corpora and shards.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Change a recipe field, e.g. num_steps=50."),
]
Address = Annotated[
    str | None, typer.Option(help="Ray cluster to use, e.g. 'auto'; default: this machine.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for a program to read.")]
TaskNames = Annotated[
    list[str] | None, typer.Option("--task", help="Only this task; may be given several times.")
]
