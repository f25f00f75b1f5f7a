"""From nothing to a trained, measured and registered model, in one call."""

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from mmtrain.evaluate.results import Results
from mmtrain.finish import Finished, finish_run
from mmtrain.process.duration import duration
from mmtrain.recipe import load_recipe
from mmtrain.report.report import results_table
from mmtrain.store.config import TrackingConfig
from mmtrain.train import build_corpora, ray_cluster, train
from pipelines.ownership import sole_owner

SAMPLES = 2  # predictions shown of each task


def run_quickstart(
    recipe_name: str,
    *,
    settings: Sequence[str],
    data_dir: Path,
    out: Path | None,
    resume: bool,
    console: Console,
) -> Finished:
    """Builds the corpora, trains, evaluates, registers, reports; prints a table and samples.

    Args:
        recipe_name: recipe to run.
        settings: changes to it, "field=value".
        data_dir: folder of raw corpora and shards.
        out: the run's folder; None: `runs/` and the recipe's name.
        resume: go on with the run there.
        console: where it is told.
    """
    began = time.monotonic()
    recipe = load_recipe(recipe_name, settings)
    tracking, out = TrackingConfig(), out or Path("runs") / recipe.name
    with sole_owner(out, option="--out"):
        with ray_cluster(recipe):
            console.print(f"building {len(recipe.tasks)} corpora in {data_dir} ...")
            manifests = build_corpora(recipe, data_dir=data_dir)
            built_s = time.monotonic() - began
            examples = sum(manifest.num_examples for manifest in manifests.values())
            console.print(f"{examples:,} examples in {duration(built_s)}")
            console.print(
                f"training {recipe.num_steps:,} steps on {recipe.num_workers} workers ..."
            )
            run = train(
                recipe,
                out=out,
                data_dir=data_dir,
                resume=resume,
                tracking=tracking,
                console=console,
            )
        times = {"corpora": built_s, "training": run.seconds}
        finished = finish_run(
            run,
            recipe,
            data_dir=data_dir.absolute(),
            tracking=tracking,
            times=times,
            console=console,
        )
        console.print(results_table(finished.results))
        print_samples(finished.results, console=console)
        console.print(f"report    {finished.report}", highlight=False)
        if finished.version:
            console.print(f"model     {finished.version.uri}", highlight=False)
        console.print(f"whole run {duration(time.monotonic() - began)}", highlight=False)
        return finished


def print_samples(results: Results, *, console: Console) -> None:
    """A few answers of each task beside what was right."""
    for name, task in results.tasks.items():
        console.print(f"\n[bold]{name}[/bold]")
        for sample in task.splits[0].samples[:SAMPLES]:
            shown = sample.input if sample.input_kind == "text" else f"<{sample.input_kind}>"
            mark = "[green]=[/green]" if sample.prediction == sample.reference else "[red]~[/red]"
            console.print(f"  {escape(shown)}", soft_wrap=True)
            console.print(f"    {mark} {escape(sample.prediction)}", soft_wrap=True)
            if sample.prediction != sample.reference:
                console.print(f"    [dim]right: {escape(sample.reference)}[/dim]", soft_wrap=True)
