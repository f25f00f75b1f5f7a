"""`mmtrain models list | show | compare | promote | download | register`: the registry."""

import json
from pathlib import Path
from typing import Annotated

import typer

from mmtrain.commands.options import AsJson, console

Tracking = Annotated[
    str | None,
    typer.Option(help="MLflow URI of the registry; default: MLFLOW_TRACKING_URI."),
]
Version = Annotated[str, typer.Argument(help="NAME (its newest version), NAME/3 or NAME@ALIAS.")]

models = typer.Typer(
    help="Registered models: list, show, compare, promote, download.",
    no_args_is_help=True,
)


@models.command("list")
def list_registered(
    name: Annotated[str | None, typer.Argument(help="List the versions of this model.")] = None,
    tracking: Tracking = None,
    as_json: AsJson = False,
) -> None:
    """List the registered models, or the versions of one, a line each."""
    from mmtrain.registry import tables, versions

    uri = versions.registry_uri(tracking)
    if name is None:
        found = versions.list_models(uri)
        tables.print_models(found, console=console, as_json=as_json)
        return
    listed = versions.list_versions(name, tracking_uri=uri)
    tables.print_versions(listed, console=console, as_json=as_json)


@models.command()
def show(version: Version, tracking: Tracking = None, as_json: AsJson = False) -> None:
    """Show where a version comes from and what was measured of it."""
    from mmtrain.registry import tables, versions

    uri = versions.registry_uri(tracking)
    facts = versions.read_version(version, tracking_uri=uri)
    tables.print_version(facts, console=console, as_json=as_json)


@models.command()
def compare(
    first: Version, second: Version, tracking: Tracking = None, as_json: AsJson = False
) -> None:
    """Compare two versions: metrics beside their baselines, size, tasks, recipe."""
    from mmtrain.registry import tables, versions

    uri = versions.registry_uri(tracking)
    a, b = (versions.read_version(one, tracking_uri=uri) for one in (first, second))
    tables.print_comparison(a, b, console=console, as_json=as_json)


@models.command()
def promote(
    name: Annotated[str, typer.Argument(help="The registered model.")],
    version: Annotated[str, typer.Argument(help="Its version, e.g. 3 or @candidate.")],
    alias: Annotated[str, typer.Option(help="Alias to move, e.g. champion.")],
    require: Annotated[
        list[str] | None,
        typer.Option(
            help="Refuse unless it holds, e.g. 'wer<0.3' or 'parsing.exact>=70%'; may be given "
            "several times."
        ),
    ] = None,
    tracking: Tracking = None,
    as_json: AsJson = False,
) -> None:
    """Move an alias to a version, if it fulfils what is required of it."""
    from mmtrain.registry import tables, versions

    promoted = versions.promote(
        name, version, alias=alias, requirements=require or (),
        tracking_uri=versions.registry_uri(tracking),
    )  # fmt: skip
    tables.print_promoted(promoted, console=console, as_json=as_json)


@models.command()
def download(
    version: Version,
    out: Annotated[Path, typer.Option(help="Folder of the bundle.")],
    tracking: Tracking = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is in --out.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a version's bundle to a folder, checked against its digests."""
    from mmtrain.registry import versions

    uri = versions.registry_uri(tracking)
    folder = versions.download(version, out=out, tracking_uri=uri, force=force)
    if as_json:
        print(json.dumps({"out": str(folder)}))
        return
    console.print(f"bundle in {folder}", highlight=False)
    console.print(f"next: mmtrain predict {folder} INPUT ...", highlight=False)


@models.command()
def register(
    run: Annotated[Path, typer.Argument(help="Folder of a run or a bundle.")],
    name: Annotated[
        str | None, typer.Option(help="The registered model; default: the recipe's name.")
    ] = None,
    alias: Annotated[str, typer.Option(help="Alias to move to it.")] = "candidate",
    tracking: Annotated[
        str | None, typer.Option(help="MLflow URI; default: the run's own, MLFLOW_TRACKING_URI.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Register a run's model with its results; what MLflow missed of the run is sent first."""
    from mmtrain.registry import versions

    made = versions.register_run(run, name=name, alias=alias, tracking=tracking)
    if as_json:
        print(json.dumps({"version": f"models:/{made.name}/{made.version}", "uri": made.uri}))
        return
    console.print(f"registered as {made.uri}, version {made.version}", highlight=False)
