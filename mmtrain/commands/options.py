"""Options of several commands, --verbose and --quiet of all, and where a command prints.

Results go to `console`; what a person reads beside JSON, and mistakes, to `errors`.
"""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from mmtrain.process import logs

console = Console()
errors = Console(stderr=True)

ModelName = Annotated[str, typer.Argument(help="Run folder, bundle folder or models:/NAME@ALIAS.")]
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
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is in --out.")]
Registry = Annotated[
    str | None, typer.Option(help="MLflow URI of the registry; default: MODEL's own.")
]
RegisteredName = Annotated[str | None, typer.Option(help="Register it under this name.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Show what is done, and warnings of libraries.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show nothing but results and errors.")]


def set_loudness(*, verbose: bool, quiet: bool) -> None:
    """Shows more or less of the log from now on; without either, as much as before.

    Raises:
        typer.BadParameter: both are asked for.
    """
    if verbose and quiet:
        raise typer.BadParameter("--verbose and --quiet exclude each other")
    if verbose or quiet:
        logs.set_up("verbose" if verbose else "quiet")


def with_loudness(app: typer.Typer) -> None:
    """Gives all commands of an app, and of those in it, the options --verbose and --quiet."""
    for command in app.registered_commands:
        assert command.callback is not None
        command.callback = _with_loudness(command.callback)
    for group in app.registered_groups:
        assert group.typer_instance is not None
        with_loudness(group.typer_instance)


def _with_loudness(command: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(command)
    def loud_command(*, verbose: bool, quiet: bool, **arguments: Any) -> Any:
        set_loudness(verbose=verbose, quiet=quiet)
        return command(**arguments)

    signature = inspect.signature(command)
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=option)
        for name, option in (("verbose", Verbose), ("quiet", Quiet))
    ]
    parameters = [*signature.parameters.values(), *options]
    loud_command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    loud_command.__annotations__ = command.__annotations__ | {"verbose": Verbose, "quiet": Quiet}
    return loud_command
