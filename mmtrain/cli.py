"""The command line: parse, call one function, print. `mmtrain --help` says what to do first.

What is the user's to mend ends in one line on stderr and exit status 2, without a traceback.
Heavy imports stand inside the commands, so that help and mistakes answer at once.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import ValidationError

from mmtrain.commands import doctor, jobs, listing, models, plan, predict, serving, tune
from mmtrain.commands.options import (
    Address,
    AsJson,
    DataDir,
    Force,
    ModelName,
    Quiet,
    RegisteredName,
    Registry,
    Resume,
    Settings,
    TaskNames,
    Verbose,
    console,
    errors,
    set_loudness,
    with_loudness,
)  # fmt: skip
from mmtrain.commands.printing import print_built, print_exported, print_extracted, print_run
from mmtrain.files import RECIPE
from mmtrain.process import logs, termination
from mmtrain.process.deadline import leave
from pipelines.errors import MMTrainError, first_problem

if TYPE_CHECKING:
    from mmtrain.recipe import Recipe

FIRST_STEPS = """One model learns many tasks in many modalities.

First:  [bold]mmtrain quickstart[/bold]   builds eight corpora, trains on them, evaluates, reports

Then:   [bold]mmtrain list recipes[/bold]   what can be trained; [bold]list tasks[/bold], ...
        [bold]mmtrain build RECIPE[/bold]   raw corpora to shards
        [bold]mmtrain train RECIPE --out runs/mine --set optimizer.learning_rate=1e-3[/bold]
        [bold]mmtrain evaluate runs/mine[/bold]
        [bold]mmtrain predict runs/mine --task translation_en_de "Germany"[/bold]
"""

app = typer.Typer(
    help=FIRST_STEPS,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.callback()
def loudness(verbose: Verbose = False, quiet: Quiet = False) -> None:
    set_loudness(verbose=verbose, quiet=quiet)  # its help is the app's


@app.command()
def quickstart(
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; default runs/RECIPE.")
    ] = None,
    data: DataDir = Path("corpora"),
    settings: Settings = None,
    resume: Resume = False,
    recipe: Annotated[str, typer.Option(help="Recipe to run from end to end.")] = "quickstart",
) -> None:
    """Build, train, evaluate, register, report: the whole way."""
    from mmtrain.commands.quickstart import run_quickstart

    run_quickstart(
        recipe, settings=settings or (), data_dir=data, out=out, resume=resume, console=console
    )


app.command("list")(listing.list_names)


@app.command()
def build(
    recipe: Annotated[str, typer.Argument(help="Recipe whose tasks are built.")] = "quickstart",
    data: DataDir = Path("corpora"),
    settings: Settings = None,
    task: TaskNames = None,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Write shards of corpora; what is built and unchanged stays."""
    from mmtrain.recipe import load_recipe
    from mmtrain.train import build_corpora

    manifests = build_corpora(
        load_recipe(recipe, settings or ()).only(task), data_dir=data, address=address
    )
    print_built(manifests, console=console, as_json=as_json)


