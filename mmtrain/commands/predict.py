"""`mmtrain predict`: answers of a few inputs on the terminal, or of any number to a folder."""

import json
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mmtrain.commands.options import Address, AsJson, console, errors
from pipelines.errors import MMTrainError

if TYPE_CHECKING:
    from mmtrain.predict.batch import BatchProgress, BatchResult, OnProgress


class UsageError(MMTrainError):
    """Arguments that do not go together."""


def predict(
    model: Annotated[str, typer.Argument(help="Run folder, bundle folder or models:/NAME@ALIAS.")],
    inputs: Annotated[
        list[str] | None,
        typer.Argument(help="Texts or class names; files for any other modality."),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="Task that answers; default: all of the inputs' modality.")
    ] = None,
    modality: Annotated[
        str | None, typer.Option(help="Of the inputs, where the model takes several.")
    ] = None,
    beam: Annotated[int, typer.Option(min=1, help="Beam width; 1 is greedy.")] = 1,
    data: Annotated[
        str | None,
        typer.Option(
            "--input",
            help="Data of any size: folder or pattern of files, JSONL, TSV, CSV, Parquet, TXT, or "
            "the folder of a built split.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--output", help="Folder of the answers to --input: Parquet; JSON lines if *.jsonl."
        ),
    ] = None,
    column: Annotated[
        str | None, typer.Option(help="Column of a table that holds the inputs; default: input.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows answered together.")] = 32,
    rows_a_part: Annotated[
        int, typer.Option("--part-rows", min=1, help="Rows of an output file at most.")
    ] = 1000,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Processes with the model; default: by the machine.")
    ] = None,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Answer inputs: one task, or every task of their modality."""
    if (data is None) != (out is None):
        raise UsageError("--input and --output go together: data of any size to a folder")
    if data is None or out is None:
        if not inputs:
            raise UsageError("nothing to answer; give inputs, or --input DATA --output DIR")
        _print_answers(model, inputs, task=task, modality=modality, beam=beam, as_json=as_json)
        return
    if inputs:
        raise UsageError(f"give inputs or --input, not both: {inputs[0]!r} and {data!r}")
    from mmtrain.predict.batch import batch_predict

    with _display(errors if as_json else console) as on_progress:
        result = batch_predict(
            model, data=data, out=out, task=task, modality=modality, column=column,
            batch_size=batch_size, beam_size=beam, rows_a_part=rows_a_part,
            concurrency=concurrency, address=address, on_progress=on_progress,
        )  # fmt: skip
    _print_result(result, as_json=as_json)


def _print_answers(
    model: str, inputs: list[str], *, task: str | None, modality: str | None, beam: int,
    as_json: bool,
) -> None:  # fmt: skip
    from mmtrain.predict.predictor import Predictor

    predictor = Predictor.load(model)
    if task:
        answers = [{task: one} for one in predictor.predict(task, inputs, beam_size=beam)]
    else:
        answers = predictor.predict_all(inputs, modality=modality, beam_size=beam)
    for value, by_task in zip(inputs, answers, strict=True):
        for name, prediction in by_task.items():
            if as_json:
                print(json.dumps({"input": value, "task": name, **prediction.to_dict()}))
                continue
            line = (value, str(prediction)) if task else (value, name, str(prediction))
            console.print("\t".join(line), highlight=False, markup=False, soft_wrap=True)


def _print_result(result: "BatchResult", *, as_json: bool) -> None:
    if as_json:
        print(result.model_dump_json(indent=1))
        return
    resumed = f", {result.resumed_rows:,} of them before" if result.resumed_rows else ""
    lines = [
        f"{result.num_rows:,} rows{resumed}, {', '.join(result.tasks)}: {result.num_parts:,} parts "
        f"in {result.out}, {result.seconds:.0f} s"
    ]
    if result.num_failed:
        lines.append(f"{result.num_failed:,} rows without an answer, their error says why:")
        lines += [f"  {count:,}  {reason}" for reason, count in result.reasons.items()]
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def _display(shown: Console) -> "Generator[OnProgress]":
    """A bar of rows; where there is no terminal, a line each tenth of the way."""
    if shown.is_terminal:
        columns: tuple[Any, ...] = (
            TextColumn("rows"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            TextColumn("{task.fields[failed]}"),
        )  # fmt: skip
        with Progress(*columns, console=shown, transient=True) as bars:
            bar = bars.add_task("rows", total=None, failed="")

            def draw(now: "BatchProgress") -> None:
                failed = f"{now.failed:,} failed" if now.failed else ""
                bars.update(bar, completed=now.done, total=now.total, failed=failed)

            yield draw
        return
    tenths = -1

    def line(now: "BatchProgress") -> None:
        nonlocal tenths
        if (tenth := 10 * now.done // max(1, now.total)) > tenths:
            tenths = tenth
            rows = f"{now.done:,} of {now.total:,} rows, {now.failed:,} failed"
            shown.print(f"{rows}, {now.elapsed_s:.0f} s", highlight=False, soft_wrap=True)

    yield line
