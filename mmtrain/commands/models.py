"""`mmtrain models list | show | compare | promote | download | register`: the registry."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from mmtrain.commands.options import AsJson, console
from mmtrain.commands.printing import answer

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
    from mmtrain.commands.models_tables import model_row, rows_table, version_row
    from mmtrain.registry.versions import registry_uri
    from mmtrain.store.versions import list_versions

    versions = list_versions(registry_uri(tracking), name=name)
    if name is None:
        rows = [model_row(held) for held in versions.values()]
        columns = {"model": "name", "versions": "num_versions", "newest": "newest"}
        columns |= {"registered": "created", "aliases": "aliases", "tasks": "tasks"}
        none = () if rows else ("no models yet; `mmtrain models register RUN` makes one",)
    else:
        rows, none = [version_row(version) for version in versions[name]], ()
        columns = {"version": "version", "registered": "created", "aliases": "aliases"}
        columns |= {"step": "step", "tasks": "tasks", "part of": "parent_version"}
    lines = none or (rows_table(rows, columns=columns),)
    answer(rows, *lines, console=console, as_json=as_json)


@models.command()
def show(version: Version, tracking: Tracking = None, as_json: AsJson = False) -> None:
    """Show where a version comes from and what was measured of it."""
    from mmtrain.commands.models_tables import version_table
    from mmtrain.registry.facts import read_version
    from mmtrain.registry.versions import registry_uri

    facts = read_version(version, tracking_uri=registry_uri(tracking))
    answer(facts.to_dict(), version_table(facts), console=console, as_json=as_json)


@models.command()
def compare(
    first: Version, second: Version, tracking: Tracking = None, as_json: AsJson = False
) -> None:
    """Compare two versions: metrics beside their baselines, size, tasks, recipe."""
    from mmtrain.commands.models_tables import comparison
    from mmtrain.registry.facts import corpus_differences, read_version, recipe_differences
    from mmtrain.registry.versions import registry_uri

    uri = registry_uri(tracking)
    a, b = (read_version(version, tracking_uri=uri) for version in (first, second))
    data = {
        "versions": [a.to_dict(), b.to_dict()],
        "recipe": recipe_differences(a.recipe, b.recipe),
        "corpora": corpus_differences(a, b),
    }
    answer(data, *comparison(a, b), console=console, as_json=as_json)


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
    from mmtrain.commands.models_tables import promoted_lines
    from mmtrain.registry import versions

    promoted = versions.promote(
        name, version, alias=alias, requirements=require or (),
        tracking_uri=versions.registry_uri(tracking),
    )  # fmt: skip
    answer(asdict(promoted), *promoted_lines(promoted), console=console, as_json=as_json)


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
    lines = (f"bundle in {folder}", f"next: mmtrain predict {folder} INPUT ...")
    answer({"out": str(folder)}, *lines, console=console, as_json=as_json)


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

    version = versions.register_run(run, name=name, alias=alias, tracking=tracking)
    data = {"version": version.fixed_uri, "uri": version.uri}
    line = f"registered as {version.uri}, version {version.version}"
    answer(data, line, console=console, as_json=as_json)