@app.command()
def train(
    recipe: Annotated[
        str | None,
        typer.Argument(
            help="Name, FILE.py:FUNCTION or FILE.json; default: --init-from's own, or with "
            "--resume that of the run in --out."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; default runs/NAME.")] = None,
    data: DataDir = Path("corpora"),
    settings: Settings = None,
    task: TaskNames = None,
    init_from: Annotated[
        str | None,
        typer.Option(help="Weights to start from: ViT folder or file, run, bundle, models:/..."),
    ] = None,
    resume: Resume = False,
    address: Address = None,
    tracking: Annotated[
        str | None, typer.Option(help="MLflow URI; default: a file in --out.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train a recipe: checkpoints, recipe.json and the trained bundle."""
    from mmtrain.store.config import TrackingConfig
    from mmtrain.train import train as train_recipe

    if recipe is None and resume and out is not None:
        recipe = str(out / RECIPE)
    chosen = _choose_recipe(
        recipe, settings=settings or (), init_from=init_from, tracking=tracking
    ).only(task)
    run = train_recipe(
        chosen,
        out=out or Path("runs") / chosen.name,
        data_dir=data,
        resume=resume,
        address=address,
        tracking=TrackingConfig(uri=tracking),
        console=errors if as_json else console,
    )
    print_run(run, console=console, as_json=as_json)


@app.command()
def evaluate(
    model: ModelName,
    data: DataDir = Path("corpora"),
    split: Annotated[str, typer.Option(help="Split to measure on.")] = "test",
    task: TaskNames = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Examples a task at most.")] = None,
    record: Annotated[
        bool, typer.Option("--record", help="Keep the metrics with the registered version.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Measure a model on its tasks, beside their trivial baselines."""
    from mmtrain.evaluate.evaluate import evaluate_model
    from mmtrain.report.report import results_table

    measure = evaluate_model
    if record:
        from mmtrain.registry.measured import evaluate_and_record as measure
    results = measure(model, data_dir=data, split=split, tasks=tuple(task or ()), limit=limit)
    if as_json:
        print(results.model_dump_json(indent=1))
    else:
        console.print(results_table(results))


@app.command()
def extract(
    model: ModelName,
    out: Annotated[Path, typer.Option(help="Folder of the smaller model.")],
    modality: Annotated[
        list[str] | None,
        typer.Option(help="Keep all tasks of this input; may be given several times."),
    ] = None,
    task: TaskNames = None,
    register: RegisteredName = None,
    tracking: Registry = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Take out a model of some tasks; same answers, to the last bit."""
    from mmtrain.derive.extract import extract as extract_tasks
    from mmtrain.derive.opened import open_model
    from mmtrain.derive.part import derive

    extracted, version = derive(
        open_model(model, tracking_uri=tracking),
        partial(extract_tasks, out=out, tasks=task or (), inputs=modality or (), force=force),
        register=register,
        registry=tracking,
    )
    print_extracted(extracted, version=version, console=console, as_json=as_json)


@app.command()
def prune(
    model: ModelName,
    subtasks: Annotated[
        str | None, typer.Option(help="Basis subtasks that stay, e.g. a,b; default: of --classes.")
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help="Classes that stay, e.g. 3,7; default: all of --subtasks.")
    ] = None,
    budget: Annotated[
        float | None, typer.Option(help="Share of the whole model's FLOPs at most, e.g. 0.4.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the smaller model.")] = None,
    data: DataDir = Path("corpora"),
    recalibrate: Annotated[
        int, typer.Option(min=0, help="Unlabelled batches for batch norms; 0: as they are.")
    ] = 20,
    measure: Annotated[
        bool, typer.Option("--measure/--no-measure", help="Compare with the whole model.")
    ] = True,
    limit: Annotated[int | None, typer.Option(min=1, help="Test examples a task at most.")] = None,
    register: RegisteredName = None,
    tracking: Registry = None,
    force: Force = False,
    list_cuts: Annotated[
        bool, typer.Option("--list", help="List the registered cuts of MODEL; nothing is cut.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Cut a model with masks down to some subtasks, without training."""
    from mmtrain.commands.prune_table import print_cuts, print_pruned
    from mmtrain.derive import prune as pruning
    from mmtrain.derive.opened import DeriveError, open_model
    from mmtrain.derive.part import derive

    opened = open_model(model, tracking_uri=tracking)
    if list_cuts:
        cuts = pruning.registered_cuts(opened, registry=tracking)
        print_cuts(cuts, console=console, as_json=as_json)
        return
    if out is None:
        raise DeriveError("where to? give the smaller model's folder: --out DIR")
    config = pruning.PruneConfig(
        subtasks=_names(subtasks), classes=_names(classes), budget=budget,
        recalibration_batches=recalibrate, measures=measure, limit=limit,
    )  # fmt: skip
    make = partial(pruning.prune, config=config, out=out, data_dir=data, force=force)
    pruned, version = derive(opened, make, register=register, registry=tracking)
    print_pruned(pruned, version=version, console=console, as_json=as_json)


@app.command()
def export(
    model: ModelName,
    out: Annotated[Path, typer.Option(help="Folder to write: bundle, and TASK.onnx.")],
    onnx: Annotated[
        bool, typer.Option("--onnx", help="A graph of each task too, checked in ONNX Runtime.")
    ] = False,
    task: TaskNames = None,
    tracking: Registry = None,
    as_json: AsJson = False,
) -> None:
    """Write a model as a bundle without pickle, and as ONNX graphs."""
    from mmtrain.derive.onnx_export import export_model

    files = export_model(
        model, out=out, graphs=onnx, tasks=tuple(task or ()), tracking_uri=tracking
    )
    print_exported(files, out=out, console=console, as_json=as_json)


app.command("predict")(predict.predict)
app.command("serve")(serving.serve)
app.command("tune")(tune.tune)
app.add_typer(models.models, name="models")
app.command("plan")(plan.plan)
app.command("doctor")(doctor.doctor)
# what follows the command's name is another command's own
app.command(
    "submit", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}
)(jobs.submit)
app.add_typer(jobs.jobs, name="jobs")
with_loudness(app)


def _names(text: str | None) -> tuple[str, ...]:
    """Names parted by commas."""
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


def _choose_recipe(
    name: str | None, *, settings: Sequence[str], init_from: str | None, tracking: str | None
) -> "Recipe":
    """The recipe named, or without a name the one that goes on training `init_from`."""
    from mmtrain.derive.opened import tuning_recipe
    from mmtrain.recipe import RecipeError, load_recipe, override

    if name is not None:
        chosen = load_recipe(name, settings)
        return chosen.with_(init_from=init_from) if init_from else chosen
    if init_from is None:
        raise RecipeError("which recipe? `mmtrain list recipes` names them; or give --init-from")
    return override(tuning_recipe(init_from, tracking_uri=tracking), settings)


def main() -> None:
    """Entry point: the user's mistakes are one line and a non-zero exit, never a traceback."""
    logs.set_up()
    termination.interrupt_on_sigterm()
    try:
        app()  # Typer itself answers a wrong option, and an interrupt, in one line
    except MMTrainError as error:
        _fail(str(error))
    except ValidationError as error:
        _fail(f"{error.title}: {first_problem(error)}")
    except SystemExit as end:  # how Typer always ends
        if termination.was_terminated():
            _fail("terminated; what was written whole stands, the same command goes on")
        leave(end.code)


def _fail(message: str) -> None:
    errors.print("[bold red]error:[/bold red] ", end="")
    errors.print(message, markup=False, highlight=False, soft_wrap=True)
    leave(termination.exit_status(2))
