"""`mmtrain plan`: what a run needs, before anything is started."""

import json
from pathlib import Path
from typing import Annotated

import typer

from mmtrain.commands.options import AsJson, DataDir, Settings, TaskNames, console


def plan(
    recipe: Annotated[str, typer.Argument(help="Name, FILE.py:FUNCTION or FILE.json.")],
    data: DataDir = Path("corpora"),
    settings: Settings = None,
    task: TaskNames = None,
    gpus: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Plan for N workers too; may be given several times."),
    ] = None,
    gpu_memory: Annotated[
        str | None, typer.Option(help="Memory of a GPU, e.g. 80GB: the fewest that fit are found.")
    ] = None,
    cluster: Annotated[
        str | None, typer.Option(help="Its resources, e.g. CPU=64,GPU=8: is it large enough?")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a run needs, without starting it."""
    from mmtrain.planning.amounts import parse_bytes, parse_resources
    from mmtrain.planning.estimate import plan_run
    from mmtrain.planning.tables import print_plan
    from mmtrain.recipe import load_recipe

    found = plan_run(
        load_recipe(recipe, settings or ()).only(task),
        data_dir=data,
        workers=gpus or (),
        gpu_bytes=parse_bytes(gpu_memory) if gpu_memory else None,
        cluster=parse_resources(cluster) if cluster else None,
    )
    if as_json:
        print(json.dumps(found.to_dict(), indent=1))
    else:
        print_plan(found, console=console)
