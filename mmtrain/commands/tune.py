"""`mmtrain tune`: a sweep over a recipe's fields."""

import json
from pathlib import Path
from typing import Annotated

import typer

from mmtrain.commands.options import (
    Address,
    AsJson,
    DataDir,
    Settings,
    TaskNames,
    console,
    errors,
)  # fmt: skip

Sweep = Annotated[
    str, typer.Option(help="Name, FILE.py:FUNCTION or FILE.json; `mmtrain list sweeps`.")
]
References = Annotated[
    Path | None,
    typer.Option(help="Single-task metrics: folder of a --per-task sweep, or a JSON file."),
]
PerTask = Annotated[
    bool, typer.Option("--per-task", help="Tune each task alone, then join their values.")
]
Steps = Annotated[int | None, typer.Option(min=1, help="Steps of a trial; default: the recipe's.")]


def tune(
    recipe: Annotated[str, typer.Argument(help="Name, FILE.py:FUNCTION or FILE.json.")],
    sweep: Sweep = "learning_rate",
    out: Annotated[
        Path | None, typer.Option(help="Folder of the sweep; default runs/RECIPE_SWEEP.")
    ] = None,
    data: DataDir = Path("corpora"),
    settings: Settings = None,
    task: TaskNames = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Trials of the sweep.")] = None,
    concurrent: Annotated[int | None, typer.Option(min=1, help="Trials at once.")] = None,
    steps: Steps = None,
    scheduler: Annotated[str | None, typer.Option(help="asha, pbt or none.")] = None,
    searcher: Annotated[str | None, typer.Option(help="optuna or random.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the search.")] = None,
    references: References = None,
    per_task: PerTask = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with --out's sweep.")] = False,
    address: Address = None,
    tracking: Annotated[
        str | None, typer.Option(help="MLflow URI; default: a file in --out.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Search a recipe's fields; the best trial is written as JSON."""
    from mmtrain.recipe import load_recipe
    from mmtrain.store.config import TrackingConfig
    from mmtrain.tuning.alone import run_alone_sweeps
    from mmtrain.tuning.display import outcome_lines
    from mmtrain.tuning.run import run_sweep
    from mmtrain.tuning.score import read_references
    from mmtrain.tuning.sweep import load_sweep

    chosen = load_recipe(recipe, settings or ()).only(task)
    known = read_references(references) if references else {}
    searched = load_sweep(sweep, chosen).with_(
        num_trials=trials,
        concurrent=concurrent,
        num_steps=steps,
        scheduler=scheduler,
        searcher=searcher,
        seed=seed,
        references={name: known[name] for name in chosen.tasks if name in known} or None,
    )
    outcome = (run_alone_sweeps if per_task else run_sweep)(
        chosen,
        searched,
        out=out or Path("runs") / f"{chosen.name}_{searched.name}",
        data_dir=data,
        resume=resume,
        address=address,
        tracking=TrackingConfig(uri=tracking),
        console=errors if as_json else console,
    )
    if as_json:
        print(json.dumps(outcome.model_dump(mode="json"), indent=1))
        return
    for line in outcome_lines(outcome):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
